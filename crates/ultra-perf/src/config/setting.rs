//! The types that a key may have: how each is read from a source and printed again.
//!
//! A source gives a [`Raw`] value; a [`KeyType`] turns it into a Rust type or says what would be
//! right. A file's values keep their TOML type, so `"true"` for `true` is noticed there; the
//! environment and the command line know text only and are read more generously.

use std::{borrow::Cow, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    quantity::{ByteSize, format_duration, parse_duration},
    url::{BackendUrl, RedisUrl, redact_malformed},
};

/// A value as its source gave it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// From the environment, the command line or code.
    Text(String),
    /// Likewise, under a foreign name by which a bare number counts such units.
    Bare {
        text: String,
        unit: &'static str,
    },
    /// A string of TOML.
    String(String),
    Integer(i128),
    Float(String),
    Boolean(bool),
    List(Vec<String>),
    /// Of a TOML type that no key has; the text names it.
    Other(&'static str),
}

impl Raw {
    /// The text, if the value is one.
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Bare { text, .. } | Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value in JSON, which a change reads as the same value.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Text(text) | Self::String(text) => json!(text),
            Self::Bare { .. } => json!(self.quantity()),
            Self::Integer(number) => match i64::try_from(*number) {
                Ok(number) => json!(number),
                Err(_) => json!(number.to_string()),
            },
            Self::Float(text) => json!(text),
            Self::Boolean(yes) => json!(yes),
            Self::List(items) => json!(items),
            Self::Other(_) => Value::Null,
        }
    }

    /// The text of a quantity, with its unit if the source leaves that to its name.
    fn quantity(&self) -> Option<Cow<'_, str>> {
        let text = self.text()?;
        match self {
            Self::Bare { unit, .. }
                if text.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.') =>
            {
                Some(Cow::Owned(format!("{}{unit}", text.trim())))
            }
            _ => Some(Cow::Borrowed(text)),
        }
    }

    /// What a problem report shows: one line, bounded, without control characters.
    pub(super) fn shown(&self, redact: fn(&str) -> String) -> String {
        let quoted = |text: &str| {
            let text = redact(text);
            match text.char_indices().nth(80) {
                Some((end, _)) => format!("\"{}...\"", text[..end].escape_debug()),
                None => format!("\"{}\"", text.escape_debug()),
            }
        };
        match self {
            Self::Text(text) | Self::Bare { text, .. } | Self::String(text) => quoted(text),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.clone(),
            Self::Boolean(yes) => yes.to_string(),
            Self::List(items) => {
                let items: Vec<_> = items.iter().take(8).map(|item| quoted(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// A type that a key may have.
pub(super) trait KeyType: Sized {
    /// What a value must be, to follow "must be".
    fn kind() -> String;

    /// What a value is, in a word or two of Markdown.
    fn label() -> String;

    /// The value that stands for "not set", of types that have one.
    fn none() -> Option<Self> {
        None
    }

    /// Reads a value; the error says what would be right.
    fn read(raw: &Raw) -> Result<Self, String>;

    /// Prints the value in the form that `read` takes as text, without secrets.
    fn show(&self) -> String;

    /// Describes a value between these bounds as a file holds it, in JSON Schema.
    fn schema(_least: Option<&str>, _most: Option<&str>) -> Value {
        json!({ "type": "string" })
    }

    /// The value as a file holds it, without secrets.
    fn json(&self) -> Value {
        Value::String(self.show())
    }

    /// Leaves of a text that was given what may be shown, also when it was no such value.
    fn redact(text: &str) -> String {
        text.to_owned()
    }
}

/// The form of a duration, without the order of its units.
const DURATION: &str = r"^\s*(0|([0-9]+(\.[0-9]+)?\s*(d|h|m|s|ms|us|ns)\s*)+)\s*$";

/// The form of a size.
const SIZE: &str = r"^\s*[0-9]{1,20}(\.[0-9]{1,9})?\s*([KkMmGgTt][Ii]?[Bb]|[Bb])?\s*$";

/// Adds the bounds that there are to the schema of a number.
fn bounded(
    mut schema: Value,
    least: Option<impl Serialize>,
    most: Option<impl Serialize>,
) -> Value {
    if let Some(least) = least {
        schema["minimum"] = json!(least);
    }
    if let Some(most) = most {
        schema["maximum"] = json!(most);
    }
    schema
}

/// The usual refusal.
fn refusal<T: KeyType>() -> String {
    format!("must be {}", T::kind())
}

/// Reads a type whose source is text and whose error speaks for itself.
fn read_text<T>(raw: &Raw) -> Result<T, String>
where
    T: KeyType + FromStr<Err: fmt::Display>,
{
    let text = raw.text().ok_or_else(refusal::<T>)?;
    text.parse().map_err(|e: T::Err| e.to_string())
}

impl KeyType for bool {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "type": "boolean" })
    }

    fn json(&self) -> Value {
        json!(self)
    }

    fn kind() -> String {
        "true or false".to_owned()
    }

    fn label() -> String {
        "boolean".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Boolean(yes) => Ok(*yes),
            Raw::String(text) if text == "true" || text == "false" => {
                Err("must be true or false, without quotes".to_owned())
            }
            Raw::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(true),
                "false" | "no" | "off" | "0" => Ok(false),
                _ => Err(refusal::<Self>()),
            },
            _ => Err(refusal::<Self>()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl KeyType for usize {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        let number = |text: &str| text.parse::<Self>().ok();
        let least = least.and_then(number).unwrap_or(0);
        bounded(json!({ "type": "integer" }), Some(least), most.and_then(number))
    }

    fn json(&self) -> Value {
        json!(self)
    }

    fn kind() -> String {
        "a whole number".to_owned()
    }

    fn label() -> String {
        "number".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Integer(number) => Self::try_from(*number).map_err(|_| refusal::<Self>()),
            Raw::Text(text) => text.trim().parse().map_err(|_| refusal::<Self>()),
            Raw::String(text) if text.parse::<Self>().is_ok() => {
                Err("must be a whole number, without quotes".to_owned())
            }
            _ => Err(refusal::<Self>()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl KeyType for f64 {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        let number = |text: &str| text.parse::<Self>().ok();
        bounded(json!({ "type": "number" }), least.and_then(number), most.and_then(number))
    }

    fn json(&self) -> Value {
        json!(self)
    }

    fn kind() -> String {
        "a number such as 1 or 0.5".to_owned()
    }

    fn label() -> String {
        "number".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let number: Option<Self> = match raw {
            Raw::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            Raw::Float(text) | Raw::Text(text) => text.trim().parse().ok(),
            Raw::String(text) if text.parse::<Self>().is_ok() => {
                return Err(format!("{}, without quotes", refusal::<Self>()));
            }
            _ => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(refusal::<Self>)
    }

    fn show(&self) -> String {
        // Zero has one spelling.
        (self + 0.0).to_string()
    }
}

impl KeyType for Duration {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "type": "string", "pattern": DURATION })
    }

    fn kind() -> String {
        "a duration with a unit, such as \"30s\", \"250ms\" or \"1h30m\"".to_owned()
    }

    fn label() -> String {
        "duration".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.quantity().ok_or_else(refusal::<Self>)?;
        parse_duration(&text).map_err(|e| e.to_string())
    }

    fn show(&self) -> String {
        format_duration(*self)
    }
}

impl KeyType for ByteSize {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        let bytes = |text: &str| text.parse::<Self>().ok().map(Self::as_u64);
        let least = least.and_then(bytes).unwrap_or(0);
        let number = bounded(json!({ "type": "integer" }), Some(least), most.and_then(bytes));
        json!({ "anyOf": [{ "type": "string", "pattern": SIZE }, number] })
    }

    fn kind() -> String {
        "a size such as \"64MiB\" or \"1GB\"".to_owned()
    }

    fn label() -> String {
        "size".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Integer(bytes) => {
                u64::try_from(*bytes).map(Self::new).map_err(|_| refusal::<Self>())
            }
            Raw::Bare { .. } => match raw.quantity() {
                Some(text) => read_text(&Raw::Text(text.into_owned())),
                None => Err(refusal::<Self>()),
            },
            _ => read_text(raw),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl KeyType for SocketAddr {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "type": "string", "pattern": ":[0-9]{1,5}\\s*$" })
    }

    fn kind() -> String {
        "an address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned()
    }

    fn label() -> String {
        "address".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().ok_or_else(refusal::<Self>)?;
        text.trim().parse().map_err(|_| refusal::<Self>())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl KeyType for String {
    fn kind() -> String {
        "a text".to_owned()
    }

    fn label() -> String {
        "text".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        raw.text().map(str::to_owned).ok_or_else(refusal::<Self>)
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl KeyType for PathBuf {
    fn kind() -> String {
        "the path of a directory".to_owned()
    }

    fn label() -> String {
        "path".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().filter(|text| !text.is_empty() && !text.contains('\0'));
        let text = text.ok_or_else(refusal::<Self>)?;
        if text == "~" || text.starts_with("~/") {
            return Err("must be a path written out; only a shell knows ~".to_owned());
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl KeyType for BackendUrl {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "type": "string", "pattern": "^\\s*[Hh][Tt][Tt][Pp]://" })
    }

    fn kind() -> String {
        "an http:// URL such as \"http://127.0.0.1:8000\"".to_owned()
    }

    fn label() -> String {
        "URL".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        read_text(raw)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn redact(text: &str) -> String {
        if text.contains('@') { redact_malformed(text) } else { text.to_owned() }
    }
}

impl KeyType for RedisUrl {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        let pattern = "^\\s*([Rr][Ee][Dd][Ii][Ss]|[Vv][Aa][Ll][Kk][Ee][Yy])[Ss]?(-[A-Za-z]+)?://.";
        json!({ "type": "string", "pattern": pattern })
    }

    fn kind() -> String {
        "a URL such as \"redis://127.0.0.1:6379\", with rediss:// for TLS and redis-cluster:// for a \
         cluster"
            .to_owned()
    }

    fn label() -> String {
        "URL".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        read_text(raw)
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn redact(text: &str) -> String {
        match text.parse::<Self>() {
            Ok(url) => url.to_string(),
            // No scheme and no credentials: most likely a bare address, which helps to see.
            Err(_) if text.parse::<SocketAddr>().is_ok() || text.len() < 2 => text.to_owned(),
            Err(_) => redact_malformed(text),
        }
    }
}

/// `none` or a value. An empty text is `none` too: so that `NAME=` in an environment unsets.
impl<T: KeyType> KeyType for Option<T> {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        json!({ "anyOf": [T::schema(least, most), { "enum": ["none", ""] }] })
    }

    fn json(&self) -> Value {
        self.as_ref().map_or_else(|| json!("none"), T::json)
    }

    fn kind() -> String {
        format!("{}, or \"none\"", T::kind())
    }

    fn label() -> String {
        format!("{} or `none`", T::label())
    }

    fn none() -> Option<Self> {
        Some(None)
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw.text().map(str::trim) {
            Some("" | "none") => Ok(None),
            _ => T::read(raw).map(Some),
        }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::show)
    }

    fn redact(text: &str) -> String {
        if matches!(text.trim(), "" | "none") { text.to_owned() } else { T::redact(text) }
    }
}

/// A choice of words, in the file's spelling.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        $Name:ident { $( $(#[$variant_meta:meta])* $Variant:ident = $word:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Name { $( $(#[$variant_meta])* $Variant, )+ }

        impl $Name {
            pub(super) const ALL: &[(&str, Self)] = &[$(($word, Self::$Variant)),+];
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$Variant => $word,)+ })
            }
        }

        impl KeyType for $Name {
            fn schema(_: Option<&str>, _: Option<&str>) -> Value {
                let words: Vec<_> = Self::ALL.iter().map(|(word, _)| *word).collect();
                json!({ "enum": words })
            }

            fn kind() -> String {
                one_of(Self::ALL.iter().map(|(word, _)| *word))
            }

            fn label() -> String {
                Self::kind().replace('"', "`")
            }

            fn read(raw: &Raw) -> Result<Self, String> {
                let word = raw.text().map(str::trim);
                let found = Self::ALL.iter().find(|(known, _)| word == Some(*known));
                found.map(|(_, value)| *value).ok_or_else(refusal::<Self>)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}

/// A share of a whole: reads and prints `0.8`; `80%` is read too.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// Returns the share, from 0 to 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.0
    }
}

