//! The curve against whole simulations, and its bounds.

use proptest::prelude::*;

use super::*;

fn spread(id: u64) -> u64 {
    let mixed = (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Requests over `keys`, the most popular ones far ahead.
fn skewed(requests: usize, keys: f64) -> impl Iterator<Item = u64> {
    let mut random = fastrand::Rng::with_seed(11);
    (0..requests).map(move |_| spread(keys.powf(random.f64()) as u64))
}

/// Runs a cache of `capacity` with its curve, and whole caches of the seven sizes.
fn compare(kind: Kind, capacity: u64, ids: impl Iterator<Item = u64>) -> Vec<(CurvePoint, f64)> {
    let mut curve = Curve::new(capacity, capacity, kind);
    let mut counts = Counts::default();
    let mut whole: Vec<_> = POWERS
        .iter()
        .map(|&power| (capacity as f64 * 2_f64.powi(power)).round() as u64)
        .map(|capacity| (MiniCache::bounded(kind, capacity, 1 << 20), 0_u64))
        .collect();
    for id in ids {
        for (cache, hits) in &mut whole {
            *hits += u64::from(cache.request(id, 1));
        }
        counts = Counts { hits: whole[SAME].1, misses: counts.requests() + 1 - whole[SAME].1 };
        if position(id) < curve.threshold() {
            curve.request(id, 1);
        }
        curve.observe(counts, 0);
    }
    let estimated = curve.estimate().expect("there were requests");
    assert_eq!(estimated.points().len(), POWERS.len());
    let truth = whole.iter().map(|(_, hits)| *hits as f64 / counts.requests() as f64);
    estimated.points().iter().copied().zip(truth).collect()
}

#[test]
fn where_every_key_is_sampled_the_curve_is_exact() {
    for kind in [Kind::Lru, Kind::S3Fifo] {
        for (point, truth) in compare(kind, 96, skewed(8_000, 3_000.0)) {
            let estimate = point.estimate;
            assert!((estimate.hit_ratio - truth).abs() < 1e-9, "{kind:?}: {point:?}, {truth}");
            assert!(estimate.error <= 0.005 + 0.1 / 12_f64.sqrt() + 1e-9);
        }
    }
}

#[test]
fn sampled_estimates_are_two_points_off_at_most_in_the_mean_and_four_at_worst() {
    for kind in [Kind::Lru, Kind::Lfu] {
        let compared = compare(kind, 2_000, skewed(60_000, 40_000.0));
        let off = |(point, truth): &(CurvePoint, f64)| (point.estimate.hit_ratio - truth).abs();
        let mean = compared.iter().map(off).sum::<f64>() / compared.len() as f64;
        let covered = compared.iter().filter(|one| off(one) <= one.0.estimate.error).count();
        assert!(mean <= 0.02, "{kind:?}: {compared:?}");
        assert!(compared.iter().all(|one| off(one) <= 0.04), "{kind:?}: {compared:?}");
        assert!(covered + 2 >= compared.len(), "{kind:?}: {compared:?}");
    }
}

fn two_points() -> MissRatioCurve {
    let point = |capacity, hit_ratio, error| CurvePoint {
        capacity,
        estimate: Estimate { hit_ratio, error },
    };
    MissRatioCurve { points: vec![point(100, 0.2, 0.01), point(400, 0.6, 0.02)], samples: 1 }
}

#[test]
fn between_two_sizes_it_is_interpolated_over_the_logarithm() {
    let between = two_points().hit_ratio_at(200).expect("between the sizes");
    assert!((between.hit_ratio - 0.4).abs() < 1e-12);
    assert!((between.error - 0.12).abs() < 1e-12, "a quarter of the step comes on top");
    let ratios = (100..=400).map(|capacity| two_points().hit_ratio_at(capacity));
    let ratios: Vec<f64> = ratios.map(|e| e.expect("between the sizes").hit_ratio).collect();
    assert!(ratios.is_sorted());
}

#[test]
fn at_a_simulated_size_the_simulation_answers_and_outside_nobody() {
    let curve = two_points();
    assert_eq!(curve.hit_ratio_at(100), Some(Estimate { hit_ratio: 0.2, error: 0.01 }));
    assert_eq!(curve.hit_ratio_at(400), Some(Estimate { hit_ratio: 0.6, error: 0.02 }));
    for outside in [0, 99, 401, u64::MAX] {
        assert_eq!(curve.hit_ratio_at(outside), None);
    }
}

#[test]
fn without_requests_there_is_no_curve() {
    assert!(Curve::new(100, 100, Kind::Lru).estimate().is_none());
    let mut nothing = Curve::new(0, 0, Kind::Lru);
    assert_eq!(nothing.threshold(), 0);
    nothing.request(1, 1);
    nothing.observe(Counts { hits: 0, misses: 1 }, 0);
    assert!(nothing.estimate().is_none_or(|curve| curve.points().is_empty()));
}

#[test]
fn a_small_cache_stops_sampling_when_its_allowance_is_used_up() {
    let mut curve = Curve::new(100, 100, Kind::Lru);
    curve.allowance = 1_000.0;
    let mut counts = Counts::default();
    let mut feed = |curve: &mut Curve, requests: usize| {
        let mut sampled = 0;
        for id in skewed(requests, 1_000.0) {
            counts.misses += 1;
            if curve.threshold() > 0 {
                curve.request(id, 1);
                sampled += 1;
            }
            curve.observe(counts, 0);
        }
        sampled
    };
    assert!((1_000..1_020).contains(&feed(&mut curve, 3_000)));
    assert_eq!(feed(&mut curve, 1_000), 0);
    let before = curve.estimate();
    assert!(before.is_some(), "what was learnt stays");
    // What the next requests earn brings it back, and the first samples only warm.
    curve.allowance = SAVINGS / 4.0;
    let counted = curve.counted;
    assert_eq!(feed(&mut curve, 1_000), 999);
    assert!((curve.counted - counted).abs() < f64::EPSILON);
    assert_eq!(feed(&mut curve, 1_000), 1_000);
    assert!(curve.counted > counted);
}

#[test]
fn lost_samples_scale_the_difference_up() {
    let differences = |dropped: u64| {
        let mut curve = Curve::new(100, 100, Kind::Lru);
        for id in skewed(5_000, 1_000.0) {
            curve.request(id, 1);
        }
        let half = (5_000 + dropped) / 2;
        curve.observe(Counts { hits: half, misses: half }, dropped);
        let estimate = curve.estimate().expect("there were requests");
        let at = |at: usize| estimate.points()[at].estimate.hit_ratio;
        at(POWERS.len() - 1) - at(0)
    };
    // Twice the requests, of which half were lost: the step between the sizes is the same.
    assert!((differences(0) - differences(5_000)).abs() < 1e-9);
}

#[test]
fn its_memory_does_not_grow_with_the_cache() {
    for entries in [96, 1 << 11] {
        let mut curve = Curve::new(entries, entries, Kind::Lfu);
        (0..10 * entries).for_each(|id| curve.request(spread(id), 1));
        let bytes: usize = curve.sizes.iter().map(|size| size.mini.bytes()).sum();
        assert!(bytes <= 240 << 10, "{bytes} bytes at {entries} entries");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }))]

    #[test]
    fn any_traffic_gives_a_curve_that_rises_within_bounds(
        capacity in prop_oneof![0_u64..4, 4_u64..2_000, Just(u64::MAX)],
        entries in 0_u64..1 << 40,
        kind in 0..Kind::ALL.len(),
        steps in proptest::collection::vec(
            (0_u64..3_000, prop_oneof![1_u32..3, Just(u32::MAX), 0..=u32::MAX], 0_u64..3, 0_u32..300),
            1..400,
        ),
    ) {
        let mut curve = Curve::new(capacity, entries, Kind::ALL[kind]);
        let mut counts = Counts::default();
        for (id, weight, dropped, chance) in steps {
            match chance {
                0 => curve.resize(id, entries),
                1 => curve.resize(0, 0),
                2 => curve.switch(Kind::ALL[id as usize % Kind::ALL.len()]),
                _ => {}
            }
            for near in 0..8 {
                curve.request(spread(id + near), weight);
            }
            counts.hits += id & 7;
            counts.misses += 1;
            curve.observe(counts, dropped);
            let Some(estimate) = curve.estimate() else { continue };
            let points = estimate.points();
            prop_assert!(points.is_sorted_by(|a, b| a.capacity < b.capacity));
            prop_assert!(points.is_sorted_by_key(|point| point.estimate.hit_ratio));
            for point in points {
                prop_assert!((0.0..=1.0).contains(&point.estimate.hit_ratio));
                prop_assert!((0.0..=1.0).contains(&point.estimate.error));
                prop_assert_eq!(estimate.hit_ratio_at(point.capacity), Some(point.estimate));
            }
        }
    }
}
