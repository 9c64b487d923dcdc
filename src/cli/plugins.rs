//! `trt-opt plugins`: the plugin ops, and whether a library has them.

use clap::Subcommand;
use trt_opt::Result;
use trt_opt::plugins::{self, Op, Port};
use trt_opt::rewrite::ops;

use super::Global;
use super::out::{self, BOLD, DIM, RESET};

/// List the plugin ops, or check a plugin library
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trt-opt plugins list
  trt-opt plugins check libtrt_opt_plugins.so")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    #[cfg(feature = "engine")]
    Check(check::Args),
}

/// List the plugin ops: inputs, outputs, attributes, types, and what each replaces
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trt-opt plugins list
  trt-opt plugins list --markdown > ops.md")]
struct List {
    /// Print a Markdown table, one row an op
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, #[cfg_attr(not(feature = "engine"), expect(unused_variables))] global: &Global) -> Result<u8> {
    match args.command {
        Command::List(args) => list(&args),
        #[cfg(feature = "engine")]
        Command::Check(args) => check::run(&args, global),
    }
}

fn list(args: &List) -> Result<u8> {
    let ops = plugins::ops();
    if args.json {
        out::json(&ops)?;
    } else if args.markdown {
        out::text(&ops::markdown_table())?;
    } else {
        out::text(&ops.iter().map(describe).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(0)
}

fn describe(op: &Op) -> String {
    let mut text = format!("{BOLD}{}{RESET}  {}\n", op.name, op.computes);
    text += &format!("  replaces    {}\n", op.replaces);
    text += &format!("  types       {}\n", op.types.join(" or "));
    let ports = |ports: &[Port]| {
        let name = |p: &Port| if p.optional { format!("[{}]", p.name) } else { p.name.to_owned() };
        ports.iter().map(|p| (name(p), p.doc)).collect::<Vec<_>>()
    };
    let attributes = op.attributes.iter().map(|a| (format!("{} {}", a.name, a.r#type), a.doc)).collect();
    for (title, rows) in [("inputs", ports(&op.inputs)), ("outputs", ports(&op.outputs)), ("attributes", attributes)] {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (i, (name, doc)) in rows.iter().enumerate() {
            let title = if i == 0 { title } else { "" };
            text += &format!("  {title:<10}  {name:<width$}  {DIM}{doc}{RESET}\n");
        }
    }
    text
}

#[cfg(feature = "engine")]
mod check {
    use std::path::PathBuf;

    use trt_opt::Error;
    use trt_opt::plugins::{Check, check};

    use super::super::out::{GREEN, RED};
    use super::{BOLD, DIM, Global, RESET, Result, out};

    /// Check that a plugin library has every op and makes its plugins
    #[derive(clap::Args)]
    #[command(after_help = "\
Neither a GPU nor TensorRT is needed. --tensorrt also loads the library through the plugin
registry of that TensorRT, which may be a lean runtime. Exits with 1 if something is wrong with
the plugin library.

Examples:
  trt-opt plugins check libtrt_opt_plugins.so
  trt-opt plugins check libtrt_opt_plugins.so --tensorrt /usr/lib/x86_64-linux-gnu/libnvinfer.so.10")]
    pub struct Args {
        /// The plugin library
        #[arg(value_name = "LIB")]
        library: PathBuf,
        /// TensorRT's library that is to load it, or a folder with one
        #[arg(long, value_name = "PATH")]
        tensorrt: Option<PathBuf>,
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
    }

    pub fn run(args: &Args, global: &Global) -> Result<u8> {
        let check = check(&args.library, args.tensorrt.as_deref())?;
        if args.json {
            out::json(&check)?;
        } else if !global.quiet {
            out::text(&describe(&check))?;
        }
        match check.problems.len() {
            0 => Ok(0),
            n => Err(Error::CheckFailed(format!(
                "{} has {n} {}:\n  {}",
                args.library.display(),
                if n == 1 { "fault" } else { "faults" },
                check.problems.join("\n  ")
            ))),
        }
    }

    fn describe(check: &Check) -> String {
        let interface = match &check.interface {
            Some(interface) => format!("plugins of interface {interface}"),
            None => "no plugin library".into(),
        };
        let mut text = format!("{}: {interface}\n", check.library.display());
        if let Some(tensorrt) = &check.tensorrt {
            text += &format!("TensorRT {} {DIM}({}){RESET}\n", tensorrt.version, tensorrt.path.display());
        }
        let state = |what: &str, state: Option<bool>| match state {
            None => String::new(),
            Some(true) => format!("  {GREEN}{what}{RESET}"),
            Some(false) => format!("  {RED}not {what}{RESET}"),
        };
        for c in &check.creators {
            text += &format!("  {BOLD}{}{RESET} {} of {}", c.name, c.version, c.namespace);
            text += &state("made", c.made);
            text += &state("made by TensorRT", c.registered);
            text += &format!("\n    {DIM}{}{RESET}\n", c.fields.join(", "));
        }
        text
    }
}
