//! The load against the real sample backend, and against servers that misbehave on purpose.

use std::ops::ControlFlow;

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::*;
use crate::demo::backend::{Backend, create_shop};

const SIZE: ShopSize =
    ShopSize { categories: 4, products: 30, customers: 20, orders: 300, reviews: 200 };

const DEFAULT_MIX: Mix = Mix { writes_percent: 5, private_percent: 2 };

fn plan(to: SocketAddr) -> LoadPlan {
    LoadPlan {
        to,
        clients: 4,
        duration: Duration::from_secs(120),
        requests_max: 400,
        mix: DEFAULT_MIX,
        seed: 7,
        catalog: Arc::new(Catalog::of(SIZE)),
    }
}

async fn run(plan: LoadPlan) -> (Measured, Load) {
    let mut load = Load::start(plan);
    load.finished().await;
    (load.total(), load)
}

async fn serve(app: Router) -> (SocketAddr, JoinHandle<std::io::Result<()>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, tokio::spawn(async { axum::serve(listener, app).await }))
}

/// Runs a load, changed as the case wants it, against a router on a free loopback port.
async fn run_against(app: Router, change: impl FnOnce(&mut LoadPlan)) -> (Measured, Load) {
    let (addr, server) = serve(app).await;
    let mut plan = plan(addr);
    change(&mut plan);
    let done = run(plan).await;
    server.abort();
    done
}

