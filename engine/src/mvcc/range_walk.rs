//! Ranges in slices.
//!
//! Owns: the evaluation of any range at a fixed revision, left and taken up again at any row: the walk over the keys,
//! the count, the sort, the showing of the rows. Does not know: layers, protobuf.
//!
//! Between two slices anything may happen to the keyspace (changes, compactions, freezes, new trees) as long as the
//! revision read is pinned: a walk goes on by key, and what changed since is read through its chain.
//!
//! Invariants
//! - I1: each row that is answered is shown once, in the answer's order.
//! - I2: a slice that pays for nothing gets one row further all the same.

use crate::budget::{Budget, Pause, price};
use crate::command::{RangeQuery, SortOrder, SortTarget};
use crate::mvcc::KeyRange;
use crate::mvcc::changes::Changes;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::keyspace::Keyspace;
use crate::mvcc::outcome::{MvccError, RowShape, RowView};
use crate::mvcc::range::{limit, passes, revision_read, rows_max, shape};
use crate::mvcc::sort::SortHeap;
use crate::mvcc::view::{Scan, View};
use crate::page_source::PageSource;
use crate::store::key_entry::Revision;

/// With so many rows, room is made for all there may be: growing would copy megabytes in one step.
const MANY: usize = 4096;

/// Rows looked up ahead when a page is missing.
const LOOK_AHEAD: usize = 64;

/// A range under evaluation. Owns what it needs: neither keyspace nor request are borrowed between slices.
#[derive(Debug)]
pub struct RangeCursor {
    published: i64,
    walk: RangeWalk,
}

impl RangeCursor {
    /// Begins a range at the published revision. To be read after anything was applied,
    /// [`Self::revision`] must be pinned.
    ///
    /// # Errors
    /// The revision asked for is in the future or compacted.
    pub fn new<T: KeyTree>(keyspace: &Keyspace<T>, query: &RangeQuery<'_>) -> Result<Self, MvccError> {
        let published = keyspace.published().revision;
        let at = revision_read(query, published, keyspace.state().compacted)?;
        Ok(Self { published, walk: RangeWalk::new(query, at) })
    }

    /// The revision read.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.walk.at
    }

    /// The published revision when it began: the header's.
    #[must_use]
    pub fn published(&self) -> i64 {
        self.published
    }

    /// Addresses of rows it holds: its memory.
    #[must_use]
    pub fn rows_held(&self) -> usize {
        self.walk.rows_held()
    }
}

/// The answer to a range by the addresses of its rows, good for as long as its revision is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowList {
    /// The rows, filtered, sorted and cut.
    pub rows: Vec<Revision>,
    /// Keys in the range at the revision read, before filters and limit.
    pub count: i64,
    /// Whether the limit cut something.
    pub more: bool,
    /// What the rows show.
    pub shape: RowShape,
    /// The published revision when the range began: the header's.
    pub revision: i64,
    /// Bytes of all keys and values shown.
    pub key_value_bytes: u64,
}

