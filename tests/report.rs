//! Reports: merging, ratios, refusals, the tables and the page.

mod browser;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};
use trt_opt::report::{self, Report, view::View};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report").join(name)
}

/// Both synthetic files. Nothing in them was measured; tests/report/synthetic.py makes them.
fn both() -> Vec<PathBuf> {
    vec![data("synthetic_a.json"), data("synthetic_b.json")]
}

fn merge(paths: &[PathBuf]) -> trt_opt::Result<(Report, Vec<String>)> {
    report::merge(paths.iter().map(|p| Ok((p.clone(), report::load(p)?))).collect::<trt_opt::Result<_>>()?)
}

fn merged() -> Report {
    merge(&both()).unwrap().0
}

fn row(run: &str, model: &str, variant: &str, us: f64) -> Value {
    json!({
        "model": model, "variant": variant, "precision": "fp16", "batch": 1, "mode": "graph", "p50_us": us, "p99_us": us * 1.1,
        "interval_us": [us * 0.99, us * 1.01], "kernels": 10, "engine_mb": 1.0, "device_mb": 1.0, "rel_err": 1e-3,
        "x_resnet50": null, "run": run
    })
}

fn environment(date: &str) -> Value {
    json!({
        "gpu": "G", "driver": "1", "cuda": "12", "tensorrt": "8.6.0", "headers": "8.6.0", "commit": "c", "date": date,
        "command": "trt-opt report"
    })
}

/// A small report of one run with these rows.
fn small(rows: Vec<Value>) -> Value {
    json!({ "schema": 1, "environment": { "r": environment("2020-01-01T00:00:00Z") }, "rows": rows })
}

fn write(dir: &Path, name: &str, value: &Value) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, serde_json::to_string(value).unwrap()).unwrap();
    path
}

fn load(value: &Value) -> trt_opt::Result<Report> {
    let dir = tempfile::tempdir().unwrap();
    report::load(&write(dir.path(), "report.json", value))
}

/// The values merged, ratios formed.
fn merge_values(values: &[Value]) -> trt_opt::Result<(Report, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.json", "b.json", "c.json"];
    let paths: Vec<PathBuf> = values.iter().zip(names).map(|(v, name)| write(dir.path(), name, v)).collect();
    merge(&paths)
}

// ---- ratios and what they are over ----

#[test]
fn ratios_are_formed_inside_a_run() {
    let a = small(vec![row("r", "resnet50", "native", 100.0), row("r", "swin_t", "all", 150.0)]);
    let mut b = small(vec![row("s", "resnet50", "native", 200.0), row("s", "swin_t", "tuned", 150.0)]);
    b["environment"] = json!({ "s": environment("2020-01-02T00:00:00Z") });
    let (merged, warnings) = merge_values(&[a, b]).unwrap();
    let ratios: Vec<_> = merged.rows.iter().map(|r| (r.model.as_str(), r.run.as_str(), r.x_resnet50)).collect();
    let expected = [("resnet50", "r", 1.0), ("swin_t", "r", 1.5), ("resnet50", "s", 1.0), ("swin_t", "s", 0.75)];
    assert_eq!(ratios, expected.map(|(m, r, x)| (m, r, Some(x))));
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn a_run_without_resnet_has_no_ratios_and_says_so() {
    let a = small(vec![row("r", "resnet50", "native", 100.0), row("r", "swin_t", "native", 150.0)]);
    let mut b = small(vec![row("s", "swin_t", "native", 140.0), row("s", "swin_t", "all", 100.0)]);
    b["environment"] = json!({ "s": environment("2020-01-02T00:00:00Z") });
    let (merged, warnings) = merge_values(&[a, b]).unwrap();
    assert!(merged.rows.iter().filter(|r| r.run == "s").all(|r| r.x_resnet50.is_none()));
    assert_eq!(warnings, ["run s has no native resnet50 (fp16, batch 1, graph): its rows have no ratio to it"]);
    // The page says it too, and has the rest.
    let html = report::html(&merged, &warnings).unwrap();
    assert!(html.contains("run s has no native resnet50"));
}

#[test]
fn another_variant_or_precision_of_resnet_is_no_reference() {
    let mut fp32 = row("r", "resnet50", "native", 170.0);
    fp32["precision"] = json!("fp32");
    let rows = vec![fp32, row("r", "resnet50", "canonical", 90.0), row("r", "swin_t", "all", 150.0)];
    let (merged, warnings) = merge_values(&[small(rows)]).unwrap();
    assert!(merged.rows.iter().all(|r| r.x_resnet50.is_none()));
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_fastest_native_engine_of_the_run_is_the_baseline() {
    let rows = vec![
        row("r", "resnet50", "native", 100.0),
        row("r", "swin_t", "native", 200.0),
        row("r", "swin_t", "native-cublas", 180.0),
        row("r", "swin_t", "all", 90.0),
    ];
    let (merged, _) = merge_values(&[small(rows)]).unwrap();
    let view = View::new(&merged);
    let all = view.rows.iter().find(|r| r.variant.as_str() == "all").unwrap();
    assert_eq!(view.baseline(all).unwrap().variant.as_str(), "native-cublas");
    assert_eq!(view.speedup(all), Some(2.0));
    let markdown = report::markdown(&merged, &[]).unwrap();
    assert!(markdown.contains("| Swin-T | native-cublas (baseline) | 180 (178–182) |"), "{markdown}");
}

#[test]
fn tables_show_the_latest_run_and_keep_the_others_in_json() {
    let report = merged();
    let view = View::new(&report);
    let of = |run: &str| {
        report.rows.iter().filter(|r| r.run == run && r.model == "swin_t" && r.variant.as_str() == "tuned").count()
    };
    assert!(of("synthetic-1") > 0 && of("synthetic-2") > 0);
    let shown: Vec<_> = view
        .rows
        .iter()
        .filter(|r| {
            r.model == "swin_t" && r.variant.as_str() == "tuned" && r.setting().to_string() == "fp16, batch 1, graph"
        })
        .collect();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].run, "synthetic-2");
    assert_eq!(view.repeated().len(), 4);
}

