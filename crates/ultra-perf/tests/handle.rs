//! The handle: parts that start together, follow changes, and stop in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use ultra_perf::cache_tiered::{self, Cache, Prefetch};
use ultra_perf::config::{ConfigLoader, Effect};
use ultra_perf::loadbalancer::{Backend, Policy};
use ultra_perf::resilience::State;
use ultra_perf::scheduler::Lane;
use ultra_perf::{ApplyError, BuildError, OptimizationLevel, Outcome, UltraPerf, UltraPerfBuilder};

const DEADLINE: Duration = Duration::from_secs(10);

/// A handle that writes nothing to the disk.
fn builder() -> UltraPerfBuilder {
    UltraPerf::builder()
        .level(OptimizationLevel::Basic)
        .set("monitor.history.enabled", "false")
        .set("monitor.interval", "30s")
}

#[tokio::test]
async fn every_problem_of_the_configuration_is_told_at_once() {
    let built = builder().set("cache.tll", "1h").set("cache.policy", "lruu").build().await;
    let Err(BuildError::Config(error)) = built else { panic!("{built:?}") };
    let text = error.to_string();
    assert!(text.contains("cache.ttl") && text.contains("lruu"), "{text}");
}

#[tokio::test]
async fn a_cache_follows_changes_and_their_undoing() {
    let perf = builder().build().await.expect("a handle");
    let users = perf.cache::<u64, u64>("users").open().await.expect("a cache");
    let other = perf.cache::<u64, u64>("other").entries(7).open().await.expect("a cache");
    assert_eq!(users.capacity(), 10_000);
    let applied = perf
        .apply([("caches.users.entries", json!(500)), ("cache_ttl", json!(60))], "ada")
        .expect("a change");
    let keys: Vec<_> = applied.differences.iter().map(|it| (&*it.key, it.effect)).collect();
    assert_eq!(keys, [("cache.ttl", Effect::Live), ("caches.users.entries", Effect::Live)]);
    assert_eq!((users.capacity(), other.capacity()), (500, 7), "only what was named");
    assert_eq!(perf.config().cache.ttl, Duration::from_secs(60));
    let undone = perf.undo(applied.version, "bob").expect("nothing since");
    assert_eq!((undone.version, undone.undoes), (2, Some(1)));
    assert_eq!(users.capacity(), 10_000);
    assert_eq!(perf.config().cache.ttl, Duration::from_hours(1));
    let who: Vec<_> = perf.changes().into_iter().map(|change| change.by).collect();
    assert_eq!(who, ["ada", "bob"]);
}

#[tokio::test]
async fn a_cache_whose_values_are_weighed_is_bounded_by_bytes_alone() {
    let perf = builder().set("cache.memory.default_entries", "10").build().await.expect("a handle");
    let pages = perf.cache::<u64, u64>("pages").bytes(1 << 20, |_, _| 8).build().expect("a cache");
    (0..1_000).for_each(|page| pages.insert(page, page));
    assert_eq!((pages.stats().memory.entries, pages.capacity()), (1_000, 1 << 20));
    perf.apply([("caches.pages.capacity", json!("64KiB"))], "ada").expect("a change");
    assert_eq!(pages.capacity(), 64 << 10);
}