impl KeyType for Share {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        let number = |text: &str| text.parse::<f64>().ok();
        let (least, most) = (least.and_then(number), most.and_then(number));
        let number = bounded(json!({ "type": "number" }), least.or(Some(0.0)), most.or(Some(1.0)));
        json!({ "anyOf": [number, { "type": "string", "pattern": "^\\s*[0-9.]+\\s*%?\\s*$" }] })
    }

    fn json(&self) -> Value {
        json!(self.0)
    }

    fn kind() -> String {
        "a share such as 0.8 or \"80%\"".to_owned()
    }

    fn label() -> String {
        "share".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let share = match raw {
            Raw::Float(text) => text.parse().ok(),
            Raw::Integer(0) => Some(0.0),
            Raw::Integer(1) => Some(1.0),
            _ => raw.text().and_then(|text| match text.trim().strip_suffix('%') {
                Some(percent) => percent.trim().parse().ok().map(|it: f64| it / 100.0),
                None => text.trim().parse().ok(),
            }),
        };
        share.filter(|it| (0.0..=1.0).contains(it)).map(Self).ok_or_else(refusal::<Self>)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// Prints `"a", "b" or "c"`.
fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    match words.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

choice! {
    /// Chooses the defaults: how much of what there is gets used.
    ///
    /// [`levels()`](super::levels) lists what each of them chooses, and why.
    #[derive(Default, PartialOrd, Ord)]
    OptimizationLevel {
        /// The memory cache, monitoring and alerts.
        Basic = "basic",
        /// What pays everywhere: all tiers, compression, breakers, a guard over memory.
        #[default]
        Advanced = "advanced",
        /// What pays under load: policies, limits and refreshes that follow what is measured.
        Ultra = "ultra",
        /// What has a price: hedging, kept threads, tracking, advice that applies itself.
        Extreme = "extreme",
    }
}

impl FromStr for OptimizationLevel {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(&Raw::Text(text.to_owned())).map_err(|_| ParseLevelError)
    }
}