impl<T: KeyTree> Keyspace<T> {
    /// Goes on with a range. `show` is called once for each row that will be answered, in order, as it will be shown.
    ///
    /// # Errors
    /// The range is not at its end: call again with the same query and cursor.
    pub fn range_step(
        &self,
        query: &RangeQuery<'_>,
        cursor: &mut RangeCursor,
        budget: &mut Budget,
        pages: &dyn PageSource,
        show: &mut dyn FnMut(RowView<'_>),
    ) -> Result<RowList, Pause> {
        let view = View { layers: self.layers(), changes: None, pages };
        cursor.walk.step(&view, query, budget, show)?;
        let walk = &mut cursor.walk;
        Ok(RowList {
            rows: std::mem::take(&mut walk.rows),
            count: walk.count,
            more: walk.more,
            shape: shape(query),
            revision: cursor.published,
            key_value_bytes: walk.key_value_bytes,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Collects rows in key order.
    Keys,
    /// Counts the rest.
    Count,
    /// Takes the rows out of the heap, worst first.
    Drain,
    /// Turns the rows around; so many are done.
    Reverse(usize),
    /// Cuts at the limit.
    Cut,
    /// Shows the rows; so many are done.
    Show(usize),
}

/// The state of a range under evaluation.
#[derive(Debug)]
pub(crate) struct RangeWalk {
    /// The revision read.
    at: i64,
    phase: Phase,
    /// Where the walk over the keys goes on.
    from: Vec<u8>,
    heap: Option<SortHeap>,
    rows: Vec<Revision>,
    /// Rows that passed the filters.
    passed: usize,
    count: i64,
    more: bool,
    newer: NewerRows,
    key_value_bytes: u64,
}

/// What the rows above the revision read did to the number of live keys in the range.
#[derive(Debug)]
struct NewerRows {
    next: Revision,
    delta: i64,
}

impl RangeWalk {
    /// Begins a range at a revision that may be read.
    pub(crate) fn new(query: &RangeQuery<'_>, at: i64) -> Self {
        let sorts = query.sort_target != SortTarget::Key && !query.count_only;
        let descending = query.sort_order == SortOrder::Descend;
        Self {
            at,
            phase: if query.count_only { Phase::Count } else { Phase::Keys },
            from: KeyRange::new(query.key, query.range_end).start().to_vec(),
            heap: sorts.then(|| SortHeap::new(query.sort_target, descending, limit(query))),
            rows: Vec::new(),
            passed: 0,
            count: 0,
            more: false,
            newer: NewerRows { next: Revision { main: at.saturating_add(1), sub: 0 }, delta: 0 },
            key_value_bytes: 0,
        }
    }

    /// Keys in the range, once it has ended.
    pub(crate) fn count(&self) -> i64 {
        self.count
    }

    /// Rows, count and whether the limit cut something.
    pub(crate) fn into_parts(self) -> (Vec<Revision>, i64, bool) {
        (self.rows, self.count, self.more)
    }

    /// Addresses it holds.
    pub(crate) fn rows_held(&self) -> usize {
        self.rows.len() + self.heap.as_ref().map_or(0, SortHeap::len)
    }

    /// Goes on until the end or the budget's.
    pub(crate) fn step<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
        show: &mut dyn FnMut(RowView<'_>),
    ) -> Result<(), Pause> {
        loop {
            match self.phase {
                Phase::Keys => self.phase = self.collect(view, query, budget)?,
                Phase::Count => {
                    self.count_rest(view, query, budget)?;
                    self.phase = if self.heap.is_some() { Phase::Drain } else { self.turned(query) };
                }
                Phase::Drain => self.phase = self.drain(view, budget)?,
                Phase::Reverse(done) => self.phase = self.reverse(done, budget)?,
                Phase::Cut => {
                    let limit = limit(query);
                    self.more = self.passed > limit;
                    self.rows.truncate(limit);
                    self.phase = Phase::Show(0);
                }
                Phase::Show(shown) if shown == self.rows.len() => return Ok(()),
                Phase::Show(shown) => self.show(shown, view, query, budget, show)?,
            }
        }
    }

    /// After the last row in key order.
    fn turned(&self, query: &RangeQuery<'_>) -> Phase {
        let descending = query.sort_order == SortOrder::Descend;
        if descending { Phase::Reverse(0) } else { Phase::Cut }
    }

    fn collect<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
    ) -> Result<Phase, Pause> {
        if let Some(heap) = &mut self.heap {
            heap.settle(view, budget)?;
        }
        budget.spend(price::SEEK);
        let range = KeyRange::new(query.key, query.range_end);
        let after = if self.heap.is_some() { Phase::Drain } else { self.turned(query) };
        match range {
            KeyRange::Single(key) => {
                if let Some(entry) = view.entry(key)?
                    && let Some((at, row)) = view.shown(key, &entry, self.at, budget)?
                {
                    self.take(at, &row, view, query, budget)?;
                }
                Ok(after)
            }
            KeyRange::Between(from, to) if from >= to => Ok(after),
            range => {
                let mut scan = view.scan(&self.from)?;
                let mut done = None;
                let walked = self.walk(view, query, range, &mut scan, &mut done, budget);
                if matches!(walked, Err(Pause::Pages(_))) {
                    look_ahead(view, &mut scan, range);
                }
                if let Some(key) = done {
                    self.from = key_after(key);
                }
                Ok(if walked? { Phase::Count } else { after })
            }
        }
    }

    /// Walks over keys. True: enough rows, the rest is only to be counted.
    fn walk<'v, T: KeyTree>(
        &mut self,
        view: &View<'v, T>,
        query: &RangeQuery<'_>,
        range: KeyRange<'_>,
        scan: &mut Scan<'v, T>,
        done: &mut Option<&'v [u8]>,
        budget: &mut Budget,
    ) -> Result<bool, Pause> {
        let rows_max = rows_max(query);
        while self.passed < rows_max {
            let Some((key, entry)) = scan.next()?.filter(|(key, _)| !range.is_past(key)) else { return Ok(false) };
            let shown = view.shown(key, &entry, self.at, budget)?;
            let value = match &shown {
                // Sorted by it, even if it is not shown.
                Some((at, _)) if query.sort_target == SortTarget::Value => {
                    budget.spend(price::ROW);
                    view.value(*at)?
                }
                _ => &[],
            };
            *done = Some(key);
            if let Some((at, row)) = shown {
                self.take(at, &RowView { value, ..row }, view, query, budget)?;
            }
            budget.charge(price::ENTRY)?;
        }
        Ok(true)
    }

    /// Takes a row that is alive.
    fn take<T: KeyTree>(
        &mut self,
        at: Revision,
        row: &RowView<'_>,
        view: &View<'_, T>,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        self.count += 1;
        if !passes(query, row) {
            return Ok(());
        }
        self.passed += 1;
        if self.passed == MANY {
            self.make_room(view, query);
        }
        match &mut self.heap {
            None => self.rows.push(at),
            Some(heap) => {
                heap.push(at, row);
                heap.settle(view, budget)?;
            }
        }
        Ok(())
    }

    /// Makes room for as many rows as there may be.
    fn make_room<T: KeyTree>(&mut self, view: &View<'_, T>, query: &RangeQuery<'_>) {
        // Without the pages for a count the rows are moved as they grow.
        let Ok(count) = view.count(KeyRange::new(query.key, query.range_end)) else { return };
        let rows = usize::try_from(count).unwrap_or(0).min(rows_max(query)).min(limit(query).saturating_add(1));
        self.rows.reserve_exact(rows.saturating_sub(self.rows.len()));
        if let Some(heap) = &mut self.heap {
            heap.make_room(rows);
        }
    }

    /// Counts from where the walk stands, in two ways at once, and takes the one that ends first: over the keys, and
    /// over the rows that are newer than what is read (none at the newest revision).
    fn count_rest<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        let range = KeyRange::new(query.key, query.range_end);
        budget.spend(price::SEEK);
        if !self.newer.step(view, range)? {
            return self.count_back(view, range, budget);
        }
        if matches!(range, KeyRange::Between(from, to) if from >= to) {
            return Ok(());
        }
        let mut scan = view.scan(&self.from)?;
        let mut done = None;
        let counted = self.count_keys(view, range, &mut scan, &mut done, budget);
        if matches!(counted, Err(Pause::Pages(_))) {
            look_ahead(view, &mut scan, range);
        }
        if let Some(key) = done {
            self.from = key_after(key);
        }
        if counted? { self.count_back(view, range, budget) } else { Ok(()) }
    }

    /// Counts keys one by one, and beside each looks at one newer row. True: there is no newer row left.
    fn count_keys<'v, T: KeyTree>(
        &mut self,
        view: &View<'v, T>,
        range: KeyRange<'_>,
        scan: &mut Scan<'v, T>,
        done: &mut Option<&'v [u8]>,
        budget: &mut Budget,
    ) -> Result<bool, Pause> {
        while let Some((key, entry)) = scan.next()? {
            if range.is_past(key) {
                return Ok(false);
            }
            self.count += i64::from(view.shown(key, &entry, self.at, budget)?.is_some());
            *done = Some(key);
            if !self.newer.step(view, range)? {
                return Ok(true);
            }
            budget.charge(price::ENTRY + price::NEXT_ROW)?;
        }
        Ok(false)
    }

