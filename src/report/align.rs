//! Lining up the layers of two engines that were built from the same model.
//!
//! TensorRT names a layer after the ONNX nodes that it runs: `a + b` for two, `PWN(a)` for pointwise ones,
//! `{ForeignNode[a...b]}` for all from `a` to `b`. A node's stem is its name without the last part, the module that it
//! belongs to: `/layers.0/blocks.0/norm1` for `/layers.0/blocks.0/norm1/ReduceMean`. Stems survive a rewrite where the
//! nodes themselves do not, so the longest common subsequence of the two engines' stems says which layers do the same
//! work, and layers between two such places belong together.

use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::schema::Layer;

/// Layers of two engines that do the same work.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The modules, in the order of the network, each once.
    pub stems: Vec<String>,
    /// Microseconds in the first engine, and in the second.
    pub us: [f64; 2],
    /// Number of layers in each.
    pub layers: [usize; 2],
}

impl Group {
    /// What the module paths have in common, and how they differ: `layers.0/blocks.1 (norm1 … mlp)`.
    pub fn label(&self) -> String {
        let paths: Vec<Vec<&str>> = self.stems.iter().map(|s| parts(s)).collect();
        let Some(first) = paths.first() else { return "(unnamed)".into() };
        let shared = |path: &Vec<&str>| first.iter().zip(path).take_while(|(a, b)| a == b).count();
        let common = paths.iter().map(shared).min().unwrap_or(0);
        let mut rests: Vec<String> = paths.iter().map(|p| p[common..].join("/")).filter(|r| !r.is_empty()).collect();
        if rests.len() > 2 {
            rests.drain(1..rests.len() - 1);
        }
        let ends = rests.join(" \u{2026} ");
        match (common, paths.len()) {
            (0, 1) => self.stems[0].clone(),
            (0, _) => ends,
            (_, 1) => first.join("/"),
            (_, _) if ends.is_empty() => first[..common].join("/"),
            _ => format!("{} ({ends})", first[..common].join("/")),
        }
    }
}

fn parts(stem: &str) -> Vec<&str> {
    stem.split('/').filter(|p| !p.is_empty()).collect()
}

/// A stretch of layers of one module.
struct Run {
    stem: String,
    layers: std::ops::RangeInclusive<usize>,
}

/// Lines two engines up. Every layer is in exactly one group, groups are in the order of the network, and no layer is
/// cut: where one engine has a single layer for what the other has many for, they are one group.
pub fn align(a: &[Layer], b: &[Layer]) -> Vec<Group> {
    let runs = [runs(a), runs(b)];
    let stems = runs.each_ref().map(|runs| runs.iter().map(|r| r.stem.as_str()).collect::<Vec<_>>());
    // Places of the runs in a common order: the number of the step of the edit script.
    let mut steps = [vec![0usize; runs[0].len()], vec![0usize; runs[1].len()]];
    let mut count = 0;
    for op in capture_diff_slices(Algorithm::Myers, &stems[0], &stems[1]) {
        if let DiffOp::Equal { old_index, new_index, len } = op {
            for i in 0..len {
                steps[0][old_index + i] = count;
                steps[1][new_index + i] = count;
                count += 1;
            }
        } else {
            op.old_range().for_each(|i| steps[0][i] = count);
            op.new_range().for_each(|i| steps[1][i] = count);
            count += 1;
        }
    }
    // A layer that is in several steps joins them, and all between.
    let mut joined = vec![false; count];
    let sides = [a, b];
    let mut places = [vec![None; a.len()], vec![None; b.len()]];
    for side in 0..2 {
        let mut spans: Vec<Option<(usize, usize)>> = vec![None; sides[side].len()];
        for (run, &step) in runs[side].iter().zip(&steps[side]) {
            for layer in run.layers.clone() {
                let (low, high) = spans[layer].unwrap_or((step, step));
                spans[layer] = Some((low.min(step), high.max(step)));
            }
        }
        for (layer, span) in spans.into_iter().enumerate() {
            if let Some((low, high)) = span {
                joined[low..high].iter_mut().for_each(|j| *j = true);
                places[side][layer] = Some(low);
            }
        }
    }
    let mut group_of = vec![0usize; count];
    for step in 1..count {
        group_of[step] = group_of[step - 1] + usize::from(!joined[step - 1]);
    }
    let groups = group_of.last().map_or(usize::from(!(a.is_empty() && b.is_empty())), |last| last + 1);
    let mut out = vec![Group { stems: vec![], us: [0.0; 2], layers: [0; 2] }; groups];
    // Stems of a group in the order of the steps, those of the first engine first.
    let of_side = |side: usize| runs[side].iter().zip(&steps[side]).map(move |(run, step)| (*step, side, &run.stem));
    let mut all: Vec<(usize, usize, &String)> = of_side(0).chain(of_side(1)).collect();
    all.sort_by_key(|(step, side, _)| (*step, *side));
    for (step, _, stem) in all {
        let stems = &mut out[group_of[step]].stems;
        if !stems.contains(stem) {
            stems.push(stem.clone());
        }
    }
    for side in 0..2 {
        for (layer, place) in sides[side].iter().zip(&places[side]) {
            let group = &mut out[place.map_or(0, |step| group_of[step])];
            group.us[side] += layer.us;
            group.layers[side] += 1;
        }
    }
    out
}

