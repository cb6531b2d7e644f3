//! Rules as values: what is watched, when it is bad, and how much is said about it.
//!
//! A rule file becomes a [`RuleSet`]; a program can build the same of [`Rule`]s. Both go through the same
//! checks, which find all problems at once.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::anomaly::AnomalyOptions;
use crate::selector::{Matcher, Selector};
use crate::series::Labels;
use crate::source::Aggregate;

use super::delivery::{HandlerKind, HandlerSpec};
use super::event::{Fingerprint, Fnv, Severity};
use super::expression::{Condition, Gate, Operand, Query, Relation, duration_text, nearest};
use super::problem::{RuleErrors, RuleProblem};
use super::template::Template;

/// Rules of one set at most.
pub const RULES_MAX: usize = 10_000;

/// Instances that a rule may be allowed at most.
pub const INSTANCES_MAX: usize = 10_000;

/// What a rule computes for each set of labels.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// One aggregate.
    Metric(Query),
    /// One aggregate by another.
    Ratio {
        /// What is divided; nothing there counts as zero.
        num: Query,
        /// What it is divided by.
        den: Query,
        /// Below this the rule does not count.
        min_den: f64,
    },
    /// How fast an error budget is used up, over a long and a short window.
    ///
    /// One means that the budget lasts just as long as the objective's period. Source: Google, The Site
    /// Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
    Burn {
        /// The objective, such as 0.999.
        slo: f64,
        /// What failed; nothing there counts as zero.
        bad: Selector,
        /// All there was.
        total: Selector,
        /// Windows and factors; one pair is enough to fire.
        pairs: Vec<BurnPair>,
        /// Less than this a second does not count.
        min_total: f64,
    },
    /// Whether it is unlike what it was in the last hour and a week ago.
    Anomaly {
        /// What is looked at; the window is the step.
        query: Query,
        /// How odd is odd.
        options: AnomalyOptions,
    },
    /// When a limit will be reached if the trend of the window goes on.
    Forecast {
        /// What grows.
        query: Query,
        /// The limit.
        limit: Operand,
        /// Whether the limit is a least value.
        falling: bool,
        /// It is bad if the limit is that near.
        within: Duration,
    },
}

impl Signal {
    /// Returns the name of the metric that makes the instances.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Metric(query) | Self::Anomaly { query, .. } | Self::Forecast { query, .. } => {
                &query.selector.name
            }
            Self::Ratio { den, .. } => &den.selector.name,
            Self::Burn { total, .. } => &total.name,
        }
    }

    /// Returns the longest window that is read.
    #[must_use]
    pub fn window(&self) -> Duration {
        match self {
            Self::Metric(query) | Self::Anomaly { query, .. } | Self::Forecast { query, .. } => {
                query.window
            }
            Self::Ratio { num, den, .. } => num.window.max(den.window),
            Self::Burn { pairs, .. } => {
                pairs.iter().map(|pair| pair.long).max().unwrap_or_default()
            }
        }
    }

    /// Whether the levels of the rule need a condition; other signals are met or not by themselves.
    pub(crate) fn takes_conditions(&self) -> bool {
        matches!(self, Self::Metric(_) | Self::Ratio { .. })
    }
}

/// Two windows and the burn rate that both must exceed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BurnPair {
    /// The long window, which makes it matter.
    pub long: Duration,
    /// The short window, which makes it end soon.
    pub short: Duration,
    /// The burn rate.
    pub factor: f64,
}

/// When one severity is reached and left.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The severity.
    pub severity: Severity,
    /// When it is bad; nothing for signals that are met by themselves.
    pub raise: Option<Condition>,
    /// When it is good again; without it when `raise` is not met.
    pub clear: Option<Condition>,
    /// How long `raise` must be met.
    pub hold: Duration,
}

/// What missing samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// Nothing: it stays as it is, marked as without data after two windows.
    #[default]
    Keep,
    /// All is well.
    Ok,
    /// The least level is met.
    Alert,
}

