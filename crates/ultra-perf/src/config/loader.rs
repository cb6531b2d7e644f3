//! From sources to a checked tree.
//!
//! Three passes: gather what every source gives per key, check each given value alone (also one
//! that is overridden, because it is wrong all the same), then put the tree together and check
//! what must hold between keys. A rule between keys is skipped where one of them is already wrong.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config, ConfigError, Explanation, Note, Origin, Problem,
    change::Changed,
    level,
    machine::Machine,
    quantity::{ByteSize, format_duration},
    setting::{CompressionMethod, DiskEngine, KeyType, OptimizationLevel, Raw},
    source::{Gathered, Given, too_many_caches},
    tree::{
        self, Advice, BACKENDS, Balancer, CACHES_MAX, Cache, CacheSettings, Context, DefaultValue,
        ENV_PREFIX, Encryption, Key, Log, Monitor, Parts, ProcessMemory, Resolve, ResponseCache,
        Scheduler, Server, Targets,
    },
};

/// Collects the sources of a configuration and makes a [`Config`] of them.
///
/// Nothing is read from the process unless asked for: without a source the result is the defaults.
/// Between two sources of the same kind the later one wins.
#[derive(Clone, Default)]
#[must_use = "a loader does nothing until it loads"]
pub struct ConfigLoader {
    files: Vec<FileSource>,
    env: BTreeMap<String, String>,
    unreadable_env: Vec<String>,
    code: Vec<(String, String, String)>,
    required: Vec<(String, String)>,
    machine: Option<Machine>,
    parts: Option<Parts>,
}

#[derive(Clone)]
enum FileSource {
    Read { path: PathBuf, required: bool },
    Text { path: PathBuf, text: String },
}

/// Names the sources without their values, of which some are secrets.
impl fmt::Debug for ConfigLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |source: &FileSource| match source {
            FileSource::Read { path, .. } | FileSource::Text { path, .. } => path.clone(),
        };
        f.debug_struct("ConfigLoader")
            .field("files", &self.files.iter().map(file).collect::<Vec<_>>())
            .field("env", &self.env.keys())
            .field("code", &self.code.iter().map(|(path, ..)| path).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// File that [`ConfigLoader::default_file`] looks for.
const DEFAULT_FILE: &str = "ultra-perf.toml";

impl ConfigLoader {
    /// Starts without any source.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a TOML file that must exist.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(FileSource::Read { path: path.into(), required: true });
        self
    }

    /// Adds `ultra-perf.toml` of the working directory if there is one.
    pub fn default_file(self) -> Self {
        self.optional_file(DEFAULT_FILE)
    }

    /// Adds a TOML file if it exists.
    pub fn optional_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(FileSource::Read { path: path.into(), required: false });
        self
    }

    /// Adds the text of a TOML file; problems name it `name`.
    pub fn toml(mut self, name: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.files.push(FileSource::Text { path: name.into(), text: text.into() });
        self
    }

    /// Adds variables: `ULTRA_PERF__CACHE__TTL=1h`, `REDIS_URL` and the other aliases.
    ///
    /// Names that have nothing to do with this configuration are passed over.
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(variables);
        self
    }

    /// Adds the environment of this process.
    ///
    /// A variable of ours that is not UTF-8 is a problem; others are passed over.
    pub fn process_env(self) -> Self {
        self.os_env(std::env::vars_os())
    }

    pub(super) fn os_env(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        for (name, value) in variables {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => drop(self.env.insert(name, value)),
                Err(_) if name.starts_with(ENV_PREFIX) => self.unreadable_env.push(name),
                Err(_) => {}
            }
        }
        self
    }

    /// Sets a key from code or the command line, in the spelling of the environment.
    ///
    /// `origin` is what problems and explanations call it, such as `--to`.
    pub fn set(
        mut self,
        path: impl Into<String>,
        value: impl Into<String>,
        origin: impl Into<String>,
    ) -> Self {
        self.code.push((path.into(), value.into(), origin.into()));
        self
    }

    /// Makes it a problem if the key `path`, which may be `none`, has no value.
    ///
    /// `way` is how the caller's users set it, such as `--to`; the report adds the environment and
    /// the file.
    pub fn require(mut self, path: impl Into<String>, way: impl Into<String>) -> Self {
        self.required.push((path.into(), way.into()));
        self
    }

    /// Takes the machine's figures from `machine` instead of reading them.
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    #[cfg(test)]
    pub(super) fn parts(mut self, parts: Parts) -> Self {
        self.parts = Some(parts);
        self
    }

    /// Reads the sources, checks everything and puts the tree together.
    ///
    /// # Errors
    ///
    /// When anything is wrong in any source, with every problem.
    ///
    /// # Cost
    ///
    /// Reads files and blocks; meant for start-up.
    pub fn load(self) -> Result<Config, ConfigError> {
        let context = Context {
            machine: self.machine.clone().unwrap_or_else(Machine::detect),
            parts: self.parts.unwrap_or(Parts::compiled()),
        };
        let Gathered { values, problems, notes, invalid, .. } = self.gather();
        let (env, required) = (self.env, self.required);
        let sources = Sources { values, changes: BTreeMap::new(), notes, env, required, context };
        resolve(sources, Refused { problems, invalid }, None)
    }

    fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        for file in &self.files {
            match file {
                FileSource::Read { path, required } => gathered.file(path, *required),
                FileSource::Text { path, text } => gathered.toml(path, text.as_bytes()),
            }
        }
        for name in &self.unreadable_env {
            gathered.problems.push(Problem::Invalid {
                path: name.clone(),
                value: "\"***\"".to_owned(),
                expected: "must be UTF-8".to_owned(),
                origin: Origin::Env { name: name.clone() },
            });
        }
        gathered.env(&self.env);
        for (path, value, origin) in &self.code {
            gathered.set(path, value, origin);
        }
        gathered
    }
}

