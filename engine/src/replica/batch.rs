//! Commands gathered for the next entries.
//!
//! Owns: the entry under construction and those that are full. Does not know: when the log takes one.
//!
//! Invariants
//! - I1: no payload exceeds the entry limit.
//! - I2: payloads leave in the order of their sequences.

use std::collections::VecDeque;

use trilith_raftlog::{BootNumber, MemberId};

use crate::command::{Command, ENTRY_HEADER_BYTES, append_command, append_encoded, begin_entry, command_len};

/// A command that no entry can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Commands that wait for a place in the log.
#[derive(Debug)]
pub(super) struct Batches {
    member: MemberId,
    boot: BootNumber,
    entry_bytes_max: usize,
    full: VecDeque<Vec<u8>>,
    full_bytes: usize,
    open: Vec<u8>,
}

impl Batches {
    pub(super) fn new(member: MemberId, boot: BootNumber, entry_bytes_max: usize) -> Self {
        Self { member, boot, entry_bytes_max, full: VecDeque::new(), full_bytes: 0, open: Vec::new() }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.full_bytes + self.open.len()
    }

    /// Appends a command.
    ///
    /// # Errors
    /// It exceeds what an entry may hold.
    pub(super) fn append(&mut self, command: &Command<'_>, sequence: u64) -> Result<(), TooLong> {
        self.make_room(command_len(command), sequence)?;
        append_command(&mut self.open, command);
        assert!(self.open.len() <= self.entry_bytes_max, "I1: {} bytes in an entry", self.open.len());
        Ok(())
    }

    /// Appends a command in its log form.
    ///
    /// # Errors
    /// It exceeds what an entry may hold.
    pub(super) fn append_encoded(&mut self, encoded: &[u8], sequence: u64) -> Result<(), TooLong> {
        self.make_room(encoded.len(), sequence)?;
        append_encoded(&mut self.open, encoded);
        Ok(())
    }

    #[inline]
    fn make_room(&mut self, len: usize, sequence: u64) -> Result<(), TooLong> {
        if ENTRY_HEADER_BYTES + len > self.entry_bytes_max {
            return Err(TooLong);
        }
        if self.open.len() + len > self.entry_bytes_max {
            self.close();
        }
        if self.open.is_empty() {
            begin_entry(&mut self.open, self.member.0, self.boot.0, sequence);
        }
        Ok(())
    }

    /// The next payload.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        if let Some(payload) = self.full.pop_front() {
            self.full_bytes -= payload.len();
            return Some(payload);
        }
        // The next batch is likely as long as this one.
        let capacity = self.open.len();
        (capacity > 0).then(|| std::mem::replace(&mut self.open, Vec::with_capacity(capacity)))
    }

    fn close(&mut self) {
        self.full_bytes += self.open.len();
        self.full.push_back(std::mem::take(&mut self.open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Entry, Put, encode_command};

    #[test]
    fn entries_stay_within_their_limit_and_in_order() {
        let mut batches = Batches::new(MemberId(1), BootNumber(2), 200);
        let value = [0_u8; 60];
        for sequence in 1..=10 {
            let put = Command::Put(Put { key: b"key", value: &value, ..Put::default() });
            // Whoever encodes it, the entry is the same.
            if sequence % 2 == 0 {
                let mut encoded = Vec::new();
                encode_command(&mut encoded, &put);
                batches.append_encoded(&encoded, sequence).unwrap();
            } else {
                batches.append(&put, sequence).unwrap();
            }
        }
        let mut expected = 1;
        while let Some(payload) = batches.take() {
            assert!(payload.len() <= 200);
            let header = Entry::decode(&payload).unwrap().header;
            assert_eq!((header.member, header.boot, header.first_sequence), (1, 2, expected));
            expected += u64::from(header.count);
            let same = Command::Put(Put { key: b"key", value: &value, ..Put::default() });
            let mut entry = Entry::decode(&payload).unwrap();
            while let Some(command) = entry.next_command() {
                assert_eq!(command.unwrap(), same);
            }
        }
        assert_eq!((expected, batches.bytes()), (11, 0));
        let long = [0_u8; 200];
        let put = Command::Put(Put { key: b"key", value: &long, ..Put::default() });
        assert_eq!(batches.append(&put, 11), Err(TooLong));
        assert_eq!(batches.bytes(), 0);
    }
}
