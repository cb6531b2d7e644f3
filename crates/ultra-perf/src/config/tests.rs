//! Tests of the whole way from sources to a tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use proptest::prelude::*;

use super::{tree::Parts, *};

mod mutation;

fn machine() -> Machine {
    Machine {
        memory_bytes: 16 << 30,
        cores: 4,
        cache_dir: Some(PathBuf::from("/home/me/.cache")),
        state_dir: Some(PathBuf::from("/home/me/.local/state")),
        program: Some("ultra-perf".to_owned()),
    }
}

/// A loader with a fixed machine and every part.
pub(super) fn loader() -> ConfigLoader {
    ConfigLoader::new().machine(machine()).parts(Parts::ALL)
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    loader().toml("ultra-perf.toml", text).load()
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    loader().env(env(pairs)).load()
}

/// The value and origin that the explanation shows of `key`.
fn effective(config: &Config, key: &str) -> (String, String) {
    let explanation = config.explain();
    let row = explanation.settings().iter().find(|row| row.key == key).expect("a key");
    (row.value.clone(), row.origin.to_string())
}

/// The whole text of the problems of a configuration that must not load.
fn problems(loaded: Result<Config, ConfigError>) -> String {
    loaded.expect_err("the configuration is invalid").to_string()
}

/// The two lines of the only problem.
fn problem(loaded: Result<Config, ConfigError>) -> String {
    let text = problems(loaded);
    text.strip_prefix("invalid configuration, 1 problem:\n  ").expect(&text).to_owned()
}

#[test]
fn the_strongest_source_that_names_a_key_wins() {
    for sources in 0..8_u8 {
        let (file, env_, code) = (sources & 1 != 0, sources & 2 != 0, sources & 4 != 0);
        let mut loader = loader();
        // Registered in the opposite order of precedence, which must not matter.
        if code {
            loader = loader.set("cache.ttl", "3m", "--ttl");
        }
        if env_ {
            loader = loader.env(env(&[("ULTRA_PERF__CACHE__TTL", "2m")]));
        }
        if file {
            loader = loader.toml("my.toml", "[cache]\n\nttl = '1m'");
        }
        let expected = match (code, env_, file) {
            (true, ..) => ("3m", "--ttl"),
            (_, true, _) => ("2m", "ULTRA_PERF__CACHE__TTL"),
            (_, _, true) => ("1m", "my.toml:3"),
            _ => ("1h", "default"),
        };
        let config = loader.load().unwrap();
        let (value, origin) = effective(&config, "cache.ttl");
        assert_eq!((value.as_str(), origin.as_str()), expected);
        assert_eq!(config.origin("cache.ttl").unwrap().to_string(), expected.1);
        assert_eq!(config.origin("cache.write"), Some(&Origin::Default));
        assert_eq!(config.origin("cache.writes"), None);
    }
}

#[test]
fn a_level_chooses_what_no_source_names() {
    for (level, policy, origin, disk) in [
        ("basic", "s3-fifo", "default", "false"),
        ("advanced", "s3-fifo", "default", "true"),
        ("ultra", "adaptive", "level ultra", "true"),
        ("extreme", "adaptive", "level extreme", "true"),
    ] {
        for loader in [
            loader().toml("f", format!("level = '{level}'")),
            loader().env(env(&[("ULTRA_PERF__LEVEL", level)])),
            loader().set("level", level, "--level"),
        ] {
            let config = loader.load().unwrap();
            assert_eq!(config.level.to_string(), level);
            assert_eq!(effective(&config, "cache.policy"), (policy.to_owned(), origin.to_owned()));
            assert_eq!(effective(&config, "cache.disk.enabled").0, disk);
            assert_eq!(config.notes(), []);
        }
    }
    let own = "level = 'extreme'\n[cache]\npolicy = 'lru'\nstale_if_error = 'none'";
    let config = from_toml(own).unwrap();
    assert_eq!(effective(&config, "cache.policy").1, "ultra-perf.toml:3");
    assert_eq!(config.cache.stale_if_error, None);
    let told = problem(from_toml("level = 'Ultra'"));
    assert!(told.starts_with("level = \"Ultra\": must be \"basic\", \"advanced\", \"ultra\" or"));
    let told = problem(from_toml("cache.policy = 'lruu'\nlevel = 'ultra'"));
    assert!(told.starts_with("cache.policy = \"lruu\""), "{told}");
}

#[test]
fn what_a_level_chooses_gives_way_and_what_was_asked_for_does_not() {
    let extreme = || loader().set("level", "extreme", "--level");
    let one = Machine { cores: 1, ..machine() };
    let small = "cache.disk.capacity";
    for (loader, key, value) in [
        (extreme(), "scheduler.cpu.reserved", "1"),
        (extreme().machine(one.clone()), "scheduler.cpu.reserved", "0"),
        (extreme(), "cache.compression_method", "zstd-dictionary"),
        (extreme().set(small, "8MiB", "code"), "cache.compression_method", "zstd"),
        (extreme().parts(Parts { memory: false, ..Parts::ALL }), "memory.tracking", "false"),
        (extreme().parts(Parts { memory: false, ..Parts::ALL }), "memory.enabled", "false"),
        (extreme().parts(Parts { monitor: false, ..Parts::ALL }), "advice.auto_apply", "false"),
        (extreme().parts(Parts { monitor: false, ..Parts::ALL }), "monitor.profiling", "false"),
    ] {
        let config = loader.load().unwrap();
        let chosen = level::chosen(OptimizationLevel::Extreme, key) == Some(value);
        let origin = if chosen { "level extreme" } else { "default" };
        assert_eq!(effective(&config, key), (value.to_owned(), origin.to_owned()), "{key}");
    }
    for (loader, told) in [
        (
            loader().machine(one).set("scheduler.cpu.reserved", "1", "code"),
            "scheduler.cpu.reserved = \"1\": must be less than scheduler.cpu.threads (1)",
        ),
        (
            loader().set(small, "8MiB", "code").set(
                "cache.compression_method",
                "zstd-dictionary",
                "code",
            ),
            "cache.compression_method = \"zstd-dictionary\": must be another one, or \
             cache.disk.capacity (8MiB) at least 16MiB",
        ),
        (
            loader().parts(Parts { memory: false, ..Parts::ALL }).set(
                "memory.tracking",
                "true",
                "code",
            ),
            "memory.tracking = \"true\": needs a build with the feature memory",
        ),
    ] {
        assert_eq!(problem(loader.load()), format!("{told}\n      from code"));
    }
}

