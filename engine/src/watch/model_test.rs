//! Random histories, watchers, clients and pauses: what every watcher is handed is the history.

use crate::budget::Budget;
use crate::mvcc::map_tree::Random;
use crate::watch::bed::World;
use crate::watch::{CreateWatch, StreamKey};

const KEYS: [&[u8]; 9] = [b"a", b"aa", b"ab", b"b", b"ba", b"bb", b"c", b"ca", b"d"];
const ENDS: [&[u8]; 8] = [b"", b"", b"\0", b"b", b"bb", b"c", b"d", b"zz"];

struct Run {
    world: World,
    random: Random,
    streams: Vec<StreamKey>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut run = Self { world: World::new(), random: Random(seed * 7919 + 1), streams: Vec::new() };
        for _ in 0..3 {
            run.open();
        }
        run
    }

    fn open(&mut self) {
        let room = self.random.pick(&[0, 1, 3, 1000]);
        let stream = self.world.open(room);
        self.streams.push(stream);
    }

    fn value(&mut self) -> Vec<u8> {
        let len = self.random.pick(&[0, 3, 20, 20, 20, 90, 500]);
        vec![b'v'; len]
    }

    fn write(&mut self) {
        let key = self.random.pick(&KEYS);
        let value = self.value();
        match self.random.below(20) {
            0..10 => self.world.put(key, &value),
            10..13 => self.world.delete(key, b""),
            13 => self.world.delete(key, self.random.pick(&ENDS)),
            14 => {
                // One transaction, of any length.
                let values: Vec<_> =
                    (0..self.random.below(6)).map(|_| self.random.one_in(2).then(|| self.value())).collect();
                let values: Vec<_> = values.iter().map(Option::as_deref).collect();
                if !values.is_empty() {
                    self.world.change_in_turn(key, &values);
                }
            }
            15 => {
                let keys: Vec<_> = KEYS.iter().filter(|_| self.random.one_in(2)).map(|key| key.to_vec()).collect();
                if !keys.is_empty() {
                    self.world.put_all(&keys, &value);
                }
            }
            16 => {
                // Many versions of one key.
                for _ in 0..self.random.below(140) {
                    self.world.put(key, b"again");
                }
            }
            17 => self.world.reclaim(),
            _ => {
                let (compacted, revision) = (self.world.space.state().compacted, self.world.revision());
                let newest = if self.random.one_in(3) { revision } else { revision - 20.min(revision - 1) };
                let bound = (newest - compacted).max(0) as u64;
                let at = compacted + 1 + self.random.below(bound.max(1)) as i64;
                if bound > 0 && !self.world.has_changed_in_turn(at) {
                    self.world.compact(at);
                }
            }
        }
    }

    fn create(&mut self, stream: StreamKey) {
        let revision = self.world.revision();
        let back = self.random.pick(&[0, 1, 5, 40, 1 << 40]);
        let start = match self.random.below(8) {
            0..3 => 0,
            3 => revision + 1 + self.random.below(20) as i64,
            4 => self.world.space.state().compacted.max(1),
            5 => self.random.pick(&[-1, 1]),
            _ => (revision - self.random.below(back + 1) as i64).max(1),
        };
        let create = CreateWatch {
            key: if self.random.one_in(30) { b"" } else { self.random.pick(&KEYS) },
            range_end: self.random.pick(&ENDS),
            start_revision: start,
            watch_id: if self.random.one_in(4) { self.random.below(9) as i64 - 3 } else { 0 },
            prev_kv: self.random.one_in(2),
            no_put: self.random.one_in(8),
            no_delete: self.random.one_in(8),
            fragment: self.random.one_in(3),
            progress_notify: self.random.one_in(3),
        };
        // What -1 means in an answer would be anybody's guess.
        if create.watch_id != -1 {
            self.world.create(stream, &create);
        }
    }

    fn act(&mut self) {
        let stream = self.random.pick(&self.streams);
        match self.random.below(40) {
            0..16 => self.write(),
            16..21 => self.create(stream),
            21 => {
                let ids = self.world.ids(stream);
                let id = if ids.is_empty() || self.random.one_in(5) { 77 } else { self.random.pick(&ids) };
                self.world.cancel(stream, id);
            }
            22..24 => self.world.request_progress(stream),
            24..28 => self.world.read(stream, self.random.pick(&[1, 2, 5, 100])),
            28 => self.world.pages.resident.borrow_mut().clear(),
            29 => {
                self.world.now += self.random.below(2000);
                self.world.watches.handle_time(self.world.now);
            }
            30 if self.random.one_in(5) => {
                self.world.close(stream);
                self.streams.retain(|&open| open != stream);
                self.open();
            }
            _ => {
                let units = self.random.pick(&[1, 3, 10, 40, 200, 5000]);
                self.world.step(&mut Budget::new(units));
            }
        }
        self.world.check();
    }

    fn end(&mut self) {
        for stream in self.streams.clone() {
            self.world.read(stream, 1 << 40);
        }
        self.world.settle();
        self.world.check_complete();
    }
}

#[test]
fn every_watcher_is_handed_the_history() {
    let mut seen = [0; 8];
    for seed in 0..60 {
        let mut run = Run::new(seed);
        for round in 0..6 {
            for _ in 0..150 {
                run.act();
            }
            if round % 2 == 1 {
                run.end();
                for stream in run.streams.clone() {
                    run.world.clients.0.get_mut(&stream).unwrap().room = run.random.pick(&[0, 2, 1000]);
                }
            }
        }
        let world = &run.world;
        let counted = [
            world.events_seen,
            world.compacted_cancels,
            world.progress_seen,
            world.ticks_seen,
            world.hidden_prevs,
            world.clients.0.values().map(|client| client.fragments_seen).sum(),
            world.clients.0.values().map(|client| client.longs_seen).sum(),
            world.pages.misses.get(),
        ];
        seen.iter_mut().zip(counted).for_each(|(sum, count)| *sum += count);
        // Everybody leaves: nothing is held.
        for stream in run.streams.clone() {
            run.world.close(stream);
        }
        run.world.settle();
        assert_eq!((run.world.space.oldest_pin(), run.world.watches.is_empty()), (None, true));
    }
    assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
}
