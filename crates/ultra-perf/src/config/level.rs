//! The levels: which values each chooses for the keys that no source names, and why.
//!
//! A level is a value and not a feature, so two crates of one program cannot disagree on it. Its
//! column of the table stands between a key's own default and the first source: whatever a file,
//! the environment or code sets wins. The column of `advanced` is that of the keys' own defaults.

use std::fmt::Write as _;

use super::setting::OptimizationLevel;

/// What the levels choose for one key.
struct Row {
    key: &'static str,
    /// The values from `basic` to `extreme`, as a source would spell them; `KEPT` is the key's own.
    values: [&'static str; 4],
    reason: &'static str,
}

/// Stands for the key's own default, where that depends on the machine or the build.
const KEPT: &str = "";

const ROWS: [Row; 24] = [
    Row {
        key: "cache.policy",
        values: ["s3-fifo", "s3-fifo", "adaptive", "adaptive"],
        reason: "On 58 sizes of traces, S3-FIFO is 2.3 points of hit ratio behind the best policy \
                 of each, and `adaptive` 0.1 points (see [hit ratios](hit-ratio.md)), because it \
                 runs the others on a sample. The sample costs memory and time, which pays where \
                 the cache carries load.",
    },
    Row {
        key: "cache.memory.default_entries",
        values: ["10000", "100000", "100000", "100000"],
        reason: "Most entries of a cache of which nobody says what its values weigh. With values of \
                 1 KiB, 10,000 are 10 MiB, which no process notices, and 100,000 are 100 MiB, which \
                 the guard over memory watches from `advanced` on.",
    },
    Row {
        key: "cache.memory.miss_ratio_curve",
        values: ["false", "false", "true", "true"],
        reason: "Says what other capacities would hit, which the advice about sizes needs. It \
                 samples keys, so it costs some memory and a hash for each look-up.",
    },
    Row {
        key: "cache.disk.enabled",
        values: ["false", KEPT, KEPT, KEPT],
        reason: "`basic` writes nothing to disk. From `advanced` on, a restart begins with what was \
                 cached, and what memory evicts is a read of microseconds away.",
    },
    Row {
        key: "monitor.history.enabled",
        values: ["false", KEPT, KEPT, KEPT],
        reason: "`basic` keeps some hours in memory: opening the store takes a tenth of a second and \
                 some mebibytes, which a small program that starts often would notice. From \
                 `advanced` on, history and alerts outlive the process.",
    },
    Row {
        key: "cache.compression",
        values: ["false", "true", "true", "true"],
        reason: "Only values below memory are compressed, so `basic`, which has no such tier of its \
                 own, spends no time on it.",
    },
    Row {
        key: "cache.compression_method",
        values: ["zstd", "zstd", "zstd", "zstd-dictionary"],
        reason: "A dictionary compresses small values that alone would not pay, but is trained in \
                 the background again and again, and kept with the disk tier.",
    },
    Row {
        key: "cache.ttl_jitter",
        values: ["0", "0", "10", "10"],
        reason: "What was loaded together after a start expires spread over a tenth of its time to \
                 live, and not in one second. Up to `advanced` a time to live is exactly what the \
                 program says.",
    },
    Row {
        key: "cache.stale_while_revalidate",
        values: ["none", "none", "30s", "30s"],
        reason: "Nobody waits for a reload of what is asked for often: for half a minute past its \
                 time to live the value before is served, by caches with a loader ([how](\
                 ultra-perf.md#a-cache-with-a-loader)). Up to `advanced` nothing stale is served \
                 unless asked for.",
    },
    Row {
        key: "cache.stale_if_error",
        values: ["none", "none", "5m", "5m"],
        reason: "Five minutes are a restart of a database or the rollback of a bad release; until \
                 then a loader that fails is not noticed for what was cached.",
    },
    Row {
        key: "cache.early_refresh",
        values: ["0", "0", "1", "1"],
        reason: "1 is the value at which, by its paper, the fewest loads come too early or at the \
                 same time: of many machines, one refreshes. For caches with a loader.",
    },
    Row {
        key: "cache.prefetch",
        values: ["false", "false", "true", "true"],
        reason: "For caches with a loader. Where keys follow each other, what is fetched ahead is a \
                 hit if it is there before it is asked for, and a shorter wait if it is still on its \
                 way: at a web application's database 65.7 % hits become 83.1 % if values come at \
                 once, and 66.3 % with shorter waits for 19 % of the requests if they take ten \
                 requests. It costs up to 5 % more loads; in caches of a few dozen entries up to 15 % \
                 and 12 points of hits. Where it finds nothing it turns itself down (see [fetching \
                 ahead](prefetch.md)).",
    },
    Row {
        key: "response_cache.stale_while_revalidate",
        values: ["0s", "0s", "30s", "30s"],
        reason: "As `cache.stale_while_revalidate`, for responses that name no such time \
                 themselves.",
    },
    Row {
        key: "response_cache.stale_if_error",
        values: ["0s", "0s", "5m", "5m"],
        reason: "As `cache.stale_if_error`, for responses that name no such time themselves.",
    },
    Row {
        key: "balancer.policy",
        values: ["round-robin", "peak-ewma", "peak-ewma", "peak-ewma"],
        reason: "`round-robin` is what everybody can predict. `peak-ewma` avoids a backend that has \
                 become slow at its first slow answer, for 0.3 us per choice (see \
                 [balancing](loadbalancer.md)). That is no matter of load, so `advanced` has it \
                 already.",
    },
    Row {
        key: "balancer.breaker.mode",
        values: ["off", "auto", "auto", "auto"],
        reason: "`basic` sends each request where the policy says. From `advanced` on, a backend \
                 that fails gets nothing for a while, where there is another one.",
    },
    Row {
        key: "balancer.hedge",
        values: ["none", "none", "none", "0.95"],
        reason: "A second backend is asked as well when the first takes longer than 95 of 100 \
                 answers: 5 % more calls at most, within `balancer.retry_budget`, for a p99 near \
                 the p95. A GET that is not free of effects would have them twice.",
    },
    Row {
        key: "memory.enabled",
        values: ["false", KEPT, KEPT, KEPT],
        reason: "`basic` leaves the process's memory alone. From `advanced` on, caches give entries \
                 up and the allocator gives back what lies idle before the system ends the process. \
                 `advanced` has it already because its caches may hold ten times as many entries as \
                 those of `basic`.",
    },
    Row {
        key: "memory.tracking",
        values: ["false", "false", "false", "true"],
        reason: "Tells which scope allocated how much, at a few nanoseconds for each allocation; \
                 only where the program has the tracking allocator.",
    },
    Row {
        key: "scheduler.adaptive",
        values: ["false", "false", "true", "true"],
        reason: "Limits move between a quarter of the configured size and all of it, by what is \
                 measured: less runs at a time where more only waits for the same thing. Up to \
                 `advanced` a limit is the number that stands in the file.",
    },
    Row {
        key: "scheduler.cpu.nice",
        values: ["0", "0", "0", "5"],
        reason: "Threads that compute get a third of the processor time of those that serve where \
                 both want it (weights 335 and 1024 in Linux), so answers do not wait for what runs \
                 in the background. On a machine that others keep busy, they get less of it, too.",
    },
    Row {
        key: "scheduler.cpu.reserved",
        values: ["0", "0", "0", "1"],
        reason: "A thread that takes only what is `High` or `Critical` begins it within \
                 microseconds, however long the other tasks are (see [the \
                 scheduler](scheduler.md)); with one thread in all there is none to keep.",
    },
    Row {
        key: "monitor.profiling",
        values: ["false", "false", "false", "true"],
        reason: "Profiles of the processor are made on demand and cost nothing until then; they \
                 show the names of functions to everybody who reaches the admin API.",
    },
    Row {
        key: "advice.auto_apply",
        values: ["false", "false", "false", "true"],
        reason: "Advice that only changes a live key applies itself, one part at a time, and is \
                 taken back if what it promised does not come. Up to `ultra` a person decides.",
    },
];

/// The value that `level` chooses for the key `path`, where it is not the key's own default.
pub(super) fn chosen(level: OptimizationLevel, path: &str) -> Option<&'static str> {
    let row = ROWS.iter().find(|row| row.key == path)?;
    let column = |level| row.values[level as usize];
    let value = column(level);
    (value != KEPT && value != column(OptimizationLevel::Advanced)).then_some(value)
}

