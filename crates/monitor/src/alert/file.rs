//! Rule files: TOML into a [`RuleSet`], with every problem at its line, or not at all.
//!
//! The tree of the TOML parser is walked by hand, because each value must know its place and one wrong
//! value must not hide the next. The form of the file is in the documentation of [`RuleSet::parse`].

use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::anomaly::AnomalyOptions;
use crate::selector::{Matcher, Selector};
use crate::series::Labels;
use crate::source::Aggregate;

use super::delivery::{HandlerKind, HandlerSpec, Secret, SecretSource};
use super::event::Severity;
use super::expression::{
    AGGREGATES, Condition, Gate, Operand, Query, duration, nearest, quantity, shared,
};
use super::problem::{Place, RuleErrors, RuleProblem};
use super::rule::{BurnPair, Flap, Inhibit, Level, Notify, OnMissing, Rule, RuleSet, Signal};
use super::template::Template;

/// Largest rule file, in bytes.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Problems that are listed at most; a file that is none of ours has thousands.
const PROBLEMS_MAX: usize = 100;

const FILE_KEYS: [&str; 5] = ["version", "defaults", "rule", "handler", "inhibit"];
const DEFAULT_KEYS: [&str; 12] = [
    "every",
    "window",
    "cooldown",
    "keep_firing_for",
    "on_missing",
    "flap",
    "notify",
    "repeat",
    "limit",
    "labels",
    "handlers",
    "for",
];
const RULE_KEYS: [&str; 27] = [
    "id",
    "metric",
    "agg",
    "window",
    "ratio",
    "burn",
    "anomaly",
    "forecast",
    "level",
    "every",
    "by",
    "keep_firing_for",
    "only_if",
    "on_missing",
    "labels",
    "summary",
    "description",
    "runbook",
    "recommend",
    "notify",
    "repeat",
    "cooldown",
    "flap",
    "limit",
    "handlers",
    "inhibited_by",
    "enabled",
];

impl RuleSet {
    /// Reads a rule file.
    ///
    /// # Errors
    ///
    /// Every problem with its line and column, and then nothing of the file is taken.
    ///
    /// # Examples
    ///
    /// ```
    /// use monitor::alert::RuleSet;
    ///
    /// let rules = RuleSet::parse(
    ///     r#"
    ///     [[rule]]
    ///     id = "error_ratio"
    ///     ratio = { num = 'rate(http_requests_total{status=~"5.."}[5m])', den = 'rate(http_requests_total[5m])', min_den = 1.0 }
    ///     level.error = { raise = "> 5%", clear = "< 3%", for = "2m" }
    ///     summary = "{{value|pct}} of the requests fail"
    ///     "#,
    ///     "alerts.toml",
    /// )?;
    /// assert_eq!(rules.rules().len(), 1);
    ///
    /// let errors = RuleSet::parse("[[rule]]\nid = 'a'\nmetrik = 'b'\nlevel.error = '> 1'", "alerts.toml");
    /// let errors = errors.expect_err("there is no such key").to_string();
    /// assert!(errors.contains("alerts.toml:3:1: rule a: metrik: unknown key, did you mean metric?"));
    /// # Ok::<_, monitor::alert::RuleErrors>(())
    /// ```
    pub fn parse(text: &str, file_name: &str) -> Result<Self, RuleErrors> {
        let mut reader = Reader::new(text, file_name);
        let set = reader.root(Reader::file)?;
        match reader.problems.is_empty() {
            true => Ok(set.completed()),
            false => Err(RuleErrors::new(reader.problems)),
        }
    }
}

/// Places of the values of one rule, for problems that are found in the finished rule.
type Places = Vec<(String, usize)>;

/// A table with the keys that lead to it and its place.
pub(super) struct Table<'t, 'i> {
    pub(super) table: &'t DeTable<'i>,
    pub(super) path: String,
    pub(super) at: usize,
}

impl<'t, 'i> Table<'t, 'i> {
    fn key(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
}

/// Walks a file and collects what is wrong with it.
pub(super) struct Reader<'a> {
    text: &'a str,
    file: Arc<str>,
    /// The rule that is being read.
    rule: String,
    places: Places,
    pub(super) problems: Vec<RuleProblem>,
}

/// What the rules of a file have in common.
#[derive(Clone)]
struct Defaults {
    window: Duration,
    hold: Duration,
    every: Option<Duration>,
    rule: Rule,
    handlers: Option<Vec<Arc<str>>>,
}