/// What a configuration is made of, of which some is secret.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) values: Given,
    /// Changes that were made since it was loaded.
    pub(super) changes: BTreeMap<String, Changed>,
    notes: Vec<Note>,
    env: BTreeMap<String, String>,
    required: Vec<(String, String)>,
    context: Context,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("changes", &self.changes.keys()).finish_non_exhaustive()
    }
}

/// What is wrong with the sources themselves.
pub(super) struct Refused {
    pub(super) problems: Vec<Problem>,
    /// Keys whose value is among the problems already.
    pub(super) invalid: BTreeMap<String, String>,
}

/// Checks everything and puts the tree together.
///
/// Keys that sign or encrypt are fetched unless `before` has them already.
pub(super) fn resolve(
    sources: Sources,
    refused: Refused,
    before: Option<&Config>,
) -> Result<Config, ConfigError> {
    let Refused { mut problems, invalid } = refused;
    let sources = Arc::new(sources);
    let mut values = sources.values.clone();
    let mut notes = sources.notes.clone();
    for (path, Changed { raw, origin, notes: of_change }) in &sources.changes {
        values.entry(path.clone()).or_default().push((raw.clone(), origin.clone()));
        notes.extend_from_slice(of_change);
    }
    let names = values.keys().filter_map(|path| tree::of_cache(path));
    let names: BTreeSet<_> = names.map(|(name, _)| name.to_owned()).collect();
    if names.len() > CACHES_MAX {
        problems.push(too_many_caches(&values));
    }
    let mut resolver = Resolver::new(&values, &sources.context, &names);
    let level = resolver.value(tree::LEVEL, OptimizationLevel::read);
    resolver.level = level;
    let mut config = Config {
        level,
        server: Server::resolve(&mut resolver),
        balancer: Balancer::resolve(&mut resolver),
        response_cache: ResponseCache::resolve(&mut resolver),
        cache: Cache::resolve(&mut resolver),
        caches: resolver.caches(&names),
        memory: ProcessMemory::resolve(&mut resolver),
        scheduler: Scheduler::resolve(&mut resolver),
        monitor: Monitor::resolve(&mut resolver),
        advice: Advice::resolve(&mut resolver),
        targets: Targets::resolve(&mut resolver),
        log: Log::resolve(&mut resolver),
        #[cfg(feature = "encryption")]
        encryption: None,
        signing_key: None,
        origins: resolver.origins,
        notes: Vec::new(),
        threads_at_start: 0,
        sources: Arc::clone(&sources),
    };
    config.threads_at_start =
        before.map_or(config.scheduler.cpu.threads, |before| before.threads_at_start);
    problems.append(&mut resolver.problems);
    resolver.invalid.extend(invalid);
    let mut together = Together {
        config: &mut config,
        given: &values,
        parts: sources.context.parts,
        problems,
        invalid: resolver.invalid,
        notes,
    };
    together.check();
    together.check_encryption(&sources.env, before);
    together.check_signing_key(&sources.env, before);
    together.check_required(&sources.required);
    let Together { problems, notes, invalid, .. } = together;
    config.notes = notes;
    if problems.is_empty() {
        return Ok(config);
    }
    Err(ConfigError { problems, explanation: Explanation::of(&config, &invalid) })
}

