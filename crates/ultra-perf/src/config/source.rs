//! The sources: a file, the environment and code, each flattened to values of known keys.
//!
//! What does not name a key is a problem with the nearest known name. Nothing is dropped silently,
//! except variables of the environment that are not ours and aliases that are empty or overridden.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    setting::{KeyType as _, OptimizationLevel, Raw},
    tree::{
        self, Alias, BACKENDS, CACHES, CACHES_MAX, CacheSettings, ENV_PREFIX, Key, Reading, Section,
    },
    url::redact_malformed,
};

/// Tells where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// No source names the key.
    Default,
    /// No source names the key, and the level has another value than the default.
    Level(OptimizationLevel),
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
    /// A change of the configuration while it was in use.
    Change {
        /// Who made it.
        by: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.pad("default"),
            Self::Level(level) => f.pad(&format!("level {level}")),
            Self::File { path, line } => f.pad(&format!("{}:{line}", path.display())),
            Self::Env { name } | Self::Code { name } => f.pad(name),
            Self::Change { by } => f.pad(&format!("changed by {by}")),
        }
    }
}

/// The tables of a file that are the backends.
const TABLES: &str = "backend";

/// The largest file that is read as a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The most syntax errors of a file that are reported.
const MAX_SYNTAX_ERRORS: usize = 8;

/// The most problems before names are no longer compared.
const SUGGESTIONS_MAX: usize = 100;

/// All values that were given, per key in order of precedence, and what was wrong on the way.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) values: Given,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<Note>,
    /// Keys whose value is wrong in a way that is among the problems already.
    pub(super) invalid: BTreeMap<String, String>,
    /// The names of the caches, one more than there may be at most.
    pub(super) caches: BTreeSet<String>,
}

/// Every value given for each key, in order of precedence.
pub(super) type Given = BTreeMap<String, Vec<(Raw, Origin)>>;

impl Gathered {
    pub(super) fn give(&mut self, path: &str, raw: Raw, origin: Origin) {
        if let Some((name, _)) = tree::of_cache(path)
            && !self.caches.contains(name)
        {
            // One more than there may be is enough to find that there are too many.
            if self.caches.len() > CACHES_MAX {
                return;
            }
            self.caches.insert(name.to_owned());
        }
        self.values.entry(path.to_owned()).or_default().push((raw, origin));
    }

    /// Whether a name that is no key is compared with those that are: a file with many of them is none
    /// of ours, and need not take long.
    fn may_suggest(&self) -> bool {
        self.problems.len() < SUGGESTIONS_MAX
    }

    /// Reports a name that is no key.
    pub(super) fn refuse_name(&mut self, path: &str, origin: Origin) {
        self.refuse(path, origin, nearest);
    }

    /// Reports a name that is no key, where another name of one would do.
    pub(super) fn refuse_name_or_alias(&mut self, path: &str, origin: Origin) {
        self.refuse(path, origin, |path| nearest_alias(path).or_else(|| nearest(path)));
    }

