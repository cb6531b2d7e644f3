//! The plain proxy: server, forwarder and upstream wired together without a cache.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use ultra_perf_http::{
    body::{RequestBody, RequestBodyError},
    forward::{self, Forwarder, HostPolicy},
    server::{ConnInfo, Server, ServerLimits},
    tunnel,
    upstream::{Upstream, UpstreamBody, UpstreamConfig},
};

type ProxyBody = Either<UpstreamBody, Full<Bytes>>;

/// How a test's proxy differs from the default.
pub(crate) struct Options {
    pub(crate) upstream: UpstreamConfig,
    pub(crate) limits: ServerLimits,
    pub(crate) host: HostPolicy,
    pub(crate) body_limit_bytes: u64,
    pub(crate) body_idle_timeout: Duration,
    pub(crate) tunnel_idle_timeout: Duration,
}

impl Options {
    /// The defaults in front of `url`.
    pub(crate) fn to(url: &str) -> Self {
        Self {
            upstream: UpstreamConfig::new(url).expect("an origin's url"),
            limits: ServerLimits::default(),
            host: HostPolicy::Preserve,
            body_limit_bytes: u64::MAX,
            body_idle_timeout: Duration::from_secs(60),
            tunnel_idle_timeout: Duration::from_secs(60),
        }
    }

    /// Changes the configuration of the upstream.
    pub(crate) fn upstream(mut self, change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        change(&mut self.upstream);
        self
    }

    /// Changes the limits of the server.
    pub(crate) fn limits(mut self, change: impl FnOnce(&mut ServerLimits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// Starts the proxy.
    pub(crate) async fn start(self) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        self.start_on(listener)
    }

    /// Starts the proxy on a listener that exists already.
    pub(crate) fn start_on(self, listener: TcpListener) -> Proxy {
        let base_path = self.upstream.base_path.clone();
        let upstream = Upstream::new(self.upstream);
        let authority = upstream.authority().parse().expect("an authority");
        let through = Arc::new(Through {
            forwarder: Forwarder::new(&authority, &base_path, self.host, fastrand::u64(..)),
            upstream: upstream.clone(),
            body_limit_bytes: self.body_limit_bytes,
            body_idle_timeout: self.body_idle_timeout,
            tunnel_idle_timeout: self.tunnel_idle_timeout,
        });
        let handler = move |request: Request<Incoming>, connection: ConnInfo| {
            let through = Arc::clone(&through);
            async move { through.pass(request, connection).await }
        };
        let server = Server::start(listener, handler, self.limits).expect("a server");
        Proxy { server, upstream }
    }
}

/// A running proxy; it stops when dropped.
pub(crate) struct Proxy {
    pub(crate) server: Server,
    pub(crate) upstream: Upstream,
}

impl Proxy {
    /// Starts a proxy with the defaults in front of `url`.
    pub(crate) async fn to(url: &str) -> Self {
        Options::to(url).start().await
    }

    /// Returns where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }
}

struct Through {
    forwarder: Forwarder,
    upstream: Upstream,
    body_limit_bytes: u64,
    body_idle_timeout: Duration,
    tunnel_idle_timeout: Duration,
}

impl Through {
    async fn pass(
        &self,
        mut request: Request<Incoming>,
        connection: ConnInfo,
    ) -> Response<ProxyBody> {
        if request.uri().path() == "/panic" {
            panic!("as the client wished");
        }
        let refuse = |status, detail| forward::problem(status, detail).map(Either::Right);
        let upgrade =
            forward::wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        let random = fastrand::u64(..);
        if let Err(refusal) = self.forwarder.request(&mut head, connection.peer(), random) {
            return refuse(refusal.status(), refusal.detail());
        }
        let body = match RequestBody::streaming(body, self.body_limit_bytes, self.body_idle_timeout)
        {
            Ok(body) => body,
            Err(RequestBodyError::TooLarge { .. }) => {
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, "too large");
            }
            Err(_) => return refuse(StatusCode::BAD_REQUEST, "broken"),
        };
        match self.upstream.send(Request::from_parts(head, body)).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                self.forwarder.response(&mut head);
                if head.status == StatusCode::SWITCHING_PROTOCOLS
                    && let Some(client) = upgrade
                {
                    tunnel::open(client, body, &connection, self.tunnel_idle_timeout);
                    return Response::from_parts(head, Either::Right(Full::default()));
                }
                Response::from_parts(head, Either::Left(body))
            }
            Err(error) => refuse(error.status(), error.detail()),
        }
    }
}