pub(super) type Read<T> = Result<T, String>;

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, file: &str) -> Self {
        Self {
            text,
            file: file.into(),
            rule: String::new(),
            places: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Parses the text and has it read; the text being no TOML is an error at once.
    pub(super) fn root<T>(
        &mut self,
        read: impl FnOnce(&mut Self, &Table<'_, '_>) -> T,
    ) -> Result<T, RuleErrors> {
        if self.text.len() > FILE_BYTES_MAX {
            self.problem(0, "", "", "", "expected at most 4 MiB".to_owned());
            return Err(RuleErrors::new(std::mem::take(&mut self.problems)));
        }
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.problem(at, "", "", "", format!("not valid TOML: {}", error.message()));
        }
        if !errors.is_empty() {
            return Err(RuleErrors::new(std::mem::take(&mut self.problems)));
        }
        let root = root.into_inner();
        Ok(read(self, &Table { table: &root, path: String::new(), at: 0 }))
    }

    fn place(&self, at: usize) -> Place {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(super) fn problem(
        &mut self,
        at: usize,
        rule: &str,
        key: &str,
        seen: &str,
        expected: String,
    ) {
        if self.problems.len() < PROBLEMS_MAX {
            let place = Some(self.place(at));
            self.problems
                .push(RuleProblem { place, ..RuleProblem::new(rule, key, seen, expected) });
        }
    }

    /// Says that a value is not what it should be.
    fn wrong(&mut self, key: &str, value: &Spanned<DeValue<'_>>, expected: String) {
        let span = value.span();
        let secret = ["token", "hmac", "headers", "url", "urls"];
        let seen = match secret.iter().any(|name| key.rsplit('.').next() == Some(*name)) {
            true => String::new(),
            false => abridged(self.text.get(span.clone()).unwrap_or_default()),
        };
        let rule = self.rule.clone();
        self.problem(span.start, &rule, key, &seen, expected);
    }

    /// Says that a table lacks something.
    fn lacks(&mut self, table: &Table<'_, '_>, key: &str, expected: &str) {
        let (rule, key) = (self.rule.clone(), table.key(key));
        self.problem(table.at, &rule, &key, "nothing", expected.to_owned());
    }

    /// Reads the value of a key, if it is there and right.
    pub(super) fn field<T>(
        &mut self,
        table: &Table<'_, '_>,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        let value = table.get(key)?;
        let path = table.key(key);
        self.places.push((path.clone(), value.span().start));
        match read(value.get_ref()) {
            Ok(read) => Some(read),
            Err(expected) => {
                self.wrong(&path, value, expected);
                None
            }
        }
    }

    /// Reads the value of a key that must be there.
    pub(super) fn needed<T>(
        &mut self,
        table: &Table<'_, '_>,
        key: &str,
        expected: &str,
        read: impl FnOnce(&DeValue<'_>) -> Read<T>,
    ) -> Option<T> {
        if !table.has(key) {
            self.lacks(table, key, expected);
        }
        self.field(table, key, read)
    }

    /// Returns the table of a key.
    pub(super) fn table<'t, 'i>(
        &mut self,
        table: &Table<'t, 'i>,
        key: &str,
    ) -> Option<Table<'t, 'i>> {
        let value = table.get(key)?;
        let (path, at) = (table.key(key), value.span().start);
        self.places.push((path.clone(), at));
        match value.get_ref() {
            DeValue::Table(table) => Some(Table { table, path, at }),
            _ => {
                self.wrong(&path, value, "expected a table".to_owned());
                None
            }
        }
    }

    /// Returns the tables of `[[key]]`.
    pub(super) fn tables<'t, 'i>(
        &mut self,
        table: &Table<'t, 'i>,
        key: &str,
    ) -> Vec<Table<'t, 'i>> {
        let Some(value) = table.get(key) else { return Vec::new() };
        let expected = || format!("expected tables, written [[{key}]]");
        let DeValue::Array(list) = value.get_ref() else {
            self.wrong(key, value, expected());
            return Vec::new();
        };
        let mut tables = Vec::new();
        for entry in list {
            match entry.get_ref() {
                DeValue::Table(table) => {
                    tables.push(Table { table, path: String::new(), at: entry.span().start });
                }
                _ => self.wrong(key, entry, expected()),
            }
        }
        tables
    }

    /// Says which keys nobody knows.
    pub(super) fn only(&mut self, table: &Table<'_, '_>, known: &[&str]) {
        for (name, _) in table.table {
            if known.contains(&&**name.get_ref()) {
                continue;
            }
            let hint = match nearest(name.get_ref(), known.iter().copied()) {
                Some(near) => format!("unknown key, did you mean {near}?"),
                None => format!("unknown key: expected {}", known.join(", ")),
            };
            let (rule, key) = (self.rule.clone(), abridged(&table.key(name.get_ref())));
            self.problem(name.span().start, &rule, &key, "", hint);
        }
    }

    fn file(&mut self, root: &Table<'_, '_>) -> RuleSet {
        self.only(root, &FILE_KEYS);
        self.field(root, "version", |value| match integer(value)? {
            1 => Ok(()),
            _ => Err("expected version 1".to_owned()),
        });
        let defaults = self.defaults(root);
        let mut set = RuleSet {
            default_handlers: defaults
                .handlers
                .clone()
                .unwrap_or_else(|| vec![shared("log"), shared("dashboard")]),
            ..RuleSet::default()
        };
        let mut rule_places = Vec::new();
        for table in self.tables(root, "rule") {
            let found = self.problems.len();
            self.places.clear();
            let rule = self.rule(&table, &defaults);
            rule_places.push((rule.id.clone(), table.at, std::mem::take(&mut self.places)));
            let mut problems = rule.problems();
            problems.retain(|problem| !self.is_consequence(found, problem));
            self.located(problems, &rule_places);
            set.rules.push(Arc::new(rule));
            self.rule.clear();
        }
        for table in self.tables(root, "handler") {
            set.handlers.extend(self.handler(&table));
        }
        for table in self.tables(root, "inhibit") {
            set.inhibits.extend(self.inhibit(&table));
        }
        let problems = set.problems();
        self.located(problems, &rule_places);
        set
    }

    /// Whether a problem of a rule is there only because of what could not be read of it.
    fn is_consequence(&self, found: usize, problem: &RuleProblem) -> bool {
        let root = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
        self.problems[found..].iter().any(|earlier| match root(&earlier.key).as_str() {
            "metric" | "agg" | "window" | "ratio" | "burn" | "anomaly" | "forecast" => {
                let key = root(&problem.key);
                ["level", "window", "ratio", "burn", "anomaly", "forecast"].contains(&&*key)
            }
            "by" | "labels" => ["by", "labels", "summary", "description"].contains(&&*problem.key),
            "level" => root(&problem.key) == "level",
            key => key == root(&problem.key),
        })
    }

    /// Gives places to problems that were found in finished rules.
    fn located(&mut self, problems: Vec<RuleProblem>, rules: &[(Arc<str>, usize, Places)]) {
        for problem in problems {
            // Of two rules of one name the later is the mistake.
            let rule = rules.iter().rev().find(|(id, ..)| **id == *problem.rule);
            let at = rule.map_or(0, |(_, at, places)| {
                let longest = places
                    .iter()
                    .filter(|(key, _)| {
                        problem.key == *key || problem.key.starts_with(&format!("{key}."))
                    })
                    .max_by_key(|(key, _)| key.len());
                longest.map_or(*at, |(_, at)| *at)
            });
            self.problem(at, &problem.rule, &problem.key, &problem.seen, problem.expected);
        }
    }

    fn defaults(&mut self, root: &Table<'_, '_>) -> Defaults {
        let nothing = Query {
            selector: Selector::name(""),
            aggregate: Aggregate::Last,
            window: Duration::from_secs(60),
        };
        let mut defaults = Defaults {
            window: nothing.window,
            hold: Duration::ZERO,
            every: None,
            rule: Rule::new("", Signal::Metric(nothing)),
            handlers: None,
        };
        let Some(table) = self.table(root, "defaults") else { return defaults };
        self.only(&table, &DEFAULT_KEYS);
        if let Some(window) = self.field(&table, "window", read_duration) {
            defaults.window = window;
        }
        if let Some(hold) = self.field(&table, "for", read_duration) {
            defaults.hold = hold;
        }
        defaults.every = self.field(&table, "every", read_duration);
        self.common(&table, &mut defaults.rule);
        defaults.handlers = self.field(&table, "handlers", texts);
        defaults
    }

    /// Reads what a rule and the defaults share.
    fn common(&mut self, table: &Table<'_, '_>, rule: &mut Rule) {
        if let Some(cooldown) = self.field(table, "cooldown", read_duration) {
            rule.cooldown = cooldown;
        }
        if let Some(keep) = self.field(table, "keep_firing_for", read_duration) {
            rule.keep_firing_for = keep;
        }
        if let Some(on_missing) = self.field(table, "on_missing", |value| match value.as_str() {
            Some("keep") => Ok(OnMissing::Keep),
            Some("ok") => Ok(OnMissing::Ok),
            Some("alert") => Ok(OnMissing::Alert),
            _ => Err("expected \"keep\", \"ok\" or \"alert\"".to_owned()),
        }) {
            rule.on_missing = on_missing;
        }
        if let Some(limit) = self.field(table, "limit", count) {
            rule.limit = limit;
        }
        if let Some(labels) = self.field(table, "labels", labels) {
            rule.labels = rule.labels.with(&labels);
        }
        match table.get("flap").map(Spanned::get_ref) {
            None => {}
            Some(DeValue::Boolean(false)) => rule.flap = None,
            Some(_) => {
                if let Some(flap) = self.table(table, "flap") {
                    rule.flap = Some(self.flap(&flap));
                }
            }
        }
        if let Some(notify) = self.table(table, "notify") {
            self.notify(&notify, &mut rule.notify);
        }
        if let Some(repeat) = self.table(table, "repeat") {
            self.only(&repeat, &Severity::ALL.map(Severity::word));
            for severity in Severity::ALL {
                if let Some(every) = self.field(&repeat, severity.word(), read_duration) {
                    rule.repeat[severity as usize] = Some(every);
                }
            }
        }
    }

    fn flap(&mut self, table: &Table<'_, '_>) -> Flap {
        self.only(table, &["changes", "within", "hold"]);
        let ours = Flap::default();
        Flap {
            changes: self.field(table, "changes", count).unwrap_or(ours.changes),
            within: self.field(table, "within", read_duration).unwrap_or(ours.within),
            hold: self.field(table, "hold", read_duration).unwrap_or(ours.hold),
        }
    }

    fn notify(&mut self, table: &Table<'_, '_>, notify: &mut Notify) {
        self.only(table, &["up", "down", "multiplier", "max"]);
        if let Some(up) = self.field(table, "up", read_duration) {
            notify.up = up;
        }
        if let Some(down) = self.field(table, "down", read_duration) {
            notify.down = down;
        }
        if let Some(multiplier) = self.field(table, "multiplier", number) {
            notify.multiplier = multiplier;
        }
        if let Some(max) = self.field(table, "max", read_duration) {
            notify.max = max;
        }
    }

    fn rule(&mut self, table: &Table<'_, '_>, defaults: &Defaults) -> Rule {
        let id = table.get("id").and_then(|id| id.get_ref().as_str()).unwrap_or_default();
        id.clone_into(&mut self.rule);
        self.only(table, &RULE_KEYS);
        let id =
            self.needed(table, "id", "expected a name", |value| text(value).map(|id| shared(&id)));
        let signal = self.signal(table, defaults);
        let mut rule = defaults.rule.clone();
        let own_every = signal.as_ref().map(|signal| Rule::new("", signal.clone()).every);
        if let Some(signal) = signal {
            rule.signal = signal;
        }
        rule.id = id.unwrap_or_default();
        let chosen = self.field(table, "every", read_duration).or_else(|| {
            // A forecast or an anomaly has a rhythm of its own, which the defaults do not change.
            let takes_default = rule.signal.takes_conditions();
            defaults.every.filter(|_| takes_default).or(own_every)
        });
        rule.every = chosen.unwrap_or(rule.every);
        self.common(table, &mut rule);
        self.levels(table, defaults, &mut rule);
        if let Some(by) = self.field(table, "by", texts) {
            rule.by = by;
        }
        rule.only_if =
            self.field(table, "only_if", |value| Gate::parse(&text(value)?, defaults.window));
        for (key, template) in
            [("summary", &mut rule.summary), ("description", &mut rule.description)]
        {
            if let Some(read) = self.field(table, key, |value| Template::parse(&text(value)?)) {
                *template = read;
            }
        }
        if let Some(runbook) = self.field(table, "runbook", text) {
            rule.runbook = runbook.into();
        }
        if let Some(recommend) = self.field(table, "recommend", texts) {
            rule.recommend = recommend;
        }
        rule.handlers = self.field(table, "handlers", texts);
        if let Some(inhibited_by) = self.field(table, "inhibited_by", texts) {
            rule.inhibited_by = inhibited_by;
        }
        if let Some(enabled) = self.field(table, "enabled", boolean) {
            rule.enabled = enabled;
        }
        rule
    }

    fn levels(&mut self, table: &Table<'_, '_>, defaults: &Defaults, rule: &mut Rule) {
        let Some(levels) = self.table(table, "level") else { return };
        self.only(&levels, &Severity::ALL.map(Severity::word));
        for severity in Severity::ALL {
            let key = severity.word();
            let mut level = Level { severity, raise: None, clear: None, hold: defaults.hold };
            match levels.get(key).map(Spanned::get_ref) {
                None => continue,
                // The short form: level.error = "> 0.05"
                Some(DeValue::String(_)) => level.raise = self.field(&levels, key, condition),
                Some(_) => {
                    let Some(table) = self.table(&levels, key) else { continue };
                    self.only(&table, &["raise", "clear", "for"]);
                    level.raise = self.field(&table, "raise", condition);
                    level.clear = self.field(&table, "clear", condition);
                    if let Some(hold) = self.field(&table, "for", read_duration) {
                        level.hold = hold;
                    }
                }
            }
            rule.levels.push(level);
        }
    }

    fn signal(&mut self, table: &Table<'_, '_>, defaults: &Defaults) -> Option<Signal> {
        const KINDS: [&str; 5] = ["metric", "ratio", "burn", "anomaly", "forecast"];
        let kinds: Vec<&str> = KINDS.into_iter().filter(|kind| table.has(kind)).collect();
        if kinds.len() != 1 {
            let seen = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
            let rule = self.rule.clone();
            let expected = format!("expected one of {}", KINDS.join(", "));
            self.problem(table.at, &rule, "metric", &seen, expected);
            return None;
        }
        if kinds[0] != "metric" {
            for key in ["agg", "window"] {
                if let Some(value) = table.get(key) {
                    self.wrong(key, value, format!("goes with metric, not with {}", kinds[0]));
                }
            }
        }
        match kinds[0] {
            "metric" => self.metric(table, defaults.window).map(Signal::Metric),
            "ratio" => {
                let table = self.table(table, "ratio")?;
                self.ratio(&table, defaults.window)
            }
            "burn" => {
                let table = self.table(table, "burn")?;
                self.burn(&table)
            }
            "anomaly" => {
                let table = self.table(table, "anomaly")?;
                self.anomaly(&table)
            }
            _ => {
                let table = self.table(table, "forecast")?;
                self.forecast(&table)
            }
        }
    }

    /// Reads `metric`, `agg` and `window`, or a query in `metric` alone.
    fn metric(&mut self, table: &Table<'_, '_>, window: Duration) -> Option<Query> {
        let whole = table
            .get("metric")
            .and_then(|metric| metric.get_ref().as_str())
            .is_some_and(Query::names_aggregate);
        let chosen = self.field(table, "agg", read_aggregate);
        let window = self.field(table, "window", read_duration).unwrap_or(window);
        let query = self.needed(table, "metric", "expected a metric", |value| {
            Query::parse(&text(value)?, window)
        });
        if whole {
            for key in ["agg", "window"] {
                if let Some(value) = table.get(key) {
                    let path = table.key(key);
                    self.wrong(&path, value, "is already in the query of metric".to_owned());
                }
            }
        }
        let mut query = query?;
        if let (false, Some(chosen)) = (whole, chosen) {
            query.aggregate = chosen;
        }
        Some(query)
    }

    fn ratio(&mut self, table: &Table<'_, '_>, window: Duration) -> Option<Signal> {
        self.only(table, &["num", "den", "min_den"]);
        let expected = "expected a query such as rate(requests[5m])";
        let query = |value: &DeValue<'_>| Query::parse(&text(value)?, window);
        let num = self.needed(table, "num", expected, query);
        let den = self.needed(table, "den", expected, query);
        let min_den = self.field(table, "min_den", number).unwrap_or(0.0);
        Some(Signal::Ratio { num: num?, den: den?, min_den })
    }

    fn burn(&mut self, table: &Table<'_, '_>) -> Option<Signal> {
        self.only(table, &["slo", "bad", "total", "pairs", "min_total"]);
        let slo = self.needed(table, "slo", "expected an objective such as 0.999", number);
        let expected = "expected a metric that counts";
        let bad = self.needed(table, "bad", expected, selector);
        let total = self.needed(table, "total", expected, selector);
        let pairs = self.field(table, "pairs", |value| {
            let pair = |value: &Spanned<DeValue<'_>>| -> Read<BurnPair> {
                let wrong = || "expected [\"long\", \"short\", factor]".to_owned();
                let list = value.get_ref().as_array().ok_or_else(wrong)?;
                let [long, short, factor] = list.iter().collect::<Vec<_>>()[..] else {
                    return Err(wrong());
                };
                Ok(BurnPair {
                    long: read_duration(long.get_ref())?,
                    short: read_duration(short.get_ref())?,
                    factor: number(factor.get_ref())?,
                })
            };
            value.as_array().ok_or("expected a list of pairs")?.iter().map(pair).collect()
        });
        // The pairs of the workbook for a page.
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let usual = || {
            vec![
                BurnPair { long: minutes(60), short: minutes(5), factor: 14.4 },
                BurnPair { long: minutes(360), short: minutes(30), factor: 6.0 },
            ]
        };
        let pairs = pairs.unwrap_or_else(usual);
        let min_total = self.field(table, "min_total", number).unwrap_or(0.0);
        Some(Signal::Burn { slo: slo?, bad: bad?, total: total?, pairs, min_total })
    }

    fn anomaly(&mut self, table: &Table<'_, '_>) -> Option<Signal> {
        self.only(table, &["metric", "agg", "step", "z", "of", "baseline", "min_change"]);
        let mut options = AnomalyOptions::default();
        if let Some(step) = self.field(table, "step", read_duration) {
            options.step = step;
        }
        if let Some(z) = self.field(table, "z", number) {
            options.z = z;
        }
        if let Some((share, of)) = self.field(table, "of", |value| {
            let wrong = "expected a share of a time, such as \"60% of 2m\"";
            let text = text(value)?;
            let (share, of) = text.split_once(" of ").ok_or(wrong)?;
            Ok((quantity(share).map_err(|_| wrong)?, duration(of)?))
        }) {
            (options.share, options.of) = (share, of);
        }
        if let Some(baseline) = self.field(table, "baseline", texts) {
            options.weekly = false;
            for name in &baseline {
                match &**name {
                    "week" => options.weekly = true,
                    name => match duration(name) {
                        Ok(short) => options.short = short,
                        Err(_) => {
                            let value = table.get("baseline").expect("it was read above");
                            let path = table.key("baseline");
                            let expected = "expected a duration and \"week\"".to_owned();
                            self.wrong(&path, value, expected);
                        }
                    },
                }
            }
        }
        if let Some(min_change) = self.field(table, "min_change", number) {
            options.min_change = min_change;
        }
        let aggregate = self.field(table, "agg", read_aggregate).unwrap_or(Aggregate::Avg);
        let selector = self.needed(table, "metric", "expected a metric", selector)?;
        let query = Query { selector, aggregate, window: options.step };
        Some(Signal::Anomaly { query, options })
    }

    fn forecast(&mut self, table: &Table<'_, '_>) -> Option<Signal> {
        self.only(table, &["metric", "agg", "window", "limit", "within", "direction"]);
        let aggregate = self.field(table, "agg", read_aggregate).unwrap_or(Aggregate::Avg);
        let window = self.field(table, "window", read_duration);
        let window = window.unwrap_or(Duration::from_secs(6 * 3_600));
        let within = self.field(table, "within", read_duration);
        let falling = self.field(table, "direction", |value| match value.as_str() {
            Some("up") => Ok(false),
            Some("down") => Ok(true),
            _ => Err("expected \"up\" or \"down\"".to_owned()),
        });
        let limit =
            self.needed(table, "limit", "expected a number or a metric", |value| {
                match value.as_str() {
                    Some(text) => Operand::parse(text),
                    None => number(value).map(Operand::Number),
                }
            });
        let selector = self.needed(table, "metric", "expected a metric", selector);
        let query = Query { selector: selector?, aggregate, window };
        let within = within.unwrap_or(Duration::from_secs(86_400));
        Some(Signal::Forecast { query, limit: limit?, falling: falling.unwrap_or(false), within })
    }

    fn inhibit(&mut self, table: &Table<'_, '_>) -> Option<Inhibit> {
        self.only(table, &["source", "target", "equal"]);
        let expected = "expected matchers such as severity=\"critical\"";
        let source = self.needed(table, "source", expected, matchers);
        let target = self.needed(table, "target", expected, matchers);
        let equal = self.field(table, "equal", texts).unwrap_or_default();
        Some(Inhibit { source: source?, target: target?, equal })
    }

    fn handler(&mut self, table: &Table<'_, '_>) -> Option<HandlerSpec> {
        let id =
            self.needed(table, "id", "expected a name", |value| text(value).map(|id| shared(&id)));
        let kind = self.handler_kind(table);
        let mut spec = HandlerSpec::new(id?, kind?);
        if let Some(severity) = self.field(table, "min_severity", |value| {
            let severity = value.as_str().and_then(Severity::of);
            severity.ok_or_else(|| "expected info, warning, error or critical".to_owned())
        }) {
            spec.delivery.min_severity = severity;
        }
        if let Some(send) = self.field(table, "send_resolved", boolean) {
            spec.delivery.send_resolved = send;
        }
        if let Some(matchers) = self.field(table, "match", matchers) {
            spec.delivery.matchers = matchers;
        }
        if let Some(by) = self.field(table, "group_by", texts) {
            spec.delivery.group_by = by;
            // The waits of Alertmanager, shortened, as one process has few alerts.
            spec.delivery.group_wait = Duration::from_secs(10);
            spec.delivery.group_interval = Duration::from_secs(60);
        }
        if let Some(wait) = self.field(table, "group_wait", read_duration) {
            spec.delivery.group_wait = wait;
        }
        if let Some(interval) = self.field(table, "group_interval", read_duration) {
            spec.delivery.group_interval = interval;
        }
        let positive = |value: &DeValue<'_>| match read_duration(value)? {
            Duration::ZERO => Err("expected some time".to_owned()),
            time => Ok(time),
        };
        if let Some(timeout) = self.field(table, "timeout", positive) {
            spec.delivery.timeout = timeout;
        }
        if let Some(retries) = self.field(table, "retries", |value| bounded(value, 0, 100)) {
            spec.delivery.retries = retries as u32;
        }
        if let Some(queue) = self.field(table, "queue", |value| bounded(value, 1, 100_000)) {
            spec.delivery.queue = queue;
        }
        Some(spec)
    }

    fn handler_kind(&mut self, table: &Table<'_, '_>) -> Option<HandlerKind> {
        const TYPES: &str = "expected log, channel, jsonl, webhook or alertmanager";
        let word = self.needed(table, "type", TYPES, text)?;
        let own: &[&str] = match &*word {
            "log" | "channel" => &[],
            "jsonl" => &["path", "max_bytes"],
            "webhook" => &["url", "headers", "token", "token_file", "hmac", "hmac_file"],
            "alertmanager" => &["url", "urls", "resend", "generator_url", "token", "token_file"],
            _ => {
                let value = table.get("type").expect("it was read above");
                self.wrong("type", value, TYPES.to_owned());
                return None;
            }
        };
        let shared_keys = [
            "id",
            "type",
            "min_severity",
            "send_resolved",
            "match",
            "group_by",
            "group_wait",
            "group_interval",
            "timeout",
            "retries",
            "queue",
        ];
        self.only(table, &[&shared_keys, own].concat());
        let where_to = "expected an address with http:// or https://";
        Some(match &*word {
            "log" => HandlerKind::Log,
            "channel" => HandlerKind::Channel,
            "jsonl" => {
                let path = self.needed(table, "path", "expected the path of a file", text)?;
                let max_bytes = self.field(table, "max_bytes", |value| {
                    let bytes = number(value)?;
                    let sensible = (4_096.0..=1e12).contains(&bytes);
                    sensible.then_some(bytes as u64).ok_or("expected 4KiB to 1TB".to_owned())
                });
                let max_bytes = max_bytes.unwrap_or(16 * 1024 * 1024);
                HandlerKind::JsonLines { path: path.into(), max_bytes }
            }
            "webhook" => {
                let url = self.needed(table, "url", where_to, url);
                let headers = self.field(table, "headers", labels).unwrap_or_default();
                let headers = headers.iter().map(|(name, value)| (name.into(), value.into()));
                let headers = headers.collect();
                let token = self.secret(table, "token");
                let hmac = self.secret(table, "hmac");
                HandlerKind::Webhook { url: url?, headers, token, hmac }
            }
            _ => {
                let one = self.field(table, "url", url);
                let many = self.field(table, "urls", |value| {
                    let list = value.as_array().ok_or("expected a list of addresses")?;
                    list.iter().map(|value| url(value.get_ref())).collect::<Read<Vec<_>>>()
                });
                let urls: Vec<_> = one.into_iter().chain(many.into_iter().flatten()).collect();
                if urls.is_empty() && !table.has("url") && !table.has("urls") {
                    self.lacks(table, "url", where_to);
                }
                let resend = self.field(table, "resend", |value| {
                    let resend = read_duration(value)?;
                    let sensible = (1..=3_600).contains(&resend.as_secs());
                    sensible.then_some(resend).ok_or("expected 1s to 1h".to_owned())
                });
                let generator_url = self.field(table, "generator_url", text).unwrap_or_default();
                let token = self.secret(table, "token");
                HandlerKind::Alertmanager {
                    urls,
                    resend: resend.unwrap_or(Duration::from_secs(60)),
                    generator_url: generator_url.into(),
                    token,
                }
            }
        })
    }

    /// Reads `name`, the secret itself, or `name_file`, where it is.
    fn secret(&mut self, table: &Table<'_, '_>, name: &str) -> Option<SecretSource> {
        let file_key = format!("{name}_file");
        let value = self.field(table, name, |value| text(value).map(Secret::new));
        let file = self.field(table, &file_key, text);
        match (value, file) {
            (Some(_), Some(_)) => {
                let place = table.get(&file_key).expect("it was read above");
                self.wrong(&file_key, place, format!("expected either {name} or {name}_file"));
                None
            }
            (Some(value), None) => Some(SecretSource::Value(value)),
            (None, file) => file.map(|path| SecretSource::File(path.into())),
        }
    }
}

