//! Where sets come from: names that are resolved again and again, or a stream of sets.
//!
//! Both keep the last set when the next one cannot be had, and say so as an event. The resolver of the
//! system does not tell how long its answers hold, so names are asked at an interval.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::backend::Backend;
use crate::balancer::Balancer;

/// Keeps the set in step with a source; it stops when this is dropped, and the set stays.
#[derive(Debug)]
#[must_use = "discovery stops when this is dropped"]
pub struct Discovery {
    task: JoinHandle<()>,
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Discovery {
    /// Resolves a `host:port` at once and then every `interval`, give or take a tenth.
    ///
    /// Each address becomes a backend, which `describe` makes. A name that cannot be resolved, or
    /// that has no addresses, leaves the set as it is.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn dns(
        balancer: &Balancer,
        name: impl Into<String>,
        interval: Duration,
        describe: impl Fn(SocketAddr) -> Backend + Send + 'static,
    ) -> Self {
        let (balancer, name) = (balancer.clone(), name.into());
        let task = tokio::spawn(async move {
            let mut last = BTreeSet::new();
            loop {
                match tokio::net::lookup_host(&name).await {
                    Ok(addresses) => {
                        let addresses: BTreeSet<SocketAddr> = addresses.collect();
                        if addresses.is_empty() {
                            balancer.discovery_failed(format!("{name} has no addresses"));
                        } else if addresses != last {
                            let backends = addresses.iter().map(|address| describe(*address));
                            match balancer.update(backends) {
                                Ok(()) => last = addresses,
                                Err(error) => balancer.discovery_failed(error.to_string()),
                            }
                        }
                    }
                    Err(error) => {
                        balancer.discovery_failed(format!("cannot resolve {name}: {error}"));
                    }
                }
                let interval = interval.max(Duration::from_millis(10));
                sleep(interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            }
        });
        Self { task }
    }

    /// Takes every set of a stream; the last one stays when the stream ends.
    ///
    /// A set that cannot be used leaves the one before it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn stream(
        balancer: &Balancer,
        sets: impl Stream<Item = Vec<Backend>> + Send + 'static,
    ) -> Self {
        let balancer = balancer.clone();
        let task = tokio::spawn(async move {
            let mut sets = std::pin::pin!(sets);
            while let Some(backends) = sets.next().await {
                if let Err(error) = balancer.update(backends) {
                    balancer.discovery_failed(error.to_string());
                }
            }
        });
        Self { task }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::event::Change;

    #[tokio::test]
    async fn addresses_become_backends_and_a_wrong_name_changes_nothing() {
        let balancer = Balancer::builder().build().expect("a valid set");
        let mut events = balancer.events();
        let describe = |address: SocketAddr| Backend::new(address.to_string()).weight(3);
        let dns = Discovery::dns(&balancer, "127.0.0.1:81", Duration::from_secs(60), describe);
        assert_eq!(events.next().await.expect("it lives").change, Change::Added { known: false });
        drop(dns);
        let wrong = "no host here:1";
        let _dns = Discovery::dns(&balancer, wrong, Duration::from_secs(60), describe);
        let failed = events.next().await.expect("it lives").to_string();
        assert!(
            failed.starts_with("discovery failed: cannot resolve no host here:1: "),
            "{failed}"
        );
        let all = balancer.backends();
        assert_eq!((all.len(), &*all[0].id, all[0].weight), (1, "127.0.0.1:81", 3));
    }

    #[tokio::test]
    async fn every_set_of_a_stream_counts_and_a_bad_one_is_passed_over() {
        let balancer = Balancer::builder().build().expect("a valid set");
        let mut events = balancer.events();
        let set = |ids: &[&str]| ids.iter().map(|id| Backend::new(*id)).collect::<Vec<_>>();
        let sets = [set(&["a"]), set(&["x", "x"]), set(&["b"])];
        let _discovery = Discovery::stream(&balancer, stream::iter(sets));
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(events.next().await.expect("it lives").to_string());
        }
        assert_eq!(told[0], "a: added");
        assert!(told[1].starts_with("discovery failed: invalid balancer, 1 problem"), "{told:?}");
        assert_eq!(told[2..], ["a: removed", "a: drained", "b: added"]);
    }
}
