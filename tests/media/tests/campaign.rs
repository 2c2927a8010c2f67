//! The campaign judged: it is decided by its seed, covers small traces wholly, and notices lies.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use trilith_media::coverage;
use trilith_media::power_cut::{Case, choose, survey, try_cases};
use trilith_media::recording::{Recording, record};
use trilith_media::rot::{Kind, Outcome, Struck, judge};
use trilith_media::trace::Step;

fn recorded(seed: u64) -> Recording {
    record(seed).expect("a member without faults")
}

/// What is wrong with some cases of a recording.
fn violations(recording: &Recording, cases: Vec<Case>) -> Vec<String> {
    let mut found = Vec::new();
    try_cases(recording, cases, 5, &mut |_| {}, &mut |_, result| found.extend(result.err()));
    found
}

#[test]
fn a_recording_is_decided_by_its_seed() {
    let steps = |seed| recorded(seed).steps.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>();
    assert_eq!(steps(3), steps(3));
    assert_ne!(steps(3), steps(4));
}

#[test]
fn every_image_of_the_first_life_survives() {
    let recording = recorded(11);
    let all: Vec<(usize, u64)> = survey(&recording.steps).into_iter().take(40).collect();
    let total: u64 = all.iter().map(|(_, images)| images).sum();
    let cases = choose(&all, total, 5);
    assert!(cases.len() > 100, "{} images", cases.len());
    assert_eq!(violations(&recording, cases), [""; 0]);
}

#[test]
fn chosen_cases_are_spread_and_belong_to_the_trace() {
    let survey = survey(&recorded(3).steps);
    let images: BTreeMap<usize, u64> = survey.iter().copied().collect();
    let cases = choose(&survey, 300, 9);
    assert!(cases.iter().all(|case| case.image < images[&case.steps]));
    let points: std::collections::BTreeSet<usize> = cases.iter().map(|case| case.steps).collect();
    assert!(points.len() > 120, "{} points", points.len());
}

#[test]
fn a_medium_that_lies_about_syncs_is_noticed() {
    // The same lives, on a disk whose log records are durable only when somebody asks. Not so the hard state: without
    // it a member repeats a boot number, and aborts when it finds its own.
    let mut recording = recorded(3);
    for step in &mut recording.steps {
        if let Step::WriteBegun { syncs_itself, offset: 1.., .. } = step {
            *syncs_itself = false;
        }
    }
    let cases = choose(&survey(&recording.steps), 200, 9);
    assert!(!violations(&recording, cases).is_empty());
}

#[test]
fn a_row_file_that_is_lost_is_told_at_the_start() {
    let mut outcomes = BTreeMap::new();
    for seed in 0..6 {
        let recording = recorded(seed);
        for closed in &recording.closed {
            for name in closed.image.files.keys().filter(|name| name.starts_with("store/rows")) {
                let (family, kind) = ("store/rows".to_owned(), Kind::Missing);
                let mut image = closed.image.clone();
                image.files.remove(name);
                let struck = Struck { image, family, kind, text: name.clone() };
                let judged = judge(&recording.geometry, &struck, &recording.epochs[closed.epoch], closed.count, 5);
                *outcomes.entry(judged.map(|(outcome, _)| outcome)).or_insert(0) += 1;
            }
        }
    }
    assert!(outcomes.contains_key(&Ok(Outcome::Refused)));
    assert!(outcomes.keys().all(|outcome| matches!(outcome, Ok(Outcome::Right | Outcome::Refused))), "{outcomes:?}");
}

#[test]
fn recordings_reach_everything() {
    let mut counts = BTreeMap::new();
    (0..6).for_each(|seed| coverage::count(&recorded(seed).steps, &mut counts));
    for what in [
        "power cuts between lives",
        "kills and stops",
        "acknowledgements",
        "creations of wal/seg",
        "creations of store/index",
        "creations of store/rows",
        "writes to wal/hard-state",
        "writes to wal/seg",
        "writes to store/index",
        "writes to store/rows",
        "syncs of store/superblock",
    ] {
        assert!(counts.contains_key(what), "no {what} among {counts:?}");
    }
}
