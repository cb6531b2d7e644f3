//! What the `metrics` facade is told is what `stats()` says.
#![cfg(all(feature = "metrics", feature = "disk"))]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use cache_tiered::disk::DiskConfig;
use cache_tiered::{AdviceStats, Cache, CacheStats, Clock, Publisher, Tier, TierStats};
use metrics_exporter_prometheus::PrometheusBuilder;

/// Every sample of an exposition, by its name with labels in order.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = match name.split_once('{') {
                Some((name, labels)) => {
                    let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
                    labels.sort_unstable();
                    format!("{name}{{{}}}", labels.join(","))
                }
                None => name.to_owned(),
            };
            (name, value.parse().unwrap())
        })
        .collect()
}

fn expected(stats: &CacheStats, advice: &AdviceStats) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let known = advice.misses_evicted + advice.misses_expired;
    let in_vain = advice.loads_absent + advice.loads_failed;
    for (metric, label, value) in [
        ("misses", "cause=\"evicted\"", advice.misses_evicted),
        ("misses", "cause=\"expired\"", advice.misses_expired),
        ("misses", "cause=\"other\"", advice.misses - known),
        ("rewrites", "content=\"same\"", advice.rewrites_same),
        ("rewrites", "content=\"changed\"", advice.rewrites - advice.rewrites_same),
        ("reloads", "content=\"same\"", advice.reloads_same),
        ("reloads", "content=\"changed\"", advice.reloads - advice.reloads_same),
        ("loads", "outcome=\"found\"", advice.loads - in_vain),
        ("loads", "outcome=\"absent\"", advice.loads_absent),
        ("loads", "outcome=\"failed\"", advice.loads_failed),
        ("repeated_loads", "outcome=\"absent\"", advice.loads_absent_again),
        ("repeated_loads", "outcome=\"failed\"", advice.loads_failed_again),
    ] {
        let name = format!("cache_watched_{metric}_total{{cache=\"pages\",{label}}}");
        all.insert(name, value as f64);
    }
    for (metric, value) in [
        ("cache_watched_one_of", advice.one_of),
        ("cache_duplicate_fetches_total", advice.duplicate_fetches),
    ] {
        all.insert(format!("{metric}{{cache=\"pages\"}}"), value as f64);
    }
    let tiers = [("memory", Some(stats.memory)), ("disk", stats.disk), ("redis", stats.redis)];
    for (name, tier) in tiers {
        let Some(tier) = tier else { continue };
        let TierStats { evictions, .. } = tier;
        for (metric, value) in [
            ("cache_hits_total", tier.hits),
            ("cache_misses_total", tier.misses),
            ("cache_errors_total", tier.errors),
            ("cache_writes_total", tier.writes),
            ("cache_dropped_writes_total", tier.dropped_writes),
            ("cache_entries", tier.entries),
            ("cache_size_bytes", tier.bytes),
            ("cache_capacity", tier.capacity),
            ("cache_queue_depth", tier.queue_depth),
            ("cache_queue_bytes", tier.queue_bytes),
        ] {
            all.insert(format!("{metric}{{cache=\"pages\",type=\"{name}\"}}"), value as f64);
        }
        for (cause, value) in [
            ("capacity", evictions.capacity),
            ("expired", evictions.expired),
            ("removed", evictions.removed),
            ("too_large", evictions.too_large),
        ] {
            let labels = format!("cache=\"pages\",cause=\"{cause}\",type=\"{name}\"");
            all.insert(format!("cache_evictions_total{{{labels}}}"), value as f64);
        }
        if name != "memory" {
            let read = tier.read_latency;
            for (quantile, time) in [("0.5", read.p50), ("0.95", read.p95), ("0.99", read.p99)] {
                let labels = format!("cache=\"pages\",quantile=\"{quantile}\",type=\"{name}\"");
                all.insert(format!("cache_read_seconds{{{labels}}}"), time.as_secs_f64());
            }
        }
        if name == "disk" {
            for (reason, value) in
                [("admission", tier.refused_admission), ("budget", tier.refused_budget)]
            {
                let labels = format!("cache=\"pages\",reason=\"{reason}\",type=\"disk\"");
                all.insert(format!("cache_refused_writes_total{{{labels}}}"), value as f64);
            }
            for (metric, value) in [
                ("cache_copied_forward_total", tier.copied_forward),
                ("cache_checkpoints_total", tier.checkpoints),
            ] {
                all.insert(format!("{metric}{{cache=\"pages\",type=\"disk\"}}"), value as f64);
            }
        }
    }
    let compression = stats.compression;
    for (outcome, value) in [
        ("compressed", compression.compressed),
        ("kept", compression.tried - compression.compressed),
        ("skipped", compression.skipped),
    ] {
        let labels = format!("cache=\"pages\",outcome=\"{outcome}\"");
        all.insert(format!("cache_compression_values_total{{{labels}}}"), value as f64);
    }
    for (operation, time) in
        [("compress", compression.encode_time), ("decompress", compression.decode_time)]
    {
        let labels = format!("cache=\"pages\",operation=\"{operation}\"");
        all.insert(format!("cache_compression_seconds{{{labels}}}"), time.as_secs_f64());
    }
    let prefetch = stats.prefetch;
    for (state, value) in [
        ("issued", prefetch.issued),
        ("used", prefetch.used),
        ("wasted", prefetch.wasted),
        ("skipped", prefetch.skipped),
    ] {
        let labels = format!("cache=\"pages\",state=\"{state}\"");
        all.insert(format!("cache_prefetches_total{{{labels}}}"), value as f64);
    }
    for (status, value) in [("success", stats.loads), ("failure", stats.load_failures)] {
        let name = format!("cache_loads_total{{cache=\"pages\",status=\"{status}\"}}");
        all.insert(name, value as f64);
    }
    for (metric, value) in [
        ("cache_load_seconds", stats.load_time.as_secs_f64()),
        ("cache_coalesced_total", stats.coalesced as f64),
        ("cache_superseded_total", stats.superseded as f64),
        ("cache_refreshes_total", stats.refreshes as f64),
        ("cache_in_flight", stats.in_flight as f64),
        ("cache_prefetches_outstanding", prefetch.outstanding as f64),
        ("cache_compression_input_bytes_total", compression.bytes_in as f64),
        ("cache_compression_output_bytes_total", compression.bytes_out as f64),
        ("cache_compression_ratio", compression.ratio()),
        ("cache_decompressed_values_total", compression.decompressed as f64),
        ("cache_dictionaries", compression.dictionaries as f64),
        ("cache_dictionaries_trained_total", compression.dictionaries_trained as f64),
    ] {
        all.insert(format!("{metric}{{cache=\"pages\"}}"), value);
    }
    for (reason, count) in [("revalidating", stats.stale_hits), ("error", stats.stale_on_error)] {
        let metric = format!("cache_stale_total{{cache=\"pages\",reason=\"{reason}\"}}");
        all.insert(metric, count as f64);
    }
    all
}