/// What of a cache the configuration and the program both have a say in.
fn holds(
    cache: &Cache<u64, u64>,
) -> (u64, Option<cache_tiered::Policy>, Option<Duration>, [Duration; 2], f64) {
    let tuning = cache.tuning();
    let windows = [tuning.stale_while_revalidate, tuning.stale_if_error];
    (cache.capacity(), cache.policy(), tuning.ttl, windows, tuning.early_refresh)
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_the_program_set_on_a_cache_stays_whatever_is_said_of_all() {
    let perf = builder().build().await.expect("a handle");
    let usual = perf.config().cache.clone();
    // As configured at the start, which does not make it less the program's.
    let same = perf.cache::<u64, u64>("same").entries(usual.memory.default_entries as u64);
    let same =
        same.policy(cache_tiered::Policy::S3Fifo).ttl(usual.ttl).stale_if_error(Duration::ZERO);
    let same = same.stale_while_revalidate(Duration::ZERO).early_refresh(0.0);
    let same = same.prefetch(Prefetch::default().successions(7)).build().expect("a cache");
    let own =
        perf.cache::<u64, u64>("own").entries(7).policy(cache_tiered::Policy::Lru).ttl(10 * MINUTE);
    let own = own.stale_while_revalidate(MINUTE).stale_if_error(2 * MINUTE).early_refresh(3.0);
    let own = own.build().expect("a cache");
    let weighed = perf.cache::<u64, u64>("weighed").bytes(1 << 20, |_, _| 8);
    let weighed = weighed.build().expect("a cache");
    let handed_on = perf.cache::<u64, u64>("handed-on");
    let handed_on = handed_on.bytes(usual.memory.capacity.as_u64(), |_, _| 8);
    let handed_on = handed_on.build().expect("a cache");
    let free = perf.cache::<u64, u64>("free").build().expect("a cache");
    let before = [&same, &own].map(holds);
    assert_eq!(before[1].0, 7);
    perf.apply([("level", json!("ultra"))], "ada").expect("a change");
    let more = [
        ("cache.ttl", json!("5m")),
        ("cache.memory.entries", json!(500)),
        ("cache.memory.capacity", json!("64MiB")),
        ("cache.policy", json!("lfu")),
        ("cache.stale_if_error", json!("9m")),
    ];
    perf.apply(more, "ada").expect("a change");
    assert_eq!([&same, &own].map(holds), before);
    assert_eq!(same.tuning().prefetch, Some(Prefetch::default().successions(7)));
    assert_eq!((weighed.capacity(), handed_on.capacity()), (1 << 20, 64 << 20));
    let windows = [MINUTE / 2, 9 * MINUTE];
    assert_eq!(
        holds(&free),
        (500, Some(cache_tiered::Policy::Lfu), Some(5 * MINUTE), windows, 1.0)
    );
    assert!(free.tuning().prefetch.is_some() && own.tuning().prefetch.is_some());
}

#[tokio::test]
async fn a_change_that_names_the_cache_goes_before_the_program_until_it_is_taken_back() {
    let perf = builder().build().await.expect("a handle");
    let users = perf
        .cache::<u64, u64>("users")
        .entries(1_000)
        .policy(cache_tiered::Policy::Lru)
        .ttl(10 * MINUTE);
    let users = users.stale_while_revalidate(MINUTE).early_refresh(3.0).build().expect("a cache");
    let pages = perf.cache::<u64, u64>("pages").bytes(1 << 20, |_, _| 8).build().expect("a cache");
    let opened = holds(&users);
    for (key, value, held) in [
        ("entries", json!(5_000), (5_000, opened.1, opened.2, opened.3, 3.0)),
        ("policy", json!("arc"), (1_000, Some(cache_tiered::Policy::Arc), opened.2, opened.3, 3.0)),
        ("ttl", json!("1m"), (1_000, opened.1, Some(MINUTE), opened.3, 3.0)),
        (
            "stale_while_revalidate",
            json!("3m"),
            (1_000, opened.1, opened.2, [3 * MINUTE, Duration::ZERO], 3.0),
        ),
        ("early_refresh", json!(0), (1_000, opened.1, opened.2, opened.3, 0.0)),
    ] {
        let key = format!("caches.users.{key}");
        let applied = perf.apply([(key.clone(), value.clone())], "ada").expect("a change");
        assert_eq!(holds(&users), held, "{key} = {value}");
        perf.apply([("cache.ttl", json!("7m"))], "ada").expect("a change of all caches");
        assert_eq!(holds(&users), held, "{key} = {value}");
        perf.undo(applied.version, "ada").expect("the key has not changed since");
        assert_eq!(holds(&users), opened, "{key} was {value}");
    }
    let first = perf.apply([("caches.pages.capacity", json!("2MiB"))], "ada").expect("a change");
    let second = perf.apply([("caches.pages.capacity", json!("3MiB"))], "ada").expect("a change");
    assert_eq!(pages.capacity(), 3 << 20);
    perf.undo(second.version, "ada").expect("the last one");
    assert_eq!(pages.capacity(), 2 << 20, "the change before");
    perf.undo(first.version, "ada").expect("now the last one");
    assert_eq!(pages.capacity(), 1 << 20, "the program's");
}

#[tokio::test]
async fn a_file_gives_way_to_the_program_and_a_change_does_not_whenever_the_cache_is_opened() {
    let perf = builder().set("caches.users.ttl", "2m").build().await.expect("a handle");
    let users = || perf.cache::<u64, u64>("users");
    let ttl = |cache: Cache<u64, u64>| cache.tuning().ttl;
    assert_eq!(ttl(users().build().expect("a cache")), Some(2 * MINUTE));
    assert_eq!(ttl(users().ttl(9 * MINUTE).build().expect("a cache")), Some(9 * MINUTE));
    let described = users().ttl(9 * MINUTE);
    let free = perf.cache::<u64, u64>("free");
    // The same value as that of the file, but now somebody means this very cache.
    let both = [("caches.users.ttl", json!("2m")), ("cache.ttl", json!("3m"))];
    let applied = perf.apply(both, "ada").expect("a change");
    let opened = described.build().expect("a cache");
    assert_eq!(opened.tuning().ttl, Some(2 * MINUTE), "it was made meanwhile");
    assert_eq!(ttl(free.build().expect("a cache")), Some(3 * MINUTE));
    perf.undo(applied.version, "ada").expect("the last one");
    assert_eq!(opened.tuning().ttl, Some(9 * MINUTE));
}

#[tokio::test]
async fn a_bound_of_its_own_holds_for_a_cache_that_is_handed_the_bound_of_all() {
    let perf = builder().set("caches.pages.capacity", "1MiB").build().await.expect("a handle");
    let capacity = perf.config().cache.memory.capacity.as_u64();
    let pages = perf.cache::<u64, u64>("pages").bytes(capacity, |_, _| 8);
    let pages = pages.build().expect("a cache");
    assert_eq!(pages.capacity(), 1 << 20);
    perf.apply([("cache.memory.capacity", json!("64MiB"))], "ada").expect("a change");
    assert_eq!(pages.capacity(), 1 << 20);
}

#[tokio::test]
async fn keys_that_the_program_calls_related_are_loaded_ahead_whatever_is_said_of_all() {
    let perf = builder().build().await.expect("a handle");
    let lists = perf.cache::<u64, u64>("lists").related(|page| [page + 1]);
    let lists = lists.build().expect("a cache");
    let opened = lists.tuning().prefetch;
    assert!(opened.is_some());
    let applied = perf.apply([("cache.prefetch", json!(true))], "ada").expect("a change");
    assert_eq!(lists.tuning().prefetch, Some(Prefetch::default()));
    perf.undo(applied.version, "ada").expect("the last one");
    assert_eq!(lists.tuning().prefetch, opened);
    perf.apply([("caches.lists.prefetch", json!(false))], "ada").expect("a change");
    assert_eq!(lists.tuning().prefetch, None, "this cache is meant");
}

#[tokio::test]
async fn a_cache_that_is_called_as_its_function_has_settings_of_its_own() {
    const FILE: &str = "[caches.\"shop.users.load\"]\nentries = 70\n";
    let loaded = ConfigLoader::new().toml("shop.toml", FILE).load().expect("a configuration");
    let perf = builder().config(loaded).build().await.expect("a handle");
    let load = perf.cache::<u64, u64>("shop.users.load").build().expect("a cache");
    let users = perf.cache::<u64, u64>("shop.users").build().expect("a cache");
    assert_eq!((load.capacity(), users.capacity()), (70, 10_000));
    let change =
        [("caches.shop.users.load.entries", json!(500)), ("caches.shop.users.ttl", json!("5m"))];
    let applied = perf.apply(change, "ada").expect("a change");
    let keys: Vec<_> = applied.differences.iter().map(|it| (&*it.key, it.effect)).collect();
    let expected = ["caches.shop.users.ttl", "caches.shop.users.load.entries"];
    assert_eq!(keys, expected.map(|key| (key, Effect::Live)));
    assert_eq!((load.capacity(), users.tuning().ttl), (500, Some(5 * MINUTE)));
    perf.undo(applied.version, "ada").expect("the last one");
    assert_eq!((load.capacity(), users.tuning().ttl), (70, Some(60 * MINUTE)));
}

#[tokio::test]
async fn code_wins_over_a_configuration_that_is_loaded_and_a_file_beside_it_is_refused() {
    let loaded = || {
        let loader = ConfigLoader::new().toml("f", "cache.ttl = '5m'\ncache.policy = 'lru'");
        loader.set("level", "extreme", "--level").load().expect("a configuration")
    };
    let perf = builder().config(loaded()).set("cache.ttl", "6m").build().await.expect("a handle");
    let config = perf.config();
    assert_eq!((config.cache.ttl, perf.level()), (6 * MINUTE, OptimizationLevel::Basic));
    assert_eq!(config.origin("cache.ttl").map(ToString::to_string).as_deref(), Some("the program"));
    assert_eq!(config.origin("cache.policy").map(ToString::to_string).as_deref(), Some("f:2"));
    let applied = perf.apply([("cache.ttl", json!("7m"))], "ada").expect("a change");
    perf.undo(applied.version, "ada").expect("the last one");
    assert_eq!(perf.config().cache.ttl, 6 * MINUTE);
    let built = builder().config_file("f.toml").config(loaded()).process_env().build().await;
    let error = built.expect_err("they would be left out");
    assert!(matches!(&error, BuildError::LoadedAlready { sources } if sources.len() == 2));
    let text = error.to_string();
    assert!(text.contains("`config_file`, `process_env` would be left out"), "{text}");
}

#[tokio::test]
async fn what_a_main_prints_of_an_error_is_the_message_with_its_causes() {
    let error = builder().set("cache.tll", "1h").build().await.expect_err("no such key");
    assert_eq!(
        format!("{error:?}"),
        "invalid configuration, 1 problem:\n  cache.tll: unknown key, did you mean cache.ttl?\n      \
         from the program"
    );
    let builder = builder().on_start("database", |_| async {
        let refused = std::io::Error::other("connection refused");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, refused).into())
    });
    let error = builder.build().await.expect_err("the hook failed");
    let text = format!("{error:?}");
    let lines: Vec<_> = text.lines().collect();
    let expected = ["the start-up hook \"database\" failed", "  caused by: connection refused"];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn who_finds_the_directory_of_a_cache_in_use_is_told_which_key_names_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("cache").display().to_string();
    let handle = || {
        let builder = builder().set("cache.disk.enabled", "true");
        builder.set("cache.disk.path", path.clone()).build()
    };
    let (one, two) = (handle().await.expect("one"), handle().await.expect("two"));
    let users = one.cache::<u64, u64>("users").open().await.expect("a cache");
    let error = two.cache::<u64, u64>("users").open().await.expect_err("the first one has it");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.ends_with("in use by another cache; cache.disk.path can name another directory"));
    drop(users);
    one.shutdown(DEADLINE).await;
    two.shutdown(DEADLINE).await;
}