#[test]
fn goals_are_met_or_missed() {
    let report = merged();
    let view = View::new(&report);
    let outcomes: Vec<_> = view.outcomes().iter().map(|o| (o.goal.model.clone(), o.goal.batch, o.met())).collect();
    let expected = [("swin_t", 1, true), ("tnt_s", 1, true), ("ptnt_s", 1, true), ("swin_t", 32, false)];
    assert_eq!(outcomes, expected.map(|(m, b, met)| (m.to_owned(), b, Some(met))));
}

#[test]
fn errors_are_held_against_native_fp16() {
    let mut wrong = row("r", "swin_t", "all", 90.0);
    wrong["rel_err"] = json!(1.6e-3);
    let mut far = row("r", "tnt_s", "native", 90.0);
    far["rel_err"] = json!(1.1e-2);
    let (merged, _) = merge_values(&[small(vec![row("r", "swin_t", "native", 100.0), wrong, far])]).unwrap();
    let view = View::new(&merged);
    let limits: Vec<_> = view.rows.iter().map(|r| (r.variant.to_string(), view.error_limit(r).limit)).collect();
    assert_eq!(limits[0], ("native".into(), 1e-2));
    assert!((limits[1].1 - 1.5e-3).abs() < 1e-15, "{limits:?}");
    let exceeded: Vec<String> = view.warnings().into_iter().filter(|w| w.contains("error")).collect();
    assert_eq!(exceeded.len(), 2, "{exceeded:?}");
    let markdown = report::markdown(&merged, &[]).unwrap();
    assert!(markdown.contains("**exceeded, 1.07×**") && markdown.contains("**exceeded, 1.10×**"), "{markdown}");
}

#[test]
fn a_run_without_native_engines_is_named_once_for_a_model() {
    let mut enqueued = row("r", "swin_t", "all", 95.0);
    enqueued["mode"] = json!("enqueue");
    let mut rows = vec![row("r", "swin_t", "all", 90.0), enqueued, row("r", "swin_t", "blocks", 80.0)];
    rows.extend([row("r", "tnt_s", "all", 90.0), row("r", "vit_s", "native", 90.0), row("r", "vit_s", "all", 80.0)]);
    let (merged, _) = merge_values(&[small(rows)]).unwrap();
    let none = "its run has no native engine of the model, so there is no speed-up";
    assert_eq!(
        View::new(&merged).warnings(),
        [
            format!("swin_t (run r; fp16, batch 1, graph; fp16, batch 1, enqueue): {none}"),
            format!("tnt_s (run r; fp16, batch 1, graph): {none}")
        ]
    );
}

