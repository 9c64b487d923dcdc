//! `trt-opt inspect`: what a model is, and what would be fused.

use std::path::PathBuf;

use serde::Serialize;
use trt_opt::contents::Contents;
use trt_opt::ir::print::type_text;
use trt_opt::onnx::Model;
use trt_opt::rewrite::{self, Ledger, Options, Target};
use trt_opt::{Result, text};

use super::out::{self, BOLD, RESET};
use super::tables;
use super::{Global, file_name, load};

/// Show what a model is, and which sites would be fused
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  trt-opt inspect swin.onnx
  trt-opt inspect swin.onnx --target native --verbose      with every site that would be missed
  trt-opt inspect swin.onnx --json")]
pub struct Args {
    model: PathBuf,
    /// What the model would be rewritten for
    #[arg(long, default_value = "trt8")]
    target: Target,
    /// Batch size that costs are estimated for, where the model leaves it open
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection {
    model: String,
    producer: String,
    ir_version: i64,
    opsets: Vec<Opset>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    contents: Contents,
    /// What a rewrite would do.
    ledger: Ledger,
}

#[derive(Serialize)]
struct Opset {
    domain: String,
    version: i64,
}

#[derive(Serialize)]
struct Port {
    name: String,
    r#type: String,
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let model = load(&args.model)?;
    let inspection = inspect(model, &args)?;
    if args.json {
        out::json(&inspection)?;
    } else {
        out::text(&describe(&inspection, global))?;
    }
    Ok(0)
}

fn inspect(model: Model, args: &Args) -> Result<Inspection> {
    let proto = &model.proto;
    let producer = [proto.producer_name.as_deref(), proto.producer_version.as_deref()];
    let producer = producer.into_iter().flatten().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ");
    let opsets = proto
        .opset_import
        .iter()
        .map(|o| Opset {
            domain: o.domain.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| "ai.onnx".into()),
            version: o.version.unwrap_or(0),
        })
        .collect();
    let ir_version = proto.ir_version.unwrap_or(0);

    let mut copy = model.proto.clone();
    let options = Options { target: args.target, ..Options::default() };
    let ledger = rewrite::fuse(&mut copy, &file_name(&args.model), &options, &mut |_, _| {})?;

    let graph = text::graph(model.proto, false)?;
    let contents = Contents::of_graph(&graph, args.batch);
    let ports = |values: &[trt_opt::ir::ValueId]| {
        let values = values.iter().filter(|v| graph.constant(**v).is_none()).map(|&v| graph.value(v));
        values.map(|v| Port { name: v.name.clone(), r#type: type_text(v) }).collect()
    };
    Ok(Inspection {
        model: args.model.display().to_string(),
        producer,
        ir_version,
        opsets,
        inputs: ports(&graph.inputs),
        outputs: ports(&graph.outputs),
        contents,
        ledger,
    })
}

fn describe(inspection: &Inspection, global: &Global) -> String {
    let opsets: Vec<String> = inspection.opsets.iter().map(|o| format!("{} {}", o.domain, o.version)).collect();
    let ports =
        |ports: &[Port]| ports.iter().map(|p| format!("{} {}", p.name, p.r#type)).collect::<Vec<_>>().join(", ");
    let contents = &inspection.contents;
    let producer = if inspection.producer.is_empty() { "unknown" } else { &inspection.producer };
    let mut text = format!("{BOLD}{}{RESET}\n", inspection.model);
    text += &format!("producer    {producer}\n");
    text += &format!("versions    IR {}, opset {}\n", inspection.ir_version, opsets.join(", "));
    text += &format!("inputs      {}\n", ports(&inspection.inputs));
    text += &format!("outputs     {}\n", ports(&inspection.outputs));
    text += &format!(
        "parameters  {} in {}\n\n",
        tables::quantity(contents.parameters as f64),
        tables::bytes(contents.weight_bytes as f64)
    );
    let total = &contents.estimate;
    let mut table = tables::new(["op", "nodes", "bytes moved", "", "FLOPs", "", "launches"]);
    for op in &contents.ops {
        table.add_row([
            op.op.clone(),
            op.nodes.to_string(),
            tables::bytes(op.estimate.bytes as f64),
            tables::percent(op.estimate.bytes as f64, total.bytes as f64),
            tables::quantity(op.estimate.flops as f64),
            tables::percent(op.estimate.flops as f64, total.flops as f64),
            format!("{:.0}", op.estimate.launches),
        ]);
    }
    table.add_row([
        "all".to_owned(),
        contents.nodes.to_string(),
        tables::bytes(total.bytes as f64),
        String::new(),
        tables::quantity(total.flops as f64),
        String::new(),
        format!("{:.0}", total.launches),
    ]);
    tables::align_numbers(&mut table);
    text += &tables::text(&table);
    text +=
        &format!("\n(estimates at batch {}; {} multiply-adds)", contents.batch, tables::quantity(total.macs as f64));
    text += &format!("\n\n{BOLD}fuse --target {} would do this:{RESET}\n", inspection.ledger.target);
    text += &tables::ledger(&inspection.ledger, global.verbose > 0);
    text
}