/// A server whose products are forever in version 1, although its writes report version 2.
fn forgetful(x_cache: &'static str) -> Router {
    let page = move |Path(id): Path<u32>| async move {
        ([("x-cache", x_cache)], Json(serde_json::json!({"id": id, "version": 1})))
    };
    let written =
        |Path(id): Path<u32>| async move { Json(serde_json::json!({"id": id, "version": 2})) };
    let reviewed = |Path(id): Path<u32>| async move {
        let body = Json(serde_json::json!({"id": id, "version": 2}));
        (axum::http::StatusCode::SEE_OTHER, body)
    };
    let report = || async { Json(serde_json::json!({"version": 1})) };
    Router::new()
        .route("/products/{id}", get(page).patch(written))
        .route("/products/{id}/reviews", post(reviewed))
        .route("/categories/{id}/bestsellers", get(page))
        .route("/customers/{id}/orders", get(page))
        .route("/reports/sales", get(report))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_ends_at_its_count_and_the_backend_answers_all_of_it_freshly() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.sqlite");
    assert!(create_shop(&file, SIZE, 1, |_| ControlFlow::Continue(())).unwrap());
    let backend = Backend::start(file, 0).await.unwrap();
    let mut plan = plan(backend.addr());
    plan.mix.writes_percent = 30;
    let (measured, load) = run(plan).await;
    let counts = measured.counts;
    assert_eq!(load.first_error(), None);
    assert_eq!((counts.answered, counts.errors), (400, 0));
    assert_eq!(counts.reads + counts.writes, 400);
    assert!((60..=180).contains(&counts.writes), "{counts:?}");
    assert_eq!((counts.violations, counts.leaks), (0, 0));
    assert_eq!(counts.hit_ratio(), Some(0.0));
    assert_eq!(backend.calls(), 400);
    assert!(measured.p50 > Duration::ZERO);
    assert!(measured.p50 <= measured.p95 && measured.p95 <= measured.p99);
    assert!(measured.elapsed > Duration::ZERO);
    backend.shutdown(Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_ends_at_its_time() {
    let started = Instant::now();
    let (measured, _) = run_against(forgetful("MISS"), |plan| {
        plan.duration = Duration::from_millis(300);
        plan.requests_max = u64::MAX;
    })
    .await;
    assert!(measured.counts.answered > 0);
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_older_than_an_answered_write_is_a_violation() {
    let (measured, load) =
        run_against(forgetful("MISS"), |plan| plan.mix.writes_percent = 50).await;
    assert_eq!(load.first_error(), None);
    assert!(measured.counts.violations > 0, "{measured:?}");
    let (measured, _) = run_against(forgetful("MISS"), |plan| plan.mix.writes_percent = 0).await;
    assert_eq!(measured.counts.violations, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_page_out_of_the_cache_is_a_leak() {
    for (word, leaks) in [("HIT", true), ("STALE", true), ("MISS", false), ("BYPASS", false)] {
        let (measured, _) =
            run_against(forgetful(word), |plan| plan.mix.private_percent = 50).await;
        assert_eq!(measured.counts.leaks > 0, leaks, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_stale_answers_make_the_hit_ratio() {
    for (word, hits, stale) in [("HIT", 400, 0), ("STALE", 0, 400), ("MISS", 0, 0), ("hit?", 0, 0)]
    {
        // Only products carry the header here, so nothing else is asked for.
        let (measured, _) = run_against(forgetful(word), |plan| {
            plan.mix = Mix { writes_percent: 0, private_percent: 0 };
            plan.catalog = Arc::new(Catalog::of(ShopSize { categories: 0, products: 6, ..SIZE }));
        })
        .await;
        let counts = measured.counts;
        // The four reports at the end of the catalog are rare and never hits.
        assert!(counts.hits <= hits && counts.stale <= stale, "{word} {counts:?}");
        let ratio = counts.hit_ratio().unwrap();
        assert_eq!(ratio > 0.5, hits + stale > 0, "{word} {counts:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_makes_errors_and_nothing_hangs() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plan = plan(listener.local_addr().unwrap());
    drop(listener);
    plan.requests_max = 12;
    let (measured, load) = run(plan).await;
    assert_eq!((measured.counts.answered, measured.counts.errors), (0, 12));
    assert!(load.first_error().unwrap().starts_with("connect:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_answer_is_an_error() {
    let other_product = || async { Json(serde_json::json!({"id": 9_999, "version": 1})) };
    let broken = || async { "not json" };
    let refusing = |_: HeaderMap| async {
        (axum::http::StatusCode::SERVICE_UNAVAILABLE, "busy").into_response()
    };
    for app in [
        Router::new().fallback(other_product),
        Router::new().fallback(broken),
        Router::new().fallback(refusing),
    ] {
        let (measured, _) = run_against(app, |plan| {
            plan.requests_max = 20;
            plan.mix = Mix { writes_percent: 100, private_percent: 0 };
        })
        .await;
        assert_eq!((measured.counts.answered, measured.counts.errors), (0, 20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_measurements_add_up_to_the_total() {
    let (addr, server) = serve(forgetful("MISS")).await;
    let mut load = Load::start(plan(addr));
    let mut recent = 0;
    loop {
        let done = tokio::time::timeout(Duration::from_millis(5), load.finished()).await.is_ok();
        recent += load.recent().counts.answered;
        if done {
            break;
        }
    }
    assert_eq!(recent, 400);
    assert_eq!(load.total().counts.answered, 400);
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_load_stops_sending() {
    let seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&seen);
    let app = Router::new().fallback(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        async { "not json" }
    });
    let (addr, server) = serve(app).await;
    let mut plan = plan(addr);
    plan.requests_max = u64::MAX;
    let load = Load::start(plan);
    let shared = Arc::downgrade(&load.shared);
    while seen.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    drop(load);
    let patience = Instant::now();
    while shared.upgrade().is_some() {
        assert!(patience.elapsed() < Duration::from_secs(60), "the clients outlived their load");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.abort();
}

#[test]
fn the_mix_is_what_the_plan_says() {
    let catalog = Catalog::of(ShopSize::DEMO);
    let mut rng = fastrand::Rng::with_seed(3);
    let (mut writes, mut private, mut hottest) = (0, 0, 0);
    for _ in 0..100_000 {
        match catalog.draw(DEFAULT_MIX, &mut rng) {
            Ask::Review { product, customer, stars } => {
                assert!((1..=120).contains(&product) && (1..=5_000).contains(&customer));
                assert!((1..=5).contains(&stars));
                writes += 1;
            }
            Ask::Price { product, .. } => {
                assert!((1..=120).contains(&product));
                writes += 1;
            }
            Ask::Orders { .. } => private += 1,
            Ask::Page(page) => hottest += u32::from(page == 0),
        }
    }
    assert!((4_600..=5_400).contains(&writes), "{writes}");
    assert!((1_750..=2_250).contains(&private), "{private}");
    // 1 / sum of k^-0.9 for 136 pages is 0.1445; of the 93 % that ask for a page.
    assert!((13_000..=13_900).contains(&hottest), "{hottest}");
}

#[test]
fn the_catalog_names_every_page_once() {
    for size in [SIZE, ShopSize::DEMO, ShopSize { products: 1, ..SIZE }] {
        let catalog = Catalog::of(size);
        let expected = (size.products + size.categories) as usize + REPORT_DAYS.len();
        let paths: std::collections::BTreeSet<_> =
            catalog.pages.iter().map(|page| &page.path).collect();
        assert_eq!((catalog.len(), paths.len()), (expected, expected));
    }
}

#[test]
fn the_same_seed_asks_for_the_same() {
    let catalog = Catalog::of(SIZE);
    let asks = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..100).map(|_| catalog.draw(DEFAULT_MIX, &mut rng)).collect::<Vec<_>>()
    };
    assert_eq!(asks(1), asks(1));
    assert_ne!(asks(1), asks(2));
}
