//! Proof of the harness: a small correct server passes, and each of its mutants is caught.
//!
//! Owns: that server, naive on purpose (one file, one write in flight, the model as its store), and its mutants. Does
//! not know: Trilith.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use trilith_reactor::{BootFiles, ConnectionId, CoreLoop, Event, FileId, FileMode, Port, Preparation, Token, Turn};
use trilith_sim::arguments;
use trilith_sim::history::{
    Answer, Compare, Delete, Fault, Put, Range, Relation, Request, SortOrder, SortTarget, Target, Txn,
};
use trilith_sim::model::{KeyRange, KeyValue, Model};
use trilith_sim::port::SimPort;
use trilith_sim::simulation::{Failure, Options, Report, run};
use trilith_sim::subject::Subject;
use trilith_sim::weather::{Limits, USUAL_SECONDS};
use trilith_wire::hpack::{Decoder, FieldSink, Mark};
use trilith_wire::proto::{Message, etcdserverpb as pb, mvccpb};

const LOG_BYTES: u64 = 16 << 20;
const BLOCK: usize = 4096;

const CORRECT: u8 = 0;
const ACKNOWLEDGES_AT_SUBMISSION: u8 = 1;
const READS_BEFORE_DURABLE: u8 = 2;
const ACCEPTS_TORN_RECORDS: u8 = 3;
const EMPTY_DELETE_TAKES_A_REVISION: u8 = 4;
const APPLIES_LAST_RECORD_TWICE: u8 = 5;
const GOES_ON_AFTER_ERROR: u8 = 6;
const PREVIOUS_PAIR_IS_THE_NEW_ONE: u8 = 7;
const LIMIT_HIDES_COUNT: u8 = 8;
const DRAWS_FROM_AN_ADDRESS: u8 = 9;
const WRITES_PLAIN: u8 = 10;
const TRUSTS_WITHOUT_BARRIER: u8 = 11;
const FORGETS_COMPACTIONS: u8 = 12;
const TRANSACTION_SUCCEEDS_ALWAYS: u8 = 13;

/// What is added to a message before its size is compared with the limit.
const ENVELOPE_BYTES: usize = 17;

#[derive(Default)]
struct Path(String);

impl FieldSink for Path {
    fn field(&mut self, name: &[u8], value: &[u8], mark: Mark) -> Mark {
        if name == b":path" {
            self.0 = String::from_utf8_lossy(value).into_owned();
        }
        mark
    }
}

/// The server's end of HTTP/2, just enough for a correct client.
struct Http2 {
    input: Vec<u8>,
    decoder: Decoder,
    requests: BTreeMap<u32, (String, Vec<u8>)>,
    output: Vec<u8>,
    /// Message bytes not yet sent, per stream, with the stream's window.
    responses: BTreeMap<u32, (Vec<u8>, usize, i64)>,
    windows: BTreeMap<u32, i64>,
    window: i64,
    window_initial: i64,
    sending: bool,
}

impl Http2 {
    fn new() -> Self {
        let mut this = Self {
            input: Vec::new(),
            decoder: Decoder::new(4096),
            requests: BTreeMap::new(),
            output: Vec::new(),
            responses: BTreeMap::new(),
            windows: BTreeMap::new(),
            window: 65_535,
            window_initial: 65_535,
            sending: false,
        };
        this.push(4, 0, 0, &[]);
        this
    }