/// When changes count as flapping.
///
/// A change is one between firing and not, or between two levels; a further step in the same direction
/// belongs to the change before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flap {
    /// So many changes
    pub changes: usize,
    /// within this time are flapping,
    pub within: Duration,
    /// and it counts as firing until it was quiet for so long.
    pub hold: Duration,
}

impl Flap {
    /// Changes that are remembered at most.
    pub(crate) const CHANGES_MAX: usize = 100;
}

impl Default for Flap {
    fn default() -> Self {
        Self {
            changes: 4,
            within: Duration::from_secs(30 * 60),
            hold: Duration::from_secs(15 * 60),
        }
    }
}

/// How long a message waits, so that a change which is taken back soon is not told (Netdata's `delay`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Notify {
    /// After it got worse.
    pub up: Duration,
    /// After it got better.
    pub down: Duration,
    /// Each further change while a message waits multiplies the delay.
    pub multiplier: f64,
    /// The longest delay.
    pub max: Duration,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            up: Duration::ZERO,
            down: Duration::ZERO,
            multiplier: 1.0,
            max: Duration::from_secs(3_600),
        }
    }
}

/// One alert rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name, once in a set.
    pub id: Arc<str>,
    /// What it computes.
    pub signal: Signal,
    /// Its severities, each at most once, the least first.
    pub levels: Vec<Level>,
    /// How often it is evaluated.
    pub every: Duration,
    /// One instance for each combination of these labels; without any there is one instance.
    pub by: Vec<Arc<str>>,
    /// How long a level stays after its condition was last met.
    pub keep_firing_for: Duration,
    /// Without it the rule does not count.
    pub only_if: Option<Gate>,
    /// What missing samples mean.
    pub on_missing: OnMissing,
    /// Labels that its messages carry.
    pub labels: Labels,
    /// One line for people.
    pub summary: Template,
    /// More about it.
    pub description: Template,
    /// Where it is written what to do.
    pub runbook: Arc<str>,
    /// The recommendations that help.
    pub recommend: Vec<Arc<str>>,
    /// Delays of messages.
    pub notify: Notify,
    /// How often a message is repeated, for each severity in their order.
    pub repeat: [Option<Duration>; 4],
    /// The least time between two messages of the same or a lower level.
    pub cooldown: Duration,
    /// When it counts as flapping; never if nothing.
    pub flap: Option<Flap>,
    /// Instances at most; those over it become one alert of their own.
    pub limit: usize,
    /// The handlers that get its messages, by their ids; those of the set's defaults if nothing.
    pub handlers: Option<Vec<Arc<str>>>,
    /// Rules that keep its messages back while they fire with the same labels.
    pub inhibited_by: Vec<Arc<str>>,
    /// Whether it is evaluated.
    pub enabled: bool,
}

impl Rule {
    /// Makes a rule without levels, with the defaults: every 10 s, 5 min cooldown, 100 instances.
    pub fn new(id: impl Into<Arc<str>>, signal: Signal) -> Self {
        Self {
            id: id.into(),
            every: match &signal {
                Signal::Anomaly { options, .. } => options.step,
                Signal::Forecast { .. } => Duration::from_secs(60),
                _ => Duration::from_secs(10),
            },
            signal,
            levels: Vec::new(),
            by: Vec::new(),
            keep_firing_for: Duration::ZERO,
            only_if: None,
            on_missing: OnMissing::Keep,
            labels: Labels::default(),
            summary: Template::default(),
            description: Template::default(),
            runbook: "".into(),
            recommend: Vec::new(),
            notify: Notify::default(),
            repeat: [None; 4],
            cooldown: Duration::from_secs(300),
            flap: Some(Flap::default()),
            limit: 100,
            handlers: None,
            inhibited_by: Vec::new(),
            enabled: true,
        }
    }

