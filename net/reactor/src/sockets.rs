//! Connections of one core: accepting, reading, one coalesced write at a time, closing.
//!
//! Owns: the table of connections and one task per connection and listener. Does not know: what is said on them.
//!
//! Invariants
//! - I1: a [`ConnectionId`] is a slot number and that slot's generation; it is never used twice.
//! - I2: at most one send is outstanding per connection; `Sent` is pushed once all of it is in the kernel's hands.
//! - I3: `Closed` is the last event of a connection and is pushed exactly once; nothing else follows a `close`.
//! - I4: an idle connection holds no buffer: all connections of the core read into one scratch buffer.

use crate::inbox::Inbox;
use crate::port::{CloseReason, ConnectionId, Event, ListenerId};
use futures_lite::AsyncReadExt;
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Most bytes one read brings in.
const READ_BYTES_MAX: usize = 64 << 10;
/// Reads of one connection before others get their turn.
const READS_PER_ROUND_MAX: usize = 2;
/// Connections accepted in a row before others get their turn.
const ACCEPTS_PER_ROUND_MAX: usize = 64;
/// After a close: how long the peer may take to read what was sent and to close its side.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Pause after a failed accept (out of descriptors, mostly), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

struct Connection {
    id: ConnectionId,
    stream: RefCell<TcpStream>,
    outgoing: RefCell<Option<Outgoing>>,
    receiving: Cell<bool>,
    close_requested: Cell<bool>,
    end_of_stream: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Rc<Connection>>,
}

/// All connections of one core.
pub(crate) struct Sockets {
    inbox: Rc<Inbox>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    scratch: RefCell<Vec<u8>>,
}

impl Sockets {
    pub(crate) fn new(inbox: Rc<Inbox>) -> Self {
        Self {
            inbox,
            slots: RefCell::default(),
            free: RefCell::default(),
            scratch: RefCell::new(vec![0; READ_BYTES_MAX]),
        }
    }

    /// Starts to send; a connection that is gone (its `Closed` is on the way) drops the bytes.
    pub(crate) fn send(&self, id: ConnectionId, bytes: Vec<u8>) {
        let Some(connection) = self.find(id) else { return };
        assert!(!connection.close_requested.get(), "I3: nothing is sent after a close");
        assert!(!bytes.is_empty(), "a send has bytes");
        let earlier = connection.outgoing.replace(Some(Outgoing { bytes, written: 0 }));
        assert!(earlier.is_none(), "I2: one send at a time");
        connection.wake();
    }

    pub(crate) fn set_receiving(&self, id: ConnectionId, receiving: bool) {
        let Some(connection) = self.find(id) else { return };
        if connection.receiving.replace(receiving) != receiving {
            connection.wake();
        }
    }

    pub(crate) fn close(&self, id: ConnectionId) {
        let Some(connection) = self.find(id) else { return };
        if !connection.close_requested.replace(true) {
            connection.wake();
        }
    }

    fn find(&self, id: ConnectionId) -> Option<Rc<Connection>> {
        let slots = self.slots.borrow();
        let slot = slots.get((id.0 & u64::from(u32::MAX)) as usize).expect("an id names a slot");
        let generation = (id.0 >> 32) as u32;
        assert!(generation <= slot.generation, "I1: an id of the future");
        if generation == slot.generation { slot.connection.clone() } else { None }
    }