#[test]
fn a_reference_that_differs_between_runs_is_named() {
    let warnings = |other: f64| {
        let rows = [("r", 100.0, "native"), ("s", other, "all")];
        let rows =
            rows.map(|(run, us, variant)| [row(run, "resnet50", "native", us), row(run, "swin_t", variant, 90.0)]);
        let mut value = small(rows.concat());
        value["environment"]["s"] = environment("2020-01-02T00:00:00Z");
        let (merged, _) = merge_values(&[value]).unwrap();
        View::new(&merged).warnings().into_iter().filter(|w| w.starts_with("ResNet-50")).collect::<Vec<_>>()
    };
    assert_eq!(warnings(102.9), Vec::<String>::new());
    let named = warnings(106.0).join("\n");
    assert!(
        named.contains("takes 100 us in run r and 106 us in run s")
            && named.ends_with("up to 6.0 % apart by that alone"),
        "{named}"
    );
}

#[test]
fn a_tuned_engine_that_loses_is_named() {
    let rows = vec![row("r", "swin_t", "native", 100.0), row("r", "swin_t", "tuned", 103.0)];
    let (merged, _) = merge_values(&[small(rows)]).unwrap();
    let warnings = View::new(&merged).warnings();
    assert!(
        warnings.iter().any(|w| w.contains("tuned") && w.contains("slower than native beyond the noise")),
        "{warnings:?}"
    );
}

#[test]
fn a_better_baseline_of_another_run_is_named() {
    let warnings = View::new(&merged()).warnings().join("\n");
    assert!(
        warnings.contains("run synthetic-2 compares with native, and run synthetic-1 found native-cublas"),
        "{warnings}"
    );
}

// ---- merging ----

#[test]
fn merging_twice_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let once = dir.path().join("once.json");
    report::save(&merged(), &once).unwrap();
    let mut paths = both();
    paths.push(once.clone());
    let (again, _) = merge(&paths).unwrap();
    assert_eq!(again, merged());
    assert_eq!(report::load(&once).unwrap(), merged());
}

/// Two files: of run r an engine that run s measures again, in a file of its own.
fn measured_again() -> [Value; 2] {
    let with_layers = |mut row: Value| {
        row["layers"] = json!([{ "name": "/a/MatMul", "us": 1.0 }, { "name": "/a/Shuffle", "us": 0.0 }]);
        row
    };
    let rows = ["native", "all", "tuned"].map(|variant| with_layers(row("r", "swin_t", variant, 100.0)));
    let mut again = small(vec![row("s", "swin_t", "native", 110.0), with_layers(row("s", "swin_t", "all", 90.0))]);
    again["environment"] = json!({ "s": environment("2020-01-02T00:00:00Z") });
    [small(rows.into()), again]
}

#[test]
fn layers_that_a_later_run_supersedes_are_dropped() {
    let layers = |values: &[Value]| {
        let (report, _) = merge_values(values).unwrap();
        let of = |row: &report::Row| (row.run.clone(), row.variant.to_string(), row.layers.len());
        (report.rows.iter().map(of).collect::<Vec<_>>(), serde_json::to_value(&report).unwrap())
    };
    let [old, new] = measured_again();
    // The native engine of r stays: what is shown of r is compared with it.
    let expected = [("r", "native", 1), ("r", "all", 0), ("r", "tuned", 1), ("s", "native", 0), ("s", "all", 1)];
    let expected = expected.map(|(run, variant, count)| (run.to_owned(), variant.to_owned(), count));
    let (found, merged) = layers(&[old.clone(), new.clone()]);
    assert_eq!(found, expected);
    // A file whose layers were dropped and one that has them agree, in either order.
    assert_eq!(layers(&[merged.clone(), old.clone()]), (expected.to_vec(), merged.clone()));
    assert_eq!(layers(&[old.clone(), merged.clone()]).1, merged);
    assert_eq!(layers(&[merged]).0, expected);
    // A run alone keeps all of them.
    assert_eq!(layers(std::slice::from_ref(&old)).0.iter().map(|(.., count)| count).sum::<usize>(), 3);
    let mut other = old.clone();
    other["rows"][1]["layers"][0]["us"] = json!(2.0);
    assert!(merge_values(&[old, other]).is_err());
}

