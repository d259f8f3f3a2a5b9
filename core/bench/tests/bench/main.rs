//! What is measured, is.

mod disk;
mod transport;