impl Serialize for OptimizationLevel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Says that a text is no optimization level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be \"basic\", \"advanced\", \"ultra\" or \"extreme\"")]
pub struct ParseLevelError;

choice! {
    /// Says when a value goes to the tiers below memory.
    WritePolicy {
        /// When it is inserted, in the background.
        Through = "through",
        /// When memory evicts it.
        OnEviction = "on-eviction",
    }
}

choice! {
    /// Names the policy by which memory chooses what to keep.
    Policy {
        /// Evicts what was not used for longest.
        Lru = "lru",
        /// Keeps what is used most often of late.
        Lfu = "lfu",
        /// Balances the two by what was evicted too early.
        Arc = "arc",
        /// Tries new entries in a small queue first.
        S3Fifo = "s3-fifo",
        /// Runs the others on a sample, and follows the best.
        Adaptive = "adaptive",
    }
}

choice! {
    /// Names the policy by which the next backend is chosen.
    Balancing {
        /// The least latency times requests in flight, of a few at random.
        PeakEwma = "peak-ewma",
        /// The fewest requests in flight, of a few at random.
        LeastRequest = "least-request",
        /// Each in turn.
        RoundRobin = "round-robin",
        /// Each in turn, as often as its weight says.
        SmoothWeightedRoundRobin = "smooth-weighted-round-robin",
        /// Any, as likely as its weight says.
        WeightedRandom = "weighted-random",
        /// The owner of the request's target on a ring of hashes.
        RingHash = "ring-hash",
        /// The owner of the request's target in a table of hashes.
        Maglev = "maglev",
    }
}