/// A row that was not profiled has the profile of its engine in the run before, or of the fastest engine with fusions that has one.
#[test]
fn a_profile_may_be_of_another_run_or_engine() {
    let [old, mut new] = measured_again();
    new["rows"][1].as_object_mut().unwrap().remove("layers");
    let without = row("s", "swin_t", "blocks-without-window", 80.0);
    new["rows"].as_array_mut().unwrap().push(without);
    let mut slower = old.clone();
    slower["rows"][2]["variant"] = json!("blocks");
    slower["rows"].as_array_mut().unwrap().push(old["rows"][2].clone());
    slower["rows"][3]["variant"] = json!("blocks-with-window");
    slower["rows"][3]["p50_us"] = json!(99.5);
    let (report, _) = merge_values(&[slower, new]).unwrap();
    let view = View::new(&report);
    let profile = |variant: &str| {
        let row = view.rows.iter().find(|row| row.variant.as_str() == variant).unwrap();
        let profile = view.profile_of(row);
        assert_eq!(profile.layers.len(), 1, "{variant}");
        (profile.run.as_str(), profile.variant.as_str())
    };
    assert_eq!(profile("all"), ("r", "all"));
    assert_eq!(profile("blocks"), ("r", "blocks"));
    assert_eq!(profile("blocks-without-window"), ("r", "blocks-with-window"));
}

#[test]
fn different_machines_are_not_put_together() {
    let mut other = small(vec![]);
    other["environment"] = json!({ "s": environment("2020-01-02T00:00:00Z") });
    for (field, what) in [("gpu", "GPU"), ("tensorrt", "version of TensorRT")] {
        let mut other = other.clone();
        other["environment"]["s"][field] = json!("another");
        let error = merge_values(&[small(vec![]), other]).unwrap_err().to_string();
        assert!(error.contains("b.json") && error.contains(what) && error.contains("another"), "{error}");
        assert!(error.contains("run s") && error.contains("run r"), "{error}");
    }
    // The driver may differ, with a warning.
    other["environment"]["s"]["driver"] = json!("2");
    let (_, warnings) = merge_values(&[small(vec![]), other]).unwrap();
    assert_eq!(warnings, ["runs r and s differ in the driver: 1 and 2"]);
}

#[test]
fn one_file_of_two_machines_is_refused() {
    let mut report = small(vec![]);
    report["environment"]["s"] = environment("2020-01-02T00:00:00Z");
    report["environment"]["s"]["gpu"] = json!("H");
    let error = load(&report).unwrap_err().to_string();
    assert!(error.contains("run r has \"G\" and run s has \"H\""), "{error}");
}

#[test]
fn what_contradicts_another_file_is_refused() {
    let a = small(vec![row("r", "swin_t", "all", 150.0)]);
    let mut b = a.clone();
    b["rows"][0]["p99_us"] = json!(170.0);
    let error = merge_values(&[a.clone(), b]).unwrap_err().to_string();
    assert!(error.contains("b.json: swin_t all (fp16, batch 1, graph, run r) has other figures"), "{error}");
    let mut b = a.clone();
    b["environment"]["r"]["commit"] = json!("d");
    let error = merge_values(&[a.clone(), b]).unwrap_err().to_string();
    assert!(error.contains("run r is described otherwise"), "{error}");
    let goal =
        |x: f64| json!([{ "model": "swin_t", "precision": "fp16", "batch": 1, "mode": "graph", "x_resnet50": x }]);
    let (mut b, mut c) = (a.clone(), a);
    b["goals"] = goal(1.5);
    c["goals"] = goal(1.4);
    let error = merge_values(&[b, c]).unwrap_err().to_string();
    assert!(error.contains("asks 1.4 x ResNet-50 of swin_t") && error.contains("another file 1.5"), "{error}");
}

#[test]
fn the_example_of_the_documentation_is_a_report() {
    let docs = include_str!("../docs/report.md");
    let example = docs.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let report = load(&serde_json::from_str(example).unwrap()).unwrap();
    assert_eq!((report.rows.len(), report.environment.len()), (1, 1));
    // Every field that can be in a row is described.
    let full: Value = serde_json::to_value(merged()).unwrap();
    let rows = full["rows"].as_array().unwrap();
    for field in rows.iter().flat_map(|r| r.as_object().unwrap().keys()) {
        assert!(docs.contains(&format!("`{field}`")), "{field}");
    }
}

// ---- refusals ----