    fn push(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.output.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    /// Takes bytes; returns complete requests.
    fn handle(&mut self, bytes: &[u8], ready: &mut Vec<(u32, String, Vec<u8>)>) {
        self.input.extend_from_slice(bytes);
        if self.input.starts_with(b"PRI") {
            if self.input.len() < 24 {
                return;
            }
            self.input.drain(..24);
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest.len() < 9 + length {
                break;
            }
            let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
            self.frame(rest[3], rest[4], stream, &rest[9..9 + length], ready);
            rest = &rest[9 + length..];
        }
        self.input = rest.to_vec();
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], ready: &mut Vec<(u32, String, Vec<u8>)>) {
        match kind {
            0 => {
                let (path, body) = self.requests.get_mut(&stream).expect("HEADERS came first");
                body.extend_from_slice(payload);
                if flags & 1 != 0 {
                    ready.push((stream, std::mem::take(path), body[5..].to_vec()));
                    self.requests.remove(&stream);
                }
                if !payload.is_empty() {
                    let increment = (payload.len() as u32).to_be_bytes();
                    self.push(8, 0, 0, &increment);
                    self.push(8, 0, stream, &increment);
                }
            }
            1 => {
                let mut path = Path::default();
                self.decoder.decode(payload, &mut path).expect("a correct client");
                self.requests.insert(stream, (path.0, Vec::new()));
                self.windows.insert(stream, self.window_initial);
            }
            4 if flags == 0 => {
                for setting in payload.chunks(6).filter(|setting| setting[1] == 4) {
                    self.window_initial =
                        i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
                }
                self.push(4, 1, 0, &[]);
            }
            8 => {
                let increment = i64::from(u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]));
                match (stream, self.responses.get_mut(&stream)) {
                    (0, _) => self.window += increment,
                    (_, Some(response)) => response.2 += increment,
                    (_, None) => *self.windows.entry(stream).or_insert(0) += increment,
                }
            }
            _ => {}
        }
    }

    fn head(&mut self, stream: u32) {
        self.push(1, 4, stream, b"\x88\x00\x0ccontent-type\x10application/grpc");
    }

    fn answer(&mut self, stream: u32, message: &[u8]) {
        self.head(stream);
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(message);
        let window = self.windows.remove(&stream).unwrap_or(0);
        self.responses.insert(stream, (body, 0, window));
    }

    fn fail(&mut self, stream: u32, code: &str, text: &str) {
        let mut block = b"\x88\x00\x0ccontent-type\x10application/grpc\x00\x0bgrpc-status".to_vec();
        block.push(code.len() as u8);
        block.extend_from_slice(code.as_bytes());
        block.extend_from_slice(b"\x00\x0cgrpc-message");
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
        self.push(1, 5, stream, &block);
    }

    fn take_output(&mut self) -> Vec<u8> {
        let mut responses = std::mem::take(&mut self.responses);
        responses.retain(|stream, (body, from, window)| {
            loop {
                let room = self.window.min(*window).clamp(0, 16_384) as usize;
                let take = room.min(body.len() - *from);
                if take == 0 {
                    break;
                }
                self.push(0, 0, *stream, &body[*from..*from + take]);
                *from += take;
                *window -= take as i64;
                self.window -= take as i64;
            }
            if *from < body.len() {
                return true;
            }
            self.push(1, 5, *stream, b"\x00\x0bgrpc-status\x010");
            false
        });
        self.responses = responses;
        std::mem::take(&mut self.output)
    }
}

/// A request that changes something, as it is logged: its method and message.
#[derive(Clone)]
struct Logged {
    connection: ConnectionId,
    stream: u32,
    method: u8,
    message: Vec<u8>,
}

const METHODS: [&str; 4] =
    ["/etcdserverpb.KV/Put", "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Compact"];

fn parse(path: &str, message: &[u8]) -> Request {
    match path {
        "/etcdserverpb.KV/Put" => put(&pb::PutRequest::decode(message).expect("a correct client")),
        "/etcdserverpb.KV/DeleteRange" => delete(&pb::DeleteRangeRequest::decode(message).expect("a correct client")),
        "/etcdserverpb.KV/Range" => range(&pb::RangeRequest::decode(message).expect("a correct client")),
        "/etcdserverpb.KV/Txn" => txn(&pb::TxnRequest::decode(message).expect("a correct client")),
        "/etcdserverpb.KV/Compact" => {
            let request = pb::CompactionRequest::decode(message).expect("a correct client");
            Request::Compact { revision: request.revision, physical: request.physical }
        }
        other => panic!("method {other}"),
    }
}

fn txn(txn: &pb::TxnRequest<'_>) -> Request {
    Request::Txn(Txn {
        compares: txn.compare.iter().map(compare).collect(),
        success: txn.success.iter().map(operation).collect(),
        failure: txn.failure.iter().map(operation).collect(),
    })
}

