//! An exchange through all caching rules: no panic, and nothing is kept or used that must not be.
//!
//! The input is up to four messages, see `ultra_perf_fuzz`:
//!
//! ```text
//! GET /path 1700000000000 1700000000100 30000     method, target, times of request and head, delay
//! 200                                             the answer
//! 304                                             the answer to its revalidation
//! GET                                             a later request
//! ```
#![no_main]

use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use ultra_perf_fuzz::{messages, plainly_says};
use ultra_perf_http::rules::{
    CacheControl, Condition, Decision, Freshened, Policy, RequestClass, RequestHead, ResponseHead,
    Storable, StoredHead, Times, Vary, classify, condition, evaluate, freshen, invalidated,
    is_hop_by_hop, is_unsafe, not_modified_headers, set_validators, store, target_key,
};

fuzz_target!(|input: &[u8]| {
    let mut messages = messages(input);
    let mut next = || messages.next().unwrap_or_default();
    let (request, answer, revalidation, later) = (next(), next(), next(), next());
    let policy = Policy::default();

    let method = request.method(0);
    let times = Times { request_ms: request.number(2), response_ms: request.number(3) };
    let now_ms = times.response_ms.saturating_add(request.number(4));
    let asked = RequestHead { method: &method, headers: &request.headers };
    let answered = ResponseHead { status: answer.status(0), headers: &answer.headers };

    let target = target_key("http", "shop.example", request.word(1));
    assert_invalidates(&method, &target, answered);

    let class = classify(asked);
    let Ok(stored) = store(&policy, asked, answered, times) else { return };
    assert_storable(&policy, &stored);
    assert_permitted(&policy, asked, answered);
    if let RequestClass::Lookup(lookup) = class {
        assert!(lookup.may_store, "stored an answer to a request that forbids it");
    }

    let later_method = later.method(0);
    let asks = RequestHead { method: &later_method, headers: &later.headers };
    assert_decision(&policy, asks, &stored, now_ms);

    let verdict = condition(asks, &stored.head);
    if verdict == Condition::NotModified {
        let conditional = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
        assert!(conditional.iter().any(|name| later.headers.contains_key(name)));
        assert_eq!(stored.head.status, StatusCode::OK);
    }
    let kept = not_modified_headers(&stored.head.headers);
    assert!(kept.keys().all(|name| stored.head.headers.contains_key(name)));

    let mut validating = later.headers.clone();
    let validates = set_validators(&stored.head, &mut validating);
    let names = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
    assert_eq!(validates, names.iter().any(|name| validating.contains_key(name)));
    assert!(!validating.contains_key(header::RANGE) && !validating.contains_key(header::IF_MATCH));

    let later_times = Times { request_ms: now_ms, response_ms: now_ms };
    match freshen(&policy, asked, &stored.head, &revalidation.headers, later_times) {
        Freshened::Updated(updated) => {
            assert_storable(&policy, &updated);
            assert_same_content(&stored.head, &updated.head);
        }
        Freshened::NotStorable { head, .. } => assert_same_content(&stored.head, &head),
        Freshened::Mismatch => {}
    }
});

/// Whether a targeted field is there, which would overrule what `Cache-Control` says plainly.
fn is_targeted(policy: &Policy, headers: &HeaderMap) -> bool {
    policy.targeted_fields.iter().any(|name| headers.contains_key(name))
}

/// What the plain words of both heads forbid was not stored.
fn assert_permitted(policy: &Policy, request: RequestHead<'_>, answer: ResponseHead<'_>) {
    assert_eq!(request.method, Method::GET);
    assert!(!plainly_says(request.headers, "cache-control", "no-store"));
    assert!(!request.headers.contains_key(header::RANGE), "a part was stored as the whole");
    assert!(answer.status.as_u16() >= 200 && answer.status != StatusCode::PARTIAL_CONTENT);
    if is_targeted(policy, answer.headers) {
        return;
    }
    let says = |directive| plainly_says(answer.headers, "cache-control", directive);
    let control = CacheControl::of_response(policy, answer.headers);
    assert!(!says("private"), "a private answer was stored");
    assert!(!says("no-store") || control.must_understand, "no-store was stored");
    if request.headers.contains_key(header::AUTHORIZATION) {
        let shared = control.public || control.must_revalidate || control.s_maxage_s.is_some();
        assert!(shared, "one user's answer was stored");
    }
}

