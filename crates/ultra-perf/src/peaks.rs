//! What tasks really needed of memory, by which the scheduler corrects what later ones declare.
//!
//! Where the program's allocator is tracked and `memory.tracking` is on, the peak of a task is read when it
//! ends: of a closure from its scope on the thread that ran it, of a future from each of its polls, with
//! what it holds in between added up. Elsewhere nothing is observed, and the declared sizes hold.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use memory::{Scope, Track, tracking};
use pin_project_lite::pin_project;

use crate::{UltraPerf, WeakUltraPerf};

impl UltraPerf {
    /// Wraps a closure so that its peak of memory corrects what later tasks of the name are taken to need.
    ///
    /// Give what it returns to the scheduler under the same name and with the same declared bytes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn example(perf: ultra_perf::UltraPerf) -> Result<(), Box<dyn std::error::Error>> {
    /// let declared = 64 << 20;
    /// let import = perf.with_peak("import", declared, || vec![0_u8; 1 << 20].len());
    /// perf.scheduler().cpu("import", |_| import()).memory_bytes(declared).submit()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_peak<R, F: FnOnce() -> R>(
        &self,
        name: &'static str,
        declared_bytes: u64,
        run: F,
    ) -> impl FnOnce() -> R + use<R, F> {
        let perf = self.downgrade();
        move || {
            if declared_bytes == 0 || tracking() == Track::Off {
                return run();
            }
            let entry = Scope::enter(Scope::named(name));
            let result = run();
            let peak = entry.so_far().peak;
            drop(entry);
            observe(&perf, name, declared_bytes, peak);
            result
        }
    }

    /// Wraps a future as [`with_peak`](Self::with_peak) does a closure.
    pub fn future_with_peak<F: Future>(
        &self,
        name: &'static str,
        declared_bytes: u64,
        future: F,
    ) -> WithPeak<F> {
        let (perf, scope) = (self.downgrade(), Scope::named(name));
        WithPeak { future, perf, name, declared_bytes, scope, held: 0, peak: 0 }
    }
}

fn observe(perf: &WeakUltraPerf, name: &'static str, declared_bytes: u64, peak: u64) {
    if let Some(perf) = perf.upgrade().filter(|_| peak > 0) {
        perf.scheduler().observe_memory(name, declared_bytes, peak);
    }
}

pin_project! {
    /// A future whose peak of memory is observed; from [`UltraPerf::future_with_peak`].
    #[derive(Debug)]
    #[must_use = "a future does nothing until it is polled"]
    pub struct WithPeak<F> {
        #[pin]
        future: F,
        perf: WeakUltraPerf,
        name: &'static str,
        declared_bytes: u64,
        scope: Scope,
        // What it has allocated and not freed in the polls before.
        held: i64,
        peak: u64,
    }
}

impl<F: Future> Future for WithPeak<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if *this.declared_bytes == 0 || tracking() == Track::Off {
            return this.future.poll(context);
        }
        let entry = Scope::enter(*this.scope);
        let ready = this.future.poll(context);
        let counted = entry.so_far();
        drop(entry);
        let held = u64::try_from(*this.held).unwrap_or(0);
        *this.peak = (*this.peak).max(held + counted.peak);
        *this.held += counted.net;
        if ready.is_ready() {
            observe(this.perf, this.name, *this.declared_bytes, *this.peak);
        }
        ready
    }
}
