//! Bodies on their way: the client reads while they are stored, and nobody holds up another.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome, request},
    support::{
        origin::{Gate, Origin},
        soon,
    },
};

#[tokio::test]
async fn the_first_bytes_arrive_before_the_origin_has_finished() {
    for control in ["max-age=60", "no-store"] {
        let gate = Gate::new();
        let at_origin = gate.clone();
        let origin = Origin::start(move |_| {
            Reply::ok("")
                .header("cache-control", control)
                .chunks(["first", "second"])
                .pieces_when(&at_origin)
        })
        .await;
        let proxy = Accelerated::to(&origin).await;
        let mut client = proxy.client().await;
        client.send(request("GET", "/", "test", &[], "")).await;
        gate.let_through(1);
        let mut got = Vec::new();
        while !got.windows(5).any(|bytes| bytes == b"first") {
            let bytes = client.bytes().await;
            assert!(!bytes.is_empty(), "the connection ended");
            got.extend(bytes);
        }
        gate.open();
        while !got.ends_with(b"0\r\n\r\n") {
            let bytes = client.bytes().await;
            assert!(!bytes.is_empty(), "the connection ended");
            got.extend(bytes);
        }
        assert!(got.windows(6).any(|bytes| bytes == b"second"), "{control}");
        let again = async {
            gate.open();
            proxy.get("/").await
        };
        let answer = soon("the second answer", again).await;
        let expected = if control == "no-store" { "MISS" } else { "HIT" };
        assert_eq!((answer.text(), outcome(&answer)), ("firstsecond", expected));
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_neither_another_nor_the_storing() {
    const LENGTH: usize = 48 * MIB;
    let origin =
        Origin::start(|_| fresh("").repeated(vec![b'x'; 64 * KIB], LENGTH / (64 * KIB))).await;
    let keys = [("response_cache.max_body", "48MiB"), ("cache.memory.capacity", "2GiB")];
    let proxy = Accelerated::with(&origin.url(), &keys).await;
    let mut idle = proxy.client().await;
    idle.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    let answer = proxy.get("/").await;
    assert_eq!((answer.body.len(), answer.complete), (LENGTH, true));
    let hit = proxy.get("/").await;
    assert_eq!((hit.body.len(), outcome(&hit), origin.hits()), (LENGTH, "HIT", 1));
    // And it can still read on.
    let late = idle.answer().await.expect("an answer");
    assert_eq!((late.body.len(), late.complete), (LENGTH, true));
}

#[tokio::test]
async fn a_long_body_that_nobody_reads_waits_at_the_origin() {
    const LENGTH: usize = 96 * MIB;
    let origin = Origin::start(|request| match request.path() {
        // Its length is not known, so that it is taken for one that may fit.
        "/chunked" => {
            Reply::raw("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\n\r\n")
                .then_send(&"x".repeat(LENGTH), &{
                    let open = Gate::new();
                    open.open();
                    open
                })
        }
        _ => fresh("").repeated(vec![b'x'; 64 * KIB], LENGTH / (64 * KIB)),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/known", "/chunked"] {
        let before = origin.sent_bytes();
        let mut idle = proxy.client().await;
        idle.send(request("GET", target, "test", &[], "")).await;
        // When nothing has moved for a while, nothing will.
        let mut sent = 0;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let now = origin.sent_bytes() - before;
            if now == sent && now > 0 {
                break;
            }
            sent = now;
        }
        assert!(sent < (LENGTH / 2) as u64, "{target}: {sent} bytes were taken");
        // Another client is served meanwhile.
        assert_eq!(proxy.send("HEAD", "/known", &[], "").await.status, 200);
    }
}
