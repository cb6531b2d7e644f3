//! The sources: a file, the environment and code, each flattened to values of known keys.
//!
//! What does not name a key is a problem with the nearest known name. Nothing is dropped silently,
//! except variables of the environment that are not ours and aliases that are empty or overridden.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    backend::{self, Backend, Backends},
    explain::Note,
    problem::Problem,
    setting::Raw,
    tree::{self, Alias, BACKENDS, ENV_PREFIX, Key, Reading},
    url::redact_malformed,
};

/// Tells where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// No source names the key.
    Default,
    /// A file, with the line of the key.
    File {
        /// The file as it was given.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A variable of the environment.
    Env {
        /// Its name.
        name: String,
    },
    /// Code or the command line.
    Code {
        /// What the caller calls it, such as `--to`.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.pad("default"),
            Self::File { path, line } => f.pad(&format!("{}:{line}", path.display())),
            Self::Env { name } | Self::Code { name } => f.pad(name),
        }
    }
}

/// The tables of a file that are the backends.
const TABLES: &str = "backend";

/// The largest file that is read as a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The most syntax errors of a file that are reported.
const MAX_SYNTAX_ERRORS: usize = 8;

/// All values that were given, per key in order of precedence, and what was wrong on the way.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) values: BTreeMap<&'static str, Vec<(Raw, Origin)>>,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<Note>,
    /// Keys whose value is wrong in a way that is among the problems already.
    pub(super) invalid: BTreeMap<&'static str, String>,
}

impl Gathered {
    fn give(&mut self, key: &'static Key, raw: Raw, origin: Origin) {
        self.values.entry(key.path).or_default().push((raw, origin));
    }

