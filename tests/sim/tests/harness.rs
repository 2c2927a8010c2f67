//! Proof of the harness: a small correct server passes, and each of its mutants is caught.
//!
//! Owns: that server, naive on purpose (one file, one write in flight, the model as its store), and its mutants. Does not
//! know: Trilith.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use trilith_reactor::{BootFiles, ConnectionId, CoreLoop, Event, FileId, FileMode, Port, Preparation, Token, Turn};
use trilith_sim::model::{KeyRange, KeyValue, Model};
use trilith_sim::port::SimPort;
use trilith_sim::simulation::{Failure, Options, Report, run};
use trilith_sim::subject::Subject;
use trilith_sim::weather::Limits;
use trilith_wire::hpack::{Decoder, FieldSink, Mark};
use trilith_wire::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
};
use trilith_wire::proto::{Message, mvccpb};

const LOG_BYTES: u64 = 4 << 20;
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

/// One logged operation: an empty `value_or_end` list entry is legal in both.
#[derive(Clone)]
enum Operation {
    Put { key: Vec<u8>, value: Vec<u8>, prev_kv: bool },
    Delete { range: KeyRange, prev_kv: bool },
}

struct Toy<const MUTANT: u8> {
    file: FileId,
    model: Model,
    sequence: u64,
    offset: u64,
    connections: BTreeMap<ConnectionId, Http2>,
    queued: Vec<(ConnectionId, u32, Operation)>,
    in_flight: Vec<(ConnectionId, u32, Operation)>,
    next_token: u64,
    stopping: bool,
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take_bytes(input: &mut &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(input.get(..4)?.try_into().ok()?) as usize;
    let bytes = input.get(4..4 + length)?.to_vec();
    *input = &input[4 + length..];
    Some(bytes)
}

/// Checksum, sequence, length, then operations; padded to whole blocks.
fn encode_record(sequence: u64, operations: &[(ConnectionId, u32, Operation)]) -> Vec<u8> {
    let mut body = sequence.to_le_bytes().to_vec();
    body.extend_from_slice(&[0; 4]);
    for (_, _, operation) in operations {
        let (kind, first, second) = match operation {
            Operation::Put { key, value, .. } => (1, key, value),
            Operation::Delete { range, .. } => (2, &range.key, &range.range_end),
        };
        body.push(kind);
        push_bytes(&mut body, first);
        push_bytes(&mut body, second);
    }
    let length = body.len() as u32;
    body[8..12].copy_from_slice(&length.to_le_bytes());
    let mut record = xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes().to_vec();
    record.extend_from_slice(&body);
    record.resize(record.len().next_multiple_of(BLOCK), 0);
    record
}

fn decode_record(bytes: &[u8], sequence: u64, verify: bool) -> Option<(Vec<Operation>, usize)> {
    let length = u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?) as usize;
    let body = bytes.get(8..8 + length)?;
    let checksum = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    if body.get(..8)? != sequence.to_le_bytes() || verify && checksum != xxhash_rust::xxh3::xxh3_64(body) {
        return None;
    }
    let mut rest = &body[12..];
    let mut operations = Vec::new();
    while let Some((&kind, mut tail)) = rest.split_first() {
        let (Some(first), Some(second)) = (take_bytes(&mut tail), take_bytes(&mut tail)) else { break };
        operations.push(match kind {
            1 => Operation::Put { key: first, value: second, prev_kv: false },
            _ => Operation::Delete { range: KeyRange { key: first, range_end: second }, prev_kv: false },
        });
        rest = tail;
    }
    Some((operations, (8 + length).next_multiple_of(BLOCK)))
}

impl<const MUTANT: u8> Toy<MUTANT> {
    fn apply(&mut self, operation: &Operation) -> (Vec<KeyValue>, i64) {
        match operation {
            Operation::Put { key, value, prev_kv } => {
                let mut previous: Vec<KeyValue> = self.model.put(key, value).into_iter().collect();
                if MUTANT == PREVIOUS_PAIR_IS_THE_NEW_ONE {
                    let range = KeyRange { key: key.clone(), range_end: Vec::new() };
                    previous = self.model.range(&range, self.model.revision()).into_iter().cloned().collect();
                }
                (if *prev_kv { previous } else { Vec::new() }, 0)
            }
            Operation::Delete { range, prev_kv } => {
                let deleted = self.model.delete_range(range);
                if deleted.is_empty() && MUTANT == EMPTY_DELETE_TAKES_A_REVISION {
                    self.model.put(b"\xff", b"");
                    self.model.delete_range(&KeyRange { key: b"\xff".to_vec(), range_end: Vec::new() });
                }
                let count = deleted.len() as i64;
                (if *prev_kv { deleted } else { Vec::new() }, count)
            }
        }
    }

    fn recover(&mut self, port: &mut SimPort) -> std::io::Result<()> {
        if MUTANT != TRUSTS_WITHOUT_BARRIER {
            BootFiles::sync(port, self.file)?;
        }
        let bytes = BootFiles::read(port, self.file, 0, LOG_BYTES as usize)?;
        let mut at = 0;
        let mut last = Vec::new();
        while let Some((operations, length)) =
            decode_record(&bytes[at..], self.sequence, MUTANT != ACCEPTS_TORN_RECORDS)
        {
            for operation in &operations {
                self.apply(operation);
            }
            self.sequence += 1;
            at += length;
            last = operations;
        }
        if MUTANT == APPLIES_LAST_RECORD_TWICE {
            for operation in &last {
                self.apply(operation);
            }
        }
        self.offset = at as u64;
        Ok(())
    }

