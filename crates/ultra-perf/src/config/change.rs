//! Changes of a configuration that runs: what they lead to, and which of it takes effect at once.
//!
//! A [`Config`] keeps the sources that it was made of. A change is one more of them, above code and
//! the command line, and the whole is resolved anew: a changed level chooses the defaults of what no
//! source names, rules between keys hold, and a problem is told as at start-up. Files are not read
//! again, so what an operator prepares for the next start does not come along.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    Config, ConfigError, Note, Origin,
    loader::{self, Refused, Sources},
    setting::Raw,
    source::{Gathered, Named},
    tree::{self, Alias, Key},
};

/// A key and the value that it should have.
///
/// The key is one of ours or another name of it in any case, such as `cache_ttl`. The value is a
/// text as the environment would have it, a number, a boolean or a list of texts; `null` takes an
/// earlier change of the key back.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key.
    pub path: String,
    /// Its value.
    pub value: Value,
}

impl Setting {
    /// Returns the key's own name where `path` is another name of it.
    #[must_use]
    pub fn key(&self) -> &str {
        alias(&self.path).map_or(&self.path, |(key, _)| key.path)
    }

    /// Returns the value without what is secret of it.
    #[must_use]
    pub fn shown(&self) -> Value {
        let Some(key) = tree::find(self.key()) else { return Value::Null };
        match &self.value {
            Value::String(text) => Value::String((key.redact)(text)),
            Value::Array(items) => items
                .iter()
                .map(|item| match item.as_str() {
                    Some(text) => Value::String((key.redact)(text)),
                    None => Value::Null,
                })
                .collect(),
            Value::Object(_) => Value::Null,
            value => value.clone(),
        }
    }
}

impl<P: Into<String>> From<(P, Value)> for Setting {
    fn from((path, value): (P, Value)) -> Self {
        Self { path: path.into(), value }
    }
}

/// Tells what it takes for another value of a key to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It counts at once.
    Live,
    /// It counts after the next start.
    Restart,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Live => "live",
            Self::Restart => "restart",
        })
    }
}

impl Serialize for Effect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Tells one key whose value two configurations have differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The value before, without secrets.
    pub from: String,
    /// The value after, without secrets.
    pub to: String,
    /// What it takes for the value after to count.
    pub effect: Effect,
}

/// The key of which a live change can only lower the value that it had at the start.
const THREADS: &str = "scheduler.cpu.threads";

impl Config {
    /// Makes the configuration that results when `changes` are put on top of this one's sources.
    ///
    /// Changes stay on top of each other; a `null` takes that of its key back. Where several name
    /// the same key, its own name wins, as in the environment. `by` is who makes them, for
    /// [`origin`](Self::origin).
    ///
    /// # Errors
    ///
    /// When a change names no key, or the whole would not load, with every problem. This one stays
    /// as it is in any case.
    ///
    /// # Cost
    ///
    /// That of loading, without reading files, except for keys of encryption that changed.
    ///
    /// # Examples
    ///
    /// ```
    /// use serde_json::json;
    /// use ultra_perf::config::{ConfigLoader, Effect, Setting};
    ///
    /// let before = ConfigLoader::new().set("cache.disk.enabled", "false", "the program").load()?;
    /// let after = before.with(&[Setting::from(("cache_ttl", json!(600)))], "ada")?;
    /// let difference = &before.differences(&after)[0];
    /// assert_eq!((&*difference.key, &*difference.to), ("cache.ttl", "10m"));
    /// assert_eq!(difference.effect, Effect::Live);
    /// assert_eq!(after.origin("cache.ttl").unwrap().to_string(), "changed by ada");
    /// # Ok::<_, ultra_perf::config::ConfigError>(())
    /// ```
    pub fn with(&self, changes: &[Setting], by: &str) -> Result<Self, ConfigError> {
        let mut sources = Sources::clone(&self.sources);
        let refused = sources.change(changes, &Origin::Change { by: by.to_owned() });
        loader::resolve(sources, refused, Some(self))
    }

