//! Changes while the program runs: one checked way in, with versions, differences, an undo and a record.
//!
//! A change goes through the same checks as a file. What it alters is told as differences, each with whether
//! it takes effect at once; then whoever follows changes is told, one change at a time. Undoing puts back
//! what the change replaced, as long as no later change has touched the same keys.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::Value;

use crate::UltraPerf;
use crate::config::{Config, ConfigError, Difference, Setting};

/// Changes that are remembered; the oldest go first, and can no longer be undone.
const CHANGES_MAX: usize = 500;

/// A change of the configuration that was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Applied {
    /// The version that it made; the configuration at the start is version 0.
    pub version: u64,
    /// Who made it.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What it altered, and whether that holds at once; empty if everything was as asked already.
    pub differences: Vec<Difference>,
    /// The version that it undoes.
    pub undoes: Option<u64>,
    /// What was set, by key and without secrets; `null` takes an earlier change back.
    pub settings: BTreeMap<String, Value>,
}

impl Applied {
    /// Returns whether it is the change of a recommendation, applied or undone.
    #[cfg(feature = "monitor")]
    #[must_use]
    pub fn is_advice(&self) -> bool {
        self.by == crate::advice::BY
    }
}

/// Why a change was not made; nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The configuration that it would make has problems, all of which are listed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no change of this version, or no longer.
    #[error("there is no change of version {0} that could be undone")]
    UnknownVersion(u64),
    /// It was undone already.
    #[error("version {0} was undone already")]
    UndoneAlready(u64),
    /// A later change has set the same key.
    #[error("version {later} has set {key} since; undo that first")]
    ChangedSince {
        /// The key.
        key: String,
        /// The later version.
        later: u64,
    },
    /// It was asked for by a listener of another change, which has not ended.
    #[error("a listener of changes cannot make one itself: do it in a task of its own")]
    WithinChange,
}

/// What is told of a change: the configuration before and after it.
type Told = dyn Fn(&Config, &Config) + Send + Sync;

/// Who hears of changes, and whether there still is a reason to tell.
struct Listener {
    call: Box<Told>,
    is_alive: Box<dyn Fn() -> bool + Send + Sync>,
}

/// The configuration in force and how it came to be.
pub(crate) struct Live {
    current: ArcSwap<Config>,
    /// What the parts were built with.
    #[cfg(feature = "scheduler")]
    at_start: Arc<Config>,
    /// Held through a change and its listeners, so that changes come one after the other.
    changing: Mutex<()>,
    /// Which thread makes a change now.
    changed_by: Mutex<Option<ThreadId>>,
    record: Mutex<Record>,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

#[derive(Default)]
struct Record {
    version: u64,
    changes: VecDeque<Change>,
}

struct Change {
    applied: Applied,
    /// What takes it back.
    inverse: Vec<Setting>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("version", &self.record.lock().version).finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn new(config: Config) -> Self {
        let config = Arc::new(config.started());
        Self {
            #[cfg(feature = "scheduler")]
            at_start: Arc::clone(&config),
            current: ArcSwap::new(config),
            changing: Mutex::default(),
            changed_by: Mutex::default(),
            record: Mutex::default(),
            listeners: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        self.current.load_full()
    }

    #[cfg(feature = "scheduler")]
    pub(crate) fn config_at_start(&self) -> &Config {
        &self.at_start
    }

    /// Waits for the turn to make a change.
    fn turn(&self) -> Result<Turn<'_>, ApplyError> {
        let this = std::thread::current().id();
        if *self.changed_by.lock() == Some(this) {
            return Err(ApplyError::WithinChange);
        }
        let turn = Turn { live: self, _changing: self.changing.lock() };
        *self.changed_by.lock() = Some(this);
        Ok(turn)
    }