    fn refuse(&mut self, path: &str, origin: Origin, nearest: fn(&str) -> Option<String>) {
        let name = path.strip_prefix(CACHES).and_then(|it| it.strip_prefix('.')?.rsplit_once('.'));
        let problem = match name {
            Some((name, _)) if !tree::is_cache_name(name) => bad_cache_name(name, origin),
            _ => {
                let nearest = self.may_suggest().then(|| nearest(path)).flatten();
                Problem::Unknown { nearest, name: path.to_owned(), origin }
            }
        };
        self.problems.push(problem);
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
        let file = File::new(path, bytes);
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
            } else if path == CACHES {
                self.caches(value, &origin, file);
            } else if tree::find(&path).is_some() {
                self.give(&path, raw(value), origin);
            } else if !is_section(&path) {
                self.refuse_name(&path, origin);
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

    /// Reads the tables of `[caches]`, one for each cache.
    fn caches(&mut self, value: &Spanned<DeValue<'_>>, origin: &Origin, file: &File<'_>) {
        let DeValue::Table(caches) = value.get_ref() else {
            self.problems.push(Problem::Invalid {
                path: CACHES.to_owned(),
                value: raw(value).shown(str::to_owned),
                expected: format!("must be a table for each cache, such as [{CACHES}.users]"),
                origin: origin.clone(),
            });
            return;
        };
        let mut caches: Vec<_> = caches.iter().collect();
        caches.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in caches {
            let origin = file.origin(name.span().start);
            let name = name.get_ref();
            if !tree::is_cache_name(name) {
                self.problems.push(bad_cache_name(name, origin));
                continue;
            }
            let path = format!("{CACHES}.{name}");
            let DeValue::Table(fields) = value.get_ref() else {
                self.problems.push(Problem::Invalid {
                    value: raw(value).shown(str::to_owned),
                    expected: format!("must be a table that begins with [{path}]"),
                    path,
                    origin,
                });
                continue;
            };
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(field, _)| field.span().start);
            for (field, value) in fields {
                let origin = file.origin(field.span().start);
                let path = format!("{path}.{}", field.get_ref());
                match (tree::of_cache(&path), value.get_ref()) {
                    (Some(_), _) => self.give(&path, raw(value), origin),
                    (None, DeValue::Table(_)) => {
                        self.problems.push(Problem::Invalid {
                            path,
                            value: "a table".to_owned(),
                            expected: format!(
                                "a name with points stands in quotes, as in [{CACHES}.\"{}\"]",
                                quoted_name(name, field.get_ref(), value)
                            ),
                            origin,
                        });
                    }
                    (None, _) => self.refuse_name(&path, origin),
                }
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
            self.invalid.insert(BACKENDS.to_owned(), format!("[[{TABLES}]]"));
            return;
        }
        self.give(BACKENDS, Raw::List(backends.iter().map(Backend::to_string).collect()), origin);
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
                if let Some(path) = path_of_env(name) {
                    self.give(&path, Raw::Text(value.clone()), origin());
                } else {
                    let path = rest.to_ascii_lowercase().replace("__", ".");
                    let nearest = self.may_suggest().then(|| nearest_key(&path)).flatten();
                    let nearest = nearest.map(|path| tree::env_name(&path));
                    let name = name.clone();
                    self.problems.push(Problem::Unknown { name, nearest, origin: origin() });
                }
            } else if let Some(path) = misspelt(name) {
                self.problems.push(Problem::Unknown {
                    name: name.clone(),
                    nearest: Some(tree::env_name(&path)),
                    origin: origin(),
                });
            }
        }
        for key in tree::fixed_keys() {
            let own = tree::env_name(key.path);
            let mut named = Vec::new();
            for alias in key.aliases {
                let capitals = alias.name.to_ascii_uppercase();
                let other = (capitals != alias.name).then_some(capitals.as_str());
                for spelling in [alias.name].into_iter().chain(other) {
                    let Some((name, value)) = variables.get_key_value(spelling) else { continue };
                    if !value.trim().is_empty() {
                        named.push(Named { alias, name: name.clone(), value: value.clone() });
                    }
                }
            }
            let own = variables.contains_key(&own).then_some(own);
            self.aliases(key, own, &named, |name| Origin::Env { name: name.to_owned() });
        }
    }

    /// Gives `key` the value of its first other name, unless there is `own`, its own name.
    pub(super) fn aliases(
        &mut self,
        key: &'static Key,
        own: Option<String>,
        named: &[Named],
        origin: impl Fn(&str) -> Origin,
    ) {
        let firm = named.iter().position(|named| !named.gives_way());
        let chosen = firm.or((!named.is_empty()).then_some(0)).filter(|_| own.is_none());
        let winner = own.as_deref().or_else(|| chosen.map(|at| named[at].name.as_str()));
        for (at, it) in named.iter().enumerate() {
            if chosen == Some(at) {
                self.alias(key, it, origin(&it.name));
            } else if let Some(winner) = winner
                && !(it.gives_way() && chosen.is_some())
            {
                self.notes.push(Note {
                    key: key.path,
                    message: format!("{} is ignored, because {winner} is set too", it.name),
                    origin: origin(&it.name),
                });
            }
        }
    }

    /// Gives `key` the value of one of its other names.
    fn alias(&mut self, key: &'static Key, named: &Named, origin: Origin) {
        let text = named.value.as_str();
        let raw = match named.alias.reading {
            Reading::Plain => Raw::Text(text.to_owned()),
            Reading::Unit(unit) => Raw::Bare { text: text.to_owned(), unit },
            Reading::AtMost(most) => match self.lowered(key, text, most, &origin) {
                Some(lowered) => Raw::Text(lowered),
                None => Raw::Text(text.to_owned()),
            },
            Reading::SecondsAtMost(most) => Raw::Bare {
                text: self.lowered(key, text, most, &origin).unwrap_or_else(|| text.to_owned()),
                unit: "s",
            },
            Reading::Port if text.trim().bytes().all(|b| b.is_ascii_digit()) => {
                Raw::Text(format!("127.0.0.1:{}", text.trim()))
            }
            Reading::Port => Raw::Text(text.to_owned()),
            Reading::Switch { on, off } => match bool::read(&Raw::Text(text.to_owned())) {
                Ok(yes) => Raw::Text(if yes { on } else { off }.to_owned()),
                Err(expected) => {
                    let value = Raw::Text(text.to_owned()).shown(str::to_owned);
                    self.invalid.insert(key.path.to_owned(), value.clone());
                    let path = key.path.to_owned();
                    self.problems.push(Problem::Invalid { path, value, expected, origin });
                    return;
                }
            },
        };
        self.give(key.path, raw, origin);
    }

    /// The number that stands for a larger one than is of use, with a note.
    fn lowered(
        &mut self,
        key: &'static Key,
        text: &str,
        most: usize,
        origin: &Origin,
    ) -> Option<String> {
        let number = text.trim().parse::<usize>().ok().filter(|number| *number > most)?;
        self.notes.push(Note {
            key: key.path,
            message: format!("lowered from {number} to {most}, the most that is of use"),
            origin: origin.clone(),
        });
        Some(most.to_string())
    }

    /// Takes a value from code or the command line.
    pub(super) fn set(&mut self, path: &str, value: &str, name: &str) {
        let origin = Origin::Code { name: name.to_owned() };
        match tree::find(path) {
            Some(_) => self.give(path, Raw::Text(value.to_owned()), origin),
            None => self.refuse_name(path, origin),
        }
    }
}