    /// Makes the short form: a metric, a number that it must not exceed, a severity and a message.
    ///
    /// The metric is a selector, whose mean over a minute counts, or a query such as `rate(requests[5m])`.
    /// The rule ends when the value is 5 % below the threshold.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    ///
    /// # Examples
    ///
    /// ```
    /// use monitor::alert::{Rule, Severity};
    ///
    /// let rule = Rule::short("queue_long", "queue_depth", 1_000.0, Severity::Warning, "the queue is long")?;
    /// assert_eq!(rule.levels.len(), 1);
    /// # Ok::<_, monitor::alert::RuleErrors>(())
    /// ```
    pub fn short(
        name: &str,
        metric: &str,
        threshold: f64,
        severity: Severity,
        message: &str,
    ) -> Result<Self, RuleErrors> {
        let minute = Duration::from_secs(60);
        let mut problems = Vec::new();
        let mut problem = |key: &str, seen: &str, expected: String| {
            problems.push(RuleProblem::new(name, key, seen, expected));
        };
        let query = Query::parse(metric, minute).map_err(|expected| {
            problem("metric", metric, expected);
        });
        let summary = Template::parse(message).map_err(|expected| {
            problem("message", message, expected);
        });
        let (Ok(mut query), Ok(summary)) = (query, summary) else {
            return Err(RuleErrors::new(problems));
        };
        if !Query::names_aggregate(metric) {
            query.aggregate = Aggregate::Avg;
        }
        let clear = threshold - threshold.abs() * 0.05;
        let rule = Self { summary, ..Self::new(name, Signal::Metric(query)) }.level(Level {
            severity,
            raise: Some(Condition::number(Relation::Greater, threshold)),
            clear: Some(Condition::number(Relation::LessOrEqual, clear)),
            hold: Duration::ZERO,
        });
        match rule.problems() {
            problems if problems.is_empty() => Ok(rule),
            problems => Err(RuleErrors::new(problems)),
        }
    }

    /// Adds a level, in place of one of the same severity.
    #[must_use]
    pub fn level(mut self, level: Level) -> Self {
        match self.levels.binary_search_by_key(&level.severity, |level| level.severity) {
            Ok(at) => self.levels[at] = level,
            Err(at) => self.levels.insert(at, level),
        }
        self
    }

    /// Returns a hash of what the rule means; other texts, handlers and delays leave it as it is.
    #[must_use]
    pub fn hash(&self) -> Fingerprint {
        let mut hash = Fnv::default();
        hash.text(&self.id);
        hash.text(&self.meaning());
        Fingerprint(hash.0)
    }

    /// Writes down what the rule means.
    fn meaning(&self) -> String {
        let mut text = match &self.signal {
            Signal::Metric(query) => format!("{query}"),
            Signal::Ratio { num, den, min_den } => format!("{num} / {den} min {min_den}"),
            Signal::Burn { slo, bad, total, pairs, min_total } => {
                let mut text = format!("burn {slo} {bad} / {total} min {min_total}");
                for BurnPair { long, short, factor } in pairs {
                    let (long, short) = (duration_text(*long), duration_text(*short));
                    let _ = write!(text, " {long} {short} {factor}");
                }
                text
            }
            Signal::Anomaly { query, options } => {
                let AnomalyOptions { z, share, weekly, min_change, floor, .. } = options;
                let spans = [options.step, options.of, options.short, options.adapt_after];
                let spans = spans.map(duration_text).join(" ");
                format!("anomaly {query} {z} {share} {weekly} {min_change} {floor} {spans}")
            }
            Signal::Forecast { query, limit, falling, within } => {
                format!("forecast {query} {limit} {falling} {}", duration_text(*within))
            }
        };
        let _ = write!(text, " by {:?}", self.by);
        if let Some(gate) = &self.only_if {
            let _ = write!(text, " if {gate}");
        }
        let missing = match self.on_missing {
            OnMissing::Keep => "keep",
            OnMissing::Ok => "ok",
            OnMissing::Alert => "alert",
        };
        let _ = write!(text, " missing {missing}");
        for Level { severity, raise, clear, hold } in &self.levels {
            let _ = write!(text, " {severity}");
            for condition in [raise, clear] {
                match condition {
                    Some(condition) => _ = write!(text, " {condition}"),
                    None => text.push_str(" -"),
                }
            }
            let _ = write!(text, " {}", duration_text(*hold));
        }
        text
    }