/// Whether the key `path` is among those that the levels choose for.
pub(super) fn chooses(path: &str) -> bool {
    ROWS.iter().any(|row| row.key == path)
}

const INTRODUCTION: &str = "\
# Levels

<!-- Made from crates/ultra-perf/src/config/level.rs; `UPDATE=1 cargo test -p ultra-perf` writes it anew. -->

A level chooses defaults, and nothing else: whatever you set yourself wins. It is a value, not a feature of
the build, so it can be changed while the program runs; what follows from it counts at once where the key is
[live](configuration.md), and otherwise after the next start.

- **`basic`**: a cache in memory, monitoring and alerts. Nothing is written to disk, nothing acts on the
  process by itself. For a first look, and for what must be easy to predict.
- **`advanced`** (the default): what pays nearly everywhere. The disk tier, the Redis tier where there is
  a URL, compression, circuit breakers, balancing by latency, a guard over memory.
- **`ultra`**: what pays under load. The policy of the cache, the limits of the scheduler and the moment of a
  refresh follow what is measured, and stale answers bridge a reload or an outage.
- **`extreme`**: what has a price, for those who look at the figures. Hedged requests, threads that are kept
  for what is urgent, allocations counted by scope, advice that applies itself and takes itself back.

```toml
level = \"ultra\"            # or ULTRA_PERF__LEVEL=ultra, or --level ultra

[cache]
stale_if_error = \"none\"    # wins over the level
```

