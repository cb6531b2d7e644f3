//! Stored heads out of arbitrary bytes: whatever decodes is written back as it is, byte for byte long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultra_perf_http::rules::{Policy, StoredHead};

fuzz_target!(|input: &[u8]| {
    let Some(head) = StoredHead::decode(input) else { return };
    let mut written = Vec::new();
    head.encode(&mut written);
    // Names come back in lower case, and a repeated field with its first line; nothing is lost or added.
    assert_eq!(written.len(), input.len());
    let again = StoredHead::decode(&written).expect("what was written can be read");
    assert_eq!(again, head);
    let mut rewritten = Vec::new();
    again.encode(&mut rewritten);
    assert_eq!(rewritten, written, "the form of a head is not stable");

    let policy = Policy::default();
    let freshness = head.freshness(&policy);
    assert_eq!(freshness, again.freshness(&policy));
    for now_ms in [0, head.times.response_ms, head.times.response_ms.saturating_add(1), u64::MAX] {
        let age = freshness.age(now_ms);
        assert!(!freshness.is_fresh(now_ms) || age.ttl_s >= 0, "fresh, and nothing left: {age:?}");
    }
});
