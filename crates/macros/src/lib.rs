//! The attributes of `ultra-perf`, which re-exports them; nothing here is used by itself.
//!
//! What they generate names only `::ultra_perf`, or what `crate = path` says. All that runs is in
//! `ultra_perf::call`; here is what a function must look like, and the code that calls it.
#![forbid(unsafe_code)]

mod call;
mod function;
mod invalidate;
mod monitored;
mod options;
mod quantity;

use proc_macro::TokenStream;

use crate::options::Attribute;

/// Caches, schedules, guards and measures a function.
///
/// ```ignore
/// #[ultra_perf::optimize(io, cache = "10m", tags = ["user:{id}"], timeout = "2s")]
/// async fn load_user(perf: &UltraPerf, id: UserId) -> Result<User, Error> { .. }
///
/// #[ultra_perf::optimize(cpu, priority = High)]
/// async fn render(perf: &UltraPerf, page: Page) -> Result<Html, Error> { .. }
/// ```
///
/// Write it with its path: the compiler has an attribute of its own that is called `optimize`, so an import of
/// this one is ambiguous. [`macro@optimized`] is the same under a name that can be imported.
///
/// The function finds its `UltraPerf` in a parameter of type `&UltraPerf` or `UltraPerf`, or where
/// `perf = self.perf` says.
///
/// - `io`, `cpu`, `memory`: the body is a task of that lane. Arguments are owned, and the error is made of
///   a `TaskError`. `cpu` and `memory` take a body without `.await`; `memory("64MiB")` says how much it
///   needs, and gives memory back when it is done.
/// - `cache`, `cache = "10m"`, `cache(ttl, stale, stale_if_error, tiers, cache_errors, cache_none, schema,
///   name)`: results are kept as [`macro@cached`] says. `key`, `skip` and `tags` are about it.
/// - `timeout = "2s"`, `retry = 3` with `retry_if = Error::is_transient`, `breaker = "db"`: from the outside
///   in, around the lane.
/// - `priority = High`, `memory = "64MiB"`: how the lane takes it.
/// - `name`: what it is called in the figures; `crate`: where `ultra_perf` is.
#[proc_macro_attribute]
pub fn optimize(arguments: TokenStream, item: TokenStream) -> TokenStream {
    call::expand(Attribute::Optimize, arguments.into(), item.into()).into()
}

/// [`macro@optimize`] under a name that can be imported.
#[proc_macro_attribute]
pub fn optimized(arguments: TokenStream, item: TokenStream) -> TokenStream {
    optimize(arguments, item)
}

/// Keeps what a function returns, by its arguments.
///
/// ```ignore
/// #[cached(ttl = "10m", tags = ["user:{id}"])]
/// async fn load_user(perf: &UltraPerf, id: u64) -> Result<User, Error> { .. }
/// ```
///
/// `Err` and `None` are not kept, unless `cache_errors` or `cache_none` says so, with a time of its own if
/// it likes. The key is made of all arguments but the handle and `self`; `skip(db)` leaves some out,
/// `key = (tenant, id)` takes its place. Concurrent misses of one key run the body once.
///
/// - `ttl`: how long; the configuration's, unless told. `stale`: for how long after that an old result is
///   returned while a newer one is made. `stale_if_error`: for how long after that if making one fails.
/// - `tiers = [memory, disk]`: where results may go, of the tiers that are configured.
/// - `tags`: text with captures of the arguments, or expressions; see [`macro@cache_invalidate`].
/// - `schema = 2`: to be changed with the meaning of the result's type, where tiers below memory keep it.
/// - `timeout`, `retry`, `retry_if`, `breaker`, `name`, `perf`, `crate`: as for [`macro@optimize`].
///
/// On a function that is not async: memory alone, and concurrent misses compute each for itself.
#[proc_macro_attribute]
pub fn cached(arguments: TokenStream, item: TokenStream) -> TokenStream {
    call::expand(Attribute::Cached, arguments.into(), item.into()).into()
}

/// Forgets results of cached functions, after the function has returned `Ok`, or any value that is no
/// `Result`.
///
/// ```ignore
/// #[cache_invalidate(of = load_user, key = id)]
/// async fn rename_user(perf: &UltraPerf, id: u64, name: String) -> Result<(), Error> { .. }
///
/// #[cache_invalidate(tags = ["user:{id}"])]
/// async fn delete_user(perf: &UltraPerf, id: u64) -> Result<(), Error> { .. }
/// ```
///
/// - `of = a_function` (or a list), by the path under which it is defined; `name = "users"`, for methods and
///   generic functions. Without either, `tags` go to the caches of all functions.
/// - `key`: of the same types as the arguments of the cached function, or as its `key`.
/// - `tags`, or `all`.
#[proc_macro_attribute]
pub fn cache_invalidate(arguments: TokenStream, item: TokenStream) -> TokenStream {
    invalidate::expand(arguments.into(), item.into()).into()
}

/// Counts calls and errors of a function, and times it.
///
/// ```ignore
/// #[monitored(name = "checkout", labels(region = "eu"))]
/// async fn check_out(perf: &UltraPerf, cart: Cart) -> Result<Order, Error> { .. }
/// ```
///
/// `function_calls_total`, `function_errors_total`, `function_cancelled_total` and
/// `function_duration_seconds`, with the label `function` and those that are given.
#[proc_macro_attribute]
pub fn monitored(arguments: TokenStream, item: TokenStream) -> TokenStream {
    monitored::expand(arguments.into(), item.into()).into()
}
