//! One connection over `redis-rs` that comes back by itself.
//!
//! Of redis-rs this takes the multiplexed connection: commands of many tasks in one pipeline, RESP3, and
//! pushes. What keeps it alive is here, because the tier has to know which connection carried a command:
//!
//! - A task connects, counts the connection, and only then lets commands on it. When the connection ends
//!   it connects again: at once if the connection had lasted, then after a growing and jittered delay.
//! - A command fails at once while there is no connection, and is sent once.
//! - A server that leaves commands without an answer for longer than [`SILENT`] loses its connection.
//! - The socket is closed with a reset (`linger` 0), so that nothing in its send buffer reaches the
//!   server later than what a new connection sends.
//! - What the server tells unasked goes into the tier's queue of pushes, if there is one; the end of the
//!   connection is a loss, and so is the news that the server was emptied, which comes without names.
//! - What waits to be sent is bounded: [`QUEUED`] commands and pipelines, and the tier's own limits.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, ServerError, Value,
};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::address::Address;
use super::client::{Push, RemoteError};
use super::invalidation::PushQueue;

/// How long a connection may take to be set up. A server that is frozen meanwhile has it ready when
/// it goes on.
const SET_UP: Duration = Duration::from_secs(5);
/// The delays between two attempts to connect.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a server may leave commands without an answer before its connection is given up.
const SILENT: Duration = Duration::from_secs(1);
/// How often a connection that pushes come over is sent something, so that it is noticed when it is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Commands and pipelines that wait for the socket to take them.
const QUEUED: usize = 64;

/// What reads and writes a connection's socket, as long as it is polled.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How to connect.
pub(super) struct Settings {
    pub(super) address: Address,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What one command may take.
    pub(super) timeout: Duration,
}

impl Settings {
    /// Connects to a server, within [`SET_UP`].
    pub(super) async fn connect(
        &self,
        (host, port): &(String, u16),
        pushes: Option<&Arc<PushQueue>>,
    ) -> Result<(MultiplexedConnection, Driver), RemoteError> {
        let connected = timeout(SET_UP, self.connect_in_time(host, *port, pushes)).await;
        connected.map_err(|_| RemoteError::Timeout)?
    }

    async fn connect_in_time(
        &self,
        host: &str,
        port: u16,
        pushes: Option<&Arc<PushQueue>>,
    ) -> Result<(MultiplexedConnection, Driver), RemoteError> {
        let broken = |error: std::io::Error| RemoteError::Disconnected(error.to_string());
        let socket = TcpStream::connect((host, port)).await.map_err(broken)?;
        socket.set_nodelay(true).map_err(broken)?;
        socket.set_zero_linger().map_err(broken)?;
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name()
            .set_db(self.address.database.unwrap_or(0).into());
        if let Some(user) = &self.address.user {
            info = info.set_username(user);
        }
        if let Some(password) = &self.address.password {
            info = info.set_password(password);
        }
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUED);
        if let Some(pushes) = pushes {
            let pushes = Arc::clone(pushes);
            config = config.set_push_sender(move |told| {
                if let Some(push) = push(told) {
                    pushes.push(push);
                }
                Ok::<_, ()>(())
            });
        }
        let Some(tls) = &self.tls else {
            let (connection, driver) =
                MultiplexedConnection::new_with_config(&info, socket, config)
                    .await
                    .map_err(failed)?;
            return Ok((connection, Box::pin(driver)));
        };
        let name = self.address.certificate_name().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name)
            .map_err(|error| RemoteError::Disconnected(error.to_string()))?;
        let socket =
            TlsConnector::from(Arc::clone(tls)).connect(name, socket).await.map_err(broken)?;
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&info, socket, config).await.map_err(failed)?;
        Ok((connection, Box::pin(driver)))
    }
}

/// A connection to one server, kept up by a task until this is dropped.
pub(super) struct Link {
    state: Arc<State>,
    timeout: Duration,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Default)]
struct State {
    line: Mutex<Option<Line>>,
    connections: AtomicU64,
    /// Since when commands have had no answer.
    silent_since: Mutex<Option<Instant>>,
}

/// A connection that is up.
#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    give_up: Arc<Notify>,
}

impl Link {
    /// Begins to connect, in the background, on the current runtime. `down` is told of each
    /// connection that ends, and `pushes` takes what the server tells.
    pub(super) fn start(
        settings: &Arc<Settings>,
        host: (String, u16),
        down: &Arc<Notify>,
        pushes: Option<&Arc<PushQueue>>,
    ) -> Self {
        let state = Arc::new(State::default());
        let keeper = Keeper {
            settings: Arc::clone(settings),
            host,
            state: Arc::clone(&state),
            down: Arc::clone(down),
            pushes: pushes.map(Arc::clone),
        };
        let task = tokio::spawn(keeper.keep()).abort_handle();
        Self { state, timeout: settings.timeout, task }
    }

