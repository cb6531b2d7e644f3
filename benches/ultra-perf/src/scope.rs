//! What it costs to run something in a scope.

use std::future::ready;
use std::hint::black_box;

use tokio::runtime::Builder;
use ultra_perf::{OptimizationLevel, UltraPerf};
use ultra_perf_bench::{Clock, Suite};

/// Runs of a round.
const RUNS: u64 = 200_000;

/// Measures a block and a future in a scope, monitor and memory guard running.
pub(crate) fn measure(suite: &mut Suite) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let perf = runtime.block_on(
        UltraPerf::builder()
            .level(OptimizationLevel::Basic)
            .set("monitor.history.enabled", "false")
            .build(),
    );
    let perf = perf.expect("a valid configuration");
    let scope = perf.scope("bench");
    suite.time("a block in a scope that is kept", Clock::Cpu, RUNS).at_most(200.0).measure(|| {
        for run in 0..RUNS {
            black_box(scope.run_sync(|| black_box(run)));
        }
    });
    suite.time("a future in a scope that is kept", Clock::Cpu, RUNS).at_most(200.0).measure(|| {
        runtime.block_on(async {
            for run in 0..RUNS {
                black_box(scope.run(ready(black_box(run))).await);
            }
        });
    });
    suite.time("a block in a scope that is looked up", Clock::Cpu, RUNS / 10).measure(|| {
        for run in 0..RUNS / 10 {
            black_box(perf.scope("bench").run_sync(|| black_box(run)));
        }
    });
    drop(perf);
}