#[tokio::test]
async fn a_change_with_problems_changes_nothing() {
    let perf = builder().build().await.expect("a handle");
    let bad = [("cache.ttl", json!("5m")), ("cache.policy", json!("best"))];
    let error = perf.apply(bad, "ada").expect_err("no such policy");
    assert!(error.to_string().contains("s3-fifo"), "{error}");
    assert_eq!((perf.version(), perf.config().cache.ttl), (0, Duration::from_hours(1)));
}

#[tokio::test]
async fn what_was_changed_again_is_not_undone_from_below() {
    let perf = builder().build().await.expect("a handle");
    perf.apply([("cache.ttl", json!("5m"))], "ada").expect("a change");
    perf.apply([("cache_ttl", json!("6m"))], "ada").expect("a change");
    let error = perf.undo(1, "ada").expect_err("version 2 holds");
    assert!(matches!(error, ApplyError::ChangedSince { later: 2, .. }), "{error}");
    assert!(matches!(perf.undo(9, "ada"), Err(ApplyError::UnknownVersion(9))));
    perf.undo(2, "ada").expect("the last one");
    assert_eq!(perf.config().cache.ttl, Duration::from_secs(300));
    assert!(matches!(perf.undo(2, "ada"), Err(ApplyError::UndoneAlready(2))));
    perf.undo(3, "ada").expect("its undoing");
    assert_eq!(perf.config().cache.ttl, Duration::from_secs(360));
    let error = perf.undo(1, "ada").expect_err("version 2 holds again");
    assert!(matches!(error, ApplyError::ChangedSince { later: 2, .. }), "{error}");
    perf.undo(2, "ada").expect("in force");
    perf.undo(1, "ada").expect("nothing above it");
    assert_eq!(perf.config().cache.ttl, Duration::from_hours(1));
}

