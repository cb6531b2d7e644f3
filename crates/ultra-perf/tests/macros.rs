//! Functions under the attributes, with a handle of their own in each test.
#![deny(missing_docs)]

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Serialize;
use ultra_perf::config::ConfigLoader;
use ultra_perf::{
    OptimizationLevel, TaskError, TaskErrorKind, UltraPerf, cache_invalidate, cached, monitored,
    optimized,
};

/// Counts the runs of bodies of one test.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicU32>);

impl Runs {
    fn count(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn so_far(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a function of these tests fails with.
#[derive(Debug, Clone, PartialEq)]
enum Error {
    Failed(u32),
    Task(TaskError),
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

/// One that nobody can copy.
#[derive(Debug, PartialEq)]
struct Unshareable(u32);

/// A handle over memory alone.
async fn perf() -> UltraPerf {
    settings(|loader| loader).await
}

async fn settings(more: impl FnOnce(ConfigLoader) -> ConfigLoader) -> UltraPerf {
    let set = [
        ("level", "basic"),
        ("cache.disk.enabled", "false"),
        ("memory.enabled", "false"),
        ("monitor.enabled", "false"),
    ];
    let loader = set
        .into_iter()
        .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(key, value, "the test"));
    let config = more(loader).load().expect("the test's configuration is valid");
    UltraPerf::builder().config(config).build().await.expect("the parts start")
}

fn number(perf: &UltraPerf, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    perf.registry().read(monitor_now()).number(name, labels)
}

fn monitor_now() -> ultra_perf::monitor::Moment {
    ultra_perf::monitor::Moment { monotonic: Duration::ZERO, unix_ms: 0 }
}

#[cached(ttl = "10m", skip(runs))]
async fn double(perf: &UltraPerf, runs: &Runs, number: u64) -> Result<u64, Error> {
    runs.count();
    tokio::task::yield_now().await;
    if number == 0 { Err(Error::Failed(0)) } else { Ok(2 * number) }
}

#[tokio::test]
async fn a_result_is_made_once() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..3 {
        assert_eq!(double(&perf, &runs, 21).await, Ok(42));
    }
    assert_eq!(runs.so_far(), 1);
    assert_eq!(double(&perf, &runs, 4).await, Ok(8));
    assert_eq!(runs.so_far(), 2);
}

#[tokio::test]
async fn a_hit_and_a_miss_count_as_one_each() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..4 {
        double(&perf, &runs, 21).await.unwrap();
    }
    let caches = perf.caches();
    let stats = caches[0].stats();
    assert_eq!((stats.memory.hits, stats.memory.misses), (3, 1));
    assert_eq!(caches[0].name(), "macros.double");
}

#[tokio::test]
async fn concurrent_misses_run_one_body() {
    let (perf, runs) = (perf().await, Runs::default());
    let calls = (0..20).map(|_| double(&perf, &runs, 21));
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().all(|result| *result == Ok(42)));
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn an_error_is_shared_by_those_who_wait_and_not_kept() {
    let (perf, runs) = (perf().await, Runs::default());
    let calls = (0..20).map(|_| double(&perf, &runs, 0));
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().all(|result| *result == Err(Error::Failed(0))));
    assert_eq!(runs.so_far(), 1);
    assert_eq!(double(&perf, &runs, 0).await, Err(Error::Failed(0)));
    assert_eq!(runs.so_far(), 2);
}

#[cached(skip(runs))]
async fn fails_alone(perf: &UltraPerf, runs: &Runs, id: u8) -> Result<u32, Unshareable> {
    let run = runs.count();
    tokio::task::yield_now().await;
    Err(Unshareable(run + u32::from(id)))
}

#[tokio::test]
async fn an_error_that_cannot_be_cloned_is_made_by_each() {
    let (perf, runs) = (perf().await, Runs::default());
    let calls = (0..5).map(|_| fails_alone(&perf, &runs, 0));
    let mut errors: Vec<u32> = futures_util::future::join_all(calls)
        .await
        .into_iter()
        .map(|it| it.unwrap_err().0)
        .collect();
    errors.sort_unstable();
    assert_eq!(errors, [1, 2, 3, 4, 5]);
}

#[cached(skip(runs))]
async fn find(perf: &UltraPerf, runs: &Runs, id: u8) -> Option<u32> {
    let run = runs.count();
    (id > 0).then_some(run)
}

#[cached(skip(runs), cache_none = "1m")]
async fn find_once(perf: &UltraPerf, runs: &Runs, id: u8) -> Option<u32> {
    let run = runs.count();
    (id > 0).then_some(run)
}

#[cached(skip(runs), cache_errors)]
async fn fail_once(perf: &UltraPerf, runs: &Runs) -> Result<u32, String> {
    Err(format!("run {}", runs.count()))
}

#[tokio::test]
async fn none_and_errors_are_kept_only_where_asked() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!((find(&perf, &runs, 0).await, find(&perf, &runs, 0).await), (None, None));
    assert_eq!(runs.so_far(), 2);
    assert_eq!((find(&perf, &runs, 1).await, find(&perf, &runs, 1).await), (Some(3), Some(3)));

    assert_eq!((find_once(&perf, &runs, 0).await, find_once(&perf, &runs, 0).await), (None, None));
    assert_eq!(runs.so_far(), 4);

    assert_eq!(fail_once(&perf, &runs).await, Err("run 5".to_owned()));
    assert_eq!(fail_once(&perf, &runs).await, Err("run 5".to_owned()));
}