    fn change(
        &self,
        settings: Vec<Setting>,
        by: &str,
        undoes: Option<u64>,
        _turn: &Turn<'_>,
    ) -> Result<Applied, ConfigError> {
        let before = self.config();
        let after = before.with(&settings, by)?;
        let differences = before.differences(&after);
        let inverse = before.inverse(&settings);
        let settings = settings.iter().map(|it| (it.key().to_owned(), it.shown())).collect();
        let mut record = self.record.lock();
        record.version += 1;
        let applied = Applied {
            version: record.version,
            by: by.to_owned(),
            at_ms: now_ms(),
            differences,
            undoes,
            settings,
        };
        record.changes.push_back(Change { applied: applied.clone(), inverse });
        if record.changes.len() > CHANGES_MAX {
            record.changes.pop_front();
        }
        let after = Arc::new(after);
        self.current.store(Arc::clone(&after));
        drop(record);
        let listeners = {
            let mut listeners = self.listeners.lock();
            listeners.retain(|listener| (listener.is_alive)());
            listeners.clone()
        };
        for listener in listeners {
            (listener.call)(&before, &after);
        }
        for Difference { key, from, to, .. } in &applied.differences {
            tracing::info!(version = applied.version, by, key, from, to, "a setting was changed");
        }
        Ok(applied)
    }

    fn listen(&self, listener: Listener) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| (listener.is_alive)());
        listeners.push(Arc::new(listener));
    }
}

/// The turn of a thread to make a change; the next has it when this is dropped.
struct Turn<'a> {
    live: &'a Live,
    _changing: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.live.changed_by.lock() = None;
    }
}