fn put(request: &pb::PutRequest<'_>) -> Request {
    Request::Put(Put {
        key: request.key.into(),
        value: request.value.into(),
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

fn delete(request: &pb::DeleteRangeRequest<'_>) -> Request {
    let range = KeyRange { key: request.key.into(), range_end: request.range_end.into() };
    Request::Delete(Delete { range, prev_kv: request.prev_kv })
}

fn range(request: &pb::RangeRequest<'_>) -> Request {
    Request::Range(Range {
        range: KeyRange { key: request.key.into(), range_end: request.range_end.into() },
        limit: request.limit,
        revision: request.revision,
        order: match request.sort_order {
            pb::SortOrder::NONE => SortOrder::None,
            pb::SortOrder::ASCEND => SortOrder::Ascend,
            pb::SortOrder::DESCEND => SortOrder::Descend,
            _ => SortOrder::Unknown,
        },
        target: match request.sort_target {
            pb::SortTarget::KEY => SortTarget::Key,
            pb::SortTarget::VERSION => SortTarget::Version,
            pb::SortTarget::CREATE => SortTarget::Create,
            pb::SortTarget::MOD => SortTarget::Mod,
            pb::SortTarget::VALUE => SortTarget::Value,
            _ => SortTarget::Unknown,
        },
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod: request.min_mod_revision,
        max_mod: request.max_mod_revision,
        min_create: request.min_create_revision,
        max_create: request.max_create_revision,
    })
}

fn operation(operation: &pb::RequestOp<'_>) -> Request {
    match operation.request.as_ref() {
        None => Request::Unset,
        Some(pb::RequestOpRequest::Put(request)) => put(request),
        Some(pb::RequestOpRequest::DeleteRange(request)) => delete(request),
        Some(pb::RequestOpRequest::Range(request)) => range(request),
        Some(pb::RequestOpRequest::Txn(request)) => txn(request),
    }
}

fn compare(compare: &pb::Compare<'_>) -> Compare {
    let range = KeyRange { key: compare.key.into(), range_end: compare.range_end.into() };
    let relation = match compare.result {
        pb::CompareResult::EQUAL => Relation::Equal,
        pb::CompareResult::GREATER => Relation::Greater,
        pb::CompareResult::LESS => Relation::Less,
        pb::CompareResult::NOT_EQUAL => Relation::NotEqual,
        _ => Relation::Unknown,
    };
    let target = match (compare.target, compare.target_union) {
        (pb::CompareTarget::VERSION, Some(pb::CompareTargetUnion::Version(version))) => Target::Version(version),
        (pb::CompareTarget::VERSION, _) => Target::VersionMismatched,
        (pb::CompareTarget::CREATE, Some(pb::CompareTargetUnion::CreateRevision(revision))) => Target::Create(revision),
        (pb::CompareTarget::MOD, Some(pb::CompareTargetUnion::ModRevision(revision))) => Target::Mod(revision),
        (pb::CompareTarget::LEASE, Some(pb::CompareTargetUnion::Lease(lease))) => Target::Lease(lease),
        (pb::CompareTarget::VALUE, Some(pb::CompareTargetUnion::Value(value))) => Target::Value(value.into()),
        (pb::CompareTarget::VALUE, _) => Target::ValueMismatched,
        _ => Target::Unknown,
    };
    Compare { range, relation, target }
}

struct Toy<const MUTANT: u8> {
    file: FileId,
    model: Model,
    compacted: i64,
    sequence: u64,
    offset: u64,
    connections: BTreeMap<ConnectionId, Http2>,
    queued: Vec<Logged>,
    in_flight: Vec<Logged>,
    next_token: u64,
    request_bytes_max: usize,
    stopping: bool,
}

/// Checksum, sequence, length, then requests; padded to whole blocks.
fn encode_record(sequence: u64, requests: &[Logged]) -> Vec<u8> {
    let mut body = sequence.to_le_bytes().to_vec();
    body.extend_from_slice(&[0; 4]);
    for logged in requests {
        body.push(logged.method);
        body.extend_from_slice(&(logged.message.len() as u32).to_le_bytes());
        body.extend_from_slice(&logged.message);
    }
    let length = body.len() as u32;
    body[8..12].copy_from_slice(&length.to_le_bytes());
    let mut record = xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes().to_vec();
    record.extend_from_slice(&body);
    record.resize(record.len().next_multiple_of(BLOCK), 0);
    record
}

fn decode_record(bytes: &[u8], sequence: u64, verify: bool) -> Option<(Vec<Request>, usize)> {
    let length = u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?) as usize;
    let body = bytes.get(8..8 + length)?;
    let checksum = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    if body.get(..8)? != sequence.to_le_bytes() || verify && checksum != xxhash_rust::xxh3::xxh3_64(body) {
        return None;
    }
    let mut rest = &body[12..];
    let mut requests = Vec::new();
    while let [method, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        // Only a mutant that skips the checksum meets a torn record here: it keeps what it can read.
        let Some(message) = tail.get(..length).filter(|_| *method < 4) else { break };
        let readable = match method {
            0 => pb::PutRequest::decode(message).is_ok(),
            1 => pb::DeleteRangeRequest::decode(message).is_ok(),
            2 => pb::TxnRequest::decode(message).is_ok(),
            _ => pb::CompactionRequest::decode(message).is_ok(),
        };
        if !readable {
            break;
        }
        requests.push(parse(METHODS[usize::from(*method)], message));
        rest = &tail[length..];
    }
    Some((requests, (8 + length).next_multiple_of(BLOCK)))
}

impl<const MUTANT: u8> Toy<MUTANT> {
    /// Applies a request.
    fn apply(&mut self, request: &Request) -> Result<Answer, Fault> {
        let newest = self.model.revision();
        if let Request::Compact { revision, .. } = request {
            if *revision > newest {
                return Err(Fault::FUTURE);
            }
            if *revision <= self.compacted {
                return Err(Fault::COMPACTED);
            }
            if MUTANT != FORGETS_COMPACTIONS {
                self.compacted = *revision;
            }
            return Ok(Answer { revision: newest, ..Answer::default() });
        }
        let mut answer = self.model.apply(request, self.compacted)?;
        match request {
            Request::Put(Put { key, prev_kv: true, .. }) if MUTANT == PREVIOUS_PAIR_IS_THE_NEW_ONE => {
                answer.kvs = self.model.get(key, answer.revision).cloned().into_iter().collect();
            }
            Request::Delete(_) if answer.count == 0 && MUTANT == EMPTY_DELETE_TAKES_A_REVISION => {
                let put = Put { key: b"\xff".to_vec(), ..Put::default() };
                self.model.apply(&Request::Put(put), -1)?;
            }
            Request::Txn(_) if MUTANT == TRANSACTION_SUCCEEDS_ALWAYS => answer.succeeded = true,
            _ => {}
        }
        Ok(answer)
    }

    fn recover(&mut self, port: &mut SimPort) -> std::io::Result<()> {
        if MUTANT != TRUSTS_WITHOUT_BARRIER {
            BootFiles::sync(port, self.file)?;
        }
        let bytes = BootFiles::read(port, self.file, 0, LOG_BYTES as usize)?;
        let mut at = 0;
        let mut last = Vec::new();
        while let Some((requests, length)) = decode_record(&bytes[at..], self.sequence, MUTANT != ACCEPTS_TORN_RECORDS)
        {
            requests.iter().for_each(|request| drop(self.apply(request)));
            self.sequence += 1;
            at += length;
            last = requests;
        }
        if MUTANT == APPLIES_LAST_RECORD_TWICE {
            last.iter().for_each(|request| drop(self.apply(request)));
        }
        self.offset = at as u64;
        Ok(())
    }

    fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 2 })
    }

    fn execute(&mut self, requests: &[Logged]) {
        for logged in requests {
            let request = parse(METHODS[usize::from(logged.method)], &logged.message);
            match self.apply(&request) {
                Ok(answer) => self.answer(logged.connection, logged.stream, &request, &answer),
                Err(fault) => self.refuse(logged.connection, logged.stream, fault),
            }
        }
    }

    fn refuse(&mut self, connection: ConnectionId, stream: u32, fault: Fault) {
        if let Some(http2) = self.connections.get_mut(&connection) {
            http2.fail(stream, &fault.code.to_string(), fault.text);
        }
    }

    fn answer(&mut self, connection: ConnectionId, stream: u32, request: &Request, answer: &Answer) {
        let header = self.header(answer.revision);
        let pairs = Pairs::of(answer);
        let message = match encode_answer(request, answer, &pairs, header) {
            pb::ResponseOpResponse::Put(message) => message.encode_to_vec(),
            pb::ResponseOpResponse::DeleteRange(message) => message.encode_to_vec(),
            pb::ResponseOpResponse::Range(message) => message.encode_to_vec(),
            pb::ResponseOpResponse::Txn(message) if matches!(request, Request::Compact { .. }) => {
                pb::CompactionResponse { header: message.header }.encode_to_vec()
            }
            pb::ResponseOpResponse::Txn(message) => message.encode_to_vec(),
        };
        if let Some(http2) = self.connections.get_mut(&connection) {
            http2.answer(stream, &message);
        }
    }

    fn handle_request(&mut self, connection: ConnectionId, stream: u32, path: &str, message: &[u8]) {
        let request = parse(path, message);
        let newest = self.model.revision();
        if let Some(fault) = arguments::fault(&request) {
            return self.refuse(connection, stream, fault);
        }
        match &request {
            request if request.is_read() => match self.model.evaluate(request, newest, self.compacted) {
                Ok((mut answer, _)) => {
                    if MUTANT == LIMIT_HIDES_COUNT && answer.more {
                        answer.count = answer.kvs.len() as i64;
                    }
                    self.answer(connection, stream, request, &answer);
                }
                Err(fault) => self.refuse(connection, stream, fault),
            },
            _ if message.len() + ENVELOPE_BYTES > self.request_bytes_max => {
                self.refuse(connection, stream, Fault::TOO_LARGE);
            }
            _ => {
                let method = METHODS.iter().position(|method| *method == path).expect("parsed above") as u8;
                let logged = Logged { connection, stream, method, message: message.to_vec() };
                if MUTANT == READS_BEFORE_DURABLE {
                    // The answer waits for the log, but readers see the change at once.
                    let _ = self.apply(&request);
                }
                self.queued.push(logged);
            }
        }
    }

    fn append(&mut self, port: &mut SimPort) {
        if !self.in_flight.is_empty() || self.queued.is_empty() {
            return;
        }
        self.in_flight = std::mem::take(&mut self.queued);
        let record = encode_record(self.sequence, &self.in_flight);
        self.sequence += 1;
        self.next_token += 1;
        let offset = self.offset;
        self.offset += record.len() as u64;
        Port::write(port, Token(self.next_token), self.file, offset, record);
        if MUTANT == ACKNOWLEDGES_AT_SUBMISSION {
            let early = self.in_flight.clone();
            self.execute(&early);
        }
    }

    fn handle_written(&mut self) {
        let written = std::mem::take(&mut self.in_flight);
        if MUTANT != ACKNOWLEDGES_AT_SUBMISSION {
            self.execute(&written);
        }
    }
}