    /// Makes the configuration that would have been loaded with these keys and values in code, too.
    #[cfg(any(feature = "__parts", test))]
    pub(crate) fn with_code(
        &self,
        settings: &[(String, String)],
        name: &str,
    ) -> Result<Self, ConfigError> {
        let mut sources = Sources::clone(&self.sources);
        let mut gathered = Gathered::default();
        for (path, value) in settings {
            gathered.set(path, value, name);
        }
        let Gathered { values, problems, invalid, .. } = gathered;
        for (path, given) in values {
            sources.values.entry(path).or_default().extend(given);
        }
        loader::resolve(sources, Refused { problems, invalid }, Some(self))
    }

    /// Makes this the configuration that the parts are started with.
    #[cfg(any(feature = "__parts", test))]
    pub(crate) fn started(mut self) -> Self {
        self.threads_at_start = self.scheduler.cpu.threads;
        self
    }

    /// Returns the settings that take `changes` back where they were put on top of this one: to the
    /// earlier change of each key, or to none.
    ///
    /// Names that are no keys are left out. A value may be a secret that this one has.
    ///
    /// # Examples
    ///
    /// ```
    /// use serde_json::json;
    /// use ultra_perf::config::{ConfigLoader, Setting};
    ///
    /// let first = ConfigLoader::new().set("cache.disk.enabled", "false", "the program").load()?;
    /// let second = first.with(&[Setting::from(("cache.ttl", json!("5m")))], "ada")?;
    /// let changes = [Setting::from(("cache.ttl", json!("10m"))), ("level", json!("ultra")).into()];
    /// let third = second.with(&changes, "ada")?;
    /// let undone = third.with(&second.inverse(&changes), "ada")?;
    /// assert!(second.differences(&undone).is_empty());
    /// # Ok::<_, ultra_perf::config::ConfigError>(())
    /// ```
    #[must_use]
    pub fn inverse(&self, changes: &[Setting]) -> Vec<Setting> {
        let of_key = |Setting { path, .. }: &Setting| match alias(path) {
            Some((key, _)) => Some(key.path.to_owned()),
            None => tree::find(path).map(|_| path.clone()),
        };
        let paths: BTreeSet<String> = changes.iter().filter_map(of_key).collect();
        let before = |path: String| {
            let value = self.sources.changes.get(&path).map_or(Value::Null, |it| it.raw.json());
            Setting { path, value }
        };
        paths.into_iter().map(before).collect()
    }

    /// Lists the keys whose values differ in `after`, in the order of the reference.
    ///
    /// A level differs as itself and in every key that follows it.
    #[must_use]
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        self.compare(after, &mut |path, key, [from, to]| {
            let lowered = |from: &str| Some(to.parse::<usize>().ok()? <= from.parse().ok()?);
            let effect = match path.as_str() {
                THREADS if lowered(&self.threads_at_start.to_string()) != Some(true) => {
                    Effect::Restart
                }
                _ => key.effect,
            };
            differences.push(Difference { key: path, from, to, effect });
        });
        differences
    }
}

/// The effective change of one key.
#[derive(Clone)]
pub(super) struct Changed {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
    /// What is worth knowing about it.
    pub(super) notes: Vec<Note>,
}