/// A value under another name of its key.
pub(super) struct Named {
    pub(super) alias: &'static Alias,
    /// The name as the source spells it.
    pub(super) name: String,
    pub(super) value: String,
}

impl Named {
    /// Whether it says only that there is something, which another name may say more of.
    fn gives_way(&self) -> bool {
        matches!(self.alias.reading, Reading::Switch { .. })
            && bool::read(&Raw::Text(self.value.clone())) == Ok(true)
    }
}

/// Reports more caches than there may be, at the strongest source that names one.
pub(super) fn too_many_caches(values: &Given) -> Problem {
    let of_caches = values.iter().filter(|(path, _)| tree::of_cache(path).is_some());
    let origin = of_caches.filter_map(|(_, given)| given.last()).map(|(_, origin)| origin);
    let strength = |origin: &&Origin| match origin {
        Origin::Default | Origin::Level(_) => 0,
        Origin::File { line, .. } => *line,
        Origin::Env { .. } => usize::MAX - 2,
        Origin::Code { .. } => usize::MAX - 1,
        Origin::Change { .. } => usize::MAX,
    };
    Problem::Invalid {
        path: CACHES.to_owned(),
        value: format!("more than {CACHES_MAX} tables"),
        expected: format!("must be {CACHES_MAX} at most"),
        origin: origin.max_by_key(strength).unwrap_or(&Origin::Default).clone(),
    }
}