/// What is stored is fit for every client, and survives being written down.
fn assert_storable(policy: &Policy, stored: &Storable) {
    let Storable { head, freshness, retention, vary } = stored;
    for name in ["set-cookie", "set-cookie2"] {
        assert!(!head.headers.contains_key(name), "{name} was stored");
    }
    assert!(!head.headers.keys().any(is_hop_by_hop), "a field of one connection was stored");
    assert!(head.headers.contains_key(header::DATE));
    assert!(!retention.is_zero(), "stored for no time");
    let star = head.headers.get_all(header::VARY).iter().any(|line| line == "*");
    assert!(!star, "an answer that varies on everything was stored");
    assert_eq!(Vary::parse([vary.to_string().as_bytes()]).as_ref(), Some(vary));

    let mut bytes = Vec::new();
    head.encode(&mut bytes);
    let read = StoredHead::decode(&bytes).expect("what was written can be read");
    assert_eq!(&read, head);
    assert_eq!(&read.freshness(policy), freshness, "a restart changes how long it is fresh");
}

/// A hit that the stored answer or the request forbids does not happen.
fn assert_decision(policy: &Policy, request: RequestHead<'_>, stored: &Storable, now_ms: u64) {
    let decision = evaluate(request, &stored.freshness, now_ms);
    let served = |decision| {
        matches!(
            decision,
            Decision::Fresh(_) | Decision::StaleWhileRevalidate(_) | Decision::Stale(_)
        )
    };
    if let Decision::Fresh(_) = decision {
        assert!(stored.freshness.is_fresh(now_ms));
    } else if served(decision) {
        assert!(!stored.freshness.is_fresh(now_ms));
    }
    if served(decision) {
        assert!(!plainly_says(request.headers, "cache-control", "no-cache"));
        let headers = &stored.head.headers;
        if !is_targeted(policy, headers) {
            let says = |directive| plainly_says(headers, "cache-control", directive);
            assert!(!says("no-cache"), "served without validation");
            let strict = says("must-revalidate") || says("proxy-revalidate");
            assert!(matches!(decision, Decision::Fresh(_)) || !strict, "served stale");
        }
    }
    if decision == Decision::GatewayTimeout {
        assert!(CacheControl::of_request(request.headers).is_some_and(|wish| wish.only_if_cached));
    }

    let mut key = Vec::new();
    stored.vary.write_key(request.headers, &mut key);
    assert!(!key.contains(&0), "a secondary key with a NUL");
    assert!(
        stored.vary.fields().iter().any(|name| request.headers.contains_key(name))
            || key.is_empty()
    );
}

/// A 304 changes what is said of the stored bytes, not which bytes they are.
fn assert_same_content(before: &StoredHead, after: &StoredHead) {
    assert_eq!(before.status, after.status);
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE] {
        let of =
            |head: &StoredHead| head.headers.get_all(&name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(of(before), of(after), "{name}");
    }
}

/// Only unsafe methods invalidate, the target always among it, and no other site.
fn assert_invalidates(method: &Method, target: &str, answer: ResponseHead<'_>) {
    let keys = invalidated(method, target, answer.status, answer.headers);
    if is_unsafe(method) && (answer.status.is_success() || answer.status.is_redirection()) {
        assert!(keys.iter().any(|key| key == target));
    } else {
        assert!(keys.is_empty());
    }
    for key in &keys {
        assert!(key.starts_with("http://shop.example/"), "{key} is another site's");
        assert!(!key.contains('#'), "{key} has a fragment");
    }
}