#[test]
fn a_cache_has_settings_of_its_own() {
    let text = "[caches.users]\nttl = '10m'\nprefetch = true\n\n[caches.Pages-2]\npolicy = 'lfu'\n\n\
                [caches.'shop.users.load']\nttl = '1m'\n";
    let config = loader()
        .toml("f", text)
        .env(env(&[
            ("ULTRA_PERF__CACHES__USERS__TTL", "5m"),
            ("ULTRA_PERF__CACHES__SHOP__USERS__LOAD__STALE_IF_ERROR", "1m"),
        ]))
        .set("caches.users.capacity", "64MiB", "the program")
        .load()
        .unwrap();
    let names: Vec<_> = config.caches.keys().collect();
    assert_eq!(names, ["Pages-2", "shop.users.load", "users"]);
    let users = &config.caches["users"];
    assert_eq!((users.ttl, users.prefetch), (Some(Duration::from_secs(300)), Some(true)));
    assert_eq!((users.capacity, users.entries), (Some(ByteSize::mib(64)), None));
    assert_eq!(config.caches["Pages-2"].policy, Some(Policy::Lfu));
    let minute = Some(Duration::from_secs(60));
    let load = &config.caches["shop.users.load"];
    assert_eq!((load.stale_if_error, load.ttl), (minute, minute));
    let explanation = config.explain();
    let shown: Vec<_> = explanation
        .settings()
        .iter()
        .filter(|row| row.key.starts_with("caches."))
        .map(|row| format!("{} {} {}", row.key, row.value, row.origin))
        .collect();
    let expected = [
        "caches.Pages-2.policy lfu f:6",
        "caches.shop.users.load.ttl 1m f:9",
        "caches.shop.users.load.stale_if_error 1m ULTRA_PERF__CACHES__SHOP__USERS__LOAD__STALE_IF_ERROR",
        "caches.users.ttl 5m ULTRA_PERF__CACHES__USERS__TTL",
        "caches.users.capacity 64MiB the program",
        "caches.users.prefetch true f:3",
    ];
    assert_eq!(shown, expected);
    assert_eq!(config.origin("caches.users.prefetch").unwrap().to_string(), "f:3");
    assert_eq!(config.origin("caches.users.entries"), Some(&Origin::Default));
    assert_eq!(config.origin("caches.users.tll"), None);
    let load = "caches.shop.users.load.ttl";
    assert_eq!(config.origin(load).unwrap().to_string(), "f:9");
    let set = loader().set(load, "3m", "code").load().unwrap();
    assert_eq!(set.caches["shop.users.load"].ttl, Some(Duration::from_secs(180)));
}

#[test]
fn what_is_wrong_with_the_settings_of_a_cache_is_told() {
    for (text, expected) in [
        (
            "[caches.users]\ntll = '1h'",
            "caches.users.tll: unknown key, did you mean caches.users.ttl?",
        ),
        ("[caches.users.ttl]\na = 1", "caches.users.ttl = a table: must be a duration"),
        ("caches.users.ttl = '0s'", "caches.users.ttl = \"0s\": must be at least 1ms, or \"none\""),
        ("caches.users = 1", "caches.users = 1: must be a table that begins with [caches.users]"),
        ("caches = 1", "caches = 1: must be a table for each cache, such as [caches.users]"),
        (
            "[[caches]]",
            "caches = a list of other things than texts: must be a table for each cache",
        ),
        ("[cachs.users]\nttl = '1h'", "cachs: unknown key, did you mean cache"),
        (
            "[caches.'a b']\nttl = '1h'",
            "caches = \"a b\": must be tables named with 1 to 64 letters",
        ),
        ("[caches.'*']\nttl = '1h'", "caches = \"*\": must be tables named"),
        ("[caches.'']\nttl = '1h'", "caches = \"\": must be tables named"),
        ("[caches.'..']\nttl = '1h'", "caches = \"..\": must be tables named"),
        (
            "[caches.shop.users.load]\nttl = '1h'",
            "caches.shop.users = a table: a name with points stands in quotes, as in \
             [caches.\"shop.users.load\"]",
        ),
        (
            "[caches.shop.'a b']\nttl = '1h'",
            "caches.shop.a b = a table: a name with points stands in quotes, as in [caches.\"shop.NAME\"]",
        ),
        (
            "[caches.'shop.load']\ntll = '1h'",
            "caches.shop.load.tll: unknown key, did you mean caches.shop.load.ttl?",
        ),
    ] {
        let told = problem(from_toml(text));
        assert!(told.starts_with(expected), "{text}\ntold: {told}");
        assert!(told.contains("\n      from ultra-perf.toml:"), "{told}");
    }
    for (name, expected) in [
        ("ULTRA_PERF__CACHES__USERS__TLL", ", did you mean ULTRA_PERF__CACHES__USERS__TTL?"),
        ("ULTRA_PERF__CACHES__USERS__ttl", ", did you mean ULTRA_PERF__CACHES__USERS__TTL?"),
        ("ULTRA_PERF__CACHES__*__TTL", ""),
        ("ULTRA_PERF__CACHES__TTL", ", did you mean ULTRA_PERF__CACHE__TTL?"),
        ("ULTRA_PERF_CACHES_USERS_TTL", ", did you mean ULTRA_PERF__CACHES__USERS__TTL?"),
    ] {
        let told = problem(from_env(&[(name, "1h")]));
        assert_eq!(told, format!("{name}: unknown key{expected}\n      from {name}"));
    }
    let told = problem(loader().set("caches.a b.ttl", "1h", "code").load());
    assert!(told.starts_with("caches = \"a b\": must be tables named with"), "{told}");
    let told = problem(loader().set("caches.*.ttl", "1h", "code").load());
    assert!(told.starts_with("caches = \"*\": must be tables named with"), "{told}");
}

#[test]
fn the_caches_with_settings_are_bounded() {
    let tables = |count: usize| {
        (0..count).map(|at| format!("[caches.c{at}]\nttl = '1h'\n")).collect::<String>()
    };
    assert_eq!(from_toml(&tables(1_000)).unwrap().caches.len(), 1_000);
    let told = problem(from_toml(&tables(1_500)));
    assert_eq!(
        told,
        "caches = more than 1000 tables: must be 1000 at most\n      from ultra-perf.toml:2002"
    );
}

#[test]
fn the_later_of_two_equal_sources_wins() {
    let config = loader()
        .toml("a.toml", "cache.ttl = '1m'\ncache.expiry_sweep = '1m'")
        .toml("b.toml", "cache.ttl = '2m'")
        .set("log.level", "warn", "first")
        .set("log.level", "debug", "second")
        .load()
        .unwrap();
    assert_eq!(effective(&config, "cache.ttl"), ("2m".to_owned(), "b.toml:1".to_owned()));
    assert_eq!(effective(&config, "cache.expiry_sweep").1, "a.toml:2");
    assert_eq!(effective(&config, "log.level"), ("debug".to_owned(), "second".to_owned()));
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = loader().load().unwrap();
    assert_eq!(config.server.to, None);
    assert_eq!(config.server.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.server.admin, "127.0.0.1:8600".parse().unwrap());
    assert_eq!(config.server.max_body, Some(ByteSize::mib(64)));
    assert_eq!(config.server.workers, 4);
    assert_eq!(config.level, OptimizationLevel::Advanced);
    assert_eq!(config.cache.ttl, Duration::from_secs(3600));
    assert_eq!(config.cache.expiry_sweep, Duration::from_secs(300));
    assert_eq!(config.cache.order, [LowerTier::Redis, LowerTier::Disk]);
    assert_eq!(config.cache.memory.capacity, ByteSize::mib(256));
    assert_eq!(config.cache.memory.entries, None);
    assert_eq!(config.cache.disk.location(), Some("/home/me/.cache/ultra-perf".as_ref()));
    assert_eq!(config.cache.disk.fsync, Fsync::Never);
    assert_eq!(config.cache.redis.url, None);
    assert_eq!(config.cache.redis.timeout, Duration::from_millis(50));
    assert_eq!(config.notes(), []);
}