/// The name of a cache that was written as tables within each other.
fn quoted_name(cache: &str, field: &str, mut value: &Spanned<DeValue<'_>>) -> String {
    let mut name = format!("{cache}.{field}");
    while let DeValue::Table(table) = value.get_ref()
        && let Some((part, inner)) = table.iter().find(|(_, it)| it.get_ref().is_table())
        && name.len() < 64
    {
        name = format!("{name}.{}", part.get_ref());
        value = inner;
    }
    match tree::is_cache_name(&name) {
        true => name,
        false => format!("{cache}.NAME"),
    }
}

fn bad_cache_name(name: &str, origin: Origin) -> Problem {
    Problem::Invalid {
        path: CACHES.to_owned(),
        value: Raw::String(name.to_owned()).shown(str::to_owned),
        expected: "must be tables named with 1 to 64 letters, digits or characters of \"-_\", and \
                   \".\" between them"
            .to_owned(),
        origin,
    }
}

/// A file, for telling lines.
struct File<'a> {
    path: &'a Path,
    /// Where each of its lines ends.
    ends: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(path: &'a Path, bytes: &[u8]) -> Self {
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        Self { path, ends: ends.map(|(at, _)| at).collect() }
    }

    fn origin(&self, offset: usize) -> Origin {
        let line = self.ends.partition_point(|end| *end < offset) + 1;
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
    let section = tree::SECTIONS.iter().find(|section| section.name == path);
    section.is_some_and(|section| !section.name.is_empty() && !section.name.contains(tree::ANY))
}

/// The path of the key whose name in the environment is `name`.
fn path_of_env(name: &str) -> Option<String> {
    if let Some(key) = tree::fixed_keys().find(|key| tree::env_name(key.path) == name) {
        return Some(key.path.to_owned());
    }
    let (cache, field) = name.strip_prefix(&caches_in_env())?.rsplit_once("__")?;
    let key = CacheSettings::KEYS.iter().find(|key| key.name().to_ascii_uppercase() == field)?;
    let cache = cache.to_ascii_lowercase().replace("__", ".");
    tree::is_cache_name(&cache).then(|| key.path_in(&cache))
}

/// What the names of `[caches.*]` begin with in the environment.
fn caches_in_env() -> String {
    format!("{}__", tree::env_name(CACHES))
}

/// The path of the key that `name` means if its underscores are taken lightly.
fn misspelt(name: &str) -> Option<String> {
    let squeeze = |name: &str| name.replace('_', "").to_ascii_uppercase();
    let rest = squeeze(name);
    rest.strip_prefix("ULTRAPERF")?;
    if let Some(key) = tree::fixed_keys().find(|key| squeeze(&tree::env_name(key.path)) == rest) {
        return Some(key.path.to_owned());
    }
    let rest = rest.strip_prefix(&squeeze(&caches_in_env()))?;
    let cache = |key: &Key| {
        let cache = rest.strip_suffix(&squeeze(key.name()))?.to_ascii_lowercase();
        tree::is_cache_name(&cache).then(|| key.path_in(&cache))
    };
    CacheSettings::KEYS.iter().find_map(cache)
}

/// A key of the section at `path`, which may be that of a cache.
fn key_within(path: &str) -> Option<String> {
    let cache = match path.strip_prefix(CACHES)? {
        "" => "NAME",
        rest => rest.strip_prefix('.').filter(|name| tree::is_cache_name(name))?,
    };
    CacheSettings::KEYS.first().map(|key| key.path_in(cache))
}

/// What sections are called elsewhere, beside the last part of their own name.
const CALLED: [(&str, &str); 6] = [
    ("loadbalancer", "balancer"),
    ("load_balancer", "balancer"),
    ("resilience", "balancer.breaker"),
    ("circuit_breaker", "balancer.breaker"),
    ("circuit_breakers", "balancer.breaker"),
    ("responses", "response_cache"),
];

