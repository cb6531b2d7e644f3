//! What stands in the brackets of an attribute, and what of it cannot be.
//!
//! Every problem is found in one reading, each at its own token, because whoever fixes them wants one
//! round with the compiler.

use proc_macro2::{Ident, Span};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, Lit, LitInt, LitStr, Path, Token, bracketed, parenthesized};

use crate::quantity::{self, Time};

/// Collects problems, to report all of them.
#[derive(Default)]
pub(crate) struct Problems(Option<syn::Error>);

impl Problems {
    pub(crate) fn add(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn at(&mut self, span: Span, message: impl std::fmt::Display) {
        self.add(syn::Error::new(span, message));
    }

    /// Keeps a value, or notes why there is none.
    pub(crate) fn keep<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    pub(crate) fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Which attribute is read: each takes some of the options.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Optimize,
    Cached,
    Invalidate,
    Monitored,
}

impl Attribute {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Optimize => "optimize",
            Self::Cached => "cached",
            Self::Invalidate => "cache_invalidate",
            Self::Monitored => "monitored",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Optimize => &[
                "io", "cpu", "memory", "cache", "key", "skip", "tags", "priority", "timeout",
                "retry", "retry_if", "breaker", "name", "perf", "crate",
            ],
            Self::Cached => &[
                "ttl",
                "stale",
                "stale_if_error",
                "tiers",
                "cache_errors",
                "cache_none",
                "schema",
                "key",
                "skip",
                "tags",
                "timeout",
                "retry",
                "retry_if",
                "breaker",
                "name",
                "perf",
                "crate",
            ],
            Self::Invalidate => &["of", "name", "key", "tags", "all", "perf", "crate"],
            Self::Monitored => &["name", "labels", "perf", "crate"],
        }
    }
}

/// What stands in `cache(..)`.
const CACHE_OPTIONS: &[&str] =
    &["ttl", "stale", "stale_if_error", "tiers", "cache_errors", "cache_none", "schema", "name"];

/// Where the body runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Io,
    Cpu,
    /// On the CPU lane, in a scope that measures its memory and gives it back.
    Memory,
}

impl Lane {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// How results are kept.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) ttl: Option<Time>,
    pub(crate) stale: Option<(Span, Time)>,
    pub(crate) stale_if_error: Option<(Span, Time)>,
    /// Which tiers below memory, if not all that are configured.
    pub(crate) tiers: Option<Tiers>,
    pub(crate) errors: Option<(Span, Option<Time>)>,
    pub(crate) none: Option<(Span, Option<Time>)>,
    pub(crate) schema: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Tiers {
    pub(crate) span: Span,
    pub(crate) disk: bool,
    pub(crate) redis: bool,
}

/// One tag: text with captures, or an expression.
#[derive(Debug)]
pub(crate) enum Tag {
    Text(LitStr),
    Expression(Box<Expr>),
}

/// All options of all attributes; each attribute fills in its own.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) lane: Option<(Span, Lane)>,
    pub(crate) cache: Option<Cache>,
    pub(crate) key: Option<Expr>,
    pub(crate) skip: Vec<Ident>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) priority: Option<(Span, Ident)>,
    pub(crate) timeout: Option<(Span, Time)>,
    pub(crate) retry: Option<(Span, u32)>,
    pub(crate) retry_if: Option<Expr>,
    pub(crate) breaker: Option<(Span, Expr)>,
    /// How many bytes the body is declared to need.
    pub(crate) memory: Option<(Span, u64)>,
    pub(crate) name: Option<LitStr>,
    pub(crate) perf: Option<Expr>,
    pub(crate) krate: Option<Path>,
    pub(crate) of: Vec<Path>,
    pub(crate) all: Option<Span>,
    pub(crate) labels: Vec<(Ident, LitStr)>,
    seen: Vec<String>,
}

impl Options {
    /// The path of the crate in what is generated.
    pub(crate) fn krate(&self) -> Path {
        self.krate.clone().unwrap_or_else(|| syn::parse_quote!(::ultra_perf))
    }