/// Cuts what is shown of a file to a short line.
fn abridged(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

pub(super) fn text(value: &DeValue<'_>) -> Read<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "expected a text in quotes".to_owned())
}

fn texts(value: &DeValue<'_>) -> Read<Vec<Arc<str>>> {
    let wrong = || "expected a list of texts".to_owned();
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|value| value.get_ref().as_str().map(shared).ok_or_else(wrong)).collect()
}

fn boolean(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| "expected true or false".to_owned())
}

fn integer(value: &DeValue<'_>) -> Read<i64> {
    let digits = value.as_integer().map(|number| number.to_string().replace('_', ""));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| "expected a whole number".to_owned())
}

fn count(value: &DeValue<'_>) -> Read<usize> {
    usize::try_from(integer(value)?).map_err(|_| "expected a whole number from 0".to_owned())
}

fn bounded(value: &DeValue<'_>, min: usize, max: usize) -> Read<usize> {
    let number = count(value).ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("expected {min} to {max}"))
}

/// Reads a number, or a text with a number and a unit.
fn number(value: &DeValue<'_>) -> Read<f64> {
    let digits = match value {
        DeValue::Integer(_) => return integer(value).map(|number| number as f64),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::String(text) => text.to_string(),
        _ => return Err("expected a number".to_owned()),
    };
    quantity(&digits)
}

