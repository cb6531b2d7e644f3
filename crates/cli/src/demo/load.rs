//! A bounded closed-loop load: so many clients, each with one connection and one request at a time.
//!
//! Pages are asked for by their popularity ([`Zipf`]), a share of the requests writes, and a small
//! share asks for something private. The same seed sends each client the same requests, so that two
//! runs differ only in what answers. The load ends at its time or its count, whichever comes first;
//! requests in flight then are still waited for.
//!
//! It also checks what it gets. When a write to a product is answered, the version in that answer
//! becomes the product's floor; a page of the product that is *asked for* after that must not show
//! an older one. A page that does is a violation of freshness, whoever kept it. And a private page
//! must never come out of a shared cache.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::backend::ShopSize;
use super::zipf::Zipf;

/// The exponent of the popularity of pages.
pub(super) const ZIPF_EXPONENT: f64 = 0.9;

/// One page in so many of the most popular is a list of bestsellers, another a report.
const PAGES_PER_LIST: usize = 10;

/// The periods that reports are asked for.
const REPORT_DAYS: [u32; 4] = [120, 180, 270, 365];

/// A request that takes longer counts as an error.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client waits after an error, so that a dead server is not stormed.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// The largest body that is read; a page of the shop has a few KiB.
const BODY_MAX_BYTES: usize = 1024 * 1024;

/// The longest latency that the histogram tells from longer ones.
const LATENCY_MAX_MICROS: u64 = 60_000_000;

/// What the load may ask for.
#[derive(Debug)]
pub(super) struct Catalog {
    /// The pages that a shared cache may keep, the most popular first.
    pages: Vec<Page>,
    page_by_rank: Zipf,
    product_by_rank: Zipf,
    products: u32,
    customers: u32,
}

#[derive(Debug)]
struct Page {
    path: String,
    /// The number of the product, if this is a product's page.
    product: Option<u32>,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Page(usize),
    Orders { customer: u32 },
    Review { product: u32, customer: u32, stars: u32 },
    Price { product: u32, price_cents: u32 },
}

impl Catalog {
    /// Lists the pages of a shop: its products by popularity, with lists and reports among them.
    pub(super) fn of(size: ShopSize) -> Self {
        let mut lists = (1..=size.categories).map(|id| format!("/categories/{id}/bestsellers"));
        let mut reports = REPORT_DAYS.iter().map(|days| format!("/reports/sales?days={days}"));
        let mut pages = Vec::new();
        let shared = |path| Page { path, product: None };
        for id in 1..=size.products {
            pages.push(Page { path: format!("/products/{id}"), product: Some(id) });
            match pages.len() % PAGES_PER_LIST {
                3 => pages.extend(lists.next().map(shared)),
                7 => pages.extend(reports.next().map(shared)),
                _ => {}
            }
        }
        pages.extend(lists.chain(reports).map(shared));
        Self {
            page_by_rank: Zipf::new(pages.len(), ZIPF_EXPONENT),
            product_by_rank: Zipf::new(size.products as usize, ZIPF_EXPONENT),
            pages,
            products: size.products,
            customers: size.customers,
        }
    }

    /// Counts the pages that a shared cache may keep.
    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    fn draw(&self, mix: Mix, rng: &mut fastrand::Rng) -> Ask {
        let share = rng.u8(0..100);
        if share < mix.writes_percent {
            let product = self.product_by_rank.draw(rng) as u32 + 1;
            let customer = rng.u32(1..=self.customers);
            if rng.bool() {
                Ask::Review { product, customer, stars: rng.u32(1..=5) }
            } else {
                Ask::Price { product, price_cents: rng.u32(199..=29_999) }
            }
        } else if share < mix.writes_percent.saturating_add(mix.private_percent) {
            Ask::Orders { customer: rng.u32(1..=self.customers) }
        } else {
            Ask::Page(self.page_by_rank.draw(rng))
        }
    }
}

/// The shares of requests that are not for a shared page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix {
    pub(super) writes_percent: u8,
    pub(super) private_percent: u8,
}

/// What a load does and where it ends.
#[derive(Debug, Clone)]
pub(super) struct LoadPlan {
    pub(super) to: SocketAddr,
    pub(super) clients: usize,
    pub(super) duration: Duration,
    pub(super) requests_max: u64,
    pub(super) mix: Mix,
    pub(super) seed: u64,
    pub(super) catalog: Arc<Catalog>,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Requests answered as they should be.
    pub(super) answered: u64,
    /// Of these, reads.
    pub(super) reads: u64,
    /// Of these, writes.
    pub(super) writes: u64,
    /// Requests without an answer, or with a wrong one.
    pub(super) errors: u64,
    /// Reads that say `X-Cache: HIT`.
    pub(super) hits: u64,
    /// Reads that say `X-Cache: STALE`.
    pub(super) stale: u64,
    /// Product pages older than a write that was answered before they were asked for.
    pub(super) violations: u64,
    /// Private pages that came out of the cache.
    pub(super) leaks: u64,
}