    /// Reads the options of an attribute.
    pub(crate) fn read(
        attribute: Attribute,
        tokens: proc_macro2::TokenStream,
        problems: &mut Problems,
    ) -> Self {
        let mut options = Self::default();
        if attribute == Attribute::Cached {
            options.cache = Some(Cache::default());
        }
        let parse = |input: ParseStream<'_>| {
            while !input.is_empty() {
                let name = input.call(Ident::parse_any)?;
                options.option(attribute, attribute.options(), &name, input, problems)?;
                if input.is_empty() {
                    break;
                }
                input.parse::<Token![,]>()?;
            }
            Ok(())
        };
        let parsed = syn::parse::Parser::parse2(parse, tokens);
        problems.keep(parsed);
        options
    }

    /// Reads one option, after its name. An error ends the reading; what is wrong with a value does not.
    fn option(
        &mut self,
        attribute: Attribute,
        known: &[&str],
        name: &Ident,
        input: ParseStream<'_>,
        problems: &mut Problems,
    ) -> syn::Result<()> {
        let text = name.unraw().to_string();
        if !known.contains(&text.as_str()) {
            problems.at(name.span(), unknown(attribute, &text, known));
            return skip_value(input);
        }
        if self.seen.contains(&text) {
            problems.at(name.span(), format!("`{text}` is given twice"));
            return skip_value(input);
        }
        let span = name.span();
        match text.as_str() {
            "io" => self.set_lane(span, Lane::Io, problems),
            "cpu" => self.set_lane(span, Lane::Cpu, problems),
            "memory" if input.peek(Token![=]) => {
                let size: LitStr = value(input, "a size, such as \"64MiB\"")?;
                self.memory = problems.keep(quantity::bytes(&size)).map(|bytes| (span, bytes));
                // Both `memory` and `memory = ".."` may be there.
                return Ok(());
            }
            "memory" => {
                self.set_lane(span, Lane::Memory, problems);
                if input.peek(syn::token::Paren) {
                    let content;
                    parenthesized!(content in input);
                    let size: LitStr = content.parse()?;
                    self.memory = problems.keep(quantity::bytes(&size)).map(|bytes| (span, bytes));
                }
                return Ok(());
            }
            "cache" => {
                let mut cache = Cache::default();
                if input.peek(Token![=]) {
                    input.parse::<Token![=]>()?;
                    cache.ttl = problems.keep(Time::of(input.parse()?));
                    self.cache = Some(cache);
                } else {
                    self.cache = Some(cache);
                    if input.peek(syn::token::Paren) {
                        let content;
                        parenthesized!(content in input);
                        while !content.is_empty() {
                            let name = content.call(Ident::parse_any)?;
                            self.option(attribute, CACHE_OPTIONS, &name, &content, problems)?;
                            if content.is_empty() {
                                break;
                            }
                            content.parse::<Token![,]>()?;
                        }
                    }
                }
            }
            "ttl" => self.cache().ttl = time(input, problems)?,
            "stale" => self.cache().stale = time(input, problems)?.map(|time| (span, time)),
            "stale_if_error" => {
                self.cache().stale_if_error = time(input, problems)?.map(|time| (span, time));
            }
            "cache_errors" => self.cache().errors = Some((span, optional_time(input, problems)?)),
            "cache_none" => self.cache().none = Some((span, optional_time(input, problems)?)),
            "schema" => {
                let number: LitInt = value(input, "a number")?;
                self.cache().schema = problems.keep(number.base10_parse());
            }
            "tiers" => {
                input.parse::<Token![=]>()?;
                let content;
                let bracket = bracketed!(content in input);
                let names = Punctuated::<Ident, Token![,]>::parse_terminated(&content)?;
                self.cache().tiers = tiers(bracket.span.join(), &names, problems);
            }
            "key" => self.key = Some(expression(input)?),
            "skip" => {
                let content;
                parenthesized!(content in input);
                let names = Punctuated::<Ident, Token![,]>::parse_terminated_with(
                    &content,
                    Ident::parse_any,
                )?;
                self.skip = names.into_iter().collect();
            }
            "tags" => {
                input.parse::<Token![=]>()?;
                let content;
                bracketed!(content in input);
                let tags = Punctuated::<Expr, Token![,]>::parse_terminated(&content)?;
                self.tags = tags.into_iter().map(tag).collect();
            }
            "priority" => {
                input.parse::<Token![=]>()?;
                let path: Path = input.parse()?;
                self.priority = priority(&path, problems).map(|level| (span, level));
            }
            "timeout" => self.timeout = time(input, problems)?.map(|time| (span, time)),
            "retry" => {
                let number: LitInt = value(input, "how many times, such as 3")?;
                self.retry = retries(&number, problems).map(|times| (span, times));
            }
            "retry_if" => self.retry_if = Some(expression(input)?),
            "breaker" => self.breaker = Some((span, expression(input)?)),
            "name" => {
                let name: LitStr = value(input, "text")?;
                check_name(attribute, &name, problems);
                self.name = Some(name);
            }
            "perf" => self.perf = Some(expression(input)?),
            "crate" => {
                input.parse::<Token![=]>()?;
                self.krate = Some(input.call(Path::parse_mod_style)?);
            }
            "of" => {
                input.parse::<Token![=]>()?;
                if input.peek(syn::token::Bracket) {
                    let content;
                    bracketed!(content in input);
                    let paths = Punctuated::<Path, Token![,]>::parse_terminated(&content)?;
                    self.of = paths.into_iter().collect();
                } else {
                    self.of = vec![input.parse()?];
                }
            }
            "all" => self.all = Some(span),
            "labels" => {
                let content;
                parenthesized!(content in input);
                let labels = Punctuated::<Label, Token![,]>::parse_terminated(&content)?;
                self.labels = labels.into_iter().map(|Label(name, value)| (name, value)).collect();
            }
            _ => unreachable!("every known option is read"),
        }
        self.seen.push(text);
        Ok(())
    }

    fn cache(&mut self) -> &mut Cache {
        self.cache.get_or_insert_with(Cache::default)
    }

    fn set_lane(&mut self, span: Span, lane: Lane, problems: &mut Problems) {
        match self.lane {
            Some((_, other)) => {
                let message =
                    format!("`{}` and `{}`: a body runs in one lane", other.name(), lane.name());
                problems.at(span, message);
            }
            None => self.lane = Some((span, lane)),
        }
    }
}

