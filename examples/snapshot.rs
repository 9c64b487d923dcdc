//! A snapshot test of a rewrite, and a program that prints what such a snapshot holds.
//!
//! ```text
//! cargo run --example snapshot -- model.onnx     print it for a model of yours
//! cargo test --example snapshot                  run the test below
//! ```
//!
//! In a project of your own, put the test into `tests/`, with `trt-opt` and `insta` as dev-dependencies. `cargo insta
//! review` (or `INSTA_UPDATE=always cargo test`) accepts a change of the snapshot.

fn main() -> trt_opt::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| fixture("vit_dy20.onnx"));
    print!("{}", trt_opt::testing::rewrite(model)?.before_after());
    Ok(())
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[cfg(test)]
mod tests {
    use trt_opt::rewrite::Kind;

    #[test]
    fn vit_is_rewritten_as_before() -> trt_opt::Result<()> {
        let rewrite = trt_opt::testing::rewrite(super::fixture("vit_dy20.onnx"))?;
        insta::assert_snapshot!(rewrite.before_after());
        rewrite.assert_equivalent();
        // And where a number is enough:
        assert_eq!(rewrite.ledger().count(Kind::LayerNorm).missed, 0);
        Ok(())
    }
}
