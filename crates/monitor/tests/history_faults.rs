//! The history when things fail: stores that are full, gone or damaged, and clocks and processes that stop.

mod history;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use history::{Disk, Process, START_MS, Sample, tier};
use monitor::history::{Change, HistoryStore, QueryProblem, Reason, TierOptions};
use monitor::history::{ExportFormat, Query};
use monitor::{Aggregate, History, HistoryOptions, Kind, Selector, Source, Window};

fn options() -> HistoryOptions {
    let tiers = vec![tier(1), tier(60), tier(3_600)];
    HistoryOptions { tiers, retry: Duration::from_secs(30), ..HistoryOptions::default() }
}

/// Ticks of one second from `from` to before `until`, counted from the start; the gauge says which it is.
fn run(history: &History, process: &Process, from: i64, until: i64) {
    for n in from..until {
        let samples = [("g", Sample::Gauge(n as f64)), ("c_total", Sample::Counter(n as f64))];
        process.tick(history, START_MS + n * 1_000, &samples).expect("a second has passed");
        // Seconds pass in no time here, but the writer needs some.
        if n % 30 == 0 {
            let _ = history.flush();
        }
    }
    assert_eq!(history.flush().is_err(), history.degraded().is_some());
}

fn window(from: i64, until: i64) -> Window {
    Window { from_ms: START_MS + from * 1_000 - 1, to_ms: START_MS + (until - 1) * 1_000 }
}

/// All seconds from `from` to before `until` are there, by the second and by the minute.
#[track_caller]
fn assert_whole(history: &History, from: i64, until: i64) {
    let gauge = history.matching(&Selector::name("g"));
    assert_eq!(gauge.len(), 1);
    let points = history.range(&[gauge[0].id], window(from, until), 1_000, Aggregate::Last);
    let missing: Vec<i64> = (from..until)
        .zip(&points)
        .filter(|(n, point)| **point != Some(*n as f64))
        .map(|(n, _)| n)
        .collect();
    assert_eq!(points.len() as i64, until - from);
    assert!(missing.is_empty(), "missing or wrong: {missing:?}");
}

#[test]
fn a_full_store_is_left_for_memory_and_taken_up_again() {
    let disk = Disk::new();
    let directory = tempfile::tempdir().expect("a directory");
    let options = HistoryOptions { path: Some(directory.path().join("log")), ..options() };
    let (history, process) = (disk.open(options.clone()), Process::new());
    run(&history, &process, 0, 700);
    assert_eq!(history.degraded(), None);
    disk.full.store(true, SeqCst);
    run(&history, &process, 700, 1_900);
    assert!(matches!(history.degraded(), Some(Reason::Full(_))), "{:?}", history.degraded());
    assert_whole(&history, 0, 1_900);
    disk.full.store(false, SeqCst);
    run(&history, &process, 1_900, 2_000);
    assert_eq!(history.degraded(), None);
    assert_whole(&history, 0, 2_000);
    assert_eq!(history.stats().blocks_lost, 0);
    // What was in memory only is in the store and in the log now.
    drop(history);
    let history = disk.open(options);
    assert_whole(&history, 0, 2_000);
}

#[test]
fn a_store_that_cannot_be_opened_at_first_gets_everything_later() {
    let disk = Disk::new();
    let directory = tempfile::tempdir().expect("a directory");
    let options = HistoryOptions { path: Some(directory.path().join("log")), ..options() };
    let history = disk.open(options.clone());
    run(&history, &Process::new(), 0, 1_000);
    drop(history);
    disk.closed.store(true, SeqCst);
    // Another process, whose first series has another number.
    let (history, process) = (disk.open(options.clone()), Process::new());
    assert!(matches!(history.degraded(), Some(Reason::CannotOpen(_))));
    let first = [("a", Sample::Gauge(1.0))];
    process.tick(&history, START_MS + 1_000_000, &first).expect("a second has passed");
    run(&history, &process, 1_001, 1_900);
    assert_whole(&history, 1_001, 1_900);
    let generation = history.generation();
    disk.closed.store(false, SeqCst);
    run(&history, &process, 1_900, 2_000);
    assert_eq!(history.degraded(), None);
    assert_ne!(history.generation(), generation);
    assert_whole(&history, 0, 1_000);
    assert_whole(&history, 1_001, 2_000);
    drop(history);
    let history = disk.open(options);
    assert_whole(&history, 0, 1_000);
    assert_whole(&history, 1_001, 2_000);
    assert_eq!(history.matching(&Selector::name("a")).len(), 1);
}