    /// From what is alive now to what was alive at the revision read: all newer rows have been looked at.
    fn count_back<T: KeyTree>(
        &mut self,
        view: &View<'_, T>,
        range: KeyRange<'_>,
        budget: &mut Budget,
    ) -> Result<(), Pause> {
        // The transaction's own changes are counted one by one.
        let own = view.changes.map_or(0, Changes::len);
        budget.spend(price::COUNT.saturating_add(u32::try_from(own).unwrap_or(u32::MAX)));
        self.count = view.count(range)? - self.newer.delta;
        Ok(())
    }

    fn drain<T: KeyTree>(&mut self, view: &View<'_, T>, budget: &mut Budget) -> Result<Phase, Pause> {
        let Some(heap) = &mut self.heap else { return Ok(Phase::Cut) };
        heap.settle(view, budget)?;
        while let Some(worst) = heap.pop() {
            self.rows.push(worst);
            heap.settle(view, budget)?;
            budget.charge(price::COMPARISON)?;
        }
        Ok(Phase::Reverse(0))
    }

    fn reverse(&mut self, done: usize, budget: &mut Budget) -> Result<Phase, Pause> {
        let len = self.rows.len();
        for index in done..len / 2 {
            self.rows.swap(index, len - 1 - index);
            self.phase = Phase::Reverse(index + 1);
            budget.charge(1)?;
        }
        Ok(Phase::Cut)
    }

