//! h2spec, the conformance suite for HTTP/2 servers: whatever etcd passes, we pass.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::server::{Ports, Subject};
use crate::setup::{Outcome, Setup};

/// Seconds h2spec waits for a reaction before it fails a case.
const CASE_SECONDS: &str = "1";
/// How often a case that failed is tried again.
const RETRIES: usize = 3;

/// Case -> whether it failed.
type Report = Vec<(String, bool)>;

/// Runs the suite against both servers at once.
pub(super) fn no_worse_than_etcd(setup: &Setup) -> Result<Outcome> {
    let Some(h2spec) = setup.peer("h2spec") else { return Ok(Outcome::Skipped("no h2spec".to_owned())) };
    if setup.peer("etcd").is_none() {
        return Ok(Outcome::Skipped("no etcd to compare with".to_owned()));
    }
    let etcd = setup.launch_of(Subject::Etcd, Ports::pick()?)?.start()?;
    let server = setup.start()?;
    let folder = setup.fresh_folder("h2spec")?;
    let (our_port, their_port) = (server.launch().ports.client, etcd.launch().ports.client);
    let (our_file, their_file) = (folder.join("subject.xml"), folder.join("etcd.xml"));
    let (program, file) = (h2spec.clone(), their_file.clone());
    let theirs = std::thread::spawn(move || run(&program, their_port, &file, None));
    let ours = run(&h2spec, our_port, &our_file, None)?;
    let theirs = theirs.join().ok().context("a thread panicked")??;
    if ours.len() < 100 || theirs.len() != ours.len() {
        bail!("h2spec ran {} cases here and {} against etcd", ours.len(), theirs.len());
    }
    let (failed, failed_by_etcd) = (failures(&ours), failures(&theirs));
    let mut worse: BTreeSet<&str> = failed.difference(&failed_by_etcd).copied().collect();
    // Some cases race with the server's reaction. What fails here always and with etcd never is our fault.
    for _ in 0..RETRIES {
        for case in worse.clone() {
            let section = Some(case.split_once(": ").context("a case has a section")?.0);
            let here = failures(&run(&h2spec, our_port, &our_file, section)?).contains(case);
            let there = failures(&run(&h2spec, their_port, &their_file, section)?).contains(case);
            if !here || there {
                worse.remove(case);
            }
        }
    }
    etcd.stop(&[])?;
    server.stop(&[])?;
    if !worse.is_empty() {
        bail!("{} cases that etcd passes:\n{}", worse.len(), worse.into_iter().collect::<Vec<_>>().join("\n"));
    }
    println!("         h2spec: {} cases, {} fail ({} with etcd)", ours.len(), failed.len(), failed_by_etcd.len());
    Ok(Outcome::Passed)
}

/// Runs all cases, or those of one section.
fn run(h2spec: &PathBuf, port: u16, report: &Path, section: Option<&str>) -> Result<Report> {
    let mut command = Command::new(h2spec);
    command.args(section).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-o", CASE_SECONDS, "-j"]).arg(report);
    // The exit code says that some case failed, which the report says better.
    command.output().context("cannot start h2spec")?;
    Ok(parse(&std::fs::read_to_string(report).context("h2spec wrote no report")?))
}

/// The cases of a JUnit report.
fn parse(xml: &str) -> Report {
    let mut report = Report::new();
    for case in xml.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let rest = case.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value)
        };
        let (package, name) = (attribute("package").unwrap_or_default(), attribute("classname").unwrap_or_default());
        let failed = case.contains("<error>") || case.contains("<failure>");
        report.push((format!("{package}: {name}"), failed));
    }
    report
}

fn failures(report: &[(String, bool)]) -> BTreeSet<&str> {
    report.iter().filter(|(_, failed)| *failed).map(|(case, _)| case.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let xml = r#"<testsuite><testcase package="a/1" classname="one" time="0"></testcase>
            <testcase package="a/2" classname="two" time="1"><error>Timeout</error></testcase></testsuite>"#;
        let report = parse(xml);
        assert_eq!(report, [("a/1: one".to_owned(), false), ("a/2: two".to_owned(), true)]);
        assert_eq!(failures(&report).into_iter().collect::<Vec<_>>(), ["a/2: two"]);
    }
}