choice! {
    /// Says where circuit breakers are used.
    BreakerMode {
        /// Where there are several backends.
        Auto = "auto",
        /// For every backend.
        On = "on",
        /// Nowhere.
        Off = "off",
    }
}

choice! {
    /// Names the structure that holds the entries in memory.
    MemoryEngine {
        /// The project's own, with every policy.
        Switchable = "switchable",
        /// quick_cache, with CLOCK-Pro alone.
        ClockPro = "clock-pro",
    }
}

choice! {
    /// Names how values are compressed below memory.
    CompressionMethod {
        /// Each by itself.
        Zstd = "zstd",
        /// With what many small values have in common.
        ZstdDictionary = "zstd-dictionary",
        /// By LZ4; needs a build with the feature `lz4`.
        Lz4 = "lz4",
    }
}

choice! {
    /// Says which values go to the disk.
    Admission {
        /// All of them.
        Everything = "everything",
        /// Those whose key was seen before, not long ago.
        SecondSight = "second-sight",
    }
}

choice! {
    /// Says how memory follows what other machines change in Redis.
    Coherence {
        /// By tracking where the server knows that, and otherwise by messages.
        Auto = "auto",
        /// The server tells of every change (`CLIENT TRACKING`, from Redis 6 on).
        Tracking = "tracking",
        /// The machines tell each other (publish and subscribe).
        PubSub = "pubsub",
        /// Not: entries stay in memory for their time to live.
        Off = "off",
    }
}

