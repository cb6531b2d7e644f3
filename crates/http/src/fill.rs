//! A body on its way from the origin, read by several clients while it is being stored.
//!
//! One task, the pump, takes frames from the origin as fast as they come and puts them where every
//! reader finds them; a slow client therefore neither slows the others down nor holds the origin's
//! connection. What a fill may keep is bounded. A body that grows past the bound is not stored: the
//! fill then lets go of what its only reader has had, and the pump waits for that reader from there
//! on.
//!
//! Only a body whose length is known to fit is given to a second reader, so a fill with several
//! readers never reaches its bound.
//!
//! A body that stalls is given up, sooner if nobody reads it: what it holds would stay taken, and
//! requests for the same would wait for it.
//!
//! All fills together take their bytes from one [`Room`]. A body of known length takes its part
//! before it begins, one of unknown length as it grows; what finds no room is passed on unstored.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes that the pump may be ahead of the reader of a body that is too long to be kept.
const WINDOW_BYTES: usize = 256 << 10;

/// What all bodies that are being stored may take of memory together.
#[derive(Debug)]
pub(crate) struct Room {
    left_bytes: Mutex<usize>,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left_bytes: Mutex::new(bytes) })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Option<Taken> {
        let mut taken = Taken { room: Arc::clone(self), bytes: 0 };
        taken.grow(bytes).then_some(taken)
    }
}

/// A part of the room; given back when dropped.
#[derive(Debug)]
struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Taken {
    /// Takes more; false if there is not enough.
    fn grow(&mut self, bytes: usize) -> bool {
        let mut left_bytes = self.room.left_bytes.lock();
        let Some(rest) = left_bytes.checked_sub(bytes) else { return false };
        *left_bytes = rest;
        self.bytes += bytes;
        true
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.room.left_bytes.lock() += self.bytes;
    }
}

/// How long nothing may come of a body before it is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silence {
    pub(crate) read: Duration,
    /// While nobody reads it.
    pub(crate) unread: Duration,
}

/// The origin broke off within a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the origin's response broke off")]
pub(crate) struct BrokenOff;

/// A body being stored.
#[derive(Debug)]
pub(crate) struct Fill {
    state: Mutex<State>,
    /// Tells a waiting pump that a reader has moved, or is gone.
    moved: Notify,
    max_bytes: usize,
    /// The length, where the origin has announced it.
    length: Option<usize>,
}

#[derive(Debug)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Number of the first chunk that is still here.
    first: usize,
    /// Bytes of the chunks that are here.
    kept_bytes: usize,
    /// Given back once the pump is done, or the body is only passed on.
    taken: Option<Taken>,
    /// Whether the body has become too long to keep.
    passing: bool,
    /// All of the body, in place of the chunks.
    whole: Option<Bytes>,
    end: Option<End>,
    readers: Vec<Reader>,
    next_reader: u64,
}

#[derive(Debug)]
struct Reader {
    id: u64,
    waker: Option<Waker>,
}

#[derive(Debug, Clone)]
enum End {
    Complete(Option<HeaderMap>),
    Broken,
}

/// How a pump ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// The whole body, in a piece of memory of its own.
    Complete(Bytes),
    /// It is too long or carries trailers.
    Unsuitable,
    /// It broke off, or stalled.
    Broken,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushed {
    Kept,
    /// With this one the body has become too long to keep.
    NowPassing,
    Passing,
}