/// Pairs with their values' bytes.
struct Pairs {
    kvs: Vec<(KeyValue, Vec<u8>)>,
    inner: Vec<Self>,
}

impl Pairs {
    fn of(answer: &Answer) -> Self {
        // Only a mutant that skips the checksum meets values that nobody wrote.
        let bytes = |pair: &KeyValue| pair.value.bytes().unwrap_or_default();
        let kvs = answer.kvs.iter().map(|pair| (pair.clone(), bytes(pair))).collect();
        Self { kvs, inner: answer.inner.iter().map(Self::of).collect() }
    }
}

fn encode_answer<'a>(
    request: &Request,
    answer: &Answer,
    pairs: &'a Pairs,
    header: Option<pb::ResponseHeader>,
) -> pb::ResponseOpResponse<'a> {
    let kvs: Vec<mvccpb::KeyValue<'_>> = pairs.kvs.iter().map(borrowed).collect();
    match request {
        Request::Put(_) => pb::ResponseOpResponse::Put(pb::PutResponse { header, prev_kv: kvs.into_iter().next() }),
        Request::Delete(_) => {
            let message = pb::DeleteRangeResponse { header, deleted: answer.count, prev_kvs: kvs };
            pb::ResponseOpResponse::DeleteRange(message)
        }
        Request::Range(_) => {
            let Answer { more, count, .. } = *answer;
            pb::ResponseOpResponse::Range(pb::RangeResponse { header, kvs, more, count })
        }
        _ => {
            let mut responses = Vec::new();
            for (position, operation) in request.executed(answer).iter().enumerate().take(answer.inner.len()) {
                let inner = &answer.inner[position];
                let header = Some(pb::ResponseHeader { revision: inner.revision, ..pb::ResponseHeader::default() });
                let response = Some(encode_answer(operation, inner, &pairs.inner[position], header));
                responses.push(pb::ResponseOp { response });
            }
            pb::ResponseOpResponse::Txn(pb::TxnResponse { header, succeeded: answer.succeeded, responses })
        }
    }
}