    fn show<T: KeyTree>(
        &mut self,
        shown: usize,
        view: &View<'_, T>,
        query: &RangeQuery<'_>,
        budget: &mut Budget,
        show: &mut dyn FnMut(RowView<'_>),
    ) -> Result<(), Pause> {
        let shape = shape(query);
        for index in shown..self.rows.len() {
            let row = match view.row(self.rows[index]) {
                Ok(row) => shape.show(row),
                Err(unavailable) => {
                    for &at in self.rows[index + 1..].iter().take(LOOK_AHEAD) {
                        view.probe(at);
                    }
                    return Err(unavailable.into());
                }
            };
            self.key_value_bytes += (row.key.len() + row.value.len()) as u64;
            show(row);
            self.phase = Phase::Show(index + 1);
            budget.spend_bytes(row.key.len() + row.value.len());
            budget.charge(price::ROW)?;
        }
        Ok(())
    }
}

impl NewerRows {
    /// Looks at the next newer row. False: there is none.
    fn step<T: KeyTree>(&mut self, view: &View<'_, T>, range: KeyRange<'_>) -> Result<bool, Pause> {
        let newest = view.layers.rows.newest();
        if newest < self.next {
            return Ok(false);
        }
        let row = view.layers.rows.row_from(self.next, view.pages)?;
        let Some(row) = row.filter(|row| row.at <= newest) else { return Ok(false) };
        if range.contains(row.key) {
            // The first put of a generation brings a key to life, and a tombstone is written over a live key alone.
            self.delta += i64::from(row.version == 1) - i64::from(row.is_tombstone());
        }
        self.next = Revision { main: row.at.main, sub: row.at.sub.saturating_add(1) };
        Ok(true)
    }
}

/// The least key above another.
pub(crate) fn key_after(key: &[u8]) -> Vec<u8> {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after
}

/// A page is missing: asks for those that the next rows will need, too.
pub(crate) fn look_ahead<T: KeyTree>(view: &View<'_, T>, scan: &mut Scan<'_, T>, range: KeyRange<'_>) {
    for _ in 0..LOOK_AHEAD {
        let Ok(Some((key, entry))) = scan.next() else { return };
        if range.is_past(key) {
            return;
        }
        view.probe(entry.row);
    }
}
