//! Times and sizes as people write them, read when the program is compiled.

use std::time::Duration;

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Expr, ExprLit, Lit, LitStr};

/// A time to live, a window or a limit: text that was checked, or an expression of the user's.
#[derive(Debug, Clone)]
pub(crate) enum Time {
    Fixed(Duration),
    Expression(Box<Expr>),
}

impl Time {
    /// Reads `"10m"`, or takes any other expression for a `Duration`.
    pub(crate) fn of(expr: Expr) -> syn::Result<Self> {
        match &expr {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => duration(text).map(Self::Fixed),
            Expr::Lit(ExprLit { lit, .. }) => {
                let message = "a time is text with a unit, such as \"10m\", or a `Duration`";
                Err(syn::Error::new(lit.span(), message))
            }
            _ => Ok(Self::Expression(Box::new(expr))),
        }
    }

    /// The expression that makes it.
    pub(crate) fn tokens(&self) -> TokenStream {
        match self {
            Self::Fixed(time) => {
                let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
                quote!(::core::time::Duration::new(#seconds, #nanos))
            }
            Self::Expression(expr) => quote!(#expr),
        }
    }
}

/// The units of time and how many nanoseconds each has.
const TIMES: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// The units of size and how many bytes each has.
const SIZES: [(&str, u128); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

fn duration(text: &LitStr) -> syn::Result<Duration> {
    let expected = "a number and one of ns, us, ms, s, m, h and d, such as \"10m\" or \"1h30m\"";
    let nanos = read(&text.value(), &TIMES).and_then(|nanos| u64::try_from(nanos).ok());
    match nanos {
        Some(0) => Err(syn::Error::new(text.span(), "a time of zero: expected one that is longer")),
        Some(nanos) => Ok(Duration::from_nanos(nanos)),
        None => {
            let message = format!("{:?} is no time: expected {expected}", text.value());
            Err(syn::Error::new(text.span(), message))
        }
    }
}

/// Reads `"64MiB"`.
pub(crate) fn bytes(text: &LitStr) -> syn::Result<u64> {
    let bytes = read(&text.value(), &SIZES).and_then(|bytes| u64::try_from(bytes).ok());
    match bytes {
        Some(0) => Err(syn::Error::new(text.span(), "a size of zero: expected at least a byte")),
        Some(bytes) => Ok(bytes),
        None => {
            let expected = "a number and one of B, kB, MB, GB, KiB, MiB and GiB, such as \"64MiB\"";
            let message = format!("{:?} is no size: expected {expected}", text.value());
            Err(syn::Error::new(text.span(), message))
        }
    }
}

/// Adds up parts such as `1h30m`, each a whole number and a unit, which must get smaller.
fn read(text: &str, units: &[(&str, u128)]) -> Option<u128> {
    let mut rest = text.trim();
    let mut total: u128 = 0;
    let mut last = u128::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '_')?;
        let number: u128 = rest[..digits].replace('_', "").parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (_, size) = units.iter().find(|(unit, _)| *unit == &rest[..letters])?;
        if *size >= last {
            return None;
        }
        last = *size;
        total = total.checked_add(number.checked_mul(*size)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<Duration> {
        duration(&LitStr::new(text, proc_macro2::Span::call_site())).ok()
    }

    fn size(text: &str) -> Option<u64> {
        bytes(&LitStr::new(text, proc_macro2::Span::call_site())).ok()
    }

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, expected) in [
            ("10m", Some(600_000)),
            ("2s", Some(2_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("250 ms", Some(250)),
            ("1_000ms", Some(1_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("10", None),
            ("m", None),
            ("10x", None),
            ("-1s", None),
            ("1.5s", None),
            ("0s", None),
            ("30m1h", None),
            ("1s1s", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(time(text), expected.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("1 kB", Some(1_000)),
            ("12B", Some(12)),
            ("0MiB", None),
            ("64", None),
            ("64mib", None),
        ] {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }
}