    /// Takes a fresh connection in and starts its task.
    fn adopt(self: &Rc<Self>, listener: ListenerId, stream: TcpStream) {
        let peer = stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string());
        let mut slots = self.slots.borrow_mut();
        let number = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            u32::try_from(slots.len() - 1).expect("descriptors are far fewer than 2^32")
        });
        let slot = &mut slots[number as usize];
        let id = ConnectionId((u64::from(slot.generation) << 32) | u64::from(number));
        let connection = Rc::new(Connection {
            id,
            stream: RefCell::new(stream),
            outgoing: RefCell::default(),
            receiving: Cell::new(true),
            close_requested: Cell::new(false),
            end_of_stream: Cell::new(false),
            task: RefCell::default(),
        });
        assert!(slot.connection.is_none(), "I1: a free slot has no connection");
        slot.connection = Some(Rc::clone(&connection));
        self.inbox.push(Event::Accepted { listener, connection: id, peer });
        let sockets = Rc::clone(self);
        glommio::spawn_local(async move { sockets.serve(connection).await }).detach();
    }

    fn release(&self, id: ConnectionId) {
        let number = (id.0 & u64::from(u32::MAX)) as u32;
        let slot = &mut self.slots.borrow_mut()[number as usize];
        slot.connection = None;
        // A slot whose generations are used up stays empty for good (I1).
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.borrow_mut().push(number);
        }
    }

    /// The task of one connection.
    async fn serve(self: Rc<Self>, connection: Rc<Connection>) {
        let reason = poll_fn(|context| self.poll_connection(&connection, context)).await;
        self.release(connection.id);
        self.inbox.push(Event::Closed { connection: connection.id, reason });
        if reason == CloseReason::Requested {
            let stream = Rc::into_inner(connection).expect("the table's reference is gone").stream.into_inner();
            linger(stream).await;
        }
    }

    fn poll_connection(&self, connection: &Connection, context: &mut Context<'_>) -> Poll<CloseReason> {
        connection.remember(context.waker());
        if let Poll::Ready(Err(_)) = self.poll_send(connection, context) {
            return Poll::Ready(CloseReason::Failed);
        }
        let idle = connection.outgoing.borrow().is_none();
        if connection.close_requested.get() {
            return if idle { Poll::Ready(CloseReason::Requested) } else { Poll::Pending };
        }
        if connection.receiving.get() && !connection.end_of_stream.get() {
            match self.poll_receive(connection, context) {
                Poll::Ready(Ok(())) => connection.end_of_stream.set(true),
                Poll::Ready(Err(_)) => return Poll::Ready(CloseReason::Failed),
                Poll::Pending => return Poll::Pending,
            }
        }
        if connection.end_of_stream.get() && idle { Poll::Ready(CloseReason::EndOfStream) } else { Poll::Pending }
    }

    fn poll_send(&self, connection: &Connection, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut place = connection.outgoing.borrow_mut();
        let Some(outgoing) = place.as_mut() else { return Poll::Ready(Ok(())) };
        let mut stream = connection.stream.borrow_mut();
        while outgoing.written < outgoing.bytes.len() {
            match Pin::new(&mut *stream).poll_write(context, &outgoing.bytes[outgoing.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => outgoing.written += written,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Some(Outgoing { bytes: mut buffer, .. }) = place.take()
            && !connection.close_requested.get()
        {
            buffer.clear();
            self.inbox.push(Event::Sent { connection: connection.id, buffer });
        }
        Poll::Ready(Ok(()))
    }

    /// Ready at the end of the stream or with an error; otherwise waits for the socket, or for the next round.
    fn poll_receive(&self, connection: &Connection, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = connection.stream.borrow_mut();
        let mut scratch = self.scratch.borrow_mut();
        for _ in 0..READS_PER_ROUND_MAX {
            match Pin::new(&mut *stream).poll_read(context, &mut scratch) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(len)) => {
                    let bytes = scratch[..len].to_vec();
                    self.inbox.push(Event::Received { connection: connection.id, bytes });
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.inbox.wake_after_io_round(context.waker());
        Poll::Pending
    }
}

impl Connection {
    fn remember(&self, waker: &Waker) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.task.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// Accepts until the task is cancelled.
pub(crate) async fn accept_all(sockets: Rc<Sockets>, number: ListenerId, listener: TcpListener) {
    loop {
        for _ in 0..ACCEPTS_PER_ROUND_MAX {
            match listener.accept().await {
                Ok(stream) => sockets.adopt(number, stream),
                Err(_) => glommio::timer::sleep(ACCEPT_PAUSE).await,
            }
        }
        sockets.inbox.io_round().await;
    }
}

/// Lets the peer read the last bytes: closing a socket with unread input would reset it and destroy them.
async fn linger(mut stream: TcpStream) {
    if stream.set_read_timeout(Some(LINGER_MAX)).is_err() || stream.shutdown(Shutdown::Write).await.is_err() {
        return;
    }
    let mut discarded = 0;
    let mut scratch = vec![0; 4096];
    while discarded < LINGER_BYTES_MAX {
        match stream.read(&mut scratch).await {
            Ok(0) | Err(_) => return,
            Ok(len) => discarded += len,
        }
    }
}
