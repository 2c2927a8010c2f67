//! Running one script of client calls against etcd and against the subject, and comparing what the clients printed.
//!
//! Both servers run one after the other on the same ports with the same flags, so member and cluster ids, terms and
//! URLs must agree to the last digit; only what the implementations may differ in is masked: sizes, raft indices,
//! durations, and the log lines of the clients themselves.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::server::{Launch, Ports, Server, Subject};
use crate::setup::{Outcome, Setup};

/// JSON fields whose values are the implementation's own.
const MASKED_FIELDS: &[&str] =
    &["raftIndex", "raftAppliedIndex", "dbSize", "dbSizeInUse", "RaftIndex", "RaftAppliedIndex", "took"];

/// How often etcd is asked again before the subject's answers are wrong.
const MORE_RUNS_MAX: usize = 3;

/// Runs `script` on both servers; its output must agree. A missing etcd is a skip.
pub fn compare(setup: &Setup, script: impl Fn(&Server) -> Result<String>) -> Result<Outcome> {
    if setup.peer("etcd").is_none() {
        return Ok(Outcome::Skipped("no etcd to compare with".to_owned()));
    }
    let ports = Ports::pick()?;
    let run = |subject| {
        let server = setup.launch_of(subject, ports)?.start()?;
        let transcript = script(&server).with_context(|| format!("on {subject:?}"))?;
        server.stop(&[])?;
        Ok(transcript)
    };
    let (expected, found) = (run(Subject::Etcd)?, run(setup.subject)?);
    let Some(difference) = agree(expected, &found, || run(Subject::Etcd))? else { return Ok(Outcome::Passed) };
    bail!("differs from etcd (- etcd, + subject):\n{difference}")
}

/// What tells `found` from `expected`. Before the verdict is a bad one, etcd is asked `again`: where it answers now
/// this way, now that, either is right.
fn agree(expected: String, found: &str, again: impl Fn() -> Result<String>) -> Result<Option<String>> {
    let Some(first) = difference(&expected, found) else { return Ok(None) };
    for _ in 0..MORE_RUNS_MAX {
        if difference(&again()?, found).is_none() {
            println!("         etcd answers in more than one way; apart from the subject it said\n{first}");
            return Ok(None);
        }
    }
    Ok(Some(first))
}

/// Launches of etcd and of the subject side by side, on ports and folders of their own. etcd may lose what a crash of
/// the machine would take: its answers are what counts.
pub fn both(setup: &Setup) -> Result<[Launch; 2]> {
    let mut etcd = setup.launch_of(Subject::Etcd, Ports::pick()?)?;
    etcd.flags = vec!["--unsafe-no-fsync".to_owned()];
    let mut subject = setup.launch_of(setup.subject, Ports::pick()?)?;
    subject.data = setup.fresh_folder("subject")?.join("data");
    Ok([etcd, subject])
}

/// Runs etcdctl with the words of a command. Its own limits of 2 and 5 seconds are too short for a busy machine.
pub fn etcdctl(program: &Path, server: &Server, words: &[&str], input: Option<&str>) -> Result<String> {
    let endpoint = format!("--endpoints={}", server.endpoint());
    let arguments = [&[endpoint.as_str(), "--dial-timeout=30s", "--command-timeout=30s"], words].concat();
    match input {
        Some(input) => transcript_with_input(program, &arguments, input),
        None => transcript(program, &arguments, &[]),
    }
}

/// Runs a client program and returns its exit code and masked output as text.
pub fn transcript(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(text_of(&output))
}

/// The same with text on standard input.
fn transcript_with_input(program: &Path, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let mut pipe = child.stdin.take().expect("standard input is piped above");
    match pipe.write_all(input.as_bytes()) {
        // A program may refuse before it has read everything.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => drop(pipe),
    }
    Ok(text_of(&child.wait_with_output()?))
}

fn text_of(output: &Output) -> String {
    let mut text = String::new();
    for stream in [&output.stdout, &output.stderr] {
        text.push_str(&masked(&String::from_utf8_lossy(stream)));
    }
    text.push_str(&format!("exit {}\n", output.status.code().unwrap_or(-1)));
    text
}

