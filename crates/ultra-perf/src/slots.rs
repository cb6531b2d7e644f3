//! What call sites remember in a handle: a table by the number of the site, written once and never moved.
//!
//! A macro's function needs its cache at every call, within nanoseconds and without a lock. The site, a
//! `static` in the program, draws a number at its first use; the handle keeps a value under that number. So
//! the number is shared by the whole process and the value belongs to one handle. A generic function is one
//! site with a type for each instance: those are a short list.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::UltraPerf;

const CHUNK: usize = 64;
/// Beyond 65,536 sites two share a cell; each then finds its own value further down its list.
const CHUNKS: usize = 1_024;

/// A place in the program that remembers something in each handle.
#[derive(Debug, Default)]
pub struct Site(OnceLock<usize>);

impl Site {
    /// Makes a site, for a `static`.
    #[must_use]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    fn number(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // Relaxed: the numbers have to differ and say nothing else.
        *self.0.get_or_init(|| NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The values under one number: one, or a list where the site is in a generic function.
#[derive(Default)]
struct Cell(OnceLock<Box<Node>>);

struct Node {
    site: usize,
    value: Box<dyn Any + Send + Sync>,
    next: Cell,
}

impl Cell {
    fn get_or_init<T: Send + Sync + 'static>(&self, site: usize, make: &dyn Fn() -> T) -> &T {
        let mut cell = self;
        loop {
            let made = || Box::new(Node { site, value: Box::new(make()), next: Self::default() });
            let node = cell.0.get_or_init(made);
            match node.value.downcast_ref() {
                Some(value) if node.site == site => return value,
                _ => cell = &node.next,
            }
        }
    }
}

type Chunk = [Cell; CHUNK];

/// The values of all sites in one handle.
pub(crate) struct Slots(Box<[OnceLock<Box<Chunk>>]>);

impl Default for Slots {
    fn default() -> Self {
        Self(std::iter::repeat_with(OnceLock::new).take(CHUNKS).collect())
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

impl UltraPerf {
    /// Returns what this handle keeps for a site, making it at the first call; for the macros.
    ///
    /// Of callers that come at once, one makes the value and the others wait for it.
    ///
    /// # Cost
    ///
    /// Three dependent loads and a comparison of types; no lock and no counting.
    #[doc(hidden)]
    pub fn slot<T: Send + Sync + 'static>(&self, site: &Site, make: impl Fn() -> T) -> &T {
        let number = site.number();
        let at = number % (CHUNK * CHUNKS);
        let chunk = self.0.slots.0[at / CHUNK]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Cell::default())));
        chunk[at % CHUNK].get_or_init(number, &make)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_at_a_site_has_a_value_of_its_own() {
        let cell = Cell::default();
        assert_eq!(cell.get_or_init(1, &|| 7_u32), &7);
        assert_eq!(cell.get_or_init(1, &|| "seven"), &"seven");
        assert_eq!(cell.get_or_init(1, &|| 8_u32), &7, "made once");
        assert_eq!(cell.get_or_init(2, &|| 9_u32), &9, "another site in the same cell");
        assert_eq!(cell.get_or_init(1, &|| 0_u32), &7);
    }

    #[test]
    fn sites_draw_numbers_of_their_own_and_keep_them() {
        let (a, b) = (Site::new(), Site::new());
        assert_ne!(a.number(), b.number());
        assert_eq!(a.number(), a.number());
    }
}
