//! The built-in plugins as shared objects, for the tests that compare both forms.
//!
//! Each file beside this one is a target of its own: a `cdylib` of one line.
#![forbid(unsafe_code)]
