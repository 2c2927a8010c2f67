//! The small replicated tables: members and alarms.
//!
//! Owns: their contents, the commands that change them and their binary form (a checkpoint stores it whole, the initial
//! configuration entry carries its member part). Does not know: pages, raft, URLs' meaning.
//!
//! Binary form, little-endian: `format u8 = 1`, `members u32`, per member `id u64`, `name`, `peer URLs`, `client URLs`;
//! `alarms u32`, per alarm `member u64`, `alarm u32`. A string is `len u32` + bytes, a list `count u32` + items.
//!
//! Invariants
//! - I1: contents are a function of the applied entries alone; iteration is in id order.
//! - I2: decoding foreign bytes never panics and has one result for one state.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Alarm, PublishMember};

const FORMAT: u8 = 1;

/// What the cluster knows of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Name; empty until the member has published itself.
    pub name: String,
    /// Peer URLs.
    pub peer_urls: Vec<String>,
    /// Client URLs; empty until the member has published itself.
    pub client_urls: Vec<String>,
}

/// Members and alarms as of the applied index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    members: BTreeMap<u64, Member>,
    alarms: BTreeSet<Alarm>,
}

impl Tables {
    /// Tables that hold the given initial members, by id.
    #[must_use]
    pub fn with_members(members: impl IntoIterator<Item = (u64, Member)>) -> Self {
        Self { members: members.into_iter().collect(), alarms: BTreeSet::new() }
    }

    /// Members in id order.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<u64, Member> {
        &self.members
    }

    /// Active alarms in (member, type) order.
    #[must_use]
    pub fn alarms(&self) -> &BTreeSet<Alarm> {
        &self.alarms
    }

    /// Takes over the members of a configuration entry, keeping what known ones have published.
    pub fn apply_configuration(&mut self, configuration: Self) {
        let known = std::mem::replace(&mut self.members, configuration.members);
        for (id, member) in known {
            if let Some(present) = self.members.get_mut(&id).filter(|present| present.name.is_empty()) {
                present.name = member.name;
                present.client_urls = member.client_urls;
            }
        }
    }

    /// Records what a member says of itself; one that is not in the configuration changes nothing.
    pub fn apply_publish(&mut self, publish: &PublishMember<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if let Some(member) = self.members.get_mut(&publish.member) {
            member.name = text(publish.name);
            member.client_urls = publish.client_urls.iter().map(|url| text(url)).collect();
        }
    }

    /// Raises an alarm; false if it was on.
    pub fn apply_activate(&mut self, alarm: Alarm) -> bool {
        self.alarms.insert(alarm)
    }

    /// Clears exactly that alarm; false if it was off.
    pub fn apply_deactivate(&mut self, alarm: Alarm) -> bool {
        self.alarms.remove(&alarm)
    }

    /// The binary form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_count(&mut out, self.members.len());
        for (id, member) in &self.members {
            out.extend_from_slice(&id.to_le_bytes());
            put_text(&mut out, &member.name);
            for list in [&member.peer_urls, &member.client_urls] {
                put_count(&mut out, list.len());
                list.iter().for_each(|url| put_text(&mut out, url));
            }
        }
        put_count(&mut out, self.alarms.len());
        for alarm in &self.alarms {
            out.extend_from_slice(&alarm.member.to_le_bytes());
            out.extend_from_slice(&alarm.alarm.to_le_bytes());
        }
        out
    }

    /// Reads the binary form, which must fill `bytes`. `None`: malformed.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = bytes;
        let mut tables = Self::default();
        if take(&mut input, 1)? != [FORMAT] {
            return None;
        }
        let mut last_id = None;
        for _ in 0..take_u32(&mut input)? {
            let id = take_u64(&mut input)?;
            let name = take_text(&mut input)?;
            let peer_urls = take_list(&mut input)?;
            let client_urls = take_list(&mut input)?;
            if last_id.is_some_and(|last| last >= id) {
                return None;
            }
            last_id = Some(id);
            tables.members.insert(id, Member { name, peer_urls, client_urls });
        }
        let mut last_alarm = None;
        for _ in 0..take_u32(&mut input)? {
            let alarm = Alarm { member: take_u64(&mut input)?, alarm: take_u32(&mut input)? };
            if last_alarm.is_some_and(|last| last >= alarm) {
                return None;
            }
            last_alarm = Some(alarm);
            tables.alarms.insert(alarm);
        }
        input.is_empty().then_some(tables)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("names, URLs and members are far fewer than 2^32");
    out.extend_from_slice(&count.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(head)
}

fn take_u32(input: &mut &[u8]) -> Option<u32> {
    take(input, 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn take_u64(input: &mut &[u8]) -> Option<u64> {
    take(input, 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn take_text(input: &mut &[u8]) -> Option<String> {
    let len = usize::try_from(take_u32(input)?).ok()?;
    String::from_utf8(take(input, len)?.to_vec()).ok()
}

fn take_list(input: &mut &[u8]) -> Option<Vec<String>> {
    // No reservation by the announced count: it is foreign.
    (0..take_u32(input)?).map(|_| take_text(input)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tables {
        let member = |name: &str| Member {
            name: name.to_owned(),
            peer_urls: vec!["http://a:1".to_owned()],
            client_urls: vec![String::new(), "http://c:2".to_owned()],
        };
        let mut tables = Tables::with_members([(7, member("x")), (3, member(""))]);
        assert!(tables.apply_activate(Alarm { member: 3, alarm: 1 }));
        tables
    }

    #[test]
    fn binary_form_round_trips_and_damage_is_rejected_or_canonical() {
        let tables = sample();
        let bytes = tables.encode();
        assert_eq!(Tables::decode(&bytes), Some(tables));
        for cut in 0..bytes.len() {
            assert_eq!(Tables::decode(&bytes[..cut]), None);
        }
        for position in 0..bytes.len() {
            for value in 0..=255 {
                let mut damaged = bytes.clone();
                damaged[position] = value;
                if let Some(read) = Tables::decode(&damaged) {
                    assert_eq!(read.encode(), damaged, "one binary form per state");
                }
            }
        }
    }

    #[test]
    fn publish_needs_membership_and_survives_reconfiguration() {
        let mut tables = sample();
        let before = tables.clone();
        tables.apply_publish(&PublishMember { member: 99, name: b"ghost", client_urls: vec![] });
        assert_eq!(tables, before);
        tables.apply_publish(&PublishMember { member: 3, name: b"n3", client_urls: vec![b"http://x:1"] });
        assert_eq!(tables.members()[&3].name, "n3");
        tables.apply_configuration(Tables::with_members([(3, Member::default())]));
        assert_eq!(tables.members().keys().copied().collect::<Vec<_>>(), [3]);
        assert_eq!(tables.members()[&3].client_urls, ["http://x:1"]);
    }

    #[test]
    fn alarms_are_cleared_only_exactly() {
        let mut tables = sample();
        assert!(!tables.apply_deactivate(Alarm { member: 3, alarm: 2 }));
        assert!(tables.apply_deactivate(Alarm { member: 3, alarm: 1 }));
        assert!(tables.alarms().is_empty());
    }
}
