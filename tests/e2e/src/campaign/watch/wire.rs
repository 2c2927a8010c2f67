//! Watch messages as the campaign speaks them, and the call that carries them.
//!
//! Owns: requests and responses in plain proto3 wire format, and one bidirectional call over an HTTP/2 implementation
//! that is not ours. Does not know: what a response should say.
//!
//! I1  The call's window is given back only when its owner asks for the next response: who does not ask, does not read.

use std::collections::VecDeque;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use tokio::net::TcpStream;

use crate::client::frame;
use crate::messages::{Field, Message, fields};

/// A key with everything a client is shown of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) create: u64,
    pub(crate) modified: u64,
    pub(crate) version: u64,
    pub(crate) lease: u64,
}

impl Pair {
    /// Reads a KeyValue.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut pair = Self::default();
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(key)) => pair.key = key.to_vec(),
                (2, Field::Number(revision)) => pair.create = revision,
                (3, Field::Number(revision)) => pair.modified = revision,
                (4, Field::Number(version)) => pair.version = version,
                (5, Field::Bytes(value)) => pair.value = value.to_vec(),
                (6, Field::Number(lease)) => pair.lease = lease,
                other => bail!("an unexpected field of a pair: {other:?}"),
            }
        }
        Ok(pair)
    }
}

/// One event of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) is_delete: bool,
    pub(crate) pair: Pair,
    pub(crate) prev: Option<Pair>,
}

/// A WatchResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) revision: u64,
    pub(crate) id: i64,
    pub(crate) created: bool,
    pub(crate) canceled: bool,
    pub(crate) compact_revision: u64,
    pub(crate) reason: String,
    pub(crate) fragment: bool,
    pub(crate) events: Vec<Event>,
}

impl Response {
    /// Whether it says nothing but how far its sender has come.
    pub(crate) fn is_progress(&self) -> bool {
        !self.created && !self.canceled && self.events.is_empty()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut response = Self::default();
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(header)) => response.revision = revision_of(header)?,
                (2, Field::Number(id)) => response.id = id.cast_signed(),
                (3, Field::Number(created)) => response.created = created != 0,
                (4, Field::Number(canceled)) => response.canceled = canceled != 0,
                (5, Field::Number(revision)) => response.compact_revision = revision,
                (6, Field::Bytes(reason)) => response.reason = String::from_utf8_lossy(reason).into_owned(),
                (7, Field::Number(fragment)) => response.fragment = fragment != 0,
                (11, Field::Bytes(event)) => response.events.push(event_of(event)?),
                other => bail!("an unexpected field of a response: {other:?}"),
            }
        }
        Ok(response)
    }
}

fn revision_of(header: &[u8]) -> Result<u64> {
    let revision = fields(header)?.into_iter().find_map(|field| match field {
        (3, Field::Number(revision)) => Some(revision),
        _ => None,
    });
    Ok(revision.unwrap_or(0))
}

fn event_of(bytes: &[u8]) -> Result<Event> {
    let mut event = Event { is_delete: false, pair: Pair::default(), prev: None };
    for field in fields(bytes)? {
        match field {
            (1, Field::Number(kind)) => event.is_delete = kind == 1,
            (2, Field::Bytes(pair)) => event.pair = Pair::decode(pair)?,
            (3, Field::Bytes(pair)) => event.prev = Some(Pair::decode(pair)?),
            other => bail!("an unexpected field of an event: {other:?}"),
        }
    }
    Ok(event)
}

/// What a watcher watches, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Vec<u8>,
    /// 0: from now on.
    pub(crate) start: u64,
    /// 0: the server chooses.
    pub(crate) id: i64,
    pub(crate) prev_kv: bool,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) fragment: bool,
    pub(crate) progress: bool,
}

impl Spec {
    /// Whether a key is in its range.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        match self.end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }

    /// A WatchRequest that creates it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut create = Message::new().bytes(1, &self.key);
        if !self.end.is_empty() {
            create = create.bytes(2, &self.end);
        }
        create = create.number(3, self.start).number(4, u64::from(self.progress));
        // Filters are a packed field.
        let filters: Vec<u8> =
            [(self.no_put, 0), (self.no_delete, 1)].into_iter().filter(|it| it.0).map(|it| it.1).collect();
        if !filters.is_empty() {
            create = create.bytes(5, &filters);
        }
        create = create.number(6, u64::from(self.prev_kv)).number(7, self.id.cast_unsigned());
        Message::new().bytes(1, &create.number(8, u64::from(self.fragment)).finish()).finish()
    }
}