/// `name = "value"`
struct Label(Ident, LitStr);

impl Parse for Label {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.call(Ident::parse_any)?;
        input.parse::<Token![=]>()?;
        let expected = "a label's value is text that is known when the program is compiled";
        let value = input.parse().map_err(|error| syn::Error::new(error.span(), expected))?;
        Ok(Self(name, value))
    }
}

fn value<T: Parse>(input: ParseStream<'_>, expected: &str) -> syn::Result<T> {
    input.parse::<Token![=]>()?;
    input.parse().map_err(|error| syn::Error::new(error.span(), format!("expected {expected}")))
}

fn expression(input: ParseStream<'_>) -> syn::Result<Expr> {
    input.parse::<Token![=]>()?;
    input.parse()
}

fn time(input: ParseStream<'_>, problems: &mut Problems) -> syn::Result<Option<Time>> {
    let expr = expression(input)?;
    Ok(problems.keep(Time::of(expr)))
}

fn optional_time(input: ParseStream<'_>, problems: &mut Problems) -> syn::Result<Option<Time>> {
    if input.peek(Token![=]) { time(input, problems) } else { Ok(None) }
}

/// Goes past the value of an option that is not known.
fn skip_value(input: ParseStream<'_>) -> syn::Result<()> {
    if input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        input.parse::<Expr>()?;
    } else if input.peek(syn::token::Paren) {
        let content;
        parenthesized!(content in input);
        content.parse::<proc_macro2::TokenStream>()?;
    }
    Ok(())
}

