//! Which functions of a handle have caches, and what is to be forgotten in them.
//!
//! A function's cache is opened at its first miss, and what an earlier process left in a tier below memory is
//! only then within reach. What is invalidated before is therefore noted, and done when the cache is opened,
//! before anything is looked up in it. Notes are bounded: where there are too many, the whole cache is cleared.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use cache_tiered::{Cache, Tag};
use parking_lot::Mutex;

use super::cached::{Opening, Shared};
use super::key::{CallKey, CallKeyBuf};
use super::{Identity, slot};
use crate::UltraPerf;

/// Notes for a cache that is not open; beyond that it is cleared.
const NOTES: usize = 65_536;
/// Bytes of a name that a cache takes.
const NAME: usize = 64;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A cache that can forget, whatever it holds.
pub(super) trait Forget: Send + Sync {
    fn forget<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, ()>;
}

impl<V: Clone + Send + Sync + 'static> Forget for Cache<CallKey, V> {
    fn forget<'a>(&'a self, orders: &'a Orders) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if orders.all {
                return self.clear(None).await;
            }
            for key in &orders.keys {
                self.remove(key).await;
            }
            self.invalidate_tags(orders.tags.iter().copied()).await;
        })
    }
}

/// What is to be forgotten.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders {
    keys: HashSet<CallKey>,
    tags: HashSet<Tag>,
    all: bool,
}

impl Orders {
    fn is_empty(&self) -> bool {
        !self.all && self.keys.is_empty() && self.tags.is_empty()
    }

    fn add(&mut self, more: &Self) {
        self.all |= more.all;
        self.keys.extend(more.keys.iter().cloned());
        self.tags.extend(more.tags.iter().copied());
        self.bound();
    }

    fn bound(&mut self) {
        if self.all || self.keys.len() + self.tags.len() > NOTES {
            *self = Self { all: true, ..Self::default() };
        }
    }
}

/// A function that has taken its name.
struct Entry {
    identity: Identity,
    instance: &'static str,
    shared: Arc<dyn Any + Send + Sync>,
}

/// The functions of one name: the first one has it, and the others a cache in memory beside.
#[derive(Default)]
struct Group {
    entries: Vec<Entry>,
    open: HashMap<String, Arc<dyn Forget>>,
    /// Until the first one's cache is open.
    notes: Orders,
}

/// The cached functions of a handle.
#[derive(Default)]
pub(super) struct Functions(Mutex<Table>);

#[derive(Default)]
struct Table {
    groups: HashMap<String, Group>,
    /// Tags that were invalidated everywhere, for functions that are still to come.
    everywhere: Orders,
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.lock().groups.keys()).finish()
    }
}

/// Returns the cached functions of a handle.
pub(super) fn functions(perf: &UltraPerf) -> &Functions {
    static FUNCTIONS: crate::Site = crate::Site::new();
    slot(perf, &FUNCTIONS, "", Functions::default)
}

