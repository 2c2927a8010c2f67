//! Plain HTTP on the client port, asked with curl.

use anyhow::{Context, Result, bail};

use crate::differential::{compare, transcript};
use crate::server::{Server, Subject};
use crate::setup::{Outcome, Setup};

/// Requests over HTTP/1.1; words as for curl, `URL` stands for the server.
const REQUESTS: &[&str] = &[
    "URL/health",
    "URL/health?serializable=true",
    "URL/health?exclude=NOSPACE",
    "URL/version",
    "URL/livez",
    "URL/livez?verbose",
    "URL/livez/serializable_read",
    "URL/livez/no_such_check",
    "URL/readyz",
    "URL/readyz?verbose",
    "URL/readyz?verbose&exclude=linearizable_read",
    "URL/readyz?exclude=no_such_check",
    "URL/readyz/data_corruption?verbose",
    "-X POST URL/readyz",
    "URL/no/such/path",
    "URL/",
    "-X POST URL/health",
    "--head URL/health",
    "-X DELETE URL/version",
];

/// Status, body and the headers that say what the body is, as etcd sends them.
pub(super) fn health_and_version(setup: &Setup) -> Result<Outcome> {
    if Setup::in_path("curl").is_none() {
        return Ok(Outcome::Skipped("curl is not installed".to_owned()));
    }
    compare(setup, |server| {
        let mut text = String::new();
        for request in REQUESTS {
            text.push_str(&format!("$ {request}\n{}", essential(&curl(server, "--http1.1", request)?)));
        }
        Ok(text)
    })
}

/// The same handlers answer over HTTP/2 without TLS; etcd refuses that with 415, so this is checked on its own.
pub(super) fn over_http2(setup: &Setup) -> Result<Outcome> {
    if Setup::in_path("curl").is_none() {
        return Ok(Outcome::Skipped("curl is not installed".to_owned()));
    }
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd serves gRPC alone over HTTP/2".to_owned()));
    }
    let server = setup.start()?;
    for (path, body) in [
        ("/health", r#"{"health":"true","reason":""}"#),
        ("/version", r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#),
    ] {
        let text = curl(&server, "--http2-prior-knowledge", &format!("URL{path}"))?;
        if !text.starts_with("HTTP/2 200") || !text.contains(body) {
            bail!("{path} over HTTP/2:\n{text}");
        }
    }
    server.stop(&[])?;
    Ok(Outcome::Passed)
}

fn curl(server: &Server, version: &str, request: &str) -> Result<String> {
    let program = Setup::in_path("curl").context("curl is not installed")?;
    let url = format!("http://{}", server.endpoint());
    let words: Vec<String> = request.split(' ').map(|word| word.replace("URL", &url)).collect();
    let mut arguments = vec!["--silent", "--include", "--max-time", "60", version];
    arguments.extend(words.iter().map(String::as_str));
    transcript(&program, &arguments, &[])
}

/// Keeps the status line, the headers a client acts on, and the body; the order of headers and of checks is
/// free.
fn essential(response: &str) -> String {
    let (head, body) = response.split_once("\n\n").unwrap_or((response, ""));
    let mut lines = head.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    let mut headers: Vec<String> = lines
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| !matches!(name.to_ascii_lowercase().as_str(), "date" | "connection"))
        .map(|(name, value)| format!("{}: {value}\n", name.to_ascii_lowercase()))
        .collect();
    headers.sort();
    headers.iter().for_each(|header| text.push_str(header));
    // etcd lists its checks in the order of a Go map.
    let (mut checks, rest): (Vec<&str>, Vec<&str>) = body.lines().partition(|line| line.starts_with('['));
    checks.sort_unstable();
    for line in checks.iter().chain(&rest) {
        text.push_str(&format!("{line}\n"));
    }
    text
}
