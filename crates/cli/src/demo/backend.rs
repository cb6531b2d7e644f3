//! The slow sample backend: a small shop API over SQLite, with caching headers that say the truth.
//!
//! It stands for the usual service that grew: a few worker threads, each with its own connection, a
//! queue before them, and pages that join and aggregate ([`shop`]). It listens on loopback only.
//!
//! | request | answer | kept by a shared cache |
//! |---|---|---|
//! | `GET /products/{id}` | the product, its reviews, what is bought together with it | 5 min, until written |
//! | `GET /categories/{id}/bestsellers` | ten products | 5 s, then stale for 30 s |
//! | `GET /reports/sales?days=N` | sales by category | 2 s, then stale for 30 s |
//! | `GET /customers/{id}/orders` | a customer's orders | never: private |
//! | `POST /products/{id}/reviews` | 303 to the product | makes it drop the product (`Location`) |
//! | `PATCH /products/{id}` | the new version | makes it drop the product (target URI) |
//!
//! A page is tagged with its version, so a conditional request costs one look at a primary key.

mod shop;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

pub(super) use self::shop::{ShopError, ShopSize};

/// Workers, each a thread with its own connection: what a small deployment runs.
const WORKERS: usize = 4;

/// Requests that may be in work or wait for a worker; one more is answered with 503.
const QUEUE_MAX: usize = 2_048;

/// The largest body of a write.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// The longest text of a review, in characters.
const REVIEW_TEXT_MAX: usize = 2_000;

/// The highest price, in cents.
const PRICE_MAX_CENTS: i64 = 10_000_000;

/// How long a write waits for another worker's write.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The file does not outlive the demonstration, so there is nothing to make durable; and it fits into
/// a connection's page cache, so that what takes time is the work and not the reading.
const CONNECTION_SETTINGS: &str = "PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;";

const PRODUCT_CACHING: &str = "public, max-age=300";
const BESTSELLERS_CACHING: &str = "public, max-age=5, stale-while-revalidate=30";
const SALES_CACHING: &str = "public, max-age=2, stale-while-revalidate=30";
const PRIVATE_CACHING: &str = "private, max-age=0, must-revalidate";
const NO_CACHING: &str = "no-store";

/// Why the backend did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum BackendError {
    #[error("cannot create the sample shop in {}", path.display())]
    Create { path: PathBuf, source: rusqlite::Error },
    #[error("cannot open the sample shop in {}", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("cannot listen on {addr} for the sample backend")]
    Listen { addr: SocketAddr, source: std::io::Error },
}

/// Creates the shop's file at `path`, blocking; `false` when `progress` broke it off.
pub(super) fn create_shop(
    path: &FilePath,
    size: ShopSize,
    seed: u64,
    progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<bool, BackendError> {
    shop::create(path, size, seed, progress)
        .map_err(|source| BackendError::Create { path: path.to_owned(), source })
}

/// The running backend. It stops when it is shut down or dropped.
#[derive(Debug)]
pub(super) struct Backend {
    addr: SocketAddr,
    calls: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
}

impl Backend {
    /// Opens the shop's file and listens on a loopback port (0 takes a free one).
    pub(super) async fn start(file: PathBuf, port: u16) -> Result<Self, BackendError> {
        let workers = Workers::open(&file)
            .map_err(|source| BackendError::Open { path: file.clone(), source })?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listening = |source| BackendError::Listen { addr, source };
        let listener = tokio::net::TcpListener::bind(addr).await.map_err(listening)?;
        let addr = listener.local_addr().map_err(listening)?;
        let calls = Arc::new(AtomicU64::new(0));
        let app = router(Arc::new(workers), Arc::clone(&calls));
        let (stop, mut stopped) = watch::channel(false);
        let server = tokio::spawn(async move {
            let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
                // An error means that the handle was dropped, which stops the server as well.
                let _ = stopped.wait_for(|&stop| stop).await;
            });
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the sample backend stopped");
            }
        });
        Ok(Self { addr, calls, stop, server })
    }

    /// Returns the address it listens on.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Counts the requests that reached it.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Stops accepting, lets running requests finish within `deadline`, and ends.
    pub(super) async fn shutdown(mut self, deadline: Duration) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(deadline, &mut self.server).await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The worker threads' connections, and who may use one.