/// Finds the effective value of each key, and what is wrong with any that was given.
struct Resolver<'a> {
    given: &'a Given,
    context: &'a Context,
    level: OptimizationLevel,
    /// The cache of which keys are resolved, if it is one of those.
    cache: Option<&'a str>,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
    /// The keys whose effective value is wrong, with that value.
    invalid: BTreeMap<String, String>,
}

impl<'a> Resolver<'a> {
    fn new(given: &'a Given, context: &'a Context, caches: &BTreeSet<String>) -> Self {
        let mut new = Self {
            given,
            context,
            level: OptimizationLevel::default(),
            cache: None,
            origins: BTreeMap::new(),
            problems: Vec::new(),
            invalid: BTreeMap::new(),
        };
        for key in tree::fixed_keys() {
            new.check_given(key, key.path);
        }
        for cache in caches {
            for key in CacheSettings::KEYS {
                new.check_given(key, &key.path_in(cache));
            }
        }
        new
    }

    fn check_given(&mut self, key: &'static Key, path: &str) {
        let given = self.given.get(path).map_or(&[][..], Vec::as_slice);
        for (at, (raw, origin)) in given.iter().enumerate() {
            let Err(expected) = (key.check)(raw) else { continue };
            let value = raw.shown(key.redact);
            if at + 1 == given.len() {
                self.invalid.insert(path.to_owned(), value.clone());
            }
            let (path, origin) = (path.to_owned(), origin.clone());
            self.problems.push(Problem::Invalid { path, value, expected, origin });
        }
        if let Some((_, origin)) = given.last() {
            self.origins.insert(path.to_owned(), origin.clone());
        }
    }

    fn caches(&mut self, names: &'a BTreeSet<String>) -> BTreeMap<String, CacheSettings> {
        let mut caches = BTreeMap::new();
        for name in names {
            self.cache = Some(name);
            caches.insert(name.clone(), CacheSettings::resolve(self));
        }
        self.cache = None;
        caches
    }
}

impl Resolve for Resolver<'_> {
    fn value<T: KeyType>(&mut self, key: &'static Key, read: fn(&Raw) -> Result<T, String>) -> T {
        let path = self.cache.map_or(Cow::Borrowed(key.path), |name| key.path_in(name).into());
        let given = self.given.get(&*path).and_then(|given| given.last());
        if let Some(value) = given.and_then(|(raw, _)| read(raw).ok()) {
            return value;
        }
        let default = match key.default {
            DefaultValue::Fixed(text) => text.to_owned(),
            DefaultValue::Computed(_, compute) => compute(self.context),
        };
        let chosen = level::chosen(self.level, key.path).filter(|chosen| *chosen != default);
        if chosen.is_some() && given.is_none() {
            self.origins.insert(path.into_owned(), Origin::Level(self.level));
        }
        let text = chosen.map_or(default, str::to_owned);
        read(&Raw::Text(text)).expect("a default is within the bounds of its key")
    }
}

/// The smallest disk tier that keeps dictionaries.
const DICTIONARY_DISK: ByteSize = ByteSize::mib(16);

/// Checks what must hold between keys, and lets defaults give way to what was set.
struct Together<'a> {
    config: &'a mut Config,
    given: &'a Given,
    parts: Parts,
    problems: Vec<Problem>,
    invalid: BTreeMap<String, String>,
    notes: Vec<Note>,
}