fn unknown(attribute: Attribute, name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (distance(name, known), *known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .min();
    let hint = match (name, nearest) {
        ("ttl" | "stale" | "tiers", _) if attribute == Attribute::Optimize => {
            format!("it stands in the cache's: `cache({name} = ..)`")
        }
        (_, Some((_, nearest))) => format!("did you mean `{nearest}`?"),
        _ => format!("expected one of {}", known.join(", ")),
    };
    format!("`{}` has no option `{name}`: {hint}", attribute.name())
}

/// How many letters differ, by Levenshtein.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, candidate) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(*candidate != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

fn tag(expr: Expr) -> Tag {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Tag::Text(text),
        expr => Tag::Expression(Box::new(expr)),
    }
}

fn tiers(
    span: Span,
    names: &Punctuated<Ident, Token![,]>,
    problems: &mut Problems,
) -> Option<Tiers> {
    let mut tiers = Tiers { span, disk: false, redis: false };
    let mut memory = false;
    for name in names {
        match name.to_string().as_str() {
            "memory" => memory = true,
            "disk" => tiers.disk = true,
            "redis" => tiers.redis = true,
            other => {
                let message = format!("`{other}` is no tier: expected memory, disk or redis");
                problems.at(name.span(), message);
            }
        }
    }
    if !memory {
        problems.at(span, "every cache has a tier in memory: begin with `memory`");
    }
    Some(tiers)
}

fn priority(path: &Path, problems: &mut Problems) -> Option<Ident> {
    let last = path.segments.last()?;
    let name = last.ident.to_string();
    if ["Critical", "High", "Normal", "Low"].contains(&name.as_str()) {
        return Some(last.ident.clone());
    }
    let message = format!("`{name}` is no priority: expected Critical, High, Normal or Low");
    problems.at(path.span(), message);
    None
}

fn retries(number: &LitInt, problems: &mut Problems) -> Option<u32> {
    match number.base10_parse::<u32>() {
        Ok(times @ 1..=99) => Some(times),
        _ => {
            let message = "how often a call that failed is made again: expected 1 to 99";
            problems.at(number.span(), message);
            None
        }
    }
}

fn check_name(attribute: Attribute, name: &LitStr, problems: &mut Problems) {
    let text = name.value();
    let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let plain = |part: &str| !part.is_empty() && part.bytes().all(of_name);
    if text.len() > 64 || !text.split('.').all(plain) {
        let what = if attribute == Attribute::Monitored { "a function" } else { "a cache" };
        let message = format!(
            "{text:?} is no name of {what}: expected 1 to 64 letters, digits, '_' or '-', and '.' between them"
        );
        problems.at(name.span(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(attribute: Attribute, text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        Options::read(attribute, text.parse().expect("tokens"), &mut problems);
        let errors = problems.finish().err().into_iter().flatten();
        errors.map(|error| error.to_string()).collect()
    }

    #[test]
    fn an_unknown_option_is_told_its_nearest_name() {
        let said = problems_of(Attribute::Cached, "tll = \"1m\"");
        assert_eq!(said, ["`cached` has no option `tll`: did you mean `ttl`?"]);
        let said = problems_of(Attribute::Optimize, "ttl = \"1m\"");
        assert!(said[0].ends_with("it stands in the cache's: `cache(ttl = ..)`"), "{said:?}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "io, cpu, cache(ttl = \"10\", tiers = [disc]), retry = 0, name = \"a b\", io";
        assert_eq!(problems_of(Attribute::Optimize, text).len(), 7);
    }

    #[test]
    fn memory_is_a_lane_and_a_size() {
        let mut problems = Problems::default();
        let tokens = "memory(\"64MiB\")".parse().expect("tokens");
        let options = Options::read(Attribute::Optimize, tokens, &mut problems);
        assert_eq!(options.lane.map(|(_, lane)| lane), Some(Lane::Memory));
        assert_eq!(options.memory.map(|(_, bytes)| bytes), Some(64 << 20));
        let tokens = "cpu, memory = \"1MiB\"".parse().expect("tokens");
        let options = Options::read(Attribute::Optimize, tokens, &mut problems);
        assert_eq!(options.lane.map(|(_, lane)| lane), Some(Lane::Cpu));
        assert_eq!(options.memory.map(|(_, bytes)| bytes), Some(1 << 20));
        assert!(problems.finish().is_ok());
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("ttl", "ttl"), 0);
    }
}