///
/// A request first takes a place in the queue, then a turn, then the connection that the turn
/// guarantees to be there. The connection and the turn move into the blocking thread together, so a
/// client that goes away leaves a query that runs to its end, as in most real backends.
#[derive(Debug)]
struct Workers {
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
    places: Semaphore,
}

impl Workers {
    fn open(file: &FilePath) -> rusqlite::Result<Self> {
        let idle = (0..WORKERS)
            .map(|_| {
                let connection = Connection::open(file)?;
                connection.busy_timeout(LOCK_TIMEOUT)?;
                connection.execute_batch(CONNECTION_SETTINGS)?;
                Ok(connection)
            })
            .collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(Self {
            idle: Mutex::new(idle),
            turns: Arc::new(Semaphore::new(WORKERS)),
            places: Semaphore::new(QUEUE_MAX),
        })
    }

    /// Runs a job on a worker, inside one transaction that commits when the job succeeds.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        behavior: TransactionBehavior,
        job: impl FnOnce(&Connection) -> Result<T, ShopError> + Send + 'static,
    ) -> Result<T, ShopError> {
        let _place = self.places.try_acquire().map_err(|_| ShopError::Busy)?;
        let turn =
            Arc::clone(&self.turns).acquire_owned().await.expect("the semaphore is never closed");
        let mut lease = Lease::take(Arc::clone(self), turn);
        tokio::task::spawn_blocking(move || {
            let transaction = lease.connection().transaction_with_behavior(behavior)?;
            let done = job(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
        .await
        .map_err(|_| ShopError::Worker)?
    }
}

/// A connection in use; it goes back when this drops, then the turn.
struct Lease {
    connection: Option<Connection>,
    workers: Arc<Workers>,
    _turn: OwnedSemaphorePermit,
}

impl Lease {
    fn take(workers: Arc<Workers>, turn: OwnedSemaphorePermit) -> Self {
        let connection = workers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { connection, workers, _turn: turn }
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there are as many connections as turns")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.workers
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(self.connection.take());
    }
}

fn router(workers: Arc<Workers>, calls: Arc<AtomicU64>) -> Router {
    Router::new()
        .route("/products/{id}", get(product).patch(set_price))
        .route("/products/{id}/reviews", post(add_review))
        .route("/categories/{id}/bestsellers", get(bestsellers))
        .route("/customers/{id}/orders", get(customer_orders))
        .route("/reports/sales", get(sales))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such page"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this page does not know the method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(middleware::map_request(move |request: axum::extract::Request| {
            calls.fetch_add(1, Ordering::Relaxed);
            std::future::ready(request)
        }))
        .with_state(workers)
}

type Shop = State<Arc<Workers>>;
type Id = Result<Path<i64>, PathRejection>;
type Body<T> = Result<Json<T>, JsonRejection>;

async fn product(State(shop): Shop, id: Id, headers: HeaderMap) -> Result<Response, Problem> {
    let Path(id) = id?;
    page(
        &shop,
        &headers,
        PRODUCT_CACHING,
        move |db| Ok(format!("\"product-{id}-{}\"", shop::product_version(db, id)?)),
        move |db| shop::product(db, id),
    )
    .await
}

async fn bestsellers(State(shop): Shop, id: Id, headers: HeaderMap) -> Result<Response, Problem> {
    let Path(id) = id?;
    page(
        &shop,
        &headers,
        BESTSELLERS_CACHING,
        move |db| Ok(format!("\"category-{id}-{}\"", shop::category_version(db, id)?)),
        move |db| shop::bestsellers(db, id),
    )
    .await
}

async fn customer_orders(
    State(shop): Shop,
    id: Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = id?;
    page(
        &shop,
        &headers,
        PRIVATE_CACHING,
        move |db| Ok(format!("\"customer-{id}-{}\"", shop::customer_version(db, id)?)),
        move |db| shop::customer_orders(db, id),
    )
    .await
}

#[derive(Debug, Deserialize)]
struct SalesQuery {
    #[serde(default = "SalesQuery::days_by_default")]
    days: i64,
}

impl SalesQuery {
    fn days_by_default() -> i64 {
        30
    }
}

