//! Every interleaving of leases and waiters, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p loadbalancer --release --lib loom`

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use loom::thread;

use super::*;
use crate::node::Fleet;

/// A node with a limit, and the queue before it.
fn gate(limit: u32) -> (Arc<[Arc<Node>]>, Arc<Waiters<()>>) {
    let node =
        Node::new("a".into(), Instant::now(), Arc::new(Fleet::new(Duration::ZERO)), Weak::new());
    node.set_limit(limit);
    (Arc::new([Arc::new(node)]), Arc::new(Waiters::new(4)))
}

/// Serves the queue and returns how many got a place.
fn serve(nodes: &Arc<[Arc<Node>]>, waiters: &Waiters<()>) -> u32 {
    let mut served = 0;
    let find = |(): &()| nodes[0].try_enter(0).then_some(());
    waiters.serve(|| Arc::clone(nodes), find, |(), ()| served += 1);
    served
}

#[test]
fn loom_a_place_is_given_once() {
    loom::model(|| {
        let (nodes, _) = gate(1);
        let other = Arc::clone(&nodes);
        let thread = thread::spawn(move || other[0].try_enter(0));
        let mine = nodes[0].try_enter(0);
        let theirs = thread.join().expect("no panic");
        assert!(mine != theirs, "exactly one has the place");
        assert_eq!(nodes[0].in_flight(), 1);
        assert_eq!(nodes[0].leases(), 1);
    });
}

#[test]
fn loom_no_waiter_is_forgotten() {
    loom::model(|| {
        let (nodes, waiters) = gate(1);
        assert!(nodes[0].try_enter(0));
        let (their_nodes, their_waiters) = (Arc::clone(&nodes), Arc::clone(&waiters));
        let thread = thread::spawn(move || match their_nodes[0].leave().awaited {
            true => serve(&their_nodes, &their_waiters),
            false => 0,
        });
        waiters.push(());
        let mine = serve(&nodes, &waiters);
        let theirs = thread.join().expect("no panic");
        assert_eq!(mine + theirs, 1, "the waiter has the place that was given back");
        assert_eq!((waiters.len(), nodes[0].in_flight()), (0, 1));
    });
}

#[test]
fn loom_two_waiters_and_one_place_leave_one_waiter() {
    loom::model(|| {
        let (nodes, waiters) = gate(1);
        let (their_nodes, their_waiters) = (Arc::clone(&nodes), Arc::clone(&waiters));
        let thread = thread::spawn(move || {
            their_waiters.push(());
            serve(&their_nodes, &their_waiters)
        });
        waiters.push(());
        let mine = serve(&nodes, &waiters);
        let theirs = thread.join().expect("no panic");
        assert_eq!((mine + theirs, waiters.len(), nodes[0].in_flight()), (1, 1, 1));
        // The one that is left gets the place as soon as it is free.
        assert!(nodes[0].leave().awaited);
        assert_eq!(serve(&nodes, &waiters), 1);
    });
}

#[test]
fn loom_the_last_lease_of_a_watched_node_says_so_once() {
    loom::model(|| {
        let (nodes, _) = gate(2);
        assert!(nodes[0].try_enter(0) && nodes[0].try_enter(0));
        let other = Arc::clone(&nodes);
        let thread = thread::spawn(move || other[0].leave().last_of_watched);
        let out = nodes[0].watch();
        let mine = nodes[0].leave().last_of_watched;
        let theirs = thread.join().expect("no panic");
        assert!(!(mine && theirs));
        assert!(mine || theirs || out == 0, "{out} leases were out");
    });
}
