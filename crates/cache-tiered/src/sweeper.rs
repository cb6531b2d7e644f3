//! One thread for the whole process that takes expired entries out of memory tiers.
//!
//! Entries that nobody looks up any more would stay until capacity pushes them out. Each cache
//! registers here, and the thread visits it at its interval; one that never had an entry with an
//! expiry costs nothing then. The thread holds caches weakly, so a dropped cache is forgotten, and
//! about a second after the last one it ends. The next registration starts a new one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Something with expired entries.
pub(crate) trait Sweep: Send + Sync {
    fn sweep(&self);
}

struct Registered {
    target: Weak<dyn Sweep>,
    every: Duration,
    due: Instant,
}

struct Sweeper {
    targets: Mutex<Targets>,
    changed: Condvar,
}

struct Targets {
    registered: Vec<Registered>,
    running: bool,
}

static SWEEPER: Sweeper = Sweeper {
    targets: Mutex::new(Targets { registered: Vec::new(), running: false }),
    changed: Condvar::new(),
};

/// How often the thread looks for dropped caches, at the least.
const ROUND: Duration = Duration::from_secs(1);

/// Visits `target` every so often until it is dropped.
///
/// # Errors
///
/// The system's, when the thread cannot be started.
pub(crate) fn register(target: &Arc<impl Sweep + 'static>, every: Duration) -> std::io::Result<()> {
    let target: Arc<dyn Sweep> = Arc::clone(target) as Arc<dyn Sweep>;
    let mut targets = SWEEPER.targets.lock();
    targets.registered.push(Registered {
        target: Arc::downgrade(&target),
        every,
        due: Instant::now() + every,
    });
    if !targets.running {
        std::thread::Builder::new().name("cache-sweeper".to_owned()).spawn(run)?;
        targets.running = true;
    }
    SWEEPER.changed.notify_one();
    drop(targets);
    Ok(())
}

fn run() {
    let mut targets = SWEEPER.targets.lock();
    loop {
        let now = Instant::now();
        targets.registered.retain(|registered| registered.target.strong_count() > 0);
        if targets.registered.is_empty() {
            targets.running = false;
            return;
        }
        let mut due = Vec::new();
        for registered in targets.registered.iter_mut().filter(|registered| registered.due <= now) {
            registered.due = now + registered.every;
            due.extend(registered.target.upgrade());
        }
        if due.is_empty() {
            let next = targets.registered.iter().map(|registered| registered.due).min();
            let next = next.map_or(now + ROUND, |next| next.min(now + ROUND));
            SWEEPER.changed.wait_until(&mut targets, next);
        } else {
            // A sweep, and the drop of a last handle, happen without the list's lock.
            drop(targets);
            for target in due {
                // The drop of a user's value may panic; the other caches are swept all the same.
                let swept = catch_unwind(AssertUnwindSafe(move || target.sweep()));
                if swept.is_err() {
                    tracing::error!("a value's drop panicked while its cache was swept");
                }
            }
            targets = SWEEPER.targets.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Probe(mpsc::SyncSender<()>);

    impl Sweep for Probe {
        fn sweep(&self) {
            let _ = self.0.try_send(());
        }
    }

    struct Panics;

    impl Sweep for Panics {
        fn sweep(&self) {
            panic!("as told");
        }
    }

    #[test]
    fn a_target_is_visited_until_it_is_dropped_whatever_its_neighbour_does() {
        let (sender, visits) = mpsc::sync_channel(1);
        let probe = Arc::new(Probe(sender));
        let panics = Arc::new(Panics);
        register(&panics, Duration::from_millis(1)).unwrap();
        register(&probe, Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            visits.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        drop(probe);
        while visits.recv().is_ok() {}
    }
}
