//! The command line of the load generator. Owns: the flags, their defaults and their meaning.

use crate::arguments;
use std::path::PathBuf;
use std::time::Duration;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `KV/Put`.
    Put,
    /// `KV/Range` of one key.
    Range,
}

/// Which key the next request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Uniformly any of the keys.
    Random,
    /// Always the first.
    One,
    /// Each in turn.
    Sequential,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After this many requests.
    Requests(u64),
    /// After this time; requests under way are waited for.
    Time(Duration),
}

/// Everything one run depends on.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`.
    pub endpoint: String,
    /// What is asked.
    pub operation: Operation,
    /// Range without a quorum.
    pub serializable: bool,
    /// TCP connections, spread over the threads.
    pub connections: usize,
    /// Requests outstanding per connection.
    pub streams: usize,
    /// When the run ends.
    pub limit: Limit,
    /// Number of different keys.
    pub keys: u64,
    /// Number of the first of them.
    pub first_key: u64,
    /// Length of a key.
    pub key_bytes: usize,
    /// Length of a value.
    pub value_bytes: usize,
    /// Which key comes next.
    pub distribution: Distribution,
    /// Put every key once before the run.
    pub preload: bool,
    /// Requests a second in all; `None`: each answer starts the next request.
    pub rate: Option<f64>,
    /// Threads of the generator.
    pub threads: usize,
    /// Of the random keys.
    pub seed: u64,
    /// A process whose processor time is reported.
    pub pid: Option<u32>,
    /// Where to write when each right answer's request was planned and how long it took.
    pub trace: Option<PathBuf>,
    /// End the run when standard input ends, if it has not ended before.
    pub until_input_ends: bool,
}

/// The text of `--help`.
pub const HELP: &str = "\
trilith-load: puts load on a server that speaks the etcd v3 API, checks every answer, prints one JSON object

  --endpoint HOST:PORT       server (127.0.0.1:2379)
  --operation put|range      what is asked (put)
  --serializable             range without a quorum
  --connections N            TCP connections (10)
  --streams N                requests outstanding per connection (100)
  --requests N | --seconds S when to stop (5 seconds)
  --keys N                   number of different keys (1000000)
  --first-key N              number of the first of them (0)
  --key-bytes N              length of a key (32)
  --value-bytes N            length of a value (256)
  --distribution random|one|sequential   which key comes next (random)
  --preload                  put every key once first
  --rate R                   requests a second whatever the answers; latency counts from the planned time
  --threads N                threads of the generator (1)
  --seed N                   of the random keys (1)
  --pid N                    report the processor time of this process
  --trace FILE               a line per right answer: planned start (us since 1970), latency (us)
  --until-input-ends         stop when standard input ends, at the latest
";

impl Options {
    /// Reads the arguments after the program's name. An error is a sentence for the user.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            endpoint: "127.0.0.1:2379".to_owned(),
            operation: Operation::Put,
            serializable: false,
            connections: 10,
            streams: 100,
            limit: Limit::Time(Duration::from_secs(5)),
            keys: 1_000_000,
            first_key: 0,
            key_bytes: 32,
            value_bytes: 256,
            distribution: Distribution::Random,
            preload: false,
            rate: None,
            threads: 1,
            seed: 1,
            pid: None,
            trace: None,
            until_input_ends: false,
        };
        let mut arguments = arguments::split(arguments);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--serializable" => options.serializable = true,
                "--preload" => options.preload = true,
                "--until-input-ends" => options.until_input_ends = true,
                "--endpoint" => options.endpoint = value()?.trim_start_matches("http://").to_owned(),
                "--operation" => options.operation = choose(&name, &value()?, OPERATIONS)?,
                "--distribution" => options.distribution = choose(&name, &value()?, DISTRIBUTIONS)?,
                "--connections" => options.connections = number(&name, &value()?)?,
                "--streams" => options.streams = number(&name, &value()?)?,
                "--requests" => options.limit = Limit::Requests(number(&name, &value()?)?),
                "--seconds" => {
                    let seconds = number(&name, &value()?)?;
                    let time = Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds: {error}"))?;
                    options.limit = Limit::Time(time);
                }
                "--keys" => options.keys = number(&name, &value()?)?,
                "--first-key" => options.first_key = number(&name, &value()?)?,
                "--key-bytes" => options.key_bytes = number(&name, &value()?)?,
                "--value-bytes" => options.value_bytes = number(&name, &value()?)?,
                "--rate" => options.rate = Some(number(&name, &value()?)?),
                "--threads" => options.threads = number(&name, &value()?)?,
                "--seed" => options.seed = number(&name, &value()?)?,
                "--pid" => options.pid = Some(number(&name, &value()?)?),
                "--trace" => options.trace = Some(PathBuf::from(value()?)),
                _ => return Err(format!("unknown flag {name}; --help lists the flags")),
            }
        }
        options.check().map(|()| options)
    }

    fn check(&self) -> Result<(), String> {
        let positive = [
            ("--connections", self.connections as u64),
            ("--streams", self.streams as u64),
            ("--keys", self.keys),
            ("--threads", self.threads as u64),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is at least 1"));
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err("--rate is a positive number".to_owned());
        }
        if self.threads > self.connections {
            return Err("--threads is at most --connections".to_owned());
        }
        let last = self.first_key.checked_add(self.keys - 1).ok_or("--first-key is too large")?;
        let digits = last.max(1).ilog10() as usize + 1;
        if self.key_bytes < digits {
            return Err(format!("--key-bytes is at least {digits} for key number {last}"));
        }
        Ok(())
    }
}

const OPERATIONS: &[(&str, Operation)] = &[("put", Operation::Put), ("range", Operation::Range)];
const DISTRIBUTIONS: &[(&str, Distribution)] =
    &[("random", Distribution::Random), ("one", Distribution::One), ("sequential", Distribution::Sequential)];

fn choose<T: Copy>(name: &str, value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(text, _)| *text == value);
    let names = || choices.iter().map(|(text, _)| *text).collect::<Vec<_>>().join(" or ");
    found.map(|(_, choice)| *choice).ok_or_else(|| format!("{name} is {}, not {value}", names()))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} is a number, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_read_in_both_spellings() {
        let options = parse("--endpoint=http://127.0.0.1:9 --operation range --rate 1e3 --requests=7").unwrap();
        assert_eq!(options.endpoint, "127.0.0.1:9");
        assert_eq!(options.operation, Operation::Range);
        assert_eq!(options.rate, Some(1000.0));
        assert_eq!(options.limit, Limit::Requests(7));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (line, why) in [
            ("--operation delete", "--operation is put or range, not delete"),
            ("--streams 0", "--streams is at least 1"),
            ("--keys 1000 --key-bytes 2", "--key-bytes is at least 3 for key number 999"),
            ("--keys 10 --first-key 95 --key-bytes 2", "--key-bytes is at least 3 for key number 104"),
            ("--rate -1", "--rate is a positive number"),
            ("--nope", "unknown flag --nope; --help lists the flags"),
            ("--seconds", "--seconds needs a value"),
        ] {
            assert_eq!(parse(line).unwrap_err(), why);
        }
    }
}
