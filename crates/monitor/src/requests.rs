//! Requests of a server by method, route and status: how many, how long, how many at once.
//!
//! [`RequestMetrics`] is for a server that knows when its requests begin and end; `RequestLayer` does the
//! same for a tower service. The metrics:
//!
//! - `http_requests_total{method,route,status}`, when a request is finished.
//! - `http_request_duration_seconds{method,route,status}`, the same.
//! - `http_requests_in_flight`, those that have begun and are not finished.
//!
//! `method` is one of the nine of HTTP or `other`. `route` is a template such as `/users/{id}`, never a path.
//! `status` is the class, `2xx`, because it is on every series; a matcher such as `status=~"5.."` works on
//! classes and on codes. It is `cancelled` if the request went before there was an answer, and `error` if the
//! handler failed without one.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use hashbrown::{Equivalent, HashMap};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::exemplar::{TraceId, current_trace_id, unix_ms};
use crate::histogram::Histogram;
use crate::registry::{Counter, OTHER, Registry};
use crate::series::{Kind, Unit};

const TOTAL: &str = "http_requests_total";
const DURATION: &str = "http_request_duration_seconds";
const IN_FLIGHT: &str = "http_requests_in_flight";

/// The methods that have a label of their own.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "other"];

/// What the label `status` can be.
const STATUSES: [&str; 8] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other", "cancelled", "error"];
const CANCELLED: usize = 6;
const ERROR: usize = 7;

/// What request metrics can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestOptions {
    /// Pairs of method and route with series of their own; 200 by default. The rest is of route `__other__`.
    pub routes: usize,
    /// One request in two to this is timed, and all are counted; 0 by default, which times all.
    pub sampled: u32,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { routes: 200, sampled: 0 }
    }
}

/// Counts and times requests; clones share their series.
///
/// # Examples
///
/// ```
/// use monitor::{Registry, RequestMetrics, RequestOptions};
///
/// let registry = Registry::default();
/// let requests = RequestMetrics::new(&registry, RequestOptions::default());
/// let request = requests.begin("GET", "/users/{id}");
/// request.finish(200);
/// ```
#[derive(Clone)]
pub struct RequestMetrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    options: RequestOptions,
    /// A request is timed if these bits of a random number are zero.
    mask: u32,
    in_flight: Arc<CachePadded<AtomicI64>>,
    /// Read by each request, replaced when one of a new route comes.
    routes: ArcSwap<Routes>,
    growing: Mutex<()>,
}

type Routes = HashMap<RouteKey, Arc<Route>, foldhash::fast::RandomState>;

#[derive(Clone, PartialEq, Eq, Hash)]
struct RouteKey {
    method: u8,
    route: Arc<str>,
}

/// A key to look one up without an allocation.
#[derive(Hash)]
struct RouteRef<'a> {
    method: u8,
    route: &'a str,
}

impl Equivalent<RouteKey> for RouteRef<'_> {
    fn equivalent(&self, key: &RouteKey) -> bool {
        self.method == key.method && *self.route == *key.route
    }
}

/// The series of a method and a route, made when they are first needed.
struct Route {
    method: &'static str,
    route: Arc<str>,
    by_status: [OnceLock<(Counter, Histogram)>; STATUSES.len()],
}

impl RequestMetrics {
    /// Makes metrics of requests in a registry; make them once.
    ///
    /// A second one in the same registry counts into the same series, except that the two report
    /// `http_requests_in_flight` both, of which the later wins.
    #[must_use]
    pub fn new(registry: &Registry, options: RequestOptions) -> Self {
        for (name, kind, unit, help) in [
            (TOTAL, Kind::Counter, Unit::None, "Requests that are finished."),
            (
                DURATION,
                Kind::Histogram,
                Unit::Seconds,
                "Time from a request to the end of its response.",
            ),
            (IN_FLIGHT, Kind::Gauge, Unit::None, "Requests that have begun and are not finished."),
        ] {
            registry.describe(name, kind, unit, help);
        }
        let mask = (1 << options.sampled.min(20)) - 1;
        if mask > 0 {
            let name = "http_request_sampling_ratio";
            registry.describe(
                name,
                Kind::Gauge,
                Unit::Ratio,
                "The part of all requests that is timed.",
            );
            registry.gauge(name, &[]).set(1.0 / f64::from(mask + 1));
        }
        let in_flight = Arc::<CachePadded<AtomicI64>>::default();
        let count = Arc::clone(&in_flight);
        // It goes on as long as the registry: the series stays when the metrics are gone.
        drop(registry.watch(IN_FLIGHT, move || count.load(Relaxed) as f64));
        Self(Arc::new(Inner {
            registry: registry.clone(),
            options,
            mask,
            in_flight,
            routes: ArcSwap::default(),
            growing: Mutex::new(()),
        }))
    }