    /// Returns all that is wrong with the rule by itself.
    #[must_use]
    pub fn problems(&self) -> Vec<RuleProblem> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, seen: String, expected: &str| {
            problems.push(RuleProblem::new(&self.id, key, &seen, expected.to_owned()));
        };
        let id = &*self.id;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        if id.is_empty() || id.len() > 200 || !id.chars().all(plain) {
            problem("id", format!("{id:?}"), "expected letters, digits, `_`, `-`, `.` and `:`");
        }
        let day = Duration::from_secs(86_400);
        if !(Duration::from_secs(1)..=day).contains(&self.every) {
            problem("every", duration_text(self.every), "expected 1s to 1d");
        }
        if !(1..=INSTANCES_MAX).contains(&self.limit) {
            problem("limit", self.limit.to_string(), "expected 1 to 10000 instances");
        }
        if let Some(flap) = self.flap
            && (!(2..=Flap::CHANGES_MAX).contains(&flap.changes) || flap.within.is_zero())
        {
            let seen = format!("{} changes within {}", flap.changes, duration_text(flap.within));
            problem("flap", seen, "expected 2 to 100 changes within some time, or flap = false");
        }
        if !(1.0..=10.0).contains(&self.notify.multiplier) {
            let seen = self.notify.multiplier.to_string();
            problem("notify.multiplier", seen, "expected 1 to 10");
        }
        for (severity, repeat) in Severity::ALL.into_iter().zip(self.repeat) {
            if repeat.is_some_and(|repeat| repeat < Duration::from_secs(60)) {
                let seen = repeat.map(duration_text).unwrap_or_default();
                problem(&format!("repeat.{severity}"), seen, "expected at least 1m");
            }
        }
        for name in self.by.iter().filter(|name| !crate::selector::is_label_name(name)) {
            problem("by", format!("{name:?}"), "expected the name of a label");
        }
        for (name, _) in self.labels.iter() {
            if matches!(name, "alertname" | "severity" | "rule")
                || !crate::selector::is_label_name(name)
            {
                let expected = "expected a name other than alertname, severity and rule";
                problem("labels", format!("{name:?}"), expected);
            }
        }
        for (key, template) in [("summary", &self.summary), ("description", &self.description)] {
            for label in template.labels() {
                let known = self.by.iter().any(|by| &**by == label);
                if !known && self.labels.get(label).is_none() {
                    let seen = format!("{{{{labels.{label}}}}}");
                    problem(key, seen, "expected a label of `by` or `labels`");
                }
            }
        }
        self.level_problems(&mut problem);
        self.signal_problems(&mut problem);
        problems
    }

    fn level_problems(&self, problem: &mut impl FnMut(&str, String, &str)) {
        if self.levels.is_empty() {
            let expected = "expected at least one of level.info, .warning, .error and .critical";
            problem("level", "nothing".to_owned(), expected);
        }
        if !self.signal.takes_conditions() && self.levels.len() > 1 {
            let seen = format!("{} levels", self.levels.len());
            problem("level", seen, "expected one level, as the signal is met or not");
        }
        for level in &self.levels {
            let key = |name: &str| format!("level.{}.{name}", level.severity);
            for (name, condition) in [("raise", &level.raise), ("clear", &level.clear)] {
                if let Some(Condition { operand: Operand::Number(number), .. }) = condition
                    && !number.is_finite()
                {
                    problem(&key(name), number.to_string(), "expected a finite number");
                }
            }
            let Some(raise) = &level.raise else {
                if self.signal.takes_conditions() {
                    let expected = "expected a condition such as \"> 0.8\"";
                    problem(&key("raise"), "nothing".to_owned(), expected);
                }
                continue;
            };
            if !self.signal.takes_conditions() {
                let expected = "expected none, as the signal is met or not by itself";
                problem(&key("raise"), format!("\"{raise}\""), expected);
            }
            if let Some(clear) = &level.clear
                && let Some(expected) = overlap(raise, clear)
            {
                problem(&key("clear"), format!("\"{clear}\""), expected);
            }
        }
    }

    fn signal_problems(&self, problem: &mut impl FnMut(&str, String, &str)) {
        let second = Duration::from_secs(1);
        if self.signal.window() < second {
            let seen = duration_text(self.signal.window());
            problem("window", seen, "expected at least 1s");
        }
        if let Some(gate) = &self.only_if
            && gate.query.window < second
        {
            problem("only_if", format!("\"{gate}\""), "expected a window of at least 1s");
        }
        match &self.signal {
            Signal::Metric(_) => {}
            Signal::Ratio { num, den, .. } => {
                for (key, query) in [("ratio.num", num), ("ratio.den", den)] {
                    if query.window < second {
                        let expected = "expected a window of at least 1s";
                        problem(key, format!("\"{query}\""), expected);
                    }
                }
            }
            Signal::Burn { slo, pairs, .. } => {
                if !(0.0..1.0).contains(slo) {
                    problem(
                        "burn.slo",
                        slo.to_string(),
                        "expected 0 to less than 1, such as 0.999",
                    );
                }
                if pairs.is_empty() || pairs.len() > 8 {
                    let expected = "expected 1 to 8, such as [\"1h\", \"5m\", 14.4]";
                    problem("burn.pairs", format!("{} pairs", pairs.len()), expected);
                }
                for BurnPair { long, short, factor } in pairs {
                    if *short < second || short >= long || *factor <= 0.0 {
                        let (long, short) = (duration_text(*long), duration_text(*short));
                        let expected =
                            "expected a long window, a shorter one and a factor above zero";
                        problem("burn.pairs", format!("[{long}, {short}, {factor}]"), expected);
                    }
                }
            }
            Signal::Anomaly { options, .. } => anomaly_problems(options, problem),
            Signal::Forecast { query, within, .. } => {
                if query.window < Duration::from_secs(120) {
                    let seen = duration_text(query.window);
                    problem("forecast.window", seen, "expected at least 2m");
                }
                if within.is_zero() {
                    problem("forecast.within", "0s".to_owned(), "expected some time");
                }
            }
        }
    }
}

