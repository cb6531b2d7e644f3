//! The backend over real sockets, on a shop small enough for a quick test.

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::*;
use axum::http::{Method, Request};

const SIZE: ShopSize =
    ShopSize { categories: 4, products: 12, customers: 20, orders: 300, reviews: 200 };

/// A running backend with its file, and the one place that talks to it.
struct Fixture {
    backend: Backend,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Fixture {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shop.sqlite");
        assert!(create_shop(&file, SIZE, 1, |_| ControlFlow::Continue(())).unwrap());
        Self { backend: Backend::start(file, 0).await.unwrap(), _dir: dir }
    }

    async fn send(&self, method: Method, path: &str, header: (&str, &str), body: &str) -> Answer {
        let stream = tokio::net::TcpStream::connect(self.backend.addr()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.backend.addr().to_string())
            .header(header.0, header.1)
            .body(Full::new(bytes::Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        driver.abort();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, ("accept", "*/*"), "").await
    }

    async fn get_if_changed(&self, path: &str, tag: &str) -> Answer {
        self.send(Method::GET, path, ("if-none-match", tag), "").await
    }

    async fn write(&self, method: Method, path: &str, body: Value) -> Answer {
        self.send(method, path, ("content-type", "application/json"), &body.to_string()).await
    }
}

#[tokio::test]
async fn every_page_is_json_with_a_version_a_tag_and_its_caching_rule() {
    let shop = Fixture::start().await;
    for (path, id, caching) in [
        ("/products/3", json!(3), PRODUCT_CACHING),
        ("/categories/2/bestsellers", json!(2), BESTSELLERS_CACHING),
        ("/customers/5/orders", json!(5), PRIVATE_CACHING),
        ("/reports/sales?days=90", Value::Null, SALES_CACHING),
        ("/reports/sales", Value::Null, SALES_CACHING),
    ] {
        let page = shop.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        assert_eq!(page.header("content-type"), "application/json", "{path}");
        assert_eq!(page.header("cache-control"), caching, "{path}");
        assert!(page.json()["version"].as_i64().unwrap() >= 1, "{path}");
        assert_eq!(page.json()["id"], id, "{path}");

        let tag = page.header("etag").to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let unchanged = shop.get_if_changed(path, &known).await;
            assert_eq!(unchanged.status, 304, "{path} {known}");
            assert!(unchanged.body.is_empty());
            assert_eq!(unchanged.header("etag"), tag);
            assert_eq!(unchanged.header("cache-control"), caching);
        }
        assert_eq!(shop.get_if_changed(path, "\"other\"").await.status, 200);
    }
}

#[tokio::test]
async fn pages_agree_with_sums_over_the_raw_tables() {
    let shop = Fixture::start().await;
    let file = Connection::open(shop._dir.path().join("shop.sqlite")).unwrap();
    let number = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();

    let product = shop.get("/products/1").await.json();
    assert_eq!(
        product["reviews"]["count"],
        number("SELECT count(*) FROM reviews WHERE product_id = 1")
    );
    let top = &product["bought_together"][0];
    let (id, orders) = (top["id"].as_i64().unwrap(), top["orders"].as_i64().unwrap());
    let with = |other: i64| {
        number(&format!(
            "SELECT count(*) FROM order_items WHERE product_id = {other} AND order_id IN
             (SELECT order_id FROM order_items WHERE product_id = 1)"
        ))
    };
    assert_eq!(orders, with(id));
    assert_eq!(orders, (2..=12).map(with).max().unwrap());

    let report = shop.get("/reports/sales?days=365").await.json();
    let units = report["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["units"].as_i64().unwrap())
        .sum::<i64>();
    assert_eq!(units, number("SELECT sum(quantity) FROM order_items"));

    let best = shop.get("/categories/1/bestsellers").await.json();
    assert_eq!(
        best["products"][0]["units"],
        number(
            "SELECT max(units) FROM (SELECT sum(quantity) AS units FROM order_items
             JOIN products ON id = product_id WHERE category_id = 1 GROUP BY id)"
        )
    );
    let top = best["products"][0]["id"].as_i64().unwrap();
    assert_eq!(
        best["products"][0]["buyers"],
        number(&format!(
            "SELECT count(DISTINCT customer_id) FROM orders WHERE id IN
             (SELECT order_id FROM order_items WHERE product_id = {top})"
        ))
    );

    let orders = shop.get("/customers/1/orders").await.json();
    assert_eq!(
        orders["orders"].as_array().unwrap().len() as i64,
        number(
            "SELECT count(*) FROM orders JOIN order_items ON order_id = id WHERE customer_id = 1"
        )
    );
}