fn borrowed((pair, value): &(KeyValue, Vec<u8>)) -> mvccpb::KeyValue<'_> {
    mvccpb::KeyValue {
        key: &pair.key,
        value,
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
    }
}

impl<const MUTANT: u8> CoreLoop<SimPort> for Toy<MUTANT> {
    fn handle_turn(&mut self, port: &mut SimPort, events: &mut Vec<Event>) -> Turn {
        for event in events.drain(..) {
            match event {
                Event::Written { result, .. } => {
                    if result.is_err() && MUTANT != GOES_ON_AFTER_ERROR {
                        return Turn::Stop(1);
                    }
                    self.handle_written();
                }
                Event::Accepted { connection, .. } => {
                    self.connections.insert(connection, Http2::new());
                }
                Event::Received { connection, bytes } => {
                    let mut ready = Vec::new();
                    self.connections.get_mut(&connection).expect("accepted").handle(&bytes, &mut ready);
                    for (stream, path, message) in ready {
                        self.handle_request(connection, stream, &path, &message);
                    }
                }
                Event::Sent { connection, .. } => {
                    self.connections.get_mut(&connection).expect("accepted").sending = false;
                }
                Event::Closed { connection, .. } => {
                    self.connections.remove(&connection);
                }
                Event::StopRequested { .. } => self.stopping = true,
                other => panic!("{other:?} was not asked for"),
            }
        }
        self.append(port);
        for (connection, http2) in &mut self.connections {
            if !http2.sending {
                let mut output = http2.take_output();
                if MUTANT == DRAWS_FROM_AN_ADDRESS && !output.is_empty() {
                    // A PING whose contents depend on where this value happens to be.
                    let address = format!("{:p}", output.as_ptr()).into_bytes();
                    http2.push(6, 0, 0, &address[address.len() - 8..]);
                    output.append(&mut http2.output);
                }
                if !output.is_empty() {
                    http2.sending = true;
                    port.send(*connection, output);
                }
            }
        }
        if self.stopping && self.in_flight.is_empty() { Turn::Stop(0) } else { Turn::Continue }
    }
}