#[test]
fn the_memory_tier_takes_a_quarter_of_a_small_machine() {
    for (memory, capacity, max_body) in [
        (64 << 30, "256MiB", "8MiB"),
        (1 << 30, "256MiB", "8MiB"),
        (512 << 20, "128MiB", "8MiB"),
        ((20 << 20) + 4097, "5MiB", "5MiB"),
        (1, "1MiB", "1MiB"),
    ] {
        let machine = Machine { memory_bytes: memory, ..machine() };
        let config = loader().machine(machine).load().unwrap();
        assert_eq!(effective(&config, "cache.memory.capacity").0, capacity);
        assert_eq!(effective(&config, "response_cache.max_body").0, max_body);
    }
}

#[test]
fn the_defaults_are_within_bounds_on_any_machine() {
    for (memory_bytes, cores, cache_dir) in
        [(0, 0, None), (u64::MAX, usize::MAX, Some("~")), (1, 1, Some("")), (1, 1, Some("none"))]
    {
        let machine =
            Machine { memory_bytes, cores, cache_dir: cache_dir.map(PathBuf::from), ..machine() };
        let config = loader().machine(machine).load().unwrap();
        assert!(config.server.workers >= 1);
        assert!(!config.cache.disk.enabled, "{cache_dir:?} is no directory to start from");
    }
}

#[test]
fn this_machine_loads_without_any_source() {
    let config = ConfigLoader::new().load().unwrap();
    assert!(config.server.workers >= 1);
    assert!(config.cache.memory.capacity <= ByteSize::mib(256));
}

#[test]
fn no_two_programs_have_one_directory_by_default() {
    for (program, cache, monitor) in [
        (
            Some("ultra-perf"),
            "/home/me/.cache/ultra-perf",
            "/home/me/.local/state/ultra-perf/monitor",
        ),
        (
            Some("shop"),
            "/home/me/.cache/shop/ultra-perf",
            "/home/me/.local/state/shop/ultra-perf/monitor",
        ),
        (None, "/home/me/.cache/ultra-perf", "/home/me/.local/state/ultra-perf/monitor"),
    ] {
        let machine = Machine { program: program.map(str::to_owned), ..machine() };
        let config = loader().machine(machine).load().unwrap();
        assert_eq!(config.cache.disk.location(), Some(cache.as_ref()));
        assert_eq!(config.monitor.history.location(), Some(monitor.as_ref()));
    }
}

#[test]
fn without_a_home_directory_the_disk_tier_is_off_and_a_note_says_so() {
    let homeless = || loader().machine(Machine { cache_dir: None, ..machine() });
    let config = homeless().load().unwrap();
    assert_eq!(config.cache.disk.location(), None);
    assert_eq!(config.notes()[0].key, "cache.disk.enabled");
    let config = homeless().set("cache.disk.path", "/var/cache/up", "--path").load().unwrap();
    assert_eq!(config.cache.disk.location(), Some("/var/cache/up".as_ref()));
    assert_eq!(
        problem(homeless().set("cache.disk.enabled", "true", "--disk").load()),
        "cache.disk.path: must be set to the path of a directory\n      \
         as ULTRA_PERF__CACHE__DISK__PATH or cache.disk.path in ultra-perf.toml"
    );
}

#[test]
fn the_report_names_key_value_remedy_and_origin_of_every_problem() {
    let loaded = loader()
        .toml(
            "ultra-perf.toml",
            "# mine\n[log]\nformat = \"yaml\"\n\n[cache]\nttl = 60\ntll = '1h'\n",
        )
        .env(env(&[("ULTRA_PERF__CACHE__MEMORY__CAPACITY", "0")]))
        .set("server.to", "127.0.0.1:8000", "--to")
        .load();
    assert_eq!(
        problems(loaded),
        r#"invalid configuration, 5 problems:
  cache.tll: unknown key, did you mean cache.ttl?
      from ultra-perf.toml:7
  server.to = "127.0.0.1:8000": must be an http:// URL such as "http://127.0.0.1:8000"
      from --to
  cache.ttl = 60: must be a duration with a unit, such as "30s", "250ms" or "1h30m"
      from ultra-perf.toml:6
  cache.memory.capacity = "0": must be at least 64KiB
      from ULTRA_PERF__CACHE__MEMORY__CAPACITY
  log.format = "yaml": must be "auto", "human" or "json"
      from ultra-perf.toml:3"#
    );
}

#[test]
fn an_overridden_value_is_checked_too() {
    let loaded = loader()
        .toml("ultra-perf.toml", "cache.ttl = 'soon'")
        .set("cache.ttl", "1h", "--ttl")
        .load();
    let error = loaded.unwrap_err();
    assert_eq!(error.problems().len(), 1);
    let row = error.explanation().settings().iter().find(|row| row.key == "cache.ttl").unwrap();
    assert_eq!((row.value.as_str(), row.valid), ("1h", true));
}

#[test]
fn an_invalid_value_is_marked_in_the_explanation() {
    let error = from_toml("cache.ttl = 'soon'\nlog.level = 'warn'").unwrap_err();
    let table = error.explanation().to_string();
    let line = |key: &str| table.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    assert!(line("cache.ttl").ends_with("ultra-perf.toml:1  (invalid)"), "{table}");
    assert!(line("cache.ttl").contains("\"soon\""), "{table}");
    assert!(line("log.level").ends_with("ultra-perf.toml:2"), "{table}");
}

#[test]
fn a_wrong_value_in_a_file_is_told_with_its_line() {
    for (text, expected) in [
        (
            "cache = 1",
            "cache = 1: must be a table that begins with [cache]\n      from ultra-perf.toml:1",
        ),
        ("[[cache]]", "must be a table that begins with [cache]\n      from ultra-perf.toml:1"),
        ("[cache.ttl]\na = 1", "cache.ttl = a table: must be a duration"),
        ("cache.ttl = 1979-05-27", "cache.ttl = a date: must be a duration"),
        (
            "[cache]\ncompression = \"true\"",
            "must be true or false, without quotes\n      from ultra-perf.toml:2",
        ),
        ("cache.compression = 1", "cache.compression = 1: must be true or false\n"),
        ("server.workers = 0", "server.workers = 0: must be at least 1\n"),
        ("server.workers = 2.0", "server.workers = 2.0: must be a whole number\n"),
        ("server.workers = -0x1", "not valid TOML"),
        ("server.workers = 99999999999999999999999999999999999999999", "must be a whole number\n"),
        ("server.max_body = 0", "server.max_body = 0: must be at least 1B, or \"none\"\n"),
        (
            "server.max_header_bytes = '1GB'",
            "server.max_header_bytes = \"1GB\": must be at most 1MiB\n",
        ),
        (
            "server.admin = '0.0.0.0:8600'",
            "server.admin = \"0.0.0.0:8600\": must be a loopback address",
        ),
        ("server.to = 'https://a'", "server.to = \"https://a\": must be an http:// URL"),
        ("cache.order = ['disk']", "cache.order = [\"disk\"]: must be a list with"),
        (
            "cache.order = [1]",
            "cache.order = a list of other things than texts: must be a list with",
        ),
        ("cache.ttl = '0s'", "cache.ttl = \"0s\": must be at least 1ms\n"),
        ("cache.memory.entries = 0", "cache.memory.entries = 0: must be at least 1, or \"none\"\n"),
        ("cache.memory.time_to_idle = '0s'", "must be at least 1ms, or \"none\"\n"),
        ("cache.disk.capacity = '1MB'", "cache.disk.capacity = \"1MB\": must be at least 1MiB\n"),
        ("cache.disk.engine = 'rocks'", "must be \"segment-log\" or \"sled\"\n"),
        (
            "cache.disk.fsync = 'often'",
            "must be \"never\", \"always\" or an interval such as \"1s\"\n",
        ),
        ("cache.redis.connections = 3", "cache.redis.connections = 3: must be at most 2\n"),
        ("cache.redis.timeout = '1us'", "cache.redis.timeout = \"1us\": must be at least 1ms\n"),
        ("cache.redis.coherence = 'on'", "must be \"auto\", \"tracking\", \"pubsub\" or \"off\"\n"),
        ("cache.redis.prefix = '{a}'", "cache.redis.prefix = \"{a}\": must be 1 to 64 letters"),
        (
            "log.level = 'inof'",
            "log.level = \"inof\": must be a level (off, error, warn, info, debug, trace)",
        ),
        ("ttl = 1", "ttl: unknown key, did you mean cache.ttl?\n"),
        ("[cach]\nttl = 1", "cach: unknown key, did you mean cache?\n      from ultra-perf.toml:1"),
        ("[cache.redis]\npassword = 'hunter2'", "cache.redis.password: unknown key\n"),
        ("\"\\u001b\" = 1", "\\u{1b}: unknown key\n"),
        (
            "[cache]\nttl = '1h'\nttl = '2h'",
            "not valid TOML: duplicate key\n      from ultra-perf.toml:3",
        ),
        ("[cache\n", "not valid TOML: "),
    ] {
        let told = problem(from_toml(text));
        assert!(format!("{told}\n").contains(expected), "{text}\ntold: {told}");
        assert!(told.contains("\n      from ultra-perf.toml:"), "{told}");
    }
}

