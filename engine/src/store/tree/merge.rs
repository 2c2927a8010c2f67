//! The merge of a sorted stream of changes into a tree, in slices.
//!
//! Owns: the walk over the old tree and the order in which new pages are made, bottom-up. Does not know: where pages go
//! ([`PageSink`]), where changes come from ([`ChangeStream`]), what a value means.
//!
//! The walk opens an old page only if a change falls into its range, or if the rest of a page before it was too little
//! for a page of its own; any other subtree is taken over as it is, by its reference. An opened page is freed. The
//! state between two steps is the path of opened branches with the next child of each, the place in the opened leaf,
//! and for each level the entries that are not in pages yet: a step may end after any entry.
//!
//! Invariants
//! - I1: changes ascend strictly and each is consumed once.
//! - I2: an unusable page stops the walk before anything changes, so the step may be repeated.
//! - I3: entries below the walk's place are all in new pages, in taken-over subtrees or in a builder, lower levels'
//!   being the later ones; so a subtree is taken over only if all builders below its level are empty.
//! - I4: the new tree's entry count is the old one plus keys that entered minus keys that left.

use crate::page_source::{PageSource, Unavailable};
use crate::store::page::{Page, PageId, PageRef};
use crate::store::tree::builder::{Builder, Made, PageSink};
use crate::store::tree::{TreeId, TreeRoot, open_page};
use crate::store::verified::Verified;

/// One change of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value from now on; `None` removes the key.
    pub value: Option<&'a [u8]>,
}

/// Changes in strictly ascending order of keys.
pub trait ChangeStream {
    /// The next change; the same until [`Self::advance`].
    fn peek(&self) -> Option<Change<'_>>;
    /// Goes on to the change after it.
    fn advance(&mut self);
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// The budget is used up.
    More,
    /// The new tree stands, but for writes.
    Done(Option<TreeRoot>),
}

/// A merge under way.
#[derive(Debug)]
pub struct Merge {
    tree: TreeId,
    /// Opened branches, the root first.
    path: Vec<OpenBranch>,
    leaf: Option<OpenLeaf>,
    /// By level.
    builders: Vec<Builder>,
    made: Vec<Made>,
    /// See I4.
    entries: u64,
    /// The old tree, until the first step.
    unstarted: Option<Option<TreeRoot>>,
    /// The branch made last: pages made are not readable yet.
    newest_branch: Option<PageId>,
    /// The new tree, once every page is made.
    ended: Option<Option<TreeRoot>>,
}

#[derive(Debug)]
struct OpenBranch {
    page: PageRef,
    level: u8,
    next: usize,
    bounds: Bounds,
}

#[derive(Debug)]
struct OpenLeaf {
    /// `None`: the leaf that an empty tree lacks.
    page: Option<PageRef>,
    next: usize,
    bounds: Bounds,
}

/// The range of keys that belong below a page.
#[derive(Clone, Debug, Default)]
struct Bounds {
    /// At or above; also the page's separator.
    lower: Vec<u8>,
    /// Below; `None` at the right edge.
    upper: Option<Vec<u8>>,
}

impl Bounds {
    fn hold(&self, change: Option<Change<'_>>) -> bool {
        change.is_some_and(|change| self.upper.as_deref().is_none_or(|upper| change.key < upper))
    }
}

impl Merge {
    /// A merge into the tree that `root` names.
    #[must_use]
    pub fn new(tree: TreeId, root: Option<TreeRoot>) -> Self {
        let mut merge = Self {
            tree,
            path: Vec::new(),
            leaf: None,
            builders: Vec::new(),
            made: Vec::new(),
            entries: root.map_or(0, |root| root.entries),
            unstarted: Some(root),
            newest_branch: None,
            ended: None,
        };
        let height = root.map_or(0, |root| root.height);
        merge.builders.extend((0..=height).map(|level| Builder::new(tree, level)));
        let bounds = Bounds::default();
        match root {
            Some(root) if root.height > 0 => {
                merge.path.push(OpenBranch { page: root.page, level: root.height, next: 0, bounds });
            }
            Some(root) => merge.leaf = Some(OpenLeaf { page: Some(root.page), next: 0, bounds }),
            None => merge.leaf = Some(OpenLeaf { page: None, next: 0, bounds }),
        }
        merge
    }

