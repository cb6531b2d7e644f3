//! The scan against a naive one, the ring, namespaces, time, and embeddings that are none.

use proptest::prelude::*;

use super::*;

fn builder(dimensions: usize) -> SimilarityCacheBuilder {
    SimilarityCache::builder("test", dimensions)
}

fn unit(rng: &mut fastrand::Rng, dimensions: usize) -> Vec<f32> {
    std::iter::repeat_with(|| rng.f32() - 0.5).take(dimensions).collect()
}

/// A vector not far from another.
fn near(rng: &mut fastrand::Rng, to: &[f32], by: f32) -> Vec<f32> {
    to.iter().map(|number| number + (rng.f32() - 0.5) * by).collect()
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

#[test]
fn the_nearest_of_many_is_what_a_naive_scan_finds_and_most_rows_are_not_computed() {
    let mut rng = fastrand::Rng::with_seed(1);
    let cache = builder(128).entries(800).threshold(0.8).build::<u32, u32>().expect("valid");
    let rows: Vec<_> = (0..600).map(|_| unit(&mut rng, 128)).collect();
    for (key, row) in (0..).zip(&rows) {
        cache.insert("", key, row, key).expect("an embedding");
    }
    let mut found = 0;
    for asked in 0..100 {
        let by = 0.1 + rng.f32();
        let embedding = near(&mut rng, &rows[asked * 6], by);
        let similarities = rows.iter().map(|row| cosine(row, &embedding));
        let (best, most) =
            similarities.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are rows");
        match cache.nearest("", &embedding).expect("an embedding") {
            Some(hit) => {
                found += 1;
                assert_eq!((hit.key as usize, hit.value as usize, hit.exact), (best, best, false));
                assert!((f64::from(hit.similarity) - most).abs() < 1e-5);
            }
            None => assert!(most < 0.8 + 1e-5, "{most}"),
        }
    }
    assert!((30..100).contains(&found), "{found}");
    let stats = cache.stats();
    assert_eq!(stats.similar_hits + stats.misses, 100);
    assert_eq!(stats.rows_scanned, 100 * 600);
    assert!(stats.rows_computed < stats.rows_scanned / 100, "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_the_bytes_allow_is_never_less_than_the_product(
        one in prop::collection::vec(-1e3_f32..1e3, 1..200),
        seed: u64,
        scale in prop_oneof![Just(1e-30_f32), Just(1.0), Just(1e30)],
        spike in any::<prop::sample::Index>(),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut other: Vec<f32> = one.iter().map(|number| number * rng.f32() * scale).collect();
        // One number that is far larger than the others takes their bytes away.
        let at = spike.index(other.len());
        other[at] = 1e3 * scale;
        let embedding = |numbers: &[f32]| Embedding::new(numbers, one.len());
        if let (Ok(one), Ok(other)) = (embedding(&one), embedding(&other)) {
            let sketch = Sketch { namespace: 1, scale: other.scale, residue: other.residue };
            let product = dot(&one.numbers, &other.numbers);
            prop_assert!(product <= one.at_most(&other.bytes, sketch), "{product}");
            prop_assert!((f64::from(product) - cosine(&one.numbers, &other.numbers)).abs() < 1e-5);
            for it in [&one, &other] {
                prop_assert!((dot(&it.numbers, &it.numbers) - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn it_agrees_with_a_list_of_the_newest_entries(
        steps in prop::collection::vec((0_u8..10, 0_u8..3, 0_u16..40), 1..300),
        entries in 1_usize..20,
    ) {
        let clock = Clock::manual();
        let builder = builder(2).entries(entries).threshold(1.0).ttl(Duration::from_millis(50));
        let cache = builder.clock(clock.clone()).build::<u16, u32>().expect("valid");
        // Ring positions: namespace, key, value, expiry.
        let mut rows: Vec<Option<(u8, u16, u32, u64)>> = vec![None; entries];
        let (mut next, mut now) = (0, 0);
        let name = |namespace: u8| ["a", "b", "c"][usize::from(namespace)];
        let place = |rows: &[Option<(u8, u16, u32, u64)>], namespace, key| {
            rows.iter().position(|row| row.is_some_and(|row| (row.0, row.1) == (namespace, key)))
        };
        for (value, (step, namespace, key)) in (0_u32..).zip(steps) {
            // A direction of its own for each key.
            let angle = f32::from(key) * 0.1;
            let embedding = [angle.cos(), angle.sin()];
            let held = place(&rows, namespace, key);
            match step {
                0..5 => {
                    cache.insert(name(namespace), key, &embedding, value).expect("an embedding");
                    let row = held.unwrap_or_else(|| {
                        let row = next;
                        next = (next + 1) % entries;
                        row
                    });
                    rows[row] = Some((namespace, key, value, now + 50));
                }
                5 => {
                    prop_assert_eq!(cache.remove(name(namespace), &key), held.is_some());
                    if let Some(row) = held {
                        rows[row] = None;
                    }
                }
                6 => {
                    clock.advance(Duration::from_millis(20));
                    now += 20;
                }
                7 if key == 0 => {
                    let removed = cache.clear_namespace(name(namespace));
                    let before = rows.iter().flatten().count();
                    rows.iter_mut().filter(|row| row.is_some_and(|row| row.0 == namespace)).for_each(|row| *row = None);
                    prop_assert_eq!(removed as usize, before - rows.iter().flatten().count());
                }
                _ => {}
            }
            let expected = place(&rows, namespace, key).and_then(|row| rows[row]);
            let expected = expected.filter(|row| row.3 > now).map(|row| row.2);
            prop_assert_eq!(cache.get_exact(name(namespace), &key), expected);
            let found = cache.get(name(namespace), &key, &embedding).expect("an embedding");
            prop_assert!(found.is_some() || expected.is_none());
            if let Some(found) = found {
                prop_assert_eq!((found.exact, found.key), (expected.is_some(), key));
            }
            prop_assert_eq!(cache.stats().entries as usize, rows.iter().flatten().count());
        }
    }
}

#[test]
fn what_is_no_embedding_is_refused_and_changes_nothing() {
    let cache = builder(3).build::<u8, u8>().expect("valid");
    cache.insert("", 1, &[1.0, 2.0, 3.0], 1).expect("an embedding");
    for (numbers, error) in [
        (&[1.0, 2.0][..], "an embedding of 2 numbers for a cache of 3"),
        (&[1.0, f32::NAN, 3.0], "number 1 of the embedding is NaN; all have to be finite"),
        (&[f32::INFINITY, 0.0, 0.0], "number 0 of the embedding is inf; all have to be finite"),
        (&[0.0, -0.0, 0.0], "an embedding of zeros alone points nowhere"),
    ] {
        assert_eq!(cache.insert("", 1, numbers, 2).expect_err(error).to_string(), error);
        assert_eq!(cache.nearest("", numbers).expect_err(error).to_string(), error);
        assert_eq!(cache.get("", &1, numbers).expect_err(error).to_string(), error);
    }
    assert_eq!(cache.get_exact("", &1), Some(1));
    // The largest and the smallest numbers have a direction, too.
    for numbers in [[f32::MAX; 3], [f32::from_bits(1); 3]] {
        cache.insert("", 2, &numbers, 2).expect("an embedding");
        assert_eq!(cache.nearest("", &[1.0; 3]).expect("an embedding").map(|it| it.key), Some(2));
    }
}

#[test]
fn a_builder_reports_every_problem_at_once() {
    let error = builder(0).entries(0).threshold(1.5).ttl(Duration::ZERO).build::<u8, u8>();
    let error = error.expect_err("nothing of it is right");
    assert_eq!(error.problems.len(), 4, "{error}");
    for part in ["\"test\"", "dimensions = \"0\"", "entries", "threshold = \"1.5\"", "ttl"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(builder(1).threshold(f32::NAN).build::<u8, u8>().is_err());
}

#[test]
fn threads_that_write_and_scan_find_only_what_belongs_together() {
    let cache = builder(64).entries(600).threshold(0.99).build::<u32, u32>().expect("valid");
    let row = |key: u32| unit(&mut fastrand::Rng::with_seed(u64::from(key)), 64);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for _ in 0..150 {
                    let key = rng.u32(..1_000);
                    cache.insert("", key, &row(key), key * 2).expect("an embedding");
                    let asked = rng.u32(..1_000);
                    let found = cache.nearest("", &row(asked)).expect("an embedding");
                    if let Some(found) = found {
                        assert_eq!((found.key, found.value), (asked, asked * 2));
                    }
                    cache.remove("", &rng.u32(..1_000));
                }
            });
        }
    });
    assert!(cache.stats().entries <= 600);
}

#[test]
fn a_clone_that_calls_the_cache_does_not_wait_for_itself() {
    #[derive(Default)]
    struct Nosy(Option<SimilarityCache<u8, Nosy>>);

    impl Clone for Nosy {
        fn clone(&self) -> Self {
            if let Some(cache) = &self.0 {
                cache.insert("", 2, &[0.0, 1.0], Self(None)).expect("an embedding");
            }
            Self(None)
        }
    }

    let cache = builder(2).build::<u8, Nosy>().expect("valid");
    cache.insert("", 1, &[1.0, 0.0], Nosy(Some(cache.clone()))).expect("an embedding");
    assert!(cache.nearest("", &[1.0, 0.0]).expect("an embedding").is_some());
    assert!(cache.get_exact("", &1).is_some());
    assert_eq!(cache.stats().entries, 2);
    cache.clear();
    assert_eq!(cache.stats().entries, 0);
}
