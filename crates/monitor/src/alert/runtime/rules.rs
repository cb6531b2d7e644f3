//! Where rules and handlers come from, and what is wrong with them.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::Served;
use crate::alert::delivery::{DeliveryOptions, HandlerKind, HandlerSpec};
use crate::alert::handler::{AlertHandler, ChannelHandler, HandlerProblem, handler_of};
use crate::alert::problem::{RuleErrors, RuleProblem};
use crate::alert::rule::{Rule, RuleSet};

/// The longest rule file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Rules or handlers that are not taken, with everything that is wrong with them.
#[derive(Debug, Default)]
pub struct RulesRefused {
    /// Files that cannot be read.
    pub unreadable: Vec<(PathBuf, io::Error)>,
    /// Problems of rules, with their places.
    pub rules: Vec<RuleProblem>,
    /// Handlers that cannot be made.
    pub handlers: Vec<HandlerProblem>,
}

impl RulesRefused {
    fn is_empty(&self) -> bool {
        self.unreadable.is_empty() && self.rules.is_empty() && self.handlers.is_empty()
    }
}

impl fmt::Display for RulesRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.unreadable.len() + self.rules.len() + self.handlers.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "invalid rules, {count} problem{plural}:")?;
        for (path, error) in &self.unreadable {
            write!(f, "\n  {} cannot be read: {error}", path.display())?;
        }
        self.rules.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        self.handlers.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for RulesRefused {}

impl From<RuleErrors> for RulesRefused {
    fn from(errors: RuleErrors) -> Self {
        Self { rules: errors.problems().to_vec(), ..Self::default() }
    }
}

/// What a reload changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ReloadReport {
    /// Rules that are new.
    pub added: Vec<Arc<str>>,
    /// Rules that mean something else; their alerts were resolved.
    pub changed: Vec<Arc<str>>,
    /// Rules that are gone; their alerts were resolved.
    pub removed: Vec<Arc<str>>,
    /// Rules in force.
    pub rules: usize,
    /// Handlers in force.
    pub handlers: usize,
}

impl ReloadReport {
    pub(super) fn between(before: &RuleSet, after: &RuleSet) -> Self {
        let find = |set: &RuleSet, id: &Arc<str>| {
            set.rules().iter().find(|rule| rule.id == *id).map(|rule| rule.hash())
        };
        let mut report = Self {
            rules: after.rules().len(),
            handlers: after.handlers().len(),
            ..Self::default()
        };
        for rule in after.rules() {
            match find(before, &rule.id) {
                None => report.added.push(Arc::clone(&rule.id)),
                Some(hash) if hash != rule.hash() => report.changed.push(Arc::clone(&rule.id)),
                Some(_) => {}
            }
        }
        let gone = before.rules().iter().filter(|rule| find(after, &rule.id).is_none());
        report.removed = gone.map(|rule| Arc::clone(&rule.id)).collect();
        report
    }
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, removed, rules, handlers } = self;
        let (added, changed, removed) = (added.len(), changed.len(), removed.len());
        write!(
            f,
            "{rules} rules ({added} added, {changed} changed, {removed} removed), {handlers} handlers"
        )
    }
}

/// Rules and handlers that can be put in force.
pub(super) struct Loaded {
    pub(super) rules: RuleSet,
    pub(super) handlers: Vec<Served>,
    /// Handlers of the program that no rule knows, and that get everything.
    pub(super) everything: Vec<Arc<str>>,
}

/// The rules of the program, its files, the rules that were added, and its handlers.
#[derive(Clone)]
pub(super) struct Sources {
    base: RuleSet,
    files: Vec<PathBuf>,
    /// When each file was changed and how long it was, when it was read last.
    seen: Vec<Stamp>,
    /// The same, when it was looked at last.
    noticed: Vec<Stamp>,
    added: Vec<Rule>,
    own: Vec<(DeliveryOptions, Arc<dyn AlertHandler>)>,
    /// The writers of files that were made: one that stays the same keeps what it knows of its file. The
    /// others are made anew, as the files of their secrets may have changed.
    made: Vec<(HandlerSpec, Arc<dyn AlertHandler>)>,
}

impl Sources {
    pub(super) fn new(
        base: RuleSet,
        files: Vec<PathBuf>,
        own: Vec<(DeliveryOptions, Arc<dyn AlertHandler>)>,
    ) -> Self {
        let seen = vec![None; files.len()];
        let noticed = seen.clone();
        Self { base, files, seen, noticed, added: Vec::new(), own, made: Vec::new() }
    }

    /// Adds a rule in place of one of the same name.
    pub(super) fn add(&mut self, rule: Rule) {
        self.remove(&rule.id.clone());
        self.added.push(rule);
    }

    /// Removes a rule that was added.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let before = self.added.len();
        self.added.retain(|rule| &*rule.id != id);
        self.added.len() < before
    }

    /// Whether a file is other than it was when it was read, and has stayed so since the last look.
    ///
    /// Editors empty a file before they fill it; whoever reads it in between finds no rules at all.
    pub(super) fn have_changed(&mut self) -> bool {
        let stamps: Vec<_> = self.files.iter().map(|file| stamp(file)).collect();
        let settled = stamps == self.noticed;
        let changed = stamps != self.seen;
        self.noticed = stamps;
        changed && settled
    }

    /// Reads and makes everything, or says everything that is wrong.
    pub(super) fn load(&mut self, channel: &ChannelHandler) -> Result<Loaded, RulesRefused> {
        let mut refused = RulesRefused::default();
        let mut rules = self.base.clone();
        for (file, seen) in self.files.iter().zip(&mut self.seen) {
            // Before it is read: what changes in between is seen the next time.
            *seen = stamp(file);
            let text = match read(file) {
                Ok(text) => text,
                Err(error) => {
                    refused.unreadable.push((file.clone(), error));
                    continue;
                }
            };
            let name = file.display().to_string();
            match RuleSet::parse(&text, &name) {
                Ok(over) => rules = rules.overlaid(&over),
                Err(errors) => refused.rules.extend_from_slice(errors.problems()),
            }
        }
        for rule in &self.added {
            match rules.with(rule.clone()) {
                Ok(with) => rules = with,
                Err(errors) => refused.rules.extend_from_slice(errors.problems()),
            }
        }
        let (mut made, mut handlers, mut everything) = (Vec::new(), Vec::new(), Vec::new());
        for spec in rules.handlers() {
            if self.own.iter().any(|(options, _)| options.id == spec.delivery.id) {
                continue;
            }
            let same = self.made.iter().find(|(other, _)| other == spec);
            let handler = match same {
                Some((_, handler)) => Ok(Arc::clone(handler)),
                None => handler_of(spec, channel),
            };
            match handler {
                Ok(handler) => {
                    let options = spec.delivery.clone();
                    if let HandlerKind::JsonLines { .. } = spec.kind {
                        made.push((spec.clone(), Arc::clone(&handler)));
                    }
                    handlers.push(Served { handler, options });
                }
                Err(problem) => refused.handlers.push(problem),
            }
        }
        for (options, handler) in &self.own {
            let known = rules.handlers().iter().any(|spec| spec.delivery.id == options.id);
            if !known {
                everything.push(Arc::clone(&options.id));
            }
            let (handler, options) = (Arc::clone(handler), options.clone());
            handlers.push(Served { handler, options });
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        self.made = made;
        Ok(Loaded { rules, handlers, everything })
    }
}

/// When a file was changed and how long it is; nothing if it cannot be told.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(file: &Path) -> Stamp {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    // One byte over the limit is enough for the parser to refuse it.
    std::fs::File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}
