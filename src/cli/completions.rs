//! `trt-opt completions`: a script that teaches a shell the options.

use clap::CommandFactory;
use clap_complete::Shell;
use trt_opt::Result;

use super::{Cli, Global, out};

/// Write a completion script for a shell to standard output
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trt-opt completions bash > ~/.local/share/bash-completion/completions/trt-opt
  trt-opt completions zsh > ~/.zfunc/_trt-opt
  trt-opt completions fish > ~/.config/fish/completions/trt-opt.fish")]
pub struct Args {
    shell: Shell,
}

pub fn run(args: Args, _: &Global) -> Result<u8> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), "trt-opt", &mut script);
    out::text(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
