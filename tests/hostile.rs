//! Models with bytes flipped: whatever still loads can be printed, compared, summed up and rewritten, or is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use trt_opt::contents::Contents;
use trt_opt::ir::{diff, print};
use trt_opt::rewrite::Options;
use trt_opt::{onnx, testing, text};

const FIXTURES: [&str; 6] = [
    "spelling_layernorm_words_decomposed",
    "spelling_attention_window_mask_in_graph",
    "spelling_window_round_trip_residual",
    "spelling_merge_slices_tokens",
    "spelling_gelu_tanh_pow",
    "vit_dy20",
];

/// A small generator, so that a failing case can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

#[test]
fn flipped_bytes_do_not_panic() {
    let mut loaded = 0;
    for name in FIXTURES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"));
        let bytes = std::fs::read(&path).unwrap();
        let whole = text::graph(onnx::load(&path).unwrap().proto, false).unwrap();
        for case in 0..150u64 {
            let mut random = Random(case * 7919 + name.len() as u64);
            let mut broken = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(broken.len());
                broken[at] = match random.below(3) {
                    0 => broken[at] ^ (1 << random.below(8)),
                    1 => 0xff,
                    _ => random.below(256) as u8,
                };
            }
            let Ok(model) = onnx::from_bytes(broken.into(), &path) else { continue };
            loaded += 1;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                if let Ok(graph) = text::graph(model.proto.clone(), false) {
                    print(&graph);
                    diff(&whole, &graph, &print::Options::default()).unified("a", "b", 3);
                    Contents::of_graph(&graph, 1);
                }
                if let Ok(rewrite) = testing::rewrite_model(model, &Options::default()) {
                    rewrite.before_after();
                }
            }));
            assert!(outcome.is_ok(), "{name}, case {case} panicked");
        }
    }
    assert!(loaded > 100, "only {loaded} cases could be loaded");
}
