//! Variants of one resource: which request fields select them (RFC 9111 section 4.1).
//!
//! A variant's secondary key is the selecting fields written out, not a hash of them: a client
//! chooses these bytes, and a collision would hand it another variant's answer. Values are
//! normalised only where the field's own syntax says that two forms mean the same. A field that
//! `Connection` names does not count, whether it was removed already or not: otherwise a client
//! could have the origin's answer to a request without it stored as the variant of its value.

use std::cmp::Reverse;
use std::fmt;

use http::HeaderMap;
use http::header::{
    ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, GetAll, HeaderName, HeaderValue, VARY,
};

use super::fields::{is_forwarded, tokens, trim};

/// Names the request fields that select a variant, sorted and without repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vary {
    fields: Box<[HeaderName]>,
}

impl Vary {
    /// Reads a response's `Vary`; `None` for `*` and for what cannot be a list of names.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get_all(VARY).iter().map(HeaderValue::as_bytes))
    }

    /// Reads the lines of a `Vary` field, or what `to_string` made of one.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut fields = Vec::new();
        for token in lines.into_iter().flat_map(tokens) {
            // `*` is a valid token and would otherwise pass as a name.
            if token == b"*" {
                return None;
            }
            fields.push(HeaderName::from_bytes(token).ok()?);
        }
        fields.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        fields.dedup();
        Some(Self { fields: fields.into() })
    }

    /// Returns the names in order.
    pub fn fields(&self) -> &[HeaderName] {
        &self.fields
    }

    /// Tells whether every request gets the same variant.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Appends the secondary key of a request: equal bytes, same variant.
    ///
    /// A field that is absent matches only its absence, and one that belongs to the client's
    /// connection counts as absent: the origin does not see it. The key never contains a NUL byte.
    ///
    /// # Cost
    ///
    /// One look-up per field, and no allocation beyond the growth of `out`.
    pub fn write_key(&self, request: &HeaderMap, out: &mut Vec<u8>) {
        for name in &self.fields {
            let lines = request.get_all(name);
            if lines.iter().next().is_none() || !is_forwarded(name, request) {
                continue;
            }
            out.extend_from_slice(name.as_str().as_bytes());
            out.push(b':');
            write_value(name, &lines, out);
            // No header value holds a line feed, so the parts cannot run into each other.
            out.push(b'\n');
        }
    }
}

impl fmt::Display for Vary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.fields.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name.as_str())?;
        }
        Ok(())
    }
}

/// Members and bytes of a list that is put in order; a longer one is taken as it is.
const SORTED_MAX: usize = 16;
const SORTED_MAX_BYTES: usize = 256;

/// Writes a field's value in one form per meaning, as far as the field is known.
fn write_value(name: &HeaderName, lines: &GetAll<'_, HeaderValue>, out: &mut Vec<u8>) {
    let order = if name == ACCEPT_ENCODING || name == ACCEPT_CHARSET {
        // Their members have no order but their weights (RFC 9110 section 12.5).
        Some(Order::ByName)
    } else if name == ACCEPT_LANGUAGE {
        // Many servers take the order of equal weights as a preference (section 12.5.4).
        Some(Order::ByWeight)
    } else {
        None
    };
    let start = out.len();
    // Several lines are one list (RFC 9110 section 5.3); white space inside is the sender's.
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(trim(line.as_bytes()));
    }
    let Some(order) = order else { return };
    let mut lower = [0; SORTED_MAX_BYTES];
    let Some(lower) = lower.get_mut(..out.len() - start) else { return };
    lower.copy_from_slice(&out[start..]);
    lower.make_ascii_lowercase();
    let mut preferences = [Preference::default(); SORTED_MAX];
    let Some(preferences) = sort_preferences(lower, order, &mut preferences) else { return };
    out.truncate(start);
    for preference in preferences {
        out.extend_from_slice(preference.name);
        if preference.weight != Preference::FULL {
            out.extend_from_slice(b";q=");
            out.extend_from_slice(&preference.digits());
        }
        out.push(b',');
    }
}

/// Reads a lower-case list of weighted names and puts it in order; `None` if it is none.
fn sort_preferences<'a, 'b>(
    list: &'a [u8],
    order: Order,
    preferences: &'b mut [Preference<'a>; SORTED_MAX],
) -> Option<&'b [Preference<'a>]> {
    let mut count = 0;
    for member in tokens(list) {
        *preferences.get_mut(count)? = Preference::parse(member)?;
        count += 1;
    }
    let preferences = &mut preferences[..count];
    // Stable: equal weights keep their order.
    match order {
        Order::ByName => preferences.sort_by_key(|it| (it.name, it.weight)),
        Order::ByWeight => preferences.sort_by_key(|it| Reverse(it.weight)),
    }
    Some(preferences)
}

#[derive(Clone, Copy)]
enum Order {
    ByName,
    ByWeight,
}

/// One member of an `Accept-...` list: a name and its weight in thousandths.
#[derive(Clone, Copy, Default)]
struct Preference<'a> {
    name: &'a [u8],
    weight: u16,
}

impl<'a> Preference<'a> {
    const FULL: u16 = 1000;

    /// Reads `name` or `name;q=0.5` in lower case; anything else is not for us to understand.
    fn parse(member: &'a [u8]) -> Option<Self> {
        let Some(at) = member.iter().position(|&byte| byte == b';') else {
            return Some(Self { name: member, weight: Self::FULL });
        };
        let weight = match trim(&member[at + 1..]) {
            [b'q', b'=', b'1'] => Self::FULL,
            [b'q', b'=', b'1', b'.', zeros @ ..]
                if zeros.len() <= 3 && zeros.iter().all(|&digit| digit == b'0') =>
            {
                Self::FULL
            }
            [b'q', b'=', b'0'] => 0,
            [b'q', b'=', b'0', b'.', digits @ ..]
                if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) =>
            {
                let scaled = digits.iter().chain(b"000").take(3);
                scaled.fold(0, |sum, &digit| sum * 10 + u16::from(digit - b'0'))
            }
            _ => return None,
        };
        Some(Self { name: trim(&member[..at]), weight })
    }

    fn digits(&self) -> [u8; 3] {
        let digit = |place: u16| b'0' + u8::try_from(self.weight / place % 10).unwrap_or(0);
        [digit(100), digit(10), digit(1)]
    }
}

#[cfg(test)]
mod tests;
