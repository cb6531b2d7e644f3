//! What is kept, and what never is.

use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    accelerator::{Accelerated, age, outcome},
    support::origin::Origin,
};

fn date(seconds_from_now: i64) -> String {
    let now = SystemTime::now();
    let offset = Duration::from_secs(seconds_from_now.unsigned_abs());
    httpdate::fmt_http_date(if seconds_from_now < 0 { now - offset } else { now + offset })
}

/// An answer's status and fields, and whether it is to be kept.
type Case<'a> = (u16, &'a [(&'a str, &'a str)], bool);

/// Asks twice for each of these answers and checks whether the second comes from the cache.
async fn check(cases: &[Case<'_>]) {
    let answers: Vec<(u16, Vec<(String, String)>)> = cases
        .iter()
        .map(|(status, fields, _)| {
            let fields = fields.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            (*status, fields.collect())
        })
        .collect();
    let origin = Origin::start(move |request| {
        let at: usize = request.path()[1..].parse().expect("a number");
        let (status, fields) = &answers[at];
        fields.iter().fold(Reply::status(*status).body("body"), |reply, (name, value)| {
            reply.header(name, value)
        })
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for (at, (status, fields, kept)) in cases.iter().enumerate() {
        let target = format!("/{at}");
        let first = proxy.get(&target).await;
        assert_eq!((first.status, outcome(&first)), (*status, "MISS"), "{fields:?}");
        let before = origin.hits();
        let second = proxy.get(&target).await;
        assert_eq!(second.status, *status, "{fields:?}");
        assert_eq!(second.text(), first.text(), "{fields:?}");
        assert_eq!(outcome(&second), if *kept { "HIT" } else { "MISS" }, "{status} {fields:?}");
        assert_eq!(origin.hits() == before, *kept, "{status} {fields:?}");
    }
}

#[tokio::test]
async fn an_answer_with_a_lifetime_is_kept() {
    let in_an_hour = date(3600);
    let long_ago = date(-1_000_000);
    check(&[
        (200, &[("cache-control", "max-age=60")], true),
        (200, &[("cache-control", "max-age=0, s-maxage=60")], true),
        (200, &[("expires", &in_an_hour)], true),
        (200, &[("cache-control", "max-age=60"), ("expires", "0")], true),
        (200, &[("last-modified", &long_ago)], true),
        (200, &[("cache-control", "no-store"), ("cdn-cache-control", "max-age=60")], true),
        (200, &[("ultra-perf-cache-control", "max-age=60"), ("cache-control", "private")], true),
        (302, &[("cache-control", "max-age=60"), ("location", "/elsewhere")], true),
        (404, &[("cache-control", "max-age=60")], true),
        (200, &[("cache-control", "public, max-age=60"), ("vary", "accept-encoding")], true),
    ])
    .await;
}

#[tokio::test]
async fn what_a_shared_cache_must_not_keep_is_never_kept() {
    let in_an_hour = date(3600);
    check(&[
        (200, &[], false),
        (200, &[("cache-control", "no-store, max-age=60")], false),
        (200, &[("cache-control", "private, max-age=60")], false),
        (200, &[("cache-control", "max-age=60"), ("set-cookie", "session=1")], false),
        (200, &[("cache-control", "max-age=60, s-maxage=0")], false),
        (200, &[("cache-control", "max-age=60"), ("vary", "*")], false),
        (200, &[("cache-control", "max-age=60"), ("vary", "x-forwarded-for")], false),
        (200, &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")], false),
        (200, &[("cache-control", "max-age=0"), ("expires", &in_an_hour)], false),
        (206, &[("cache-control", "max-age=60"), ("content-range", "bytes 0-3/9")], false),
        (302, &[("location", "/elsewhere")], false),
        (500, &[], false),
    ])
    .await;
}

#[tokio::test]
async fn an_answer_to_credentials_is_kept_only_if_the_origin_shares_it() {
    let origin = Origin::start(|request| {
        Reply::ok("for somebody").header("cache-control", &request.path()[1..].replace('+', ", "))
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for (control, kept) in [
        ("max-age=60", false),
        ("max-age=60+public", true),
        ("s-maxage=60", true),
        ("max-age=60+must-revalidate", true),
    ] {
        let target = format!("/{control}");
        proxy.get_with(&target, &[("Authorization", "Basic eDp5")]).await;
        let others = proxy.get(&target).await;
        assert_eq!(outcome(&others), if kept { "HIT" } else { "MISS" }, "{control}");
    }
}

#[tokio::test]
async fn a_request_that_forbids_storing_leaves_nothing_behind() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::to(&origin).await;
    for _ in 0..2 {
        let answer = proxy.get_with("/", &[("Cache-Control", "no-store")]).await;
        assert_eq!((outcome(&answer), answer.text()), ("MISS", "body"));
    }
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    assert_eq!(outcome(&proxy.get_with("/", &[("Cache-Control", "no-store")]).await), "HIT");
    assert_eq!(origin.hits(), 3);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_kept() {
    let origin = Origin::start(first_then(
        |request| match request.path() {
            "/length" => fresh("half").claiming(8),
            _ => fresh("").chunks(["half"]).cut(),
        },
        |_| fresh("whole"),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/length", "/chunked"] {
        let broken = proxy.get(target).await;
        assert_eq!((broken.text(), broken.complete), ("half", false), "{target}");
        for outcome_then in ["MISS", "HIT"] {
            let whole = proxy.get(target).await;
            assert_eq!((whole.text(), whole.complete), ("whole", true), "{target}");
            assert_eq!(outcome(&whole), outcome_then, "{target}");
        }
    }
}

#[tokio::test]
async fn a_body_above_the_limit_reaches_its_client_whole_and_is_not_kept() {
    let origin = Origin::start(|request| match request.path() {
        "/known" => fresh("").repeated(vec![b'x'; KIB], 3 * KIB),
        "/chunked" => fresh("").chunks(vec![vec![b'x'; 64 * KIB]; 48]),
        _ => fresh("").chunks(vec![vec![b'x'; 64 * KIB]; 16]),
    })
    .await;
    let proxy = Accelerated::with(&origin.url(), &[("response_cache.max_body", "1MiB")]).await;
    for (target, length, kept) in
        [("/known", 3 * MIB, false), ("/chunked", 3 * MIB, false), ("/fits", MIB, true)]
    {
        for round in 0..2 {
            let answer = proxy.get(target).await;
            assert_eq!((answer.body.len(), answer.complete), (length, true), "{target}");
            let hit = kept && round == 1;
            assert_eq!(outcome(&answer), if hit { "HIT" } else { "MISS" }, "{target}");
        }
    }
    let (_, stats) = proxy.admin("GET", "/cache/stats", "").await;
    assert_eq!(stats.pointer("/levels/l1/entries"), Some(&1.into()), "{stats}");
}

#[tokio::test]
async fn fields_that_are_private_reach_their_client_and_nobody_else() {
    let origin = Origin::start(|_| {
        Reply::ok("page")
            .header("cache-control", "max-age=60, private=\"set-cookie, x-you\"")
            .header("set-cookie", "session=1")
            .header("x-you", "Ada")
            .header("x-all", "everybody")
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let own = proxy.get("/").await;
    assert_eq!((own.header("set-cookie"), own.header("x-you")), (Some("session=1"), Some("Ada")));
    let other = proxy.get("/").await;
    assert_eq!(outcome(&other), "HIT");
    assert_eq!((other.header("set-cookie"), other.header("x-you")), (None, None));
    assert_eq!(other.header("x-all"), Some("everybody"));
}

#[tokio::test]
async fn the_age_of_an_answer_counts_from_its_origin() {
    let origin = Origin::start(|_| fresh("body").header("age", "20")).await;
    let proxy = Accelerated::to(&origin).await;
    assert_eq!(age(&proxy.get("/").await), Some(20));
    let hit = proxy.get("/").await;
    assert_eq!(outcome(&hit), "HIT");
    assert!((20..60).contains(&age(&hit).expect("an age")), "{hit:?}");
}

#[tokio::test]
async fn a_plain_proxy_keeps_nothing() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::with(&origin.url(), &[("response_cache.enabled", "false")]).await;
    for hits in 1..=2 {
        assert_eq!(outcome(&proxy.get("/").await), "BYPASS");
        assert_eq!(origin.hits(), hits);
    }
}