impl Together<'_> {
    fn check(&mut self) {
        self.check_addresses();
        self.check_balancer();
        self.check_sizes();
        self.check_disk();
        self.check_redis();
        self.check_compression();
        self.check_scheduler();
        if self.config.memory.enabled && !self.parts.memory {
            self.refuse_part("memory.enabled", "memory");
        }
        if !self.parts.memory {
            self.without_part("memory.tracking", "memory", |config| &mut config.memory.tracking);
        }
        if !self.parts.monitor {
            self.without_part("advice.auto_apply", "monitor", |it| &mut it.advice.auto_apply);
            self.without_part("monitor.profiling", "monitor", |it| &mut it.monitor.profiling);
        }
    }

    /// Switches off what the level chose and the build lacks; whoever asked for it is told.
    fn without_part(
        &mut self,
        path: &'static str,
        feature: &str,
        switch: fn(&mut Config) -> &mut bool,
    ) {
        if self.given.contains_key(path) && *switch(self.config) {
            self.refuse_part(path, feature);
        } else {
            *switch(self.config) = false;
            self.back_to_default(path);
        }
    }

    /// Takes back the origin of a value that the level chose and that gave way.
    fn back_to_default(&mut self, path: &str) {
        if matches!(self.config.origins.get(path), Some(Origin::Level(_))) {
            self.config.origins.remove(path);
        }
    }

    fn check_scheduler(&mut self) {
        const RESERVED: &str = "scheduler.cpu.reserved";
        const THREADS: &str = "scheduler.cpu.threads";
        let cpu = &mut self.config.scheduler.cpu;
        if cpu.reserved < cpu.threads {
            return;
        }
        if self.given.contains_key(RESERVED) {
            let expected = format!("must be less than {THREADS} ({})", cpu.threads);
            self.refuse(RESERVED, &[THREADS], expected);
        } else {
            cpu.reserved = 0;
            self.back_to_default(RESERVED);
        }
    }

    fn check_addresses(&mut self) {
        let server = &self.config.server;
        let mut listeners = vec![("server.listen", server.listen), ("server.admin", server.admin)];
        listeners.extend(server.metrics_listen.map(|address| ("server.metrics_listen", address)));
        let to = server.to.clone();
        for (at, (key, address)) in listeners.iter().enumerate() {
            for (other, taken) in &listeners[..at] {
                let overlap = taken.ip() == address.ip()
                    || taken.ip().is_unspecified()
                    || address.ip().is_unspecified();
                if address.port() != 0 && taken.port() == address.port() && overlap {
                    let expected = format!("must have another port than {other} ({taken})");
                    self.refuse(key, &[other], expected);
                }
            }
        }
        for (key, address) in listeners {
            if to.iter().flatten().any(|backend| backend.url.reaches(address)) {
                let expected = format!("must be another address than {key} ({address})");
                self.refuse(BACKENDS, &[key], expected);
            }
        }
    }

    fn check_balancer(&mut self) {
        let balancer = &self.config.balancer;
        let times = [
            (
                "balancer.eject_time",
                balancer.eject_time,
                "balancer.eject_time_max",
                balancer.eject_time_max,
            ),
            (
                "balancer.breaker.open_time",
                balancer.breaker.open_time,
                "balancer.breaker.open_time_max",
                balancer.breaker.open_time_max,
            ),
        ];
        for (key, least, most_key, most) in times {
            if least > most {
                let expected = format!("must be at most {most_key} ({})", format_duration(most));
                self.refuse(key, &[most_key], expected);
            }
        }
    }

    /// Fetches the key that signs the cookies of sessions.
    fn check_signing_key(&mut self, env: &BTreeMap<String, String>, before: Option<&Config>) {
        const KEY: &str = "balancer.sticky_key";
        let Some(source) = self.config.balancer.sticky_key.clone() else { return };
        if let Some(before) = before
            && before.balancer.sticky_key.as_ref() == Some(&source)
        {
            self.config.signing_key.clone_from(&before.signing_key);
            return;
        }
        match source.resolve(env) {
            Ok(key) => self.config.signing_key = Some(key),
            Err(expected) => self.refuse(KEY, &[], expected),
        }
    }

    fn check_sizes(&mut self) {
        let capacity = self.config.cache.memory.capacity;
        let because = "cache.memory.capacity";
        let max_body = &mut self.config.response_cache.max_body;
        if *max_body > capacity {
            if self.given.contains_key("response_cache.max_body") {
                let expected = format!("must be at most {because} ({capacity})");
                self.refuse("response_cache.max_body", &[because], expected);
            } else {
                *max_body = capacity;
            }
        }
        if self.config.cache.compression_threshold > capacity {
            let expected = format!(
                "must be at most {because} ({capacity}), or nothing would be compressed; for that \
                 there is cache.compression = false"
            );
            self.refuse("cache.compression_threshold", &[because], expected);
        }
    }

    fn check_disk(&mut self) {
        let disk = &mut self.config.cache.disk;
        if !disk.enabled {
            return;
        }
        if !self.parts.disk {
            self.refuse_part("cache.disk.enabled", "disk");
        } else if disk.path.is_none() {
            if self.given.contains_key("cache.disk.enabled")
                || self.given.contains_key("cache.disk.path")
            {
                self.missing("cache.disk.path", "the path of a directory".to_owned(), None);
            } else {
                disk.enabled = false;
                self.notes.push(Note {
                    key: "cache.disk.enabled",
                    message: "the disk tier is off, because without a home directory \
                              cache.disk.path has no default"
                        .to_owned(),
                    origin: Origin::Default,
                });
            }
        } else if disk.engine == DiskEngine::Sled && !self.parts.sled {
            self.refuse_part("cache.disk.engine", "sled");
        }
    }

    fn check_compression(&mut self) {
        const METHOD: &str = "cache.compression_method";
        let cache = &self.config.cache;
        if cache.compression_method == CompressionMethod::Lz4 && !self.parts.lz4 {
            self.refuse_part("cache.compression_method", "lz4");
        }
        let (disk, capacity) = (self.config.cache.disk.location(), self.config.cache.disk.capacity);
        let learns = self.config.cache.compression
            && self.config.cache.compression_method == CompressionMethod::ZstdDictionary;
        if learns && disk.is_some() && capacity < DICTIONARY_DISK {
            if self.given.contains_key(METHOD) {
                let expected = format!(
                    "must be another one, or cache.disk.capacity ({capacity}) at least \
                     {DICTIONARY_DISK}"
                );
                self.refuse(METHOD, &["cache.disk.capacity"], expected);
            } else {
                self.config.cache.compression_method = CompressionMethod::Zstd;
                self.back_to_default(METHOD);
            }
        }
    }

    /// Fetches the keys, and finds the one that writes.
    fn check_encryption(&mut self, env: &BTreeMap<String, String>, before: Option<&Config>) {
        const KEYS: &str = "cache.encryption.keys";
        const ACTIVE: &str = "cache.encryption.active";
        let Encryption { keys, active } = self.config.cache.encryption.clone();
        if let Some(before) = before
            && before.cache.encryption.keys == keys
            && before.cache.encryption.active == active
        {
            #[cfg(feature = "encryption")]
            self.config.encryption.clone_from(&before.encryption);
            return;
        }
        let Some(sources) = keys else {
            if active.is_some() {
                let expected = format!("must be \"none\" where {KEYS} has none");
                self.refuse(ACTIVE, &[KEYS], expected);
            }
            return;
        };
        if !self.parts.encryption {
            return self.refuse_part(KEYS, "encryption");
        }
        let ids: Vec<u32> = sources.ids().collect();
        let active = match (active, ids.as_slice()) {
            (None, [only]) => Some(*only),
            (None, _) => None,
            (Some(active), _) => ids.iter().copied().find(|id| *id as usize == active),
        };
        if active.is_none() && !self.invalid.contains_key(ACTIVE) {
            let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
            let expected = format!("must name the key that writes, one of {}", ids.join(", "));
            self.refuse(ACTIVE, &[KEYS], expected);
        }
        let mut resolved = Vec::new();
        for source in sources.iter() {
            match source.resolve(env) {
                Ok(key) => resolved.push((source.id, key)),
                Err(expected) => {
                    let value = format!("\"{source}\"");
                    let origin = self.config.origins.get(KEYS).unwrap_or(&Origin::Default).clone();
                    self.invalid.insert(KEYS.to_owned(), sources.show());
                    let path = KEYS.to_owned();
                    self.problems.push(Problem::Invalid { path, value, expected, origin });
                }
            }
        }
        #[cfg(feature = "encryption")]
        if let Some((id, key)) = resolved.iter().find(|(id, _)| Some(*id) == active) {
            let others = resolved.iter().filter(|other| other.0 != *id);
            let keys = cache_tiered::EncryptionKeys::new(*id, key);
            self.config.encryption =
                Some(others.fold(keys, |keys, (id, key)| keys.with_old(*id, key)));
        }
        // What has become of them is in the ciphers, or nowhere.
        resolved.iter_mut().for_each(|(_, key)| *std::hint::black_box(key) = [0; 32]);
    }

    fn check_redis(&mut self) {
        if self.parts.redis || self.config.cache.redis.url.is_none() {
            return;
        }
        let origin = self.config.origins.get("cache.redis.url");
        // Many environments carry a REDIS_URL for somebody else; that must not stop this build.
        if origin == Some(&Origin::Env { name: "REDIS_URL".to_owned() }) {
            self.config.cache.redis.url = None;
            self.config.origins.remove("cache.redis.url");
            self.notes.push(Note {
                key: "cache.redis.url",
                message: "ignored, because this build has no Redis tier (feature redis)".to_owned(),
                origin: Origin::Env { name: "REDIS_URL".to_owned() },
            });
        } else {
            self.refuse_part("cache.redis.url", "redis");
        }
    }

    fn check_required(&mut self, required: &[(String, String)]) {
        for (path, way) in required {
            match tree::find(path) {
                Some(key) if self.is_unset(key) => {
                    self.missing(key.path, (key.kind)().replace(", or \"none\"", ""), Some(way));
                }
                Some(_) => {}
                None => self.problems.push(Problem::Unknown {
                    name: path.clone(),
                    nearest: None,
                    origin: Origin::Code { name: way.clone() },
                }),
            }
        }
    }

    fn is_unset(&self, key: &Key) -> bool {
        let explanation = Explanation::of(self.config, &self.invalid);
        explanation.settings().iter().any(|row| row.key == key.path && row.value == "none")
    }

    fn refuse_part(&mut self, path: &'static str, feature: &str) {
        self.refuse(path, &[], format!("needs a build with the feature {feature}"));
    }

    /// Reports the effective value of `path`, unless it or one of `with` is wrong already.
    fn refuse(&mut self, path: &'static str, with: &[&'static str], expected: String) {
        if with.iter().any(|with| self.invalid.contains_key(*with)) {
            return;
        }
        let key = tree::find(path).expect("the rules name existing keys");
        let value = match self.given.get(path).and_then(|given| given.last()) {
            Some((raw, _)) => raw.shown(key.redact),
            None => {
                let rows = Explanation::of(self.config, &BTreeMap::new());
                let row = rows.settings().iter().find(|row| row.key == path);
                format!("\"{}\"", row.expect("every key is explained").value)
            }
        };
        if let Entry::Vacant(entry) = self.invalid.entry(path.to_owned()) {
            entry.insert(value.clone());
            let origin = self.config.origins.get(path).unwrap_or(&Origin::Default).clone();
            self.problems.push(Problem::Invalid { path: path.to_owned(), value, expected, origin });
        }
    }

    fn missing(&mut self, path: &'static str, expected: String, way: Option<&str>) {
        let in_file = format!("{path} in {}", self.file_name());
        let ways = way.map(str::to_owned).into_iter().chain([tree::env_name(path), in_file]);
        let ways = ways.collect();
        self.problems.push(Problem::Missing { path: path.to_owned(), expected, ways });
    }

    /// The file that the user seems to work with.
    fn file_name(&self) -> String {
        let file = self.config.origins.values().find_map(|origin| match origin {
            Origin::File { path, .. } => Some(path.as_path()),
            _ => None,
        });
        file.unwrap_or(Path::new(DEFAULT_FILE)).display().to_string()
    }
}
