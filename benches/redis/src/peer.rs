//! fred as it comes, on the same runtime and over one multiplexed connection like ours.
//!
//! Each get is a GET of its own, which fred pipelines; the tier's gets share MGETs instead. Otherwise the
//! two are set up alike: RESP3, no delay on the socket, a time limit on every command.

use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::RespVersion;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, TcpConfig};

use crate::Client;

/// One connected client.
#[derive(Clone)]
pub(crate) struct Fred {
    client: fred::clients::Client,
}

impl Fred {
    pub(crate) async fn connect(url: &str, timeout: Duration) -> Self {
        let mut config = Config::from_url(url).expect("the server's own URL");
        config.version = RespVersion::RESP3;
        let performance =
            PerformanceConfig { default_command_timeout: timeout, ..PerformanceConfig::default() };
        let connection = ConnectionConfig {
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        };
        let client = fred::clients::Client::new(config, Some(performance), Some(connection), None);
        client.init().await.expect("the server is up");
        Self { client }
    }
}

impl Client for Fred {
    async fn get(&self, key: &Bytes) -> bool {
        let value = self.client.get::<Option<Bytes>, _>(key.clone()).await;
        value.is_ok_and(|value| value.is_some())
    }

    async fn get_many(&self, keys: &[Bytes]) -> usize {
        let values = self.client.mget::<Vec<Option<Bytes>>, _>(keys.to_vec()).await;
        values.map_or(0, |values| values.iter().flatten().count())
    }
}
