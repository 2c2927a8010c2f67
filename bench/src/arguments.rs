//! What the programs under `src/bin` have in common at both ends: flags in, an exit status out.
//!
//! Owns: the two spellings of a flag, `--help`, how an error is told. Does not know: any other flag.

use anyhow::{Context, Result, bail};
use std::process::ExitCode;

/// Runs a program; its error goes to standard error.
pub fn exit_with(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes `--name=value` for `--name value`.
pub fn split(arguments: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    arguments.flat_map(|argument| match argument.split_once('=') {
        Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
        _ => vec![argument],
    })
}

/// Gives every flag to `take`, which asks for the flag's value if it has one, and says `false` of a flag that it does
/// not know. `Ok(false)`: help is asked for.
///
/// # Errors
/// An unknown flag, a missing value, or what `take` finds wrong.
pub fn read(
    arguments: impl Iterator<Item = String>,
    mut take: impl FnMut(&str, &mut dyn FnMut() -> Result<String>) -> Result<bool>,
) -> Result<bool> {
    let mut arguments = split(arguments);
    while let Some(name) = arguments.next() {
        if name == "--help" || name == "-h" {
            return Ok(false);
        }
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        if !take(&name, &mut value)? {
            bail!("unknown flag {name}; --help lists the flags");
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(line: &str) -> Result<Option<u32>> {
        let mut number = 7;
        let is_run = read(line.split_whitespace().map(str::to_owned), |name, value| {
            match name {
                "--number" => number = value()?.parse()?,
                "--none" => number = 0,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(is_run.then_some(number))
    }

    #[test]
    fn flags_have_two_spellings_and_mistakes_are_named() {
        assert_eq!(number("").unwrap(), Some(7));
        assert_eq!(number("--none --number=3").unwrap(), Some(3));
        assert_eq!(number("--number 3 --none").unwrap(), Some(0));
        assert_eq!(number("--number 3 -h --nope").unwrap(), None);
        for (line, why) in
            [("--nope", "unknown flag --nope; --help lists the flags"), ("--number", "--number needs a value")]
        {
            assert_eq!(number(line).unwrap_err().to_string(), why);
        }
        assert!(number("--number=x").is_err());
    }
}