impl Sources {
    /// Puts changes on top of what is there; returns what is wrong with them.
    fn change(&mut self, changes: &[Setting], origin: &Origin) -> Refused {
        let mut gathered = Gathered::default();
        let mut aliased: BTreeMap<&'static str, (&'static Key, Vec<Named>)> = BTreeMap::new();
        for Setting { path, value } in changes {
            let alias = alias(path);
            let key = tree::find(path).or(alias.map(|(key, _)| key));
            match (value, key, alias) {
                (_, None, _) => gathered.refuse_name_or_alias(path, origin.clone()),
                (Value::Null, Some(key), Some(_)) => drop(self.changes.remove(key.path)),
                (Value::Null, ..) => drop(self.changes.remove(path)),
                (value, Some(key), Some((_, alias))) => match text_of(value) {
                    Some(value) => {
                        let named = Named { alias, name: path.clone(), value };
                        aliased.entry(key.path).or_insert((key, Vec::new())).1.push(named);
                    }
                    None => gathered.give(key.path, raw_of(value), origin.clone()),
                },
                (value, Some(_), None) => gathered.give(path, raw_of(value), origin.clone()),
            }
        }
        for (path, (key, named)) in aliased {
            let own = gathered.values.contains_key(path).then(|| path.to_owned());
            gathered.aliases(key, own, &named, |_| origin.clone());
        }
        let Gathered { values, problems, notes, invalid, .. } = gathered;
        for (path, mut given) in values {
            let Some((raw, origin)) = given.pop() else { continue };
            let notes = notes.iter().filter(|note| note.key == path).cloned().collect();
            self.changes.insert(path, Changed { raw, origin, notes });
        }
        Refused { problems, invalid }
    }
}

/// The key that has `name` as another name, in any case.
fn alias(name: &str) -> Option<(&'static Key, &'static Alias)> {
    tree::fixed_keys().find_map(|key| {
        let alias = key.aliases.iter().find(|alias| alias.name.eq_ignore_ascii_case(name))?;
        Some((key, alias))
    })
}

fn raw_of(value: &Value) -> Raw {
    match value {
        Value::Null => Raw::Other("null"),
        Value::Bool(yes) => Raw::Boolean(*yes),
        Value::Number(number) => match number.as_i128() {
            Some(number) => Raw::Integer(number),
            None => Raw::Float(number.to_string()),
        },
        Value::String(text) => Raw::Text(text.clone()),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map_or(Raw::Other("a list of other things than texts"), Raw::List),
        Value::Object(_) => Raw::Other("an object"),
    }
}

/// A value as a variable of the environment would hold it.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The most keys that one object may hold, and the most objects within each other.
const KEYS_MAX: usize = 10_000;
const DEPTH_MAX: usize = 8;

/// Says why a JSON value is no set of changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlattenError {
    /// It is no object.
    #[error("must be an object with a member for each key, and is {0}")]
    NoObject(&'static str),
    /// It has more members than a configuration has keys.
    #[error("must be an object of at most {KEYS_MAX} keys")]
    TooLarge,
    /// Its objects are within each other more often than any key has parts.
    #[error("{0}: must be at most {DEPTH_MAX} objects within each other")]
    TooDeep(String),
}

/// Takes a JSON object apart into keys and their values, for [`Config::with`].
///
/// Keys may stand flat, as `{"cache.ttl": "10m", "cache_ttl": 600}`, or within each other, as
/// `{"cache": {"ttl": "10m"}}`. Whether there are such keys is not looked at.
///
/// # Errors
///
/// When the value is no object, or one that is larger or deeper than a configuration can be.
pub fn flatten(value: &Value) -> Result<Vec<(String, Value)>, FlattenError> {
    let Value::Object(_) = value else {
        return Err(FlattenError::NoObject(match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        }));
    };
    let mut flat = Vec::new();
    flatten_into(&mut flat, "", value, 0)?;
    Ok(flat)
}