    /// Sends a command and waits for its answer, which may be the server's error.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RemoteError> {
        let mut line = self.line()?;
        let answer = timeout(self.timeout, line.connection.send_packed_command(command)).await;
        self.heard(answer.is_ok());
        match answer {
            Err(_) => Err(RemoteError::Timeout),
            Ok(answer) => answer.map_err(failed),
        }
    }

    /// Sends commands in one go and waits for all their answers.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RemoteError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut line = self.line()?;
        let sent = line.connection.send_packed_commands(commands, 0, commands.len());
        let answer = timeout(self.timeout, sent).await;
        self.heard(answer.is_ok());
        match answer {
            Err(_) => Err(RemoteError::Timeout),
            Ok(answer) => answer.map_err(failed),
        }
    }

    fn line(&self) -> Result<Line, RemoteError> {
        let line = self.state.line.lock().clone();
        line.ok_or_else(|| RemoteError::Disconnected("no connection".to_owned()))
    }

    /// Watches over a server that takes commands and says nothing. Any answer counts, an error too.
    fn heard(&self, answered: bool) {
        let now = Instant::now();
        let mut silent = self.state.silent_since.lock();
        if answered {
            *silent = None;
            return;
        }
        let since = *silent.get_or_insert(now);
        if now.duration_since(since) >= SILENT.max(self.timeout * 4) {
            *silent = None;
            drop(silent);
            self.give_up();
        }
    }

    /// Ends the connection that is up, so that a new one is made.
    pub(super) fn give_up(&self) {
        if let Some(line) = &*self.state.line.lock() {
            line.give_up.notify_one();
        }
    }

    /// Counts the connections. Each is counted before anything is sent on it.
    pub(super) fn connections(&self) -> u64 {
        // Acquire: pairs with the Release in `keep`. An answer that came over a new connection finds it
        // counted.
        self.state.connections.load(Ordering::Acquire)
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.line.lock().is_some()
    }

    /// Ends the connection for good.
    pub(super) fn end(&self) {
        self.task.abort();
        *self.state.line.lock() = None;
    }
}

/// What keeps a connection up.
struct Keeper {
    settings: Arc<Settings>,
    host: (String, u16),
    state: Arc<State>,
    down: Arc<Notify>,
    pushes: Option<Arc<PushQueue>>,
}

impl Keeper {
    async fn keep(self) {
        let Self { settings, host, state, down, pushes } = self;
        let mut delay = RECONNECT_MIN;
        loop {
            match settings.connect(&host, pushes.as_ref()).await {
                Ok((connection, mut driver)) => {
                    let (began, give_up) = (Instant::now(), Arc::new(Notify::new()));
                    // Release: counted before anybody can send on it.
                    state.connections.fetch_add(1, Ordering::Release);
                    *state.silent_since.lock() = None;
                    let alive = pushes.is_some().then(|| connection.clone());
                    *state.line.lock() = Some(Line { connection, give_up: Arc::clone(&give_up) });
                    tokio::select! {
                        () = &mut driver => {}
                        () = give_up.notified() => {}
                        () = until_dead(alive, SILENT.max(settings.timeout * 4)) => {}
                    }
                    *state.line.lock() = None;
                    // Whoever waits for an answer is told; the socket goes with a reset.
                    drop(driver);
                    if let Some(pushes) = &pushes {
                        pushes.push(Push::Lost);
                    }
                    down.notify_one();
                    if began.elapsed() >= delay {
                        // Most likely the server is there: the first attempt is at once.
                        delay = RECONNECT_MIN;
                        continue;
                    }
                }
                Err(error) => {
                    let (host, port) = &host;
                    tracing::debug!(host, port, %error, "cannot connect to redis");
                }
            }
            sleep(delay.mul_f64(0.5 + fastrand::f64())).await;
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }
}

/// Sends something now and then, until there is no answer in time; for ever without a connection.
async fn until_dead(connection: Option<MultiplexedConnection>, patience: Duration) {
    let Some(mut connection) = connection else { return std::future::pending().await };
    let mut ping = Cmd::new();
    ping.arg("PING");
    loop {
        sleep(KEEP_ALIVE).await;
        if timeout(patience, connection.send_packed_command(&ping)).await.is_err() {
            return;
        }
    }
}

/// What a server told unasked, if it matters.
fn push(told: PushInfo) -> Option<Push> {
    let bytes = |value| match value {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        Value::SimpleString(text) => Some(Bytes::from(text)),
        _ => None,
    };
    let mut data = told.data.into_iter();
    match told.kind {
        PushKind::Invalidate => Some(match data.next() {
            Some(Value::Array(names)) => {
                let names: Option<Vec<_>> = names.into_iter().map(bytes).collect();
                names.map_or(Push::Lost, Push::Changed)
            }
            // Without names: the server was emptied.
            _ => Push::Lost,
        }),
        // The channel, then the message.
        PushKind::Message => Some(data.nth(1).and_then(bytes).map_or(Push::Lost, Push::Message)),
        _ => None,
    }
}

/// What an error of redis-rs says about a command.
fn failed(error: RedisError) -> RemoteError {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
            RemoteError::Refused(error.to_string())
        }
        _ => RemoteError::Disconnected(error.to_string()),
    }
}

/// What a server's error says about a command.
pub(super) fn refused(error: &ServerError) -> RemoteError {
    RemoteError::Refused(match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_tells_is_names_or_a_message_or_a_loss() {
        let text = |text: &str| Value::BulkString(text.into());
        let names = |names: &[&str]| Value::Array(names.iter().map(|name| text(name)).collect());
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        for (kind, data, expected) in [
            (
                PushKind::Invalidate,
                vec![names(&["a", "b"])],
                Some(Push::Changed(vec![bytes("a"), bytes("b")])),
            ),
            (PushKind::Invalidate, vec![Value::Nil], Some(Push::Lost)),
            (PushKind::Invalidate, vec![], Some(Push::Lost)),
            (PushKind::Invalidate, vec![Value::Array(vec![Value::Nil])], Some(Push::Lost)),
            (PushKind::Message, vec![text("channel"), text("m")], Some(Push::Message(bytes("m")))),
            (PushKind::Message, vec![text("channel")], Some(Push::Lost)),
            (PushKind::Subscribe, vec![text("channel"), Value::Int(1)], None),
            (PushKind::Disconnection, vec![], None),
        ] {
            assert_eq!(push(PushInfo { kind, data }), expected);
        }
    }
}