#[tokio::test]
async fn who_hears_of_changes_may_read_them_and_not_make_one() {
    let perf = builder().build().await.expect("a handle");
    let (seen, target) = (Arc::new(AtomicU64::new(0)), Arc::new(()));
    let (told, weak) = (Arc::clone(&seen), perf.downgrade());
    perf.on_change_while(&target, move |(), _, _| {
        let perf = weak.upgrade().expect("it makes the change");
        told.store(perf.version(), Ordering::Relaxed);
        assert_eq!(perf.changes().len() as u64, perf.version());
        let error =
            perf.apply([("cache.ttl", json!("1m"))], "a listener").expect_err("in a change");
        assert!(matches!(error, ApplyError::WithinChange), "{error}");
    });
    perf.apply([("cache.ttl", json!("5m"))], "ada").expect("a change");
    perf.apply([("cache.ttl", json!("6m"))], "ada").expect("a change");
    assert_eq!(seen.load(Ordering::Relaxed), 2);
    drop(target);
    perf.apply([("cache.ttl", json!("7m"))], "ada").expect("a change");
    assert_eq!((seen.load(Ordering::Relaxed), Arc::strong_count(&seen)), (2, 1));
}

#[tokio::test]
async fn limits_that_move_and_the_memory_of_tasks_follow_changes() {
    let perf = builder().set("scheduler.adaptive", "true").set("scheduler.io.max_in_flight", "100");
    let perf = perf.build().await.expect("a handle");
    let slots = |perf: &UltraPerf| perf.scheduler().stats().lane(Lane::Io).slots;
    assert_eq!(slots(&perf), 100);
    let lower = perf.apply([("scheduler.io.max_in_flight", json!(40))], "ada").expect("a change");
    assert_eq!(slots(&perf), 40);
    perf.undo(lower.version, "ada").expect("in force");
    perf.scheduler().set_limit(Lane::Io, Some(100));
    assert_eq!(slots(&perf), 100, "it may rise that far again");
    let budget = |perf: &UltraPerf| perf.scheduler().memory_stats().expect("a gate").budget_bytes;
    perf.apply([("scheduler.memory_budget", json!("1GiB"))], "ada").expect("a change");
    assert_eq!(budget(&perf), 1 << 30);
    let error = perf.apply([("scheduler.io.max_in_flight", json!(65_537))], "ada");
    assert!(matches!(error, Err(ApplyError::Config(_))));
}

