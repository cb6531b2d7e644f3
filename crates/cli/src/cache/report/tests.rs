//! Reports of made-up results.

use super::*;

/// 1,000 requests of 100 keys, which weigh 10 bytes each if they are weighted.
fn trace(weighted: bool) -> Trace {
    let keys = (0..1_000_u64).map(|at| at % 100);
    if weighted {
        Trace::weighted("t.csv", keys.map(|key| (key, 10)))
    } else {
        Trace::new("t.txt", keys.collect())
    }
}

fn contenders(names: &str) -> Vec<Contender> {
    names.split(' ').map(|name| Contender::matching(name).unwrap().remove(0)).collect()
}

/// A row with these hits of 1,000 requests; `-` stands for none.
fn row(size: &str, capacity: Capacity, hits: &str) -> Row {
    let outcome = |hits: &str| {
        let hits = hits.parse().ok()?;
        let weight = if capacity.weighs() { 10 } else { 1 };
        Some(Outcome {
            requests: 1_000,
            hits,
            weight: 1_000 * weight,
            hit_weight: hits * weight / 2,
        })
    };
    Row { size: size.to_owned(), capacity, outcomes: hits.split(' ').map(outcome).collect() }
}

fn with_report<T>(
    trace: &Trace,
    names: &str,
    rows: Vec<Row>,
    look: impl FnOnce(&Report<'_>) -> T,
) -> T {
    let contenders = contenders(names);
    look(&Report { trace, footprint: trace.footprint(), contenders: &contenders, rows })
}

fn advice(report: &Report<'_>) -> Option<String> {
    report.advice()
}

fn json_of(report: &Report<'_>) -> Value {
    report.json()
}

const NAMES: &str = "lru adaptive textbook-sieve belady";

fn rows() -> Vec<Row> {
    vec![
        row("5%", Capacity::entries(5), "100 200 250 400"),
        row("1500", Capacity::entries(1_500), "310 300 290 900"),
    ]
}

#[test]
fn the_table_marks_the_best_of_each_row_that_does_not_know_the_future() {
    let text = with_report(&trace(false), NAMES, rows(), |it| it.text(Style { colour: false }));
    let expected = "\
t.txt: 1,000 requests of 100 keys

hit ratio in %     lru  adaptive  textbook-sieve  belady
5% = 5 entries   10.00     20.00           25.00*  40.00
 1,500 entries   31.00*    30.00           29.00   90.00

adaptive at 1,500 entries answers 30.0 %, 10.0 points more than at 5 entries; more memory may add up \
to 60.0 points: try larger --sizes
";
    assert_eq!(text, expected);
}

#[test]
fn colour_adds_only_escapes() {
    let plain = with_report(&trace(false), NAMES, rows(), |it| it.text(Style { colour: false }));
    let colour = with_report(&trace(false), NAMES, rows(), |it| it.text(Style { colour: true }));
    assert!(colour.contains("\x1b[32m25.00\x1b[0m*"), "{colour:?}");
    let stripped = [BOLD, GREEN, PLAIN].iter().fold(colour, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn nothing_is_best_where_nothing_was_hit() {
    let rows = vec![row("1", Capacity::entries(1), "0 0 0 0")];
    let text = with_report(&trace(false), NAMES, rows, |it| it.text(Style { colour: false }));
    assert!(!text.contains('*'), "{text}");
}

#[test]
fn sizes_in_bytes_have_a_second_table_and_no_optimum() {
    let rows = vec![
        row("64MiB", Capacity::weight(64 << 20, 100), "100 200 300 -"),
        row("7", Capacity::entries(7), "100 200 300 400"),
    ];
    let text = with_report(&trace(true), NAMES, rows, |it| it.text(Style { colour: false }));
    let expected = "\
t.csv: 1,000 requests of 100 keys with 0.98 KiB

hit ratio in %     lru  adaptive  textbook-sieve  belady
      64.0 MiB   10.00     20.00           30.00*      -
     7 entries   10.00     20.00           30.00*  40.00

share of bytes answered in %     lru  adaptive  textbook-sieve  belady
                    64.0 MiB    5.00     10.00           15.00*      -

belady: the optimum is known only for sizes in entries, not in bytes.
adaptive at 64.0 MiB answers 20.0 %; more memory may add up to 70.0 points: try larger --sizes
";
    assert_eq!(text, expected);
}

/// Advises on adaptive caches of these sizes and hits.
fn check(names: &str, sizes: &[(u64, &str)], expected: Option<&str>) {
    let rows = sizes.iter().map(|(entries, hits)| row("", Capacity::entries(*entries), hits));
    let found = with_report(&trace(false), names, rows.collect(), advice);
    assert_eq!(found.as_deref(), expected, "{names} {sizes:?}");
}

#[test]
fn the_smallest_size_is_advised_that_no_other_beats_by_two_points() {
    check(
        "adaptive",
        &[(400, "615"), (100, "500"), (200, "600"), (50, "300")],
        Some(
            "adaptive at 200 entries answers 60.0 %, 10.0 points more than at 100 entries; going on to 400 entries adds only 1.5 points",
        ),
    );
    check(
        "adaptive",
        &[(100, "500"), (200, "885")],
        Some(
            "adaptive at 200 entries answers 88.5 %, 38.5 points more than at 100 entries; no size can answer more than 90.0 %",
        ),
    );
    check(
        "adaptive",
        &[(1, "700")],
        Some(
            "adaptive at 1 entry answers 70.0 %; more memory may add up to 20.0 points: try larger --sizes",
        ),
    );
}

#[test]
fn another_policy_is_advised_only_if_it_is_a_point_better() {
    let policy = |names: &str, hits: &str| {
        let rows = vec![row("", Capacity::entries(5), hits)];
        with_report(&trace(false), names, rows, |it| {
            it.recommended().map(|at| it.contenders[at].name().to_owned())
        })
    };
    assert_eq!(policy("lru adaptive", "509 500").as_deref(), Some("adaptive"));
    assert_eq!(policy("lru adaptive", "511 500").as_deref(), Some("lru"));
    assert_eq!(policy("lru clock-pro", "500 511").as_deref(), Some("clock-pro"));
    assert_eq!(policy("textbook-lru lru belady", "900 100 999").as_deref(), Some("lru"));
    assert_eq!(policy("textbook-lru belady", "900 999"), None);
    check("textbook-lru belady", &[(5, "900 999")], None);
}

#[test]
fn json_has_every_number_under_its_name() {
    let rows = vec![
        row("64MiB", Capacity::weight(64 << 20, 100), "100 -"),
        row("7", Capacity::entries(7), "100 400"),
    ];
    let json = with_report(&trace(true), "lru belady", rows, json_of);
    assert_eq!(
        json,
        json!({
            "trace": {
                "name": "t.csv", "format": null, "requests": 1000, "keys": 100, "bytes": 1000,
                "truncated": false, "skipped_lines": 0,
            },
            "policies": ["lru", "belady"],
            "sizes": [
                {
                    "size": "64MiB", "entries": null, "bytes": 67_108_864,
                    "results": [
                        { "policy": "lru", "hits": 100, "hit_ratio": 0.1, "byte_hit_ratio": 0.05 },
                        { "policy": "belady", "hits": null, "hit_ratio": null, "byte_hit_ratio": null },
                    ],
                },
                {
                    "size": "7", "entries": 7, "bytes": null,
                    "results": [
                        { "policy": "lru", "hits": 100, "hit_ratio": 0.1, "byte_hit_ratio": null },
                        { "policy": "belady", "hits": 400, "hit_ratio": 0.4, "byte_hit_ratio": null },
                    ],
                },
            ],
            "recommended": "lru",
            "advice": "lru at 64.0 MiB answers 10.0 %; more memory may add up to 80.0 points: try larger --sizes",
        }),
    );
}

#[test]
fn bytes_have_three_digits_and_a_unit() {
    for (value, expected) in [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "0.98 KiB"),
        (14_500, "14.2 KiB"),
        (1_023 << 10, "1.00 MiB"),
        (64 << 20, "64.0 MiB"),
        (300 << 30, "300 GiB"),
        (u64::MAX, "16384 PiB"),
    ] {
        assert_eq!(bytes(value), expected);
    }
}