impl Functions {
    /// Returns what the callers of a function share, taking its name at the first time.
    pub(super) fn shared<V>(&self, identity: Identity, instance: &'static str) -> Arc<Shared<V>>
    where
        V: Clone + Send + Sync + 'static,
    {
        let name = cache_name(identity, instance);
        let mut table = self.0.lock();
        let Table { groups, everywhere } = &mut *table;
        let group = groups
            .entry(name.clone())
            .or_insert_with(|| Group { notes: everywhere.clone(), ..Group::default() });
        let same = |entry: &&Entry| entry.identity == identity && entry.instance == instance;
        for entry in group.entries.iter().filter(same) {
            if let Ok(shared) = Arc::clone(&entry.shared).downcast() {
                return shared;
            }
        }
        let displaced = group.entries.first().map(|first| first.identity.path);
        let own = match displaced {
            None => name.clone(),
            Some(first) => {
                tracing::error!(
                    name,
                    first,
                    second = identity.path,
                    "two cached functions have one name: the second keeps its results in memory alone"
                );
                beside(&name, group.entries.len() + 1)
            }
        };
        let shared = Arc::new(Shared::new(own, displaced.map(|_| name)));
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(&shared) as _;
        group.entries.push(Entry { identity, instance, shared: any });
        shared
    }

    /// Says that a cache is open, unless there is something to forget in it first.
    pub(super) fn opened(&self, name: &str, cache: &Arc<dyn Forget>) -> Option<Orders> {
        let mut table = self.0.lock();
        let group = table.groups.get_mut(name)?;
        if !group.notes.is_empty() {
            return Some(std::mem::take(&mut group.notes));
        }
        group.open.insert(name.to_owned(), Arc::clone(cache));
        None
    }

    /// Says that the cache of a function whose name another one has is open.
    pub(super) fn opened_beside(&self, name: &str, own: &str, cache: Arc<dyn Forget>) {
        if let Some(group) = self.0.lock().groups.get_mut(name) {
            group.open.insert(own.to_owned(), cache);
        }
    }

    /// Notes what is to be forgotten where nothing is open, and returns the caches that are.
    fn order(&self, targets: &[Target], orders: &Orders) -> Vec<Arc<dyn Forget>> {
        let mut table = self.0.lock();
        let mut open = Vec::new();
        let mut give = |name: &str, group: &mut Group| {
            if !group.open.contains_key(name) {
                group.notes.add(orders);
            }
            open.extend(group.open.values().cloned());
        };
        if targets.is_empty() {
            table.everywhere.add(orders);
            table.groups.iter_mut().for_each(|(name, group)| give(name, group));
        }
        for target in targets {
            let Table { groups, everywhere } = &mut *table;
            let new = || Group { notes: everywhere.clone(), ..Group::default() };
            let name = target.name();
            let group = groups.entry(name.clone()).or_insert_with(new);
            give(&name, group);
        }
        open
    }
}

/// The name of a function's cache: its own, or its path as far as names allow, and which instance it is.
fn cache_name(identity: Identity, instance: &str) -> String {
    let of_plain_type = is_path(instance);
    let mut name = match identity.name {
        Some(name) => name.to_owned(),
        None => {
            let function = identity.path.rsplit("::").next().unwrap_or_default();
            let path = match of_plain_type && !instance.is_empty() {
                true => format!("{instance}::{function}"),
                false => identity.path.to_owned(),
            };
            path.replace("r#", "").replace("::", ".")
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut suffix = String::new();
    if !of_plain_type {
        suffix = format!("-{:016x}", fnv(instance));
    }
    if !name.chars().all(plain) || name.len() + suffix.len() > NAME {
        suffix = format!("-{:016x}", fnv(&format!("{name} {instance}")));
        name.retain(plain);
        // What tells functions apart stands at the end.
        let excess = (name.len() + suffix.len()).saturating_sub(NAME);
        name.drain(..excess);
        // No part of a name is empty.
        let parts: Vec<_> = name.split('.').filter(|part| !part.is_empty()).collect();
        name = parts.join(".");
    }
    name + &suffix
}

/// Whether the instance is that of a type without parameters, as of most methods, or no instance at all.
fn is_path(instance: &str) -> bool {
    instance.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
}

fn beside(name: &str, number: usize) -> String {
    let suffix = format!("-{number}");
    let kept = name.len().min(NAME - suffix.len());
    format!("{}{suffix}", &name[..kept])
}

/// The hash of Fowler, Noll and Vo: the same in every process.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// A function in whose cache something is forgotten.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub(super) identity: Identity,
    pub(super) instance: &'static str,
    open: Option<Open>,
}

/// Opens the cache of a function.
type Open = for<'perf> fn(&'perf UltraPerf, Target) -> Opening<'perf>;

impl Target {
    /// Names a function, with a way to open its cache.
    #[must_use]
    pub fn new(identity: Identity, instance: &'static str, open: Open) -> Self {
        Self { identity, instance, open: Some(open) }
    }

    /// Names a function by the name of its cache.
    #[must_use]
    pub fn named(name: &'static str) -> Self {
        Self { identity: Identity::new(name, (0, 0), Some(name)), instance: "", open: None }
    }