#[tokio::test]
async fn a_balancer_that_is_built_is_watched_and_keeps_a_policy_of_its_own() {
    let perf = builder().set("balancer.policy", "round-robin").build().await.expect("a handle");
    let backends = || ["a", "b"].map(Backend::new);
    let usual = perf.balancer("usual").backends(backends()).build().expect("a balancer");
    let own = perf.balancer("own").backends(backends()).policy(Policy::WeightedRandom);
    let own = own.build().expect("a balancer");
    let names: Vec<_> = perf.balancers().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["own", "usual"]);
    perf.apply([("balancer.policy", json!("maglev"))], "ada").expect("a change");
    assert!(matches!(usual.policy(), Policy::Maglev { .. }));
    assert_eq!(own.policy(), Policy::WeightedRandom);
}

#[tokio::test]
async fn breakers_that_are_off_never_open_and_a_level_switches_none_of_them_off() {
    for (mode, state) in [(Some("off"), State::Closed), (None, State::Open)] {
        let builder =
            mode.iter().fold(builder(), |it, mode| it.set("balancer.breaker.mode", *mode));
        let perf = builder.build().await.expect("a handle");
        for _ in 0..50 {
            if let Ok(permit) = perf.breaker("db").try_acquire() {
                permit.complete(ultra_perf::resilience::Outcome::Failure);
            }
        }
        assert_eq!(perf.breaker("db").state(), state, "{mode:?}");
    }
}

