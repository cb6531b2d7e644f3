//! `Cache-Control`, read once into plain data (RFC 9111 section 5.2).
//!
//! Lenient in form, strict in meaning. Names are case-insensitive, unknown directives are skipped,
//! both `name=token` and `name="quoted"` are read, several lines count as one list. A number that
//! is none counts as zero, so that broken freshness information means stale (section 4.2.1); one
//! that overflows is 2^31 seconds (section 1.2.2). Repeated directives keep the most restrictive
//! value. A list of fields (`private="a, b"`) that cannot be read counts as the directive without
//! a list, which is the wider ban.

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, PRAGMA};

use super::Policy;
use super::fields::{tokens, trim};
use super::targeted;

/// What an absent argument of `max-stale` allows: any staleness.
const ANY_S: u32 = u32::MAX;

/// Value that stands for delta-seconds too large to represent (RFC 9111 section 1.2.2).
pub(super) const DELTA_MAX_S: u32 = 1 << 31;

/// Holds the cache directives of one request or response; seconds throughout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache` without a list of fields.
    pub no_cache: bool,
    /// `private` without a list of fields.
    pub private: bool,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `only-if-cached`, of a request.
    pub only_if_cached: bool,
    /// `max-age`.
    pub max_age_s: Option<u32>,
    /// `s-maxage`.
    pub s_maxage_s: Option<u32>,
    /// `min-fresh`, of a request.
    pub min_fresh_s: Option<u32>,
    /// `max-stale`, of a request; `u32::MAX` when it names no limit.
    pub max_stale_s: Option<u32>,
    /// `stale-while-revalidate`.
    pub stale_while_revalidate_s: Option<u32>,
    /// `stale-if-error`.
    pub stale_if_error_s: Option<u32>,
    /// Fields named by `no-cache="..."`.
    pub no_cache_fields: Vec<HeaderName>,
    /// Fields named by `private="..."`.
    pub private_fields: Vec<HeaderName>,
    /// Whether a targeted field was read, so that `Expires` does not count.
    pub targeted: bool,
    /// `assumed`, of a targeted field: a cache gave the lifetime to an answer that says nothing of
    /// caching, so it is for nobody who has credentials or cookies.
    pub assumed: bool,
}

/// The argument of one directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument<'a> {
    Missing,
    Text(&'a [u8]),
    /// Present, and of a type that means nothing for a cache directive.
    Opaque,
}

impl CacheControl {
    /// Reads the lines of one or more `Cache-Control` fields.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut all = Self::default();
        for line in lines {
            for item in Items::new(line.as_bytes()) {
                let (name, argument) = match item.iter().position(|&byte| byte == b'=') {
                    Some(at) => (trim(&item[..at]), Argument::Text(unquote(trim(&item[at + 1..])))),
                    None => (item, Argument::Missing),
                };
                all.apply(name, argument);
            }
        }
        all
    }

    /// Reads a request's directives; `None` when it has none.
    ///
    /// `Pragma: no-cache` counts as `no-cache` where `Cache-Control` is absent (section 5.4).
    ///
    /// # Cost
    ///
    /// Two header look-ups and no allocation when the request has neither field.
    pub fn of_request(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(CACHE_CONTROL) {
            return Some(Self::parse(headers.get_all(CACHE_CONTROL)));
        }
        pragma_no_cache(headers).then(|| Self { no_cache: true, ..Self::default() })
    }

    /// Reads a response's directives from the first targeted field that is valid, else from
    /// `Cache-Control`, else from `Pragma`.
    pub fn of_response(policy: &Policy, headers: &HeaderMap) -> Self {
        for name in &policy.targeted_fields {
            if headers.contains_key(name)
                && let Some(all) = targeted::parse(headers.get_all(name))
            {
                return all;
            }
        }
        // RFC 9111 gives `Pragma` no meaning in responses; who sends it wants no caching.
        Self::of_request(headers).unwrap_or_default()
    }

    /// Says whether the response carries a lifetime or a word that makes it cacheable by itself
    /// (RFC 9111 section 3, last condition), `Expires` aside.
    pub(super) fn is_explicit(&self) -> bool {
        self.public || self.max_age_s.is_some() || self.s_maxage_s.is_some()
    }

    /// Takes in one directive.
    pub(super) fn apply(&mut self, name: &[u8], argument: Argument<'_>) {
        let mut lower = [0; 24];
        let Some(lower) = lower.get_mut(..name.len()) else { return };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        match &*lower {
            b"no-store" => self.no_store = true,
            b"no-cache" => add_fields(argument, &mut self.no_cache, &mut self.no_cache_fields),
            b"private" => add_fields(argument, &mut self.private, &mut self.private_fields),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => tighten(&mut self.max_age_s, seconds(argument)),
            b"s-maxage" => tighten(&mut self.s_maxage_s, seconds(argument)),
            b"min-fresh" => {
                self.min_fresh_s = Some(self.min_fresh_s.unwrap_or(0).max(seconds(argument)));
            }
            b"max-stale" => tighten(
                &mut self.max_stale_s,
                if argument == Argument::Missing { ANY_S } else { seconds(argument) },
            ),
            b"stale-while-revalidate" => {
                tighten(&mut self.stale_while_revalidate_s, seconds(argument));
            }
            b"stale-if-error" => tighten(&mut self.stale_if_error_s, seconds(argument)),
            _ => {}
        }
    }
}