    fn name(&self) -> String {
        cache_name(self.identity, self.instance)
    }
}

/// What a function makes wrong, made before it runs and carried out when it has.
///
/// Dropped before that, as with a call that is dropped or panics, it forgets in memory what it can: the
/// function may have done its work.
#[derive(Debug)]
pub struct Invalidation {
    perf: UltraPerf,
    targets: Vec<Target>,
    orders: Orders,
    done: bool,
}

impl Invalidation {
    /// Says what is to be forgotten, and where; everywhere, without a target.
    #[must_use]
    pub fn new(
        perf: &UltraPerf,
        targets: Vec<Target>,
        key: Option<CallKeyBuf>,
        tags: Vec<Tag>,
        all: bool,
    ) -> Self {
        let mut orders = Orders { tags: tags.into_iter().collect(), all, ..Orders::default() };
        if let Some(key) = key {
            match key.problem() {
                None => {
                    orders.keys.insert(key.to_key());
                }
                // Nothing is kept under such a key, so there is nothing to forget.
                Some(problem) => tracing::warn!(problem, "a key of an invalidation is none"),
            }
        }
        Self { perf: perf.clone(), targets, orders, done: false }
    }

    /// Leaves everything as it is: the function has failed.
    pub fn cancel(mut self) {
        self.done = true;
    }

    /// Carries it out, in all tiers.
    ///
    /// # Cancel safety
    ///
    /// Dropped on its way, it is done in memory; a tier below may bring something back.
    pub async fn run(mut self) {
        let perf = self.perf.clone();
        // What lies below memory is within reach of an open cache only.
        for target in &self.targets {
            if let Some(open) = target.open {
                open(&perf, *target).0.await;
            }
        }
        for cache in functions(&perf).order(&self.targets, &self.orders) {
            cache.forget(&self.orders).await;
        }
        self.done = true;
    }

    /// Carries it out without waiting: tiers below memory follow in the background.
    pub fn run_now(mut self) {
        self.forget_now();
    }

    fn forget_now(&mut self) {
        self.done = true;
        for cache in functions(&self.perf).order(&self.targets, &self.orders) {
            // In memory it is done at the first poll.
            let _ =
                cache.forget(&self.orders).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Drop for Invalidation {
    fn drop(&mut self) {
        if !self.done {
            self.forget_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &'static str, instance: &str) -> String {
        cache_name(Identity::new(path, (1, 1), None), instance)
    }

    #[test]
    fn a_cache_is_called_as_its_function_as_far_as_names_allow() {
        assert_eq!(named("shop::users::load", ""), "shop.users.load");
        assert_eq!(named("shop::r#in::load", ""), "shop.in.load");
        assert_eq!(named("shop::load", "shop::Users"), "shop.Users.load");
        let own = Identity::new("shop::load", (1, 1), Some("users"));
        assert_eq!(cache_name(own, ""), "users");
        assert_eq!(cache_name(own, "shop::Users"), "users");
        let long = "shop::a_module_with_a_long_name::another_one_with_a_long_name::load_user";
        assert_eq!(named(long, "").len(), NAME);
        assert!(named(long, "").contains("long_name.load_user-"), "{}", named(long, ""));
        let other = "shop::b_module_with_a_long_name::another_one_with_a_long_name::load_user";
        assert_ne!(named(long, ""), named(other, ""));
        let at_a_point = format!("shop::{}", "a".repeat(46));
        for path in [at_a_point.leak(), "shop::\u{fc}::load", long] {
            let name = named(path, "");
            assert!(crate::config::is_cache_name(&name), "a setting can name {name:?}");
        }
    }

    #[test]
    fn instances_have_names_of_their_own() {
        let names: HashSet<String> = [
            "",
            "shop::Users",
            "shop::Table<u32>",
            "shop::Table<u64>",
            "[u8]",
            "(core::marker::PhantomData<u8>,)",
            "(core::marker::PhantomData<i8>,)",
        ]
        .iter()
        .map(|instance| named("shop::load", instance))
        .collect();
        assert_eq!(names.len(), 7, "{names:?}");
        assert!(names.contains("shop.load"));
    }

    #[test]
    fn too_many_notes_clear_the_whole_cache() {
        let mut orders = Orders::default();
        for number in 0..=NOTES {
            let tags = HashSet::from([Tag::new(number.to_le_bytes())]);
            orders.add(&Orders { tags, ..Orders::default() });
        }
        assert!(orders.all && orders.tags.is_empty());
    }
}
