//! `ultra-perf cache` as a user runs it: the real binary over files and directories of each kind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn simulate(trace: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ultra-perf"))
        .args(["cache", "simulate"])
        .arg(trace)
        .args(args)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn written(folder: &tempfile::TempDir, name: &str, contents: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(contents.as_bytes()).unwrap();
    path
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn check_error(output: &Output, code: i32, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(expected), "{expected:?} is not in {text}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// 40 pages in a loop of four rounds, each request a line of an access log.
fn access_log() -> String {
    let line = |at: usize| {
        let (page, bytes) = (at % 40, 1_000 + at % 40);
        format!("10.0.0.1 - - [1/Jan/2026:00:00:00 +0000] \"GET /{page} HTTP/1.1\" 200 {bytes}\n")
    };
    (0..160).map(line).collect()
}

#[test]
fn a_list_of_keys_becomes_a_table_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let keys: String = (0..400).map(|at| format!("user:{}\n", at % 50)).collect();
    let trace = written(&folder, "keys.txt", &keys);
    let text = stdout(&simulate(&trace, &["--sizes", "10%,10000"]));
    assert!(text.starts_with("keys.txt: 400 requests of 50 keys, read as lines\n"), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let row = |label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap();
        line.split_whitespace().rev().map(str::to_owned).collect::<Vec<_>>()
    };
    // Fifty of four hundred are first requests; of a loop of fifty the optimum keeps five.
    assert_eq!(row("10,000 entries")[0], "87.50");
    assert_eq!(row("10,000 entries")[1], "87.50*");
    assert_eq!(row("10% = 5 entries")[0], "8.75");
    let advice = text.lines().last().unwrap();
    assert!(advice.starts_with("adaptive at 10,000 entries answers 87.5 %"), "{advice}");
    assert!(advice.ends_with("no size can answer more than 87.5 %"), "{advice}");
}

#[test]
fn an_access_log_is_simulated_in_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(&folder, "access.log", &access_log());
    let args = ["--sizes", "50%,64MiB", "--policies", "lru,textbook-*,belady", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&simulate(&trace, &args))).unwrap();
    assert_eq!(json["trace"]["format"], "access-log");
    assert_eq!(json["trace"]["bytes"], (1_000..1_040).sum::<i32>());
    assert_eq!(json["policies"].as_array().unwrap().len(), 8);
    assert_eq!(json["sizes"][1]["bytes"], 64 << 20);
    for result in json["sizes"][1]["results"].as_array().unwrap() {
        let expected = if result["policy"] == "belady" { None } else { Some(0.75) };
        assert_eq!(result["hit_ratio"].as_f64(), expected, "{result}");
        assert_eq!(result["byte_hit_ratio"].as_f64(), expected, "{result}");
    }
    assert_eq!(json["recommended"], "lru");
}

#[test]
fn a_policy_named_twice_is_one_column_and_a_size_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(&folder, "keys.txt", "a\nb\na\n");
    let args = ["--sizes", "2,2,100%", "--policies", "arc,arc,a*", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&simulate(&trace, &args))).unwrap();
    assert_eq!(json["policies"], serde_json::json!(["arc", "adaptive"]));
    assert_eq!(json["sizes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_limit_reads_the_beginning_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(&folder, "keys.txt", "a\nb\na\nc\n");
    let text = stdout(&simulate(&trace, &["--limit", "3"]));
    assert!(text.starts_with("keys.txt: 3 requests of 2 keys"), "{text}");
    assert!(text.contains("The limit was reached"), "{text}");
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(&folder, "keys.txt", "a\nb\na\n");
    for (args, expected) in [
        (["--policies", "lruu"], "expected lru, lfu, arc, s3-fifo, adaptive, clock-pro"),
        (["--sizes", "many"], "must be a share such as 5%, a number of entries"),
        (["--format", "xml"], "expected words32, words64, blocks"),
        (["--limit", "0"], "0 is not in 1.."),
        (["--sizes", "64MiB"], "keys.txt does not tell how many bytes its keys have"),
    ] {
        check_error(&simulate(&trace, &args), 2, expected);
    }
}

#[test]
fn a_trace_that_cannot_be_read_exits_with_1_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(&folder, "sizes.csv", "a,1\nb,one\n");
    check_error(
        &simulate(&trace, &[]),
        1,
        "sizes.csv, line 2: seen \"b,one\", expected `key,size`",
    );
    let absent = folder.path().join("absent");
    let output = simulate(&absent, &[]);
    check_error(&output, 1, "error: cannot open ");
    assert!(String::from_utf8_lossy(&output.stderr).contains("\n  because: "), "{output:?}");
}

/// Runs `ultra-perf cache verify` or `compact`.
fn offline(command: &str, directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ultra-perf"))
        .args(["cache", command])
        .arg(directory)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A closed disk tier of one segment: 40 entries, each written twice.
fn disk_tier(directory: &Path) {
    use ultra_perf::cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};
    let log = SegmentLog::open(SegmentLogOptions::new(directory, 8 << 20)).unwrap();
    for i in 0..80_u32 {
        log.put(&(i % 40).to_le_bytes(), &[i as u8; 1_000], 0).unwrap();
    }
}

#[test]
fn a_sound_disk_tier_is_verified_and_a_damaged_one_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cache");
    disk_tier(&directory);
    let text = stdout(&offline("verify", &directory, &[]));
    let sound = text.lines().last().unwrap();
    assert!(sound.starts_with("sound: 40 entries of 41600B in 1 segments"), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&offline("verify", &directory, &["--json"]))).unwrap();
    assert_eq!(json["verdict"], "sound");
    assert_eq!(json["segments"][0]["records"], 80);
    assert_eq!(json["segments"][0]["live_records"], 40);

    let segment = directory.join("segment-0000000000000000.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[3 * 1_040 + 100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let output = offline("verify", &directory, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("byte 3120: key or value differ from their checksum"), "{text}");
    let json = offline("verify", &directory, &["--json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["segments"][0]["broken"][0]["offset"], 3_120);
}

#[test]
fn compacting_gives_the_space_of_the_dead_back() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("cache");
    disk_tier(&directory);
    let text = stdout(&offline("compact", &directory, &[]));
    assert!(text.starts_with("kept 40 entries, dropped 0 expired and 0 broken ones\n"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&offline("compact", &directory, &["--json"]))).unwrap();
    assert_eq!((&json["entries"], &json["bytes_after"]), (&40.into(), &45_056.into()));
    assert!(stdout(&offline("verify", &directory, &[])).contains("sound: 40 entries"));
}

#[test]
fn what_is_no_disk_tier_or_in_use_exits_with_1_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["verify", "compact"] {
        check_error(&offline(command, folder.path(), &[]), 1, "is not empty and not a cache");
        let absent = folder.path().join("absent");
        check_error(&offline(command, &absent, &[]), 1, "not a cache directory");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let directory = folder.path().join("cache");
    let options = ultra_perf::cache_tiered::disk::SegmentLogOptions::new(&directory, 8 << 20);
    let _open = ultra_perf::cache_tiered::disk::SegmentLog::open(options).unwrap();
    check_error(&offline("verify", &directory, &[]), 1, "is in use by another cache");
    check_error(&offline("compact", &directory, &[]), 1, "is in use by another cache");
}
