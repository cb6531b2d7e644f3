//! The health check of gRPC: one call of `grpc.health.v1.Health/Check` over a connection of its own.
//!
//! The protocol (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>) has two messages of one
//! field each: the request names a service, the empty name being the whole server, and the answer holds a
//! status. So the few bytes are written and read here, over HTTP/2 without TLS.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use http::{Request, StatusCode};
use tokio::net::TcpStream;

/// The longest answer that is read; a good one has seven bytes.
const ANSWER_MAX_BYTES: usize = 1_024;
/// The value of the status that means well.
const SERVING: u64 = 1;

/// Asks a server about a service; the reason says why it is not well.
pub(super) async fn ask(stream: TcpStream, address: &str, service: &str) -> Result<(), String> {
    let broken = |error: h2::Error| format!("connection broke: {error}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    // Nothing is spawned: the connection goes on as long as its answer is waited for.
    tokio::select! {
        answer = check(sender, address, service) => answer,
        ended = connection => {
            Err(ended.err().map_or_else(|| "connection was closed".to_owned(), broken))
        }
    }
}

async fn check(sender: SendRequest<Bytes>, address: &str, service: &str) -> Result<(), String> {
    let broken = |error: h2::Error| format!("connection broke: {error}");
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "health-check")
        .body(())
        .map_err(|error| format!("no address: {error}"))?;
    let mut sender = sender.ready().await.map_err(broken)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
    body.send_data(encode(service), true).map_err(broken)?;
    let (head, mut body) = answer.await.map_err(broken)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("HTTP status {}", head.status.as_u16()));
    }
    // An error may come without a message, and then in the head.
    failure(&head.headers)?;
    let message = read(&mut body).await?;
    failure(&body.trailers().await.map_err(broken)?.unwrap_or_default())?;
    match decode(&message) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("it says UNKNOWN".to_owned()),
        Some(2) => Err("it says NOT_SERVING".to_owned()),
        Some(3) => Err("it says SERVICE_UNKNOWN".to_owned()),
        Some(other) => Err(format!("it says status {other}, which is not known")),
        None => Err("no answer of a health check".to_owned()),
    }
}

/// Reads a body to its end.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, String> {
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("connection broke: {error}"))?;
        if message.len() + data.len() > ANSWER_MAX_BYTES {
            return Err(format!("an answer of more than {ANSWER_MAX_BYTES} bytes"));
        }
        message.extend_from_slice(&data);
        _ = body.flow_control().release_capacity(data.len());
    }
    Ok(message)
}

/// The error that headers or trailers tell of, if they do.
fn failure(fields: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match (text("grpc-status"), text("grpc-message")) {
        (None, _) => Ok(()),
        (Some(status), _) if status == "0" => Ok(()),
        (Some(status), Some(message)) => Err(format!("gRPC status {status}: {message}")),
        (Some(status), None) => Err(format!("gRPC status {status}")),
    }
}

/// The request: a frame without compression around a message whose field 1 is the service.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    // A name that does not fit into 32 bits does not fit into a backend's settings either.
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// The status of an answer: field 1 of the message in a frame without compression.
///
/// A field that is left out is zero, as always in protobuf; fields that are not known are passed over.
fn decode(frame: &[u8]) -> Option<u64> {
    let (head, mut message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// Takes a number of variable length from the front.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        frame
    }

    #[test]
    fn a_request_names_its_service_or_nothing() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "s".repeat(300);
        assert_eq!(&encode(&long)[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn an_answer_is_read_past_what_is_not_known_and_not_if_it_is_cut() {
        assert_eq!(decode(&frame(&[0x08, 1])), Some(1));
        assert_eq!(decode(&frame(&[])), Some(0), "zero is left out");
        assert_eq!(decode(&frame(&[0x08, 0x82, 0x01])), Some(130));
        assert_eq!(decode(&frame(&[0x12, 2, 9, 9, 0x1d, 1, 2, 3, 4, 0x08, 2])), Some(2));
        assert_eq!(decode(&frame(&[0x08])), None);
        assert_eq!(decode(&frame(&[0x12, 9, 1])), None);
        assert_eq!(decode(&frame(&[0x08, 1])[..6]), None);
        assert_eq!(decode(&[1, 0, 0, 0, 2, 0x08, 1]), None, "compressed");
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn an_error_is_told_with_its_number_and_its_words() {
        let fields = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (name.parse::<http::HeaderName>().expect("a name"), value.parse().expect("a value"))
            });
            pairs.collect::<HeaderMap>()
        };
        assert_eq!(failure(&fields(&[])), Ok(()));
        assert_eq!(failure(&fields(&[("grpc-status", "0")])), Ok(()));
        let error = fields(&[("grpc-status", "5"), ("grpc-message", "unknown service")]);
        assert_eq!(failure(&error), Err("gRPC status 5: unknown service".to_owned()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            _ = decode(&bytes);
            _ = decode(&frame(&bytes));
        }
    }
}