#[test]
fn an_unknown_name_of_ours_in_the_environment_is_a_problem() {
    for (name, expected) in [
        ("ULTRA_PERF__CACHE__TLL", "unknown key, did you mean ULTRA_PERF__CACHE__TTL?"),
        ("ULTRA_PERF__CACHE", "unknown key\n"),
        ("ULTRA_PERF__", "unknown key\n"),
        ("ULTRA_PERF__cache__ttl", "unknown key, did you mean ULTRA_PERF__CACHE__TTL?"),
        ("ULTRA_PERF_CACHE_TTL", "unknown key, did you mean ULTRA_PERF__CACHE__TTL?"),
        ("ULTRA_PERF_CACHE__REDIS_URL", "unknown key, did you mean ULTRA_PERF__CACHE__REDIS__URL?"),
    ] {
        let told = problem(from_env(&[(name, "hunter2")]));
        assert!(told.starts_with(&format!("{name}: {expected}")), "{told}");
        assert!(told.ends_with(&format!("\n      from {name}")), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    let foreign = [("PATH", "/bin"), ("ULTRA_PERFECT", "1"), ("ULTRA_PERF_HOME", "/x"), ("", "")];
    assert!(from_env(&foreign).is_ok());
}

#[test]
fn code_may_only_set_existing_keys() {
    let told = problem(loader().set("server.too", "x", "--to").load());
    assert_eq!(told, "server.too: unknown key, did you mean server.to?\n      from --to");
}

#[test]
fn an_alias_sets_its_key_and_stays_visible_as_the_origin() {
    for (name, value, key, shown) in [
        ("PERFORMANCE_CACHE_TTL", "120", "cache.ttl", "2m"),
        ("PERFORMANCE_CACHE_TTL", "2h", "cache.ttl", "2h"),
        ("cache_ttl", "1.5", "cache.ttl", "1s500ms"),
        ("CACHE_TTL", "90", "cache.ttl", "1m30s"),
        ("CACHE_MEMORY_MAX_SIZE", "10000", "cache.memory.entries", "10000"),
        ("PERFORMANCE_CACHE_MAX_SIZE", "1", "cache.memory.entries", "1"),
        ("CACHE_MAX_SIZE", "2", "cache.memory.entries", "2"),
        ("PERFORMANCE_CACHE_CLEANUP_INTERVAL", "300", "cache.expiry_sweep", "5m"),
        ("cache_cleanup_interval", "60", "cache.expiry_sweep", "1m"),
        ("CACHE_COMPRESSION_ENABLED", "False", "cache.compression", "false"),
        ("REDIS_URL", "redis://h:1", "cache.redis.url", "redis://h:1"),
        ("REDIS_MAX_CONNECTIONS", "2", "cache.redis.connections", "2"),
        ("memory_limit_gb", "8", "memory.limit", "8GiB"),
        ("MAX_MEMORY_USAGE", "512MiB", "memory.limit", "512MiB"),
        ("gc_threshold", "500", "memory.reclaim_after_ops", "500"),
        ("TRACEMALLOC_ENABLED", "true", "memory.tracking", "true"),
        ("profiling_enabled", "1", "monitor.profiling", "true"),
        ("metrics_interval", "15", "monitor.interval", "15s"),
        ("TARGET_RESPONSE_TIME_MS", "250", "targets.p95", "250ms"),
        ("TARGET_CACHE_HIT_RATE", "0.9", "targets.hit_ratio", "0.9"),
        ("TARGET_MEMORY_USAGE_MB", "512", "targets.memory", "512MiB"),
        ("ENABLE_PERFORMANCE_OPTIMIZATION", "false", "response_cache.enabled", "false"),
        ("ENABLE_CIRCUIT_BREAKERS", "true", "balancer.breaker.mode", "auto"),
        ("enable_circuit_breakers", "no", "balancer.breaker.mode", "off"),
        ("enable_cache_warming", "true", "cache.disk.warm_up", "true"),
        ("enable_api_compression", "false", "server.compression", "false"),
        ("PROMETHEUS_PORT", "9100", "server.metrics_listen", "127.0.0.1:9100"),
        ("PROMETHEUS_PORT", "0.0.0.0:9100", "server.metrics_listen", "0.0.0.0:9100"),
        ("ENABLE_PROMETHEUS", "true", "server.metrics_listen", "127.0.0.1:8000"),
        ("ENABLE_PROMETHEUS", "false", "server.metrics_listen", "none"),
    ] {
        let config = from_env(&[(name, value)]).unwrap();
        assert_eq!(effective(&config, key), (shown.to_owned(), name.to_owned()));
        assert_eq!(config.notes(), []);
    }
}

#[test]
fn that_there_is_something_gives_way_to_what_says_more_of_it() {
    for (enabled, listen, notes) in
        [("true", "127.0.0.1:9100", 0), ("false", "none", 1), ("", "127.0.0.1:9100", 0)]
    {
        let given = [("ENABLE_PROMETHEUS", enabled), ("PROMETHEUS_PORT", "9100")];
        let config = from_env(&given).unwrap();
        assert_eq!(effective(&config, "server.metrics_listen").0, listen);
        assert_eq!(config.notes().len(), notes, "{enabled}");
    }
    assert_eq!(
        problem(from_env(&[("ENABLE_PROMETHEUS", "maybe")])),
        "server.metrics_listen = \"maybe\": must be true or false\n      from ENABLE_PROMETHEUS"
    );
}

#[test]
fn a_wrong_alias_is_told_under_the_key_and_its_own_name() {
    assert_eq!(
        problem(from_env(&[("REDIS_MAX_CONNECTIONS", "0")])),
        "cache.redis.connections = \"0\": must be at least 1\n      from REDIS_MAX_CONNECTIONS"
    );
    assert!(problem(from_env(&[("PERFORMANCE_CACHE_TTL", "0")])).contains("must be at least 1ms"));
    assert!(problem(from_env(&[("CACHE_TTL", "soon")])).ends_with("from CACHE_TTL"));
}

#[test]
fn a_cap_is_lowered_with_a_note() {
    let config = from_env(&[("REDIS_MAX_CONNECTIONS", "50")]).unwrap();
    assert_eq!(config.cache.redis.connections, 2);
    let note = &config.notes()[0];
    assert_eq!(note.key, "cache.redis.connections");
    assert_eq!(note.message, "lowered from 50 to 2, the most that is of use");
    let config = from_env(&[("METRICS_INTERVAL", "60")]).unwrap();
    assert_eq!(config.monitor.interval, Duration::from_secs(30));
    assert_eq!(config.notes()[0].message, "lowered from 60 to 30, the most that is of use");
}

#[test]
fn an_own_name_wins_over_an_alias_and_the_first_alias_over_the_next() {
    let all =
        [("cache_ttl", "3"), ("PERFORMANCE_CACHE_TTL", "2"), ("ULTRA_PERF__CACHE__TTL", "1s")];
    for (given, winner) in [(&all[..], all[2].0), (&all[..2], all[1].0), (&all[..1], all[0].0)] {
        let mut given = given.to_vec();
        for _ in 0..given.len() {
            given.rotate_left(1);
            let config = from_env(&given).unwrap();
            assert_eq!(effective(&config, "cache.ttl").1, winner);
            assert_eq!(config.notes().len(), given.len() - 1, "the others are noted");
        }
    }
}

#[test]
fn an_empty_variable_unsets_or_is_passed_over() {
    let file = "cache.redis.url = 'redis://h'\ncache.ttl = '5m'";
    let load = |name: &str, value: &str| {
        loader().toml("f", file).env(env(&[(name, value)])).load().unwrap()
    };
    assert!(load("ULTRA_PERF__CACHE__REDIS__URL", "").cache.redis.url.is_none());
    assert!(load("ULTRA_PERF__CACHE__REDIS__URL", "none").cache.redis.url.is_none());
    assert!(load("REDIS_URL", "").cache.redis.url.is_some());
    assert_eq!(load("PERFORMANCE_CACHE_TTL", " ").cache.ttl, Duration::from_secs(300));
}

#[test]
fn keys_that_contradict_each_other_are_told() {
    for (text, expected) in [
        (
            "server.listen = '127.0.0.1:8600'",
            "server.admin = \"127.0.0.1:8600\": must have another port than server.listen (127.0.0.1:8600)\n      from default",
        ),
        (
            "server.listen = '0.0.0.0:9'\nserver.admin = '127.0.0.1:9'",
            "server.admin = \"127.0.0.1:9\": must have another port than server.listen (0.0.0.0:9)\n      from f:2",
        ),
        (
            "server.to = 'http://localhost:8080'",
            "server.to = \"http://localhost:8080\": must be another address than server.listen (127.0.0.1:8080)\n      from f:1",
        ),
        (
            "server.to = 'http://127.0.0.1:8600/x'",
            "server.to = \"http://127.0.0.1:8600/x\": must be another address than server.admin (127.0.0.1:8600)\n      from f:1",
        ),
        (
            "server.metrics_listen = '0.0.0.0:8600'",
            "server.metrics_listen = \"0.0.0.0:8600\": must have another port than server.admin (127.0.0.1:8600)\n      from f:1",
        ),
        (
            "cache.memory.capacity = '1MiB'\nresponse_cache.max_body = '2MiB'",
            "response_cache.max_body = \"2MiB\": must be at most cache.memory.capacity (1MiB)\n      from f:2",
        ),
        (
            "cache.memory.capacity = '1MiB'\ncache.compression_threshold = '1GiB'",
            "cache.compression_threshold = \"1GiB\": must be at most cache.memory.capacity (1MiB), or \
             nothing would be compressed; for that there is cache.compression = false\n      from f:2",
        ),
    ] {
        assert_eq!(problem(loader().toml("f", text).load()), expected);
    }
    for fine in [
        "server.listen = '127.0.0.1:0'\nserver.admin = '127.0.0.1:0'",
        "server.listen = '[::1]:8600'",
        "cache.memory.capacity = '1MiB'",
    ] {
        assert!(from_toml(fine).is_ok(), "{fine}");
    }
}

#[test]
fn a_rule_between_keys_is_silent_where_one_of_them_is_wrong_already() {
    let told =
        problem(from_toml("cache.memory.capacity = '1KiB'\nresponse_cache.max_body = '1TiB'"));
    assert!(told.starts_with("cache.memory.capacity"), "{told}");
}

#[test]
fn a_part_that_the_build_lacks_is_refused_when_asked_for() {
    let nothing = Parts {
        monitor: false,
        disk: false,
        sled: false,
        redis: false,
        lz4: false,
        encryption: false,
        memory: false,
    };
    let bare = || loader().parts(nothing);
    let config = bare().load().unwrap();
    assert!(!config.cache.disk.enabled);
    for (key, value, feature) in [
        ("cache.disk.enabled", "true", "disk"),
        ("cache.redis.url", "redis://h", "redis"),
        ("cache.compression_method", "lz4", "lz4"),
        ("cache.encryption.keys", "1=env:KEY", "encryption"),
    ] {
        let told = problem(bare().set(key, value, "code").load());
        let expected = format!("{key} = \"{value}\": needs a build with the feature {feature}\n");
        assert!(told.starts_with(&expected), "{told}");
    }
    let no_sled = loader().parts(Parts { sled: false, ..Parts::ALL });
    let told = problem(no_sled.set("cache.disk.engine", "sled", "code").load());
    assert!(told.contains("needs a build with the feature sled"), "{told}");
}

#[test]
fn a_foreign_redis_url_does_not_stop_a_build_without_redis() {
    let bare = loader().parts(Parts { sled: false, redis: false, ..Parts::ALL });
    let config = bare.env(env(&[("REDIS_URL", "redis://h")])).load().unwrap();
    assert!(config.cache.redis.url.is_none());
    assert_eq!(effective(&config, "cache.redis.url"), ("none".to_owned(), "default".to_owned()));
    assert_eq!(config.notes()[0].key, "cache.redis.url");
}

#[test]
fn a_required_key_must_be_set() {
    let told = problem(
        loader().toml("my.toml", "cache.ttl = '1m'").require("server.to", "--to URL").load(),
    );
    assert_eq!(
        told,
        "server.to: must be set to an http:// URL such as \"http://127.0.0.1:8000\", or a list of \
         them\n      as --to URL or ULTRA_PERF__SERVER__TO or server.to in my.toml"
    );
    let set =
        |url: &str| loader().set("server.to", url, "--to").require("server.to", "--to").load();
    assert!(set("http://127.0.0.1:8000").is_ok());
    assert!(problem(set("gopher://x")).contains("must be an http:// URL"));
}

#[test]
fn backends_are_texts_or_tables_and_the_strongest_source_names_them_all() {
    let tables = "[[backend]]\nurl = 'http://a:1/x'\nweight = 2\nmax_in_flight = 8\nzone = 'east'\n\n\
                  [[backend]]\nurl = 'http://b:2'\npriority = 1\n";
    let text = "http://a:1/x,weight=2,max=8,zone=east,http://b:2,priority=1";
    let list = "server.to = ['http://a:1/x,weight=2,max=8,zone=east', 'http://b:2,priority=1']";
    for (config, origin) in [
        (from_toml(tables), "ultra-perf.toml:1"),
        (from_toml(list), "ultra-perf.toml:1"),
        (from_toml(&format!("server.to = '{text}'")), "ultra-perf.toml:1"),
        (from_env(&[("ULTRA_PERF__SERVER__TO", text)]), "ULTRA_PERF__SERVER__TO"),
        (loader().set("server.to", text, "--to").load(), "--to"),
    ] {
        let shown = effective(&config.expect("a configuration"), "server.to");
        assert_eq!(shown, (text.to_owned(), origin.to_owned()));
    }
    let config = loader().toml("f", tables).set("server.to", "http://c", "--to").load().unwrap();
    assert_eq!(effective(&config, "server.to").0, "http://c");
}

#[test]
fn everything_that_is_wrong_with_the_tables_of_backends_is_told_at_once() {
    let text = "[[backend]]\nurl = 'http://a'\nweight = -1\nmax_in_flight = 0\nwieght = 2\n\
                [[backend]]\nzone = 'a b'\n\
                [[backend]]\nurl = 'https://me:hunter2@c'\npriority = 'high'\n";
    assert_eq!(
        problems(loader().toml("f", text).require("server.to", "--to URL").load()),
        r#"invalid configuration, 7 problems:
  backend[0].weight = -1: must be a whole number from 0 to 1000000
      from f:3
  backend[0].max_in_flight = 0: must be a whole number from 1 to 65536
      from f:4
  backend[0].wieght: unknown key, did you mean backend[0].weight?
      from f:5
  backend[1].url = nothing: must be an http:// URL such as "http://127.0.0.1:8000"
      from f:6
  backend[1].zone = "a b": must be 1 to 64 letters, digits or characters of "-_."
      from f:7
  backend[2].url = "https://***": must be an http:// URL such as "http://127.0.0.1:8000"
      from f:9
  backend[2].priority = "high": must be a whole number from 0 to 1000
      from f:10"#
    );
    for (text, told) in [
        (
            "[[backend]]\nurl = 'http://a'\n[[backend]]\nurl = 'http://A:80/'",
            "backend[1].url = \"http://a\": must be another URL than that of table 1",
        ),
        ("backend = []", "backend = a list of 0: must be 1 to 256 tables"),
        ("backend = 'http://a'", "backend = no list: must be tables that begin with [[backend]]"),
        ("[backend]\nurl = 'http://a'", "backend = no list: must be tables"),
        ("backend = ['http://a']", "backend = a list of other things: must be tables"),
        (
            "server.to = 'http://a'\n[[backend]]\nurl = 'http://b'",
            "backend = a list of tables: must not stand beside server.to in the same file",
        ),
        ("server.to = []", "server.to = []: must be an http:// URL"),
        (
            "server.to = ['http://a,weight=x', 'http://a,max=0']",
            "server.to = [\"http://a,weight=x\", \"http://a,max=0\"]: number 1: weight must be",
        ),
        (
            "server.to = 'http://a:1,http://127.0.0.1:8080'",
            "server.to = \"http://a:1,http://127.0.0.1:8080\": must be another address than",
        ),
    ] {
        let found = problem(from_toml(text));
        assert!(found.starts_with(told), "{found}");
    }
}

#[test]
fn the_settings_of_the_balancer_go_together() {
    for (text, told) in [
        (
            "balancer.eject_time = '6m'",
            "balancer.eject_time = \"6m\": must be at most balancer.eject_time_max (5m)",
        ),
        (
            "balancer.breaker.open_time_max = '500ms'",
            "balancer.breaker.open_time = \"1s\": must be at most balancer.breaker.open_time_max",
        ),
        ("balancer.policy = 'fastest'", "balancer.policy = \"fastest\": must be \"peak-ewma\","),
        ("balancer.zone = 'a b'", "balancer.zone = \"a b\": must be 1 to 64 letters"),
        ("balancer.hedge = 0.3", "balancer.hedge = 0.3: must be at least 0.5, or \"none\""),
        ("balancer.check_path = 'healthz'", "balancer.check_path = \"healthz\": must be a path"),
        ("balancer.sticky_cookie = 'a b'", "balancer.sticky_cookie = \"a b\": must be 1 to 64"),
        ("balancer.sticky_key = 'hunter2'", "balancer.sticky_key = \"***\": must be a key such as"),
        (
            "balancer.sticky_key = 'env:NOT_THERE'",
            "balancer.sticky_key = \"env:NOT_THERE\": must name a variable that holds 32 random",
        ),
    ] {
        let found = problem(from_toml(text));
        assert!(found.starts_with(told), "{found}");
    }
    let keyed = [("ULTRA_PERF__BALANCER__STICKY_KEY", "env:STICKY"), ("STICKY", KEY)];
    let config = from_env(&keyed).unwrap();
    assert_eq!(config.signing_key().map(|key| key.expose()[0]), Some(0xc0));
    let said = format!("{config:?} {}", config.explain());
    assert!(!said.contains("c0ffee") && !said.contains("192, 255"), "{said}");
}

#[test]
fn a_secret_appears_nowhere() {
    let url = "redis://me:hunter2@127.0.0.1:6379/0?sentinelPassword=hunter2";
    let sources = loader()
        .toml("f", format!("cache.redis.url = '{url}'"))
        .env(env(&[("REDIS_URL", url)]))
        .set("cache.redis.url", url, "--redis");
    let debug = format!("{sources:?}");
    assert!(debug.contains("REDIS_URL") && !debug.contains("hunter2"), "{debug}");
    let config = sources.load().unwrap();
    assert_eq!(config.cache.redis.url.as_ref().unwrap().expose(), url);
    let json = serde_json::to_string(&config.explain()).unwrap();
    let said = format!("{config:?}{}{:?}{json}", config.explain(), config.explain());
    assert!(said.contains("redis://me:***@127.0.0.1:6379/0?sentinelPassword=***"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    for text in [
        "cache.redis.url = 'http://me:hunter2@h'",
        "cache.redis.url = 'redis://me:hunter2@h:port'",
        "cache.redis.url = 'hunter2'",
        "cache.redis.url = ['redis://me:hunter2@h']",
        "cache.redis.url = { password = 'hunter2' }",
        "cache.redis.url = redis://me:hunter2@h",
        "cache.redis.url = 'redis://me:hunter2@h",
        "cache.redis = 'hunter2'",
        "cache.redis.pass = 'hunter2'",
        "server.to = 'http://me:hunter2@h'",
    ] {
        let error = from_toml(text).unwrap_err();
        let said = format!("{error} {error:?} {}", error.explanation());
        assert!(!said.contains("hunter2"), "{said}");
    }
}

const KEY: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

#[test]
fn keys_come_from_where_the_configuration_says_and_appear_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, KEY).unwrap();
    let text = format!(
        "[cache.encryption]\nkeys = ['1=env:OLD_KEY', '7=file:{}', '9=hex:{KEY}']\nactive = 7",
        file.display(),
    );
    let sources = loader().toml("f", text).env(env(&[("OLD_KEY", KEY)]));
    let config = sources.load().unwrap();
    let keys = config.cache.encryption.keys.as_ref().unwrap();
    assert_eq!((keys.ids().collect(), config.cache.encryption.active), (vec![1, 7, 9], Some(7)));
    let (shown, _) = effective(&config, "cache.encryption.keys");
    assert_eq!(shown, format!("1=env:OLD_KEY,7=file:{},9=hex:***", file.display()));
    let json = serde_json::to_string(&config.explain()).unwrap();
    let said = format!("{config:?}{}{:?}{json}", config.explain(), config.explain());
    assert!(!said.to_lowercase().contains(&KEY[..6]), "{said}");
    #[cfg(feature = "encryption")]
    assert!(said.contains("EncryptionKeys { active: 7, ids: [1, 7, 9] }"), "{said}");

    // One key writes without being named, and a variable takes a list, too.
    let only = [("K", KEY), ("ULTRA_PERF__CACHE__ENCRYPTION__KEYS", "3=env:K")];
    assert_eq!(from_env(&only).unwrap().cache.encryption.active, None);
    let two = [("K", KEY), ("ULTRA_PERF__CACHE__ENCRYPTION__KEYS", "3=env:K,4=env:K")];
    let told = problem(from_env(&two));
    let expected = "cache.encryption.active = \"none\": must name the key that writes, one of 3, 4";
    assert!(told.starts_with(expected), "{told}");
}

#[test]
fn every_key_that_cannot_be_had_is_told_with_where_it_was_looked_for() {
    let text = "[cache.encryption]\nkeys = ['1=env:MISSING', '2=file:/nowhere/key', '3=env:SHORT']\nactive = 4";
    let told = problems(loader().toml("f", text).env(env(&[("SHORT", "hunter2")])).load());
    for expected in [
        "invalid configuration, 4 problems:",
        "cache.encryption.active = 4: must name the key that writes, one of 1, 2, 3\n      from f:3",
        "cache.encryption.keys = \"1=env:MISSING\": must name a variable that holds 32 random bytes",
        "cache.encryption.keys = \"2=file:/nowhere/key\": must name a file",
        "cache.encryption.keys = \"3=env:SHORT\": SHORT must hold 32 random bytes",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    assert!(!told.contains("hunter2"));
    for (text, expected) in [
        ("cache.encryption.keys = '1=env:K'", "must be a list of keys by number"),
        ("cache.encryption.keys = ['hunter2hunter2']", "\"***\""),
        ("cache.encryption.keys = ['1=hex:hunter2']", "\"***\""),
        ("cache.encryption.keys = ['1=env:K', '1=env:K']", "1 comes twice"),
        ("cache.encryption.active = 1", "must be \"none\" where cache.encryption.keys has none"),
    ] {
        let told = problem(from_toml(text));
        assert!(told.contains(expected) && !told.contains("hunter2"), "{told}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_a_problem_unless_it_was_optional_and_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let problem_of = |path: PathBuf| problem(loader().file(path).load());

    let error = loader().file(path("absent.toml")).load().unwrap_err();
    assert!(error.to_string().ends_with("absent.toml: cannot be read, there is no such file"));
    assert!(std::error::Error::source(&error).is_some());
    assert!(loader().optional_file(path("absent.toml")).load().is_ok());
    assert!(loader().optional_file(dir.path()).load().is_err(), "a directory is no absent file");

    std::fs::write(path("huge.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(problem_of(path("huge.toml")).contains("it is larger than 1 MiB"));
    std::fs::write(path("latin.toml"), b"\n# caf\xe9\n").unwrap();
    let told = problem_of(path("latin.toml"));
    assert!(told.starts_with("not valid TOML: not UTF-8\n"), "{told}");
    assert!(told.ends_with("latin.toml:2"), "{told}");

    std::fs::write(path("bom.toml"), b"\xef\xbb\xbf\r\ncache.ttl = '9m'\r\n").unwrap();
    let config = loader().file(path("bom.toml")).load().unwrap();
    assert_eq!(config.cache.ttl, Duration::from_secs(540));
    assert!(effective(&config, "cache.ttl").1.ends_with("bom.toml:2"));
}

#[test]
fn a_broken_file_is_told_with_a_bounded_number_of_errors() {
    let error = from_toml(&"= = =\n".repeat(1000)).unwrap_err();
    assert!((1..=8).contains(&error.problems().len()), "{error}");
}

#[test]
fn a_file_of_unknown_names_is_told_in_bounded_time() {
    let text: String = (0..50_000).map(|at| format!("cache.x{at} = 1\n")).collect();
    let error = from_toml(&format!("cache.tll = 1\n{text}cache.tlt = 1\n")).unwrap_err();
    assert_eq!(error.problems().len(), 50_002);
    let suggested = error.problems().iter().map(ToString::to_string);
    let suggested: Vec<_> = suggested.filter(|text| text.contains("did you mean")).collect();
    assert_eq!(suggested, ["cache.tll: unknown key, did you mean cache.ttl?"]);
    let told = problem(from_toml(&format!("{} = 1", "a".repeat(1_000))));
    assert!(told.starts_with(&format!("{}...: unknown key\n", "a".repeat(100))), "{told}");
}

#[test]
fn the_explanation_is_a_table_and_a_json_object() {
    let config = loader()
        .toml(
            "ultra-perf.toml",
            "[cache.disk]\npath = '/var/cache/a/path/longer/than/the/column/is'",
        )
        .env(env(&[("REDIS_MAX_CONNECTIONS", "9")]))
        .set("server.to", "http://127.0.0.1:8000", "--to")
        .load()
        .unwrap();
    let table = config.explain().to_string();
    for line in [
        "server.to                              http://127.0.0.1:8000                 --to",
        "server.listen                          127.0.0.1:8080                        default",
        "cache.disk.path                        /var/cache/a/path/longer/than/the/column/is  ultra-perf.toml:2",
        "note: cache.redis.connections: lowered from 9 to 2, the most that is of use (from REDIS_MAX_CONNECTIONS)",
    ] {
        assert!(table.lines().any(|found| found == line), "{line}\nnot in\n{table}");
    }
    let json = serde_json::to_value(config.explain()).unwrap();
    assert_eq!(
        json["settings"][1],
        serde_json::json!({
            "key": "server.to", "value": "http://127.0.0.1:8000", "origin": "--to", "valid": true,
            "effect": "restart"
        })
    );
    assert_eq!(json["settings"].as_array().unwrap().len(), tree::fixed_keys().count());
    assert_eq!(json["notes"][0]["key"], "cache.redis.connections");
}

#[test]
fn names_are_unique_and_do_not_shadow_each_other() {
    let mut seen = BTreeSet::new();
    for key in tree::keys() {
        assert!(seen.insert(tree::env_name(key.path)), "{}", key.path);
        for alias in key.aliases {
            let capitals = alias.name.to_ascii_uppercase();
            assert!(seen.insert(capitals.clone()), "{capitals}");
            assert!(!capitals.starts_with("ULTRA_PERF"), "{capitals}");
        }
        assert!(!tree::SECTIONS.iter().any(|section| section.name == key.path), "{}", key.path);
    }
}

#[test]
fn the_reference_names_every_key_alias_and_its_example_loads() {
    let page = reference();
    for key in tree::keys() {
        assert!(page.contains(&format!("\n| `{}` | ", key.name())), "{}", key.path);
        for alias in key.aliases {
            assert!(page.contains(&format!("| `{}` | `{}`", alias.name, key.path)));
        }
    }
    from_toml(super::reference::EXAMPLE).unwrap();
}

/// Compares a page of the documentation; with `UPDATE=1` in the environment, writes it instead.
pub(super) fn check_page(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/src").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    let path = path.display();
    assert!(
        page == text,
        "{path} is out of date; `UPDATE=1 cargo test -p ultra-perf` writes it anew"
    );
}

#[test]
fn the_documented_reference_is_the_generated_one() {
    check_page("configuration.md", &reference());
}

#[test]
fn the_documented_levels_are_those_of_the_code() {
    check_page("levels.md", &levels());
}

/// A value that some key might take, or nearly.
fn any_value() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "",
        "none",
        "true",
        "0",
        "1",
        "2",
        "0s",
        "10s",
        "50ms",
        "1h30m",
        "never",
        "always",
        "sled",
        "64KiB",
        "2MiB",
        "1.5GiB",
        "127.0.0.1:0",
        "127.0.0.1:8600",
        "0.0.0.0:80",
        "disk,redis",
        "through",
        "on-eviction",
        "json",
        "info,a=debug",
        "/tmp/x",
        "http://h:1/p",
        "redis://h",
        "redis://:p@h:1/2",
        "a-b",
        "segment-log",
        "s3-fifo",
        "clock-pro",
        "ultra",
        "extreme",
        "zstd-dictionary",
        "0.95",
        "4",
    ]);
    prop_oneof![6 => word.prop_map(str::to_owned), 1 => "\\PC{0,12}", 1 => "[0-9]{1,25}[a-zA-Z]{0,3}"]
}

fn any_key() -> impl Strategy<Value = String> {
    prop::sample::select(tree::keys().map(|key| key.path_in("users")).collect::<Vec<_>>())
}

/// A key, another name of one, or nearly.
fn any_name() -> impl Strategy<Value = String> {
    let aliases = tree::keys().flat_map(|key| key.aliases).map(|alias| alias.name);
    let aliases = prop::sample::select(aliases.collect::<Vec<_>>());
    prop_oneof![4 => any_key(), 2 => aliases.prop_map(str::to_owned), 1 => "[a-z]{0,3}\\.?\\PC{0,3}"]
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::json;
    prop_oneof![
        4 => any_value().prop_map(|text| json!(text)),
        1 => any::<i64>().prop_map(|number| json!(number)),
        1 => (0_u32..100).prop_map(|number| json!(number)),
        1 => any::<f64>().prop_map(|number| json!(number)),
        1 => any::<bool>().prop_map(|yes| json!(yes)),
        1 => prop::sample::select(vec![json!(null), json!([]), json!(["disk", "redis"]), json!({})]),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_a_file_or_problems(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut gathered = super::source::Gathered::default();
        gathered.toml("f".as_ref(), &bytes);
    }

    #[test]
    fn any_toml_like_text_is_a_file_or_problems(
        text in "(\\[{0,2}(cache|cache\\.redis|caches|caches\\.a|backend|server|x)\\]{0,2}\n|(ttl|url|cache\\.ttl|caches\\.b\\.ttl|level|order|a) ?= ?('1h'|\"\\PC{0,3}\"|[0-9._e-]{1,5}|\\[[0-9,]*\\]|\\{a=1\\}|true)\n|\\PC){0,8}",
    ) {
        match from_toml(&text) {
            Ok(config) => prop_assert!(!config.explain().to_string().is_empty()),
            Err(error) => prop_assert!(error.to_string().contains("\n      from ultra-perf.toml:")),
        }
    }

    #[test]
    fn what_is_accepted_reads_back_from_its_explanation(
        values in prop::collection::btree_map(any_key(), any_value(), 0..6),
    ) {
        let load = |values: Vec<(String, String)>| {
            values.into_iter().fold(loader(), |loader, (key, value)| loader.set(key, value, "code")).load()
        };
        match load(values.into_iter().collect()) {
            Err(error) => prop_assert!(!error.problems().is_empty()),
            Ok(config) => {
                let secret = |row: &Explained| row.value.contains("***");
                let rows = config.explain().settings().to_vec();
                let again = rows.iter().filter(|row| !secret(row)).map(|row| (row.key.clone(), row.value.clone()));
                let again = load(again.collect()).unwrap();
                let shown = |config: &Config| -> BTreeMap<String, String> {
                    let explanation = config.explain();
                    let rows = explanation.settings().iter().filter(|row| row.key != "cache.redis.url");
                    rows.map(|row| (row.key.clone(), row.value.clone())).collect()
                };
                prop_assert_eq!(shown(&config), shown(&again));
            }
        }
    }

    #[test]
    fn changes_that_are_taken_back_leave_nothing(
        changes in prop::collection::vec((any_name(), any_json()), 0..6),
    ) {
        let before = loader().set("cache.ttl", "2m", "code").load().unwrap();
        let changes: Vec<_> = changes.into_iter().map(Setting::from).collect();
        match before.with(&changes, "ada") {
            Err(error) => prop_assert!(!error.problems().is_empty()),
            Ok(after) => {
                for difference in before.differences(&after) {
                    let row = after.explain().get(&difference.key).cloned();
                    prop_assert_eq!(row.map(|row| row.value), Some(difference.to));
                }
                let back: Vec<_> = changes
                    .iter()
                    .map(|change| Setting::from((change.path.as_str(), serde_json::Value::Null)))
                    .collect();
                let back = after.with(&back, "ada").unwrap();
                prop_assert_eq!(before.explain().to_string(), back.explain().to_string());
            }
        }
    }

    #[test]
    fn the_order_of_the_environment_does_not_matter(
        mut variables in prop::collection::vec((prop::sample::select(vec![
            "ULTRA_PERF__CACHE__TTL", "PERFORMANCE_CACHE_TTL", "cache_ttl", "CACHE_TTL", "REDIS_URL",
            "CACHE_MAX_SIZE", "CACHE_MEMORY_MAX_SIZE", "ULTRA_PERF__X", "ULTRA_PERF_LOG_LEVEL",
        ]), any_value()), 0..6),
    ) {
        variables.sort();
        variables.dedup_by_key(|(name, _)| *name);
        let said = |variables: &[(&str, String)]| {
            let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            match loader().env(owned).load() {
                Ok(config) => config.explain().to_string(),
                Err(error) => format!("{error}\n{}", error.explanation()),
            }
        };
        let forwards = said(&variables);
        variables.reverse();
        prop_assert_eq!(forwards, said(&variables));
    }
}

#[cfg(unix)]
#[test]
fn a_variable_of_ours_that_is_not_utf_8_is_a_problem_and_a_foreign_one_is_not() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
    let bad = || OsString::from_vec(vec![0xff]);
    let ours = loader().os_env([("ULTRA_PERF__LOG__LEVEL".into(), bad())]).load();
    assert!(problem(ours).starts_with("ULTRA_PERF__LOG__LEVEL = \"***\": must be UTF-8\n"));
    assert!(loader().os_env([("X".into(), bad()), (bad(), "x".into())]).load().is_ok());
}