impl Fill {
    /// Begins to store a body of at most `max_bytes`; `None` if it is known that it will not fit.
    pub(crate) fn begin(
        room: &Arc<Room>,
        max_bytes: usize,
        length: Option<u64>,
    ) -> Option<Arc<Self>> {
        let length = match length.map(usize::try_from) {
            Some(Ok(length)) if length <= max_bytes => Some(length),
            Some(_) => return None,
            None => None,
        };
        let taken = room.take(length.unwrap_or(0))?;
        Some(Arc::new(Self {
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                first: 0,
                kept_bytes: 0,
                taken: Some(taken),
                passing: false,
                whole: None,
                end: None,
                readers: Vec::new(),
                next_reader: 0,
            }),
            moved: Notify::new(),
            max_bytes,
            length,
        }))
    }

    /// Whether further readers may join.
    pub(crate) fn is_shareable(&self) -> bool {
        self.length.is_some()
    }

    /// A reader that begins at the beginning.
    pub(crate) fn reader(self: &Arc<Self>) -> FillReader {
        let mut state = self.state.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.push(Reader { id, waker: None });
        FillReader { fill: Arc::clone(self), id, next: 0, read_bytes: 0 }
    }

    /// Moves a body in, to its end.
    ///
    /// `unsuitable` is called as soon as it is known that the body is not kept, which may be long before
    /// its end.
    pub(crate) async fn pump<B>(
        &self,
        body: B,
        silence: Silence,
        mut unsuitable: impl FnMut(),
    ) -> Pumped
    where
        B: Body<Data = Bytes>,
    {
        let mut body = std::pin::pin!(body);
        // Whoever drops this future breaks the body off for its readers.
        let guard = BreakOff(self);
        let mut trailers = None;
        loop {
            let Some(frame) = self.next(body.as_mut(), silence).await else {
                tracing::warn!("a body that was being stored stalled");
                return Pumped::Broken;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let pushed = self.push(data);
                        if pushed == Pushed::NowPassing {
                            unsuitable();
                        }
                        if pushed != Pushed::Kept && !self.caught_up().await {
                            return Pumped::Unsuitable;
                        }
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                Some(Err(_)) => return Pumped::Broken,
                None => break,
            }
        }
        std::mem::forget(guard);
        self.complete(trailers)
    }

    /// The next frame of a body; `None` once nothing has come for too long.
    async fn next<B: Body>(
        &self,
        mut body: Pin<&mut B>,
        silence: Silence,
    ) -> Option<Option<Result<Frame<B::Data>, B::Error>>> {
        let since = Instant::now();
        loop {
            let limit = {
                let state = self.state.lock();
                match (state.readers.is_empty(), state.passing) {
                    (false, _) => silence.read,
                    (true, false) => silence.unread,
                    // Neither a reader nor the cache gets what is still to come.
                    (true, true) => Duration::ZERO,
                }
            };
            tokio::select! {
                biased;
                frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)) => {
                    return Some(frame);
                }
                // A reader may have gone.
                () = self.moved.notified() => {}
                () = tokio::time::sleep(limit.saturating_sub(since.elapsed())) => {
                    // Or one may have come.
                    if limit < silence.read && !self.state.lock().readers.is_empty() {
                        continue;
                    }
                    return None;
                }
            }
        }
    }

    /// Adds a chunk.
    fn push(&self, data: Bytes) -> Pushed {
        let mut state = self.state.lock();
        let unannounced = if self.length.is_some() { 0 } else { data.len() };
        let was_passing = state.passing;
        state.kept_bytes += data.len();
        state.chunks.push_back(data);
        if !was_passing {
            let has_room = state.taken.as_mut().is_some_and(|taken| taken.grow(unannounced));
            state.passing = !has_room || state.kept_bytes > self.max_bytes;
        }
        if state.passing {
            state.taken = None;
        }
        state.wake_readers();
        match (was_passing, state.passing) {
            (_, false) => Pushed::Kept,
            (false, true) => Pushed::NowPassing,
            (true, true) => Pushed::Passing,
        }
    }

    /// Waits for the reader of a body that is not kept; false when there is nobody left for whom to go on.
    async fn caught_up(&self) -> bool {
        loop {
            let moved = self.moved.notified();
            {
                let state = self.state.lock();
                if state.readers.is_empty() {
                    return false;
                }
                if state.kept_bytes <= WINDOW_BYTES {
                    return true;
                }
            }
            moved.await;
        }
    }

    fn complete(&self, trailers: Option<HeaderMap>) -> Pumped {
        let chunks = {
            let state = self.state.lock();
            let keep = !state.passing && trailers.is_none();
            keep.then(|| state.chunks.iter().cloned().collect::<Vec<_>>())
        };
        // Chunks are slices of read buffers, which a kept body must not hold on to.
        let whole = chunks.map(|chunks| Bytes::from(chunks.concat()));
        let mut state = self.state.lock();
        if whole.is_some() {
            state.chunks = VecDeque::new();
            state.whole.clone_from(&whole);
        }
        state.taken = None;
        state.end = Some(End::Complete(trailers));
        state.wake_readers();
        whole.map_or(Pumped::Unsuitable, Pumped::Complete)
    }
}

/// Ends a fill whose pump is gone.
struct BreakOff<'a>(&'a Fill);

impl Drop for BreakOff<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.taken = None;
        state.end = Some(End::Broken);
        state.wake_readers();
    }
}

