//! `steady completion`: scripts that let a shell complete the command line.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::out::Out;

/// A shell.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Known {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Arguments of `steady completion`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady completion bash > /etc/bash_completion.d/steady
  steady completion zsh > \"${fpath[1]}/_steady\"
  steady completion fish > ~/.config/fish/completions/steady.fish")]
pub struct Completion {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Known,
}

/// Prints the script.
pub fn run(args: &Completion, out: &mut Out) -> Result<(), Failure> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "steady", &mut script);
    out.bytes(&script)
}
