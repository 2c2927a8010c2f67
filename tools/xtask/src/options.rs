//! Parsing of the few flags of a command.
//!
//! Owns the one rule: `--flag value`, `--flag=value` or a bare `--flag`; anything unknown is an error (I1).

use anyhow::{Result, bail};

/// The flags and the plain arguments of one command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    flags: Vec<(String, String)>,
    /// Arguments that are not flags, in order.
    pub(crate) arguments: Vec<String>,
}

impl Options {
    /// Parses `args`, where `switches` take no value and `valued` take one.
    pub(crate) fn parse(args: &[String], switches: &[&str], valued: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                options.arguments.push(arg.clone());
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let value = if switches.contains(&name) && inline.is_none() {
                String::new()
            } else if valued.contains(&name) {
                match inline.or_else(|| rest.next().cloned()) {
                    Some(value) => value,
                    None => bail!("--{name} needs a value"),
                }
            } else {
                bail!("unknown flag '{arg}'")
            };
            options.flags.push((name.to_owned(), value));
        }
        Ok(options)
    }

    /// Whether the switch was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(flag, _)| flag == name)
    }

    /// The last value of the flag.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }

    /// The last value of the flag as a number, or `default`.
    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(number) => Ok(number),
                Err(_) => bail!("--{name} needs a number, not '{text}'"),
            },
        }
    }

    /// Refuses plain arguments, for the commands that take none.
    pub(crate) fn no_arguments(&self) -> Result<()> {
        match self.arguments.first() {
            Some(argument) => bail!("unexpected argument '{argument}'"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_take_both_forms_and_the_last_value_wins() {
        let options = Options::parse(&words("--n 1 a --n=2 --quick b"), &["quick"], &["n"]).unwrap();
        assert_eq!(options.number("n", 9).unwrap(), 2);
        assert!(options.has("quick"));
        assert_eq!(options.arguments, ["a", "b"]);
    }

    #[test]
    fn unknown_flags_and_missing_values_are_errors() {
        for line in ["--what", "--n", "--quick=1", "--n x"] {
            let parsed = Options::parse(&words(line), &["quick"], &["n"]);
            assert!(parsed.is_err() || parsed.unwrap().number("n", 0).is_err(), "{line}");
        }
    }
}