type Fetched<T> = std::result::Result<T, Error>;

#[cached(skip(runs))]
async fn by_another_name(perf: &UltraPerf, runs: &Runs) -> Fetched<u32> {
    Err(Error::Failed(runs.count()))
}

mod own_result {
    //! A type that is called as another one.
    use super::{Runs, Serialize, UltraPerf, cached};

    /// No result at all.
    #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
    #[allow(clippy::allow_attributes)]
    pub(super) struct Result(pub(super) u32);

    #[cached(skip(runs))]
    pub(super) async fn make(perf: &UltraPerf, runs: &Runs) -> Result {
        Result(runs.count())
    }
}

#[tokio::test]
async fn a_result_is_known_by_its_type_and_not_by_its_name() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!(by_another_name(&perf, &runs).await, Err(Error::Failed(1)));
    assert_eq!(by_another_name(&perf, &runs).await, Err(Error::Failed(2)));
    assert_eq!(own_result::make(&perf, &runs).await, own_result::Result(3));
    assert_eq!(own_result::make(&perf, &runs).await, own_result::Result(3));
}

#[cached(key = (tenant, id % 10), skip())]
async fn of_tenant(perf: &UltraPerf, runs: Runs, tenant: &str, id: u64) -> String {
    format!("{tenant}/{id} of run {}", runs.count())
}

#[tokio::test]
async fn a_key_of_the_programs_own_takes_the_place_of_the_arguments() {
    let (perf, runs) = (perf().await, Runs::default());
    let ask = |tenant: &'static str, id| of_tenant(&perf, runs.clone(), tenant, id);
    assert_eq!(ask("a", 7).await, "a/7 of run 1");
    assert_eq!(ask("a", 17).await, "a/7 of run 1");
    assert_eq!(ask("b", 7).await, "b/7 of run 2");
}

#[cached(tags = ["user:{id}", format!("team:{}", id % 2)], skip(runs))]
async fn load_user(perf: &UltraPerf, runs: &Runs, id: u64) -> Result<u32, Error> {
    let _ = id;
    Ok(runs.count())
}

#[cache_invalidate(tags = ["user:{id}"])]
async fn rename_user(perf: &UltraPerf, id: u64, fails: bool) -> Result<(), Error> {
    let _ = id;
    if fails { Err(Error::Failed(1)) } else { Ok(()) }
}

#[cache_invalidate(of = load_user, key = id)]
fn forget_user(perf: &UltraPerf, id: u64) {}

#[cache_invalidate(of = [load_user, of_tenant], tags = ["team:{team}"])]
async fn dissolve(perf: &UltraPerf, team: u8) {}

#[cache_invalidate(name = "macros.load_user", all)]
async fn forget_all(perf: UltraPerf) {}

#[tokio::test]
async fn results_are_forgotten_by_tag_by_key_and_all() {
    let (perf, runs) = (perf().await, Runs::default());
    let both = async || {
        (load_user(&perf, &runs, 1).await.unwrap(), load_user(&perf, &runs, 2).await.unwrap())
    };
    assert_eq!(both().await, (1, 2));
    rename_user(&perf, 1, true).await.unwrap_err();
    assert_eq!(both().await, (1, 2), "what failed has changed nothing");
    rename_user(&perf, 1, false).await.unwrap();
    assert_eq!(both().await, (3, 2));
    forget_user(&perf, 2);
    assert_eq!(both().await, (3, 4));
    dissolve(&perf, 1).await;
    assert_eq!(both().await, (5, 4));
    forget_all(perf.clone()).await;
    assert_eq!(both().await, (6, 7));
}

#[cache_invalidate(tags = ["user:{id}"])]
async fn changes_and_waits(perf: &UltraPerf, id: u64) {
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_change_that_was_dropped_on_its_way_counts_as_made() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!(load_user(&perf, &runs, 1).await, Ok(1));
    let change = changes_and_waits(&perf, 1);
    assert!(futures_util::FutureExt::now_or_never(change).is_none());
    assert_eq!(load_user(&perf, &runs, 1).await, Ok(2));
}

#[cached(skip(runs))]
async fn by_key(perf: &UltraPerf, runs: &Runs, key: u8) -> u32 {
    runs.count() + u32::from(key)
}

#[cache_invalidate(of = by_key, key = key)]
async fn forget_by_key(perf: &UltraPerf, key: u8) {}

#[tokio::test]
async fn an_argument_may_be_called_key() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!((by_key(&perf, &runs, 1).await, by_key(&perf, &runs, 1).await), (2, 2));
    forget_by_key(&perf, 1).await;
    assert_eq!(by_key(&perf, &runs, 1).await, 3);
}

#[cached(skip(runs))]
async fn query(perf: &UltraPerf, runs: &Runs, filter: serde_json::Value) -> u32 {
    let _ = filter;
    runs.count()
}

