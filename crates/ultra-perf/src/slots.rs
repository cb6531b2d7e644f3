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
/// Beyond 65,535 sites two share a cell; each then finds its own value further down its list.
const CHUNKS: usize = 1_024;

/// A place in the program that remembers something in each handle.
#[derive(Debug, Default)]
pub struct Site(AtomicUsize);

impl Site {
    /// Makes a site, for a `static`.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// The number of this site, from 1 on.
    #[inline]
    fn number(&self) -> usize {
        // Relaxed: the numbers have to differ and say nothing else.
        match self.0.load(Ordering::Relaxed) {
            0 => self.draw(),
            number => number,
        }
    }

    #[cold]
    fn draw(&self) -> usize {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        // Of two that draw at once, one number is never used.
        match self.0.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => number,
            Err(first) => first,
        }
    }
}

/// The values under one number: one, or a list where the site is in a generic function.
#[derive(Default)]
struct Cell {
    /// An [`Entry`], of which only the caller knows the type.
    first: OnceLock<Box<dyn Any + Send + Sync>>,
    rest: OnceLock<Box<Cell>>,
}

struct Entry<T> {
    site: usize,
    value: T,
}

impl Cell {
    #[inline]
    fn first<T: 'static>(&self, site: usize) -> Option<&T> {
        let entry = self.first.get()?.downcast_ref::<Entry<T>>()?;
        (entry.site == site).then_some(&entry.value)
    }

    fn get_or_init<T: Send + Sync + 'static>(&self, site: usize, make: &dyn Fn() -> T) -> &T {
        let mut cell = self;
        loop {
            cell.first.get_or_init(|| Box::new(Entry { site, value: make() }));
            match cell.first(site) {
                Some(value) => return value,
                None => cell = cell.rest.get_or_init(Box::default),
            }
        }
    }
}

type Chunk = [Cell; CHUNK];

/// The values of all sites in one handle.
pub(crate) struct Slots {
    /// Those of the first sites, which are all that most programs have, one load nearer.
    near: Chunk,
    far: [OnceLock<Box<Chunk>>; CHUNKS],
}

impl Default for Slots {
    fn default() -> Self {
        let far = std::array::from_fn(|_| OnceLock::new());
        Self { near: std::array::from_fn(|_| Cell::default()), far }
    }
}

impl Slots {
    #[inline]
    fn find<T: 'static>(&self, site: usize) -> Option<&T> {
        let cell = match self.near.get(site) {
            Some(cell) => cell,
            None => &self.far[site / CHUNK % CHUNKS].get()?[site % CHUNK],
        };
        cell.first(site)
    }

    #[inline(never)]
    fn find_or_make<T: Send + Sync + 'static>(&self, site: usize, make: &dyn Fn() -> T) -> &T {
        let cell = self.near.get(site).unwrap_or_else(|| {
            let new = || Box::new(std::array::from_fn(|_| Cell::default()));
            &self.far[site / CHUNK % CHUNKS].get_or_init(new)[site % CHUNK]
        });
        cell.get_or_init(site, make)
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

impl UltraPerf {
    /// Returns what this handle keeps for a site, if it has been made; costs as [`slot`](Self::slot).
    #[cfg(all(feature = "cache", feature = "macros"))]
    #[inline]
    pub(crate) fn found_slot<T: Send + Sync + 'static>(&self, site: &Site) -> Option<&T> {
        self.0.slots.find(site.number())
    }

    /// Returns what this handle keeps for a site, making it at the first call; for the macros.
    ///
    /// Of callers that come at once, one makes the value and the others wait for it.
    ///
    /// # Cost
    ///
    /// Two or three dependent loads and a comparison of types; no lock and no counting.
    #[doc(hidden)]
    #[inline]
    pub fn slot<T: Send + Sync + 'static>(&self, site: &Site, make: impl Fn() -> T) -> &T {
        let number = site.number();
        let slots = &self.0.slots;
        slots.find(number).unwrap_or_else(|| slots.find_or_make(number, &make))
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