#[tokio::test]
async fn a_review_changes_the_tag_of_its_product_only_and_names_it_as_location() {
    let shop = Fixture::start().await;
    let (before, other) = (shop.get("/products/3").await, shop.get("/products/4").await);
    let review = json!({"customer_id": 1, "stars": 5, "text": "good"});
    let written = shop.write(Method::POST, "/products/3/reviews", review).await;
    assert_eq!(written.status, 303);
    assert_eq!(written.header("location"), "/products/3");
    assert_eq!(written.header("cache-control"), NO_CACHING);

    let after = shop.get_if_changed("/products/3", before.header("etag")).await;
    assert_eq!(after.status, 200);
    assert_ne!(after.header("etag"), before.header("etag"));
    assert_eq!(after.json()["version"], written.json()["version"]);
    assert_eq!(
        after.json()["version"].as_i64(),
        before.json()["version"].as_i64().map(|version| version + 1)
    );
    assert_eq!(after.json()["reviews"]["latest"][0]["text"], "good");
    assert_eq!(shop.get_if_changed("/products/4", other.header("etag")).await.status, 304);
}

#[tokio::test]
async fn a_write_changes_the_tags_of_its_product_and_its_category() {
    let shop = Fixture::start().await;
    let category = shop.get("/products/3").await.json()["category"]["id"].as_i64().unwrap();
    let listed = format!("/categories/{category}/bestsellers");
    for (method, path, body, price) in [
        (Method::PATCH, "/products/3", json!({"price_cents": 4321}), 4321),
        (
            Method::POST,
            "/products/3/reviews",
            json!({"customer_id": 2, "stars": 1, "text": "bad"}),
            4321,
        ),
        (Method::PATCH, "/products/3", json!({"price_cents": 0}), 0),
    ] {
        let (product, bestsellers) = (shop.get("/products/3").await, shop.get(&listed).await);
        let written = shop.write(method, path, body).await;
        assert_eq!(written.json()["id"], 3);

        let after = shop.get_if_changed("/products/3", product.header("etag")).await;
        assert_eq!(after.json()["price_cents"], price);
        assert_eq!(after.json()["version"], written.json()["version"]);
        let after = shop.get_if_changed(&listed, bestsellers.header("etag")).await;
        assert_eq!(after.status, 200);
    }
}

