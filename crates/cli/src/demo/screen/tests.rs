//! Golden lines, and what reaches a terminal and a pipe.

use super::*;
use crate::demo::load::Counts;

const WITHOUT_COLOUR: Style = Style { colour: false };

const HEADING: &str =
    "ultra-perf demo: a slow shop, 16 clients, Zipf 0.9 over 428 pages, 5 % writes";

fn direct() -> Reading {
    Reading {
        measured: Measured {
            counts: Counts {
                answered: 521,
                reads: 495,
                writes: 26,
                errors: 0,
                ..Counts::default()
            },
            elapsed: Duration::from_secs(10),
            p50: Duration::from_millis(310),
            p95: Duration::from_micros(512_400),
            p99: Duration::from_millis(1_240),
        },
        backend_calls: 521,
        errors: 0,
    }
}

fn through() -> Reading {
    Reading {
        measured: Measured {
            counts: Counts {
                answered: 12_040,
                reads: 11_438,
                writes: 602,
                hits: 10_700,
                stale: 90,
                ..Counts::default()
            },
            elapsed: Duration::from_secs(10),
            p50: Duration::from_micros(420),
            p95: Duration::from_micros(9_540),
            p99: Duration::from_millis(140),
        },
        backend_calls: 1_250,
        errors: 3,
    }
}

fn progress() -> Progress {
    Progress {
        phase: 2,
        phases: 2,
        age: Duration::from_millis(6_200),
        length: Duration::from_secs(10),
    }
}

fn outcome() -> Outcome {
    Outcome { direct: direct(), through: Some(through()), ..Outcome::default() }
}

#[test]
fn the_table_shows_both_phases_side_by_side() {
    let lines = table(HEADING, Some(&direct()), Some(&through()), progress(), WITHOUT_COLOUR);
    assert_eq!(
        lines,
        [
            HEADING,
            "",
            "                       direct to the backend    through ultra-perf",
            "  requests/s                            52.1                 1,204",
            "  p50                                 310 ms               0.42 ms",
            "  p95                                 512 ms                9.5 ms",
            "  p99                                 1.24 s                140 ms",
            "  hit ratio                            0.0 %                94.3 %",
            "  backend calls/s                       52.1                   125",
            "  errors                                   0                     3",
            "",
            "  phase 2 of 2 [##################............] 6 s of 10 s, Ctrl-C ends early",
        ]
    );
}

#[test]
fn the_table_of_a_phase_without_answers_shows_dashes() {
    let lines = table(
        HEADING,
        Some(&Reading::default()),
        None,
        Progress { phase: 1, ..progress() },
        WITHOUT_COLOUR,
    );
    assert_eq!(lines[3], "  requests/s                               -");
    assert_eq!(lines[4], "  p50                                      -");
    assert_eq!(lines[7], "  hit ratio                                -");
    assert_eq!(lines[9], "  errors                                   0");
}

#[test]
fn the_summary_tells_factors_savings_freshness_and_the_next_command() {
    assert_eq!(
        summary(HEADING, &outcome(), WITHOUT_COLOUR),
        [
            HEADING,
            "",
            "                       direct to the backend    through ultra-perf      factor",
            "  requests                               521                12,040",
            "  requests/s                            52.1                 1,204         23x",
            "  p50                                 310 ms               0.42 ms        738x",
            "  p95                                 512 ms                9.5 ms         54x",
            "  p99                                 1.24 s                140 ms        8.9x",
            "  hit ratio                            0.0 %                94.3 %",
            "  backend calls/1000                   1,000                   104        9.6x",
            "  errors                                   0                     3",
            "",
            "Saved:     10,790 backend calls of 12,040 (89.6 %); 90 reads were stale while renewed.",
            "Freshness: 628 writes, and no product page older than one of them.",
            "",
            "In front of your own backend (here one that listens on port 8000):",
            "    ultra-perf serve --to http://127.0.0.1:8000",
        ]
    );
}

#[test]
fn the_summary_of_bad_news_says_it() {
    let mut bad = outcome();
    bad.through.as_mut().unwrap().measured.counts.violations = 2;
    bad.through.as_mut().unwrap().measured.counts.leaks = 1;
    bad.first_error = Some("connect:\x1b[2J refused".to_owned());
    bad.ended_early = true;
    let lines = summary(HEADING, &bad, WITHOUT_COLOUR);
    for expected in [
        "Freshness: 2 product pages were OLDER than a write before them (628 writes).",
        "Private:   1 private pages came out of the cache.",
        "Errors:    the first was: connect: [2J refused",
        "Ended early; the numbers are those up to then.",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
    }
}