#[tokio::test]
async fn json_that_differs_in_kind_alone_is_another_key() {
    use serde_json::json;
    let (perf, runs) = (perf().await, Runs::default());
    let bits = 1.0_f64.to_bits();
    let filters = [
        json!({}),
        json!([]),
        json!(false),
        json!(null),
        json!(-1),
        json!(u64::MAX),
        json!(1.0),
        json!(bits),
    ];
    for _ in 0..2 {
        for (at, filter) in filters.iter().enumerate() {
            assert_eq!(query(&perf, &runs, filter.clone()).await, at as u32 + 1, "{filter}");
        }
    }
}

#[cached(skip(runs))]
async fn with_conditions(
    perf: &UltraPerf,
    runs: &Runs,
    #[cfg(any())] mut left_out: u8,
    #[cfg(test)] kept: u8,
    #[cfg(any())] any_left_out: impl Display + Serialize + Send + Sync,
) -> u32 {
    runs.count() + u32::from(kept)
}

#[cached]
#[cfg(any())]
async fn left_out(perf: &UltraPerf, of: NoSuchType) -> NoSuchType {
    of
}

#[cached(skip(runs))]
async fn makes_one(perf: &UltraPerf, runs: &Runs) -> u32 {
    struct One(u32);
    impl One {
        fn new(runs: &Runs) -> Self {
            Self(runs.count())
        }
    }
    One::new(runs).0
}

#[tokio::test]
async fn conditions_and_items_inside_stay_what_they_are() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..2 {
        assert_eq!(with_conditions(&perf, &runs, 1).await, 2);
        assert_eq!(with_conditions(&perf, &runs, 2).await, 4);
        assert_eq!(makes_one(&perf, &runs).await, 3);
    }
}

#[async_trait::async_trait]
trait Store: Send + Sync {
    async fn fetch(&self, id: u64) -> Result<u32, Error>;
    async fn store(&self, id: u64) -> u32;
    async fn check(&self, ready: bool) -> Result<(), Error>;
    async fn sum(&self, id: u64) -> Result<u32, Error>;
}

#[async_trait::async_trait]
impl Store for Users {
    #[cached(name = "store", skip(), perf = self.perf)]
    async fn fetch(&self, id: u64) -> Result<u32, Error> {
        tokio::task::yield_now().await;
        Ok(self.runs.count() + id as u32)
    }

    #[cache_invalidate(name = "store", key = id, perf = self.perf)]
    async fn store(&self, id: u64) -> u32 {
        // What is asked for meanwhile is kept, and forgotten at the end.
        let before = self.fetch(id).await;
        assert!(before.is_ok());
        self.runs.count()
    }

    #[monitored(name = "store.check", perf = self.perf)]
    async fn check(&self, ready: bool) -> Result<(), Error> {
        if ready { Ok(()) } else { std::future::pending().await }
    }

    #[optimized(timeout = "10s", retry = 1, perf = self.perf)]
    async fn sum(&self, id: u64) -> Result<u32, Error> {
        match self.runs.count() {
            run if run % 2 == 1 => Err(Error::Failed(run)),
            run => Ok(run + id as u32),
        }
    }
}

#[monitored(name = "later")]
fn later(perf: &UltraPerf, number: u32) -> impl Future<Output = u32> + Send {
    async move {
        let number = number + perf.caches().len() as u32;
        tokio::task::yield_now().await;
        number
    }
}

#[cached(name = "boxed", skip(runs))]
fn boxed(
    perf: &UltraPerf,
    runs: Runs,
    id: u32,
) -> futures_util::future::BoxFuture<'_, Option<u32>> {
    Box::pin(async move { Some(runs.count() + id) })
}

#[tokio::test(start_paused = true)]
async fn functions_that_return_a_future_are_those_of_its_end() {
    let users = Users { perf: perf().await, runs: Runs::default() };
    let (perf, store): (&UltraPerf, &dyn Store) = (&users.perf, &users);
    assert_eq!((store.fetch(1).await, store.fetch(1).await), (Ok(2), Ok(2)));
    assert_eq!(store.store(1).await, 2);
    assert_eq!(store.fetch(1).await, Ok(4), "forgotten after the body, not before");

    store.check(true).await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(store.check(false)).is_none());
    let labels = [("function", "store.check")];
    assert_eq!(number(perf, "function_calls_total", &labels), Some(2.0));
    assert_eq!(number(perf, "function_cancelled_total", &labels), Some(1.0));
    users.runs.0.store(0, Ordering::Relaxed);
    assert_eq!(store.sum(10).await, Ok(12));

    drop(later(perf, 1));
    assert_eq!(later(perf, 1).await, 2);
    assert_eq!(number(perf, "function_calls_total", &[("function", "later")]), Some(1.0));
    let runs = Runs::default();
    assert_eq!(
        (boxed(perf, runs.clone(), 5).await, boxed(perf, runs, 5).await),
        (Some(6), Some(6))
    );
}

#[cached(skip(runs))]
fn length(perf: &UltraPerf, runs: &Runs, text: &str) -> Option<usize> {
    runs.count();
    (!text.is_empty()).then_some(text.len())
}

#[test]
fn a_function_that_cannot_wait_is_cached_in_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (perf, runs) = (runtime.block_on(perf()), Runs::default());
    let long = "a".repeat(500);
    for _ in 0..2 {
        assert_eq!(length(&perf, &runs, "abc"), Some(3));
        assert_eq!(length(&perf, &runs, &long), Some(500));
    }
    assert_eq!(runs.so_far(), 2);
    assert_eq!((length(&perf, &runs, ""), length(&perf, &runs, "")), (None, None));
    assert_eq!(runs.so_far(), 4);
}