async fn sales(
    State(shop): Shop,
    query: Result<Query<SalesQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(SalesQuery { days }) = query?;
    if !(1..=shop::REPORT_DAYS_MAX).contains(&days) {
        return Err(Problem::bad_request(format!(
            "days = {days}: must be from 1 to {}",
            shop::REPORT_DAYS_MAX
        )));
    }
    page(
        &shop,
        &headers,
        SALES_CACHING,
        move |db| Ok(format!("\"sales-{days}-{}\"", shop::sales_version(db)?)),
        move |db| shop::sales(db, days),
    )
    .await
}

/// Answers a GET: 304 when the client knows this version, else the page, both from one transaction.
async fn page<T: Serialize>(
    shop: &Arc<Workers>,
    headers: &HeaderMap,
    caching: &'static str,
    tag: impl FnOnce(&Connection) -> Result<String, ShopError> + Send + 'static,
    contents: impl FnOnce(&Connection) -> Result<T, ShopError> + Send + 'static,
) -> Result<Response, Problem> {
    let known: Vec<String> = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    let (tag, body) = shop
        .run(TransactionBehavior::Deferred, move |db| {
            let tag = tag(db)?;
            if known.iter().any(|list| names(list, &tag)) {
                return Ok((tag, None));
            }
            let body = serde_json::to_vec(&contents(db)?).expect("a page has only string keys");
            Ok((tag, Some(body)))
        })
        .await?;
    let validators = [(CACHE_CONTROL, caching.to_owned()), (ETAG, tag)];
    Ok(match body {
        Some(body) => (validators, [(CONTENT_TYPE, "application/json")], body).into_response(),
        None => (StatusCode::NOT_MODIFIED, validators).into_response(),
    })
}

/// Tells whether a list of entity tags names `tag`, by the weak comparison; our tags have no comma.
fn names(list: &str, tag: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[derive(Debug, Deserialize)]
struct NewReview {
    customer_id: i64,
    stars: i64,
    text: String,
}

async fn add_review(State(shop): Shop, id: Id, body: Body<NewReview>) -> Result<Response, Problem> {
    let (Path(id), Json(review)) = (id?, body?);
    if !(1..=5).contains(&review.stars) {
        let stars = review.stars;
        return Err(Problem::bad_request(format!("stars = {stars}: must be from 1 to 5")));
    }
    if review.text.chars().nth(REVIEW_TEXT_MAX).is_some() {
        return Err(Problem::bad_request(format!(
            "text: must have at most {REVIEW_TEXT_MAX} characters"
        )));
    }
    let written = shop
        .run(TransactionBehavior::Immediate, move |db| {
            shop::add_review(db, id, review.customer_id, review.stars, &review.text)
        })
        .await?;
    let headers = [(LOCATION, format!("/products/{id}")), (CACHE_CONTROL, NO_CACHING.to_owned())];
    Ok((StatusCode::SEE_OTHER, headers, Json(written)).into_response())
}

#[derive(Debug, Deserialize)]
struct NewPrice {
    price_cents: i64,
}

async fn set_price(State(shop): Shop, id: Id, body: Body<NewPrice>) -> Result<Response, Problem> {
    let (Path(id), Json(NewPrice { price_cents })) = (id?, body?);
    if !(0..=PRICE_MAX_CENTS).contains(&price_cents) {
        return Err(Problem::bad_request(format!(
            "price_cents = {price_cents}: must be from 0 to {PRICE_MAX_CENTS}"
        )));
    }
    let written = shop
        .run(TransactionBehavior::Immediate, move |db| shop::set_price(db, id, price_cents))
        .await?;
    Ok(([(CACHE_CONTROL, NO_CACHING)], Json(written)).into_response())
}

/// An error as a problem document of RFC 9457.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl From<ShopError> for Problem {
    fn from(error: ShopError) -> Self {
        let status = match &error {
            ShopError::NotFound(_) => StatusCode::NOT_FOUND,
            ShopError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            ShopError::Database(cause) => {
                tracing::warn!(%cause, "a query of the sample shop failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ShopError::Worker => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = serde_json::json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let headers = [(CONTENT_TYPE, "application/problem+json"), (CACHE_CONTROL, NO_CACHING)];
        let mut response = (self.status, headers, document.to_string()).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}