/// The modules of an engine in the order of execution. Layers that name no node belong to the one before them, or at
/// the start to the one after.
fn runs(layers: &[Layer]) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for (i, layer) in layers.iter().enumerate() {
        let mut stems = stems(&layer.name);
        if let Some(last) = runs.last_mut()
            && (stems.is_empty() || stems[0] == last.stem)
        {
            last.layers = *last.layers.start()..=i;
            stems.drain(..stems.len().min(1));
        }
        for stem in stems {
            let start = if runs.is_empty() { 0 } else { i };
            runs.push(Run { stem, layers: start..=i });
        }
    }
    runs
}

/// The modules that a layer's name speaks of, without repetition one after the other.
fn stems(name: &str) -> Vec<String> {
    let mut stems: Vec<String> = nodes(name).into_iter().map(stem).collect();
    stems.dedup();
    stems
}

/// The ONNX nodes in the name of a layer; of a range, the first and the last.
fn nodes(name: &str) -> Vec<&str> {
    const RANGE: &str = "{ForeignNode[";
    // "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv" is work for that node.
    let mut rest = match name.strip_prefix("Reformatting CopyNode for ") {
        Some(rest) => rest.split_once(" to ").map_or("", |(_, node)| node),
        None => name,
    };
    let mut nodes = vec![];
    // Ranges first: their ends may be joined names themselves.
    while let Some((before, range)) = rest.split_once(RANGE) {
        joined(before, &mut nodes);
        let (range, after) = range.split_once("]}").unwrap_or((range, ""));
        range.split("...").for_each(|end| joined(end, &mut nodes));
        rest = after;
    }
    joined(rest, &mut nodes);
    nodes
}

/// Adds the nodes of `a + PWN(b, c)`. What TensorRT or an exporter made up is no node: it says nothing of a module.
fn joined<'a>(name: &'a str, nodes: &mut Vec<&'a str>) {
    for part in name.split(" + ") {
        let part = part.trim().trim_start_matches("PWN(").trim_end_matches(')');
        let made_up = ["(Unnamed Layer", "[", "onnx::", "ONNXTRT_"];
        let of_model = |n: &&str| !n.is_empty() && !made_up.iter().any(|m| n.starts_with(m));
        nodes.extend(part.split(", ").map(|n| n.trim_start_matches("PWN(").trim_end_matches(')')).filter(of_model));
    }
}

fn stem(node: &str) -> String {
    match node.rsplit_once('/') {
        Some((module, _)) if !module.is_empty() => module.to_owned(),
        _ => node.to_owned(),
    }
}

/// The parts of the network that one engine spends its time in, at most `most` of them.
pub fn parts_of(layers: &[Layer], most: usize) -> Vec<Group> {
    // Lined up with itself, an engine has a group for every module.
    summarize(&align(layers, layers), most)
}

/// Joins groups by the first parts of their module path, as many as leave at most `most` groups.
pub fn summarize(groups: &[Group], most: usize) -> Vec<Group> {
    let deepest = groups.iter().flat_map(|g| &g.stems).map(|s| parts(s).len()).max().unwrap_or(0);
    for depth in (1..=deepest).rev() {
        let joined = by_prefix(groups, depth);
        if joined.len() <= most || depth == 1 {
            return joined;
        }
    }
    groups.to_vec()
}