#[tokio::test]
async fn what_is_published_is_what_stats_say() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let cache = Cache::<u32, String>::builder("pages")
        .bytes(100, |_, value| value.len() as u64)
        .ttl(Duration::from_secs(10))
        .clock(clock.clone())
        .disk(
            DiskConfig::new(directory.path())
                .capacity_bytes(2 << 20)
                .write_budget_bytes_per_second(20_000),
        )
        .open()
        .await
        .unwrap();
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let publisher = metrics::with_local_recorder(&recorder, || Publisher::new(cache.clone()));

    // Something of everything that a cache without Redis counts.
    (0..50).for_each(|key| cache.insert(key, "0123456789".to_owned()));
    cache.insert(99, "too large for memory".repeat(10));
    cache.insert(98, "large enough to be compressed".repeat(200));
    let random = |_: usize| fastrand::alphanumeric();
    (95..98).for_each(|key| cache.insert(key, (0..21_000).map(random).collect()));
    let load = |key: u32| async move { Ok::<_, Infallible>(key.to_string()) };
    cache.get_or_load(&100, || load(100)).await.unwrap();
    let _ = cache.get_or_load(&101, || async { Err::<String, _>("as told") }).await;
    let slow = || async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(String::new())
    };
    let (_, _) = tokio::join!(cache.get_or_load(&102, slow), cache.get_or_load(&102, slow));
    let overtaken = cache.reserve(&103);
    cache.remove(&103).await;
    assert!(!overtaken.insert("late".to_owned(), Default::default()));
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    cache.get_many(&[1, 2, 3, 1_000]).await;
    cache.remove(&1).await;
    cache.get_in_memory(&2);
    clock.advance(Duration::from_secs(11));
    cache.get_in_memory(&2);
    cache.flush().await;

    for _ in 0..2 {
        publisher.publish();
        let stats = cache.stats();
        let advice = cache.advice_stats();
        let nothing = expected(&CacheStats::default(), &AdviceStats::default());
        assert_ne!(expected(&stats, &advice), nothing);
        assert_eq!(samples(&handle.render()), expected(&stats, &advice));
        cache.insert(7, "7".to_owned());
        cache.flush().await;
    }
    let stats = cache.stats();
    let counted = [
        stats.memory.hits,
        stats.memory.evictions.capacity,
        stats.memory.evictions.expired,
        stats.memory.evictions.removed,
        stats.memory.evictions.too_large,
        stats.disk.unwrap().hits,
        stats.disk.unwrap().writes,
        stats.loads,
        stats.load_failures,
        stats.coalesced,
        stats.superseded,
        stats.in_flight,
        stats.compression.compressed,
        stats.disk.unwrap().refused_budget,
    ];
    assert!(!counted.contains(&0), "{counted:?}");
    drop(overtaken);
    cache.close().await;
}