fn flatten_into(
    flat: &mut Vec<(String, Value)>,
    path: &str,
    value: &Value,
    depth: usize,
) -> Result<(), FlattenError> {
    let Value::Object(members) = value else {
        flat.push((path.to_owned(), value.clone()));
        return if flat.len() > KEYS_MAX { Err(FlattenError::TooLarge) } else { Ok(()) };
    };
    if depth == DEPTH_MAX {
        return Err(FlattenError::TooDeep(path.to_owned()));
    }
    for (name, value) in members {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        flatten_into(flat, &path, value, depth + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::loader, *};

    fn start(text: &str) -> Config {
        loader().toml("f", text).load().unwrap()
    }

    fn with(before: &Config, body: &Value) -> Result<Config, ConfigError> {
        let changes = flatten(body).unwrap().into_iter().map(Setting::from);
        before.with(&changes.collect::<Vec<_>>(), "ada")
    }

    /// The differences, as `key: from -> to (effect)`.
    fn told(before: &Config, after: &Config) -> Vec<String> {
        let told =
            |it: &Difference| format!("{}: {} -> {} ({})", it.key, it.from, it.to, it.effect);
        before.differences(after).iter().map(told).collect()
    }

    fn check(body: &Value, expected: &[&str]) {
        let before = start("cache.ttl = '5m'");
        let after = with(&before, body).unwrap();
        assert_eq!(told(&before, &after), expected, "{body}");
        assert!(told(&after, &after).is_empty());
        for difference in before.differences(&after) {
            assert_eq!(after.explain().get(&difference.key).unwrap().value, difference.to);
        }
    }

    #[test]
    fn a_change_is_the_strongest_source() {
        check(&json!({}), &[]);
        check(&json!({ "cache.ttl": "5m" }), &[]);
        check(&json!({ "cache.ttl": "10m" }), &["cache.ttl: 5m -> 10m (live)"]);
        check(&json!({ "cache": { "ttl": "10m" } }), &["cache.ttl: 5m -> 10m (live)"]);
        check(&json!({ "cache_ttl": 600 }), &["cache.ttl: 5m -> 10m (live)"]);
        check(&json!({ "CACHE_TTL": "10m" }), &["cache.ttl: 5m -> 10m (live)"]);
        check(
            &json!({ "server.workers": 8, "log": { "level": "debug" }, "cache.order": ["disk", "redis"] }),
            &[
                "server.workers: 4 -> 8 (restart)",
                "cache.order: redis,disk -> disk,redis (restart)",
                "log.level: info -> debug (live)",
            ],
        );
        check(
            &json!({ "enable_circuit_breakers": false, "memory_limit_gb": 1.5 }),
            &[
                "balancer.breaker.mode: auto -> off (restart)",
                "memory.limit: none -> 1536MiB (restart)",
            ],
        );
        check(
            &json!({ "caches": { "users": { "ttl": "1m", "prefetch": true } } }),
            &["caches.users.ttl: none -> 1m (live)", "caches.users.prefetch: none -> true (live)"],
        );
        let after = with(&start(""), &json!({ "cache.ttl": "10m" })).unwrap();
        assert_eq!(after.origin("cache.ttl"), Some(&Origin::Change { by: "ada".to_owned() }));
    }

    #[test]
    fn a_change_of_level_changes_what_follows_from_it_and_nothing_that_was_set() {
        let before = start("cache.stale_if_error = '1m'");
        let after = with(&before, &json!({ "level": "ultra" })).unwrap();
        let told = told(&before, &after);
        assert_eq!(told[0], "level: advanced -> ultra (live)");
        for line in [
            "cache.policy: s3-fifo -> adaptive (live)",
            "cache.prefetch: false -> true (live)",
            "response_cache.stale_if_error: 0s -> 5m (live)",
        ] {
            assert!(told.contains(&line.to_owned()), "{line} not in {told:#?}");
        }
        assert!(!told.iter().any(|line| line.starts_with("cache.stale_if_error")), "{told:#?}");
    }

    #[test]
    fn changes_stay_on_top_of_each_other_until_they_are_taken_back() {
        let first = start("");
        let second = with(&first, &json!({ "cache.ttl": "10m", "cache_max_size": 7 })).unwrap();
        let third = with(&second, &json!({ "cache.policy": "lru" })).unwrap();
        assert_eq!(third.cache.ttl.as_secs(), 600);
        let back = with(&third, &json!({ "cache_ttl": null, "log.level": null })).unwrap();
        assert_eq!(told(&third, &back), ["cache.ttl: 10m -> 1h (live)"]);
        assert_eq!(back.origin("cache.ttl"), Some(&Origin::Default));
        assert_eq!(back.cache.memory.entries, Some(7));
        let none = json!({ "cache.policy": null, "cache.memory": { "entries": null } });
        assert_eq!(told(&first, &with(&back, &none).unwrap()), [""; 0]);
    }

    #[test]
    fn the_inverse_of_a_change_leads_to_the_changes_before_it() {
        let first = start("cache.policy = 'lfu'");
        let earlier =
            json!({ "CACHE_TTL": 90, "cache.order": ["disk", "redis"], "max_workers": 3 });
        let second = with(&first, &earlier).unwrap();
        let body = json!({
            "cache.ttl": "1m", "cache_max_size": 5, "cache.policy": "lru", "level": "extreme",
            "cache.order": "redis,disk", "scheduler.blocking.max": 9, "caches.users.ttl": "1m",
        });
        let changes: Vec<_> = flatten(&body).unwrap().into_iter().map(Setting::from).collect();
        let third = second.with(&changes, "ada").unwrap();
        assert!(third.differences(&second).len() > 20);
        let undone = third.with(&second.inverse(&changes), "ada").unwrap();
        assert_eq!(told(&second, &undone), [""; 0]);
        assert_eq!(undone.origin("cache.policy"), first.origin("cache.policy"));
        let redone = undone.with(&third.inverse(&changes), "ada").unwrap();
        assert_eq!(told(&third, &redone), [""; 0]);
        assert_eq!(first.inverse(&[Setting::from(("no.key", json!(1)))]), []);
    }

    #[test]
    fn threads_can_be_fewer_than_at_the_start_and_not_more() {
        let before = start("scheduler.cpu.threads = 4");
        let less = with(&before, &json!({ "max_processes": 2 })).unwrap();
        assert_eq!(told(&before, &less), ["scheduler.cpu.threads: 4 -> 2 (live)"]);
        let back = with(&less, &json!({ "scheduler.cpu.threads": 3 })).unwrap();
        assert_eq!(told(&less, &back), ["scheduler.cpu.threads: 2 -> 3 (live)"]);
        let started = less.clone().started();
        let back = with(&started, &json!({ "scheduler.cpu.threads": 3 })).unwrap();
        assert_eq!(told(&started, &back), ["scheduler.cpu.threads: 2 -> 3 (restart)"]);
        let more = with(&less, &json!({ "scheduler.cpu.threads": 5 })).unwrap();
        assert_eq!(told(&less, &more), ["scheduler.cpu.threads: 2 -> 5 (restart)"]);
    }

    #[test]
    fn every_problem_of_a_change_is_told_at_once() {
        let before = start("response_cache.max_body = '4MiB'");
        let body = json!({
            "cache.tll": "1h",
            "cache.ttl": 60,
            "cache": { "memory": { "capacity": "1MiB" } },
            "caches": { "a b": { "ttl": "1h" } },
            "ENABLE_PROMETHEUS": "maybe",
            "log.level": { "a": ["debug", 1] },
            "server.to": [1],
        });
        let error = with(&before, &body).unwrap_err().to_string();
        for expected in [
            "invalid configuration, 7 problems:",
            "cache.tll: unknown key, did you mean cache.ttl?\n      from changed by ada",
            "cache.ttl = 60: must be a duration with a unit",
            "response_cache.max_body = \"4MiB\": must be at most cache.memory.capacity (1MiB)\n      from f:1",
            "caches = \"a b\": must be tables named",
            "server.metrics_listen = \"maybe\": must be true or false",
            "log.level.a: unknown key",
            "server.to = a list of other things than texts: must be",
        ] {
            assert!(error.contains(expected), "{expected} not in {error}");
        }
    }

    #[test]
    fn two_names_of_a_key_in_one_change_are_noted_once() {
        let mut config = start("");
        for _ in 0..3 {
            let body = json!({ "cache_ttl": 60, "cache.ttl": "2m", "REDIS_MAX_CONNECTIONS": 50 });
            config = with(&config, &body).unwrap();
            assert_eq!(config.cache.ttl.as_secs(), 120);
            let notes: Vec<_> = config.notes().iter().map(|note| &*note.message).collect();
            let expected = [
                "lowered from 50 to 2, the most that is of use",
                "cache_ttl is ignored, because cache.ttl is set too",
            ];
            assert_eq!(notes, expected);
        }
    }

    #[test]
    fn a_change_of_a_secret_is_a_difference_that_does_not_tell_it() {
        let before = start("cache.redis.url = 'redis://:hunter1@h'");
        let after = with(&before, &json!({ "cache.redis.url": "redis://:hunter2@h" })).unwrap();
        assert_eq!(
            told(&before, &after),
            ["cache.redis.url: redis://:***@h -> redis://:***@h (restart)"]
        );
        assert!(!format!("{after:?}").contains("hunter"));
        for (path, value, shown) in [
            ("REDIS_URL", json!("redis://:hunter2@h"), json!("redis://:***@h")),
            ("cache.redis.url", json!("hunter2"), json!("***")),
            ("cache.redis.url", json!({ "a": "hunter2" }), json!(null)),
            ("no.key", json!("hunter2"), json!(null)),
            ("cache.encryption.keys", json!(["1=hex:hunter2", 2]), json!(["***", null])),
            ("cache_ttl", json!(600), json!(600)),
        ] {
            assert_eq!(Setting::from((path, value)).shown(), shown, "{path}");
        }
    }

    #[test]
    fn keys_of_encryption_are_not_fetched_again_for_another_change() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, [7; 32]).unwrap();
        let path = file.display();
        let text = format!(
            "cache.encryption.keys = ['1=file:{path}']\nbalancer.sticky_key = 'file:{path}'"
        );
        let before = start(&text);
        std::fs::remove_file(&file).unwrap();
        let after = with(&before, &json!({ "cache.ttl": "1m" })).unwrap();
        assert_eq!(after.signing_key(), before.signing_key());
        let other = json!({ "balancer.sticky_key": "file:/nowhere/key" });
        assert!(with(&after, &other).unwrap_err().to_string().contains("/nowhere/key"));
    }

    #[test]
    fn the_caches_of_changes_are_bounded_with_the_others() {
        let mut config =
            start(&(0..998).map(|at| format!("caches.c{at}.ttl = '1m'\n")).collect::<String>());
        for name in ["x", "y", "c1"] {
            config = with(&config, &json!({ format!("caches.{name}.ttl"): "2m" })).unwrap();
        }
        assert_eq!(config.caches.len(), 1_000);
        let error = with(&config, &json!({ "caches.z.ttl": "2m" })).unwrap_err().to_string();
        assert!(error.contains("caches = more than 1000 tables: must be 1000 at most"), "{error}");
        let back = with(&config, &json!({ "caches.x.ttl": null, "caches.z.ttl": "2m" })).unwrap();
        assert_eq!(back.caches.len(), 1_000);
    }

    #[test]
    fn what_is_no_object_or_too_much_is_refused() {
        assert_eq!(flatten(&json!([])), Err(FlattenError::NoObject("a list")));
        let deep = (0..9).fold(json!(1), |inner, _| json!({ "a": inner }));
        assert_eq!(flatten(&deep), Err(FlattenError::TooDeep("a.a.a.a.a.a.a.a".to_owned())));
        let many: serde_json::Map<_, _> =
            (0..=KEYS_MAX).map(|at| (at.to_string(), json!(1))).collect();
        assert_eq!(flatten(&Value::Object(many)), Err(FlattenError::TooLarge));
        let flat = flatten(&json!({ "a": { "b": [1], "c": {} }, "d.e": null })).unwrap();
        let expected = [("a.b".to_owned(), json!([1])), ("d.e".to_owned(), Value::Null)];
        assert_eq!(flat, expected);
    }
}