choice! {
    /// Names a tier below memory.
    LowerTier {
        /// The Redis tier.
        Redis = "redis",
        /// The disk tier.
        Disk = "disk",
    }
}

choice! {
    /// Names an engine of the disk tier.
    DiskEngine {
        /// The project's own log of segments.
        SegmentLog = "segment-log",
        /// sled 0.34; needs a build with the feature `sled`.
        Sled = "sled",
    }
}

choice! {
    /// Says how log lines look.
    LogFormat {
        /// For people on a terminal, otherwise JSON.
        Auto = "auto",
        /// Text for people.
        Human = "human",
        /// One JSON object per line.
        Json = "json",
    }
}

/// The order in which the tiers below memory are asked: each of them once.
impl KeyType for [LowerTier; 2] {
    fn schema(least: Option<&str>, most: Option<&str>) -> Value {
        let one = LowerTier::schema(least, most);
        json!({ "type": "array", "items": one, "minItems": 2, "maxItems": 2, "uniqueItems": true })
    }

    fn json(&self) -> Value {
        self.map(|tier| tier.to_string()).to_vec().into()
    }

    fn kind() -> String {
        "a list with \"redis\" and \"disk\", each once".to_owned()
    }

    fn label() -> String {
        "list".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let names: Vec<&str> = match raw {
            Raw::List(names) => names.iter().map(String::as_str).collect(),
            Raw::Text(text) => text.split(',').collect(),
            _ => return Err(refusal::<Self>()),
        };
        let tier = |name: &str| LowerTier::read(&Raw::Text(name.to_owned()));
        match names.as_slice() {
            [first, second] => {
                let (first, second) = (tier(first), tier(second));
                match (first, second) {
                    (Ok(first), Ok(second)) if first != second => Ok([first, second]),
                    _ => Err(refusal::<Self>()),
                }
            }
            _ => Err(refusal::<Self>()),
        }
    }

    fn show(&self) -> String {
        self.map(|tier| tier.to_string()).join(",")
    }
}

/// Says when the disk tier asks the operating system to make its writes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fsync {
    /// Never: a crash of the process loses nothing that was flushed, a loss of power may.
    Never,
    /// When this long has passed since the last time.
    Every(Duration),
    /// After every write.
    Always,
}

impl KeyType for Fsync {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        json!({ "anyOf": [
            { "enum": ["never", "always"] },
            { "type": "string", "pattern": DURATION },
        ] })
    }

    fn kind() -> String {
        "\"never\", \"always\" or an interval such as \"1s\"".to_owned()
    }

    fn label() -> String {
        "`never`, `always` or duration".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw.text().map(str::trim) {
            Some("never") => Ok(Self::Never),
            Some("always") => Ok(Self::Always),
            Some(text) => match parse_duration(text) {
                Ok(interval) if !interval.is_zero() => Ok(Self::Every(interval)),
                _ => Err(refusal::<Self>()),
            },
            None => Err(refusal::<Self>()),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Never => "never".to_owned(),
            Self::Every(interval) => format_duration(*interval),
            Self::Always => "always".to_owned(),
        }
    }
}

/// Holds a filter of `tracing`: a level, or directives such as `info,ultra_perf_http=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogFilter(String);

impl LogFilter {
    /// Returns the filter's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl KeyType for LogFilter {
    fn kind() -> String {
        "a level (off, error, warn, info, debug, trace), with exceptions such as \
         \"info,ultra_perf_http=debug\""
            .to_owned()
    }

