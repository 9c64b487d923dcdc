//! The plugins' field lists against the definitions of the ops.
//!
//! `plugins/ops.json` is what the built library's creators say of themselves; `cargo xtask plugins-test` holds it
//! against the library, this test against the rewriter's definitions.

use serde_json::Value;
use trt_opt::rewrite::ops::{AttributeKind, OPS};

fn kind(kind: AttributeKind) -> (&'static str, u64) {
    match kind {
        AttributeKind::Int => ("INT", 1),
        AttributeKind::Float => ("FLOAT", 1),
        AttributeKind::String => ("STRING", 1),
        AttributeKind::Ints(n) => ("INTS", n as u64),
    }
}

#[test]
fn creators_have_the_fields_of_the_op_definitions() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/plugins/ops.json");
    let creators: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let names = |list: &[Value]| {
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&creators), OPS.iter().map(|d| d.name.to_owned()).collect(), "one creator for each op");
    for def in OPS {
        let creator = creators.iter().find(|c| c["name"] == def.name).unwrap();
        assert_eq!((&creator["version"], &creator["namespace"]), (&"1".into(), &"trt_opt".into()), "{}", def.name);
        let mut fields: Vec<(String, String, u64)> = creator["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| {
                (f["name"].as_str().unwrap().into(), f["type"].as_str().unwrap().into(), f["count"].as_u64().unwrap())
            })
            .collect();
        let mut attributes: Vec<(String, String, u64)> = def
            .attributes
            .iter()
            .map(|a| {
                let (kind, count) = kind(a.kind);
                (a.name.into(), kind.into(), count)
            })
            .collect();
        fields.sort();
        attributes.sort();
        assert_eq!(fields, attributes, "{}: plugin fields and op attributes differ", def.name);
    }
}