impl UltraPerf {
    /// Changes settings while the program runs, by the checks that a file goes through.
    ///
    /// A key is one of the configuration's or an alias; a value is as in a file, and `null` takes an earlier
    /// change of the key back. Changes are made one after the other and remembered, the last 500 of them.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Config`] with every problem, [`ApplyError::WithinChange`] to a listener of changes;
    /// nothing has changed then.
    ///
    /// # Cost
    ///
    /// Milliseconds where caches shrink, since parts and listeners follow before this returns: call it from
    /// a thread that may block.
    ///
    /// # Examples
    ///
    /// ```
    /// use serde_json::json;
    /// use ultra_perf::{UltraPerf, config::Effect};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let perf = UltraPerf::builder().level(ultra_perf::OptimizationLevel::Basic)
    /// #     .set("monitor.history.enabled", "false").build().await?;
    /// let applied = perf.apply([("cache.ttl", json!("10m"))], "an operator")?;
    /// assert_eq!(applied.differences[0].effect, Effect::Live);
    /// perf.undo(applied.version, "an operator")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply(
        &self,
        settings: impl IntoIterator<Item: Into<Setting>>,
        by: &str,
    ) -> Result<Applied, ApplyError> {
        let settings = settings.into_iter().map(Into::into).collect();
        let live = &self.0.live;
        Ok(live.change(settings, by, None, &live.turn()?)?)
    }

    /// Tells what [`apply`](Self::apply) would alter, without doing it.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn preview(
        &self,
        settings: impl IntoIterator<Item: Into<Setting>>,
        by: &str,
    ) -> Result<Vec<Difference>, ApplyError> {
        let settings: Vec<_> = settings.into_iter().map(Into::into).collect();
        let before = self.config();
        Ok(before.differences(&before.with(&settings, by)?))
    }

    /// Puts back what a change replaced; that is a change as well.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]: when the version is unknown or forgotten, or a later change has set the same keys.
    ///
    /// # Cost
    ///
    /// As [`apply`](Self::apply).
    pub fn undo(&self, version: u64, by: &str) -> Result<Applied, ApplyError> {
        let live = &self.0.live;
        let turn = live.turn()?;
        let record = live.record.lock();
        let at = record.changes.iter().position(|change| change.applied.version == version);
        let at = at.ok_or(ApplyError::UnknownVersion(version))?;
        let inverse = record.changes[at].inverse.clone();
        // A change that was undone, and its undoing, are as if they had not been; backwards, because an
        // undoing may have been undone itself.
        let mut undone = HashSet::new();
        for later in record.changes.range(at + 1..).rev() {
            let Applied { version, undoes, .. } = later.applied;
            if undone.contains(&version) {
                continue;
            }
            if let Some(undoes) = undoes {
                undone.insert(undoes);
                continue;
            }
            let again = |it: &&Setting| later.inverse.iter().any(|other| other.path == it.path);
            if let Some(Setting { path, .. }) = inverse.iter().find(again) {
                return Err(ApplyError::ChangedSince { key: path.clone(), later: version });
            }
        }
        if undone.contains(&version) {
            return Err(ApplyError::UndoneAlready(version));
        }
        drop(record);
        Ok(live.change(inverse, by, Some(version), &turn)?)
    }

    /// Returns the changes that were made, the oldest first.
    #[must_use]
    pub fn changes(&self) -> Vec<Applied> {
        self.0.live.record.lock().changes.iter().map(|change| change.applied.clone()).collect()
    }

    /// Returns the version of the configuration: the number of changes since the start.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.live.record.lock().version
    }

    /// Calls a closure after each change with the configuration before and after it.
    ///
    /// It runs on the thread that makes the change, which waits for it: it must not block, and cannot change
    /// the configuration itself. It is kept as long as this handle;
    /// [`on_change_while`](Self::on_change_while) is for what comes and goes.
    pub fn on_change(&self, listener: impl Fn(&Config, &Config) + Send + Sync + 'static) {
        self.0.live.listen(Listener { call: Box::new(listener), is_alive: Box::new(|| true) });
    }

    /// Calls a closure after each change as [`on_change`](Self::on_change) does, as long as `target` is there.
    ///
    /// The handle does not keep `target` alive.
    pub fn on_change_while<T: Send + Sync + 'static>(
        &self,
        target: &Arc<T>,
        listener: impl Fn(&T, &Config, &Config) + Send + Sync + 'static,
    ) {
        let (target, watched) = (Arc::downgrade(target), Arc::downgrade(target));
        self.0.live.listen(Listener {
            call: Box::new(move |before, after| {
                if let Some(target) = target.upgrade() {
                    listener(&target, before, after);
                }
            }),
            is_alive: Box::new(move || watched.strong_count() > 0),
        });
    }

    /// Lets the parts of this handle follow changes.
    pub(crate) fn follow_changes(&self) {
        #[cfg(any(feature = "cache", feature = "scheduler", feature = "loadbalancer"))]
        {
            let weak = self.downgrade();
            self.on_change(move |before, after| {
                let Some(perf) = weak.upgrade() else { return };
                #[cfg(feature = "cache")]
                perf.0.caches.follow(&perf.0.live);
                #[cfg(not(any(feature = "scheduler", feature = "loadbalancer")))]
                let _ = (before, after);
                #[cfg(feature = "scheduler")]
                crate::schedule::follow(&perf, before, after);
                #[cfg(feature = "loadbalancer")]
                perf.0.balancers.follow(before, after);
            });
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::ConfigLoader;

    fn live() -> Live {
        let loader = ConfigLoader::new().set("cache.disk.enabled", "false", "the test");
        Live::new(loader.load().expect("a configuration"))
    }

    #[test]
    fn a_change_by_another_name_is_put_back_as_the_value_that_it_was() {
        let live = live();
        let change = |value| {
            let settings = vec![Setting::from(("cache_ttl", value))];
            live.change(settings, "ada", None, &live.turn().expect("a turn")).expect("a change")
        };
        change(json!(60));
        let applied = change(json!(600));
        assert_eq!(applied.settings, BTreeMap::from([("cache.ttl".to_owned(), json!(600))]));
        let inverse = live.record.lock().changes[1].inverse.clone();
        assert_eq!(inverse, [Setting::from(("cache.ttl", json!("60s")))]);
    }

    #[test]
    fn the_record_of_a_change_holds_no_secret() {
        let live = live();
        let settings =
            vec![Setting::from(("balancer.sticky_key", json!(format!("hex:{:064}", 7))))];
        let applied =
            live.change(settings, "ada", None, &live.turn().expect("a turn")).expect("a change");
        assert_eq!(applied.settings["balancer.sticky_key"], json!("hex:***"));
    }
}
