//! A counted handle to an interned string.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use super::{Interner, front};
use crate::raw::{Handle, Text};

/// An interned string in eight bytes, immutable and counted.
///
/// It reads, compares, hashes and prints as a `str`. Two handles of one interner are equal exactly
/// when they point to the same copy, so comparing them does not look at the text.
///
/// # Cost
///
/// Cloning and dropping write nothing shared while the thread's front cache has the string, else one
/// shared count, as with `Arc`.
///
/// # Examples
///
/// ```
/// use memory::IStr;
///
/// let name = IStr::from("tenant-7");
/// assert_eq!(name, "tenant-7");
/// assert_eq!(name.len(), 8);
/// assert_eq!(format!("{name}"), "tenant-7");
/// ```
pub struct IStr {
    handle: Handle,
}

impl IStr {
    #[inline]
    pub(super) fn new(text: Text) -> Self {
        Self { handle: Handle::new(text) }
    }

    /// Returns the text.
    #[inline]
    pub fn as_str(&self) -> &str {
        self.handle.text().as_str()
    }
}

impl Clone for IStr {
    #[inline]
    fn clone(&self) -> Self {
        Self::new(front::clone(self.handle.text()))
    }
}

impl Deref for IStr {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for IStr {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for IStr {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq for IStr {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let (one, two) = (self.handle.text(), other.handle.text());
        // One interner keeps one copy of a text as long as it has handles; owner 0 is none.
        if one.owner() != 0 && one.owner() == two.owner() {
            return one.is(two);
        }
        self.as_str() == other.as_str()
    }
}

impl Eq for IStr {}

impl PartialEq<str> for IStr {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for IStr {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for IStr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IStr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other)
    }
}

impl Hash for IStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As `str`, because `Borrow<str>` asks for it.
        self.as_str().hash(state);
    }
}

impl fmt::Display for IStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl fmt::Debug for IStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<&str> for IStr {
    /// Interns in [`Interner::global`].
    fn from(text: &str) -> Self {
        Interner::global().intern(text)
    }
}

impl From<IStr> for String {
    fn from(text: IStr) -> Self {
        text.as_str().to_owned()
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for IStr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for IStr {
    /// Interns in [`Interner::global`]; a text that the format lends is not copied first.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = IStr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<IStr, E> {
                Ok(IStr::from(text))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}
