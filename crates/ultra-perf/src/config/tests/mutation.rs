//! A file in which every key is named, broken in ten thousand ways: each is a configuration or a report.

use std::fmt::Write as _;

use fastrand::Rng;

use super::{
    super::{setting::Raw, tree},
    *,
};

/// A file that names every key with its default, and tables of every other kind.
fn whole_file() -> String {
    let config = loader().load().expect("the defaults");
    let mut text = String::new();
    let mut section = "";
    for row in config.explain().settings() {
        // The tables of the backends are its other form.
        if row.key == tree::BACKENDS {
            continue;
        }
        let key = tree::find(&row.key).expect("a key that is explained");
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if of != section {
            section = of;
            let _ = writeln!(text, "\n[{section}]");
        }
        let _ = writeln!(text, "{name} = {}", (key.json)(&Raw::Text(row.value.clone())));
    }
    text + "\n[caches.users]\nttl = \"10m\"\nprefetch = true\n\n[[backend]]\nurl = \"http://a:1/x\"\n\
            weight = 2\n\n[[backend]]\nurl = \"http://b\"\nzone = \"east\"\n"
}

const VALUES: [&str; 34] = [
    "0",
    "-1",
    "1",
    "99999999999999999999999999999999999999999999",
    "-9223372036854775808",
    "18446744073709551616",
    "0x7fffffffffffffff",
    "1e999",
    "-0.0",
    "nan",
    "inf",
    "1_000_000.5",
    "true",
    "\"true\"",
    "\"\"",
    "\"none\"",
    "\"99999999999999999999d\"",
    "\"18446744073709551615\"",
    "\"99999999999999999999.999999999TiB\"",
    "\"1h1h\"",
    "\"1000000%\"",
    "\"127.0.0.1:99999\"",
    "\"[::]:8600\"",
    "\"\u{202e}\u{1f9ca}\u{0}\"",
    "\"é\u{301}\u{fffd}∞६\"",
    "'http://[::1'",
    "\"redis://:\u{e9}@h/?a=b#c\"",
    "\"http://a,weight=4294967296,max=0,zone=,priority=x\"",
    "[]",
    "[[[\"a\"]], {b = [{c = 1}]}]",
    "{ ttl = \"1h\" }",
    "1979-05-27T07:32:00Z",
    "\"\"\"\nmany\nlines\"\"\"",
    "\"1=env:X,2=hex:00,-3=file:/\"",
];

const HEADERS: [&str; 12] = [
    "[cache]",
    "[[cache]]",
    "[cache.memory.capacity]",
    "[caches]",
    "[caches.users]",
    "[caches.'*']",
    "[caches.\"\u{1f9ca}\"]",
    "[caches.users.ttl]",
    "[[caches.users]]",
    "[backend]",
    "[[backend]]",
    "[\"\"]",
];

/// Breaks `lines` in one way.
fn mutate(lines: &mut Vec<Vec<u8>>, rng: &mut Rng) {
    let at = rng.usize(..lines.len());
    match rng.u8(..10) {
        0 => {
            let line = &mut lines[at];
            for _ in 0..rng.usize(1..8) {
                let byte = rng.usize(..=line.len());
                match rng.u8(..3) {
                    0 => line.insert(byte, rng.u8(..)),
                    1 if byte < line.len() => drop(line.remove(byte)),
                    _ if byte < line.len() => line[byte] = rng.u8(..),
                    _ => {}
                }
            }
        }
        1 => {
            let other = rng.usize(..lines.len());
            lines.swap(at, other);
        }
        2..=4 => {
            let line = &mut lines[at];
            if let Some(end) = line.iter().position(|byte| *byte == b'=') {
                line.truncate(end + 1);
                line.extend_from_slice(VALUES[rng.usize(..VALUES.len())].as_bytes());
            }
        }
        5 => {
            let line = &mut lines[at];
            let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
            if end > 0 {
                line[rng.usize(..end)] = rng.alphanumeric() as u8;
            }
        }
        6 => {
            let copy = lines[at].clone();
            lines.insert(rng.usize(..=lines.len()), copy);
        }
        7 => drop(lines.remove(at)),
        8 => {
            let header = HEADERS[rng.usize(..HEADERS.len())].as_bytes().to_vec();
            lines.insert(at, header);
        }
        _ => {
            let depth = rng.usize(1..400);
            let line = match rng.u8(..4) {
                0 => format!("x = {}{}", "[".repeat(depth), "]".repeat(depth)),
                1 => format!("x = {}1{}", "{a = ".repeat(depth), "}".repeat(depth)),
                2 => format!("cache{} = 1", ".a".repeat(depth)),
                _ => format!("\"{}\" = 1", "\u{1f9ca}".repeat(depth * 100)),
            };
            lines.insert(at, line.into_bytes());
        }
    }
    if lines.is_empty() {
        lines.push(Vec::new());
    }
}

