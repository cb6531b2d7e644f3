//! The background task: learns the namespace's version, probes a server that was away, and cleans up
//! after lost writes.
//!
//! It also asks the server to tell what other machines change, whenever a promise to do so has ended.
//!
//! It is the only one who sets versions, and while the breaker is not closed the only one who talks to
//! the server at all. So an outage ends without any caller's help, and before the first get goes
//! through, the server's identity and the version have been looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use resilience::{Outcome, State};
use tokio::time::{Instant, sleep, timeout};

use super::client::{Command, RemoteError};
use super::coherence::Found;
use super::tags::SCRIPT;
use super::{Lookup, Shared};

/// How often the version is looked at: how long another machine's `clear` may go unnoticed.
const POLL: Duration = Duration::from_secs(1);
/// How the first connection is waited for: it takes a few milliseconds, or the server is away.
const CONNECTING: Duration = Duration::from_millis(5);
const CONNECTING_CHECKS: u32 = 20;
/// The pause after a failure that has not opened the breaker yet.
const RETRY: Duration = Duration::from_millis(100);
/// The least pause while the breaker is open.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// How long answers may be missing before the connections are made anew.
const STUCK: Duration = Duration::from_secs(3);
/// How often the version may turn out to be missing or wrong before that is a failure.
const LEARN_MAX: u32 = 4;
/// Dirty keys that are deleted in one round trip.
const DELETES: usize = 256;

/// Why a round did not come to its end.
enum Trouble {
    /// The breaker lets nothing through for so long.
    Open(Duration),
    Remote(RemoteError),
}

/// Keeps the tier in order until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut silent_since: Option<Instant> = None;
    let mut in_order = None;
    for _ in 0..CONNECTING_CHECKS {
        if shared.client.is_connected() {
            break;
        }
        sleep(CONNECTING).await;
    }
    loop {
        let result = round(&shared).await;
        let now = Instant::now();
        silent_since = match &result {
            Err(Trouble::Remote(RemoteError::Timeout)) => silent_since.or(Some(now)),
            Err(Trouble::Open(_)) => silent_since,
            _ => None,
        };
        let stuck = silent_since.is_some_and(|since| now.duration_since(since) >= STUCK);
        if stuck {
            silent_since = None;
        }
        shared.client.tend(stuck);
        match &result {
            Ok(()) if in_order != Some(true) => {
                tracing::info!(namespace = shared.namespace, "the redis tier is in service");
                in_order = Some(true);
            }
            Err(Trouble::Remote(error)) if in_order != Some(false) => {
                tracing::warn!(namespace = shared.namespace, %error, "the redis tier is out of service");
                in_order = Some(false);
            }
            _ => {}
        }
        match result {
            Ok(()) => {
                let due = shared.following.is_due(shared.config.coherence, &*shared.client);
                let pause = if due { RETRY } else { POLL };
                // Either way there is nothing to do but the next round.
                let _ = timeout(pause, shared.wake.notified()).await;
            }
            Err(Trouble::Open(retry_after)) => sleep(retry_after.clamp(PAUSE_MIN, POLL)).await,
            Err(Trouble::Remote(_)) => sleep(RETRY).await,
        }
    }
}

async fn round(shared: &Shared) -> Result<(), Trouble> {
    loop {
        let open = |open: resilience::Open| Trouble::Open(open.retry_after);
        let permit = shared.breaker.try_acquire_at(Instant::now().into_std()).map_err(open)?;
        let result = learn(shared).await;
        shared.publish();
        let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
        let now = Instant::now().into_std();
        permit.complete_at(outcome, now);
        result.map_err(Trouble::Remote)?;
        // A version that was set before the servers promised to tell has to be looked at.
        if shared.breaker.state_at(now) == State::Closed && !follow(shared).await {
            break;
        }
    }
    tags(shared).await?;
    let result = clean(shared).await;
    shared.publish();
    result
}

/// Appends invalidated tags to their log, and reads what others have appended.
async fn tags(shared: &Shared) -> Result<(), Trouble> {
    if !shared.tags.used.load(Ordering::Acquire) {
        return Ok(());
    }
    loop {
        let Some(permit) = shared.permit() else {
            return Err(Trouble::Open(RETRY));
        };
        let (turn, appends) = {
            let mirror = shared.tags.mirror.read();
            (mirror.turn(), mirror.is_due())
        };
        let key = shared.names.tags();
        let answer = shared.client.eval(SCRIPT, key.clone(), turn.arguments.clone());
        let answer = in_time(shared, answer).await.and_then(|answer| answer);
        permit.complete_at(shared.outcome(answer.as_ref().err()), Instant::now().into_std());
        let answer = match answer {
            Ok(answer) => answer,
            Err(RemoteError::Refused(reason)) => {
                // Whoever asks for a tag that is not known takes it for stale.
                if !shared.tags.refused.swap(true, Ordering::Relaxed) {
                    let namespace = &shared.namespace;
                    tracing::warn!(namespace, reason, "redis does not keep the log of tags");
                }
                return Ok(());
            }
            Err(error) => return Err(Trouble::Remote(error)),
        };
        shared.tags.refused.store(false, Ordering::Relaxed);
        let (known, news, acknowledged) = {
            let mut mirror = shared.tags.mirror.write();
            (mirror.head() > 0, mirror.take(&turn, &answer), mirror.acknowledged())
        };
        shared.tags.acknowledged.send_replace(acknowledged);
        let listener = shared.following.listener.get();
        let message = shared.following.message(shared.config.coherence, &shared.names, &[&key]);
        if let (Some(message), true) = (message, appends) {
            // Who does not hear of it looks within a second.
            let _ = in_time(shared, shared.client.run(vec![message])).await;
        }
        let more = news.as_ref().is_none_or(|news| news.more);
        if let (Some(listener), Some(news)) = (listener, news) {
            if news.first {
                listener.tags_known().await;
            } else if !news.tags.is_empty() && known {
                listener.tags_invalidated(&news.tags).await;
            }
            if news.lost {
                shared.following.pushes.empty(None);
            }
        }
        if !more {
            return Ok(());
        }
    }
}

