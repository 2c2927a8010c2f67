//! Answers made of row addresses: measured, then sent at once or in parts.
//!
//! Owns: the shape of a KV answer as etcd fills it (nested headers carry the revision alone, a nested transaction's is
//! present and empty), as literal bytes and lists of row addresses; its exact encoded length; the walk that yields its
//! bytes a part at a time. Does not know: connections, pins, when a part may leave.
//!
//! A protobuf message names the length of what it embeds before the content, and gRPC the length of the whole. So an
//! answer passes twice over its rows: [`Answer::measure`] sums lengths, [`Parts::take`] copies keys and values. Only
//! addresses (16 bytes a row) stay in memory between the two.
//!
//! Invariants
//! - I1: the bytes of all parts are exactly what the encoder of the whole message writes.
//! - I2: a row counts with its measured length or the program stops: what was announced is sent.

use std::collections::VecDeque;

use trilith_engine::mvcc::{DeleteOutcome, OpOutcome, PutOutcome, RowShape, TxnOutcome, TxnRange};
use trilith_engine::page_source::Unavailable;
use trilith_engine::store::key_entry::Revision;
use trilith_wire::proto::codec::{message_field_len, put_message_field, put_varint, varint_len};
use trilith_wire::proto::etcdserverpb as pb;
use trilith_wire::proto::{Message, mvccpb};

use crate::api::response::{Rows, key_value};

/// Field 2, embedded: `RangeResponse.kvs`, `PutResponse.prev_kv`.
const TAG_2: u32 = 0x12;
/// Field 3, embedded: `DeleteRangeResponse.prev_kvs`, `TxnResponse.responses`.
const TAG_3: u32 = 0x1a;
/// Members of `ResponseOp`.
const OP_RANGE: u32 = 0x0a;
const OP_PUT: u32 = 0x12;
const OP_DELETE_RANGE: u32 = 0x1a;
const OP_TXN: u32 = 0x22;

/// An answer as a tree of bytes and rows.
#[derive(Debug)]
pub struct Answer {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    /// Encoded already.
    Bytes(Vec<u8>),
    /// One embedded KeyValue per row.
    Rows(RowField),
    /// An embedded message.
    Message { tag: u32, body: Vec<Self> },
}

#[derive(Debug)]
struct RowField {
    tag: u32,
    shape: RowShape,
    rows: Vec<Revision>,
    /// Rows measured, and their bytes, tags and lengths included.
    measured: usize,
    bytes: usize,
}

impl Answer {
    /// The answer to a range.
    #[must_use]
    pub fn range(header: pb::ResponseHeader, outcome: TxnRange) -> Self {
        Self { nodes: range_nodes(header, outcome) }
    }

    /// The answer to a put.
    #[must_use]
    pub fn put(header: pb::ResponseHeader, outcome: PutOutcome) -> Self {
        Self { nodes: put_nodes(header, outcome) }
    }

    /// The answer to a delete.
    #[must_use]
    pub fn delete_range(header: pb::ResponseHeader, outcome: DeleteOutcome) -> Self {
        Self { nodes: delete_nodes(header, outcome) }
    }

    /// The answer to a transaction, nested ones included.
    #[must_use]
    pub fn txn(header: pb::ResponseHeader, outcome: TxnOutcome) -> Self {
        Self { nodes: txn_nodes(header, outcome) }
    }

    /// Sums the lengths of up to `rows_max` more rows; the length of the whole message once all are summed.
    ///
    /// # Errors
    /// A row is not usable now; what was summed stays summed.
    pub fn measure<'a>(&mut self, mut rows_max: usize, rows: &dyn Rows<'a>) -> Result<Option<usize>, Unavailable> {
        Ok(measure(&mut self.nodes, &mut rows_max, rows)?.then(|| length(&self.nodes)))
    }

    /// Addresses it holds.
    #[must_use]
    pub fn rows(&self) -> usize {
        rows(&self.nodes)
    }

    /// The measured answer as a sequence of parts; nothing is left here.
    #[must_use]
    pub fn take_parts(&mut self) -> Parts {
        let nodes = std::mem::take(&mut self.nodes);
        let mut parts = Parts { pieces: VecDeque::new(), left: length(&nodes), rows: rows(&nodes) };
        flatten(nodes, &mut parts.pieces);
        parts
    }
}

/// Whether every row below was measured.
fn measure(nodes: &mut [Node], rows_max: &mut usize, rows: &dyn Rows<'_>) -> Result<bool, Unavailable> {
    for node in nodes {
        match node {
            Node::Bytes(_) => {}
            Node::Message { body, .. } => {
                if !measure(body, rows_max, rows)? {
                    return Ok(false);
                }
            }
            Node::Rows(field) => {
                while let Some(&at) = field.rows.get(field.measured) {
                    if *rows_max == 0 {
                        return Ok(false);
                    }
                    *rows_max -= 1;
                    field.bytes += message_field_len(field.tag, &field.show(at, rows)?);
                    field.measured += 1;
                }
            }
        }
    }
    Ok(true)
}

