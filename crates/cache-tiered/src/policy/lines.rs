//! Zeroed words that begin on a cache line, so that a group as long as a line lies in one.

use std::ops::{Deref, DerefMut};

/// Words of a cache line.
const LINE: usize = 64 / size_of::<u32>();

/// Words from the beginning of a cache line on.
///
/// Dereferences to those words.
#[derive(Debug)]
pub(super) struct Lines {
    /// A line less a word longer than what is used; it never moves.
    memory: Vec<u32>,
    start: usize,
    len: usize,
}

impl Lines {
    /// Makes `len` zeros, in `memory` if that is enough.
    pub(super) fn zeroed(len: usize, mut memory: Vec<u32>) -> Self {
        let room = len + LINE - 1;
        if memory.capacity() < room {
            memory = vec![0; room];
        } else {
            memory.clear();
            memory.resize(room, 0);
        }
        // Where it cannot be told, as under Miri, nothing but time is lost.
        let start = memory.as_ptr().align_offset(size_of::<u32>() * LINE).min(LINE - 1);
        Self { memory, start, len }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.memory.capacity() * size_of::<u32>()
    }

    pub(super) fn into_memory(self) -> Vec<u32> {
        self.memory
    }
}

impl Deref for Lines {
    type Target = [u32];

    #[inline]
    fn deref(&self) -> &[u32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Lines {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_and_as_many_as_asked_for_whatever_the_memory_held() {
        for len in [0, 1, 16, 1_000] {
            for memory in [Vec::new(), vec![7; 500], vec![7; 5_000]] {
                let capacity = memory.capacity();
                let mut lines = Lines::zeroed(len, memory);
                assert_eq!((lines.len(), lines.iter().sum::<u32>()), (len, 0));
                lines.fill(1);
                assert!(lines.into_memory().capacity() >= capacity.min(5_000));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "addresses are not told there")]
    fn they_begin_on_a_line() {
        for len in [1, 100, 100_000] {
            assert_eq!(Lines::zeroed(len, Vec::new()).as_ptr().align_offset(64), 0);
        }
    }
}
