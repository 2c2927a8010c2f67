//! Client libraries in Go and Python: one program each, whose printed answers must be the same on both servers.

use anyhow::{Result, bail};

use crate::differential::{compare, transcript};
use crate::setup::{Outcome, Setup};

/// clientv3 of the compared release.
pub(super) fn go(setup: &Setup) -> Result<Outcome> {
    let Some(program) = setup.go_client.clone() else {
        return Ok(Outcome::Skipped("the Go client is not built".to_owned()));
    };
    compare(setup, |server| complete(transcript(&program, &[&server.endpoint()], &[])?))
}

/// python-etcd3.
pub(super) fn python(setup: &Setup) -> Result<Outcome> {
    let (Some(python), Some(script)) = (setup.python.clone(), setup.python_client.clone()) else {
        return Ok(Outcome::Skipped("no Python with etcd3".to_owned()));
    };
    let script = script.to_string_lossy().into_owned();
    let port = |server: &crate::server::Server| server.launch().ports.client.to_string();
    compare(setup, |server| complete(transcript(&python, &[&script, &port(server)], &[])?))
}

/// Both programs print `done` last; without it they died half way on both servers alike, which proves nothing.
fn complete(text: String) -> Result<String> {
    if !text.contains("\ndone\nexit 0\n") {
        bail!("the client program did not finish:\n{text}");
    }
    Ok(text)
}
