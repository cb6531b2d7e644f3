//! What the process and its machine use, read each time the registry is read.
//!
//! On Linux the readings of each second come from files of `/proc` and `/sys` that stay open: one
//! `pread` each, into one buffer. What takes longer - file systems, the states of connections, the number
//! of processes, limits - is read every 30 seconds on a thread of its own, so that a hanging network
//! mount delays nobody. Elsewhere, and if asked to, `sysinfo` reads both sets on that thread.
//!
//! A file that is not there is no error: its series are absent. Limits are those that apply: the least
//! memory limit of the own control group (version 2) and those above it, or else the memory of the machine, said in
//! the label `limit_source`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock};
use crate::registry::{Readings, Registry, Watch};
use crate::series::{Kind, Unit};

#[cfg(target_os = "linux")]
mod linux;
mod names;
pub mod parse;
mod portable;
mod runtime;
#[cfg(target_os = "linux")]
mod slow;
#[cfg(all(test, target_os = "linux"))]
mod tests;

/// What a [`Collector`] reads, how often and how much of it.
#[derive(Clone)]
pub struct CollectorOptions {
    /// The folder that holds `proc` and `sys`; `/` by default. Tests bring their own.
    pub root: PathBuf,
    /// How often the slow set is read; 30 seconds by default.
    pub slow_every: Duration,
    /// Disks that have series; 32 by default. The first of the list of the system count.
    pub devices_max: usize,
    /// Network interfaces that have series; 32 by default.
    pub interfaces_max: usize,
    /// File systems that have series; 32 by default.
    pub mounts_max: usize,
    /// Whether `sysinfo` reads everything, on Linux too.
    pub portable: bool,
    /// The runtime whose workers and tasks are read; none by default.
    pub runtime: Option<tokio::runtime::Handle>,
    /// Tells the time between two readings.
    pub clock: Arc<dyn Clock>,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            slow_every: Duration::from_secs(30),
            devices_max: 32,
            interfaces_max: 32,
            mounts_max: 32,
            portable: false,
            runtime: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl fmt::Debug for CollectorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorOptions")
            .field("root", &self.root)
            .field("slow_every", &self.slow_every)
            .field("portable", &self.portable)
            .finish_non_exhaustive()
    }
}

/// Reads the process and its machine into a registry, until it is dropped.
///
/// # Examples
///
/// ```
/// use monitor::collect::{Collector, CollectorOptions};
/// use monitor::{Clock, Registry, SystemClock};
///
/// let registry = Registry::default();
/// let collector = Collector::start(&registry, CollectorOptions::default())?;
/// let snapshot = registry.read(SystemClock::new().now());
/// # #[cfg(target_os = "linux")]
/// assert!(snapshot.families.iter().any(|one| &*one.name == "process_resident_memory_bytes"));
/// drop(collector);
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Collector {
    watch: Option<Watch>,
    /// The thread of the slow set ends when this is dropped.
    _stop: SyncSender<()>,
}

/// What the slow set came to, as series.
#[derive(Debug, Default, Clone)]
pub(crate) struct Slow {
    series: Vec<SlowSeries>,
    /// The least memory limit of the control groups, and the folder of that group.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    memory_limit: Option<(u64, PathBuf)>,
    /// Processors that the control group may use.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    cpu_limit: Option<f64>,
}