/// The section that the first part of a path means although it stands within another one, and the rest.
fn moved(path: &str) -> Option<(&'static Section, &str)> {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    if is_section(first) {
        return None;
    }
    let called = CALLED.iter().find(|(name, _)| *name == first).map(|(_, section)| *section);
    let means = |section: &&Section| match called {
        Some(called) => section.name == called,
        None => section.name.rsplit_once('.').is_some_and(|(_, last)| last == first),
    };
    let section = tree::SECTIONS.iter().filter(|section| is_section(section.name)).find(means)?;
    Some((section, rest))
}

/// The key that was looked for in a section that stands within another one.
fn moved_key(section: &Section, rest: &str) -> Option<String> {
    let path = format!("{}.{rest}", section.name);
    match tree::find(&path) {
        Some(_) => Some(path),
        None => closest(&path, section.keys.iter().map(|key| key.path)).map(str::to_owned),
    }
}

/// The key of a cache that `path` most likely means.
fn within_cache(path: &str) -> Option<String> {
    let (cache, field) = path.strip_prefix(CACHES)?.strip_prefix('.')?.rsplit_once('.')?;
    nearest_of_cache(cache, field)
}

/// The key that has the right name in another section, or `path` as another name.
fn elsewhere(path: &str) -> Option<String> {
    if path.strip_prefix(CACHES).is_some_and(|rest| rest.starts_with('.')) {
        return None;
    }
    let name = path.rsplit('.').next()?;
    let mut keys = tree::fixed_keys();
    let is_alias = |key: &&Key| key.aliases.iter().any(|it| it.name.eq_ignore_ascii_case(path));
    let key = keys.find(|key| key.name() == name).or_else(|| tree::fixed_keys().find(is_alias));
    key.map(|key| key.path.to_owned())
}

/// The known key or section that `path` most likely means.
fn nearest(path: &str) -> Option<String> {
    if let Some(section) = tree::SECTIONS.iter().find(|it| it.name == path && is_section(path)) {
        return section.keys.first().map(|key| key.path.to_owned());
    }
    // Without a point in it, what follows is the name of a cache rather than a name and a field.
    let table = key_within(path);
    if table.is_some() && path.matches('.').count() < 2 {
        return table;
    }
    let moved = || {
        let (section, rest) = moved(path)?;
        let key = if rest.is_empty() { None } else { moved_key(section, rest) };
        Some(key.unwrap_or_else(|| section.name.to_owned()))
    };
    let sections = tree::SECTIONS.iter().map(|section| section.name);
    let sections = sections.filter(|name| !name.is_empty() && !name.contains(tree::ANY));
    let fixed = sections.chain([CACHES]).chain(tree::fixed_keys().map(|key| key.path));
    within_cache(path)
        .or_else(moved)
        .or_else(|| closest(path, fixed).map(str::to_owned))
        .or_else(|| elsewhere(path))
        .or(table)
}

/// The key that `path` most likely means, where a section would not do.
fn nearest_key(path: &str) -> Option<String> {
    let moved = || match moved(path)? {
        (section, "") => section.keys.first().map(|key| key.path.to_owned()),
        (section, rest) => moved_key(section, rest),
    };
    let fixed = || closest(path, tree::fixed_keys().map(|key| key.path)).map(str::to_owned);
    within_cache(path).or_else(moved).or_else(fixed).or_else(|| elsewhere(path))
}

/// The other name of a key that `name` most likely means.
fn nearest_alias(name: &str) -> Option<String> {
    if name.contains('.') {
        return None;
    }
    let aliases = tree::fixed_keys().flat_map(|key| key.aliases).map(|alias| alias.name);
    // In the letters of the one who asks: a name in small ones may be written in capitals.
    let small: Vec<_> = aliases.map(str::to_ascii_lowercase).collect();
    let found = closest(&name.to_ascii_lowercase(), small.iter().map(String::as_str))?;
    let is_loud = !name.contains(|c: char| c.is_ascii_lowercase());
    Some(if is_loud { found.to_ascii_uppercase() } else { found.to_owned() })
}

/// The field of the cache `name` that `field` most likely means.
fn nearest_of_cache(name: &str, field: &str) -> Option<String> {
    let field = closest(field, CacheSettings::KEYS.iter().map(Key::name))?;
    tree::is_cache_name(name).then(|| format!("{CACHES}.{name}.{field}"))
}