impl<const MUTANT: u8> Subject for Toy<MUTANT> {
    fn boot(limits: &Limits, port: &mut SimPort) -> Result<Self, String> {
        let mode = if MUTANT == WRITES_PLAIN { FileMode::Store } else { FileMode::Log };
        let text = |error: std::io::Error| error.to_string();
        let complete = match BootFiles::open(port, "log", mode, u64::MAX) {
            Ok(file) if BootFiles::len(port, file).map_err(text)? == LOG_BYTES => Some(file),
            Ok(file) => {
                BootFiles::unlink(port, file, "log").map_err(text)?;
                None
            }
            Err(_) => None,
        };
        let file = match complete {
            Some(file) => file,
            None => BootFiles::create(port, "log", LOG_BYTES, mode, Preparation::PreWrite).map_err(text)?,
        };
        let mut toy = Self {
            file,
            model: Model::new(),
            compacted: -1,
            sequence: 0,
            offset: 0,
            connections: BTreeMap::new(),
            queued: Vec::new(),
            in_flight: Vec::new(),
            next_token: 0,
            request_bytes_max: limits.request_bytes_max,
            stopping: false,
        };
        toy.recover(port).map_err(text)?;
        Ok(toy)
    }
}

fn run_seed<const MUTANT: u8>(seed: u64, early_acknowledgement: bool) -> Report {
    run::<Toy<MUTANT>>(Options { seed, verbose: false, early_acknowledgement, plain: true, seconds: USUAL_SECONDS })
}

