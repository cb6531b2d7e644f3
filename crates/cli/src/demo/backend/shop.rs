//! The shop's data: an SQLite file, its deterministic contents, and the queries behind every page.
//!
//! The schema is one that a young service really has: correct, joined by keys, and without the two
//! indexes that nobody missed while the tables were small (`order_items.product_id` and
//! `reviews.product_id`). A page therefore scans and aggregates what it needs, which is where its
//! tens of milliseconds come from; nothing sleeps.
//!
//! Every row that a page shows belongs to something with a version that only grows: a write to a
//! product raises the product's version and its category's, in the same transaction. A page reads
//! its version and its contents in one transaction, so that they agree.

use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;

use crate::demo::zipf::Zipf;

/// The last day in the shop's books; days are counted from 0.
const TODAY: i64 = 364;

/// The longest period that a sales report covers.
pub(super) const REPORT_DAYS_MAX: i64 = TODAY + 1;

/// How popular the popular products are: the exponent of their Zipf distribution.
const POPULARITY: f64 = 0.7;

/// Rows between two calls of the progress function.
const PROGRESS_STEP: u64 = 2_000;

const SCHEMA: &str = "
    CREATE TABLE categories (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        version INTEGER NOT NULL
    );
    CREATE TABLE products (
        id INTEGER PRIMARY KEY,
        category_id INTEGER NOT NULL REFERENCES categories (id),
        name TEXT NOT NULL,
        price_cents INTEGER NOT NULL,
        version INTEGER NOT NULL
    );
    CREATE TABLE customers (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL
    );
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        customer_id INTEGER NOT NULL REFERENCES customers (id),
        day INTEGER NOT NULL
    );
    CREATE TABLE order_items (
        order_id INTEGER NOT NULL REFERENCES orders (id),
        product_id INTEGER NOT NULL REFERENCES products (id),
        quantity INTEGER NOT NULL,
        price_cents INTEGER NOT NULL,
        PRIMARY KEY (order_id, product_id)
    ) WITHOUT ROWID;
    CREATE TABLE reviews (
        id INTEGER PRIMARY KEY,
        product_id INTEGER NOT NULL REFERENCES products (id),
        customer_id INTEGER NOT NULL REFERENCES customers (id),
        stars INTEGER NOT NULL,
        text TEXT NOT NULL
    );
";

const ADJECTIVES: [&str; 12] = [
    "Quiet", "Folding", "Northern", "Plain", "Copper", "Woven", "Bright", "Sturdy", "Slim", "Old",
    "Light", "Green",
];
const NOUNS: [&str; 16] = [
    "Kettle", "Lamp", "Chair", "Notebook", "Blanket", "Backpack", "Clock", "Mug", "Tent", "Knife",
    "Radio", "Shelf", "Basket", "Mirror", "Scarf", "Bicycle",
];
const DEPARTMENTS: [&str; 8] =
    ["Kitchen", "Garden", "Travel", "Office", "Sleep", "Light", "Repair", "Winter"];
const FIRST_NAMES: [&str; 10] =
    ["Ada", "Bo", "Cleo", "Dara", "Emil", "Femi", "Gita", "Hana", "Ivo", "Juno"];
const LAST_NAMES: [&str; 10] =
    ["Abel", "Brandt", "Costa", "Dahl", "Engel", "Farkas", "Grau", "Holm", "Ito", "Jansen"];
const OPINIONS: [&str; 6] = [
    "does what it should",
    "smaller than I thought, but good",
    "arrived late and a little scratched",
    "bought a second one for my sister",
    "the third that broke within a year",
    "no complaints after two winters",
];

/// How many rows of each kind the shop has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) struct ShopSize {
    pub(in crate::demo) categories: u32,
    pub(in crate::demo) products: u32,
    pub(in crate::demo) customers: u32,
    pub(in crate::demo) orders: u32,
    pub(in crate::demo) reviews: u32,
}

impl ShopSize {
    /// The size at which a page takes tens of milliseconds and filling the tables about a second.
    pub(in crate::demo) const DEMO: Self =
        Self { categories: 12, products: 120, customers: 5_000, orders: 30_000, reviews: 60_000 };

    /// Rows that the progress function counts (the items of an order belong to their order).
    pub(in crate::demo) fn rows(&self) -> u64 {
        [self.categories, self.products, self.customers, self.orders, self.reviews]
            .into_iter()
            .map(u64::from)
            .sum()
    }
}