    /// Goes on for about `budget` entries or changes, which is lowered by what was used.
    ///
    /// # Errors
    /// An old page is not usable now; the step may be repeated (I2).
    pub(crate) fn step(
        &mut self,
        budget: &mut u32,
        changes: &mut dyn ChangeStream,
        verified: &Verified,
        pages: &dyn PageSource,
        sink: &mut dyn PageSink,
    ) -> Result<MergeStep, Unavailable> {
        if let Some(root) = self.unstarted.take()
            && changes.peek().is_none()
        {
            return Ok(MergeStep::Done(root));
        }
        loop {
            if *budget == 0 {
                return Ok(MergeStep::More);
            }
            if self.leaf.is_some() {
                self.step_leaf(budget, changes, verified, pages, sink)?;
            } else if !self.path.is_empty() {
                self.step_branch(budget, changes, verified, pages, sink)?;
            } else {
                if self.ended.is_none() {
                    self.ended = Some(self.finish(sink));
                }
                return self.collapse(verified, pages, sink).map(MergeStep::Done);
            }
        }
    }

    fn step_leaf(
        &mut self,
        budget: &mut u32,
        changes: &mut dyn ChangeStream,
        verified: &Verified,
        pages: &dyn PageSource,
        sink: &mut dyn PageSink,
    ) -> Result<(), Unavailable> {
        let leaf = self.leaf.as_ref().expect("the caller saw it");
        let (at, mut next) = (leaf.page, leaf.next);
        let old = at.map(|at| open_page(self.tree, at, 0, verified, pages)).transpose()?;
        let weigh = self.tree.weigh();
        let weight = |value: &[u8]| u64::from(weigh(value).expect("a leaf was checked, a change is well-formed"));
        while *budget > 0 {
            let bounds = &self.leaf.as_ref().expect("the caller saw it").bounds;
            let change = changes.peek().filter(|change| bounds.hold(Some(*change)));
            let entry = match old {
                Some(page) if next < page.count() => Some(page.raw_entry(next).ok_or_else(|| corrupt(at, verified))?),
                _ => None,
            };
            let builder = &mut self.builders[0];
            match (entry, change) {
                (None, None) => {
                    self.leaf = None;
                    at.into_iter().for_each(|page| sink.free(page));
                    self.end_region(0, sink);
                    return Ok(());
                }
                (Some((key, value, raw)), _) if change.is_none_or(|change| key < change.key) => {
                    builder.push_raw(raw, key.len(), value.len(), weight(value));
                    next += 1;
                }
                (entry, Some(change)) => {
                    let replaced = entry.is_some_and(|(key, ..)| key == change.key);
                    next += usize::from(replaced);
                    self.entries -= u64::from(replaced);
                    if let Some(value) = change.value {
                        builder.push(change.key, value, weight(value));
                        self.entries += 1;
                    }
                    changes.advance();
                }
                (Some(_), None) => unreachable!("the arm before takes every entry without a change"),
            }
            *budget -= 1;
            self.spill(0, sink);
        }
        self.leaf.as_mut().expect("the leaf is not through").next = next;
        Ok(())
    }

    fn step_branch(
        &mut self,
        budget: &mut u32,
        changes: &dyn ChangeStream,
        verified: &Verified,
        pages: &dyn PageSource,
        sink: &mut dyn PageSink,
    ) -> Result<(), Unavailable> {
        let branch = self.path.last_mut().expect("the caller saw it");
        let (at, level) = (branch.page, branch.level);
        let page = open_page(self.tree, at, level, verified, pages)?;
        if branch.next == page.count() {
            self.path.pop();
            sink.free(at);
            self.end_region(level, sink);
            return Ok(());
        }
        let damaged = || corrupt(Some(at), verified);
        while *budget > 0 && branch.next < page.count() {
            *budget -= 1;
            let index = branch.next;
            let child = page.child(index).ok_or_else(damaged)?;
            let bounds = child_bounds(&page, index, &branch.bounds).ok_or_else(damaged)?;
            branch.next += 1;
            let carries = self.builders[..usize::from(level)].iter().any(|below| !below.is_empty());
            if !carries && !bounds.hold(changes.peek()) {
                self.builders[usize::from(level)].push_child(&bounds.lower, child);
                continue;
            }
            if level == 1 {
                self.builders[0].start_region(&bounds.lower);
                self.leaf = Some(OpenLeaf { page: Some(child), next: 0, bounds });
            } else {
                self.path.push(OpenBranch { page: child, level: level - 1, next: 0, bounds });
            }
            break;
        }
        self.spill(level, sink);
        Ok(())
    }

