//! Traces out of bytes: packed or not, limited, damaged, arbitrary.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8], options: &TraceOptions) -> Result<Trace, TraceError> {
    Trace::read("t", bytes, options)
}

fn as_format(format: Format) -> TraceOptions {
    TraceOptions::default().format(format)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// `1\n2\n1\n`, by `xz`.
const XZ: [u8; 60] = [
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
    0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x31, 0x0a, 0x32, 0x0a, 0x31,
    0x0a, 0x00, 0x00, 0x00, 0x5a, 0x36, 0x69, 0x45, 0x00, 0x01, 0x1a, 0x06, 0xc5, 0xea, 0xc8, 0x79,
    0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
];

fn error(bytes: &[u8], format: Format) -> String {
    read(bytes, &as_format(format)).unwrap_err().to_string()
}

#[test]
fn a_packed_trace_is_the_trace() {
    let plain = b"1\n2\n1\n";
    let expected = read(plain, &TraceOptions::default()).unwrap();
    assert_eq!(expected.keys(), [1, 2, 1]);
    let twice = [gzip(b"1\n2\n"), gzip(b"1\n")].concat();
    for packed in [gzip(plain), zstd(plain), XZ.to_vec(), twice] {
        assert_eq!(read(&packed, &TraceOptions::default()).unwrap(), expected);
    }
}

#[test]
fn a_damaged_file_is_an_error_that_tells_how_far_it_was_read() {
    let text: String = (0..200_000).map(|at: u64| format!("{}\n", at * 7919 % 65_537)).collect();
    for mut packed in [gzip(text.as_bytes()), zstd(text.as_bytes())] {
        packed.truncate(packed.len() - 9);
        let error = read(&packed, &TraceOptions::default()).unwrap_err();
        assert!(matches!(error, TraceError::Read { requests: 1.., .. }), "{error:?}");
        assert!(error.to_string().starts_with("cannot read t after "), "{error}");
    }
    let mut packed = XZ;
    packed[30] ^= 1;
    let error = read(&packed, &TraceOptions::default()).unwrap_err();
    assert!(matches!(error, TraceError::Read { requests: 0, .. }), "{error:?}");
}

#[test]
fn a_wrong_line_is_shown_with_its_number() {
    assert_eq!(
        error(b"1\n2\nthree\n", Format::Blocks),
        "t, line 3: seen \"three\", expected a decimal block number or `*`",
    );
    let long = "x".repeat(200);
    let shown = error(long.as_bytes(), Format::Blocks);
    assert!(shown.contains(&format!("\"{}...\"", "x".repeat(60))), "{shown}");
    assert_eq!(
        error(b"a,1\nb,two\n", Format::Csv),
        "t, line 2: seen \"b,two\", expected `key,size`, the size a decimal number of bytes",
    );
}

#[test]
fn a_line_of_more_than_64_kib_is_wrong() {
    let line = |length| ["x".repeat(length), "\ny\n".to_owned()].concat();
    assert_eq!(read(line(65_535).as_bytes(), &as_format(Format::Lines)).unwrap().keys().len(), 2);
    let error = error(line(65_536).as_bytes(), Format::Lines);
    assert!(error.starts_with("t, line 1: seen \"xxx"), "{error}");
}

#[test]
fn a_torn_word_is_shown_with_its_offset() {
    assert_eq!(
        error(&[0; 14], Format::Words64),
        "t, offset 8: 6 bytes are left over, expected words of 8 bytes",
    );
    assert_eq!(read(&[0; 12], &as_format(Format::Words32)).unwrap().keys(), [0, 0, 0]);
}

#[test]
fn a_file_without_requests_is_an_error() {
    assert_eq!(error(b"", Format::Lines), "t holds no request");
    assert_eq!(error(b"*\n\n", Format::Blocks), "t holds no request");
    let post = br#"h - - [t] "POST /a HTTP/1.1" 200 5"#;
    assert_eq!(
        error(post, Format::AccessLog),
        "t holds no request that a cache could answer, in 1 lines"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Trace::open("no/such.trace", &TraceOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot open no/such.trace");
}

#[test]
fn a_limit_stops_even_within_a_range_and_says_so() {
    let limited = |bytes: &[u8], limit| {
        let trace = read(bytes, &TraceOptions::default().limit(limit)).unwrap();
        (trace.keys().len(), trace.is_truncated())
    };
    assert_eq!(limited(b"5 10 0 1\n9 1 0 2\n", 11), (11, false));
    assert_eq!(limited(b"5 10 0 1\n9 1 0 2\n", 10), (10, true));
    assert_eq!(limited(b"5 10 0 1\n9 1 0 2\n", 3), (3, true));
    assert_eq!(limited(b"5 18446744073709551610 0 1\n", 3), (3, true));
    assert_eq!(limited(&[0, 0, 0, 1].repeat(9), 4), (4, true));
    assert_eq!(limited(b"1\n2\n", 0), (0, true));
}

#[test]
fn a_truncated_trace_keeps_its_beginning() {
    let mut trace = Trace::weighted("t", [(1, 10), (2, 20), (1, 10)]);
    trace.truncate(5);
    assert!(!trace.is_truncated());
    trace.truncate(2);
    assert_eq!((trace.keys(), trace.weights()), (&[1, 2][..], Some(&[10, 20][..])));
    assert!(trace.is_truncated());
}

#[test]
fn only_formats_with_sizes_give_weights_and_none_is_zero() {
    let trace = read(b"a,0\nb,7\n", &as_format(Format::Csv)).unwrap();
    assert_eq!(trace.weights(), Some(&[1, 7][..]));
    assert_eq!(trace.format(), Some(Format::Csv));
    assert_eq!(read(b"a,0\n", &as_format(Format::Lines)).unwrap().weights(), None);
    assert_eq!(Trace::weighted("t", [(1, 0)]).weights(), Some(&[1][..]));
}

#[test]
fn a_header_is_no_request() {
    assert_eq!(read(b"\nkey,size\na,1\n", &as_format(Format::Csv)).unwrap().keys().len(), 1);
}

#[test]
fn a_target_of_a_log_weighs_what_its_largest_answer_did() {
    let line = |target: &str, answer: &str| format!("h - - [t] \"{target} HTTP/1.1\" {answer}\n");
    let log = [
        line("GET /a", "304 -"),
        line("POST /a", "200 9"),
        line("GET /a", "200 500"),
        line("GET /b", "200 70"),
        line("GET /a", "206 50"),
    ];
    let trace = read(log.concat().as_bytes(), &TraceOptions::default()).unwrap();
    assert_eq!(trace.weights(), Some(&[500, 500, 70, 500][..]));
    assert_eq!((trace.format(), trace.skipped()), (Some(Format::AccessLog), 1));
}

#[test]
fn a_footprint_counts_each_key_once() {
    let trace = Trace::weighted("t", [(1, 10), (2, 20), (1, 10)]);
    let footprint = trace.footprint();
    assert_eq!(footprint, Footprint { keys: 2, weight: 30 });
    assert_eq!(footprint.weight_of(45), Capacity::weight(45, 3));
    let hundred = Footprint { keys: 100, weight: 5_000 };
    assert_eq!(hundred.entries(0.07), Capacity::entries(7));
    assert_eq!(hundred.entries(0.001), Capacity::entries(1));
    assert_eq!(hundred.weight(0.1), Capacity::weight(500, 10));
}

/// The traces that the project keeps beside its repository, if they are there.
#[test]
fn the_shared_traces_hold_what_their_list_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
    for (file, format, requests, keys) in [
        ("cache2k-web07.trace.xz", Format::Words32, 76_118, 20_484),
        ("corda-vaultservice.gz", Format::Words64, 135_702, 90_468),
        ("adaptsize-request.trace.xz", Format::Sized, 66_987, 40_240),
        ("lirs-cpp.trace.gz", Format::Blocks, 9_047, 1_223),
        ("address-twolf.trace.gz", Format::Addresses, 482_824, 7_354),
        ("arc-OLTP.lis.zst", Format::Ranges, 914_145, 186_880),
    ] {
        let path = folder.join(file);
        if !path.exists() {
            continue;
        }
        let trace = Trace::open(&path, &TraceOptions::default()).unwrap();
        assert_eq!(trace.format(), Some(format), "{file}");
        assert_eq!(trace.keys().len(), requests, "{file}");
        assert_eq!(trace.footprint().keys, keys, "{file}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_trace_or_an_error(
        magic in prop::sample::select(vec![
            &b""[..], b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"1 2 0 ", b"h [t] \"GET ",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        format in prop::option::of(prop::sample::select(Format::ALL.to_vec())),
    ) {
        let bytes = [magic, &bytes].concat();
        let options = TraceOptions::default().format(format).limit(1_000);
        if let Ok(trace) = read(&bytes, &options) {
            prop_assert!(trace.keys().len() <= 1_000);
            prop_assert!(trace.weights().is_none_or(|weights| weights.len() == trace.keys().len()));
        }
    }

    #[test]
    fn a_damaged_xz_file_is_a_trace_or_an_error(
        changes in prop::collection::vec((0..XZ.len(), any::<u8>()), 1..6),
        cut in 0..XZ.len(),
    ) {
        let mut bytes = XZ.to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(XZ.len() - cut / 4);
        let _ = read(&bytes, &TraceOptions::default().limit(1_000));
    }

    #[test]
    fn lines_of_printable_text_are_never_refused(text in "[ -~\n]{0,300}") {
        let read = read(text.as_bytes(), &as_format(Format::Lines));
        let expected = text.lines().filter(|line| !line.trim().is_empty()).count();
        prop_assert_eq!(read.map_or(0, |trace| trace.keys().len()), expected);
    }
}
