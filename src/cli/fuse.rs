//! `trt-opt fuse`: the rewrite.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use trt_opt::contents::Contents;
use trt_opt::onnx::{self, Model, SaveOptions};
use trt_opt::rewrite::{self, ComputeCapability, Kind, Ledger, Options, Site, Target, fp16};
use trt_opt::verify::{self, Report, Source};
use trt_opt::{Error, Result, files};

use super::spinner::Spinner;
use super::tables;
use super::verify::RunArgs;
use super::{Global, file_name, load, out};

/// Heading of the options that say how the model is run.
const RUNS: &str = "With --verify and --fp16";

/// Rewrite a model: fuse norms, attentions, GELUs, windows and patch merges
#[derive(clap::Args)]
#[command(after_help = "\
Every norm, attention, GELU, window and patch merge of the model is accounted for: fused, kept in
a form that the target fuses by itself, or missed with the reason. The input is never touched.

--fp16 is for TensorRT 11, which takes types as the graph has them and has no fp16 flag; engines of
older versions can be built from such a graph too. Nodes for which float16 would be wrong stay in
float32, by a calibration run in ONNX Runtime and by what they compute, and the ledger says why.

Examples:
  trt-opt fuse swin.onnx                                   to swin.fused.onnx
  trt-opt fuse swin.onnx -o out.onnx --target trt10 --verify
  trt-opt fuse swin.onnx --fuse layernorm,attention --require layernorm,attention
  trt-opt fuse swin.onnx --also mlp-block,swin-attn-block  blocks too, as one op each
  trt-opt fuse vit.onnx --also mlp-block,attn-block
  trt-opt fuse swin_b32.onnx --also mlp-block,swin-attn-block --compute-capability 9.0
  trt-opt fuse swin.onnx --reference twin.onnx             also a twin that any ONNX runtime can run
  trt-opt fuse swin.onnx --ledger swin.json --json         the account of all sites, for programs
  trt-opt fuse swin.onnx --target trt11 --fp16 --inputs images.npz --verify
  trt-opt fuse big.onnx --external-data big.weights        weights beside the model")]
pub struct Args {
    model: PathBuf,
    /// Where the rewritten model goes [default: MODEL.fused.onnx beside the input]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Kinds of site to fuse [default: all but mlp-block, swin-attn-block, attn-block, tnt-inner-block, tnt-bridge,
    /// patch-merge-block, patch-embed, tnt-words, bias-gelu,
    /// depthwise-conv, token-conv, conv-block, conv-layer, classifier, patch-conv, block-chain, sequence-chain, token-chain, merged-chain, pixel-embed
    /// and conv-stack]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    fuse: Vec<Kind>,
    /// Kinds to fuse besides: blocks made of the others, up to the size where they pay (an open batch counts as 1). Of a
    /// kind that is made of other blocks, those too
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    also: Vec<Kind>,
    /// Kinds or rules to leave out
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    skip: Vec<String>,
    /// What the model is for
    #[arg(long, default_value = "trt8")]
    target: Target,
    /// Compute capability of the GPU that will run the model, as 9.0 of an H100: lets blocks be made that pay on such a GPU
    /// alone [default: not known]
    #[arg(long, value_name = "X.Y")]
    compute_capability: Option<ComputeCapability>,
    /// Convert weights and activations to float16, but where the ledger gives a reason
    #[arg(long)]
    fp16: bool,
    /// With --fp16: inputs and outputs of the model become float16 too
    #[arg(long, requires = "fp16")]
    fp16_io: bool,
    /// Also write a twin whose plugin nodes have function bodies, for any ONNX runtime
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Write the account of all sites as JSON
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Fail and write nothing if a site of these kinds is missed
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    require: Vec<Kind>,
    /// Put the weights into a file of this name beside the output
    #[arg(long, value_name = "NAME")]
    external_data: Option<String>,
    /// Stop after N patches, to find a wrong one by bisection
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    /// Compare with the input in ONNX Runtime; fail and write nothing if they differ
    #[arg(long)]
    verify: bool,
    /// Write the model even if --require or --verify fails; the exit code stays
    #[arg(long)]
    force: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Arrays for the inputs: .npz by input name, or .npy for a model of one input [default: random]
    #[arg(long, value_name = "FILE", help_heading = RUNS)]
    inputs: Option<PathBuf>,
    #[command(flatten, next_help_heading = RUNS)]
    run: RunArgs,
}

/// What was asked for, checked and with defaults filled in.
struct Resolved {
    input: PathBuf,
    output: PathBuf,
    reference: Option<PathBuf>,
    ledger: Option<PathBuf>,
    require: BTreeSet<Kind>,
    options: Options,
    save: SaveOptions,
    fp16: Option<fp16::Options>,
    /// How the model is run, for `verify` and `fp16`.
    run: verify::Options,
    verify: bool,
    /// That estimates are for.
    batch: i64,
    force: bool,
    json: bool,
}