    /// The entries of an opened page are all in its level's builder, but for what lower levels carry on.
    fn end_region(&mut self, level: u8, sink: &mut dyn PageSink) {
        let builder = &mut self.builders[usize::from(level)];
        if !builder.is_underfull() {
            builder.flush(sink, &mut self.made);
            self.promote(level, sink);
        }
    }

    fn spill(&mut self, level: u8, sink: &mut dyn PageSink) {
        self.builders[usize::from(level)].spill(sink, &mut self.made);
        self.promote(level, sink);
    }

    /// Hands the pages just made to the level above.
    fn promote(&mut self, level: u8, sink: &mut dyn PageSink) {
        if self.made.is_empty() {
            return;
        }
        let above = level.checked_add(1).expect("a level halves the one below");
        if self.builders.len() == usize::from(above) {
            self.builders.push(Builder::new(self.tree, above));
        }
        if level > 0 {
            self.newest_branch = self.made.last().map(|made| made.page.page);
        }
        for made in self.made.drain(..) {
            self.builders[usize::from(above)].push_child(&made.key, made.page);
        }
        self.spill(above, sink);
    }

    /// Turns what the builders hold into pages, up to the root.
    fn finish(&mut self, sink: &mut dyn PageSink) -> Option<TreeRoot> {
        let mut level = 0_u8;
        loop {
            let (below, above) = self.builders.split_at_mut(usize::from(level) + 1);
            let builder = &mut below[usize::from(level)];
            if above.iter().all(Builder::is_empty) {
                if builder.is_empty() {
                    assert_eq!(self.entries, 0, "I4");
                    return None;
                }
                if level > 0
                    && let Some(page) = builder.single_child()
                {
                    assert!(self.entries >= page.live && self.entries > 0, "I4");
                    return Some(TreeRoot { page, height: level - 1, entries: self.entries });
                }
            }
            builder.flush_last(sink, &mut self.made);
            self.promote(level, sink);
            level += 1;
        }
    }

    /// A subtree that was taken over and is all that is left may begin with branches of one child each, the rests of
    /// merges before: the tree begins below them. A branch made now is a root only with several children.
    fn collapse(
        &mut self,
        verified: &Verified,
        pages: &dyn PageSource,
        sink: &mut dyn PageSink,
    ) -> Result<Option<TreeRoot>, Unavailable> {
        let root = self.ended.as_mut().expect("the caller finished");
        while let Some(top) = root.filter(|top| top.height > 0 && self.newest_branch != Some(top.page.page)) {
            let page = open_page(self.tree, top.page, top.height, verified, pages)?;
            if page.count() > 1 {
                break;
            }
            let child = page.child(0).ok_or_else(|| corrupt(Some(top.page), verified))?;
            sink.free(top.page);
            *root = Some(TreeRoot { page: child, height: top.height - 1, ..top });
        }
        Ok(*root)
    }
}

fn child_bounds(page: &Page<'_>, index: usize, bounds: &Bounds) -> Option<Bounds> {
    let lower = if index == 0 { bounds.lower.clone() } else { page.key(index)?.to_vec() };
    let upper = match index + 1 {
        next if next < page.count() => Some(page.key(next)?.to_vec()),
        _ => bounds.upper.clone(),
    };
    Some(Bounds { lower, upper })
}

fn corrupt(at: Option<PageRef>, verified: &Verified) -> Unavailable {
    let at = at.expect("only an old page can be malformed");
    Unavailable::Corrupt(verified.block(at.page, u32::from(at.units)))
}