/// Loads the bytes, and looks at everything that comes of it; tells whether they are a configuration.
fn try_to_load(bytes: Vec<u8>, before: &Config, rng: &mut Rng) -> bool {
    let directory = std::path::Path::new("f");
    let loaded = match String::from_utf8(bytes) {
        Ok(text) => loader().toml(directory, text).load(),
        Err(error) => {
            let mut gathered = super::super::source::Gathered::default();
            gathered.toml(directory, error.as_bytes());
            assert_eq!(gathered.problems.len(), 1);
            return false;
        }
    };
    match loaded {
        Ok(config) => {
            assert!(config.explain().settings().iter().all(|row| row.valid));
            if rng.u8(..8) == 0 {
                let again = config.with(&[], "nobody").expect("nothing has changed");
                assert!(config.differences(&again).is_empty());
            }
            for difference in before.differences(&config) {
                assert_ne!(
                    config.origin(&difference.key),
                    Some(&Origin::Default),
                    "{difference:?}"
                );
            }
            true
        }
        Err(error) => {
            let report = error.to_string();
            let count = error.problems().len();
            let plural = if count == 1 { "" } else { "s" };
            assert!(
                report.starts_with(&format!("invalid configuration, {count} problem{plural}:\n"))
            );
            for line in report.lines() {
                assert!(line.len() < 1_000, "{line}");
                assert!(!line.contains(char::is_control), "{line:?}");
            }
            assert!(!error.explanation().to_string().is_empty());
            false
        }
    }
}

#[test]
fn the_whole_file_is_a_configuration_and_changes_nothing() {
    let text = whole_file();
    let config = loader().toml("f", text.as_str()).load().unwrap();
    let rows = config.explain();
    let from_file = rows.settings().iter().filter(|row| row.origin != Origin::Default).count();
    assert_eq!(from_file, rows.settings().len());
    let differs: Vec<_> = loader().load().unwrap().differences(&config);
    let keys: Vec<_> = differs.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["server.to", "caches.users.ttl", "caches.users.prefetch"]);
}

#[test]
fn ten_thousand_mutated_files_are_configurations_or_reports() {
    let whole = whole_file();
    let lines: Vec<Vec<u8>> = whole.lines().map(|line| line.as_bytes().to_vec()).collect();
    let before = loader().load().unwrap();
    let mut rng = Rng::with_seed(0x0bad_f11e);
    let mut good = 0;
    for _ in 0..10_000 {
        let mut lines = lines.clone();
        // Most of them short, so that most problems are not hidden behind a syntax error.
        if rng.u8(..4) > 0 {
            let from = rng.usize(..lines.len());
            lines.drain(..from);
            lines.truncate(rng.usize(1..30));
        }
        for _ in 0..rng.usize(1..4) {
            mutate(&mut lines, &mut rng);
        }
        good += usize::from(try_to_load(lines.join(&b'\n'), &before, &mut rng));
    }
    assert!((500..9_500).contains(&good), "{good} of 10,000 load; the rest must say why not");
}