#[tokio::test]
async fn a_level_is_a_change_like_any_other_and_what_was_set_stays() {
    let perf = builder().set("cache.policy", "lru").build().await.expect("a handle");
    let applied = perf.apply([("level", json!("ultra"))], "ada").expect("a change");
    assert_eq!(perf.level(), OptimizationLevel::Ultra);
    assert_eq!(perf.config().cache.policy.to_string(), "lru");
    let effect =
        |key: &str| applied.differences.iter().find(|it| it.key == key).map(|it| it.effect);
    assert_eq!(effect("cache.early_refresh"), Some(Effect::Live));
    assert_eq!(effect("cache.disk.enabled"), Some(Effect::Restart));
}

#[tokio::test]
async fn two_handles_in_one_process_know_nothing_of_each_other() {
    let (one, two) = (builder().build().await.expect("one"), builder().build().await.expect("two"));
    let users = one.cache::<u64, u64>("users").open().await.expect("a cache");
    let same = two.cache::<u64, u64>("users").open().await.expect("a cache");
    one.apply([("cache.memory.entries", json!(5))], "ada").expect("a change");
    users.insert(1, 1);
    assert_eq!((users.capacity(), same.capacity()), (5, 10_000));
    assert_eq!(same.get(&1).await, None);
    one.breaker("db").force_open();
    assert!(two.breaker("db").try_acquire().is_ok());
    one.shutdown(DEADLINE).await;
    let sum = two.scheduler().cpu("sum", |_| 2 + 2).submit().expect("room").await;
    assert_eq!(sum.expect("it runs"), 4, "the other one goes on");
}

#[tokio::test]
async fn hooks_run_around_the_life_of_the_parts_in_order() {
    let said = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let say = |word: &'static str| {
        let said = Arc::clone(&said);
        move || said.lock().push(word)
    };
    let (up, first, last) = (say("up"), say("first"), say("last"));
    let perf = builder()
        .on_start("warm", |perf| async move {
            let cache = perf.cache::<u64, u64>("warm").open().await?;
            cache.insert(1, 1);
            up();
            Ok(())
        })
        .on_shutdown("first named", |_| async move { first() })
        .on_shutdown("last named", |perf| async move {
            assert_eq!(perf.caches().len(), 1, "all parts still work");
            last();
        })
        .on_shutdown("broken", |_| async { panic!("a hook of the test") })
        .build()
        .await
        .expect("a handle");
    let report = perf.shutdown(DEADLINE).await;
    assert_eq!(*said.lock(), ["up", "last", "first"]);
    let names: Vec<_> = report.steps.iter().map(|step| &*step.name).collect();
    let expected = [
        "jobs",
        "hook broken",
        "hook last named",
        "hook first named",
        "scheduler",
        "cache warm",
        "monitor",
    ];
    assert_eq!(names, expected);
    assert_eq!(report.steps[1].outcome, Outcome::Panicked);
    assert!(!report.is_clean());
    assert_eq!(perf.shutdown(DEADLINE).await.steps, [], "a second time there is nothing to do");
}