/// A WatchRequest that cancels a watcher.
pub(crate) fn cancel(id: i64) -> Vec<u8> {
    Message::new().bytes(2, &Message::new().number(1, id.cast_unsigned()).finish()).finish()
}

/// A WatchRequest for progress.
pub(crate) fn progress() -> Vec<u8> {
    Message::new().bytes(3, &[]).finish()
}

/// Connects; a call's window is far smaller than the connection's, so that who does not read stops nobody else.
pub(crate) async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(128 << 10).initial_connection_window_size(128 << 20);
    let (sender, connection) = builder.handshake(socket).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// One Watch call.
pub(crate) struct Call {
    outgoing: h2::SendStream<Bytes>,
    head: Option<ResponseFuture>,
    incoming: Option<RecvStream>,
    received: BytesMut,
    whole: VecDeque<Response>,
}

impl Call {
    /// Opens a call on a connection.
    pub(crate) async fn open(sender: &SendRequest<Bytes>, authority: &str) -> Result<Self> {
        let request = http::Request::post(format!("http://{authority}/etcdserverpb.Watch/Watch"))
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (head, outgoing) = sender.clone().ready().await?.send_request(request, false)?;
        let (received, whole) = (BytesMut::new(), VecDeque::new());
        Ok(Self { outgoing, head: Some(head), incoming: None, received, whole })
    }

    /// Sends a request, as soon as the server takes it.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<()> {
        self.outgoing.send_data(frame(request), false).context("the call takes no more requests")
    }

    /// The next response. `None`: the call has ended. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Response>> {
        loop {
            if let Some(response) = self.whole.pop_front() {
                return Ok(Some(response));
            }
            if let Some(head) = &mut self.head {
                let head_received = head.await;
                self.head = None;
                self.incoming = Some(head_received?.into_body());
            }
            let incoming = self.incoming.as_mut().expect("taken from the head above");
            let Some(piece) = incoming.data().await.transpose()? else { return Ok(None) };
            incoming.flow_control().release_capacity(piece.len())?;
            self.received.extend_from_slice(&piece);
            self.take_whole()?;
        }
    }

    fn take_whole(&mut self) -> Result<()> {
        while let Some(prefix) = self.received.first_chunk::<5>() {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            if prefix[0] != 0 {
                bail!("a compressed response");
            }
            if self.received.len() < 5 + length {
                return Ok(());
            }
            self.received.advance(5);
            self.whole.push_back(Response::decode(&self.received.split_to(length))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_conventions_of_the_api() {
        let spec = |key: &[u8], end: &[u8]| Spec { key: key.to_vec(), end: end.to_vec(), ..Spec::default() };
        let keys: [&[u8]; 4] = [b"a", b"a1", b"b", b"c"];
        let held = |spec: Spec| keys.map(|key| spec.holds(key));
        assert_eq!(held(spec(b"a", b"")), [true, false, false, false]);
        assert_eq!(held(spec(b"a", b"b")), [true, true, false, false]);
        assert_eq!(held(spec(b"a1", b"\0")), [false, true, true, true]);
    }

    #[test]
    fn responses_are_read_whole() {
        let pair = Message::new().bytes(1, b"k").number(2, 4).number(3, 5).number(4, 2).bytes(5, b"v").number(6, 9);
        let (pair, gone) = (pair.finish(), Message::new().bytes(1, b"k").number(3, 6).finish());
        let event = Message::new().number(1, 1).bytes(2, &gone).bytes(3, &pair).finish();
        let header = Message::new().number(1, 7).number(3, 8).finish();
        let message = Message::new().bytes(1, &header).number(2, 3).number(7, 1).bytes(11, &event).finish();
        let response = Response::decode(&message).unwrap();
        assert_eq!((response.revision, response.id, response.fragment), (8, 3, true));
        let [event] = &response.events[..] else { panic!("one event") };
        let prev = event.prev.as_ref().unwrap();
        assert_eq!((event.is_delete, event.pair.modified, prev.lease, prev.version), (true, 6, 9, 2));
        assert!(Response::decode(&Message::new().bytes(12, b"").finish()).is_err());
    }
}
