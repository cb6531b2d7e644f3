//! Formats: what each line means, what is refused, and what is recognized.

use super::*;

/// Shows what a line is understood as: a key as `+`, with its weight if that is not 1.
fn shown(format: Format, line: &str) -> String {
    match parse(format, line.as_bytes()) {
        Some(Line::Keys { first, count, weight: 1 }) if count > 1 => format!("{first}..+{count}"),
        Some(Line::Keys { weight: 1, .. }) => "+".to_owned(),
        Some(Line::Keys { weight, .. }) => format!("+{weight}"),
        Some(Line::Nothing) => "nothing".to_owned(),
        Some(Line::NoRead) => "no read".to_owned(),
        None => "refused".to_owned(),
    }
}

fn check(format: Format, lines: &[(&str, &str)]) {
    for (line, expected) in lines {
        assert_eq!(shown(format, line), *expected, "{format}: {line:?}");
    }
}

fn key(format: Format, line: &str) -> u64 {
    match parse(format, line.as_bytes()) {
        Some(Line::Keys { first, .. }) => first,
        other => panic!("{line:?} is {other:?}"),
    }
}

#[test]
fn blocks_are_decimal_numbers() {
    check(
        Format::Blocks,
        &[
            ("17", "+"),
            (" 17\r", "+"),
            ("*", "nothing"),
            ("", "nothing"),
            ("-1", "refused"),
            ("+1", "refused"),
            ("1 2", "refused"),
            ("0x1", "refused"),
            ("18446744073709551616", "refused"),
        ],
    );
    assert_eq!(key(Format::Blocks, "007"), 7);
}

#[test]
fn addresses_are_the_second_field_in_hexadecimal() {
    check(
        Format::Addresses,
        &[
            ("l 0x1fffff58 6", "+"),
            ("s 0X1 1", "+"),
            ("", "nothing"),
            ("l 1fffff58 6", "refused"),
            ("l 0x 6", "refused"),
            ("l 0x+1 6", "refused"),
            ("l 0x1", "refused"),
            ("l 0x10000000000000000 1", "refused"),
        ],
    );
    assert_eq!(key(Format::Addresses, "l 0xff 1"), 255);
}

#[test]
fn ranges_are_a_start_and_a_count() {
    check(
        Format::Ranges,
        &[
            ("100 3 0 1", "100..+3"),
            ("100 1 0 1", "+"),
            ("100 3 0", "refused"),
            ("100 3 0 1 2", "refused"),
            ("18446744073709551615 3 0 1", "refused"),
            ("a 3 0 1", "refused"),
        ],
    );
}

#[test]
fn a_sized_key_is_the_id_with_the_size() {
    check(
        Format::Sized,
        &[
            ("1 0 68", "+68"),
            ("1.5 0 68", "+68"),
            ("1 0 99999999999", "+4294967295"),
            ("1 0 -", "refused"),
            ("1 a 68", "refused"),
            ("1 0", "refused"),
        ],
    );
    let key = |line| key(Format::Sized, line);
    assert_eq!(key("1 7 68"), key("2 7 68"));
    assert_ne!(key("1 7 68"), key("1 7 69"));
    assert_ne!(key("1 7 68"), key("1 68 7"));
}

#[test]
fn any_text_is_a_key_and_spaces_around_it_are_not() {
    check(Format::Lines, &[("user:7 x,y", "+"), ("  ", "nothing"), ("*", "+")]);
    assert_eq!(key(Format::Lines, "a b"), key(Format::Lines, " a b\r"));
    assert_ne!(key(Format::Lines, "a b"), key(Format::Lines, "ab"));
}

#[test]
fn the_last_comma_ends_the_key_of_a_csv_line() {
    check(
        Format::Csv,
        &[
            ("a,10", "+10"),
            ("a, 10 ", "+10"),
            ("\"a\",\"10\"", "+10"),
            ("a,b,10", "+10"),
            ("a,0", "+0"),
            ("a", "refused"),
            ("a,", "refused"),
            ("a,ten", "refused"),
            ("a,-1", "refused"),
        ],
    );
    assert_eq!(key(Format::Csv, "\"a\",1"), key(Format::Csv, "a,2"));
    assert_ne!(key(Format::Csv, "a,1"), key(Format::Csv, "b,1"));
}

const COMMON: &str =
    r#"10.0.0.1 - ann [10/Oct/2000:13:55:36 -0700] "GET /a?b=1 HTTP/1.0" 200 2326"#;
const COMBINED: &str = concat!(
    r#"shop.example:443 10.0.0.2 - - [10/Oct/2000:13:55:37 -0700] "GET /a?b=1 HTTP/2.0" 304 - "#,
    r#""http://x/\"y\"" "Mozilla/5.0 (\"x\")""#,
);