    fn header(&self) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: 2, revision: self.model.revision(), raft_term: 2 }
    }

    fn respond(&mut self, operations: Vec<(ConnectionId, u32, Operation)>) {
        for (connection, stream, operation) in operations {
            let (pairs, count) = self.apply(&operation);
            self.acknowledge(connection, stream, &operation, &pairs, count);
        }
    }

    fn acknowledge(
        &mut self,
        connection: ConnectionId,
        stream: u32,
        operation: &Operation,
        pairs: &[KeyValue],
        count: i64,
    ) {
        let header = Some(self.header());
        let Some(http2) = self.connections.get_mut(&connection) else { return };
        let message = match operation {
            Operation::Put { .. } => PutResponse { header, prev_kv: pairs.first().map(borrowed) }.encode_to_vec(),
            Operation::Delete { .. } => {
                let prev_kvs = pairs.iter().map(borrowed).collect();
                DeleteRangeResponse { header, deleted: count, prev_kvs }.encode_to_vec()
            }
        };
        http2.answer(stream, &message);
    }

    fn read(&mut self, connection: ConnectionId, stream: u32, message: &[u8]) {
        let request = RangeRequest::decode(message).expect("a correct client");
        let header = Some(self.header());
        let newest = self.model.revision();
        let http2 = self.connections.get_mut(&connection).expect("the request came from it");
        if request.revision > newest {
            return http2.fail(stream, "11", "etcdserver: mvcc: required revision is a future revision");
        }
        let at = if request.revision > 0 { request.revision } else { newest };
        let range = KeyRange { key: request.key.to_vec(), range_end: request.range_end.to_vec() };
        let pairs = self.model.range(&range, at);
        let kept = if request.count_only {
            0
        } else if request.limit > 0 {
            pairs.len().min(request.limit as usize)
        } else {
            pairs.len()
        };
        let mut kvs: Vec<mvccpb::KeyValue<'_>> = pairs[..kept].iter().map(|pair| borrowed(pair)).collect();
        if request.keys_only {
            kvs.iter_mut().for_each(|pair| pair.value = b"");
        }
        let count = if MUTANT == LIMIT_HIDES_COUNT { kept as i64 } else { pairs.len() as i64 };
        let more = kept < pairs.len() && !request.count_only;
        let response = RangeResponse { header, kvs, more, count, ..RangeResponse::default() };
        http2.answer(stream, &response.encode_to_vec());
    }

    fn handle_request(&mut self, connection: ConnectionId, stream: u32, path: &str, message: &[u8]) {
        let operation = match path {
            "/etcdserverpb.KV/Put" => {
                let request = PutRequest::decode(message).expect("a correct client");
                if request.key.is_empty() {
                    let http2 = self.connections.get_mut(&connection).expect("the request came from it");
                    return http2.fail(stream, "3", "etcdserver: key is not provided");
                }
                Operation::Put { key: request.key.into(), value: request.value.into(), prev_kv: request.prev_kv }
            }
            "/etcdserverpb.KV/DeleteRange" => {
                let request = DeleteRangeRequest::decode(message).expect("a correct client");
                let range = KeyRange { key: request.key.into(), range_end: request.range_end.into() };
                Operation::Delete { range, prev_kv: request.prev_kv }
            }
            _ => return self.read(connection, stream, message),
        };
        if MUTANT == READS_BEFORE_DURABLE {
            let (pairs, count) = self.apply(&operation);
            self.queued.push((connection, stream, operation.clone()));
            // The answer still waits, but readers see the change at once.
            let _ = (pairs, count);
        } else {
            self.queued.push((connection, stream, operation));
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
            self.respond(early);
        }
    }

    fn handle_written(&mut self) {
        let written = std::mem::take(&mut self.in_flight);
        match MUTANT {
            ACKNOWLEDGES_AT_SUBMISSION => {}
            READS_BEFORE_DURABLE => {
                for (connection, stream, operation) in written {
                    self.acknowledge(connection, stream, &operation, &[], 1);
                }
            }
            _ => self.respond(written),
        }
    }
}

fn borrowed(pair: &KeyValue) -> mvccpb::KeyValue<'_> {
    mvccpb::KeyValue {
        key: &pair.key,
        value: &pair.value,
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
        ..mvccpb::KeyValue::default()
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
    fn boot(_limits: &Limits, port: &mut SimPort) -> Result<Self, String> {
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
            sequence: 0,
            offset: 0,
            connections: BTreeMap::new(),
            queued: Vec::new(),
            in_flight: Vec::new(),
            next_token: 0,
            stopping: false,
        };
        toy.recover(port).map_err(text)?;
        Ok(toy)
    }
}

fn run_seed<const MUTANT: u8>(seed: u64, early_acknowledgement: bool) -> Report {
    run::<Toy<MUTANT>>(Options { seed, verbose: false, early_acknowledgement })
}

/// The first seed that fails and what it says.
fn first_failure<const MUTANT: u8>(early_acknowledgement: bool) -> Option<(u64, Failure)> {
    (0..300).find_map(|seed| Some((seed, run_seed::<MUTANT>(seed, early_acknowledgement).failure?)))
}

fn assert_caught<const MUTANT: u8>(expected: &str) {
    let (seed, failure) = first_failure::<MUTANT>(false).expect("no seed catches the mutant");
    println!("mutant {MUTANT} is caught by seed {seed}: {failure}");
    assert!(failure.to_string().contains(expected), "seed {seed}: {failure}");
}

#[test]
fn correct_server_passes() {
    let mut acknowledged = 0;
    for seed in 0..60 {
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
    assert_caught::<PREVIOUS_PAIR_IS_THE_NEW_ONE>("prev_kv");
    assert_caught::<LIMIT_HIDES_COUNT>("count");
    assert_caught::<WRITES_PLAIN>("correctness");
    assert_caught::<TRUSTS_WITHOUT_BARRIER>("correctness");
}