/// Replaces what may differ by names.
pub fn masked(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        // Client libraries log their retries with time stamps and addresses of goroutines.
        if line.starts_with("{\"level\"") {
            continue;
        }
        let has_masked = MASKED_FIELDS.iter().any(|name| line.contains(name));
        let line = match serde_json::from_str::<Value>(line) {
            // Without a masked field the line stays as it is, so that the order of fields is compared too.
            Ok(mut value) if has_masked && (value.is_object() || value.is_array()) => {
                mask_json(&mut value);
                value.to_string()
            }
            _ => mask_plain(line),
        };
        lines.push_str(&line);
        lines.push('\n');
    }
    lines
}

fn mask_json(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, field) in map {
                if MASKED_FIELDS.contains(&name.as_str()) {
                    *field = Value::from("MASKED");
                } else {
                    mask_json(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask_json),
        _ => {}
    }
}

fn mask_plain(line: &str) -> String {
    let line = mask_after(line, "took = ", |byte| byte == b' ');
    let line = mask_after(&line, "]. took ", |byte| byte == b' ');
    // The fields format prints one `"Name" : value` a line.
    let quoted = line.strip_prefix('"').and_then(|rest| rest.split_once("\" : "));
    if let Some((name, _)) = quoted
        && (MASKED_FIELDS.contains(&name) || name.starts_with("DB"))
    {
        return format!("\"{name}\" : MASKED");
    }
    line
}

/// Replaces the text between `mark` and the first byte that `ends` accepts.
fn mask_after(line: &str, mark: &str, ends: fn(u8) -> bool) -> String {
    let Some((before, rest)) = line.split_once(mark) else { return line.to_owned() };
    let end = rest.bytes().position(ends).unwrap_or(rest.len());
    format!("{before}{mark}MASKED{}", &rest[end..])
}

/// The first lines that differ, with the command they belong to.
fn difference(expected: &str, found: &str) -> Option<String> {
    if expected == found {
        return None;
    }
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    if let Some(command) = expected[..same].iter().rev().find(|line| line.starts_with("$ ")) {
        text.push_str(&format!("  {command}\n"));
    }
    for (sign, lines) in [("-", &expected), ("+", &found)] {
        for line in lines.iter().skip(same).take(6) {
            text.push_str(&format!("{sign} {line}\n"));
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_without_masked_fields_keeps_its_order() {
        assert_eq!(masked("{\"b\":1,\"a\":2}"), "{\"b\":1,\"a\":2}\n");
    }

    #[test]
    fn only_the_implementations_own_figures_are_masked() {
        let text = masked(
            "{\"level\":\"warn\"}\n{\"raftIndex\":7,\"header\":{\"revision\":3}}\n\
             it took = 12ms ok\n\"DBSize\" : 9\nx\n",
        );
        assert_eq!(
            text,
            "{\"header\":{\"revision\":3},\"raftIndex\":\"MASKED\"}\nit took = MASKED ok\n\"DBSize\" : MASKED\nx\n"
        );
    }

    #[test]
    fn what_etcd_itself_says_at_times_is_right() {
        let answers = std::cell::Cell::new(0);
        let again = || {
            answers.set(answers.get() + 1);
            Ok(["k l", "l k"][answers.get() % 2].to_owned())
        };
        assert_eq!(agree("k l".to_owned(), "k l", again).unwrap(), None);
        assert_eq!(answers.get(), 0);
        assert_eq!(agree("k l".to_owned(), "l k", again).unwrap(), None);
        assert_eq!(agree("k l".to_owned(), "k", again).unwrap().unwrap(), "- k l\n+ k\n");
    }

    #[test]
    fn a_difference_shows_its_command() {
        assert_eq!(difference("$ a\n1\n", "$ a\n1\n"), None);
        let text = difference("$ a\n1\n$ b\n2\n", "$ a\n1\n$ b\n3\n").unwrap();
        assert_eq!(text, "  $ b\n- 2\n+ 3\n");
        assert!(difference("$ a\n1\n", "$ a\n1\n2\n").is_some());
    }
}
