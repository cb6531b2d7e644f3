//! The configuration reference of the documentation, made from the keys.

use std::fmt::Write as _;

use super::tree::{self, DefaultValue, Reading};

/// A small file with the keys that are set most often.
pub(super) const EXAMPLE: &str = r#"[server]
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
"#;

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from crates/ultra-perf/src/config/tree.rs; `UPDATE=1 cargo test -p ultra-perf` writes it anew. -->

Every key has a default, so no file is needed. A value is taken from the last of these that names it:

1. the default;
2. a TOML file: `--config FILE`, otherwise `ultra-perf.toml` in the working directory if there is one;
3. the environment: `ULTRA_PERF__` and the path of the key in capitals, with `__` between its levels,
   as in `ULTRA_PERF__CACHE__TTL=1h`;
4. the command line, or code in an embedding program.

`ultra-perf check` prints the effective value of every key with its origin, and every problem at once. A
name that is not listed here is a problem too, in the file as in the environment.

- **Durations** need a unit: `250ms`, `30s`, `1h30m`; the units are `d`, `h`, `m`, `s`, `ms`, `us`, `ns`.
- **Sizes** are `64MiB`, `1.5GiB` (powers of 1024), `1GB` (powers of 1000), or a number of bytes.
- **`none`** stands for \"not set\" where a key allows that; in the environment so does an empty value.
";

/// Writes the configuration reference as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = format!("{INTRODUCTION}\n```toml\n{EXAMPLE}```\n");
    for section in &tree::SECTIONS {
        let _ = write!(page, "\n## `[{}]`\n\n{}\n\n", section.name, joined(section.doc));
        page.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let name = key.path.rsplit('.').next().unwrap_or(key.path);
            let default = match key.default {
                DefaultValue::Fixed(text) => format!("`{text}`"),
                DefaultValue::Computed(text, _) => text.to_owned(),
            };
            let meaning = joined(key.doc);
            let bounds = match (key.least, key.most) {
                (Some(least), Some(most)) => format!(", {least} to {most}"),
                (Some(least), None) => format!(", at least {least}"),
                (None, Some(most)) => format!(", at most {most}"),
                (None, None) => String::new(),
            };
            let kind = (key.label)();
            let _ = writeln!(page, "| `{name}` | {kind}{bounds} | {default} | {meaning} |");
        }
    }
    page.push_str(
        "\n## Other names\n\n\
         These variables of the environment are understood as well, so that a deployment can keep\n\
         what it has. A key's own name wins over them, an empty value counts as absent, and a bare\n\
         number of a duration counts seconds. Names in small letters may be written in capitals.\n\n\
         | variable | key |\n|---|---|\n",
    );
    for key in tree::keys() {
        for alias in key.aliases {
            let remark = match alias.reading {
                Reading::Plain => String::new(),
                Reading::Seconds => ", in seconds".to_owned(),
                Reading::AtMost(most) => format!(", at most {most}"),
            };
            let _ = writeln!(page, "| `{}` | `{}`{remark} |", alias.name, key.path);
        }
    }
    page
}

/// The lines of a doc comment as one paragraph.
fn joined(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}