/// Why a query of the shop has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(in crate::demo) enum ShopError {
    #[error("no such {0}")]
    NotFound(&'static str),
    #[error("the shop's database failed")]
    Database(#[from] rusqlite::Error),
    #[error("every worker is busy and the queue is full")]
    Busy,
    #[error("a worker panicked")]
    Worker,
}

/// Creates the shop's file and fills it; the same seed gives the same rows.
///
/// `progress` hears the number of rows written so far and may break off, in which case the result is
/// `false` and the file is incomplete.
pub(super) fn create(
    path: &Path,
    size: ShopSize,
    seed: u64,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> rusqlite::Result<bool> {
    let mut connection = Connection::open(path)?;
    // A crash while filling costs nothing: the file lives as long as the demonstration.
    connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    let finished = fill(&transaction, size, &mut fastrand::Rng::with_seed(seed), &mut progress)?;
    transaction.commit()?;
    connection.execute_batch("PRAGMA journal_mode = WAL;")?;
    Ok(finished)
}

fn fill(
    to: &Connection,
    size: ShopSize,
    rng: &mut fastrand::Rng,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> rusqlite::Result<bool> {
    let mut rows = 0_u64;
    let mut broken_off = || {
        rows += 1;
        rows.is_multiple_of(PROGRESS_STEP) && progress(rows).is_break()
    };

    let mut insert = to.prepare("INSERT INTO categories VALUES (?1, ?2, 1)")?;
    for id in 1..=size.categories {
        let name = DEPARTMENTS[id as usize % DEPARTMENTS.len()];
        insert.execute(params![id, format!("{name} {id}")])?;
        if broken_off() {
            return Ok(false);
        }
    }

    let mut insert = to.prepare("INSERT INTO products VALUES (?1, ?2, ?3, ?4, 1)")?;
    let mut prices = Vec::with_capacity(size.products as usize);
    for id in 1..=size.products {
        let price_cents = rng.u32(199..=29_999);
        prices.push(price_cents);
        let name = format!("{} {} {id}", pick(&ADJECTIVES, rng), pick(&NOUNS, rng));
        insert.execute(params![id, 1 + (id - 1) % size.categories, name, price_cents])?;
        if broken_off() {
            return Ok(false);
        }
    }

    let mut insert = to.prepare("INSERT INTO customers VALUES (?1, ?2)")?;
    for id in 1..=size.customers {
        insert.execute(params![
            id,
            format!("{} {}", pick(&FIRST_NAMES, rng), pick(&LAST_NAMES, rng))
        ])?;
        if broken_off() {
            return Ok(false);
        }
    }

    let popular = Zipf::new(size.products as usize, POPULARITY);
    let mut insert = to.prepare("INSERT INTO orders VALUES (?1, ?2, ?3)")?;
    let mut insert_item =
        to.prepare("INSERT OR IGNORE INTO order_items VALUES (?1, ?2, ?3, ?4)")?;
    for id in 1..=size.orders {
        insert.execute(params![id, rng.u32(1..=size.customers), rng.i64(0..=TODAY)])?;
        for _ in 0..rng.u32(1..=5) {
            let product = popular.draw(rng);
            insert_item.execute(params![
                id,
                product as u32 + 1,
                rng.u32(1..=3),
                prices[product]
            ])?;
        }
        if broken_off() {
            return Ok(false);
        }
    }

    let mut insert = to.prepare("INSERT INTO reviews VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for id in 1..=size.reviews {
        let product = popular.draw(rng) as u32 + 1;
        let customer = rng.u32(1..=size.customers);
        let stars = rng.u32(1..=5);
        insert.execute(params![id, product, customer, stars, pick(&OPINIONS, rng)])?;
        if broken_off() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn pick(words: &[&'static str], rng: &mut fastrand::Rng) -> &'static str {
    words[rng.usize(0..words.len())]
}

/// A product with what a buyer wants to see beside it.
#[derive(Debug, Serialize)]
pub(super) struct ProductPage {
    id: i64,
    version: i64,
    name: String,
    price_cents: i64,
    category: CategoryName,
    reviews: ReviewSummary,
    bought_together: Vec<BoughtTogether>,
}

#[derive(Debug, Serialize)]
struct CategoryName {
    id: i64,
    name: String,
}

#[derive(Debug, Serialize)]
struct ReviewSummary {
    count: i64,
    average: Option<f64>,
    latest: Vec<ReviewLine>,
}

#[derive(Debug, Serialize)]
struct ReviewLine {
    by: String,
    stars: i64,
    text: String,
}

#[derive(Debug, Serialize)]
struct BoughtTogether {
    id: i64,
    name: String,
    orders: i64,
}

/// Reads the version of a product.
pub(super) fn product_version(db: &Connection, id: i64) -> Result<i64, ShopError> {
    db.prepare_cached("SELECT version FROM products WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?
        .ok_or(ShopError::NotFound("product"))
}

/// Reads a product, its reviews and what else its buyers bought.
pub(super) fn product(db: &Connection, id: i64) -> Result<ProductPage, ShopError> {
    let reviews = ReviewSummary {
        latest: db
            .prepare_cached(
                "SELECT c.name, r.stars, r.text
                 FROM reviews r JOIN customers c ON c.id = r.customer_id
                 WHERE r.product_id = ?1 ORDER BY r.id DESC LIMIT 3",
            )?
            .query_map([id], |row| {
                Ok(ReviewLine { by: row.get(0)?, stars: row.get(1)?, text: row.get(2)? })
            })?
            .collect::<Result<_, _>>()?,
        ..db.prepare_cached("SELECT count(*), avg(stars) FROM reviews WHERE product_id = ?1")?
            .query_row([id], |row| {
                Ok(ReviewSummary {
                    count: row.get(0)?,
                    average: row.get::<_, Option<f64>>(1)?.map(hundredths),
                    latest: Vec::new(),
                })
            })?
    };
    let bought_together = db
        .prepare_cached(
            "SELECT p.id, p.name, count(*) AS orders
             FROM order_items mine
             JOIN order_items other
               ON other.order_id = mine.order_id AND other.product_id <> mine.product_id
             JOIN products p ON p.id = other.product_id
             WHERE mine.product_id = ?1
             GROUP BY p.id ORDER BY orders DESC, p.id LIMIT 5",
        )?
        .query_map([id], |row| {
            Ok(BoughtTogether { id: row.get(0)?, name: row.get(1)?, orders: row.get(2)? })
        })?
        .collect::<Result<_, _>>()?;
    db.prepare_cached(
        "SELECT p.version, p.name, p.price_cents, c.id, c.name
         FROM products p JOIN categories c ON c.id = p.category_id WHERE p.id = ?1",
    )?
    .query_row([id], |row| {
        Ok(ProductPage {
            id,
            version: row.get(0)?,
            name: row.get(1)?,
            price_cents: row.get(2)?,
            category: CategoryName { id: row.get(3)?, name: row.get(4)? },
            reviews,
            bought_together,
        })
    })
    .optional()?
    .ok_or(ShopError::NotFound("product"))
}

/// The products of a category that sold most.
#[derive(Debug, Serialize)]
pub(super) struct Bestsellers {
    id: i64,
    version: i64,
    category: String,
    products: Vec<Bestseller>,
}

#[derive(Debug, Serialize)]
struct Bestseller {
    id: i64,
    name: String,
    price_cents: i64,
    units: i64,
    revenue_cents: i64,
    buyers: i64,
    rating: Option<f64>,
}

/// Reads the version of a category: it grows with every write to one of its products.
pub(super) fn category_version(db: &Connection, id: i64) -> Result<i64, ShopError> {
    db.prepare_cached("SELECT version FROM categories WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?
        .ok_or(ShopError::NotFound("category"))
}

/// Reads the ten products of a category that sold most.
pub(super) fn bestsellers(db: &Connection, id: i64) -> Result<Bestsellers, ShopError> {
    let products = db
        .prepare_cached(
            "SELECT p.id, p.name, p.price_cents, sum(i.quantity) AS units,
                    sum(i.quantity * i.price_cents), count(DISTINCT o.customer_id),
                    rating.average
             FROM order_items i
             CROSS JOIN products p ON p.id = i.product_id
             JOIN orders o ON o.id = i.order_id
             LEFT JOIN (SELECT product_id, avg(stars) AS average FROM reviews GROUP BY product_id)
               AS rating ON rating.product_id = p.id
             WHERE p.category_id = ?1
             GROUP BY p.id ORDER BY units DESC, p.id LIMIT 10",
        )?
        .query_map([id], |row| {
            Ok(Bestseller {
                id: row.get(0)?,
                name: row.get(1)?,
                price_cents: row.get(2)?,
                units: row.get(3)?,
                revenue_cents: row.get(4)?,
                buyers: row.get(5)?,
                rating: row.get::<_, Option<f64>>(6)?.map(hundredths),
            })
        })?
        .collect::<Result<_, _>>()?;
    db.prepare_cached("SELECT version, name FROM categories WHERE id = ?1")?
        .query_row([id], |row| {
            Ok(Bestsellers { id, version: row.get(0)?, category: row.get(1)?, products })
        })
        .optional()?
        .ok_or(ShopError::NotFound("category"))
}

/// What a customer has ordered; nobody else's business.
#[derive(Debug, Serialize)]
pub(super) struct CustomerOrders {
    id: i64,
    version: i64,
    name: String,
    orders: Vec<OrderLine>,
}

#[derive(Debug, Serialize)]
struct OrderLine {
    order: i64,
    day: i64,
    product: String,
    quantity: i64,
    price_cents: i64,
    rating: Option<f64>,
}

/// Reads the version of a customer's page: it shows ratings, so every new review raises it.
pub(super) fn customer_version(db: &Connection, id: i64) -> Result<i64, ShopError> {
    db.prepare_cached("SELECT (SELECT max(id) FROM reviews) FROM customers WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?
        .ok_or(ShopError::NotFound("customer"))
}

/// Reads what a customer has ordered, with how others rate it.
pub(super) fn customer_orders(db: &Connection, id: i64) -> Result<CustomerOrders, ShopError> {
    let version = customer_version(db, id)?;
    let orders = db
        .prepare_cached(
            "SELECT o.id, o.day, p.name, i.quantity, i.price_cents, rating.average
             FROM orders o
             JOIN order_items i ON i.order_id = o.id
             JOIN products p ON p.id = i.product_id
             LEFT JOIN (SELECT product_id, avg(stars) AS average FROM reviews GROUP BY product_id)
               AS rating ON rating.product_id = p.id
             WHERE o.customer_id = ?1
             ORDER BY o.day DESC, o.id DESC, p.id",
        )?
        .query_map([id], |row| {
            Ok(OrderLine {
                order: row.get(0)?,
                day: row.get(1)?,
                product: row.get(2)?,
                quantity: row.get(3)?,
                price_cents: row.get(4)?,
                rating: row.get::<_, Option<f64>>(5)?.map(hundredths),
            })
        })?
        .collect::<Result<_, _>>()?;
    let name = db
        .prepare_cached("SELECT name FROM customers WHERE id = ?1")?
        .query_row([id], |row| row.get(0))?;
    Ok(CustomerOrders { id, version, name, orders })
}

/// What was sold in the last days, by category.
#[derive(Debug, Serialize)]
pub(super) struct SalesReport {
    version: i64,
    days: i64,
    categories: Vec<SalesLine>,
}

#[derive(Debug, Serialize)]
struct SalesLine {
    category: String,
    orders: i64,
    units: i64,
    revenue_cents: i64,
}

/// Reads the version of the sales: the number of the last order.
pub(super) fn sales_version(db: &Connection) -> Result<i64, ShopError> {
    Ok(db
        .prepare_cached("SELECT coalesce(max(id), 0) FROM orders")?
        .query_row([], |row| row.get(0))?)
}

/// Reads what was sold in the last `days` days.
pub(super) fn sales(db: &Connection, days: i64) -> Result<SalesReport, ShopError> {
    let categories = db
        .prepare_cached(
            "SELECT c.name, count(DISTINCT o.id), sum(i.quantity),
                    sum(i.quantity * i.price_cents) AS revenue
             FROM orders o
             JOIN order_items i ON i.order_id = o.id
             JOIN products p ON p.id = i.product_id
             JOIN categories c ON c.id = p.category_id
             WHERE o.day > ?1
             GROUP BY c.id ORDER BY revenue DESC, c.id",
        )?
        .query_map([TODAY - days], |row| {
            Ok(SalesLine {
                category: row.get(0)?,
                orders: row.get(1)?,
                units: row.get(2)?,
                revenue_cents: row.get(3)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(SalesReport { version: sales_version(db)?, days, categories })
}

/// What a write answers: the product and the version that shows the write.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    id: i64,
    version: i64,
}

/// Adds a review to a product.
pub(super) fn add_review(
    db: &Connection,
    product: i64,
    customer: i64,
    stars: i64,
    text: &str,
) -> Result<Written, ShopError> {
    db.prepare_cached("SELECT 1 FROM customers WHERE id = ?1")?
        .query_row([customer], |_| Ok(()))
        .optional()?
        .ok_or(ShopError::NotFound("customer"))?;
    let written = raise_version(db, product)?;
    db.prepare_cached(
        "INSERT INTO reviews (product_id, customer_id, stars, text) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![product, customer, stars, text])?;
    Ok(written)
}

/// Gives a product a new price.
pub(super) fn set_price(db: &Connection, id: i64, price_cents: i64) -> Result<Written, ShopError> {
    let written = raise_version(db, id)?;
    db.prepare_cached("UPDATE products SET price_cents = ?2 WHERE id = ?1")?
        .execute(params![id, price_cents])?;
    Ok(written)
}

fn raise_version(db: &Connection, product: i64) -> Result<Written, ShopError> {
    let (version, category) = db
        .prepare_cached(
            "UPDATE products SET version = version + 1 WHERE id = ?1
             RETURNING version, category_id",
        )?
        .query_row([product], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))
        .optional()?
        .ok_or(ShopError::NotFound("product"))?;
    db.prepare_cached("UPDATE categories SET version = version + 1 WHERE id = ?1")?
        .execute([category])?;
    Ok(Written { id: product, version })
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
