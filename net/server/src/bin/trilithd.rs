//! trilithd.
fn main() {}