#[test]
fn a_history_in_memory_keeps_what_fits() {
    let options = HistoryOptions { memory_limit_bytes: 16 << 10, ..options() };
    let (history, process) = (History::open(options).expect("sound"), Process::new());
    for block in 0..40 {
        run(&history, &process, block * 600, (block + 1) * 600);
    }
    assert_eq!(history.degraded(), None);
    let stats = history.stats();
    assert_eq!(stats.blocks_lost, 0);
    assert!(stats.memory_bytes < 400_000, "{stats:?}");
    assert_whole(&history, 22_000, 24_000);
    let (mut rows, gauge) = (Vec::new(), Selector::name("g"));
    let there = history.export(&gauge, window(0, 24_000), None, ExportFormat::Csv, &mut rows);
    let there = there.expect("it is in memory");
    assert!((2_400..20_000).contains(&there), "{there} seconds are there");
}

#[test]
fn a_chunk_that_is_damaged_is_a_gap_and_is_counted() {
    let disk = Disk::new();
    let history = disk.open(options());
    run(&history, &Process::new(), 1, 2_401);
    drop(history);
    let mut chunks = Vec::new();
    disk.scan(&[3], &[4], &mut |key, value| {
        chunks.push((key.to_vec(), value.to_vec()));
        true
    })
    .expect("it is in memory");
    let (key, mut value) = chunks.swap_remove(1);
    let middle = value.len() / 2;
    value[middle] ^= 1;
    disk.write(&[Change::Put(key, value)]).expect("there is space");
    let history = disk.open(options());
    for name in ["g", "c_total"] {
        let id = history.matching(&Selector::name(name))[0].id;
        let points = history.range(&[id], window(1, 2_401), 1_000, Aggregate::Last);
        let there = points.iter().flatten().count();
        assert!(there == 2_400 || there == 1_800, "{there} of {name} are there");
    }
    assert_eq!(history.stats().chunks_damaged, 1);
}

#[test]
fn a_store_of_a_later_format_is_not_touched() {
    let disk = Disk::new();
    disk.write(&[Change::Put(vec![0], vec![99; 20])]).expect("there is space");
    let (history, process) = (disk.open(options()), Process::new());
    assert!(matches!(history.degraded(), Some(Reason::CannotOpen(_))));
    run(&history, &process, 0, 700);
    drop(history);
    let mut entries = 0;
    disk.scan(&[0], &[255], &mut |_, value| {
        assert_eq!(value, [99; 20]);
        entries += 1;
        true
    })
    .expect("it is in memory");
    assert_eq!(entries, 1);
}

/// Seconds from the first that is there, of 6,000; tiers of a second and of a minute.
fn kept(one: TierOptions, other: TierOptions) -> (i64, i64) {
    let disk = Disk::new();
    let options = HistoryOptions { tiers: vec![one, other], ..HistoryOptions::default() };
    let (history, process) = (disk.open(options), Process::new());
    for block in 0..10 {
        run(&history, &process, block * 600, (block + 1) * 600);
    }
    run(&history, &process, 6_000, 6_002);
    let gauge = Selector::name("g");
    let first = |step_ms| {
        let mut rows = Vec::new();
        let format = ExportFormat::JsonLines;
        history.export(&gauge, window(0, 7_000), Some(step_ms), format, &mut rows).expect("memory");
        let rows = String::from_utf8(rows).expect("text");
        let line = rows.lines().next().expect("a row").to_owned();
        let digits = line.trim_start_matches("{\"at_ms\":");
        let at_ms = digits.split(',').next().expect("a number").parse::<i64>().expect("a number");
        (at_ms - START_MS) / 1_000
    };
    (first(1_000), first(60_000))
}

#[test]
fn tiers_keep_as_long_and_as_much_as_they_say() {
    let of = |step, keep, limit_bytes| TierOptions {
        step: Duration::from_secs(step),
        keep: Duration::from_secs(keep),
        limit_bytes,
    };
    assert_eq!(kept(of(1, 1_800, 1 << 20), of(60, 1 << 20, 1 << 20)), (4_201, 0));
    assert_eq!(kept(of(1, 1 << 20, 1 << 20), of(60, 1 << 20, 1 << 20)), (0, 0));
    // A block of the two series takes some hundred bytes.
    let (first, _) = kept(of(1, 1 << 20, 1_000), of(60, 1 << 20, 1 << 20));
    assert!((2_401..=5_401).contains(&first), "{first}");
}

