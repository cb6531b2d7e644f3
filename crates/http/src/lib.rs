//! An HTTP response cache by RFC 9111, a streaming reverse proxy, and its admin API.
//!
//! [`Server`] is all of it in one: an accelerator in front of a backend, as a
//! [`Config`](ultra_perf::config::Config) describes it. Its parts stand alone: [`rules`] decides,
//! without any I/O, what a shared cache may keep and use; [`server`] serves HTTP/1.1 and HTTP/2 under
//! limits and drains; [`upstream`] keeps connections to one origin; [`forward`] prepares heads for
//! the next hop; [`tunnel`] joins two sides that have left HTTP.
//!
//! For services in this process: [`layers()`] goes around their routes, [`ResponseCacheLayer`] is the
//! accelerator's cache alone, [`HttpClients`] gives a handle clients that call others, and [`AdminServer`]
//! lets people and programs see and steer the handle.
#![forbid(unsafe_code)]

mod accelerator;
mod admin;
mod answer;
mod backends;
mod background;
pub mod body;
mod client;
mod compress;
mod configured;

mod fill;
mod flights;
pub mod forward;
mod layers;
mod origin;
mod proxy;
mod response_cache;
pub mod rules;
mod serve;
pub mod server;
mod shown;
mod stored;
mod surrogate;
mod traffic;
pub mod tunnel;
pub mod upstream;
mod watch;

pub use admin::admin;
pub use client::{HttpClient, HttpClientBody, HttpClientError, HttpClientOptions, HttpClients};
pub use layers::{Layered, LayeredFuture, Layers, ResponseCacheLayer, ResponseCached, layers};
pub use serve::{AdminServer, Server, StartError, Stopped};
pub use traffic::TrafficStats;