struct Users {
    perf: UltraPerf,
    runs: Runs,
}

impl Users {
    #[cached(name = "users", ttl = Self::TTL, perf = self.perf)]
    async fn load(&self, id: u64) -> Result<u32, Error> {
        Ok(self.run(id))
    }

    #[cache_invalidate(name = "users", key = id, perf = self.perf)]
    async fn save(&mut self, id: u64) -> &mut Self {
        self.runs.count();
        self
    }

    #[optimized(io, timeout = "10s", perf = self.perf)]
    async fn shared(self: Arc<Self>, id: u64) -> Result<u32, Error> {
        tokio::task::yield_now().await;
        Ok(self.run(id))
    }

    #[monitored(name = "users.run", labels(kind = "method"), perf = self.perf)]
    fn run(&self, _: u64) -> u32 {
        self.runs.count()
    }

    const TTL: Duration = Duration::from_secs(60);
}

#[tokio::test]
async fn methods_find_their_handle_where_they_are_told() {
    let mut users = Users { perf: perf().await, runs: Runs::default() };
    assert_eq!(users.load(7).await, Ok(1));
    assert_eq!(users.load(7).await, Ok(1));
    users.save(7).await;
    assert_eq!(users.load(7).await, Ok(3));
    let users = Arc::new(users);
    assert_eq!(Arc::clone(&users).shared(1).await, Ok(4));
    let labels = [("function", "users.run"), ("kind", "method")];
    assert_eq!(number(&users.perf, "function_calls_total", &labels), Some(3.0));
    assert_eq!(users.perf.caches()[0].name(), "users");
}

#[cached(skip(runs))]
async fn show<T>(perf: &UltraPerf, runs: &Runs, it: T) -> String
where
    T: Display + Serialize + Send + Sync,
{
    format!("{it} of run {}", runs.count())
}

#[cached(skip(runs))]
async fn show_any(
    perf: &UltraPerf,
    runs: &Runs,
    it: impl Display + Serialize + Send + Sync,
) -> String {
    format!("{it} of run {}", runs.count())
}

#[cached(skip(runs))]
fn filled<const N: usize>(perf: &UltraPerf, runs: &Runs) -> u32 {
    runs.count() * 10 + N as u32
}

#[tokio::test]
async fn instances_of_generic_functions_do_not_mix() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..2 {
        assert_eq!(show(&perf, &runs, 65_u8).await, "65 of run 1");
        assert_eq!(show(&perf, &runs, 65_i8).await, "65 of run 2");
        assert_eq!(show_any(&perf, &runs, 65_u8).await, "65 of run 3");
        assert_eq!(show_any(&perf, &runs, true).await, "true of run 4");
        assert_eq!(filled::<1>(&perf, &runs), 51);
        assert_eq!(filled::<2>(&perf, &runs), 62);
    }
}

#[cached(skip(runs))]
async fn longest<'a>(perf: &UltraPerf, runs: &'a Runs, one: &'a str, other: &str) -> String {
    runs.count();
    if one.len() >= other.len() { one.to_owned() } else { other.to_owned() }
}

#[cached]
async fn hygienic(
    perf: &UltraPerf,
    key: u8,
    handle: u8,
    site: u8,
    kind: u8,
    make: u8,
    cache: u8,
) -> u32 {
    [key, handle, site, kind, make, cache].into_iter().map(u32::from).sum()
}

#[cached(skip(runs))]
async fn changes_its_own(perf: &UltraPerf, runs: Runs, mut list: Vec<u8>) -> Vec<u8> {
    runs.count();
    list.push(7);
    list
}

#[cached(skip(runs, seed))]
async fn of_a_pair(perf: &UltraPerf, (runs, seed): (Runs, u32), id: u8) -> u32 {
    runs.count() + seed + u32::from(id)
}

#[tokio::test]
async fn arguments_may_be_borrowed_changed_taken_apart_and_called_anything() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..2 {
        assert_eq!(longest(&perf, &runs, "ab", "abc").await, "abc");
        assert_eq!(hygienic(&perf, 1, 2, 3, 4, 5, 6).await, 21);
        assert_eq!(changes_its_own(&perf, runs.clone(), vec![1]).await, [1, 7]);
        assert_eq!(of_a_pair(&perf, (runs.clone(), 100), 1).await, 104);
    }
    assert_eq!(runs.so_far(), 3);
}

#[tokio::test]
async fn two_handles_know_nothing_of_each_other() {
    let (one, other, runs) = (perf().await, perf().await, Runs::default());
    assert_eq!(load_user(&one, &runs, 1).await, Ok(1));
    assert_eq!(load_user(&other, &runs, 1).await, Ok(2));
    rename_user(&one, 1, false).await.unwrap();
    assert_eq!(load_user(&other, &runs, 1).await, Ok(2));
    assert_eq!(load_user(&one, &runs, 1).await, Ok(3));
    one.shutdown(Duration::from_secs(5)).await;
    assert_eq!(load_user(&other, &runs, 1).await, Ok(2));
}