    /// Reads a file; without it there is a problem if it is `required`.
    pub(super) fn file(&mut self, path: &Path, required: bool) {
        match read_bounded(path) {
            Ok(bytes) => self.toml(path, &bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !required => {}
            Err(source) => {
                self.problems.push(Problem::Unreadable { path: path.to_owned(), source });
            }
        }
    }

    /// Reads the text of a file.
    pub(super) fn toml(&mut self, path: &Path, bytes: &[u8]) {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let file = File { path, bytes };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => {
                let origin = file.origin(e.valid_up_to());
                self.problems.push(Problem::Syntax { message: "not UTF-8".to_owned(), origin });
                return;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            let before = self.values.get(BACKENDS).map_or(0, Vec::len);
            self.table("", table.get_ref(), &file);
            if let Some([.., _, (_, origin)]) = self.values.get(BACKENDS).map(|it| &it[before..]) {
                self.problems.push(Problem::Invalid {
                    path: TABLES.to_owned(),
                    value: "a list of tables".to_owned(),
                    expected: format!("must not stand beside {BACKENDS} in the same file"),
                    origin: origin.clone(),
                });
            }
            return;
        }
        // What the parser made of a broken file would only lead to further, misleading problems.
        for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
            let origin = file.origin(error.span().map_or(0, |span| span.start));
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            self.problems.push(Problem::Syntax { message, origin });
        }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, file: &File<'_>) {
        // By position, for problems are read beside the file.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let path = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            let origin = file.origin(name.span().start);
            if path == TABLES {
                self.backends(value.get_ref(), origin, file);
            } else if let Some(key) = tree::find(&path) {
                self.give(key, raw(value), origin);
            } else if !is_section(&path) {
                let nearest = nearest(&path);
                self.problems.push(Problem::Unknown { name: path, nearest, origin });
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.table(&path, inner, file);
            } else {
                self.problems.push(Problem::Invalid {
                    value: raw(value).shown(|_| "***".to_owned()),
                    expected: format!("must be a table that begins with [{path}]"),
                    path,
                    origin,
                });
            }
        }
    }

    /// Reads `[[backend]]`, which is another form of a list of backends.
    fn backends(&mut self, value: &DeValue<'_>, origin: Origin, file: &File<'_>) {
        let refuse = |value: &str, expected: String| Problem::Invalid {
            path: TABLES.to_owned(),
            value: value.to_owned(),
            expected,
            origin: origin.clone(),
        };
        let before = self.problems.len();
        let mut backends = Vec::new();
        match value {
            DeValue::Array(items) if (1..=Backends::MAX).contains(&items.len()) => {
                for (at, item) in items.iter().enumerate() {
                    match item.get_ref() {
                        DeValue::Table(table) => {
                            let at_item = file.origin(item.span().start);
                            backends.extend(self.backend(at, table, &at_item, file));
                        }
                        _ => self.problems.push(refuse(
                            "a list of other things",
                            format!("must be tables that begin with [[{TABLES}]]"),
                        )),
                    }
                }
            }
            DeValue::Array(items) => self.problems.push(refuse(
                &format!("a list of {}", items.len()),
                format!("must be 1 to {} tables that begin with [[{TABLES}]]", Backends::MAX),
            )),
            _ => self.problems.push(refuse(
                "no list",
                format!("must be tables that begin with [[{TABLES}]], each with a url"),
            )),
        }
        if self.problems.len() == before {
            for (at, expected) in backend::duplicates(&backends) {
                self.problems.push(Problem::Invalid {
                    path: format!("{TABLES}[{at}].url"),
                    value: format!("\"{}\"", backends[at].url),
                    expected: expected.replace("that of number", "that of table"),
                    origin: origin.clone(),
                });
            }
        }
        if self.problems.len() > before {
            self.invalid.insert(BACKENDS, format!("[[{TABLES}]]"));
            return;
        }
        let key = tree::find(BACKENDS).expect("there is such a key");
        self.give(key, Raw::List(backends.iter().map(Backend::to_string).collect()), origin);
    }

    /// Reads one table of `[[backend]]`.
    fn backend(
        &mut self,
        at: usize,
        table: &DeTable<'_>,
        origin: &Origin,
        file: &File<'_>,
    ) -> Option<Backend> {
        let before = self.problems.len();
        let mut invalid = |field: &str, value: String, expected: String, origin: Origin| {
            let path = format!("{TABLES}[{at}].{field}");
            self.problems.push(Problem::Invalid { path, value, expected, origin });
        };
        let url = table.iter().find(|(name, _)| name.get_ref() == "url");
        // What else the table holds is looked at whatever its URL is.
        let anywhere = || "http://localhost".parse().expect("a URL");
        let parsed = url.map(|(name, value)| {
            let text = value.get_ref().as_str().unwrap_or_default();
            text.parse().inspect_err(|error| {
                let redact = |it: &str| match it.contains('@') {
                    true => redact_malformed(it),
                    false => it.to_owned(),
                };
                let (shown, at) = (raw(value).shown(redact), file.origin(name.span().start));
                invalid("url", shown, format!("{error}"), at);
            })
        });
        let mut backend = Backend::new(parsed.and_then(Result::ok).unwrap_or_else(anywhere));
        if url.is_none() {
            let expected = "must be an http:// URL such as \"http://127.0.0.1:8000\"".to_owned();
            invalid("url", "nothing".to_owned(), expected, origin.clone());
        }
        let mut unknown = Vec::new();
        let mut entries: Vec<_> =
            table.iter().filter(|(name, _)| name.get_ref() != "url").collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let (field, origin) = (name.get_ref(), file.origin(name.span().start));
            if !backend::FIELDS.iter().any(|(table, _)| table == field) {
                unknown.push((field.to_string(), origin));
                continue;
            }
            let value = raw(value);
            let text = match (&value, &**field) {
                (Raw::String(text), "zone") => text.clone(),
                (Raw::Integer(number), "weight" | "max_in_flight" | "priority") => {
                    number.to_string()
                }
                // Of another type: what is right is told, and it is never a text like this.
                _ => String::new(),
            };
            if let Err(expected) = backend.set(field, &text) {
                invalid(field, value.shown(str::to_owned), expected, origin);
            }
        }
        for (name, origin) in unknown {
            let names = backend::FIELDS.iter().map(|(name, _)| *name).chain(["url"]);
            let nearest = closest(&name, names).map(|field| format!("{TABLES}[{at}].{field}"));
            let name = format!("{TABLES}[{at}].{name}");
            self.problems.push(Problem::Unknown { name, nearest, origin });
        }
        (self.problems.len() == before).then_some(backend)
    }

    /// Reads the environment, of which the order does not matter.
    pub(super) fn env(&mut self, variables: &BTreeMap<String, String>) {
        for (name, value) in variables {
            let origin = || Origin::Env { name: name.clone() };
            if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
                if let Some(key) = tree::keys().find(|key| tree::env_name(key.path) == *name) {
                    self.give(key, Raw::Text(value.clone()), origin());
                } else {
                    let path = rest.to_ascii_lowercase().replace("__", ".");
                    let nearest = nearest_key(&path).map(tree::env_name);
                    let name = name.clone();
                    self.problems.push(Problem::Unknown { name, nearest, origin: origin() });
                }
            } else if let Some(key) = misspelt(name) {
                self.problems.push(Problem::Unknown {
                    name: name.clone(),
                    nearest: Some(tree::env_name(key.path)),
                    origin: origin(),
                });
            }
        }
        for key in tree::keys() {
            self.aliases(key, variables);
        }
    }

    /// Gives `key` the value of its first alias in the environment, unless its own name is there.
    fn aliases(&mut self, key: &'static Key, variables: &BTreeMap<String, String>) {
        let own = tree::env_name(key.path);
        let mut winner = variables.get_key_value(&own);
        for alias in key.aliases {
            let capitals = alias.name.to_ascii_uppercase();
            let other = (capitals != alias.name).then_some(capitals.as_str());
            for spelling in [alias.name].into_iter().chain(other) {
                let Some((name, value)) = variables.get_key_value(spelling) else { continue };
                if value.trim().is_empty() {
                    continue;
                }
                let origin = Origin::Env { name: name.clone() };
                match winner {
                    Some((won, _)) => self.notes.push(Note {
                        key: key.path,
                        message: format!("{name} is ignored, because {won} is set too"),
                        origin,
                    }),
                    None => {
                        winner = Some((name, value));
                        let raw = self.alias_value(key, alias, value, &origin);
                        self.give(key, raw, origin);
                    }
                }
            }
        }
    }

    fn alias_value(
        &mut self,
        key: &'static Key,
        alias: &Alias,
        value: &str,
        origin: &Origin,
    ) -> Raw {
        match alias.reading {
            Reading::Plain => Raw::Text(value.to_owned()),
            Reading::Seconds => Raw::Seconds(value.to_owned()),
            Reading::AtMost(most) => match value.trim().parse::<usize>() {
                Ok(number) if number > most => {
                    self.notes.push(Note {
                        key: key.path,
                        message: format!(
                            "lowered from {number} to {most}, the most that is of use"
                        ),
                        origin: origin.clone(),
                    });
                    Raw::Text(most.to_string())
                }
                _ => Raw::Text(value.to_owned()),
            },
        }
    }

    /// Takes a value from code or the command line.
    pub(super) fn set(&mut self, path: &str, value: &str, name: &str) {
        let origin = Origin::Code { name: name.to_owned() };
        match tree::find(path) {
            Some(key) => self.give(key, Raw::Text(value.to_owned()), origin),
            None => {
                let nearest = nearest(path);
                self.problems.push(Problem::Unknown { name: path.to_owned(), nearest, origin });
            }
        }
    }
}