impl Args {
    fn resolve(self) -> Result<Resolved> {
        let output = self.output.unwrap_or_else(|| self.model.with_extension("fused.onnx"));
        let targets = [Some(("--output", &output)), self.reference.as_ref().map(|p| ("--reference", p))];
        let targets: Vec<_> =
            targets.into_iter().flatten().chain(self.ledger.as_ref().map(|p| ("--ledger", p))).collect();
        for (i, (option, path)) in targets.iter().enumerate() {
            if files::same_file(path, &self.model) {
                return Err(Error::Usage(format!(
                    "{option} {} is the input, which is never written to; give another name",
                    path.display()
                )));
            }
            if let Some((other, _)) = targets[..i].iter().find(|(_, p)| files::same_file(p, path)) {
                return Err(Error::Usage(format!("{option} and {other} are both {}", path.display())));
            }
        }
        let mut kinds: BTreeSet<Kind> =
            if self.fuse.is_empty() { Kind::DEFAULT.into() } else { self.fuse.into_iter().collect() };
        kinds.extend(self.also.iter().flat_map(|kind| kind.made_of()).chain(&self.also));
        let mut skip = BTreeSet::new();
        for name in self.skip.into_iter().filter(|n| !n.is_empty()) {
            match Kind::from_str(&name, true) {
                Ok(kind) => _ = kinds.remove(&kind),
                Err(_) => _ = skip.insert(name),
            }
        }
        let require: BTreeSet<Kind> = self.require.into_iter().collect();
        if let Some(kind) = require.iter().find(|k| !kinds.contains(k)) {
            return Err(Error::Usage(format!("--require {kind}: but --fuse or --skip leaves {kind} out")));
        }
        if let Some(inputs) = self.inputs.as_ref().filter(|_| !self.verify && !self.fp16) {
            let inputs = inputs.display();
            return Err(Error::Usage(format!("--inputs {inputs}: the model is run with --verify or --fp16 only")));
        }
        if let Some(name) = &self.external_data
            && Path::new(name).file_name().is_none_or(|n| n != name.as_str())
        {
            return Err(Error::Usage(format!(
                "--external-data {name:?}: expected a file name without folders, since the file goes beside the model"
            )));
        }
        Ok(Resolved {
            options: Options {
                target: self.target,
                compute_capability: self.compute_capability,
                kinds,
                skip,
                stop_after: self.stop_after,
                ..Options::default()
            },
            batch: self.run.batch.unwrap_or(1),
            save: SaveOptions { external_data: self.external_data, ..SaveOptions::default() },
            fp16: self.fp16.then_some(fp16::Options { interface: self.fp16_io }),
            run: self.run.resolve(self.inputs),
            verify: self.verify,
            input: self.model,
            output,
            reference: self.reference,
            ledger: self.ledger,
            require,
            force: self.force,
            json: self.json,
        })
    }
}

