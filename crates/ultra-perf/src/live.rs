//! Changes while the program runs: one checked way in, with versions, differences, an undo and a record.
//!
//! A change goes through the same checks as a file. What it alters is told as differences, each with whether
//! it takes effect at once; then whoever follows changes is told, one change at a time. Undoing puts back
//! what the change replaced, as long as no later change has touched the same keys.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
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
    /// A later change has set the same key.
    #[error("version {later} has set {key} since; undo that first")]
    ChangedSince {
        /// The key.
        key: String,
        /// The later version.
        later: u64,
    },
}

type Listener = Box<dyn Fn(&Config, &Config) + Send + Sync>;

/// The configuration in force and how it came to be.
pub(crate) struct Live {
    current: ArcSwap<Config>,
    /// What the parts were built with.
    #[cfg(feature = "scheduler")]
    at_start: Arc<Config>,
    record: Mutex<Record>,
    listeners: Mutex<Vec<Arc<Listener>>>,
    #[cfg(feature = "scheduler")]
    background: Mutex<Background>,
}

/// What scales the memory that tasks in the background may take.
#[cfg(feature = "scheduler")]
struct Background {
    pressure: f64,
    budget: f64,
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
            record: Mutex::default(),
            listeners: Mutex::default(),
            #[cfg(feature = "scheduler")]
            background: Mutex::new(Background { pressure: 1.0, budget: 1.0 }),
        }
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        self.current.load_full()
    }

    #[cfg(feature = "scheduler")]
    pub(crate) fn config_at_start(&self) -> &Config {
        &self.at_start
    }

    fn change(
        &self,
        settings: Vec<Setting>,
        by: &str,
        undoes: Option<u64>,
        record: &mut Record,
    ) -> Result<Applied, ConfigError> {
        let before = self.config();
        let after = before.with(&settings, by)?;
        let differences = before.differences(&after);
        let inverse = before.inverse(&settings);
        let settings = settings.iter().map(|it| (it.key().to_owned(), it.shown())).collect();
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
        self.current.store(Arc::new(after));
        let after = self.config();
        let listeners = self.listeners.lock().clone();
        for listener in listeners {
            listener(&before, &after);
        }
        for Difference { key, from, to, .. } in &applied.differences {
            tracing::info!(version = applied.version, by, key, from, to, "a setting was changed");
        }
        Ok(applied)
    }

    /// Scales what tasks in the background may take by the pressure on memory.
    #[cfg(all(feature = "memory", feature = "scheduler"))]
    pub(crate) fn set_pressure(&self, scale: f64, scheduler: &scheduler::Scheduler) {
        let mut background = self.background.lock();
        background.pressure = scale;
        scheduler.set_memory_scale(background.pressure * background.budget);
    }

    /// Scales it by a budget that was changed, as a part of the one that the scheduler was built with.
    #[cfg(feature = "scheduler")]
    pub(crate) fn set_budget(&self, part: f64, scheduler: &scheduler::Scheduler) {
        let mut background = self.background.lock();
        background.budget = part;
        scheduler.set_memory_scale(background.pressure * background.budget);
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
    /// [`ApplyError::Config`] with every problem; nothing has changed then.
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
        Ok(live.change(settings, by, None, &mut live.record.lock())?)
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
    pub fn undo(&self, version: u64, by: &str) -> Result<Applied, ApplyError> {
        let live = &self.0.live;
        let mut record = live.record.lock();
        let at = record.changes.iter().position(|change| change.applied.version == version);
        let at = at.ok_or(ApplyError::UnknownVersion(version))?;
        let inverse = record.changes[at].inverse.clone();
        for later in record.changes.range(at + 1..) {
            let again = |it: &&Setting| later.inverse.iter().any(|other| other.path == it.path);
            if let Some(Setting { path, .. }) = inverse.iter().find(again) {
                let later = later.applied.version;
                return Err(ApplyError::ChangedSince { key: path.clone(), later });
            }
        }
        Ok(live.change(inverse, by, Some(version), &mut record)?)
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
    /// It runs on the thread that makes the change and under its lock: it must neither block nor change the
    /// configuration itself.
    pub fn on_change(&self, listener: impl Fn(&Config, &Config) + Send + Sync + 'static) {
        self.0.live.listeners.lock().push(Arc::new(Box::new(listener)));
    }

    /// Lets the parts of this handle follow changes.
    pub(crate) fn follow_changes(&self) {
        #[cfg(any(feature = "cache", feature = "scheduler", feature = "loadbalancer"))]
        {
            let weak = self.downgrade();
            self.on_change(move |before, after| {
                let Some(perf) = weak.upgrade() else { return };
                #[cfg(feature = "cache")]
                perf.0.caches.follow(before, after);
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
            live.change(settings, "ada", None, &mut live.record.lock()).expect("a change")
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
            live.change(settings, "ada", None, &mut live.record.lock()).expect("a change");
        assert_eq!(applied.settings["balancer.sticky_key"], json!("hex:***"));
    }
}
