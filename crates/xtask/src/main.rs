//! What a person or CI runs.
fn main() {}
