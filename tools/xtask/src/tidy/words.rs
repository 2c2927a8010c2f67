//! Words that mark unfinished work, and names of places that are nobody's business.

use super::mask::words;
use super::{File, Finding};

/// Marks of unfinished work. Spelled in two halves, so that this file passes its own rule.
const UNFINISHED: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("dbg", "!("),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("for", " now"),
    concat!("For", " now"),
    concat!("place", "holder"),
];

/// Folders of one machine, and hosts of package registries, which every user chooses for himself.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("proxy.golang", ".org"),
    concat!("deb.debian", ".org"),
];

/// The one source of locked crates: cargo's own name for its default registry.
const LOCK_SOURCE: &str = concat!("source = \"registry+https://github.com/rust-lang/crates", ".io-index\"");

/// No marks of unfinished work, in code or prose.
pub(super) fn check_words(file: &File) -> Vec<Finding> {
    search(file, UNFINISHED, |word| format!("finish it or leave it out: `{word}`"))
}

/// No path of a machine and no host of a registry.
pub(super) fn check_places(file: &File) -> Vec<Finding> {
    search(file, PLACES, |word| format!("name no place of one machine: `{word}`"))
}

fn search(file: &File, list: &[&str], say: impl Fn(&str) -> String) -> Vec<Finding> {
    let mut found = Vec::new();
    if file.path.ends_with("Cargo.lock") {
        return found;
    }
    for (index, line) in file.text.lines().enumerate() {
        for word in list {
            // A mark in capitals is a word; anything else may stand anywhere.
            let hit = match word.bytes().all(|byte| byte.is_ascii_uppercase()) {
                true => words(line, word).next().is_some(),
                false => line.contains(word),
            };
            if hit {
                found.push(Finding::new(file, index + 1, say(word)));
            }
        }
    }
    found
}

/// Locked crates come from the default registry, under its own name and not that of a mirror.
pub(super) fn check_lock_sources(file: &File) -> Vec<Finding> {
    if !file.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate();
    let strange = lines.filter(|(_, line)| line.starts_with("source = ") && *line != LOCK_SOURCE);
    strange.map(|(index, _)| Finding::new(file, index + 1, "crates come from the default registry")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_word_is_found() {
        for word in UNFINISHED {
            assert_eq!(check_words(&File::new("a.md", format!("a\nb {word} c\n"))).len(), 1, "{word}");
        }
        for word in PLACES {
            assert_eq!(check_places(&File::new("a.md", format!("a\nb {word} c\n"))).len(), 1, "{word}");
        }
    }

    #[test]
    fn words_inside_others_are_not() {
        assert!(check_words(&File::new("a.rs", "let MAXXXL = 1; // before nowadays\n")).is_empty());
        assert!(check_places(&File::new("a.rs", "crates, io, network/root\n")).is_empty());
    }

    #[test]
    fn a_mirror_in_the_lock_file_is_found() {
        assert!(check_lock_sources(&File::new("Cargo.lock", format!("{LOCK_SOURCE}\n"))).is_empty());
        assert_eq!(check_lock_sources(&File::new("Cargo.lock", "source = \"registry+https://mirror/\"\n")).len(), 1);
        assert_eq!(check_lock_sources(&File::new("Cargo.lock", "source = \"git+https://host/a\"\n")).len(), 1);
    }
}