#[test]
fn an_access_log_tells_methods_targets_and_bytes() {
    let with = |request: &str| COMMON.replace("GET /a?b=1 HTTP/1.0", request);
    check(
        Format::AccessLog,
        &[
            (COMMON, "+2326"),
            (COMBINED, "+0"),
            (&with("HEAD /a HTTP/1.1"), "+2326"),
            (&with("GET /a"), "+2326"),
            (&with(r#"GET /a\"b HTTP/1.1"#), "+2326"),
            (&with("POST /a HTTP/1.1"), "no read"),
            (&with("-"), "no read"),
            (&with(""), "no read"),
            (&with(r"\x16\x03\x01"), "no read"),
            ("", "nothing"),
            (&COMMON.replace("200 2326", "200"), "refused"),
            (&COMMON.replace("200 2326", "ok 2326"), "refused"),
            (&COMMON.replace("200 2326", "200 many"), "refused"),
            (&COMMON.replace('"', ""), "refused"),
            (&COMMON.replace('[', ""), "refused"),
            (&COMMON[..60], "refused"),
        ],
    );
    let key = |line: &str| key(Format::AccessLog, line);
    assert_eq!(key(COMMON), key(COMBINED));
    assert_ne!(key(COMMON), key(&with("GET /a?b=2 HTTP/1.0")));
    assert_ne!(key(COMMON), key(&with("HEAD /a?b=1 HTTP/1.0")));
}

#[test]
fn names_lead_to_their_formats_and_others_are_told_them() {
    for format in Format::ALL {
        assert_eq!(format.as_str().parse(), Ok(format));
    }
    let error = "lirs".parse::<Format>().unwrap_err().to_string();
    assert!(error.starts_with("no such format: \"lirs\"; expected words32, words64,"), "{error}");
    assert!(error.ends_with("csv or access-log"), "{error}");
}

fn recognized(name: &str, text: &str, expected: Format) {
    assert_eq!(recognize(name, text.as_bytes()), expected, "{name}: {text:?}");
}

#[test]
fn text_is_recognized_by_its_lines() {
    recognized("x", "1 2 0 3\n4 5 0 6\n", Format::Ranges);
    recognized("x", "1 2 3\n4 5 6\n", Format::Sized);
    recognized("x", "l 0xff 1\ns 0x1 2\n", Format::Addresses);
    recognized("x", "1\n2\n*\n3", Format::Blocks);
    recognized("x", &format!("{COMMON}\ngarbage\n{COMBINED}\n"), Format::AccessLog);
    recognized("x", "key,size\na,1\nb,2\n", Format::Csv);
    recognized("x", "/a\n/b,1\nc d\n", Format::Lines);
    recognized("x", "/a\n/b,1\n", Format::Lines);
    recognized("x", "key,size\n", Format::Lines);
    recognized("x", "", Format::Lines);
    recognized("x", "\n\n", Format::Lines);
}

#[test]
fn a_line_that_the_sample_cuts_off_does_not_count() {
    recognized("x", "1 2 0 3\n4 5", Format::Ranges);
}

#[test]
fn a_csv_file_is_one_even_where_its_lines_are_wrong() {
    recognized("sizes.csv", "a;1\nb;2\n", Format::Csv);
    recognized("sizes.CSV.gz", "a;1\nb;2\n", Format::Csv);
    recognized("csv", "a;1\nb;2\n", Format::Lines);
}

fn words<const N: usize>(keys: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    keys.flatten().collect()
}

#[test]
fn words_are_told_apart_by_what_is_on_both_sides() {
    let zipf = crate::simulate::Workload::Zipf { keys: 2_000, exponent: 0.8 }.trace(10_000, 1);
    let hashes = || zipf.keys().iter().copied();
    assert_eq!(recognize("x", &words(hashes().map(u64::to_be_bytes))), Format::Words64);
    assert_eq!(
        recognize("x", &words(hashes().map(|key| (key >> 40).to_be_bytes()))),
        Format::Words64
    );
    assert_eq!(
        recognize("x", &words(hashes().map(|key| (key >> 40).to_le_bytes()))),
        Format::Words64
    );
    let short = || hashes().map(|key| (key >> 32) as u32);
    assert_eq!(recognize("x", &words(short().map(u32::to_be_bytes))), Format::Words32);
    assert_eq!(
        recognize("x", &words(short().map(|key| (key >> 12).to_le_bytes()))),
        Format::Words32
    );
    // Nothing comes twice.
    assert_eq!(recognize("x", &words((0_u32..5_000).map(u32::to_be_bytes))), Format::Words32);
    assert_eq!(recognize("x", &words((0_u32..5_000).map(u32::to_le_bytes))), Format::Words32);
    assert_eq!(recognize("x", &words((0_u64..5_000).map(u64::to_be_bytes))), Format::Words64);
    assert_eq!(recognize("x", &[0, 0, 0, 1]), Format::Words32);
}