#[test]
fn figures_that_cannot_be_are_refused_with_their_place() {
    let good = small(vec![row("r", "resnet50", "native", 100.0), row("r", "swin_t", "all", 150.0)]);
    load(&good).unwrap();
    let place = "row 1, swin_t all (fp16, batch 1, graph, run r)";
    for (pointer, value, expected) in [
        ("/schema", json!(2), "has schema 2, and this trt-opt reads schema 1"),
        ("/rows/1/p50_us", json!(-1.0), "p50_us is -1, expected a finite time above 0"),
        ("/rows/1/p50_us", json!(0.0), "p50_us is 0"),
        ("/rows/1/p50_us", Value::Null, "invalid type: null, expected f64"),
        ("/rows/1/p50_us", json!("NaN"), "invalid type: string \"NaN\", expected f64"),
        ("/rows/1/p99_us", json!(149.0), "p99_us 149 is below p50_us 150"),
        ("/rows/1/interval_us", json!([151.0, 152.0]), "interval_us is [151, 152], which does not hold p50_us 150"),
        ("/rows/1/interval_us", json!([151.0]), "invalid length 1"),
        ("/rows/1/kernels", json!(0), "kernels is 0"),
        ("/rows/1/kernels", json!(-3), "invalid value: integer `-3`"),
        ("/rows/1/engine_mb", json!(-1.0), "engine_mb is -1"),
        ("/rows/1/rel_err", json!(-0.1), "rel_err is -0.1"),
        ("/rows/1/batch", json!(0), "batch is 0"),
        ("/rows/1/run", json!("s"), "environment has no run \"s\" (it has: r)"),
        ("/rows/1/model", json!(""), "model is \"\""),
        ("/rows/1/variant", json!("All"), "variant \"All\""),
        ("/rows/1/precision", json!("fp8"), "unknown variant `fp8`"),
        ("/rows/1/x_resnet50", json!(1.4), "x_resnet50 is 1.4, and the times of its run give 1.5"),
        ("/rows/1/x_resnet50_interval", json!([1.0, 2.0]), "x_resnet50_interval is there without x_resnet50"),
        ("/rows/1/layers", json!([{ "name": "a", "us": -1.0 }]), "layer 'a' took -1 us"),
        ("/rows/1/layers", json!([{ "name": "", "us": 1.0 }]), "layer 0 has no name"),
        ("/rows/1/typo", json!(1), "unknown field `typo`"),
        ("/environment/r/date", json!("yesterday"), "is no report of trt-opt"),
        ("/environment/r/gpu", json!(" "), "environment of run \"r\", gpu: is empty"),
        (
            "/goals",
            json!([{ "model": "a", "precision": "fp16", "batch": 1, "mode": "graph", "x_resnet50": 0.0 }]),
            "goal 0, a",
        ),
    ] {
        let mut bad = good.clone();
        match bad.pointer_mut(pointer) {
            Some(slot) => *slot = value,
            None => {
                let (parent, field) = pointer.rsplit_once('/').unwrap();
                bad.pointer_mut(parent).unwrap()[field] = value;
            }
        }
        let error = load(&bad).unwrap_err().to_string();
        assert!(error.contains("report.json: ") && error.contains(expected), "{pointer}: {error}");
        let of_type = expected.contains("invalid") || expected.contains("unknown") || expected.starts_with("variant");
        if pointer.starts_with("/rows/1")
            && !of_type
            && !pointer.ends_with("/run")
            && !pointer.ends_with("/batch")
            && !pointer.ends_with("/model")
        {
            assert!(error.contains(place), "{pointer}: {error}");
        }
    }
}

#[test]
fn a_ratio_without_a_reference_is_refused() {
    let mut bad = small(vec![row("r", "swin_t", "all", 150.0)]);
    bad["rows"][0]["x_resnet50"] = json!(1.5);
    let error = load(&bad).unwrap_err().to_string();
    assert!(error.contains("its run has no native resnet50"), "{error}");
}

#[test]
fn the_same_engine_twice_in_a_run_is_refused() {
    let bad = small(vec![row("r", "swin_t", "all", 150.0), row("r", "swin_t", "all", 151.0)]);
    let error = load(&bad).unwrap_err().to_string();
    assert!(error.contains("row 1, swin_t all") && error.contains("row 0 measured the same"), "{error}");
}

