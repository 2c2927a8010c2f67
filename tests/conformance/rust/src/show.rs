//! How answers are printed: what differs from run to run is replaced by names and distances.

use etcd_client::{Error, Event, KeyValue, ResponseHeader};

use crate::Tour;

impl Tour {
    /// A revision by its distance from the beginning; 0 is none.
    pub(crate) fn revision(&self, revision: i64) -> String {
        match revision {
            0 => "r0".to_owned(),
            _ => format!("r{:+}", revision - self.base),
        }
    }

    /// A lease by its order of appearance; 0 is none.
    pub(crate) fn lease_name(&mut self, id: i64) -> String {
        if id == 0 {
            return "none".to_owned();
        }
        let known = self.leases.iter().position(|lease| *lease == id);
        let index = known.unwrap_or_else(|| {
            self.leases.push(id);
            self.leases.len() - 1
        });
        format!("L{}", index + 1)
    }

    pub(crate) fn header(&self, header: Option<&ResponseHeader>) -> String {
        let Some(header) = header else { return "without header".to_owned() };
        let named = header.cluster_id() != 0 && header.member_id() != 0 && header.raft_term() != 0;
        format!("at {}{}", self.revision(header.revision()), if named { "" } else { ", of nobody" })
    }

    /// A key without the part's prefix, with the ids of leases replaced by their names.
    pub(crate) fn plain(&mut self, key: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(key).replace(&self.prefix, "");
        for id in self.leases.clone() {
            text = text.replace(&format!("{id:x}"), &self.lease_name(id));
        }
        format!("{text:?}")
    }

    pub(crate) fn pair(&mut self, pair: &KeyValue) -> String {
        format!(
            "{} = {:?} create {} mod {} version {} lease {}",
            self.plain(pair.key()),
            String::from_utf8_lossy(pair.value()),
            self.revision(pair.create_revision()),
            self.revision(pair.mod_revision()),
            pair.version(),
            self.lease_name(pair.lease())
        )
    }

    pub(crate) fn pairs(&mut self, pairs: &[KeyValue]) {
        for pair in pairs {
            println!("  {}", self.pair(pair));
        }
    }

    pub(crate) fn event(&mut self, event: &Event) -> String {
        let pair = event.kv().map_or_else(String::new, |pair| self.pair(pair));
        let before = event.prev_kv().map_or_else(String::new, |pair| format!(" before {}", self.pair(pair)));
        format!("{:?} {pair}{before}", event.event_type())
    }

    /// Prints the error, if there is one, and yields the answer otherwise.
    pub(crate) fn answer<T>(&self, name: &str, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(Error::GRpcStatus(status)) => {
                println!("{name}: {:?} {}", status.code(), status.message().replace(&self.prefix, ""));
                None
            }
            Err(error) => {
                println!("{name}: {error}");
                None
            }
        }
    }
}
