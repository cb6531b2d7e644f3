//! The configuration reference of the documentation, made from the keys.

use std::fmt::Write as _;

use super::{
    Effect, level,
    tree::{self, DefaultValue, Reading},
};

/// A small file with the keys that are set most often.
pub(super) const EXAMPLE: &str = r#"level = "advanced"

[server]
to = "http://127.0.0.1:8000"
listen = "0.0.0.0:8080"

[cache]
ttl = "10m"

[cache.memory]
capacity = "512MiB"

[cache.disk]
path = "/var/cache/ultra-perf"
capacity = "8GiB"

[cache.redis]
url = "redis://127.0.0.1:6379"

[caches.users]
ttl = "30s"
"#;

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from crates/ultra-perf/src/config/tree.rs; `UPDATE=1 cargo test -p ultra-perf` writes it anew. -->

Every key has a default, so no file is needed. A value is taken from the last of these that names it:

1. the default;
2. the [level](levels.md), which has other defaults for some keys: they are marked with *level*;
3. a TOML file: `--config FILE`, otherwise `ultra-perf.toml` in the working directory if there is one;
4. the environment: `ULTRA_PERF__` and the path of the key in capitals, with `__` between its parts,
   as in `ULTRA_PERF__CACHE__TTL=1h`;
5. the command line, or code in an embedding program.

`ultra-perf check` prints the effective value of every key with its origin, and every problem at once. A
name that is not listed here is a problem too: in the file any, and in the environment one that begins with
`ULTRA_PERF__` or would be a key's name with other underscores, such as `ULTRA_PERF_CACHE_TTL`. Other variables
are somebody else's.

- **Durations** need a unit: `250ms`, `30s`, `1h30m`; the units are `d`, `h`, `m`, `s`, `ms`, `us`, `ns`.
- **Sizes** are `64MiB`, `1.5GiB` (powers of 1024), `1GB` (powers of 1000), or a number of bytes.
- **`none`** stands for \"not set\" where a key allows that; in the environment so does an empty value.

Keys that are **live** can be changed while the program runs, over the admin API or by code, and count at
once; a change of another one is kept and counts after the next start. A change stands above all other
sources until it is taken back, and its origin is who made it. Files and variables are not read again.

[`ultra-perf.schema.json`](ultra-perf.schema.json) is a JSON Schema of the file for editors. With a language
server for TOML, this line at the head of a file names it: `#:schema ./ultra-perf.schema.json`.
";

/// Where who comes with such names is used to something else.
const OTHER_DEFAULTS: &str = "
`enable_query_cache` and the names that begin with `DATABASE_` have no key: queries of databases are not cached
by themselves. As variables they are not looked at, as settings of a change they are refused.

Programs that use these names often have other defaults for them:

| key | default here | often elsewhere | why |
|---|---|---|---|
| `targets.memory` | `none` | 512 MiB | A target that nobody has chosen would make caches smaller. |
| `cache.redis.connections` | `1`, at most 2 | up to 50 | A connection carries any number of commands at a time. |
| `server.metrics_listen` | `none` | port 8000 | No address is open that nobody asked for; the admin API has the same figures. |
| `monitor.interval` | `1s` | 60 s | A reading takes a fraction of a millisecond. |
| `cache.memory.entries` | `none`, so `cache.memory.default_entries` counts | 10,000 | 10,000 are the default at the level `basic`. |
| `memory.limit` | `none` | 8 GiB | The limits of the control group and the machine count anyway. |
| `memory.tracking`, `monitor.profiling` | `false` below `extreme` | `true` | The one costs at each allocation, the other shows the names of functions. |
";

/// Writes the configuration reference as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = format!("{INTRODUCTION}\n```toml\n{EXAMPLE}```\n");
    for section in &tree::SECTIONS {
        let name = match section.name {
            "" => "The level".to_owned(),
            name => format!("`[{}]`", name.replace(tree::ANY, "NAME")),
        };
        let _ = write!(page, "\n## {name}\n\n{}\n\n", joined(section.doc));
        page.push_str("| key | type | default | live | meaning |\n|---|---|---|---|---|\n");
        for key in section.keys {
            let name = key.name();
            let default = match key.default {
                DefaultValue::Fixed(text) => format!("`{text}`"),
                DefaultValue::Computed(text, _) => text.to_owned(),
            };
            let live = match key.effect {
                Effect::Live => "yes",
                Effect::Restart => "",
            };
            let by_level = if level::chooses(key.path) { ", *level*" } else { "" };
            let meaning = joined(key.doc);
            let bounds = key.bounds();
            let kind = (key.label)();
            let _ = writeln!(
                page,
                "| `{name}` | {kind}{bounds} | {default}{by_level} | {live} | {meaning} |"
            );
        }
    }
    page.push_str(
        "\n## Other names\n\n\
         These variables of the environment are understood as well, so that a deployment can keep\n\
         what it has, and the same names in a change while the program runs. A key's own name wins\n\
         over them, an empty value counts as absent, and a bare number has the unit of the table.\n\
         Names in small letters may be written in capitals.\n\n\
         | variable | key |\n|---|---|\n",
    );
    for key in tree::keys() {
        for alias in key.aliases {
            let remark = match alias.reading {
                Reading::Plain => String::new(),
                Reading::Unit("s") => ", in seconds".to_owned(),
                Reading::Unit("ms") => ", in milliseconds".to_owned(),
                Reading::Unit(unit) => format!(", in {unit}"),
                Reading::SecondsAtMost(most) => format!(", in seconds, at most {most}"),
                Reading::AtMost(most) => format!(", at most {most}"),
                Reading::Port => ", a port of this machine alone".to_owned(),
                Reading::Switch { on, off } => format!(": true is `{on}`, false is `{off}`"),
            };
            let _ = writeln!(page, "| `{}` | `{}`{remark} |", alias.name, key.path);
        }
    }
    page.push_str(OTHER_DEFAULTS);
    page
}

/// The lines of a doc comment as one paragraph.
pub(super) fn joined(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}