fn pragma_no_cache(headers: &HeaderMap) -> bool {
    headers
        .get_all(PRAGMA)
        .iter()
        .any(|line| tokens(line.as_bytes()).any(|word| word.eq_ignore_ascii_case(b"no-cache")))
}

fn tighten(slot: &mut Option<u32>, value: u32) {
    *slot = Some(slot.map_or(value, |old| old.min(value)));
}

fn seconds(argument: Argument<'_>) -> u32 {
    match argument {
        Argument::Text(text) => delta_seconds(text).unwrap_or(0),
        Argument::Missing | Argument::Opaque => 0,
    }
}

/// Reads delta-seconds: digits only, 2^31 where they overflow.
pub(super) fn delta_seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u32;
    for byte in text {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value = value.saturating_mul(10).saturating_add(u32::from(digit));
    }
    Some(value.min(DELTA_MAX_S))
}

fn add_fields(argument: Argument<'_>, unqualified: &mut bool, fields: &mut Vec<HeaderName>) {
    let Argument::Text(text) = argument else {
        *unqualified = true;
        return;
    };
    let mut named = 0;
    for token in tokens(text) {
        let Ok(name) = HeaderName::from_bytes(token) else {
            *unqualified = true;
            return;
        };
        fields.push(name);
        named += 1;
    }
    *unqualified |= named == 0;
}

/// Takes the quotes off a quoted string; anything else stays as it is.
///
/// Escapes are left alone: no directive's argument needs one, so what holds one is invalid.
fn unquote(text: &[u8]) -> &[u8] {
    match text {
        [b'"', inner @ .., b'"'] => inner,
        _ => text,
    }
}

/// Splits a list of directives at the commas outside quoted arguments.
///
/// A quote opens a string only after `=`. One that nobody closes is an ordinary byte, so that a
/// broken quote cannot hide the `no-store` behind it.
struct Items<'a> {
    rest: &'a [u8],
    /// Set once a closing quote was looked for in vain: there is none further on either.
    unclosed: bool,
}

impl<'a> Items<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest, unclosed: false }
    }

    /// Length of the first item of `rest`.
    fn item_len(&mut self) -> usize {
        let mut at = 0;
        let mut after_equals = false;
        while let Some(&byte) = self.rest.get(at) {
            match byte {
                b',' => return at,
                b'"' if after_equals && !self.unclosed => match closing_quote(&self.rest[at + 1..])
                {
                    Some(len) => {
                        at += len + 1;
                        after_equals = false;
                    }
                    None => self.unclosed = true,
                },
                b' ' | b'\t' => {}
                _ => after_equals = byte == b'=',
            }
            at += 1;
        }
        at
    }
}

/// Position of the quote that ends a quoted string whose inside begins `text`.
fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let len = self.item_len();
            let item = trim(&self.rest[..len]);
            self.rest = self.rest.get(len + 1..).unwrap_or_default();
            if !item.is_empty() {
                return Some(item);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
