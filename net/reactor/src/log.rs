//! Log records on their way out. Owns: the outputs and the buffer of one turn. Does not know: what a record says.
//!
//! Records of a turn leave together at its end. An output that fails is not retried: logging never stops the server.

use crate::log_file::LogFile;
use crate::options::LogOutput;
use std::io::{self, Write};

/// Buffered bytes beyond which a record is written at once.
const BUFFERED_BYTES_MAX: usize = 64 << 10;

pub(crate) struct LogSink {
    outputs: Vec<Box<dyn Write>>,
    buffer: Vec<u8>,
}

impl LogSink {
    pub(crate) fn open(outputs: &[LogOutput]) -> io::Result<Self> {
        let outputs = outputs.iter().map(open_output).collect::<io::Result<_>>()?;
        Ok(Self { outputs, buffer: Vec::new() })
    }

    pub(crate) fn append(&mut self, record: &[u8]) {
        self.buffer.extend_from_slice(record);
        self.buffer.push(b'\n');
        if self.buffer.len() > BUFFERED_BYTES_MAX {
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        for output in &mut self.outputs {
            // Nobody is left to tell about a failed log output.
            let _ = output.write_all(&self.buffer).and_then(|()| output.flush());
        }
        self.buffer.clear();
    }
}

impl Drop for LogSink {
    fn drop(&mut self) {
        self.flush();
    }
}

fn open_output(output: &LogOutput) -> io::Result<Box<dyn Write>> {
    Ok(match output {
        LogOutput::Stderr => Box::new(io::stderr()),
        LogOutput::Stdout => Box::new(io::stdout()),
        LogOutput::File { path, rotation } => Box::new(LogFile::open(path, *rotation)?),
    })
}

/// The same kind of error, saying what was being done.
pub(crate) fn in_context(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}
