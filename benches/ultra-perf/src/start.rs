//! Starting: what a configuration takes to load.

use std::hint::black_box;

use ultra_perf::config::ConfigLoader;
use ultra_perf_bench::{Clock, Suite};

/// Configurations of a round.
const LOADS: u64 = 100;

/// Measures what a start takes.
pub(crate) fn measure(suite: &mut Suite) {
    suite.time("a configuration loaded, all defaults", Clock::Cpu, LOADS).measure(|| {
        for _ in 0..LOADS {
            black_box(ConfigLoader::new().load().expect("the defaults are valid"));
        }
    });
}