impl State {
    fn wake_readers(&mut self) {
        for reader in &mut self.readers {
            if let Some(waker) = reader.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Reads a fill as a response body.
#[derive(Debug)]
pub(crate) struct FillReader {
    fill: Arc<Fill>,
    id: u64,
    next: usize,
    read_bytes: usize,
}

impl FillReader {
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let mut guard = self.fill.state.lock();
        let state = &mut *guard;
        if let Some(whole) = state.whole.as_ref().filter(|whole| self.read_bytes < whole.len()) {
            let rest = whole.slice(self.read_bytes..);
            self.read_bytes = whole.len();
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        let at = self.next - state.first;
        if let Some(chunk) = state.chunks.get(at).cloned() {
            self.next += 1;
            self.read_bytes += chunk.len();
            if state.passing {
                // This is the only reader: what it has had, nobody needs.
                state.chunks.drain(..=at).for_each(|had| state.kept_bytes -= had.len());
                state.first = self.next;
                drop(guard);
                self.fill.moved.notify_one();
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &mut state.end {
            Some(End::Complete(trailers)) => {
                let trailers = trailers.take().map(|trailers| Ok(Frame::trailers(trailers)));
                Poll::Ready(trailers)
            }
            Some(End::Broken) => Poll::Ready(Some(Err(BrokenOff))),
            None => {
                if let Some(reader) = state.readers.iter_mut().find(|reader| reader.id == self.id) {
                    reader.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.fill.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.read_bytes) as u64),
            None => SizeHint::default(),
        }
    }
}

impl Body for FillReader {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.get_mut().poll(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint()
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.fill.state.lock().readers.retain(|reader| reader.id != self.id);
        self.fill.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    type Chunks = Vec<Result<Frame<Bytes>, Infallible>>;

    fn body(
        chunks: Vec<Vec<u8>>,
    ) -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>>> {
        let frames: Chunks =
            chunks.into_iter().map(|chunk| Ok(Frame::data(chunk.into()))).collect();
        StreamBody::new(stream::iter(frames))
    }

    fn fill(max_bytes: usize, length: Option<u64>) -> Arc<Fill> {
        Fill::begin(&Room::new(1 << 20), max_bytes, length).expect("it fits")
    }

    const SILENCE: Silence =
        Silence { read: Duration::from_secs(60), unread: Duration::from_secs(10) };

    async fn pump<B: Body<Data = Bytes>>(fill: &Fill, body: B) -> Pumped {
        fill.pump(body, SILENCE, || {}).await
    }

    async fn read(reader: FillReader) -> Result<Vec<u8>, BrokenOff> {
        Ok(reader.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn every_reader_gets_the_whole_body_whenever_it_comes() {
        let fill = fill(100, Some(6));
        let early = tokio::spawn(read(fill.reader()));
        tokio::task::yield_now().await;
        let pumped = pump(&fill, body(vec![b"abc".to_vec(), b"def".to_vec()])).await;
        assert_eq!(pumped, Pumped::Complete(Bytes::from_static(b"abcdef")));
        assert_eq!(early.await.unwrap().unwrap(), b"abcdef");
        assert_eq!(read(fill.reader()).await.unwrap(), b"abcdef");
    }

    #[tokio::test]
    async fn a_body_past_the_bound_waits_for_its_reader_and_is_not_kept() {
        const CHUNK: usize = 64 << 10;
        let fill = fill(CHUNK, None);
        let mut reader = fill.reader();
        let source = body((0..100).map(|n| vec![n; CHUNK]).collect());
        let pump = tokio::spawn({
            let fill = Arc::clone(&fill);
            async move { pump(&fill, source).await }
        });
        let mut total = 0;
        while let Some(frame) = reader.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert_eq!(usize::from(data[0]), total / CHUNK);
            total += data.len();
            tokio::task::yield_now().await;
            assert!(fill.state.lock().kept_bytes <= WINDOW_BYTES + 2 * CHUNK);
        }
        assert_eq!(total, 100 * CHUNK);
        assert_eq!(pump.await.unwrap(), Pumped::Unsuitable);
    }

    #[tokio::test]
    async fn a_long_body_that_nobody_reads_is_given_up() {
        let fill = fill(10, None);
        drop(fill.reader());
        let endless = StreamBody::new(
            stream::repeat(())
                .map(|()| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"more")))),
        );
        assert_eq!(pump(&fill, endless).await, Pumped::Unsuitable);
    }

    #[tokio::test]
    async fn a_broken_body_is_broken_for_every_reader_and_not_kept() {
        let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err("gone")];
        let fill = fill(100, Some(8));
        let reader = fill.reader();
        assert_eq!(pump(&fill, StreamBody::new(stream::iter(frames))).await, Pumped::Broken);
        assert_eq!(read(reader).await, Err(BrokenOff));
    }

    #[tokio::test]
    async fn a_dropped_pump_breaks_the_body_off() {
        let fill = fill(100, Some(8));
        let reader = fill.reader();
        let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let pump = tokio::spawn({
            let fill = Arc::clone(&fill);
            async move { pump(&fill, never).await }
        });
        tokio::task::yield_now().await;
        pump.abort();
        assert_eq!(read(reader).await, Err(BrokenOff));
    }

    #[tokio::test]
    async fn a_body_that_is_kept_holds_no_read_buffer() {
        let buffer = Bytes::from(vec![b'x'; 8_192]);
        let frames: Chunks = vec![Ok(Frame::data(buffer.slice(100..110)))];
        let pumped = pump(&fill(100, Some(10)), StreamBody::new(stream::iter(frames))).await;
        let Pumped::Complete(whole) = pumped else { panic!("{pumped:?}") };
        assert!(!buffer.as_ptr_range().contains(&whole.as_ptr()));
    }

    #[tokio::test]
    async fn trailers_reach_the_client() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        let frames: Chunks =
            vec![Ok(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers.clone()))];
        let fill = fill(100, None);
        let reader = fill.reader();
        assert_eq!(pump(&fill, StreamBody::new(stream::iter(frames))).await, Pumped::Unsuitable);
        assert_eq!(reader.collect().await.unwrap().trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn bodies_that_find_no_room_pass_through_and_give_back_what_they_took() {
        let room = Room::new(10);
        let known = Fill::begin(&room, 100, Some(6)).expect("there is room");
        assert!(Fill::begin(&room, 100, Some(5)).is_none());
        assert!(Fill::begin(&room, 5, Some(6)).is_none());

        let growing = Fill::begin(&room, 100, None).expect("it may turn out to be short");
        let reader = growing.reader();
        let chunks = body(vec![b"four".to_vec(), b"more".to_vec()]);
        assert_eq!(pump(&growing, chunks).await, Pumped::Unsuitable);
        assert_eq!(read(reader).await.unwrap(), b"fourmore");

        assert_eq!(
            pump(&known, body(vec![b"sixsix".to_vec()])).await,
            Pumped::Complete("sixsix".into())
        );
        assert_eq!(*room.left_bytes.lock(), 10);
    }

    #[tokio::test]
    async fn a_reader_in_the_middle_goes_on_in_the_whole_body() {
        let fill = fill(100, None);
        let mut reader = fill.reader();
        fill.push(Bytes::from_static(b"abc"));
        assert_eq!(reader.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        fill.push(Bytes::from_static(b"def"));
        fill.complete(None);
        assert!(fill.state.lock().chunks.is_empty());
        assert_eq!(read(reader).await.unwrap(), b"def");
    }

    #[tokio::test]
    async fn that_a_body_is_not_kept_is_told_once_and_before_its_end() {
        let fill = fill(5, None);
        let reader = fill.reader();
        let frames = [b"four", b"more", b"last"].map(|data| Frame::data(Bytes::from_static(data)));
        let (told, at) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let source = stream::iter(frames).map(|frame| {
            at.set(at.get() + 1);
            Ok::<_, Infallible>(frame)
        });
        let tell = || told.set(told.get() * 10 + at.get());
        assert_eq!(fill.pump(StreamBody::new(source), SILENCE, tell).await, Pumped::Unsuitable);
        assert_eq!(told.get(), 2, "at the second chunk, and not again");
        assert_eq!(read(reader).await.unwrap(), b"fourmorelast");
    }

    /// How long a body that never comes is waited for, in whole seconds.
    async fn waited(fill: &Fill) -> Duration {
        let begun = Instant::now();
        let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        assert_eq!(pump(fill, never).await, Pumped::Broken);
        Duration::from_secs(begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up_and_sooner_if_nobody_reads() {
        let alone = fill(100, None);
        assert_eq!(waited(&alone).await, SILENCE.unread);

        let followed = fill(100, None);
        let reader = followed.reader();
        assert_eq!(waited(&followed).await, SILENCE.read);
        assert_eq!(read(reader).await, Err(BrokenOff));

        let left = fill(100, None);
        let reader = left.reader();
        let leave = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(reader);
        };
        assert_eq!(tokio::join!(waited(&left), leave).0, SILENCE.unread);

        let joined = fill(100, Some(5));
        let join = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            joined.reader()
        };
        assert_eq!(tokio::join!(waited(&joined), join).0, SILENCE.read);

        let passing = fill(0, None);
        passing.push(Bytes::from_static(b"x"));
        assert_eq!(waited(&passing).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_slowly_is_kept() {
        let fill = fill(100, None);
        let slow = stream::iter([b"ab", b"cd", b"ef"]).then(async |data| {
            tokio::time::sleep(SILENCE.unread - Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(data)))
        });
        let pumped = pump(&fill, StreamBody::new(slow)).await;
        assert_eq!(pumped, Pumped::Complete(Bytes::from_static(b"abcdef")));
    }
}
