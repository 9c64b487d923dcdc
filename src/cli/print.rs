//! `trt-opt print`: a model as text.

use std::path::{Path, PathBuf};

use trt_opt::ir::{Graph, print};
use trt_opt::{Result, text};

use super::{Global, load, out};

/// Print a model as stable, readable text
#[derive(clap::Args)]
#[command(after_help = "\
The text does not depend on names of nodes, on the order of nodes in the file, or on the exporter's
numbering, so it can be kept as a snapshot. Weights appear as a hash of their elements.

Examples:
  trt-opt print swin.onnx | less
  trt-opt print swin.onnx --clean --no-hashes > swin.txt")]
pub struct Args {
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
}

/// What `print` and `diff` show; shared so that a diff is a diff of what `print` prints.
#[derive(clap::Args)]
pub struct TextArgs {
    /// Clean up first: fold shape arithmetic, drop operators that do nothing
    #[arg(long)]
    clean: bool,
    /// Leave out the hashes of weights
    #[arg(long)]
    no_hashes: bool,
    /// Leave out types and shapes
    #[arg(long)]
    no_types: bool,
    /// Show names of nodes as comments
    #[arg(long)]
    names: bool,
}

impl TextArgs {
    pub fn options(&self) -> print::Options {
        print::Options { types: !self.no_types, hashes: !self.no_hashes, names: self.names, ..Default::default() }
    }

    /// The graph of a model, cleaned up if asked for.
    pub fn graph(&self, path: &Path) -> Result<Graph> {
        text::graph(load(path)?.proto, self.clean)
    }
}

pub fn run(args: Args, _: &Global) -> Result<u8> {
    let graph = args.text.graph(&args.model)?;
    out::text(&print::print_with(&graph, &args.text.options()))?;
    Ok(0)
}