#[test]
fn what_is_not_json_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing"),
        ("[]", "is no report of trt-opt"),
        ("{}", "missing field `schema`"),
        ("{\"schema\": 1}", "missing field `environment`"),
        ("{\"schema\": 1, \"environment\": {}, \"rows\": [NaN]}", "expected value at line 1"),
        ("\u{feff}{}", "expected value"),
    ] {
        let path = dir.path().join("bad.json");
        std::fs::write(&path, text).unwrap();
        let error = report::load(&path).unwrap_err();
        assert!(error.to_string().contains("bad.json") && error.to_string().contains(expected), "{text:?}: {error}");
        assert_eq!(error.exit_code(), trt_opt::error::exit::BAD_INPUT);
    }
    let absent = report::load(&dir.path().join("absent.json")).unwrap_err();
    assert_eq!(absent.exit_code(), trt_opt::error::exit::IO);
}

#[test]
fn a_report_that_could_not_be_read_back_is_not_written() {
    let mut report = merged();
    report.rows[0].p50_us = f64::NAN;
    let dir = tempfile::tempdir().unwrap();
    let error = report::save(&report, &dir.path().join("report.json")).unwrap_err().to_string();
    assert!(error.contains("row 0") && error.contains("p50_us is NaN"), "{error}");
    assert!(report::write(&report, &[], &dir.path().join("out")).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

// ---- what is written ----

#[test]
fn a_row_is_a_line_without_layers_that_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let mut report = merged();
    let native = report.rows.iter_mut().find(|r| !r.layers.is_empty()).unwrap();
    let idle = report::Layer { us: 0.0, ..native.layers[0].clone() };
    native.layers.push(idle.clone());
    report.rows[0].layers = vec![idle];
    report::save(&report, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    // Goals are lines, too, and begin alike.
    let lines = text.lines().filter(|line| line.starts_with("{\"model\":"));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line.trim_end_matches(',')).unwrap()).collect();
    assert_eq!(lines.len(), report.rows.len() + report.goals.len());
    assert!(lines[0].get("layers").is_none());
    assert_eq!(report::load(&path).unwrap(), merged());
}

#[test]
fn the_summary_of_the_synthetic_runs() {
    let (report, mut warnings) = merge(&both()).unwrap();
    warnings.extend(View::new(&report).warnings());
    insta::assert_snapshot!(report::markdown(&report, &warnings).unwrap());
}

#[test]
fn names_that_look_like_markup_stay_text() {
    let mut hostile = row("r", "<script>alert(1)</script>|", "all", 90.0);
    hostile["note"] = json!("<img src=http://example.invalid/x.png onerror=alert(2)>");
    hostile["layers"] = json!([{ "name": "</svg><script>", "us": 1.0 }]);
    let mut native = row("r", "<script>alert(1)</script>|", "native", 100.0);
    native["layers"] = json!([{ "name": "]]><b>", "us": 1.0 }]);
    let (report, _) = merge_values(&[small(vec![native, hostile])]).unwrap();
    let html = report::html(&report, &["<b>".into()]).unwrap();
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("<b>"), "{html}");
    let markdown = report::markdown(&report, &["<b>".into()]).unwrap();
    assert!(!markdown.contains("<script") && !markdown.contains("<b>"), "{markdown}");
}

#[test]
fn a_report_of_one_row_is_a_page_too() {
    for rows in [vec![row("r", "swin_t", "native", 100.0)], vec![row("r", "mine", "torch-compile", 100.0)]] {
        let (report, warnings) = merge_values(&[small(rows)]).unwrap();
        let html = report::html(&report, &warnings).unwrap();
        assert!(html.contains("All latencies") && html.contains("How it was measured"));
        report::markdown(&report, &warnings).unwrap();
    }
}

#[test]
fn the_page_stands_alone() {
    let html = report::html(&merged(), &[]).unwrap();
    for outside in ["http://", "https://", "<script", "src=", "url(", "@import", "<iframe", "<object"] {
        assert!(!html.contains(outside), "{outside} is in the page");
    }
    assert!(html.contains("prefers-color-scheme: dark"));
    // Every drawing has a name and a description, every table a caption, every heading cell a scope.
    assert_eq!(html.matches("<svg").count(), html.matches("<desc").count());
    assert!(html.matches("<svg").count() >= 20);
    assert_eq!(html.matches("<table").count(), html.matches("<caption").count());
    assert_eq!(html.matches("<th ").count(), html.matches("scope=").count());
    assert!(!html.contains("<th>"));
    let mut ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id is there twice");
}

// ---- the page in a browser ----