pub(super) fn read_duration(value: &DeValue<'_>) -> Read<Duration> {
    match value.as_str() {
        Some(text) => duration(text),
        None => Err("expected a duration in quotes, such as \"5m\"".to_owned()),
    }
}

fn read_aggregate(value: &DeValue<'_>) -> Read<Aggregate> {
    value
        .as_str()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| format!("expected {AGGREGATES}"))
}

pub(super) fn condition(value: &DeValue<'_>) -> Read<Condition> {
    match value.as_str() {
        Some(text) => Condition::parse(text),
        None => Err("expected a condition in quotes, such as \"> 0.8\"".to_owned()),
    }
}

fn selector(value: &DeValue<'_>) -> Read<Selector> {
    Selector::parse(&text(value)?).map_err(|error| error.to_string())
}

fn matchers(value: &DeValue<'_>) -> Read<Vec<Matcher>> {
    let matchers = Selector::parse_matchers(&text(value)?).map_err(|error| error.to_string())?;
    match matchers.is_empty() {
        true => Err("expected at least one matcher, such as severity=\"critical\"".to_owned()),
        false => Ok(matchers),
    }
}

pub(super) fn labels(value: &DeValue<'_>) -> Read<Labels> {
    let wrong = || "expected a table of texts, such as { team = \"platform\" }".to_owned();
    let table = value.as_table().ok_or_else(wrong)?;
    let pairs = table
        .iter()
        .map(|(name, value)| Ok((&**name.get_ref(), value.get_ref().as_str().ok_or_else(wrong)?)));
    Ok(Labels::new(pairs.collect::<Read<Vec<_>>>()?))
}

fn url(value: &DeValue<'_>) -> Read<Arc<str>> {
    let text = text(value)?;
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let host = host.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match host {
        None | Some("") => Err("expected an address with http:// or https://".to_owned()),
        Some(host) if host.contains('@') => {
            Err("expected no password in the address, use token or headers".to_owned())
        }
        Some(_) => Ok(shared(&text)),
    }
}

#[cfg(test)]
mod tests;