fn rows(nodes: &[Node]) -> usize {
    let of_node = |node: &Node| match node {
        Node::Bytes(_) => 0,
        Node::Rows(field) => field.rows.len(),
        Node::Message { body, .. } => rows(body),
    };
    nodes.iter().map(of_node).sum()
}

fn length(nodes: &[Node]) -> usize {
    let of_node = |node: &Node| match node {
        Node::Bytes(bytes) => bytes.len(),
        Node::Rows(field) => {
            assert_eq!(field.measured, field.rows.len(), "I2: lengths are summed before they are told");
            field.bytes
        }
        Node::Message { body, .. } => {
            let len = length(body);
            1 + varint_len(len as u64) + len
        }
    };
    nodes.iter().map(of_node).sum()
}

fn flatten(nodes: Vec<Node>, pieces: &mut VecDeque<Piece>) {
    for node in nodes {
        match node {
            Node::Bytes(bytes) => pieces.push_back(Piece::Bytes(bytes)),
            Node::Rows(field) => pieces.push_back(Piece::Rows { field, next: 0 }),
            Node::Message { tag, body } => {
                let mut head = Vec::new();
                put_varint(&mut head, u64::from(tag));
                put_varint(&mut head, length(&body) as u64);
                pieces.push_back(Piece::Bytes(head));
                flatten(body, pieces);
            }
        }
    }
}

impl RowField {
    fn show<'a>(&self, at: Revision, rows: &dyn Rows<'a>) -> Result<mvccpb::KeyValue<'a>, Unavailable> {
        rows.row(at).map(|row| key_value(&self.shape.show(row)))
    }
}

/// What is left of an answer to send.
#[derive(Debug)]
pub struct Parts {
    pieces: VecDeque<Piece>,
    left: usize,
    rows: usize,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Rows { field: RowField, next: usize },
}

impl Parts {
    /// Bytes not yet taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left
    }

    /// Addresses it began with.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Appends the next bytes to `out`: at least `bytes_min` of them if there are as many, and one row more at most.
    ///
    /// # Errors
    /// A row is not usable now; what was appended before it counts as taken.
    pub fn take(&mut self, bytes_min: usize, rows: &dyn Rows<'_>, out: &mut Vec<u8>) -> Result<(), Unavailable> {
        let start = out.len();
        let taken = self.take_pieces(start + bytes_min, rows, out);
        self.left = self.left.checked_sub(out.len() - start).expect("I2: no part exceeds what was measured");
        assert!(self.left == 0 || !self.pieces.is_empty(), "I2: what was measured is sent");
        taken
    }

    fn take_pieces(&mut self, until: usize, rows: &dyn Rows<'_>, out: &mut Vec<u8>) -> Result<(), Unavailable> {
        while out.len() < until
            && let Some(piece) = self.pieces.front_mut()
        {
            match piece {
                Piece::Bytes(bytes) => out.append(bytes),
                Piece::Rows { field, next } => {
                    while let Some(&at) = field.rows.get(*next)
                        && out.len() < until
                    {
                        put_message_field(out, field.tag, &field.show(at, rows)?);
                        *next += 1;
                    }
                    if *next < field.rows.len() {
                        return Ok(());
                    }
                }
            }
            self.pieces.pop_front();
        }
        Ok(())
    }
}

fn encoded<'a>(message: &impl Message<'a>) -> Node {
    Node::Bytes(message.encode_to_vec())
}

fn row_field(tag: u32, shape: RowShape, rows: Vec<Revision>) -> Node {
    Node::Rows(RowField { tag, shape, rows, measured: 0, bytes: 0 })
}

fn range_nodes(header: pb::ResponseHeader, outcome: TxnRange) -> Vec<Node> {
    let head = pb::RangeResponse { header: Some(header), ..pb::RangeResponse::default() };
    let tail = pb::RangeResponse { more: outcome.more, count: outcome.count, ..pb::RangeResponse::default() };
    vec![encoded(&head), row_field(TAG_2, outcome.shape, outcome.rows), encoded(&tail)]
}

fn put_nodes(header: pb::ResponseHeader, outcome: PutOutcome) -> Vec<Node> {
    let head = pb::PutResponse { header: Some(header), prev_kv: None };
    vec![encoded(&head), row_field(TAG_2, RowShape::Whole, outcome.prev.into_iter().collect())]
}

