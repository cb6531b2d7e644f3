//! The figures of a function: how often it ran, failed and was dropped, and how long it took.

use std::future::Future;

use super::kind::{Fault, Kind};
use super::{Call, slot};
use crate::UltraPerf;

/// Where the figures of a function go; nowhere without the feature `monitor`.
#[derive(Debug)]
pub struct Meter {
    #[cfg(feature = "monitor")]
    calls: monitor::Counter,
    #[cfg(feature = "monitor")]
    errors: monitor::Counter,
    #[cfg(feature = "monitor")]
    cancelled: monitor::Counter,
    #[cfg(feature = "monitor")]
    seconds: monitor::Histogram,
}

impl Meter {
    #[cfg(feature = "monitor")]
    fn new(perf: &UltraPerf, call: Call, labels: &[(&str, &str)]) -> Self {
        use monitor::{Kind, Unit};
        let registry = perf.registry();
        let counters = [
            ("function_calls_total", "Calls whose body ran."),
            ("function_errors_total", "Calls that failed, or that panicked."),
            ("function_cancelled_total", "Calls that were dropped before their end."),
        ];
        for (name, help) in counters {
            registry.describe(name, Kind::Counter, Unit::None, help);
        }
        let seconds = "function_duration_seconds";
        registry.describe(
            seconds,
            Kind::Histogram,
            Unit::Seconds,
            "What bodies of functions took.",
        );
        let mut all = vec![("function", call.label())];
        all.extend_from_slice(labels);
        let [calls, errors, cancelled] = counters.map(|(name, _)| registry.counter(name, &all));
        Self { calls, errors, cancelled, seconds: registry.histogram(seconds, &all) }
    }

    #[cfg(not(feature = "monitor"))]
    fn new(_: &UltraPerf, _: Call, _: &[(&str, &str)]) -> Self {
        Self {}
    }

    pub(super) fn begin(&self) -> Measuring<'_> {
        #[cfg(feature = "monitor")]
        self.calls.increment(1);
        Measuring {
            meter: self,
            #[cfg(feature = "monitor")]
            began: std::time::Instant::now(),
            ended: false,
        }
    }
}

/// A call that is under way.
pub(super) struct Measuring<'a> {
    #[cfg_attr(not(feature = "monitor"), allow(dead_code))]
    meter: &'a Meter,
    #[cfg(feature = "monitor")]
    began: std::time::Instant,
    ended: bool,
}

impl Measuring<'_> {
    pub(super) fn end(mut self, failed: bool) {
        self.ended = true;
        #[cfg(feature = "monitor")]
        {
            self.meter.seconds.record_duration(self.began.elapsed());
            self.meter.errors.increment(u64::from(failed));
        }
        #[cfg(not(feature = "monitor"))]
        let _ = failed;
    }
}

impl Drop for Measuring<'_> {
    fn drop(&mut self) {
        #[cfg(feature = "monitor")]
        if !self.ended {
            let how =
                if std::thread::panicking() { &self.meter.errors } else { &self.meter.cancelled };
            how.increment(1);
        }
    }
}

/// Returns where a function's figures go.
#[inline]
pub fn meter(perf: &UltraPerf, call: Call) -> &Meter {
    meter_with(perf, call, &[])
}

/// Returns where a function's figures go, under further labels.
#[inline]
pub fn meter_with<'a>(
    perf: &'a UltraPerf,
    call: Call,
    labels: &'static [(&'static str, &'static str)],
) -> &'a Meter {
    slot(perf, &call.site.measured, call.instance, || Meter::new(perf, call, labels))
}

/// Runs a call and counts it.
///
/// # Cost
///
/// Two readings of the clock, three relaxed additions and the record of a histogram.
pub async fn measured<R, X, K, F>(meter: &Meter, kind: K, run: F) -> R
where
    X: Fault<R>,
    K: Kind<R>,
    F: Future<Output = Result<R, X>>,
{
    let measuring = meter.begin();
    let returned = run.await.unwrap_or_else(Fault::into_result);
    measuring.end(kind.failed(&returned));
    returned
}

/// Runs a call and counts it; costs as [`measured`].
pub fn measured_sync<R, X, K, F>(meter: &Meter, kind: K, run: F) -> R
where
    X: Fault<R>,
    K: Kind<R>,
    F: FnOnce() -> Result<R, X>,
{
    let measuring = meter.begin();
    let returned = run().unwrap_or_else(Fault::into_result);
    measuring.end(kind.failed(&returned));
    returned
}