    fn label() -> String {
        "filter".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = raw.text().map(str::trim).ok_or_else(refusal::<Self>)?;
        let is_level = |level: &str| {
            let levels = ["off", "error", "warn", "info", "debug", "trace"];
            levels.iter().any(|known| known.eq_ignore_ascii_case(level))
        };
        let is_module = |target: &str| {
            let of_name = |b: u8| b.is_ascii_alphanumeric() || b"_:-.".contains(&b);
            !target.is_empty() && target.bytes().all(of_name)
        };
        // A bare word that is no level would be taken for a module, and `inof` would silence all.
        let is_directive = |directive: &str| match directive.split_once('=') {
            Some((target, level)) => is_module(target) && is_level(level),
            None => is_level(directive),
        };
        if text.split(',').map(str::trim).all(is_directive) {
            Ok(Self(text.split(',').map(str::trim).collect::<Vec<_>>().join(",")))
        } else {
            Err(refusal::<Self>())
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `raw` and prints the result, or gives the refusal.
    fn read<T: KeyType>(raw: Raw) -> Result<String, String> {
        T::read(&raw).map(|value| value.show())
    }

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn string(text: &str) -> Raw {
        Raw::String(text.to_owned())
    }

    #[test]
    fn a_file_must_use_the_right_type_and_the_environment_has_only_text() {
        assert_eq!(read::<bool>(text("Yes")), Ok("true".to_owned()));
        assert_eq!(read::<bool>(text("0")), Ok("false".to_owned()));
        assert_eq!(read::<bool>(Raw::Boolean(true)), Ok("true".to_owned()));
        assert_eq!(
            read::<bool>(string("true")),
            Err("must be true or false, without quotes".to_owned())
        );
        assert!(read::<bool>(Raw::Integer(1)).is_err());
        assert_eq!(read::<usize>(text(" 7 ")), Ok("7".to_owned()));
        assert_eq!(
            read::<usize>(string("7")),
            Err("must be a whole number, without quotes".to_owned())
        );
        for raw in [text("0.5"), Raw::Float("0.5".to_owned())] {
            assert_eq!(read::<f64>(raw), Ok("0.5".to_owned()));
        }
        assert_eq!(read::<f64>(Raw::Integer(2)), Ok("2".to_owned()));
        assert_eq!(read::<f64>(text("-0")), Ok("0".to_owned()));
        for raw in [text("NaN"), text("inf"), text(""), string("1"), Raw::Integer(i128::MAX)] {
            assert!(read::<f64>(raw.clone()).is_err(), "{raw:?}");
        }
        for raw in [text("-1"), text("1.5"), Raw::Integer(-1), Raw::Float("1.0".to_owned())] {
            assert_eq!(read::<usize>(raw), Err("must be a whole number".to_owned()));
        }
        assert_eq!(read::<ByteSize>(Raw::Integer(1024)), Ok("1KiB".to_owned()));
        assert!(read::<ByteSize>(Raw::Integer(-1)).is_err());
        assert!(read::<Duration>(Raw::Integer(60)).is_err());
        assert!(read::<SocketAddr>(text(":8080")).is_err());
        assert!(read::<PathBuf>(text("~/cache")).is_err());
        assert!(read::<PathBuf>(text("")).is_err());
        assert!(read::<String>(Raw::Other("a table")).is_err());
    }

    #[test]
    fn only_a_foreign_name_gives_a_bare_number_its_unit() {
        let bare = |text: &str, unit| Raw::Bare { text: text.to_owned(), unit };
        let seconds = |text: &str| read::<Duration>(bare(text, "s"));
        assert_eq!(seconds("3600"), Ok("1h".to_owned()));
        assert_eq!(seconds("0.5"), Ok("500ms".to_owned()));
        assert_eq!(seconds("10m"), Ok("10m".to_owned()));
        assert!(seconds("").is_err());
        assert!(seconds("1.2.3").is_err());
        assert!(read::<Duration>(text("3600")).is_err());
        assert_eq!(read::<Duration>(bare("200", "ms")), Ok("200ms".to_owned()));
        assert_eq!(read::<Option<ByteSize>>(bare("8", "GiB")), Ok("8GiB".to_owned()));
        assert_eq!(read::<Option<ByteSize>>(bare("1GB", "MiB")), Ok("1GB".to_owned()));
        assert_eq!(read::<Option<ByteSize>>(bare("none", "MiB")), Ok("none".to_owned()));
        assert!(read::<ByteSize>(bare("", "MiB")).is_err());
    }

    #[test]
    fn an_option_is_none_by_word_or_by_emptiness() {
        for raw in [text(""), text("none"), string("none")] {
            assert_eq!(read::<Option<usize>>(raw), Ok("none".to_owned()));
        }
        assert_eq!(read::<Option<usize>>(text("3")), Ok("3".to_owned()));
        assert!(read::<Option<usize>>(text("some")).is_err());
    }

    #[test]
    fn words_are_listed_when_none_of_them_was_given() {
        let message = "must be \"auto\", \"human\" or \"json\"".to_owned();
        assert_eq!(read::<LogFormat>(text("yaml")), Err(message));
        let message = "must be \"through\" or \"on-eviction\"".to_owned();
        assert_eq!(read::<WritePolicy>(Raw::Boolean(true)), Err(message));
    }

    #[test]
    fn a_level_reads_what_it_prints_and_they_go_up() {
        for (word, level) in OptimizationLevel::ALL {
            assert_eq!(word.parse(), Ok(*level));
            assert_eq!(level.to_string(), *word);
        }
        assert!(OptimizationLevel::ALL.is_sorted_by_key(|(_, level)| *level));
        let refused = "Ultra".parse::<OptimizationLevel>().unwrap_err().to_string();
        assert_eq!(refused, refusal::<OptimizationLevel>());
    }

    #[test]
    fn the_order_names_each_lower_tier_once() {
        let list =
            |names: &[&str]| Raw::List(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(read::<[LowerTier; 2]>(text("disk, redis")), Ok("disk,redis".to_owned()));
        assert_eq!(read::<[LowerTier; 2]>(list(&["redis", "disk"])), Ok("redis,disk".to_owned()));
        for raw in [text("disk"), text("disk,disk"), list(&[]), list(&["disk", "redis", "disk"])] {
            assert!(read::<[LowerTier; 2]>(raw).is_err());
        }
    }

    #[test]
    fn fsync_is_a_word_or_an_interval() {
        for word in ["never", "always", "1s"] {
            assert_eq!(read::<Fsync>(text(word)), Ok(word.to_owned()));
        }
        for wrong in ["", "0s", "sometimes", "1"] {
            assert!(read::<Fsync>(text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_a_number_or_a_percentage() {
        for raw in [text("0.8"), text(" 80 % "), string("80%"), Raw::Float("0.8".to_owned())] {
            assert_eq!(read::<Share>(raw), Ok("0.8".to_owned()));
        }
        assert_eq!(read::<Share>(Raw::Integer(1)), Ok("1".to_owned()));
        for raw in [text("80"), text("-0.1"), text("NaN"), text(""), Raw::Integer(2)] {
            assert!(read::<Share>(raw).is_err());
        }
    }

    #[test]
    fn a_log_filter_has_known_levels() {
        for good in ["info", "WARN", "info,ultra_perf_http=debug", "off, a::b=trace"] {
            assert!(read::<LogFilter>(text(good)).is_ok(), "{good}");
        }
        for wrong in ["", "inof", "info,", "a=loud", "=info", "info;debug"] {
            assert!(read::<LogFilter>(text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_of_a_value_is_short_and_harmless() {
        let plain = |raw: Raw| raw.shown(str::to_owned);
        assert_eq!(plain(text("a\u{1b}[31m\n")), r#""a\u{1b}[31m\n""#);
        assert_eq!(plain(text(&"x".repeat(500))).len(), 85);
        let list = Raw::List(vec!["redis://:hunter2@h".to_owned()]);
        assert_eq!(list.shown(RedisUrl::redact), r#"["redis://:***@h"]"#);
        assert_eq!(text("http://:hunter2@h").shown(RedisUrl::redact), "\"http://***\"");
        assert_eq!(text("hunter2").shown(RedisUrl::redact), "\"***\"");
        assert_eq!(text("http://me:hunter2@h").shown(BackendUrl::redact), "\"http://***\"");
        assert_eq!(text("127.0.0.1:6379").shown(RedisUrl::redact), "\"127.0.0.1:6379\"");
    }
}