fn delete_nodes(header: pb::ResponseHeader, outcome: DeleteOutcome) -> Vec<Node> {
    let head = pb::DeleteRangeResponse { header: Some(header), deleted: outcome.deleted, prev_kvs: Vec::new() };
    vec![encoded(&head), row_field(TAG_3, RowShape::Whole, outcome.prev)]
}

fn txn_nodes(header: pb::ResponseHeader, outcome: TxnOutcome) -> Vec<Node> {
    let head = pb::TxnResponse { header: Some(header), succeeded: outcome.succeeded, responses: Vec::new() };
    let responses = outcome.responses.into_iter().map(|op| Node::Message { tag: TAG_3, body: vec![nested_node(op)] });
    std::iter::once(encoded(&head)).chain(responses).collect()
}

fn nested_node(outcome: OpOutcome) -> Node {
    let bare = |revision| pb::ResponseHeader { revision, ..pb::ResponseHeader::default() };
    let (tag, body) = match outcome {
        OpOutcome::Range(inner) => (OP_RANGE, range_nodes(bare(inner.revision), inner)),
        OpOutcome::Put(inner) => (OP_PUT, put_nodes(bare(inner.revision), inner)),
        OpOutcome::DeleteRange(inner) => (OP_DELETE_RANGE, delete_nodes(bare(inner.revision), inner)),
        OpOutcome::Txn(inner) => (OP_TXN, txn_nodes(pb::ResponseHeader::default(), inner)),
    };
    Node::Message { tag, body }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use trilith_engine::mvcc::RowView;
    use trilith_engine::page_source::{Block, FileKind, StoreFile};

    use super::*;
    use crate::api::response::Identity;

    const VALUE: &[u8] = &[7; 300];
    const MISSING: Unavailable =
        Unavailable::Missing(Block { file: StoreFile { kind: FileKind::Rows, number: 0 }, offset: 0, len: 1 });

    /// Row r has a key of r bytes and a value of 3 r bytes; every third look misses if asked to.
    struct Numbered {
        misses: bool,
        looks: Cell<u64>,
    }

    impl Rows<'static> for Numbered {
        fn row(&self, at: Revision) -> Result<RowView<'static>, Unavailable> {
            self.looks.set(self.looks.get() + 1);
            if self.misses && self.looks.get().is_multiple_of(3) {
                return Err(MISSING);
            }
            let len = at.main as usize;
            let (key, value) = (&VALUE[..len], &VALUE[..3 * len]);
            Ok(RowView { key, value, create: 1, modified: at.main, version: at.main * 1000, lease: -5 })
        }
    }

    fn rows(misses: bool) -> Numbered {
        Numbered { misses, looks: Cell::new(0) }
    }

    fn list(numbers: impl IntoIterator<Item = i64>) -> Vec<Revision> {
        numbers.into_iter().map(|main| Revision { main, sub: 0 }).collect()
    }

    fn outcome() -> TxnOutcome {
        let range = |shape, rows| TxnRange { revision: 8, rows, count: 300, more: true, shape };
        let nested = TxnOutcome {
            revision: 9,
            succeeded: false,
            responses: vec![
                OpOutcome::DeleteRange(DeleteOutcome { revision: 9, deleted: 2, prev: list([50, 60]) }),
                OpOutcome::Range(range(RowShape::KeyOnly, list(1..90))),
            ],
        };
        TxnOutcome {
            revision: 9,
            succeeded: true,
            responses: vec![
                OpOutcome::Put(PutOutcome { revision: 9, prev: Some(Revision { main: 99, sub: 0 }) }),
                OpOutcome::Put(PutOutcome { revision: 9, prev: None }),
                OpOutcome::Txn(nested),
                OpOutcome::Range(range(RowShape::Whole, list([3, 100, 1]))),
                OpOutcome::Range(range(RowShape::WithoutValue, Vec::new())),
            ],
        }
    }

    // The same answers as whole messages.

    fn put<'a>(
        header: pb::ResponseHeader,
        outcome: &PutOutcome,
        rows: &dyn Rows<'a>,
    ) -> Result<pb::PutResponse<'a>, Unavailable> {
        let prev_kv = outcome.prev.map(|at| rows.row(at)).transpose()?.map(|row| key_value(&row));
        Ok(pb::PutResponse { header: Some(header), prev_kv })
    }

    fn delete_range<'a>(
        header: pb::ResponseHeader,
        outcome: &DeleteOutcome,
        rows: &dyn Rows<'a>,
    ) -> Result<pb::DeleteRangeResponse<'a>, Unavailable> {
        let prev_kvs =
            outcome.prev.iter().map(|&at| rows.row(at).map(|row| key_value(&row))).collect::<Result<_, _>>()?;
        Ok(pb::DeleteRangeResponse { header: Some(header), deleted: outcome.deleted, prev_kvs })
    }

    fn txn<'a>(
        header: pb::ResponseHeader,
        outcome: &TxnOutcome,
        rows: &dyn Rows<'a>,
    ) -> Result<pb::TxnResponse<'a>, Unavailable> {
        let responses = outcome.responses.iter().map(|op| nested(op, rows)).collect::<Result<_, _>>()?;
        Ok(pb::TxnResponse { header: Some(header), succeeded: outcome.succeeded, responses })
    }

    fn nested<'a>(outcome: &OpOutcome, rows: &dyn Rows<'a>) -> Result<pb::ResponseOp<'a>, Unavailable> {
        let bare = |revision| pb::ResponseHeader { revision, ..pb::ResponseHeader::default() };
        let response = match outcome {
            OpOutcome::Range(inner) => pb::ResponseOpResponse::Range(nested_range(inner, rows)?),
            OpOutcome::Put(inner) => pb::ResponseOpResponse::Put(put(bare(inner.revision), inner, rows)?),
            OpOutcome::DeleteRange(inner) => {
                pb::ResponseOpResponse::DeleteRange(delete_range(bare(inner.revision), inner, rows)?)
            }
            OpOutcome::Txn(inner) => pb::ResponseOpResponse::Txn(txn(pb::ResponseHeader::default(), inner, rows)?),
        };
        Ok(pb::ResponseOp { response: Some(response) })
    }

    fn nested_range<'a>(outcome: &TxnRange, rows: &dyn Rows<'a>) -> Result<pb::RangeResponse<'a>, Unavailable> {
        let shown = |&at: &Revision| rows.row(at).map(|row| key_value(&outcome.shape.show(row)));
        Ok(pb::RangeResponse {
            header: Some(pb::ResponseHeader { revision: outcome.revision, ..pb::ResponseHeader::default() }),
            kvs: outcome.rows.iter().map(shown).collect::<Result<_, _>>()?,
            more: outcome.more,
            count: outcome.count,
        })
    }

    /// Measured and taken in parts of every size, with and without misses: the bytes of the whole message.
    #[test]
    fn parts_are_what_one_step_would_send() {
        let header = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 9, raft_term: 3 };
        let all = rows(false);
        let expected = txn(header, &outcome(), &all).unwrap().encode_to_vec();
        for (size, misses) in [(1, false), (64, false), (1 << 20, false), (1, true), (700, true)] {
            let source = rows(misses);
            let mut answer = Answer::txn(header, outcome());
            let mut slices = 0;
            let len = loop {
                match answer.measure(5, &source) {
                    Ok(Some(len)) => break len,
                    Ok(None) | Err(_) => slices += 1,
                }
            };
            assert!(slices > 10, "the rows do not fit one slice");
            let mut parts = answer.take_parts();
            assert_eq!((len, parts.len()), (expected.len(), expected.len()));
            let mut out = Vec::new();
            while !parts.is_empty() {
                let before = out.len();
                if parts.take(size, &source, &mut out).is_ok() && !parts.is_empty() {
                    let taken = out.len() - before;
                    assert!(taken >= size && taken < size + 500, "{taken} bytes in a part of {size}");
                }
                assert_eq!(parts.len(), expected.len() - out.len());
            }
            assert!(out == expected, "parts of {size}, misses {misses}");
        }
    }

    #[test]
    fn nested_headers_carry_the_revision_alone() {
        let prev = Some(Revision { main: 3, sub: 0 });
        let inner = TxnOutcome { revision: 9, succeeded: true, responses: vec![] };
        let outcome = TxnOutcome {
            revision: 9,
            succeeded: false,
            responses: vec![OpOutcome::Put(PutOutcome { revision: 9, prev }), OpOutcome::Txn(inner)],
        };
        let identity = Identity { cluster_id: 1, member_id: 2, raft_term: 3 };
        let mut answer = Answer::txn(identity.header(9), outcome);
        let len = answer.measure(usize::MAX, &rows(false)).expect("rows are there").expect("all are measured");
        let mut bytes = Vec::new();
        answer.take_parts().take(len, &rows(false), &mut bytes).expect("rows are there");
        let response = pb::TxnResponse::decode(&bytes).expect("a message");
        assert_eq!(response.header.expect("present").raft_term, 3);
        let Some(pb::ResponseOpResponse::Put(put)) = &response.responses[0].response else { panic!("a put") };
        assert_eq!(put.header, Some(pb::ResponseHeader { revision: 9, ..pb::ResponseHeader::default() }));
        assert_eq!(put.prev_kv.as_ref().expect("asked for").mod_revision, 3);
        let Some(pb::ResponseOpResponse::Txn(nested)) = &response.responses[1].response else { panic!("a txn") };
        assert_eq!(nested.header, Some(pb::ResponseHeader::default()));
    }
}