#[test]
fn a_series_that_ended_is_listed_until_nothing_of_it_is_kept() {
    let disk = Disk::new();
    let keep = Duration::from_secs(3_600);
    let options = HistoryOptions {
        tiers: vec![TierOptions { keep, ..tier(1) }],
        // Two are the registry's own.
        series: 5,
        ..HistoryOptions::default()
    };
    let (history, process) = (disk.open(options.clone()), Process::new());
    let old = [("old", Sample::Gauge(1.0))];
    process.tick(&history, START_MS, &old).expect("the first");
    let generation = history.generation();
    run(&history, &process, 1, 1_900);
    let found = history.series(&Selector::name("old"));
    assert_eq!((found[0].first_ms, found[0].last_ms, found[0].ended), (START_MS, START_MS, true));
    assert_eq!(found[0].kind, Kind::Gauge);
    assert_ne!(history.generation(), generation);
    assert!(!history.series(&Selector::name("g"))[0].ended);
    // It survives a restart, and so do the numbers of the series.
    drop(history);
    let (history, process) = (disk.open(options), Process::new());
    let found = history.series(&Selector::name("old"));
    assert_eq!((found[0].first_ms, found[0].last_ms, found[0].ended), (START_MS, START_MS, true));
    run(&history, &process, 1_900, 6_000);
    assert!(history.series(&Selector::name("old")).is_empty());
    assert_eq!(history.names().len(), 4);
    // Its place is free again.
    let new = [("new", Sample::Gauge(1.0))];
    process.tick(&history, START_MS + 6_000_000, &new).expect("a second has passed");
    assert_eq!(history.series(&Selector::name("new")).len(), 1);
}

#[test]
fn counters_that_begin_anew_with_the_process_grow_on() {
    let disk = Disk::new();
    let mut total = 0.0;
    for process_number in 0..3 {
        let (history, process) = (disk.open(options()), Process::new());
        for n in 0..500 {
            let at_ms = START_MS + (process_number * 500 + n) * 1_000;
            let counter = [("c_total", Sample::Counter(n as f64 + 1.0))];
            process.tick(&history, at_ms, &counter).expect("a second has passed");
        }
        total += 500.0;
        let counter = history.matching(&Selector::name("c_total"))[0].id;
        let everything = window(0, 1_500);
        let grown = history.aggregate(&[counter], everything, Aggregate::Delta).expect("it grew");
        // The very first sample has nothing before it.
        assert_eq!(grown.value, total - 1.0);
    }
    let history = disk.open(options());
    let counter = history.matching(&Selector::name("c_total"))[0].id;
    for step_ms in [1_000, 60_000, 3_600_000] {
        let hours = Window { from_ms: START_MS - 3_600_000, to_ms: START_MS + 3_600_000 };
        let grown = history.range(&[counter], hours, step_ms, Aggregate::Delta);
        assert_eq!(grown.iter().flatten().sum::<f64>(), total - 1.0, "by {step_ms} ms");
    }
}

