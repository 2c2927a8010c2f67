//! Placeholder.
use crate::options::Options;
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    Options::parse(args, &[], &[])?.no_arguments()
}
