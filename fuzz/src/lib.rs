//! What the targets share: message heads out of a fuzzer's bytes, and a place for files.
//!
//! An input is text: messages are parted by an empty line, and each is a start line with a field per
//! line behind it, much as on the wire. So seeds can be written by hand, an input that fails can be
//! read, and what the fuzzer cuts from one head into another is usually a field. Lines that are no
//! field are left out, as a parser in front of the rules would have done.
#![forbid(unsafe_code)]

use std::path::Path;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tempfile::TempDir;

/// Fields of one head at the most, far more than an input has that is worth keeping.
const MAX_FIELDS: usize = 256;

/// Splits an input into messages at its empty lines.
pub fn messages(input: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = Some(input);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.windows(2).position(|pair| pair == b"\n\n");
        rest = end.map(|end| &text[end + 2..]);
        Some(Message::of(&text[..end.unwrap_or(text.len())]))
    })
}

/// A start line and the fields behind it.
#[derive(Debug, Default)]
pub struct Message<'a> {
    /// The words of the start line.
    pub words: Vec<&'a str>,
    /// The fields.
    pub headers: HeaderMap,
}

impl<'a> Message<'a> {
    fn of(text: &'a [u8]) -> Self {
        let mut lines = text.split(|&byte| byte == b'\n');
        let start = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let mut headers = HeaderMap::new();
        for line in lines.take(MAX_FIELDS) {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        let words = start.unwrap_or_default().split_ascii_whitespace().collect();
        Self { words, headers }
    }

    /// Returns a word of the start line, empty where it has fewer.
    #[must_use]
    pub fn word(&self, index: usize) -> &'a str {
        self.words.get(index).copied().unwrap_or_default()
    }

    /// Returns a word that is a number, else zero.
    #[must_use]
    pub fn number(&self, index: usize) -> u64 {
        self.word(index).parse().unwrap_or_default()
    }

    /// Returns a word that is a method, else GET.
    #[must_use]
    pub fn method(&self, index: usize) -> Method {
        self.word(index).parse().unwrap_or(Method::GET)
    }

    /// Returns a word that is a status, else 200.
    #[must_use]
    pub fn status(&self, index: usize) -> StatusCode {
        self.word(index).parse().unwrap_or(StatusCode::OK)
    }
}

/// Tells whether some line of a field holds a directive in its plainest form: a member of its own, in
/// a line without quotes.
///
/// This is all that an oracle may claim without parsing, and what nobody may overlook.
#[must_use]
pub fn plainly_says(headers: &HeaderMap, field: &str, directive: &str) -> bool {
    headers.get_all(field).iter().map(HeaderValue::as_bytes).any(|line| {
        !line.contains(&b'"')
            && line
                .split(|&byte| byte == b',')
                .any(|member| member.trim_ascii().eq_ignore_ascii_case(directive.as_bytes()))
    })
}

/// Makes a directory for the files of one input, in memory where the system has a place there.
///
/// Thousands of inputs a second would otherwise wait for a disk, and wear it out.
///
/// # Panics
///
/// When nothing can be written.
#[must_use]
pub fn scratch() -> TempDir {
    let in_memory = Path::new("/dev/shm");
    let made =
        if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    made.expect("temporary files can be written")
}