#[ultra_perf::optimize(timeout = "50ms")]
async fn never_ends(perf: &UltraPerf) -> Result<(), Error> {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_ended() {
    let perf = perf().await;
    let ended = never_ends(&perf).await;
    let limit = Duration::from_millis(50);
    let function = "macros::never_ends";
    assert_eq!(ended, Err(Error::Task(TaskErrorKind::TimedOut { function, limit }.into())));
    let labels = [("function", function)];
    assert_eq!(number(&perf, "function_errors_total", &labels), Some(1.0));
}

#[optimized(retry = 3, retry_if = |error: &Error| *error != Error::Failed(4))]
async fn works_at(
    perf: &UltraPerf,
    runs: Runs,
    which: u32,
    words: Vec<String>,
) -> Result<usize, Error> {
    let run = runs.count();
    if run < which { Err(Error::Failed(run)) } else { Ok(words.len()) }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_failed_is_made_again() {
    let perf = perf().await;
    let words = || vec!["a".to_owned()];
    let runs = Runs::default();
    assert_eq!(works_at(&perf, runs.clone(), 3, words()).await, Ok(1));
    assert_eq!(runs.so_far(), 3);
    assert_eq!(works_at(&perf, runs.clone(), 9, words()).await, Err(Error::Failed(4)));
    assert_eq!(runs.so_far(), 4, "an error that is not worth it ends the retries");
    let runs = Runs::default();
    runs.0.store(10, Ordering::Relaxed);
    assert_eq!(works_at(&perf, runs.clone(), 99, words()).await, Err(Error::Failed(14)));
    assert_eq!(runs.so_far(), 14, "three retries and no more");
}

#[optimized(breaker = "db", cache)]
async fn through_a_breaker(perf: &UltraPerf, id: u32) -> Result<u32, Error> {
    Err(Error::Failed(id))
}

#[tokio::test]
async fn an_open_breaker_ends_the_call() {
    let perf = perf().await;
    let mut opened = None;
    for id in 0..100 {
        match through_a_breaker(&perf, id).await {
            Err(Error::Failed(_)) => {}
            ended => {
                opened = Some(ended);
                break;
            }
        }
    }
    let Some(Err(Error::Task(error))) = opened else { panic!("{opened:?}") };
    assert!(matches!(error.kind(), TaskErrorKind::BreakerOpen { .. }), "{error:?}");
    assert!(error.retry_after().is_some());
    assert_eq!(perf.breaker("db").state(), ultra_perf::resilience::State::Open);
}

#[optimized(timeout = "50ms", breaker = "slow")]
async fn hangs(perf: &UltraPerf, fails: bool) -> Result<(), Error> {
    if fails { Err(Error::Failed(0)) } else { std::future::pending().await }
}

#[optimized(breaker = "dropped")]
async fn hangs_without_end(perf: &UltraPerf) -> Result<(), Error> {
    std::future::pending().await
}

#[optimized(timeout = "50ms")]
async fn asks_what_hangs(perf: &UltraPerf) -> Result<(), Error> {
    hangs_without_end(perf).await
}

#[tokio::test(start_paused = true)]
async fn a_breaker_learns_of_time_limits_and_not_of_callers_who_leave() {
    let perf = perf().await;
    let is_timed_out = |ended: &Result<(), Error>| {
        let Err(Error::Task(error)) = ended else { panic!("{ended:?}") };
        matches!(error.kind(), TaskErrorKind::TimedOut { .. })
    };
    let open = ultra_perf::resilience::State::Open;
    for _ in 0..100 {
        let ended = futures_util::FutureExt::now_or_never(hangs_without_end(&perf));
        assert_eq!(ended, None);
    }
    assert_ne!(perf.breaker("dropped").state(), open);
    let mut calls = 0;
    while is_timed_out(&asks_what_hangs(&perf).await) && calls < 100 {
        if perf.breaker("dropped").state() == open {
            break;
        }
        calls += 1;
    }
    assert_eq!(perf.breaker("dropped").state(), open, "a limit around the call counts");

    let mut calls = 0;
    while is_timed_out(&hangs(&perf, false).await) {
        calls += 1;
        assert!(calls < 100, "the breaker never opened");
    }
    assert_eq!(perf.breaker("slow").state(), open);
}

#[optimized(retry = 3)]
async fn retried_with_its_own_handle(perf: UltraPerf, runs: Runs) -> Result<usize, Error> {
    let own = perf;
    if runs.count() < 3 { Err(Error::Failed(0)) } else { Ok(own.caches().len()) }
}

#[optimized(retry = 3, perf = one)]
async fn retried_with_two_handles(one: UltraPerf, two: UltraPerf, runs: Runs) -> Result<(), Error> {
    drop((one, two));
    if runs.count() < 3 { Err(Error::Failed(0)) } else { Ok(()) }
}

#[tokio::test(start_paused = true)]
async fn a_handle_by_value_goes_into_every_attempt() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!(retried_with_its_own_handle(perf.clone(), runs.clone()).await, Ok(0));
    assert_eq!(runs.so_far(), 3);
    let runs = Runs::default();
    assert_eq!(retried_with_two_handles(perf.clone(), perf, runs.clone()).await, Ok(()));
    assert_eq!(runs.so_far(), 3);
}

#[optimized(cpu, priority = High, cache = "1m", skip(runs))]
async fn sum(perf: &UltraPerf, runs: Runs, numbers: Vec<u64>) -> Result<(u64, String), Error> {
    runs.count();
    if numbers.is_empty() {
        panic!("nothing to add up");
    }
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    Ok((numbers.iter().sum(), thread))
}

#[optimized(io, retry = 1)]
async fn on_the_lane(perf: &UltraPerf, runs: Runs) -> Result<usize, Error> {
    tokio::task::yield_now().await;
    runs.count();
    Ok(perf.caches().len())
}

#[optimized(memory("1MiB"))]
async fn heavy(perf: &UltraPerf, bytes: usize) -> Result<usize, Error> {
    Ok(vec![1_u8; bytes].len())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_run_in_their_lanes() {
    let (perf, runs) = (perf().await, Runs::default());
    let (total, thread) = sum(&perf, runs.clone(), vec![1, 2, 3]).await.unwrap();
    assert_eq!(total, 6);
    assert!(thread.starts_with("scheduler-cpu"), "{thread}");
    sum(&perf, runs.clone(), vec![1, 2, 3]).await.unwrap();
    assert_eq!(runs.so_far(), 1);
    assert_eq!(on_the_lane(&perf, runs.clone()).await, Ok(1));
    assert_eq!(heavy(&perf, 1_000).await, Ok(1_000));
    let ended = sum(&perf, runs, Vec::new()).await;
    let Err(Error::Task(error)) = ended else { panic!("{ended:?}") };
    let TaskErrorKind::Panicked { message, .. } = error.kind() else { panic!("{error:?}") };
    assert_eq!(message, "nothing to add up");
    assert!(perf.scheduler().drain(Duration::from_secs(5)).await.is_complete());
    let ended = on_the_lane(&perf, Runs::default()).await;
    let Err(Error::Task(error)) = ended else { panic!("{ended:?}") };
    assert!(matches!(error.kind(), TaskErrorKind::Refused { .. }), "{error:?}");
}

#[monitored]
async fn watched(perf: &UltraPerf, how: Option<bool>) -> Result<(), Error> {
    match how {
        None => std::future::pending().await,
        Some(true) => Ok(()),
        Some(false) => Err(Error::Failed(0)),
    }
}

#[monitored]
fn parts<'a>(perf: &UltraPerf, text: &'a mut String) -> impl Iterator<Item = &'a str> {
    text.push_str(" c");
    text.split(' ')
}