#[test]
fn a_question_that_makes_no_sense_is_told_everything_that_is_wrong() {
    let limits = HistoryOptions { query_series: 1, query_points: 100, ..options() };
    let (history, process) = (History::open(limits).expect("sound"), Process::new());
    let samples = [("m/a", Sample::Gauge(1.0)), ("m/b", Sample::Gauge(3.0))];
    process.tick(&history, START_MS, &samples).expect("the first");
    let query = Query {
        selector: Selector::name("m"),
        from_ms: START_MS - 101,
        to_ms: START_MS,
        step_ms: Some(1),
        aggregate: Aggregate::Quantile(2.0),
        by: None,
    };
    let problems = history.query(&query).expect_err("three problems").problems;
    let expected = [
        QueryProblem::Points { points: 101, most: 100 },
        QueryProblem::Quantile { quantile: 2.0 },
        QueryProblem::Series { series: 2, most: 1 },
    ];
    assert_eq!(problems, expected);
    let backwards = Query { to_ms: START_MS - 500, step_ms: Some(0), ..query.clone() };
    let message = history.query(&backwards).expect_err("more problems").to_string();
    assert!(
        message.contains("must end after it begins; step = 0 ms: must be at least 1"),
        "{message}"
    );
    let one = Query {
        selector: Selector::parse(r#"m{of="b"}"#).expect("a selector"),
        aggregate: Aggregate::Max,
        step_ms: None,
        ..query
    };
    let result = history.query(&one).expect("it is sound");
    assert_eq!((result.step_ms, result.series.len()), (1_000, 1));
    assert_eq!(result.series[0].points, [Some(3.0)]);
    assert_eq!(result.first_ms, START_MS);
}

#[test]
fn a_query_groups_by_labels() {
    let (history, process) = (History::open(options()).expect("sound"), Process::new());
    for n in 0..4_i64 {
        let samples = [("m/a", Sample::Gauge(n as f64)), ("m/b", Sample::Gauge(10.0 * n as f64))];
        process.tick(&history, START_MS + n * 1_000, &samples).expect("a second has passed");
    }
    let query = |by: Option<&[&str]>| Query {
        selector: Selector::name("m"),
        from_ms: START_MS - 1_000,
        to_ms: START_MS + 3_000,
        step_ms: Some(2_000),
        aggregate: Aggregate::Avg,
        by: by.map(|by| by.iter().map(|label| (*label).into()).collect()),
    };
    let lines = |by| {
        let result = history.query(&query(by)).expect("it is sound");
        let line = |line: &monitor::history::QuerySeries| {
            (line.labels.to_string(), line.points.iter().map(|p| p.unwrap_or(-1.0)).collect())
        };
        result.series.iter().map(line).collect::<Vec<(String, Vec<f64>)>>()
    };
    let a = (r#"{of="a"}"#.to_owned(), vec![0.5, 2.5]);
    let b = (r#"{of="b"}"#.to_owned(), vec![5.0, 25.0]);
    assert_eq!(lines(None), [a.clone(), b.clone()]);
    assert_eq!(lines(Some(&["of"])), [a, b]);
    assert_eq!(lines(Some(&[])), [(String::new(), vec![2.75, 13.75])]);
}

#[test]
fn an_export_has_every_row_once() {
    let disk = Disk::new();
    let (history, process) = (disk.open(options()), Process::new());
    run(&history, &process, 1, 1_501);
    let samples = [(
        "h_seconds",
        Sample::Histogram({
            let mut all = monitor::Distribution::empty(1e-9);
            all.record(0.25);
            all
        }),
    )];
    process.tick(&history, START_MS + 1_501_000, &samples).expect("a second has passed");
    let export = |name: &str, from, until, step_ms, format| {
        let mut out = Vec::new();
        let window = window(from, until);
        let rows = history.export(&Selector::name(name), window, step_ms, format, &mut out);
        (rows.expect("it is in memory"), String::from_utf8(out).expect("text"))
    };
    let (rows, csv) = export("g", 1, 1_501, None, ExportFormat::Csv);
    assert_eq!((rows, csv.lines().count()), (1_500, 1_501));
    let line = format!("{},g,\"\",gauge,700,,,,,,,,", START_MS + 700_000);
    assert_eq!(csv.lines().filter(|other| **other == line).count(), 1);
    let (rows, _) = export("g", 100, 200, None, ExportFormat::Csv);
    assert_eq!(rows, 100);
    let (rows, json) = export("c_total", 1, 1_502, Some(60_000), ExportFormat::JsonLines);
    assert_eq!(rows, 25, "it has no sample in the last minute");
    let last = json.lines().nth(24).expect("it is there");
    let end = START_MS + 1_500_000;
    let start = format!(r#"{{"at_ms":{end},"name":"c_total","labels":{{}},"kind":"counter","#);
    assert!(last.starts_with(&start), "{last}");
    assert!(last.contains(r#""value":1500.0"#) && last.contains(r#""increase":60.0"#), "{last}");
    let (rows, csv) = export("h_seconds", 1, 1_502, None, ExportFormat::Csv);
    assert_eq!(rows, 1);
    assert!(csv.lines().nth(1).expect("a row").contains("histogram,,,,0.2499"), "{csv}");
    let mut out = Vec::new();
    let backwards = Window { from_ms: 5, to_ms: 5 };
    let refused =
        history.export(&Selector::name("g"), backwards, None, ExportFormat::Csv, &mut out);
    assert_eq!(refused.expect_err("no time").kind(), std::io::ErrorKind::InvalidInput);
}