/// A file's bytes, for telling lines.
struct File<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = &self.bytes[..offset.min(self.bytes.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        Origin::File { path: self.path.to_owned(), line }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 1 MiB"));
    }
    Ok(bytes)
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::String(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number out of range"), Raw::Integer),
        DeValue::Float(number) => Raw::Float(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Raw::Boolean(*yes),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map_or(Raw::Other("a list of other things than texts"), Raw::List),
    }
}

fn is_section(path: &str) -> bool {
    tree::SECTIONS.iter().any(|section| section.name == path)
}

/// The key that `name` means if its underscores are taken lightly.
fn misspelt(name: &str) -> Option<&'static Key> {
    let squeeze = |name: &str| name.replace('_', "").to_ascii_uppercase();
    let rest = squeeze(name);
    rest.strip_prefix("ULTRAPERF")?;
    tree::keys().find(|key| squeeze(&tree::env_name(key.path)) == rest)
}

/// The known key or section that `path` most likely means.
fn nearest(path: &str) -> Option<String> {
    let section = tree::SECTIONS.iter().map(|section| section.name);
    closest(path, section.chain(tree::keys().map(|key| key.path))).map(str::to_owned).or_else(
        || {
            // The right name in the wrong section.
            let name = path.rsplit('.').next()?;
            let mut same = tree::keys().filter(|key| key.path.rsplit('.').next() == Some(name));
            same.next().map(|key| key.path.to_owned())
        },
    )
}

fn nearest_key(path: &str) -> Option<&'static str> {
    closest(path, tree::keys().map(|key| key.path))
}

/// The candidate with the fewest changed letters, if they are few enough to be a slip.
fn closest<'a>(path: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if path.len() > 100 {
        return None;
    }
    candidates
        .map(|candidate| (edits(path, candidate), candidate))
        .min_by_key(|(edits, _)| *edits)
        .filter(|(edits, candidate)| *edits <= (candidate.len() / 5).clamp(2, 4))
        .map(|(_, candidate)| candidate)
}

/// Letters to change, add, drop or swap with their neighbour to make `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let differs = usize::from(a[i - 1] != b[j - 1]);
                let mut least =
                    (rows[i - 1][j - 1] + differs).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_one_edit() {
        for (a, b, count) in
            [("ttl", "ttl", 0), ("tll", "ttl", 1), ("tlt", "ttl", 1), ("", "ab", 2)]
        {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_a_slip_away_or_the_same_in_another_section() {
        for (path, meant) in [
            ("cache.tll", Some("cache.ttl")),
            ("cach", Some("cache")),
            ("server.listn", Some("server.listen")),
            ("cache.prefix", Some("cache.redis.prefix")),
            ("listen", Some("server.listen")),
            ("something.else", None),
        ] {
            assert_eq!(nearest(path).as_deref(), meant, "{path}");
        }
    }
}