#[monitored(perf = perf.1)]
fn borrows_what_it_was_given(perf: (u8, UltraPerf), list: &mut Vec<u8>) -> &mut u8 {
    list.push(perf.0);
    list.last_mut().expect("one was pushed")
}

#[tokio::test]
async fn what_is_watched_is_counted_and_timed() {
    let perf = perf().await;
    watched(&perf, Some(true)).await.unwrap();
    watched(&perf, Some(false)).await.unwrap_err();
    assert!(futures_util::FutureExt::now_or_never(watched(&perf, None)).is_none());
    let labels = [("function", "macros::watched")];
    assert_eq!(number(&perf, "function_calls_total", &labels), Some(3.0));
    assert_eq!(number(&perf, "function_errors_total", &labels), Some(1.0));
    assert_eq!(number(&perf, "function_cancelled_total", &labels), Some(1.0));
    let snapshot = perf.registry().read(monitor_now());
    let Some(ultra_perf::monitor::Value::Distribution(seconds)) =
        snapshot.get("function_duration_seconds", &labels)
    else {
        panic!("a distribution")
    };
    assert_eq!(seconds.count(), 2);

    let mut text = "a b".to_owned();
    assert_eq!(parts(&perf, &mut text).collect::<Vec<_>>(), ["a", "b", "c"]);
    *borrows_what_it_was_given((3, perf.clone()), &mut Vec::new()) += 1;
}

#[cached(ttl = "1ms", skip(runs))]
async fn short_lived(perf: &UltraPerf, runs: &Runs) -> u32 {
    runs.count()
}

struct Table<T>(std::marker::PhantomData<T>);

impl<T: Default + Into<u64>> Table<T> {
    #[cached(skip(runs))]
    async fn count(perf: &UltraPerf, runs: &Runs) -> String {
        format!("{} of run {}", std::any::type_name::<Self>().len(), runs.count())
    }

    #[cache_invalidate(of = Self::count, all)]
    async fn change(perf: &UltraPerf) {}
}

#[tokio::test]
async fn functions_of_generic_types_do_not_mix() {
    let (perf, runs) = (perf().await, Runs::default());
    let (one, other) =
        (Table::<u8>::count(&perf, &runs).await, Table::<u32>::count(&perf, &runs).await);
    assert!(one.ends_with("of run 1") && other.ends_with("of run 2"), "{one} {other}");
    Table::<u8>::change(&perf).await;
    assert_eq!(Table::<u32>::count(&perf, &runs).await, other);
    assert!(Table::<u8>::count(&perf, &runs).await.ends_with("of run 3"));
}

struct Cats;
struct Dogs;

impl Cats {
    #[cached(skip(runs))]
    async fn all(perf: &UltraPerf, runs: &Runs) -> u32 {
        runs.count()
    }
}

impl Dogs {
    #[cached(skip(runs))]
    async fn all(perf: &UltraPerf, runs: &Runs) -> u32 {
        runs.count()
    }
}