    /// Begins a request; it ends with [`RequestGuard::finish`], or as cancelled when the guard goes.
    ///
    /// `route` is a template such as `/users/{id}`.
    ///
    /// # Cost
    ///
    /// A lookup without a lock, and two readings of the clock; the first request of a method and route
    /// takes locks and makes series.
    pub fn begin(&self, method: &str, route: &str) -> RequestGuard {
        let method = METHODS[..9].iter().position(|known| *known == method).unwrap_or(9);
        let route = self.0.route(method as u8, route);
        self.0.in_flight.fetch_add(1, Relaxed);
        let is_timed = self.0.mask == 0 || fastrand::u32(..) & self.0.mask == 0;
        RequestGuard {
            metrics: self.clone(),
            route,
            since: is_timed.then(Instant::now),
            status: CANCELLED,
            trace_id: None,
        }
    }

    /// Returns how many requests have begun and are not finished.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        u64::try_from(self.0.in_flight.load(Relaxed)).unwrap_or(0)
    }
}

impl Inner {
    fn route(&self, method: u8, route: &str) -> Arc<Route> {
        match self.routes.load().get(&RouteRef { method, route }) {
            Some(found) => Arc::clone(found),
            None => self.new_route(method, route),
        }
    }

    #[cold]
    fn new_route(&self, method: u8, route: &str) -> Arc<Route> {
        let _growing = self.growing.lock();
        let routes = self.routes.load();
        let room = routes.len() < self.options.routes;
        // Each method has an overflow of its own, so there are at most ten more than the cap.
        let route =
            if room || routes.contains_key(&RouteRef { method, route }) { route } else { OTHER };
        if let Some(found) = routes.get(&RouteRef { method, route }) {
            return Arc::clone(found);
        }
        let route: Arc<str> = route.into();
        let made = Arc::new(Route {
            method: METHODS[usize::from(method)],
            route: Arc::clone(&route),
            by_status: Default::default(),
        });
        let mut routes = Routes::clone(&routes);
        routes.insert(RouteKey { method, route }, Arc::clone(&made));
        self.routes.store(Arc::new(routes));
        made
    }

    fn finish(
        &self,
        route: &Route,
        status: usize,
        took: Option<Duration>,
        trace_id: Option<TraceId>,
    ) {
        self.in_flight.fetch_sub(1, Relaxed);
        let (count, times) = route.by_status[status].get_or_init(|| {
            let labels =
                [("method", route.method), ("route", &*route.route), ("status", STATUSES[status])];
            (self.registry.counter(TOTAL, &labels), self.registry.histogram(DURATION, &labels))
        });
        count.increment(1);
        if let Some(took) = took {
            times.record_duration(took);
            if let Some(trace_id) = trace_id.or_else(current_trace_id) {
                times.offer_exemplar(took.as_secs_f64(), trace_id, unix_ms());
            }
        }
    }
}

impl fmt::Debug for RequestMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestMetrics")
            .field("in_flight", &self.in_flight())
            .field("routes", &self.0.routes.load().len())
            .finish_non_exhaustive()
    }
}

/// A request that has begun; it is counted and timed when this goes.
#[must_use = "the request ends when the guard goes"]
pub struct RequestGuard {
    metrics: RequestMetrics,
    route: Arc<Route>,
    /// Nothing if the request is not in the sample.
    since: Option<Instant>,
    status: usize,
    trace_id: Option<TraceId>,
}

impl RequestGuard {
    /// Notes the trace of the request, for the exemplar.
    pub fn trace(&mut self, trace_id: TraceId) {
        self.trace_id = Some(trace_id);
    }

    /// Notes the status code of the answer, which is known before the end if the body is streamed.
    pub fn status(&mut self, code: u16) {
        self.status = match code {
            100..600 => usize::from(code / 100) - 1,
            _ => 5,
        };
    }

    /// Notes that there will be no answer because the handler failed.
    pub fn failed(&mut self) {
        self.status = ERROR;
    }

    /// Ends the request with a status code.
    pub fn finish(mut self, code: u16) {
        self.status(code);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let took = self.since.map(|since| since.elapsed());
        self.metrics.0.finish(&self.route, self.status, took, self.trace_id);
    }
}

