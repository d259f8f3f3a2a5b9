//! The `aventine` program.
fn main() {}