#[tokio::test]
async fn a_start_up_hook_that_fails_ends_the_start() {
    let stopped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&stopped);
    let error = builder()
        .on_start("database", |_| async { Err("no database".into()) })
        .on_shutdown("count", move |_| async move {
            counted.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .await
        .expect_err("the hook failed");
    assert_eq!(error.to_string(), "the start-up hook \"database\" failed");
    assert_eq!(stopped.load(Ordering::Relaxed), 1, "what was up is stopped");
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_at_its_period_until_the_shutdown() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let perf = builder()
        .every("tidy", Duration::from_secs(60), move |_| {
            let runs = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert_ne!(runs, 1, "the second run panics, and the third comes") }
        })
        .build()
        .await
        .expect("a handle");
    let task_count = || runs.load(Ordering::Relaxed);
    for expected in 1..=3 {
        while task_count() < expected {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    perf.shutdown(DEADLINE).await;
    let at_the_end = task_count();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(task_count(), at_the_end);
}

#[tokio::test]
async fn a_shutdown_without_a_deadline_outlives_hooks_that_panic_at_once() {
    let closed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&closed);
    let perf = builder()
        .on_shutdown("first", move |_| async move {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .on_shutdown("broken", |perf| {
            assert!(perf.caches().len() > 9, "a hook of the test's");
            async {}
        });
    let perf = perf.build().await.expect("a handle");
    perf.cache::<u64, u64>("users").open().await.expect("a cache");
    let report = perf.shutdown(Duration::MAX).await;
    let outcome = |name| report.steps.iter().find(|step| step.name == name).map(|it| &it.outcome);
    assert_eq!(outcome("hook broken"), Some(&Outcome::Panicked));
    assert_eq!(outcome("hook first"), Some(&Outcome::Done));
    assert_eq!(outcome("cache users"), Some(&Outcome::Done));
    assert_eq!(closed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_shutdown_cuts_off_what_does_not_end() {
    let perf = builder().build().await.expect("a handle");
    let forever = perf.scheduler().io("forever", std::future::pending::<()>());
    let handle = forever.submit().expect("room");
    let report = perf.shutdown(Duration::from_millis(50)).await;
    let cut: Vec<_> = report.steps.iter().filter(|step| step.outcome != Outcome::Done).collect();
    assert_eq!(cut.len(), 1, "{report}");
    assert_eq!(cut[0].outcome, Outcome::CutOff("1 tasks".to_owned()));
    assert!(handle.await.is_err());
}

#[tokio::test]
async fn a_scope_tells_what_was_done_in_it_and_nothing_else() {
    let perf = builder().build().await.expect("a handle");
    let users = perf.cache::<u64, u64>("users").open().await.expect("a cache");
    users.insert(1, 1);
    let scope = perf.scope("batch");
    let inside = {
        let (perf, users) = (perf.clone(), users.clone());
        async move {
            assert_eq!(users.get(&1).await, Some(1));
            tokio::task::yield_now().await;
            assert_eq!(users.get(&2).await, None);
            perf.scheduler().cpu("sum", |_| 1).submit().expect("room").await.expect("it runs")
        }
    };
    let outside = async {
        for _ in 0..100 {
            users.get(&1).await;
            tokio::task::yield_now().await;
        }
    };
    let ((result, report), ()) = tokio::join!(scope.run(inside), outside);
    assert_eq!(result, 1);
    assert_eq!((report.cache_hits, report.cache_misses, report.tasks), (1, 1, 1));
    assert!(report.busy <= report.elapsed, "{report:?}");
    let (_, report) = scope.run_sync(|| users.get_in_memory(&1));
    assert_eq!((report.cache_hits, report.cache_misses, report.tasks), (1, 0, 0));
}

#[tokio::test]
async fn parts_are_watched_under_the_names_that_the_registry_tells() {
    let perf = builder().set("monitor.enabled", "false").build().await.expect("a handle");
    let users = perf.cache::<u64, u64>("users").open().await.expect("a cache");
    users.insert(1, 1);
    assert_eq!((users.get(&1).await, users.get(&2).await), (Some(1), None));
    perf.counts_requests_of("pages");
    let pages = perf.cache::<u64, u64>("pages").open().await.expect("a cache");
    assert_eq!(pages.get(&1).await, None);
    perf.breaker("db").force_open();
    perf.apply([("cache.ttl", json!("5m"))], "ada").expect("a change");
    let snapshot = perf.snapshot();
    let number = |name: &str, labels: &[(&str, &str)]| snapshot.number(name, labels);
    let tier = [("cache", "users"), ("type", "memory")];
    assert_eq!(number("cache_hits_total", &tier), Some(1.0));
    let requests =
        |cache, result| number("cache_requests_total", &[("cache", cache), ("result", result)]);
    assert_eq!((requests("users", "hit"), requests("users", "miss")), (Some(1.0), Some(1.0)));
    assert_eq!(requests("pages", "miss"), None, "somebody else counts them");
    assert_eq!(number("circuit_breaker_state", &[("breaker", "db")]), Some(1.0));
    assert_eq!(number("config_version", &[]), Some(1.0));
    assert!(number("scheduler_slots", &[("lane", "cpu")]).is_some_and(|slots| slots >= 1.0));
    assert!(number("memory_level", &[]).is_none(), "the guard is off at this level");
}

#[tokio::test]
async fn a_handle_that_is_dropped_takes_its_jobs_along() {
    let perf = builder().build().await.expect("a handle");
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    perf.every("hold", Duration::from_secs(3_600), move |_| {
        let held = Arc::clone(&held);
        async move { drop(held) }
    });
    let weak = perf.downgrade();
    drop(perf);
    assert!(weak.upgrade().is_none());
    while Arc::strong_count(&alive) > 1 {
        tokio::task::yield_now().await;
    }
}
