//! A data directory as it stands on a medium: names and bytes.
//!
//! Owns: nothing but the bytes. Does not know: what any of them mean, how they came to be.
//!
//! Invariants
//! - I1: cloning copies no contents; a file is copied when one of its owners first changes it.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Files by name, with their contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Contents by name below the data directory.
    pub files: BTreeMap<String, Rc<Vec<u8>>>,
}

impl Image {
    /// The bytes of a file, for changing them.
    pub fn contents_mut(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        self.files.get_mut(name).map(Rc::make_mut)
    }
}

/// Overwrites `target` from `offset` on; a file that ends before grows.
pub fn overlay(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_other_images_alone() {
        let mut image = Image::default();
        image.files.insert("a".to_owned(), Rc::new(vec![0; 4]));
        let before = image.clone();
        overlay(image.contents_mut("a").unwrap(), 3, &[7, 8]);
        assert_eq!((&before.files["a"][..], &image.files["a"][..]), (&[0; 4][..], &[0, 0, 0, 7, 8][..]));
    }
}