#[derive(Debug, Clone)]
struct SlowSeries {
    name: &'static str,
    kind: Kind,
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Slow {
    fn push(
        &mut self,
        kind: Kind,
        name: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.series.push(SlowSeries { name, kind, labels, value });
    }

    fn gauge(&mut self, name: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.push(Kind::Gauge, name, labels, value);
    }

    fn report(&self, readings: &mut Readings) {
        for series in &self.series {
            let labels: Vec<(&str, &str)> =
                series.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            match series.kind {
                Kind::Counter => readings.counter(series.name, &labels, series.value),
                _ => readings.gauge(series.name, &labels, series.value),
            }
        }
    }
}

/// The last slow set and when it was read.
type LastSlow = Arc<Mutex<Option<(Duration, Arc<Slow>)>>>;

/// A slow set that is older than this many of its periods is not shown: its thread hangs.
const STALE_PERIODS: u32 = 4;

impl Collector {
    /// Starts to read whenever the registry is read.
    ///
    /// # Errors
    ///
    /// If the thread of the slow set cannot be started.
    ///
    /// # Cost
    ///
    /// A reading takes about 150 us on Linux: some fifteen `pread`s and a hundred series.
    pub fn start(registry: &Registry, options: CollectorOptions) -> std::io::Result<Self> {
        names::describe(registry);
        let last: LastSlow = LastSlow::default();
        let (stop, stopped) = sync_channel::<()>(0);
        let (thread_last, thread_options) = (Arc::clone(&last), options.clone());
        std::thread::Builder::new().name("monitor-slow".to_owned()).spawn(move || {
            let mut read = slow_reader(&thread_options);
            loop {
                let slow = Arc::new(read());
                *thread_last.lock() = Some((thread_options.clock.now().monotonic, slow));
                match stopped.recv_timeout(thread_options.slow_every) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        let fast = Mutex::new(Fast::new(&options));
        let (clock, stale) = (options.clock, options.slow_every * STALE_PERIODS);
        let watch = registry.collect(move |readings| {
            let now = clock.now().monotonic;
            let slow = last.lock().clone();
            let slow =
                slow.filter(|(at, _)| now.saturating_sub(*at) <= stale).map(|(_, slow)| slow);
            fast.lock().read(now, slow.as_deref(), readings);
            if let Some(slow) = slow {
                slow.report(readings);
            }
        });
        Ok(Self { watch: Some(watch), _stop: stop })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.remove();
        }
    }
}

/// Returns what reads the slow set, keeping what it needs from one time to the next.
fn slow_reader(options: &CollectorOptions) -> Box<dyn FnMut() -> Slow> {
    let mut portable = portable::Portable::new(options);
    #[cfg(target_os = "linux")]
    if !options.portable {
        let options = options.clone();
        return Box::new(move || {
            let mut slow = slow::read(&options);
            portable.file_systems(&mut slow);
            slow
        });
    }
    Box::new(move || portable.read())
}

/// What is read each time.
struct Fast {
    #[cfg(target_os = "linux")]
    linux: Option<linux::Linux>,
    runtime: Option<runtime::Runtime>,
}

impl Fast {
    fn new(options: &CollectorOptions) -> Self {
        Self {
            #[cfg(target_os = "linux")]
            linux: (!options.portable).then(|| linux::Linux::new(options)),
            runtime: options.runtime.clone().map(runtime::Runtime::new),
        }
    }

    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    fn read(&mut self, now: Duration, slow: Option<&Slow>, readings: &mut Readings) {
        #[cfg(target_os = "linux")]
        if let Some(linux) = &mut self.linux {
            linux.read(now, slow, readings);
        }
        if let Some(runtime) = &mut self.runtime {
            runtime.read(now, readings);
        }
    }
}

/// Returns how much a total grew in a second since it was read before, nothing the first time.
#[derive(Debug, Default)]
struct Growth(BTreeMap<String, (Duration, f64)>);

impl Growth {
    fn per_second(&mut self, name: &str, total: f64, now: Duration) -> Option<f64> {
        let before = match self.0.get_mut(name) {
            Some(last) => Some(std::mem::replace(last, (now, total))),
            None => self.0.insert(name.to_owned(), (now, total)),
        };
        let (at, earlier) = before?;
        let seconds = now.saturating_sub(at).as_secs_f64();
        (seconds > 0.0 && total >= earlier).then(|| (total - earlier) / seconds)
    }

    /// Forgets what has not been read at this moment.
    fn keep_only(&mut self, now: Duration) {
        self.0.retain(|_, (at, _)| *at == now);
    }
}