#[tokio::test]
async fn bad_requests_get_a_problem_document_and_change_nothing() {
    let shop = Fixture::start().await;
    let before = shop.get("/products/3").await;
    let review = |customer: i64, stars: i64, text: &str| json!({"customer_id": customer, "stars": stars, "text": text});
    for (method, path, body, status) in [
        (Method::GET, "/products/13", Value::Null, 404),
        (Method::GET, "/products/x", Value::Null, 400),
        (Method::GET, "/categories/99/bestsellers", Value::Null, 404),
        (Method::GET, "/customers/0/orders", Value::Null, 404),
        (Method::GET, "/reports/sales?days=0", Value::Null, 400),
        (Method::GET, "/reports/sales?days=366", Value::Null, 400),
        (Method::GET, "/reports/sales?days=many", Value::Null, 400),
        (Method::GET, "/nowhere", Value::Null, 404),
        (Method::DELETE, "/products/3", Value::Null, 405),
        (Method::PATCH, "/products/3", json!({"price_cents": -1}), 400),
        (Method::PATCH, "/products/3", json!({"price": 1}), 422),
        (Method::PATCH, "/products/13", json!({"price_cents": 1}), 404),
        (Method::POST, "/products/3/reviews", review(1, 6, "x"), 400),
        (Method::POST, "/products/3/reviews", review(99, 5, "x"), 404),
        (Method::POST, "/products/3/reviews", review(1, 5, &"x".repeat(2_001)), 400),
        (Method::POST, "/products/3/reviews", review(1, 5, &"x".repeat(20_000)), 413),
        (Method::POST, "/products/13/reviews", review(1, 5, "x"), 404),
    ] {
        let answer = shop.write(method.clone(), path, body).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{method} {path}");
        assert_eq!(answer.header("cache-control"), NO_CACHING, "{method} {path}");
        assert_eq!(answer.json()["status"], status, "{method} {path}");
        assert!(!answer.json()["detail"].as_str().unwrap().is_empty(), "{method} {path}");
    }
    assert_eq!(shop.get_if_changed("/products/3", before.header("etag")).await.status, 304);
}

#[tokio::test]
async fn every_request_is_counted_as_a_call() {
    let shop = Fixture::start().await;
    shop.get("/products/1").await;
    shop.get("/nowhere").await;
    shop.write(Method::PATCH, "/products/1", json!({"price_cents": 1})).await;
    assert_eq!(shop.backend.calls(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_writes_all_count_and_the_connections_come_back() {
    let shop = Arc::new(Fixture::start().await);
    let writes: Vec<_> = (0..40)
        .map(|n| {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move {
                let price = json!({"price_cents": n});
                shop.write(Method::PATCH, "/products/2", price).await.status
            })
        })
        .collect();
    for write in writes {
        assert_eq!(write.await.unwrap(), 200);
    }
    assert_eq!(shop.get("/products/2").await.json()["version"], 41);
}

#[tokio::test]
async fn a_worker_that_panics_gives_its_connection_back() {
    let shop = Fixture::start().await;
    let workers = Arc::new(Workers::open(&shop._dir.path().join("shop.sqlite")).unwrap());
    for _ in 0..2 * WORKERS {
        let failed = workers
            .run::<()>(TransactionBehavior::Deferred, |_| panic!("a panic for the test"))
            .await;
        assert!(matches!(failed, Err(ShopError::Worker)));
    }
    let version =
        workers.run(TransactionBehavior::Deferred, |db| shop::product_version(db, 1)).await;
    assert_eq!(version.unwrap(), 1);
}

#[tokio::test]
async fn a_stopped_backend_refuses_connections() {
    let shop = Fixture::start().await;
    let addr = shop.backend.addr();
    shop.backend.shutdown(Duration::from_secs(30)).await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[test]
fn the_same_seed_fills_the_same_shop_and_a_broken_off_filling_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let fingerprint = |name: &str, seed| {
        let file = dir.path().join(name);
        assert!(create_shop(&file, SIZE, seed, |_| ControlFlow::Continue(())).unwrap());
        Connection::open(file)
            .unwrap()
            .query_row("SELECT sum(order_id * product_id * quantity) FROM order_items", [], |row| {
                row.get::<_, i64>(0)
            })
            .unwrap()
    };
    assert_eq!(fingerprint("a", 1), fingerprint("b", 1));
    assert_ne!(fingerprint("a2", 1), fingerprint("c", 2));

    let larger = ShopSize { orders: 10_000, ..SIZE };
    let mut heard = 0;
    let finished = create_shop(&dir.path().join("d"), larger, 1, |rows| {
        heard = rows;
        ControlFlow::Break(())
    });
    assert!(!finished.unwrap());
    assert!(heard < larger.rows());
}
