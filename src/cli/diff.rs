//! `trt-opt diff`: what differs between two models.

use std::path::PathBuf;

use serde::Serialize;
use trt_opt::Result;
use trt_opt::error::exit;
use trt_opt::ir::diff::{Diff, Tag, diff};

use super::Global;
use super::out::{self, BOLD, CYAN, GREEN, RED, RESET};
use super::print::TextArgs;

/// Show what differs between two models, operator by operator
#[derive(clap::Args)]
#[command(after_help = "\
Compares the texts that 'trt-opt print' prints. Numbers are those of the first model; values that
only the second has are %+0, %+1, ... Exits with 0 if the models are equal and with 1 if they differ.

Examples:
  trt-opt diff swin.onnx swin.fused.onnx --clean
  trt-opt diff old.onnx new.onnx --quiet && echo same")]
pub struct Args {
    a: PathBuf,
    b: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Lines shown around a difference
    #[arg(short = 'U', long, value_name = "N", default_value_t = 3)]
    context: usize,
    /// Print counts of operators added and removed, and the changed lines, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    equal: bool,
    added_ops: &'a std::collections::BTreeMap<String, usize>,
    removed_ops: &'a std::collections::BTreeMap<String, usize>,
    added: Vec<&'a str>,
    removed: Vec<&'a str>,
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let (a, b) = (args.text.graph(&args.a)?, args.text.graph(&args.b)?);
    let diff = diff(&a, &b, &args.text.options());
    if args.json {
        let lines = |wanted| diff.lines().filter(move |(t, _)| *t == wanted).map(|(_, line)| line).collect();
        out::json(&Json {
            equal: diff.is_empty(),
            added_ops: &diff.added,
            removed_ops: &diff.removed,
            added: lines(Tag::Added),
            removed: lines(Tag::Removed),
        })?;
    } else if !global.quiet && !diff.is_empty() {
        out::text(&coloured(&diff, &args))?;
    }
    Ok(if diff.is_empty() { 0 } else { exit::CHECK_FAILED })
}

fn coloured(diff: &Diff, args: &Args) -> String {
    let unified = diff.unified(&args.a.display().to_string(), &args.b.display().to_string(), args.context);
    let mut text = String::new();
    for line in unified.lines() {
        let style = match line.as_bytes().first() {
            _ if line.starts_with("--- ") || line.starts_with("+++ ") => BOLD,
            Some(b'-') => RED,
            Some(b'+') => GREEN,
            Some(b'@') => CYAN,
            _ => "",
        };
        let end = if style.is_empty() { "" } else { RESET };
        text += &format!("{style}{line}{end}\n");
    }
    let summary = diff.summary();
    if !summary.is_empty() {
        text += &format!("# {summary}\n");
    }
    text
}