fn anomaly_problems(options: &AnomalyOptions, problem: &mut impl FnMut(&str, String, &str)) {
    if options.step < Duration::from_secs(1) {
        problem("anomaly.step", duration_text(options.step), "expected at least 1s");
    }
    if options.z <= 0.0 {
        problem("anomaly.z", options.z.to_string(), "expected a number above zero");
    }
    let steps = options.of.as_secs_f64() / options.step.as_secs_f64().max(1e-3);
    if !(0.0..=1.0).contains(&options.share) || !(1.0..=64.0).contains(&steps) {
        let seen = format!("{}% of {}", options.share * 100.0, duration_text(options.of));
        problem("anomaly.of", seen, "expected a share of 1 to 64 steps, such as \"60% of 2m\"");
    }
    if options.short < 10 * options.step {
        let seen = duration_text(options.short);
        problem("anomaly.baseline", seen, "expected at least ten steps");
    }
    if options.min_change < 0.0 {
        problem("anomaly.min_change", options.min_change.to_string(), "expected a share");
    }
}

/// Says what is wrong if a value can be bad and good at once.
fn overlap(raise: &Condition, clear: &Condition) -> Option<&'static str> {
    use Relation::{Greater, GreaterOrEqual, Less, LessOrEqual};
    let above = |relation| matches!(relation, Greater | GreaterOrEqual);
    let below = |relation| matches!(relation, Less | LessOrEqual);
    let bounds = match (&raise.operand, &clear.operand) {
        (Operand::Number(raise), Operand::Number(clear)) => Some((*raise, *clear)),
        _ => None,
    };
    let (from, to) = (raise.relation, clear.relation);
    if above(from) {
        let apart = below(to) && bounds.is_none_or(|(raise, clear)| clear <= raise);
        return (!apart).then_some("expected < or <= and at most the number of raise");
    }
    if below(from) {
        let apart = above(to) && bounds.is_none_or(|(raise, clear)| clear >= raise);
        return (!apart).then_some("expected > or >= and at least the number of raise");
    }
    None
}