/// Asks to be told of changes where that is due; tells whether the servers have just promised to.
async fn follow(shared: &Shared) -> bool {
    if !shared.following.is_due(shared.config.coherence, &*shared.client) {
        return false;
    }
    let asked = in_time(shared, shared.following.ask(shared)).await;
    asked.flatten().unwrap_or_else(|error| {
        tracing::debug!(namespace = shared.namespace, %error, "memory does not follow redis yet");
        false
    })
}

/// Makes sure that the servers are the known ones and that the version in use is the one that counts.
async fn learn(shared: &Shared) -> Result<(), RemoteError> {
    for (lane, verified) in shared.verified.iter().enumerate() {
        let connection = shared.client.connection(lane);
        if verified.load(Ordering::Acquire) == connection {
            continue;
        }
        let servers = in_time(shared, shared.client.servers(lane)).await??;
        shared.coherence.lock().met(servers);
        shared.publish();
        if shared.client.connection(lane) == connection {
            // Release: whoever sees this lane verified sees what `met` made of the version. Pairs
            // with the Acquire in `batch::look_up`.
            verified.store(connection, Ordering::Release);
        }
    }
    // More than one turn is needed only if somebody else changes the version meanwhile.
    for _ in 0..LEARN_MAX {
        loop {
            let bump = shared.coherence.lock().begin_bump(unix_micros());
            let Some(bump) = bump else { break };
            let (key, value) = (shared.names.version(), Bytes::from(bump.version.to_string()));
            let result = run_one(shared, Command::Set { key, value, ttl: None }).await;
            shared.coherence.lock().end_bump(bump, result.is_ok());
            shared.publish();
            result?;
        }
        let found = version(shared).await?;
        let candidate = {
            let mut coherence = shared.coherence.lock();
            let is_there = coherence.found(found);
            shared.following.note_replaced(coherence.replaced());
            if is_there && coherence.serving().is_some() {
                return Ok(());
            }
            (!is_there).then(|| coherence.candidate(unix_micros()))
        };
        if let Some(candidate) = candidate {
            let (key, value) = (shared.names.version(), Bytes::from(candidate.to_string()));
            run_one(shared, Command::SetIfMissing { key, value, ttl: None }).await?;
        }
    }
    Err(RemoteError::Refused("the namespace's version does not stay".to_owned()))
}

async fn version(shared: &Shared) -> Result<Found, RemoteError> {
    let connection = shared.client.connection(0);
    let mut fetched =
        in_time(shared, shared.client.get_many(0, vec![shared.names.version()])).await?;
    match (fetched.error, fetched.values.pop()) {
        (Some(error), _) => Err(error),
        (None, Some(Lookup::Hit(value))) => {
            answered(shared, connection);
            let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
            // Zero is what "not serving" looks like.
            Ok(number.filter(|number| *number != 0).map_or(Found::Garbage, Found::Version))
        }
        (None, _) => {
            answered(shared, connection);
            Ok(Found::Nothing)
        }
    }
}

fn answered(shared: &Shared, connection: u64) {
    if shared.client.connection(0) == connection {
        shared.coherence.lock().answered(connection, Instant::now());
    }
}

async fn run_one(shared: &Shared, command: Command) -> Result<(), RemoteError> {
    let results = in_time(shared, shared.run(vec![command])).await?;
    results.into_iter().next().unwrap_or(Err(RemoteError::Timeout))
}

/// Deletes dirty keys as far as that does something now.
async fn clean(shared: &Shared) -> Result<(), Trouble> {
    loop {
        let (now, connection) = (Instant::now(), shared.client.connection(0));
        let (keys, version, sent) = {
            let coherence = shared.coherence.lock();
            let keys = coherence.to_delete(DELETES, connection, now);
            (keys, coherence.serving(), coherence.sending(connection, now))
        };
        let (Some(version), false) = (version, keys.is_empty()) else {
            return Ok(());
        };
        let Some(permit) = shared.permit() else {
            return Err(Trouble::Open(RETRY));
        };
        let delete = |key: &Bytes| Command::Delete { key: shared.names.entry(version, key) };
        let deletes = keys.iter().map(delete).collect();
        let results = in_time(shared, shared.run(deletes)).await;
        let results = results.unwrap_or_else(|error| vec![Err(error); keys.len()]);
        let connection = shared.client.connection(0);
        let mut failure = None;
        {
            let mut coherence = shared.coherence.lock();
            for (key, result) in keys.iter().zip(results) {
                match result {
                    Ok(()) => coherence.deleted(key, sent, connection),
                    Err(error) => failure = Some(error),
                }
            }
        }
        shared.publish();
        permit.complete_at(shared.outcome(failure.as_ref()), Instant::now().into_std());
        if let Some(error) = failure {
            return Err(Trouble::Remote(error));
        }
    }
}

async fn in_time<T>(shared: &Shared, answer: impl Future<Output = T>) -> Result<T, RemoteError> {
    timeout(shared.config.timeout, answer).await.map_err(|_| RemoteError::Timeout)
}

fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