#[test]
fn the_summary_of_one_phase_has_no_factors() {
    let alone = Outcome { direct: direct(), ..Outcome::default() };
    let lines = summary(HEADING, &alone, WITHOUT_COLOUR);
    assert_eq!(lines[2], "                       direct to the backend");
    assert_eq!(lines[4], "  requests/s                            52.1");
    assert!(!lines.iter().any(|line| line.starts_with("Saved")));
}

#[test]
fn every_line_fits_a_terminal_of_80_columns() {
    let mut lines = table(HEADING, Some(&direct()), Some(&through()), progress(), WITHOUT_COLOUR);
    lines.extend(
        summary(HEADING, &outcome(), WITHOUT_COLOUR)
            .into_iter()
            .filter(|line| !line.starts_with("Saved")),
    );
    for line in lines {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
}

#[test]
fn colour_adds_escape_codes_and_no_other_change() {
    let coloured = summary(HEADING, &outcome(), Style { colour: true });
    let plain = summary(HEADING, &outcome(), WITHOUT_COLOUR);
    assert_ne!(coloured, plain);
    for (coloured, plain) in coloured.iter().zip(&plain) {
        let stripped =
            [BOLD, GREEN, PLAIN].iter().fold(coloured.clone(), |line, code| line.replace(code, ""));
        assert_eq!(&stripped, plain);
    }
    assert!(coloured[4].ends_with(&format!("{GREEN}23x{PLAIN}")));
}

#[test]
fn a_second_in_a_pipe_is_one_line() {
    assert_eq!(
        plain_line(THROUGH, progress(), &through()),
        "through ultra-perf, 6 s: requests/s 1,204, p50 0.42 ms, p95 9.5 ms, p99 140 ms, \
         hit ratio 94.3 %, backend calls/s 125, errors 3"
    );
}

#[test]
fn a_terminal_gets_its_cursor_back_and_a_pipe_no_control_character() {
    let written = |mode| {
        let mut out = Vec::new();
        {
            let mut screen = Screen::new(&mut out, mode);
            screen.draw(&["one".to_owned(), "two".to_owned()]).unwrap();
            screen.draw(&["three".to_owned()]).unwrap();
            screen.print(&["done".to_owned()]).unwrap();
        }
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        written(Mode::Live { colour: false }),
        format!("{PREPARE}one\ntwo\n\r\x1b[2A\x1b[Jthree\n\r\x1b[1A\x1b[Jdone\n{RESTORE}")
    );
    assert_eq!(written(Mode::Lines), "done\n");
}

#[test]
fn the_mode_follows_the_output_and_the_environment() {
    let live = |colour| Mode::Live { colour };
    for (is_terminal, term, no_color, expected) in [
        (true, Some("xterm"), None, live(true)),
        (true, None, None, live(true)),
        (true, Some("xterm"), Some("1"), live(false)),
        (true, Some("xterm"), Some(""), live(true)),
        (true, Some("dumb"), None, Mode::Lines),
        (false, Some("xterm"), None, Mode::Lines),
    ] {
        assert_eq!(Mode::choose(is_terminal, term, no_color), expected);
    }
}

#[test]
fn numbers_are_short_and_change_their_unit_without_a_gap() {
    for (value, expected) in [
        (0, "0"),
        (999, "999"),
        (1_000, "1,000"),
        (12_345, "12,345"),
        (1_234_567, "1,234,567"),
        (u64::MAX, "18,446,744,073,709,551,615"),
    ] {
        assert_eq!(count(value), expected);
    }
    for (value, expected) in
        [(0.0, "0.0"), (52.14, "52.1"), (99.9, "99.9"), (99.96, "100"), (1_204.4, "1,204")]
    {
        assert_eq!(number(value), expected);
    }
    for (seconds, expected) in [
        (0.000_004, "0.00 ms"),
        (0.000_42, "0.42 ms"),
        (0.000_999_6, "1.0 ms"),
        (0.009_94, "9.9 ms"),
        (0.009_96, "10 ms"),
        (0.310, "310 ms"),
        (0.999_6, "1.00 s"),
        (12.345, "12.35 s"),
    ] {
        assert_eq!(latency(seconds), expected, "{seconds}");
    }
}
