//! What recording, remembering, judging and telling cost, beside the libraries that others use.

fn main() {}
