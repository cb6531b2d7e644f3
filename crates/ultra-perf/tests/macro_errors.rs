//! What a function under an attribute cannot be is told at its own tokens.

#[test]
fn what_cannot_work_is_told_where_it_stands() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
