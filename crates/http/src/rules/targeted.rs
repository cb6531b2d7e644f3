//! Targeted cache-control fields (RFC 9213): strict structured dictionaries (RFC 9651).
//!
//! `CDN-Cache-Control` and its like are parsed as the standard says, to the letter, because the
//! reward for a valid one is large: it replaces `Cache-Control` and `Expires`. One wrong byte, and
//! the whole field counts as absent. The last of equal keys wins. A directive whose value has
//! another type than its meaning needs (`max-age="60"`) counts as present with nonsense: stale.

use http::header::HeaderValue;

use super::directives::{Argument, CacheControl};

/// Directives that a response may carry; no other key needs remembering.
const KNOWN: [&[u8]; 11] = [
    b"no-store",
    b"no-cache",
    b"private",
    b"public",
    b"must-revalidate",
    b"proxy-revalidate",
    b"must-understand",
    b"max-age",
    b"s-maxage",
    b"stale-while-revalidate",
    b"stale-if-error",
];

/// The directive of a cache that gave a lifetime to an answer which says nothing of caching.
pub const ASSUMED: &str = "assumed";

/// Reads a targeted field; `None` when it is empty or not a valid dictionary.
pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Option<CacheControl> {
    let mut joined = Vec::new();
    for line in lines {
        if !joined.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(line.as_bytes());
    }
    let mut members: [Option<Value<'_>>; KNOWN.len()] = [None; KNOWN.len()];
    let mut assumed = false;
    let mut parser = Parser { rest: &joined };
    parser.dictionary(|key, value| {
        if key == ASSUMED.as_bytes() {
            assumed = value != Value::Boolean(false);
        } else if let Some(index) = KNOWN.iter().position(|known| *known == key) {
            members[index] = Some(value);
        }
    })?;

    let mut all = CacheControl { targeted: true, assumed, ..CacheControl::default() };
    for (name, value) in KNOWN.iter().zip(members) {
        let takes_fields = matches!(*name, b"no-cache" | b"private");
        match value {
            None | Some(Value::Boolean(false)) => {}
            Some(Value::Boolean(true)) => all.apply(name, Argument::Missing),
            Some(Value::Integer(text)) => all.apply(name, Argument::Text(text)),
            Some(Value::Text(text)) if takes_fields => all.apply(name, Argument::Text(text)),
            Some(Value::Text(_) | Value::Other) => all.apply(name, Argument::Opaque),
        }
    }
    Some(all)
}

/// A dictionary member's value, as far as cache directives care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Boolean(bool),
    Integer(&'a [u8]),
    /// A string's inside, or a token.
    Text(&'a [u8]),
    Other,
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    /// Reads a dictionary to the end; `None` when it is empty or broken.
    fn dictionary(&mut self, mut member: impl FnMut(&'a [u8], Value<'a>)) -> Option<()> {
        self.skip(b" ");
        loop {
            let key = self.key()?;
            let value = if self.eat(b'=') { self.item_or_list()? } else { Value::Boolean(true) };
            self.parameters()?;
            member(key, value);
            self.skip(b" \t");
            if self.rest.is_empty() {
                return Some(());
            }
            if !self.eat(b',') {
                return None;
            }
            self.skip(b" \t");
        }
    }

    fn item_or_list(&mut self) -> Option<Value<'a>> {
        if !self.eat(b'(') {
            return self.bare_item();
        }
        loop {
            self.skip(b" ");
            if self.eat(b')') {
                return Some(Value::Other);
            }
            self.bare_item()?;
            self.parameters()?;
            if !matches!(self.rest.first()?, b' ' | b')') {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.skip(b" ");
            self.key()?;
            if self.eat(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        if !matches!(self.rest.first()?, b'a'..=b'z' | b'*') {
            return None;
        }
        Some(self.take_while(
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'),
        ))
    }

    fn bare_item(&mut self) -> Option<Value<'a>> {
        match *self.rest.first()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string(),
            b'*' | b'a'..=b'z' | b'A'..=b'Z' => Some(Value::Text(
                self.take_while(|byte| is_tchar(byte) || matches!(byte, b':' | b'/')),
            )),
            b':' => {
                self.rest = &self.rest[1..];
                self.take_while(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
                });
                self.eat(b':').then_some(Value::Other)
            }
            b'?' => {
                self.rest = &self.rest[1..];
                if self.eat(b'1') {
                    Some(Value::Boolean(true))
                } else {
                    self.eat(b'0').then_some(Value::Boolean(false))
                }
            }
            b'@' => {
                self.rest = &self.rest[1..];
                matches!(self.number()?, Value::Integer(_)).then_some(Value::Other)
            }
            b'%' => self.display_string(),
            _ => None,
        }
    }

    /// An integer of at most 15 digits, or a decimal of at most 12 and 3.
    fn number(&mut self) -> Option<Value<'a>> {
        let text = self.rest;
        self.eat(b'-');
        let whole = self.take_while(|byte| byte.is_ascii_digit()).len();
        if !self.eat(b'.') {
            let used = text.len() - self.rest.len();
            return (1..=15).contains(&whole).then_some(Value::Integer(&text[..used]));
        }
        let fraction = self.take_while(|byte| byte.is_ascii_digit()).len();
        ((1..=12).contains(&whole) && (1..=3).contains(&fraction)).then_some(Value::Other)
    }

    fn string(&mut self) -> Option<Value<'a>> {
        let inside = &self.rest[1..];
        let mut at = 0;
        loop {
            match inside.get(at)? {
                b'"' => {
                    self.rest = &inside[at + 1..];
                    return Some(Value::Text(&inside[..at]));
                }
                b'\\' if matches!(inside.get(at + 1)?, b'"' | b'\\') => at += 2,
                b'\\' | ..b' ' | 0x7f.. => return None,
                _ => at += 1,
            }
        }
    }

    /// `%"..."` with lower-case percent escapes; that they decode to UTF-8 is not verified, since
    /// no cache directive has such a value.
    fn display_string(&mut self) -> Option<Value<'a>> {
        let inside = self.rest.strip_prefix(b"%\"")?;
        let mut at = 0;
        loop {
            match inside.get(at)? {
                b'"' => {
                    self.rest = &inside[at + 1..];
                    return Some(Value::Other);
                }
                b'%' => {
                    let hex = inside.get(at + 1..at + 3)?;
                    if !hex.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                        return None;
                    }
                    at += 3;
                }
                ..b' ' | 0x7f.. => return None,
                _ => at += 1,
            }
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((&first, rest)) if first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.take_while(|byte| bytes.contains(&byte));
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().position(|&byte| !keep(byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