impl Counts {
    /// The share of reads that came out of a cache, fresh or stale; `None` without a read.
    pub(super) fn hit_ratio(&self) -> Option<f64> {
        (self.reads > 0).then(|| (self.hits + self.stale) as f64 / self.reads as f64)
    }
}

/// What a load did in some time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    pub(super) counts: Counts,
    pub(super) elapsed: Duration,
    pub(super) p50: Duration,
    pub(super) p95: Duration,
    pub(super) p99: Duration,
}

/// Counts and latencies since some moment.
#[derive(Debug)]
struct Tally {
    counts: Counts,
    micros: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        let micros = Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, 3)
            .expect("the bounds and the precision are constants in range");
        Self { counts: Counts::default(), micros }
    }

    fn add(&mut self, outcome: &Result<Checked, String>, latency: Duration) {
        let counts = &mut self.counts;
        let Ok(checked) = outcome else {
            counts.errors += 1;
            return;
        };
        counts.answered += 1;
        if checked.write {
            counts.writes += 1;
        } else {
            counts.reads += 1;
        }
        counts.hits += u64::from(checked.cache == CacheWord::Hit);
        counts.stale += u64::from(checked.cache == CacheWord::Stale);
        counts.violations += u64::from(checked.violation);
        counts.leaks += u64::from(checked.leak);
        self.micros.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn measured(&self, elapsed: Duration) -> Measured {
        let quantile = |q| Duration::from_micros(self.micros.value_at_quantile(q));
        Measured {
            counts: self.counts,
            elapsed,
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }

    fn reset(&mut self) {
        self.counts = Counts::default();
        self.micros.reset();
    }
}

#[derive(Debug)]
struct Tallies {
    total: Tally,
    recent: Tally,
    recent_since: Instant,
    last_answer: Instant,
    first_error: Option<String>,
}

/// What the clients of a load share.
#[derive(Debug)]
struct Shared {
    plan: LoadPlan,
    started: Instant,
    sent: AtomicU64,
    /// By product: the highest version that an answered write has reported.
    floors: Box<[AtomicU64]>,
    tallies: Mutex<Tallies>,
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running load. Its clients stop when it is dropped.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts the clients; must be called within a tokio runtime.
    pub(super) fn start(plan: LoadPlan) -> Self {
        let started = Instant::now();
        let shared = Arc::new(Shared {
            started,
            sent: AtomicU64::new(0),
            floors: (0..=plan.catalog.products).map(|_| AtomicU64::new(0)).collect(),
            tallies: Mutex::new(Tallies {
                total: Tally::new(),
                recent: Tally::new(),
                recent_since: started,
                last_answer: started,
                first_error: None,
            }),
            plan,
        });
        let mut seeds = fastrand::Rng::with_seed(shared.plan.seed);
        let mut clients = JoinSet::new();
        for _ in 0..shared.plan.clients {
            clients.spawn(run_client(Arc::clone(&shared), seeds.fork()));
        }
        Self { shared, clients }
    }

    /// Waits until every client has ended.
    ///
    /// # Cancel safety
    ///
    /// The clients go on when this is dropped; it may be called again.
    pub(super) async fn finished(&mut self) {
        while self.clients.join_next().await.is_some() {}
    }

    /// Takes what was measured since the last call.
    pub(super) fn recent(&self) -> Measured {
        let now = Instant::now();
        let mut tallies = self.shared.tallies();
        let measured = tallies.recent.measured(now - tallies.recent_since);
        tallies.recent.reset();
        tallies.recent_since = now;
        measured
    }

    /// Returns what was measured from the start to the last answer.
    pub(super) fn total(&self) -> Measured {
        let tallies = self.shared.tallies();
        tallies.total.measured(tallies.last_answer - self.shared.started)
    }

    /// Returns how long the load has been running.
    pub(super) fn age(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Returns what the first failed request failed with.
    pub(super) fn first_error(&self) -> Option<String> {
        self.shared.tallies().first_error.clone()
    }
}

/// One client: asks, waits, checks, records, until the plan's time or count is used up.
async fn run_client(shared: Arc<Shared>, mut rng: fastrand::Rng) {
    let plan = &shared.plan;
    let mut connection = None;
    while shared.started.elapsed() < plan.duration
        && shared.sent.fetch_add(1, Ordering::Relaxed) < plan.requests_max
    {
        let ask = plan.catalog.draw(plan.mix, &mut rng);
        let asked = Instant::now();
        let outcome =
            tokio::time::timeout(REQUEST_TIMEOUT, exchange(&shared, &mut connection, ask))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {REQUEST_TIMEOUT:?}")));
        let answered = Instant::now();
        {
            let mut tallies = shared.tallies();
            tallies.total.add(&outcome, answered - asked);
            tallies.recent.add(&outcome, answered - asked);
            tallies.last_answer = tallies.last_answer.max(answered);
            if let Err(error) = &outcome
                && tallies.first_error.is_none()
            {
                tallies.first_error = Some(error.clone());
            }
        }
        if outcome.is_err() {
            connection = None;
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

/// A keep-alive connection; its driver ends with it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    async fn open(to: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(to).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("connect: {error}"))?;
        let driver = tokio::spawn(async move {
            // What went wrong reaches the request that it happened to.
            let _ = connection.await;
        });
        Ok(Self { sender, driver })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// An answer that was as it should be, apart from what is noted here.
#[derive(Debug)]
struct Checked {
    write: bool,
    cache: CacheWord,
    violation: bool,
    leak: bool,
}

/// The word in `X-Cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheWord {
    Hit,
    Stale,
    /// A miss, a bypass, or no such header.
    Other,
}

impl CacheWord {
    fn of(headers: &http::HeaderMap) -> Self {
        match headers.get("x-cache").map(http::HeaderValue::as_bytes) {
            Some(b"HIT") => Self::Hit,
            Some(b"STALE") => Self::Stale,
            _ => Self::Other,
        }
    }
}

/// What every page and every answer to a write of the shop contains.
#[derive(Debug, Deserialize)]
struct Stamp {
    #[serde(default)]
    id: Option<u32>,
    version: u64,
}

/// Sends one request over the client's connection, opening it if need be, and checks the answer.
async fn exchange(
    shared: &Shared,
    connection: &mut Option<Connection>,
    ask: Ask,
) -> Result<Checked, String> {
    // Acquire: pairs with the Release below, so that a floor seen here was answered before.
    let floor = match ask {
        Ask::Page(page) => shared.plan.catalog.pages[page]
            .product
            .map_or(0, |product| shared.floors[product as usize].load(Ordering::Acquire)),
        _ => 0,
    };
    let open = match connection {
        Some(open) if !open.sender.is_closed() => open,
        _ => connection.insert(Connection::open(shared.plan.to).await?),
    };
    open.sender.ready().await.map_err(|error| error.to_string())?;
    let answer = open
        .sender
        .send_request(request(&shared.plan, ask))
        .await
        .map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, BODY_MAX_BYTES)
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    let (status, id) = match ask {
        Ask::Page(page) => (StatusCode::OK, shared.plan.catalog.pages[page].product),
        Ask::Orders { customer } => (StatusCode::OK, Some(customer)),
        Ask::Review { product, .. } => (StatusCode::SEE_OTHER, Some(product)),
        Ask::Price { product, .. } => (StatusCode::OK, Some(product)),
    };
    if head.status != status {
        return Err(format!("{ask:?} was answered with {}", head.status));
    }
    let stamp: Stamp = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if id.is_some() && stamp.id != id {
        return Err(format!("{ask:?} was answered with the page of {:?}", stamp.id));
    }
    let write = match ask {
        Ask::Review { product, .. } | Ask::Price { product, .. } => {
            // Release: pairs with the Acquire above.
            shared.floors[product as usize].fetch_max(stamp.version, Ordering::Release);
            true
        }
        Ask::Page(_) | Ask::Orders { .. } => false,
    };
    let cache = if write { CacheWord::Other } else { CacheWord::of(&head.headers) };
    let private = matches!(ask, Ask::Orders { .. });
    Ok(Checked {
        write,
        cache,
        violation: stamp.version < floor,
        leak: private && cache != CacheWord::Other,
    })
}

fn request(plan: &LoadPlan, ask: Ask) -> Request<Full<Bytes>> {
    let (method, path, body) = match ask {
        Ask::Page(page) => (Method::GET, plan.catalog.pages[page].path.clone(), None),
        Ask::Orders { customer } => (Method::GET, format!("/customers/{customer}/orders"), None),
        Ask::Review { product, customer, stars } => (
            Method::POST,
            format!("/products/{product}/reviews"),
            Some(serde_json::json!({
                "customer_id": customer,
                "stars": stars,
                "text": "written by the load of the demonstration",
            })),
        ),
        Ask::Price { product, price_cents } => (
            Method::PATCH,
            format!("/products/{product}"),
            Some(serde_json::json!({ "price_cents": price_cents })),
        ),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, plan.to.to_string())
        .header(http::header::ACCEPT, "application/json");
    if body.is_some() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    request
        .body(Full::from(body.map(|body| body.to_string()).unwrap_or_default()))
        .expect("the paths and header values above are well-formed")
}