fn by_prefix(groups: &[Group], depth: usize) -> Vec<Group> {
    let mut out: Vec<Group> = vec![];
    for group in groups {
        let mut stems: Vec<String> = vec![];
        for stem in &group.stems {
            let parts = parts(stem);
            let cut = parts[..parts.len().min(depth)].join("/");
            if !stems.contains(&cut) {
                stems.push(cut);
            }
        }
        match out.iter_mut().find(|g| g.stems == stems) {
            Some(same) => {
                (0..2).for_each(|side| same.us[side] += group.us[side]);
                (0..2).for_each(|side| same.layers[side] += group.layers[side]);
            }
            None => out.push(Group { stems, ..group.clone() }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(names: &[(&str, f64)]) -> Vec<Layer> {
        names.iter().map(|(name, us)| Layer { name: (*name).into(), r#type: String::new(), us: *us }).collect()
    }

    fn group(stems: &[&str], us: [f64; 2], layers: [usize; 2]) -> Group {
        Group { stems: stems.iter().map(|s| (*s).to_owned()).collect(), us, layers }
    }

    #[test]
    fn names_of_layers_speak_of_modules() {
        for (name, expected) in [
            ("/l.0/norm1/ReduceMean", vec!["/l.0/norm1"]),
            ("/l.0/qkv/MatMul + /l.0/qkv/Add", vec!["/l.0/qkv"]),
            ("/conv1/Conv + /relu/Relu", vec!["/conv1", "/relu"]),
            ("PWN(PWN(/act/Div, /act/Erf), /act/Mul)", vec!["/act"]),
            ("{ForeignNode[/l.0/norm1/Sub.../head/Gemm]}", vec!["/l.0/norm1", "/head"]),
            (
                "{ForeignNode[onnx::MatMul_9 + (Unnamed Layer* 5) [Shuffle].../head/Add + /head/Gemm]} + /tail/Mul",
                vec!["/head", "/tail"],
            ),
            ("PWN(/act/Sigmoid) + PWN(/gate/Mul)", vec!["/act", "/gate"]),
            ("[HostToDeviceCopy 0]", vec![]),
            ("Reformatting CopyNode for Input Tensor 0 to /conv1/Conv + /relu/Relu", vec!["/conv1", "/relu"]),
            ("Reformatting CopyNode for Network Input x", vec![]),
            ("(Unnamed Layer* 12) [Shuffle] + /l.0/Transpose", vec!["/l.0"]),
            ("/Conv", vec!["/Conv"]),
            ("node_linear_3", vec!["node_linear_3"]),
        ] {
            assert_eq!(stems(name), expected, "{name}");
        }
    }

    #[test]
    fn a_fused_layer_meets_the_layers_that_it_replaces() {
        let native = layers(&[
            ("/embed/Conv", 5.0),
            ("/b.0/norm/ReduceMean", 2.0),
            ("/b.0/norm/Sub", 3.0),
            ("/b.0/Slice", 1.0),
            ("/b.0/attn/MatMul", 7.0),
            ("/head/Gemm", 4.0),
        ]);
        let fused = layers(&[
            ("/embed/Conv", 5.5),
            ("/b.0/norm/TrtOptLayerNorm", 2.5),
            ("/b.0/attn/MatMul", 6.0),
            ("/head/Gemm", 4.5),
        ]);
        assert_eq!(
            align(&native, &fused),
            [
                group(&["/embed"], [5.0, 5.5], [1, 1]),
                group(&["/b.0/norm"], [5.0, 2.5], [2, 1]),
                group(&["/b.0"], [1.0, 0.0], [1, 0]),
                group(&["/b.0/attn"], [7.0, 6.0], [1, 1]),
                group(&["/head"], [4.0, 4.5], [1, 1]),
            ]
        );
    }

    #[test]
    fn one_layer_for_all_from_here_to_there_takes_in_all_between() {
        let native =
            layers(&[("/embed/Conv", 5.0), ("{ForeignNode[/b.0/norm/Sub.../b.1/mlp/Add]}", 50.0), ("/head/Gemm", 4.0)]);
        let fused = layers(&[
            ("/embed/Conv", 5.0),
            ("/b.0/norm/TrtOptLayerNorm", 2.0),
            ("/b.0/attn/MatMul", 6.0),
            ("/b.1/mlp/MatMul", 9.0),
            ("/head/Gemm", 4.0),
        ]);
        let groups = align(&native, &fused);
        assert_eq!(groups.len(), 3);
        assert_eq!(groups[1], group(&["/b.0/norm", "/b.0/attn", "/b.1/mlp"], [50.0, 17.0], [1, 3]));
        assert_eq!(groups[1].label(), "b.0/norm … b.1/mlp");
    }

    #[test]
    fn layers_without_a_name_go_with_their_neighbours() {
        let a =
            layers(&[("(Unnamed Layer* 0) [Shuffle]", 1.0), ("/x/Conv", 2.0), ("(Unnamed Layer* 2) [Shuffle]", 4.0)]);
        assert_eq!(align(&a, &a), [group(&["/x"], [7.0, 7.0], [3, 3])]);
        let unnamed = layers(&[("(Unnamed Layer* 0) [Shuffle]", 1.0)]);
        assert_eq!(align(&unnamed, &[]), [group(&[], [1.0, 0.0], [1, 0])]);
        assert_eq!(align(&unnamed, &[])[0].label(), "(unnamed)");
        assert_eq!(align(&[], &[]), []);
    }

    #[test]
    fn labels_are_what_the_modules_share() {
        let label = |stems: &[&str]| group(stems, [0.0; 2], [0; 2]).label();
        assert_eq!(label(&["/l.0/b.1/norm", "/l.0/b.1/attn", "/l.0/b.1/mlp"]), "l.0/b.1 (norm \u{2026} mlp)");
        assert_eq!(label(&["/l.0/b.1", "/l.0/b.1/attn"]), "l.0/b.1 (attn)");
        assert_eq!(label(&["/l.0/b.1/norm", "/l.0/b.1/mlp", "/l.0/b.1"]), "l.0/b.1 (norm \u{2026} mlp)");
        assert_eq!(label(&["/l.0/b.1/norm", "/head"]), "l.0/b.1/norm \u{2026} head");
        assert_eq!((label(&["/"]), label(&[])), ("/".into(), "(unnamed)".into()));
        assert_eq!(group(&["/l.0"], [0.0; 2], [0; 2]).label(), "l.0");
    }

    #[test]
    fn one_engine_has_parts() {
        let layers = layers(&[("/a/x/Add", 1.0), ("/a/y/Mul", 2.0), ("/b/x/Add", 4.0)]);
        let parts = |most| parts_of(&layers, most).iter().map(|g| (g.label(), g.us[0])).collect::<Vec<_>>();
        assert_eq!(parts(9), [("a/x".into(), 1.0), ("a/y".into(), 2.0), ("b/x".into(), 4.0)]);
        assert_eq!(parts(2), [("a".into(), 3.0), ("b".into(), 4.0)]);
    }

    #[test]
    fn summaries_join_what_begins_alike() {
        let groups = [
            group(&["/l.0/b.0/norm"], [1.0, 2.0], [1, 1]),
            group(&["/l.0/b.0/attn"], [3.0, 4.0], [1, 2]),
            group(&["/l.0/b.1/norm"], [5.0, 6.0], [1, 1]),
            group(&["/head"], [7.0, 8.0], [1, 1]),
        ];
        assert_eq!(summarize(&groups, 4), by_prefix(&groups, 3));
        let blocks = summarize(&groups, 3);
        assert_eq!(blocks.iter().map(Group::label).collect::<Vec<_>>(), ["l.0/b.0", "l.0/b.1", "head"]);
        assert_eq!(blocks[0].us, [4.0, 6.0]);
        assert_eq!(summarize(&groups, 1).len(), 2);
    }

    proptest! {
        /// No layer is lost or counted twice, whatever the names are.
        #[test]
        fn every_layer_is_in_one_group(a in names(), b in names()) {
            let timed = |names: &[String]| -> Vec<Layer> {
                let layer = |(i, name): (usize, &String)| Layer { name: name.clone(), r#type: String::new(), us: (i + 1) as f64 };
                names.iter().enumerate().map(layer).collect()
            };
            let (a, b) = (timed(&a), timed(&b));
            let groups = align(&a, &b);
            for (side, layers) in [&a, &b].into_iter().enumerate() {
                prop_assert_eq!(groups.iter().map(|g| g.layers[side]).sum::<usize>(), layers.len());
                prop_assert_eq!(groups.iter().map(|g| g.us[side]).sum::<f64>(), layers.iter().map(|l| l.us).sum::<f64>());
            }
            let summary: f64 = summarize(&groups, 3).iter().map(|g| g.us[0]).sum();
            prop_assert_eq!(summary, a.iter().map(|l| l.us).sum::<f64>());
        }
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        let name = prop_oneof![
            "/[ab]\\.[01]/(norm|attn|mlp)/(Add|Mul)",
            "/[ab]\\.[01]/norm/Add \\+ /[ab]\\.[01]/mlp/Mul",
            "\\{ForeignNode\\[/[ab]\\.0/norm/Sub\\.\\.\\./[ab]\\.1/mlp/Add\\]\\}",
            "\\(Unnamed Layer\\* [0-9]\\) \\[Shuffle\\]",
            ".{1,12}",
        ];
        proptest::collection::vec(name, 0..14)
    }
}
