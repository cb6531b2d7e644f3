//! The objects that rest with nobody, and what all threads have to agree on: caps, grants and limits.

use std::collections::VecDeque;

use super::stash::{Grant, Unused};
use super::{Node, Settings, UPKEEP_EVERY};
use crate::pool::waiters::Waiters;

/// The objects that rest with nobody, and what is decided about all of them.
pub(in crate::pool) struct Depot<T, const C: usize> {
    /// The front has rested longest.
    pub(super) free: [VecDeque<Box<Node<T>>>; C],
    pub(super) unused: [Unused; C],
    pub(super) idle: usize,
    pub(super) bytes: usize,
    pub(super) granted: Grant,
    pub(super) closed: bool,
    /// Takes and returns without a stash.
    operations: u64,
    pub(super) hits: u64,
    /// Objects that exist, where there is a limit.
    pub(in crate::pool) existing: usize,
    pub(in crate::pool) waiters: Waiters,
}

impl<T, const C: usize> Depot<T, C> {
    pub(super) fn new() -> Self {
        Self {
            free: [const { VecDeque::new() }; C],
            unused: [Unused::default(); C],
            idle: 0,
            bytes: 0,
            granted: Grant::default(),
            closed: false,
            operations: 0,
            hits: 0,
            existing: 0,
            waiters: Waiters::default(),
        }
    }

    fn fits(&self, bytes: usize, settings: &Settings) -> bool {
        !self.closed
            && self.idle + self.granted.objects < settings.idle_max
            && self.bytes + self.granted.bytes + bytes <= settings.idle_bytes_max
    }

    /// How many of `nodes`, from the first on, there is room for.
    pub(super) fn fitting(&self, nodes: &[Box<Node<T>>], settings: &Settings) -> usize {
        if self.closed {
            return 0;
        }
        let objects = settings.idle_max - self.idle - self.granted.objects;
        let mut bytes = settings.idle_bytes_max - self.bytes - self.granted.bytes;
        let weights = nodes.iter().take(objects).map(|node| node.bytes);
        let fits = |weight: &usize| match bytes.checked_sub(*weight) {
            Some(rest) => {
                bytes = rest;
                true
            }
            None => false,
        };
        weights.take_while(fits).count()
    }

    pub(super) fn push(
        &mut self,
        class: usize,
        node: Box<Node<T>>,
        settings: &Settings,
    ) -> Result<(), Box<Node<T>>> {
        if !self.fits(node.bytes, settings) {
            return Err(node);
        }
        self.idle += 1;
        self.bytes += node.bytes;
        self.free[class].push_back(node);
        Ok(())
    }

    pub(super) fn pop(&mut self, class: usize) -> Option<Box<Node<T>>> {
        let node = self.free[class].pop_back()?;
        self.removed(class, &node);
        Some(node)
    }

    pub(super) fn pop_oldest(&mut self, class: usize) -> Option<Box<Node<T>>> {
        let node = self.free[class].pop_front()?;
        self.removed(class, &node);
        Some(node)
    }

    fn removed(&mut self, class: usize, node: &Node<T>) {
        self.idle -= 1;
        self.bytes -= node.bytes;
        self.unused[class].left(self.free[class].len());
    }

    /// Tells how many more guards the limit allows, and how many of those are promised to waiters.
    pub(in crate::pool) fn places(&self, limit: usize) -> usize {
        self.idle + limit.saturating_sub(self.existing)
    }

    /// Counts an operation; tells whether it is time to look after the pool.
    pub(in crate::pool) fn operate(&mut self) -> bool {
        self.operations += 1;
        self.operations.is_multiple_of(UPKEEP_EVERY)
    }
}