/// The candidate with the fewest changed letters, if they are few enough to be a slip.
fn closest<'a>(path: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if path.len() > 100 {
        return None;
    }
    let path: Vec<char> = path.chars().collect();
    let slip = |candidate: &'a str| {
        let most = (candidate.len() / 5).clamp(2, 4);
        Some((edits(&path, &candidate.chars().collect::<Vec<_>>(), most)?, candidate))
    };
    candidates.filter_map(slip).min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate)
}

/// Letters to change, add, drop or swap with their neighbour to make `a` into `b`, if `most` will do.
fn edits(a: &[char], b: &[char], most: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    // Edits from the first `i` letters of `a`, and from one and two fewer, to each start of `b`.
    let (mut before, mut last) = (Vec::new(), (0..=b.len()).collect::<Vec<_>>());
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j - 1] + differs).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        // No row has less than the least of the two before it.
        if row.iter().chain(&last).all(|edits| *edits > most) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    Some(last[b.len()]).filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_one_edit() {
        for (a, b, count) in [
            ("ttl", "ttl", 0),
            ("tll", "ttl", 1),
            ("tlt", "ttl", 1),
            ("", "ab", 2),
            ("abc", "cab", 2),
        ] {
            let [a, b] = [a, b].map(|text| text.chars().collect::<Vec<_>>());
            assert_eq!(edits(&a, &b, count), Some(count), "{a:?} {b:?}");
            assert_eq!(edits(&a, &b, 9), Some(count), "{a:?} {b:?}");
            assert!(count == 0 || edits(&a, &b, count - 1).is_none(), "{a:?} {b:?}");
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
            ("cache", Some("cache.ttl")),
            ("cache.redis", Some("cache.redis.url")),
            ("caches", Some("caches.NAME.ttl")),
            ("caches.users", Some("caches.users.ttl")),
            ("caches.users.polcy", Some("caches.users.policy")),
            ("caches.shop.load.polcy", Some("caches.shop.load.policy")),
            ("caches.shop.load", Some("caches.shop.load.ttl")),
            ("redis", Some("cache.redis")),
            ("redis.url", Some("cache.redis.url")),
            ("redis.ulr", Some("cache.redis.url")),
            ("redis.something", Some("cache.redis")),
            ("disk", Some("cache.disk")),
            ("io", Some("scheduler.io")),
            ("history.path", Some("monitor.history.path")),
            ("loadbalancer", Some("balancer")),
            ("loadbalancer.policy", Some("balancer.policy")),
            ("loadbalancer.breaker.mode", Some("balancer.breaker.mode")),
            ("resilience", Some("balancer.breaker")),
            ("breaker.mode", Some("balancer.breaker.mode")),
            ("max_workers", Some("scheduler.blocking.max")),
            ("memory.entries", Some("cache.memory.entries")),
            ("caches.*", Some("caches")),
            ("", None),
        ] {
            assert_eq!(nearest(path).as_deref(), meant, "{path}");
        }
    }

    #[test]
    fn in_the_environment_a_key_is_meant_and_in_a_change_perhaps_another_name() {
        for (path, meant) in [
            ("redis.url", Some("cache.redis.url")),
            ("redis", Some("cache.redis.url")),
            ("redis.something", None),
            ("listen", Some("server.listen")),
            ("cache", None),
            ("caches.*.ttl", None),
        ] {
            assert_eq!(nearest_key(path).as_deref(), meant, "{path}");
        }
        for (name, meant) in [
            ("cache_tll", Some("cache_ttl")),
            ("CACHE_TLL", Some("CACHE_TTL")),
            ("memory_limit_bg", Some("memory_limit_gb")),
            ("enable_prometeus", Some("enable_prometheus")),
            ("cache.tll", None),
            ("something", None),
        ] {
            assert_eq!(nearest_alias(name).as_deref(), meant, "{name}");
        }
    }
}