/// The first seed that fails and what it says.
fn first_failure<const MUTANT: u8>(early_acknowledgement: bool) -> Option<(u64, Failure)> {
    (0..120).find_map(|seed| Some((seed, run_seed::<MUTANT>(seed, early_acknowledgement).failure?)))
}

fn assert_caught<const MUTANT: u8>(expected: &str) {
    let (seed, failure) = first_failure::<MUTANT>(false).expect("no seed catches the mutant");
    println!("mutant {MUTANT} is caught by seed {seed}: {failure}");
    assert!(failure.to_string().contains(expected), "seed {seed}: {failure}");
}

#[test]
fn correct_server_passes() {
    let mut acknowledged = 0;
    for seed in 0..30 {
        let report = run_seed::<CORRECT>(seed, false);
        if let Some(failure) = &report.failure {
            panic!("seed {seed}: {failure}\n{}", trilith_sim::trace::tail());
        }
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 5_000, "only {acknowledged} operations were acknowledged");
}

#[test]
fn same_seed_same_trace() {
    for seed in 0..20 {
        let (first, second) = (run_seed::<CORRECT>(seed, false), run_seed::<CORRECT>(seed, false));
        assert_eq!((first.trace_hash, first.virtual_time), (second.trace_hash, second.virtual_time), "seed {seed}");
    }
    assert_ne!(run_seed::<CORRECT>(1, false).trace_hash, run_seed::<CORRECT>(2, false).trace_hash);
    let varies = |seed| {
        let keep_memory_busy = vec![0_u8; 1_000 + seed as usize];
        let first = run_seed::<DRAWS_FROM_AN_ADDRESS>(seed, false).trace_hash;
        drop(keep_memory_busy);
        first != run_seed::<DRAWS_FROM_AN_ADDRESS>(seed, false).trace_hash
    };
    assert!((0..20).any(varies), "a server that looks at addresses is not noticed");
}

#[test]
fn early_acknowledgement_is_caught() {
    let (seed, failure) = first_failure::<CORRECT>(true).expect("no seed notices the lost writes");
    assert!(matches!(failure, Failure::Correctness(_)), "seed {seed}: {failure}");
}

#[test]
fn mutants_are_caught() {
    assert_caught::<ACKNOWLEDGES_AT_SUBMISSION>("correctness");
    assert_caught::<READS_BEFORE_DURABLE>("correctness");
    assert_caught::<ACCEPTS_TORN_RECORDS>("correctness");
    assert_caught::<EMPTY_DELETE_TAKES_A_REVISION>("correctness");
    assert_caught::<APPLIES_LAST_RECORD_TWICE>("correctness");
    assert_caught::<GOES_ON_AFTER_ERROR>("goes on after an I/O error");
    assert_caught::<PREVIOUS_PAIR_IS_THE_NEW_ONE>("pairs at");
    assert_caught::<LIMIT_HIDES_COUNT>("count");
    assert_caught::<WRITES_PLAIN>("correctness");
    assert_caught::<TRUSTS_WITHOUT_BARRIER>("correctness");
    assert_caught::<FORGETS_COMPACTIONS>("was compacted");
    assert_caught::<TRANSACTION_SUCCEEDS_ALWAYS>("correctness");
}
