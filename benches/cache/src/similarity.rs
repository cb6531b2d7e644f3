//! How long it takes to find the nearest of many embeddings.

use std::hint::black_box;

use cache_tiered::SimilarityCache;
use fastrand::Rng;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

const ROWS: u32 = 10_000;
const DIMENSIONS: usize = 768;
/// Look-ups of a round.
const LOOK_UPS: u64 = 20;

/// Adds the row.
pub(crate) fn rows(suite: &mut Suite) {
    let case = format!("nearest of {ROWS} embeddings of {DIMENSIONS}");
    if !suite.wants(&case) {
        return;
    }
    let mut rng = Rng::with_seed(1);
    let mut vector = || -> Vec<f32> { (0..DIMENSIONS).map(|_| rng.f32() - 0.5).collect() };
    let builder = SimilarityCache::builder("bench", DIMENSIONS).entries(ROWS as usize);
    let cache = builder.build::<u32, u32>().expect("a valid configuration");
    for row in 0..ROWS {
        cache.insert("", row, &vector(), row).expect("an embedding");
    }
    let asked: Vec<_> = (0..LOOK_UPS).map(|_| vector()).collect();
    suite.reported(&case, "ms CPU").at_most(4.0).rounds(15).measure(|| {
        let watch = Stopwatch::start(Clock::Cpu);
        for embedding in &asked {
            black_box(cache.nearest("", embedding).expect("an embedding"));
        }
        watch.nanos_per(LOOK_UPS) / 1e6
    });
}