/// Alerts that keep the messages of others back while they fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibit {
    /// Those that do it; `severity` and `alertname` are among the labels.
    pub source: Vec<Matcher>,
    /// Those whose messages are kept back.
    pub target: Vec<Matcher>,
    /// Both must have the same values of these labels.
    pub equal: Vec<Arc<str>>,
}

/// Rules, handlers and inhibitions that go together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSet {
    pub(super) rules: Vec<Arc<Rule>>,
    pub(super) handlers: Vec<HandlerSpec>,
    pub(super) inhibits: Vec<Inhibit>,
    /// The handlers of rules that name none.
    pub(super) default_handlers: Vec<Arc<str>>,
}

/// Handlers that every set has without naming them.
const BUILT_IN: [(&str, HandlerKind); 2] =
    [("log", HandlerKind::Log), ("dashboard", HandlerKind::Channel)];

impl RuleSet {
    /// Puts rules together; messages go to the log and the dashboard, and to the handlers that are given.
    ///
    /// # Errors
    ///
    /// All that is wrong with any of them.
    pub fn new(
        rules: Vec<Rule>,
        handlers: Vec<HandlerSpec>,
        inhibits: Vec<Inhibit>,
    ) -> Result<Self, RuleErrors> {
        let rules = rules.into_iter().map(Arc::new).collect();
        let default_handlers = BUILT_IN.iter().map(|(id, _)| (*id).into()).collect();
        let set = Self { rules, handlers, inhibits, default_handlers };
        let mut problems: Vec<_> = set.rules.iter().flat_map(|rule| rule.problems()).collect();
        problems.extend(set.problems());
        match problems.is_empty() {
            true => Ok(set.completed()),
            false => Err(RuleErrors::new(problems)),
        }
    }

    /// Returns what is wrong with the rules together.
    pub(super) fn problems(&self) -> Vec<RuleProblem> {
        let mut problems = Vec::new();
        let mut problem = |rule: &str, key: &str, seen: &str, expected: String| {
            problems.push(RuleProblem::new(rule, key, seen, expected));
        };
        if self.rules.len() > RULES_MAX {
            let expected = format!("expected at most {RULES_MAX} rules");
            problem("", "rule", &self.rules.len().to_string(), expected);
        }
        let mut ids = BTreeSet::new();
        for rule in &self.rules {
            if !ids.insert(&*rule.id) {
                let expected = "expected a name that no other rule has".to_owned();
                problem(&rule.id, "id", &rule.id, expected);
            }
        }
        let mut handler_ids: BTreeSet<&str> = BTreeSet::new();
        for handler in &self.handlers {
            if handler.delivery.id.is_empty() || !handler_ids.insert(&handler.delivery.id) {
                let expected = "expected a name that no other handler has".to_owned();
                problem("", "handler.id", &handler.delivery.id, expected);
            }
        }
        handler_ids.extend(BUILT_IN.iter().map(|(id, _)| *id));
        let lists = self.rules.iter().filter_map(|rule| Some((&*rule.id, rule.handlers.as_ref()?)));
        for (rule, list) in lists.chain([("", &self.default_handlers)]) {
            let key = if rule.is_empty() { "defaults.handlers" } else { "handlers" };
            for id in list.iter().filter(|id| !handler_ids.contains(&***id)) {
                problem(rule, key, id, unknown(id, &handler_ids, "handler"));
            }
        }
        for rule in &self.rules {
            for id in rule.inhibited_by.iter().filter(|id| !ids.contains(&***id)) {
                problem(&rule.id, "inhibited_by", id, unknown(id, &ids, "rule"));
            }
        }
        problems
    }