`ultra-perf check` shows where each value came from, as in `level ultra`. Keys that are not in the table
have the default of the [configuration reference](configuration.md) at every level. One of them is
`cache.redis.coherence`: how memory follows what other machines change is no matter of speed, so it is
`auto` from `basic` on. Pools of objects are in no level either, for no key can bring them: a program
takes them where it makes the objects ([memory](memory.md)).
";

/// Writes the page about the levels as Markdown: each number with its reason.
#[must_use]
pub fn levels() -> String {
    let mut page = format!(
        "{INTRODUCTION}\n| key | basic | advanced | ultra | extreme | why |\n|---|---|---|---|---|---|\n"
    );
    for row in &ROWS {
        let _ = write!(page, "| `{}` |", row.key);
        for value in row.values {
            let _ = match value {
                KEPT => write!(page, " `true` where the build has the part |"),
                _ => write!(page, " `{value}` |"),
            };
        }
        let _ = writeln!(page, " {} |", row.reason);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::{
        super::{setting::Raw, tree},
        *,
    };

    #[test]
    fn every_value_is_valid_for_its_key_and_spelt_as_the_key_is_shown() {
        for row in &ROWS {
            let key = tree::find(row.key).expect(row.key);
            for value in row.values.into_iter().filter(|value| *value != KEPT) {
                let read = (key.check)(&Raw::Text(value.to_owned()));
                assert_eq!(read, Ok(()), "{} = {value}", row.key);
            }
            assert!(row.values.windows(2).any(|pair| pair[0] != pair[1]), "{}", row.key);
            assert_eq!(ROWS.iter().filter(|other| other.key == row.key).count(), 1, "{}", row.key);
        }
    }

    #[test]
    fn the_column_of_advanced_is_that_of_the_defaults() {
        for row in &ROWS {
            let key = tree::find(row.key).expect(row.key);
            match (&key.default, row.values[OptimizationLevel::Advanced as usize]) {
                (tree::DefaultValue::Fixed(default), value) => assert_eq!(value, *default),
                (tree::DefaultValue::Computed(text, _), value) => {
                    assert_eq!(value, KEPT);
                    assert_eq!(text.split(' ').next(), Some("`true`"), "{}", row.key);
                }
            }
            assert_eq!(chosen(OptimizationLevel::Advanced, row.key), None);
        }
    }

    #[test]
    fn every_reason_is_a_sentence_of_its_own() {
        for row in &ROWS {
            assert!(row.reason.len() > 40 && row.reason.ends_with('.'), "{}", row.key);
        }
    }
}