impl fmt::Debug for RequestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestGuard")
            .field("method", &self.route.method)
            .field("route", &self.route.route)
            .field("status", &STATUSES[self.status])
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::registry::{RegistryOptions, SeriesSnapshot, Snapshot, Value};

    fn read(registry: &Registry) -> Snapshot {
        registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 })
    }

    fn count(registry: &Registry, method: &str, route: &str, status: &str) -> Option<f64> {
        let labels = [("method", method), ("route", route), ("status", status)];
        read(registry).number(TOTAL, &labels)
    }

    fn series<'s>(snapshot: &'s Snapshot, name: &str) -> Vec<&'s SeriesSnapshot> {
        let found = snapshot.series().filter(|(family, _)| &*family.name == name);
        found.map(|(_, series)| series).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_in_flight_and_then_counted_and_timed() {
        let registry = Registry::default();
        let requests = RequestMetrics::new(&registry, RequestOptions::default());
        let request = requests.begin("GET", "/users/{id}");
        let other = requests.begin("BREW", "/pot");
        assert_eq!(requests.in_flight(), 2);
        assert_eq!(read(&registry).number(IN_FLIGHT, &[]), Some(2.0));
        tokio::time::advance(Duration::from_millis(40)).await;
        request.finish(204);
        other.finish(999);
        assert_eq!(count(&registry, "GET", "/users/{id}", "2xx"), Some(1.0));
        assert_eq!(count(&registry, "other", "/pot", "other"), Some(1.0));
        let read = read(&registry);
        assert_eq!(read.number(IN_FLIGHT, &[]), Some(0.0));
        let labels = [("method", "GET"), ("route", "/users/{id}"), ("status", "2xx")];
        let Some(Value::Distribution(times)) = read.get(DURATION, &labels) else {
            panic!("no times");
        };
        assert_eq!(times.count(), 1);
        assert!((times.sum() - 0.04).abs() < 0.000_1, "{}", times.sum());
    }

    #[test]
    fn a_request_without_an_answer_is_cancelled_or_failed() {
        let registry = Registry::default();
        let requests = RequestMetrics::new(&registry, RequestOptions::default());
        drop(requests.begin("GET", "/"));
        let mut failed = requests.begin("GET", "/");
        failed.failed();
        drop(failed);
        assert_eq!(count(&registry, "GET", "/", "cancelled"), Some(1.0));
        assert_eq!(count(&registry, "GET", "/", "error"), Some(1.0));
        assert_eq!(requests.in_flight(), 0);
    }

    #[test]
    fn routes_beyond_the_cap_are_one() {
        let registry = Registry::default();
        let options = RequestOptions { routes: 2, ..RequestOptions::default() };
        let requests = RequestMetrics::new(&registry, options);
        for route in ["/a", "/b", "/c", "/d", "/a", "/c"] {
            requests.begin("GET", route).finish(200);
        }
        requests.begin("PUT", "/c").finish(200);
        let counts =
            [("GET", "/a", 2.0), ("GET", "/b", 1.0), ("GET", OTHER, 3.0), ("PUT", OTHER, 1.0)];
        for (method, route, expected) in counts {
            assert_eq!(count(&registry, method, route, "2xx"), Some(expected), "{method} {route}");
        }
        assert_eq!(count(&registry, "GET", "/c", "2xx"), None);
    }

    #[test]
    fn the_cap_of_the_registry_holds_as_well() {
        let registry = Registry::new(RegistryOptions { series_per_name: 3, ..Default::default() });
        let requests = RequestMetrics::new(&registry, RequestOptions::default());
        for route in 0..100 {
            requests.begin("GET", &format!("/{route}")).finish(200);
        }
        let read = read(&registry);
        assert_eq!(series(&read, TOTAL).len(), 4);
        assert_eq!(series(&read, DURATION).len(), 4);
        let labels = [("method", OTHER), ("route", OTHER), ("status", OTHER)];
        assert_eq!(read.number(TOTAL, &labels), Some(97.0));
    }

    #[test]
    fn sampling_counts_every_request_and_times_some() {
        fastrand::seed(3);
        let registry = Registry::default();
        let options = RequestOptions { sampled: 2, ..RequestOptions::default() };
        let requests = RequestMetrics::new(&registry, options);
        for _ in 0..4_000 {
            requests.begin("GET", "/").finish(200);
        }
        assert_eq!(count(&registry, "GET", "/", "2xx"), Some(4_000.0));
        let read = read(&registry);
        assert_eq!(read.number("http_request_sampling_ratio", &[]), Some(0.25));
        let Value::Distribution(times) = &series(&read, DURATION)[0].value else {
            panic!("no times")
        };
        assert!((850..1_150).contains(&times.count()), "{} of 4,000", times.count());
    }

    #[test]
    fn a_trace_becomes_an_exemplar() {
        let registry = Registry::default();
        let requests = RequestMetrics::new(&registry, RequestOptions::default());
        let mut request = requests.begin("GET", "/");
        let trace_id = TraceId::new(77).expect("not zero");
        request.trace(trace_id);
        request.finish(200);
        let read = read(&registry);
        let exemplars = &series(&read, DURATION)[0].exemplars;
        assert_eq!(exemplars.len(), 1);
        assert_eq!(exemplars[0].trace_id, trace_id);
    }
}
