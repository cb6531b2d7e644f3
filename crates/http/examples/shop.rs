//! A shop over a SQLite file, made fast by the lines that are marked with `// +`.
//!
//! It serves itself a load twice, without the layers and with them, and prints what that did. The shop is
//! two routes: the best sellers of a category, which cost a query over all sales, and a purchase, which
//! changes them and leads the buyer back to them. The cache forgets what an answer to a POST names in
//! `Location`, so they are new at once.
//!
//! ```text
//! cargo run --release -p ultra-perf-http --example shop
//! ```

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::Connection;
use serde::Serialize;
use tokio::net::TcpListener;
use ultra_perf::UltraPerf; // +
use ultra_perf_http::{HttpClient, HttpClients as _, ResponseCacheLayer, layers}; // +

const CATEGORIES: u32 = 20;
const PRODUCTS: u32 = 400;
const SALES: u32 = 40_000;
/// How long each load lasts, and how many clients it has.
const LOAD: Duration = Duration::from_millis(1_500);
const CLIENTS: usize = 8;

/// A product and how often it was sold.
#[derive(Serialize)]
struct BestSeller {
    id: u32,
    name: String,
    sold: i64,
}

struct Shop {
    database: Mutex<Connection>,
    queries: AtomicU64,
}

type Answer<T> = Result<T, (StatusCode, String)>;

fn failed(error: impl ToString) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

impl Shop {
    fn open(path: &std::path::Path) -> rusqlite::Result<Arc<Self>> {
        let database = Mutex::new(Connection::open(path)?);
        Ok(Arc::new(Self { database, queries: AtomicU64::new(0) }))
    }

    /// Runs a query where it may block.
    async fn query<T: Send + 'static>(
        self: Arc<Self>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<T> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let run = move || query(&self.database.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(run).await.map_err(failed)?.map_err(failed)
    }
}

async fn best_sellers(
    State(shop): State<Arc<Shop>>,
    Path(category): Path<u32>,
) -> Answer<Json<Vec<BestSeller>>> {
    let found = shop.query(move |database| {
        let mut statement = database.prepare_cached(
            "SELECT products.id, name, SUM(amount) AS sold FROM products
             JOIN sales ON sales.product = products.id
             WHERE category = ?1 GROUP BY products.id ORDER BY sold DESC LIMIT 10",
        )?;
        let rows = statement.query_map([category], |row| {
            Ok(BestSeller { id: row.get(0)?, name: row.get(1)?, sold: row.get(2)? })
        })?;
        rows.collect()
    });
    Ok(Json(found.await?))
}

async fn buy(State(shop): State<Arc<Shop>>, Path(product): Path<u32>) -> Answer<Redirect> {
    let bought = shop.query(move |database| {
        database.execute("INSERT INTO sales (product, amount) VALUES (?1, 1000)", [product])
    });
    bought.await?;
    Ok(Redirect::to(&format!("/categories/{}", product % CATEGORIES)))
}

fn router(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/categories/{id}", get(best_sellers))
        .route("/products/{id}/purchases", post(buy))
        .with_state(shop)
}

/// Fills a database that is as large as a small shop's.
fn stock(path: &std::path::Path) -> rusqlite::Result<()> {
    let mut database = Connection::open(path)?;
    database.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category INTEGER);
         CREATE TABLE sales (product INTEGER, amount INTEGER);
         CREATE INDEX products_by_category ON products (category);
         CREATE INDEX sales_by_product ON sales (product);",
    )?;
    let transaction = database.transaction()?;
    for id in 0..PRODUCTS {
        let product = (id, format!("Product {id}"), id % CATEGORIES);
        transaction.execute("INSERT INTO products VALUES (?1, ?2, ?3)", product)?;
    }
    for number in 0..SALES {
        let sale = (number * 7919 % PRODUCTS, number % 5 + 1);
        transaction.execute("INSERT INTO sales VALUES (?1, ?2)", sale)?;
    }
    transaction.commit()
}

/// Serves a router on a free port; returns its URL.
async fn serve(app: Router) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// Asks for the categories in turn, with some clients at once; returns how long each answer took.
async fn load(client: &HttpClient, url: &str) -> Vec<Duration> {
    let until = Instant::now() + LOAD;
    let clients = (0..CLIENTS).map(|first| {
        let (client, url) = (client.clone(), url.to_owned());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for number in first.. {
                let began = Instant::now();
                if began >= until {
                    break;
                }
                let target = format!("{url}/categories/{}", number % CATEGORIES as usize);
                let answer = client.get(&target).await.expect("the shop answers");
                answer.into_body().bytes().await.expect("a whole answer");
                times.push(began.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        times.extend(client.await.expect("a client ends"));
    }
    times.sort_unstable();
    times
}

fn report(name: &str, times: &[Duration], queries: u64) {
    let rate = times.len() as f64 / LOAD.as_secs_f64();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    println!("{name:<16} {rate:>10.0} {p50:>9.3} {p99:>9.3} {queries:>10}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("shop.sqlite");
    stock(&path)?;
    let perf = UltraPerf::builder() // +
        .set("monitor.history.enabled", "false") // +
        .build() // +
        .await?; // +
    let cache = ResponseCacheLayer::new(&perf, "shop")?.assume(Duration::from_secs(30)); // +
    let (plain, fast) = (Shop::open(&path)?, Shop::open(&path)?);
    let plain_url = serve(router(Arc::clone(&plain))).await?;
    let layers = layers(&perf).response_cache(cache); // +
    let fast_url = serve(router(Arc::clone(&fast)).layer(layers)).await?; // +

    let client = perf.http_client("load");
    println!("{:<16} {:>10} {:>9} {:>9} {:>10}", "", "requests/s", "p50 ms", "p99 ms", "queries");
    report("as it was", &load(&client, &plain_url).await, plain.queries.load(Ordering::Relaxed));
    report(
        "with the layers",
        &load(&client, &fast_url).await,
        fast.queries.load(Ordering::Relaxed),
    );

    // A purchase is seen at once, although what it changes was in the cache.
    let target = format!("{fast_url}/categories/7");
    let before = client.get(&target).await?.into_body().bytes().await?;
    let purchase = axum::http::Request::post(format!("{fast_url}/products/27/purchases"));
    client.request(purchase.body(axum::body::Body::empty())?).await?;
    let after = client.get(&target).await?.into_body().bytes().await?;
    println!("after a purchase the best sellers are new: {}", before != after);
    if before == after {
        return Err("a purchase was not seen".into());
    }
    let [plain, fast] = [plain, fast].map(|shop| shop.queries.load(Ordering::Relaxed));
    if fast >= plain {
        return Err(format!("{fast} queries in place of {plain}").into());
    }
    perf.shutdown(Duration::from_secs(5)).await; // +
    Ok(())
}
