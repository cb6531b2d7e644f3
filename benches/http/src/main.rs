//! A suite.
fn main() {}