#[tokio::test]
async fn functions_of_one_name_in_one_module_do_not_mix() {
    let (perf, runs) = (perf().await, Runs::default());
    for _ in 0..2 {
        assert_eq!((Cats::all(&perf, &runs).await, Dogs::all(&perf, &runs).await), (1, 2));
    }
}

/// Repeats until it is so, for ten seconds at most.
async fn until(mut so: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !so().await {
        assert!(began.elapsed() < Duration::from_secs(10), "it never was so");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_result_lives_for_its_time() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!(short_lived(&perf, &runs).await, 1);
    until(async || short_lived(&perf, &runs).await == 2).await;
}

#[optimized(cache(ttl = "1ms", stale = "1h", name = "stale"), skip(runs, gate))]
async fn slowly(perf: &UltraPerf, runs: Runs, gate: Arc<tokio::sync::Semaphore>) -> Option<u32> {
    let run = runs.count();
    let _permit = gate.acquire().await;
    (run < 3).then_some(run)
}

#[tokio::test]
async fn a_stale_result_is_returned_while_a_newer_one_is_made() {
    let (perf, runs) = (perf().await, Runs::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(1));
    let ask = || slowly(&perf, runs.clone(), Arc::clone(&gate));
    assert_eq!(ask().await, Some(1));
    let permit = gate.acquire().await.expect("the gate is open");
    until(async || {
        assert_eq!(ask().await, Some(1));
        runs.so_far() == 2
    })
    .await;
    for _ in 0..5 {
        assert_eq!(ask().await, Some(1));
        tokio::task::yield_now().await;
    }
    assert_eq!(runs.so_far(), 2, "one refresh for all");
    drop(permit);
    until(async || ask().await == Some(2)).await;
    // Once there is nothing any more, what is stale is not returned either.
    until(async || ask().await.is_none()).await;
}

#[optimized(
    cache(ttl = "1ms", stale = Duration::ZERO, stale_if_error = "1h", name = "for_errors"),
    skip(runs, gate)
)]
async fn kept_for_errors(
    perf: &UltraPerf,
    runs: Runs,
    gate: Arc<tokio::sync::Semaphore>,
) -> Option<u32> {
    let run = runs.count();
    let _permit = gate.acquire().await;
    Some(run)
}

#[tokio::test]
async fn what_is_kept_for_errors_is_not_returned_while_a_newer_one_is_made() {
    let (perf, runs) = (perf().await, Runs::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(1));
    let ask = || kept_for_errors(&perf, runs.clone(), Arc::clone(&gate));
    assert_eq!(ask().await, Some(1));
    let permit = gate.acquire().await.expect("the gate is open");
    let newer = loop {
        let mut asked = Box::pin(ask());
        tokio::select! {
            biased;
            old = &mut asked => assert_eq!((old, runs.so_far()), (Some(1), 1)),
            () = std::future::ready(()) => break asked,
        }
        tokio::task::yield_now().await;
    };
    drop(permit);
    assert_eq!(newer.await, Some(2));
}

#[optimized(cache(ttl = "1ms", stale_if_error = "1h"), skip(runs))]
async fn fails_later(perf: &UltraPerf, runs: &Runs) -> Result<u32, Error> {
    match runs.count() {
        1 => Ok(1),
        run => Err(Error::Failed(run)),
    }
}

#[tokio::test]
async fn a_stale_result_covers_an_error() {
    let (perf, runs) = (perf().await, Runs::default());
    until(async || {
        assert_eq!(fails_later(&perf, &runs).await, Ok(1));
        runs.so_far() == 3
    })
    .await;
}

#[cached(ttl = "1ms", stale = Duration::ZERO, stale_if_error = "1h", skip(runs, gate))]
async fn covered_but_not_stale(
    perf: &UltraPerf,
    runs: Runs,
    gate: Arc<tokio::sync::Semaphore>,
) -> Result<u32, Error> {
    let run = runs.count();
    let _permit = gate.acquire().await;
    Ok(run)
}

#[tokio::test]
async fn what_is_kept_for_errors_is_not_returned_as_stale() {
    let (perf, runs) = (perf().await, Runs::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(1));
    let ask = || covered_but_not_stale(&perf, runs.clone(), Arc::clone(&gate));
    assert_eq!(ask().await, Ok(1));
    let _permit = gate.acquire().await.expect("the gate is open");
    until(async || {
        let returned = futures_util::FutureExt::now_or_never(ask());
        let is_over = runs.so_far() > 1;
        assert_eq!(returned, (!is_over).then_some(Ok(1)), "a newer one is waited for");
        is_over
    })
    .await;
}

#[optimized(cache(ttl = "1ms", stale_if_error = "1h"), skip(runs))]
async fn goes_away(perf: &UltraPerf, runs: &Runs) -> Option<u32> {
    let run = runs.count();
    tokio::task::yield_now().await;
    (run == 1).then_some(run)
}

#[tokio::test]
async fn an_answer_that_there_is_nothing_is_not_covered_by_an_older_one() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!(goes_away(&perf, &runs).await, Some(1));
    until(async || {
        let calls = (0..3).map(|_| goes_away(&perf, &runs));
        let answers = futures_util::future::join_all(calls).await;
        let is_over = runs.so_far() > 1;
        if is_over {
            assert_eq!(answers.last(), Some(&None), "who waits is told so, too");
        }
        is_over
    })
    .await;
    assert_eq!(goes_away(&perf, &runs).await, None);
}

