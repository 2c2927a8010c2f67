//! Running the project's clients: the load generator and the heavy calls.
//!
//! Owns: their command lines and the reading of what they print. Does not know: what is measured.
//!
//! I1  A run with a wrong answer, or a call that failed, is an error.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;
use crate::workspace::Workspace;

/// Keys and values of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Number of keys.
    pub(crate) keys: u64,
    /// Number of the first.
    pub(crate) first_key: u64,
    /// Length of a key.
    pub(crate) key_bytes: u32,
    /// Length of a value.
    pub(crate) value_bytes: u32,
}

impl Shape {
    fn flags(&self) -> Vec<String> {
        let Self { keys, first_key, key_bytes, value_bytes } = self;
        vec![
            format!("--keys={keys}"),
            format!("--first-key={first_key}"),
            format!("--key-bytes={key_bytes}"),
            format!("--value-bytes={value_bytes}"),
        ]
    }
}

/// The clients of one server.
#[derive(Clone, Copy)]
pub(crate) struct Clients<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) address: SocketAddr,
}

impl Clients<'_> {
    /// Runs the load generator to its end; what it prints.
    pub(crate) fn load(&self, shape: &Shape, flags: &[&str]) -> Result<Value> {
        checked_load(&process::capture(&mut self.load_command(shape, flags))?)
    }

    /// Puts every key once.
    pub(crate) fn fill(&self, shape: &Shape) -> Result<()> {
        let requests = shape.keys.to_string();
        let flags = ["--operation", "put", "--distribution", "sequential", "--connections", "4"];
        self.load(shape, &[&flags[..], &["--requests", &requests]].concat()).map(drop)
    }

    /// Starts the load generator; it ends when its standard input is closed.
    pub(crate) fn start_load(&self, shape: &Shape, flags: &[&str]) -> Result<RunningLoad> {
        let mut command = self.load_command(shape, flags);
        command.args(["--until-input-ends"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(RunningLoad { child: Some(command.spawn().context("cannot start trilith-load")?) })
    }

    fn load_command(&self, shape: &Shape, flags: &[&str]) -> Command {
        let mut command = Command::new(self.workspace.release("trilith-load"));
        command.arg("--endpoint").arg(self.address.to_string()).args(shape.flags()).args(flags);
        command
    }

    /// Makes heavy calls; what they say of themselves. They stand for a client on another machine, so they yield the
    /// processor to server and load generator.
    pub(crate) fn call(&self, operation: &str, shape: &Shape, flags: &[&str]) -> Result<Vec<Value>> {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(self.workspace.release("trilith-call"));
        command.args(["--operation", operation, "--endpoint"]).arg(self.address.to_string());
        let text = process::capture(command.args(shape.flags()).args(flags))?;
        let printed: Value = serde_json::from_str(text.trim()).context("trilith-call prints JSON")?;
        Ok(printed["calls"].as_array().cloned().unwrap_or_default())
    }
}

fn checked_load(text: &str) -> Result<Value> {
    let result: Value = serde_json::from_str(text.trim()).context("trilith-load prints JSON")?;
    if result["error_count"].as_u64() != Some(0) {
        bail!("{} of {} requests failed: {}", result["error_count"], result["requests"], result["errors"]);
    }
    Ok(result)
}

/// A load generator at work.
pub(crate) struct RunningLoad {
    child: Option<Child>,
}

impl RunningLoad {
    /// Ends it; what it prints.
    pub(crate) fn finish(mut self) -> Result<Value> {
        let mut child = self.child.take().expect("it is finished once");
        drop(child.stdin.take());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("trilith-load failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        checked_load(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
