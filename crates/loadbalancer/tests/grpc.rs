//! The gRPC check against a health service of somebody else's, tonic's, over real sockets.

#![cfg(feature = "grpc")]

use std::time::Duration;

use loadbalancer::{Backend, BackendState, Balancer, Check, Checks, Events, Thresholds};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::server::{Server, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

/// A server with nothing but the health service.
async fn server() -> (String, HealthReporter, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let id = listener.local_addr().expect("it is bound").to_string();
    let (reporter, service) = health_reporter();
    let serving = Server::builder().add_service(service);
    let task = tokio::spawn(async move {
        serving.serve_with_incoming(TcpIncoming::from(listener)).await.expect("it serves");
    });
    (id, reporter, task)
}

/// Checks a service of a backend; the events begin before the first check.
fn checked(id: &str, service: &str) -> (Balancer, Events, loadbalancer::CheckTask) {
    let balancer = Balancer::builder()
        .backend(Backend::new(id))
        .checks(Thresholds { rise: 1, fall: 1 })
        .panic_threshold(0.0)
        .build()
        .expect("a valid set");
    let events = balancer.events();
    let checks = Checks {
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        ..Checks::new(Check::Grpc { service: service.to_owned() })
    };
    let task = checks.start(&balancer);
    (balancer, events, task)
}

/// The next event without the name of the backend.
async fn next(events: &mut Events, id: &str) -> String {
    let event = timeout(Duration::from_secs(20), events.next()).await.expect("it happens soon");
    let text = event.expect("the balancer lives").to_string();
    text.strip_prefix(&format!("{id}: ")).map_or_else(|| text.clone(), str::to_owned)
}

#[tokio::test]
async fn a_server_is_up_while_it_says_so_and_down_with_what_it_says() {
    let (id, reporter, task) = server().await;
    let (balancer, mut events, _checks) = checked(&id, "");
    assert_eq!(next(&mut events, &id).await, "up: its checks succeed");
    assert_eq!(balancer.backends()[0].state, BackendState::Ready);
    reporter.set_service_status("", ServingStatus::NotServing).await;
    assert_eq!(next(&mut events, &id).await, "down: it says NOT_SERVING");
    assert_eq!(balancer.backends()[0].state, BackendState::Down);
    reporter.set_service_status("", ServingStatus::Serving).await;
    assert_eq!(next(&mut events, &id).await, "up: its checks succeed");
    task.abort();
    let down = next(&mut events, &id).await;
    assert!(down.starts_with("down: c"), "{down}");
}

#[tokio::test]
async fn a_service_has_a_state_of_its_own_and_one_that_is_not_known_is_down() {
    let (id, reporter, _task) = server().await;
    reporter.set_service_status("shop.Orders", ServingStatus::Serving).await;
    let (_balancer, mut events, _checks) = checked(&id, "shop.Orders");
    assert_eq!(next(&mut events, &id).await, "up: its checks succeed");
    let (_balancer, mut events, _checks) = checked(&id, "shop.Carts");
    let down = next(&mut events, &id).await;
    assert!(down.starts_with("down: gRPC status 5: "), "{down}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_2_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let id = listener.local_addr().expect("it is bound").to_string();
    let other = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let std = stream.into_std().expect("a stream");
            std.set_nonblocking(false).expect("a stream");
            _ = std::io::Write::write_all(&mut &std, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let (_balancer, mut events, _checks) = checked(&id, "");
    let down = next(&mut events, &id).await;
    assert!(down.starts_with("down: connection "), "{down}");
    other.abort();
}