#[cached(ttl = Duration::ZERO, skip(runs))]
async fn never_kept(perf: &UltraPerf, runs: &Runs) -> u32 {
    runs.count()
}

#[tokio::test]
async fn a_cache_that_cannot_be_made_leaves_the_body() {
    let (perf, runs) = (perf().await, Runs::default());
    assert_eq!((never_kept(&perf, &runs).await, never_kept(&perf, &runs).await), (1, 2));
}

struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it has no form"))
    }
}

#[cached(skip(runs))]
async fn of_an_unwritable(perf: &UltraPerf, runs: &Runs, it: &Unwritable) -> u32 {
    let _ = it;
    runs.count()
}

#[tokio::test]
async fn a_call_without_a_key_is_made_each_time() {
    let (perf, runs) = (perf().await, Runs::default());
    for run in 1..=2 {
        assert_eq!(of_an_unwritable(&perf, &runs, &Unwritable).await, run);
    }
}

mod on_disk {
    //! Results that outlive their process.
    use super::{Duration, Error, Runs, UltraPerf, cache_invalidate, cached, settings};

    #[cached(name = "stored", tags = ["item:{id}"], skip(runs), schema = 3)]
    async fn stored(perf: &UltraPerf, runs: &Runs, id: u64) -> Result<u32, Error> {
        let _ = id;
        Ok(runs.count())
    }

    #[cached(tiers = [memory], skip(runs))]
    async fn in_memory(perf: &UltraPerf, runs: &Runs) -> Result<std::sync::Arc<u32>, Error> {
        Ok(std::sync::Arc::new(runs.count()))
    }

    #[cache_invalidate(of = stored, key = id)]
    async fn change(perf: &UltraPerf, id: u64) {}

    #[cache_invalidate(tags = ["item:{id}"])]
    async fn change_by_tag(perf: &UltraPerf, id: u64) {}

    async fn over(directory: &std::path::Path) -> UltraPerf {
        let path = directory.to_str().expect("a plain path").to_owned();
        settings(|loader| {
            let loader = loader.set("cache.disk.enabled", "true", "the test");
            loader.set("cache.disk.path", path, "the test")
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_on_the_disk_is_found_and_forgotten_before_the_first_call() {
        let directory = tempfile::tempdir().unwrap();
        let runs = Runs::default();
        let close = async |perf: UltraPerf| {
            let report = perf.shutdown(Duration::from_secs(10)).await;
            assert!(report.is_clean(), "{report}");
        };

        let perf = over(directory.path()).await;
        for id in 1..=3 {
            assert_eq!(stored(&perf, &runs, id).await, Ok(id as u32));
        }
        in_memory(&perf, &runs).await.unwrap();
        close(perf).await;
        assert!(!directory.path().join("macros.on_disk.in_memory").exists());

        let perf = over(directory.path()).await;
        change(&perf, 1).await;
        change_by_tag(&perf, 2).await;
        assert_eq!(stored(&perf, &runs, 3).await, Ok(3), "from the disk");
        assert_eq!(stored(&perf, &runs, 1).await, Ok(5));
        assert_eq!(stored(&perf, &runs, 2).await, Ok(6));
        close(perf).await;
    }

    #[cached(name = "stored", skip(runs))]
    async fn of_the_same_name(perf: &UltraPerf, runs: &Runs, id: u64) -> Result<u32, Error> {
        Ok(100 * runs.count() + id as u32)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_function_whose_name_is_taken_keeps_to_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (perf, runs) = (over(directory.path()).await, Runs::default());
        assert_eq!(stored(&perf, &runs, 1).await, Ok(1));
        assert_eq!(of_the_same_name(&perf, &runs, 1).await, Ok(201));
        assert_eq!(of_the_same_name(&perf, &runs, 1).await, Ok(201));
        assert_eq!(stored(&perf, &runs, 1).await, Ok(1));
        change(&perf, 1).await;
        assert_eq!(of_the_same_name(&perf, &runs, 1).await, Ok(301));
        assert_eq!(stored(&perf, &runs, 1).await, Ok(4));
        perf.shutdown(Duration::from_secs(10)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_cannot_be_opened_leaves_memory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "not a directory").unwrap();
        let (perf, runs) = (over(&file).await, Runs::default());
        assert_eq!(stored(&perf, &runs, 1).await, Ok(1));
        assert_eq!(stored(&perf, &runs, 1).await, Ok(1));
        perf.shutdown(Duration::from_secs(10)).await;
    }
}

pub mod documented {
    //! Documentation, attributes and visibility stay with the function.
    use super::UltraPerf;

    /// Adds one, and says so.
    #[must_use = "it is a number"]
    #[ultra_perf::optimize(cache(ttl = "1m"))]
    #[ultra_perf::monitored]
    pub async fn add_one(perf: &UltraPerf, number: u32) -> u32 {
        number + 1
    }
}

#[tokio::test]
async fn attributes_go_together() {
    let perf = perf().await;
    assert_eq!(documented::add_one(&perf, 1).await, 2);
    assert_eq!(perf.level(), OptimizationLevel::Basic);
}