#[test]
fn the_page_opens_without_an_error_or_a_request() {
    let dir = tempfile::tempdir().unwrap();
    report::write(&merged(), &["a caveat".into()], dir.path()).unwrap();
    let page = dir.path().join("index.html");
    let opened = browser::open(&page, 1100);
    assert_eq!(opened.console, Vec::<String>::new());
    assert_eq!(opened.requests, Vec::<String>::new());
    assert!(opened.dom.contains("Against ResNet-50") && opened.dom.contains("a caveat"));

    // The same look finds what is wrong in a page that is.
    let html = std::fs::read_to_string(&page).unwrap();
    let wrong = html.replace("</header>", "<img src=\"http://example.invalid/x.png\"></header>");
    assert_ne!(wrong, html);
    std::fs::write(&page, &wrong).unwrap();
    let console = browser::open(&page, 1100).console.join("\n");
    assert!(console.contains("Content Security Policy"), "the policy of the page stops it: {console:?}");
    let unprotected = wrong.replace("Content-Security-Policy", "x-none");
    std::fs::write(&page, unprotected).unwrap();
    assert_eq!(browser::open(&page, 1100).requests, ["http://example.invalid/x.png"]);
}

#[test]
fn nothing_overlaps_and_nothing_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    report::write(&merged(), &[], dir.path()).unwrap();
    let page = dir.path().join("index.html");
    for width in [1100, 390] {
        let faults = browser::layout_faults(&page, width);
        assert_eq!(faults, Vec::<String>::new(), "at {width} pixels");
    }
    // The same look finds a label that is moved to the edge.
    let html = std::fs::read_to_string(&page).unwrap();
    let mut moved = html.clone();
    let at = moved.find("class=\"value\" x=\"").unwrap() + "class=\"value\" x=\"".len();
    let end = at + moved[at..].find('"').unwrap();
    moved.replace_range(at..end, "830");
    std::fs::write(&page, &moved).unwrap();
    assert!(!browser::layout_faults(&page, 1100).is_empty());
}

// ---- the command ----

fn trt_opt() -> Command {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("trt-opt");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

#[test]
fn the_command_writes_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/report");
    let mut command = trt_opt();
    command.args(["report", "--merge"]).args(both()).arg("-o").arg(&out).args(["--ask", "uniformer_s@1=1.3"]);
    command
        .assert()
        .success()
        .stdout(contains("ResNet-50").and(contains("missed by")).and(contains("index.html")))
        .stderr(contains("native-cublas"));
    let mut names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["index.html", "report.json", "report.md"]);
    let written = report::load(&out.join("report.json")).unwrap();
    assert_eq!(written.goals.len(), merged().goals.len() + 1);
}

#[test]
fn the_command_prints_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = trt_opt();
    command.args(["report", "--json", "--merge"]).args(both()).arg("-o").arg(dir.path());
    let output = command.args(["--ask", "swin_t@1=0.8"]).assert().success().get_output().stdout.clone();
    let json: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!((json["runs"].as_u64(), json["rows"].as_u64()), (Some(2), Some(merged().rows.len() as u64)));
    assert_eq!(json["files"].as_array().unwrap().len(), 3);
    let goals = json["goals"].as_array().unwrap();
    // The goal of the command replaces that of the file.
    let swin: Vec<_> = goals.iter().filter(|g| g["model"] == "swin_t" && g["batch"] == 1).collect();
    assert_eq!(swin.len(), 1);
    assert_eq!(
        (&swin[0]["x_resnet50"], &swin[0]["met"], &swin[0]["variant"]),
        (&json!(0.8), &json!(false), &json!("tuned"))
    );
}

#[test]
fn the_command_refuses_what_makes_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = |args: &[&str]| trt_opt().arg("report").args(args).arg("-o").arg(&out).assert();
    run(&[]).code(2).stderr(contains("--merge"));
    run(&["--merge", "absent.json"]).code(5).stderr(contains("absent.json"));
    run(&["--merge", "Cargo.toml"]).code(3).stderr(contains("Cargo.toml: is no report of trt-opt"));
    let empty = write(dir.path(), "empty.json", &small(vec![]));
    run(&["--merge", empty.to_str().unwrap()]).code(2).stderr(contains("no rows"));
    run(&["--merge", "tests/report/synthetic_a.json", "--ask", "swin_t=1"]).code(2).stderr(contains("MODEL@BATCH=X"));
    assert!(!out.exists());
}
