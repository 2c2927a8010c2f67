//! An owner of a connection for the tests: records events as text and answers them at once.

use trilith_wire::connection::{
    AssemblyBudget, Connection, ConnectionEvent, ConnectionLimits, RequestShape, Route, StreamId,
};

pub(crate) fn route(path: &[u8]) -> Option<Route> {
    match path {
        b"/test/Unary" => Some(Route { method: 1, shape: RequestShape::Single }),
        b"/test/Stream" => Some(Route { method: 2, shape: RequestShape::Stream }),
        _ => None,
    }
}

/// What to do with an event once its borrows are gone.
enum Action {
    None,
    Unary(StreamId, Vec<u8>),
    Message(StreamId, Vec<u8>),
    Finish(StreamId, u32),
    Http(StreamId, Vec<u8>),
}

pub(crate) struct Owner {
    pub(crate) connection: Connection,
    pub(crate) budget: AssemblyBudget,
    pub(crate) log: Vec<String>,
    pub(crate) streams: Vec<StreamId>,
    /// Events are answered as they come; otherwise their streams are only recorded.
    pub(crate) answers: bool,
    pub(crate) now: u64,
}

impl Owner {
    pub(crate) fn new(limits: &ConnectionLimits) -> Self {
        Self {
            connection: Connection::new(limits, 0),
            budget: AssemblyBudget::new(64 << 20),
            log: Vec::new(),
            streams: Vec::new(),
            answers: true,
            now: 0,
        }
    }

    /// One turn: bytes in, everything sendable out.
    pub(crate) fn turn(&mut self, bytes: &[u8]) -> Vec<u8> {
        if !bytes.is_empty() {
            self.connection.handle_bytes(bytes.to_vec(), self.now);
        }
        self.drain()
    }

    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            self.poll();
            let mut output = Vec::new();
            self.connection.take_output(&mut output, self.now);
            if output.is_empty() {
                return all;
            }
            all.append(&mut output);
            self.connection.handle_sent(self.now);
        }
    }

    pub(crate) fn poll(&mut self) {
        while let Some(event) = self.connection.poll_event(&mut self.budget, self.now) {
            let (text, stream, action) = describe(&event);
            self.log.push(text);
            self.streams.extend(stream);
            if self.answers {
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Unary(stream, bytes) => {
                self.connection.send_unary(stream, bytes.len(), |out| out.extend_from_slice(&bytes));
            }
            Action::Message(stream, bytes) => {
                self.connection.send_message(stream, bytes.len(), |out| out.extend_from_slice(&bytes));
            }
            Action::Finish(stream, code) => self.connection.finish(stream, code, ""),
            Action::Http(stream, body) => {
                self.connection.send_http(stream, 200, &[("content-type", "text/plain")], &body);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    if bytes.len() <= 20 { String::from_utf8_lossy(bytes).into_owned() } else { format!("{}#{sum:x}", bytes.len()) }
}

fn describe(event: &ConnectionEvent<'_>) -> (String, Option<StreamId>, Action) {
    match *event {
        ConnectionEvent::GrpcRequest { stream, route, head, message } => {
            let path = String::from_utf8_lossy(head.path()).into_owned();
            let line = format!("{} call {path} {}", stream.number(), text(message));
            let action = match route.map(|route| route.shape) {
                None => Action::Finish(stream, 12),
                Some(RequestShape::Single) => Action::Unary(stream, message.to_vec()),
                Some(RequestShape::Stream) => Action::None,
            };
            (line, Some(stream), action)
        }
        ConnectionEvent::GrpcMessage { stream, message } => {
            let line = format!("{} message {}", stream.number(), text(message));
            (line, None, Action::Message(stream, message.to_vec()))
        }
        ConnectionEvent::GrpcHalfClose { stream } => {
            (format!("{} half-close", stream.number()), None, Action::Finish(stream, 0))
        }
        ConnectionEvent::HttpRequest { stream, head, body } => {
            let (method, path) = (String::from_utf8_lossy(head.method()), String::from_utf8_lossy(head.path()));
            let line = format!("{} {method} {path} {}", stream.number(), text(body));
            (line, Some(stream), Action::Http(stream, body.to_vec()))
        }
        ConnectionEvent::StreamReset { stream } => (format!("{} reset", stream.number()), None, Action::None),
        ConnectionEvent::StreamWritable { stream } => (format!("{} writable", stream.number()), None, Action::None),
    }
}