/// The outcome as JSON.
#[derive(Serialize)]
struct Json<'a> {
    input: &'a Path,
    output: Option<&'a Path>,
    reference: Option<&'a Path>,
    before: Option<Contents>,
    after: Option<Contents>,
    ledger: &'a Ledger,
    verify: Option<&'a Report>,
    seconds: f64,
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let resolved = args.resolve()?;
    let started = Instant::now();
    let mut model = load(&resolved.input)?;
    let shown = resolved.json || !global.quiet;
    let before = if shown { Some(Contents::of(&model, resolved.batch)?) } else { None };
    let progress = spinner(&model, global);
    let name = file_name(&resolved.input);
    let mut ledger = rewrite::fuse(&mut model.proto, &name, &resolved.options, &mut |rule, patches| {
        progress.show(&format!("{rule}: {patches} patches"));
    })?;
    let required = check_required(&ledger, &resolved.require, global);
    if let Some(options) = resolved.fp16.filter(|_| required.is_ok() || resolved.force) {
        ledger.precision = Some(convert(&mut model, &name, options, &resolved.run, &progress)?);
    }
    drop(progress);
    let after = if shown { Some(Contents::of(&model, resolved.batch)?) } else { None };
    let seconds = started.elapsed().as_secs_f64();

    for rule in &resolved.options.skip {
        let left_out = format!("--skip {rule}");
        let uses = |s: &Site| {
            s.rule.as_deref() == Some(rule) || s.reason.as_ref().is_some_and(|reason| reason.ends_with(&left_out))
        };
        let known = ledger.patches.contains_key(rule) || ledger.sites.iter().any(uses);
        if !known && !global.quiet {
            out::warning(&format!("--skip {rule}: no site of this model would use a rule of that name"));
        }
    }
    let verified = match resolved.verify && (required.is_ok() || resolved.force) {
        true => Some(prove(&resolved, &model, &ledger)?),
        false => None,
    };
    let outcome = required.and_then(|()| verified.as_ref().map_or(Ok(()), Report::check));
    let write = outcome.is_ok() || resolved.force;
    if write {
        save(&resolved, &model, &ledger)?;
    }

    if resolved.json {
        out::json(&Json {
            input: &resolved.input,
            output: write.then_some(&resolved.output),
            reference: resolved.reference.as_deref().filter(|_| write),
            before,
            after,
            ledger: &ledger,
            verify: verified.as_ref(),
            seconds,
        })?;
    } else if let (Some(before), Some(after)) = (&before, &after) {
        let mut text = tables::before_after(before, after);
        text += "\n\n";
        text += &tables::ledger(&ledger, global.verbose > 0);
        if let Some(account) = &ledger.precision {
            text.push('\n');
            text += &tables::precision(account, global.verbose > 0);
        }
        if let Some(report) = &verified {
            text.push('\n');
            text += &super::verify::table(report);
        }
        if write {
            text += &format!("\n{} -> {} in {seconds:.2} s\n", resolved.input.display(), resolved.output.display());
            if let Some(reference) = &resolved.reference {
                text += &format!("reference twin: {}\n", reference.display());
            }
        }
        out::text(&text)?;
    }
    match outcome {
        Err(error) if !write => Err(super::verify::refuse(error, &resolved.output)),
        outcome => outcome.map(|()| 0),
    }
}

fn check_required(ledger: &Ledger, require: &BTreeSet<Kind>, global: &Global) -> Result<()> {
    let mut wrong = vec![];
    for &kind in require {
        let count = ledger.count(kind);
        if count.total == 0 && !global.quiet {
            out::warning(&format!("--require {kind}: the model has no site of that kind"));
        }
        if count.missed > 0 {
            let mut text = format!("--require {kind}: {} of {} sites missed", count.missed, count.total);
            for site in ledger.missed(kind).take(5) {
                text += &format!("\n  {}", tables::miss(site).replace('\n', "\n  "));
            }
            if count.missed > 5 {
                text += &format!("\n  ... and {} more", count.missed - 5);
            }
            wrong.push(text);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::CheckFailed(wrong.join("\n"))) }
}

/// Calibrates the rewritten model and converts it.
fn convert(
    model: &mut Model,
    name: &str,
    options: fp16::Options,
    run: &verify::Options,
    progress: &Spinner,
) -> Result<fp16::Precision> {
    if !fp16::is_convertible(&model.proto)? {
        return fp16::convert(&mut model.proto, None, &options);
    }
    let name = format!("{name}, rewritten");
    let ranges = verify::calibrate(model, &name, run, &mut |run, runs| {
        progress.show(&format!("calibration: run {run} of {runs}"));
    })?;
    fp16::convert(&mut model.proto, Some(&ranges), &options)
}

fn prove(resolved: &Resolved, model: &Model, ledger: &Ledger) -> Result<Report> {
    let name = resolved.output.display().to_string();
    let converted = ledger.precision.as_ref().is_some_and(|p| p.converted);
    let rtol = resolved.run.rtol.or(converted.then_some(verify::RTOL_CONVERTED));
    let options = verify::Options { rtol, ..resolved.run.clone() };
    verify::compare(Source::File(&resolved.input), Source::Model { name: &name, model }, &options)
}

fn save(resolved: &Resolved, model: &Model, ledger: &Ledger) -> Result<()> {
    let stats = onnx::save(model, &resolved.output, &resolved.save)?;
    tracing::info!(?stats, "wrote {}", resolved.output.display());
    if let Some(path) = &resolved.reference {
        let mut twin = model.clone();
        rewrite::add_reference_bodies(&mut twin.proto)?;
        // The two may be in one folder, so the twin's weights need a file of their own.
        let external_data = resolved.save.external_data.as_ref().map(|_| format!("{}.data", file_name(path)));
        onnx::save(&twin, path, &SaveOptions { external_data, ..SaveOptions::default() })?;
    }
    if let Some(path) = &resolved.ledger {
        files::write(path, (out::to_json(ledger)? + "\n").as_bytes())?;
    }
    Ok(())
}

/// Rewriting takes a moment for large models only.
fn spinner(model: &Model, global: &Global) -> Spinner {
    let large = model.proto.graph.as_ref().is_some_and(|g| g.node.len() > 1000);
    if large { Spinner::new(global) } else { Spinner::hidden() }
}