    /// Adds the built-in handlers that are missing.
    pub(super) fn completed(mut self) -> Self {
        for (id, kind) in BUILT_IN {
            if !self.handlers.iter().any(|handler| &*handler.delivery.id == id) {
                self.handlers.push(HandlerSpec::new(id, kind));
            }
        }
        self
    }

    /// Returns this set with another laid over it: rules and handlers of the same name are replaced.
    ///
    /// The default handlers are those of `over`.
    #[must_use]
    pub fn overlaid(&self, over: &Self) -> Self {
        let mut set = self.clone();
        for rule in &over.rules {
            set.add(Rule::clone(rule));
        }
        for handler in &over.handlers {
            match set.handlers.iter_mut().find(|other| other.delivery.id == handler.delivery.id) {
                Some(same) => *same = handler.clone(),
                None => set.handlers.push(handler.clone()),
            }
        }
        set.inhibits.extend(over.inhibits.iter().cloned());
        set.default_handlers.clone_from(&over.default_handlers);
        set
    }

    /// Adds a rule that was checked, in place of one of the same name.
    fn add(&mut self, rule: Rule) {
        match self.rules.iter_mut().find(|other| other.id == rule.id) {
            Some(same) => *same = Arc::new(rule),
            None => self.rules.push(Arc::new(rule)),
        }
    }

    /// Returns this set with one rule more, in place of one of the same name.
    ///
    /// # Errors
    ///
    /// All that is wrong with the rule, by itself and among the others.
    pub fn with(&self, rule: Rule) -> Result<Self, RuleErrors> {
        let mut set = self.clone();
        let mut problems = rule.problems();
        set.add(rule);
        problems.extend(set.problems());
        match problems.is_empty() {
            true => Ok(set),
            false => Err(RuleErrors::new(problems)),
        }
    }

    /// Returns this set without a rule, and those that named it in `inhibited_by` without that.
    #[must_use]
    pub fn without(&self, id: &str) -> Self {
        let mut set = self.clone();
        set.rules.retain(|rule| &*rule.id != id);
        for rule in &mut set.rules {
            if rule.inhibited_by.iter().any(|other| &**other == id) {
                let mut changed = Rule::clone(rule);
                changed.inhibited_by.retain(|other| &**other != id);
                *rule = Arc::new(changed);
            }
        }
        set
    }

    /// Returns the rules in their order.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Returns the handlers, the built-in ones too.
    #[must_use]
    pub fn handlers(&self) -> &[HandlerSpec] {
        &self.handlers
    }

    /// Returns the inhibitions.
    #[must_use]
    pub fn inhibits(&self) -> &[Inhibit] {
        &self.inhibits
    }

    /// Returns the handlers of a rule: those it names or else the default ones, and those nobody names.
    ///
    /// A handler that neither a rule nor the defaults name gets every message that its own filters pass.
    pub(super) fn routes(&self) -> HashMap<Arc<str>, Arc<[Arc<str>]>> {
        let lists = self.rules.iter().filter_map(|rule| rule.handlers.as_ref());
        let named: BTreeSet<&str> =
            lists.chain([&self.default_handlers]).flatten().map(|id| &**id).collect();
        let built_in = |id: &str| BUILT_IN.iter().any(|(other, _)| *other == id);
        let unnamed: Vec<Arc<str>> = self
            .handlers
            .iter()
            .filter(|handler| {
                !named.contains(&*handler.delivery.id) && !built_in(&handler.delivery.id)
            })
            .map(|handler| handler.delivery.id.clone())
            .collect();
        let of = |rule: &Rule| {
            let own = rule.handlers.as_ref().unwrap_or(&self.default_handlers);
            own.iter().chain(&unnamed).cloned().collect()
        };
        self.rules.iter().map(|rule| (rule.id.clone(), of(rule))).collect()
    }
}

/// Says that a name is not known, and which may be meant.
fn unknown(id: &str, known: &BTreeSet<&str>, what: &str) -> String {
    match nearest(id, known.iter().copied()) {
        Some(near) => format!("no such {what}, did you mean {near}?"),
        None => format!("no such {what}"),
    }
}
