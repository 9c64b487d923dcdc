//! Depthwise convolutions of a map that lies as tokens before or behind them, such as UniFormer's position encodings.
//!
//! ```text
//! tokens -> Transpose = m -> Conv [-> Add (with m)] -> Transpose = y     becomes   tokens -> TrtOptDepthwiseConv -> y
//! ```
//!
//! The index map proves that the map is the tokens and that tokens are made of it, through whatever Reshapes and Transposes. Where
//! one side stays a map, one Transpose takes the place of another; a site that would need more is missed.
//!
//! Runs behind the embeddings, whose tokens the first convolution of a stage reads.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{DepthwiseConv, KERNELS};
use crate::rewrite::pattern::{float_tensor, fused_name, only_user};
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output};

const RULE: &str = "depthwise-conv";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::DepthwiseConv,
        name: RULE,
        // The site is called after the convolution, which is no site of another kind.
        part: Kind::DepthwiseConv,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Encoding::of(graph, conv, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// Images, channels, height and width of a map.
pub type Map = (Dim, [i64; 3]);

pub fn map_of(graph: &Graph, value: ValueId) -> Option<Map> {
    let [images, Dim::Int(channels), Dim::Int(height), Dim::Int(width)] = graph.shape(value)? else { return None };
    Some((images.clone(), [*channels, *height, *width]))
}

/// A depthwise convolution that keeps the size of its map, which is tokens before it or behind it.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { return false };
    let (Some((_, [channels, ..])), Some(y)) = (map_of(graph, x), node.output(0)) else { return false };
    let depthwise = channels > 1 && node.int("group") == Some(channels);
    if !node.is("Conv") || !depthwise || graph.shape(x) != graph.shape(y) || graph.rank(w) != Some(4) {
        return false;
    }
    let (out, _) = end_of(graph, x, y);
    tokens_before(graph, x).is_some() || !ends(graph, out).tokens.is_empty()
}

/// What is behind the convolution `y` of `x` and the sum of both, if that is all that reads it; and the Add.
fn end_of(graph: &Graph, x: ValueId, y: ValueId) -> (ValueId, Option<NodeId>) {
    let add = only_user(graph, y).filter(|&user| {
        let (node, xy) = (graph.node(user), [Some(x), Some(y)]);
        node.is("Add") && (node.inputs == xy || node.inputs == [xy[1], xy[0]])
    });
    match add.and_then(|id| Some((graph.node(id).output(0)?, id))) {
        Some((sum, id)) => (sum, Some(id)),
        None => (y, None),
    }
}

/// The tokens that the map is a view of, channels last.
pub fn tokens_before(graph: &Graph, map: ValueId) -> Option<ValueId> {
    let (_, [channels, _, width]) = map_of(graph, map)?;
    let view = movement::strided(graph, map, graph.shape(map)?, &Walk::default())?;
    let image = Dim::product(&graph.shape(map)?[1..])?.int()?;
    let whole = Dim::product(graph.shape(view.source)?) == Dim::product(graph.shape(map)?);
    let moved = view.source != map && graph.constant(view.source).is_none();
    let fits = view.offset == 0 && view.has(&[image, 1, width * channels, channels]);
    (whole && moved && fits).then_some(view.source)
}

/// What is made of a map.
#[derive(Default)]
pub struct Ends {
    /// Values that are its tokens, channels last.
    pub tokens: Vec<ValueId>,
    /// Whether it is read otherwise too.
    pub map: bool,
}

pub fn ends(graph: &Graph, map: ValueId) -> Ends {
    let mut ends = Ends { tokens: vec![], map: graph.is_output(map) || graph.is_named_elsewhere(map) };
    collect(graph, map, map, DEPTH, &mut ends);
    ends
}

/// How many nodes tokens may be behind a map.
const DEPTH: u32 = 8;

fn collect(graph: &Graph, map: ValueId, value: ValueId, depth: u32, ends: &mut Ends) {
    for &user in graph.uses(value) {
        let node = graph.node(user);
        let moved = node.output(0).filter(|&out| node.input(0) == Some(value) && movement::is_moved(graph, out));
        match moved {
            Some(out) if is_tokens(graph, map, out) => ends.tokens.push(out),
            Some(out) if depth > 0 && !graph.is_output(out) && !graph.is_named_elsewhere(out) => {
                collect(graph, map, out, depth - 1, ends);
            }
            _ => ends.map = true,
        }
    }
}

fn is_tokens(graph: &Graph, map: ValueId, value: ValueId) -> bool {
    let view = || {
        let (images, [channels, height, width]) = map_of(graph, map)?;
        let (line, image) = (height.checked_mul(width)?, height.checked_mul(width)?.checked_mul(channels)?);
        let stop = |v| v == map;
        let walk = Walk { stop: &stop, ..Walk::default() };
        let view = movement::strided(graph, value, &[images, line.into(), channels.into()], &walk)?;
        Some(view.source == map && view.offset == 0 && view.has(&[image, 1, line]))
    };
    view().unwrap_or(false)
}

/// A whole site.
struct Encoding {
    op: DepthwiseConv,
    map: Map,
    /// The map, and the tokens that it is a view of.
    x: ValueId,
    source: Option<ValueId>,
    w: ValueId,
    b: Option<ValueId>,
    out: ValueId,
    ends: Ends,
    covers: Vec<NodeId>,
}

impl Encoding {
    fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(conv);
        let miss = |reason: &str| Miss::new(label, reason);
        let (Some(x), Some(w), b) = (node.input(0), node.input(1), node.input(2)) else {
            return Err(miss("it has no operands"));
        };
        let map = map_of(graph, x).ok_or_else(|| miss("it is of no map of known size"))?;
        let dtype = graph.dtype(x).filter(|dtype| [DType::F32, DType::F16].contains(dtype));
        let dtype = dtype.ok_or_else(|| {
            let found = graph.dtype(x).map_or("an unknown type", DType::name);
            miss("the plugin takes no such type").expected("float or float16", found)
        })?;
        for v in std::iter::once(w).chain(b) {
            if graph.constant(v).is_none() || graph.dtype(v) != Some(dtype) {
                return Err(Miss::new(&graph.value(v).name, "an operand of the convolution is no weight of its type")
                    .expected(format!("a constant of {}", dtype.name()), "another value"));
            }
        }
        let kernel = kernel(graph, node, w, &map, label)?;
        let (out, add) = end_of(graph, x, output(graph, conv)?);
        let (source, ends) = (tokens_before(graph, x), ends(graph, out));
        // Transposes: that before it goes where nothing else reads the map.
        let own = |user: &NodeId| *user == conv || Some(*user) == add;
        let alone = !graph.is_output(x) && graph.uses(x).iter().all(own);
        let before = usize::from(source.is_some() && alone) + ends.tokens.len();
        let after = usize::from(source.is_none()) + usize::from(ends.map);
        if after > before {
            return Err(miss("more would be moved than now")
                .expected(format!("at most {before} transpositions"), format!("{after}")));
        }
        let op = DepthwiseConv { grid: [map.1[1], map.1[2]], kernel, residual: add.is_some() };
        let covers = [conv].into_iter().chain(add).collect();
        Ok(Self { op, map, x, source, w, b, out, ends, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let unfit = || Miss::new(label, "the shapes do not suit the plugin");
        let name = fused_name(graph, label, "TrtOptDepthwiseConv");
        let mut patch = Patch::new(graph, RULE);
        let (dtype, (images, [channels, height, width])) = (graph.dtype(self.x), self.map);
        let grid = [images.clone(), height.into(), width.into(), channels.into()];
        let line = height.checked_mul(width).ok_or_else(unfit)?;
        let tokens = [images, line.into(), channels.into()];
        let transpose = |patch: &mut Patch, value: ValueId, perm: &[i64], name: String, shape: &[Dim]| {
            let y = patch.value(&name, dtype, Some(shape.to_vec()));
            let node = Node { name, ..Node::new("Transpose", [value]) }.with(AttributeProto::ints("perm", perm));
            patch.node(node, [y]);
            y
        };
        let source = match self.source {
            Some(source) => source,
            None => transpose(&mut patch, self.x, &[0, 2, 3, 1], format!("{name}/tokens"), &grid),
        };
        let x = patch.reshape(graph, source, &tokens, &format!("{name}/x")).ok_or_else(unfit)?;
        let packed = packed(graph, self.w, self.op.kernel, channels).ok_or_else(unfit)?;
        let w = patch.constant(&format!("{name}/w"), packed);
        let y = patch.value(&name, dtype, Some(tokens.to_vec()));
        let mut fused = self.op.node(x, w, self.b);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        for (i, &end) in self.ends.tokens.iter().enumerate() {
            let shape = graph.shape(end).ok_or_else(unfit)?;
            let new = patch.reshape(graph, y, shape, &format!("{name}/tokens_{i}")).ok_or_else(unfit)?;
            patch.replace(end, new);
        }
        if self.ends.map {
            let y = patch.reshape(graph, y, &grid, &format!("{name}/grid")).ok_or_else(unfit)?;
            let shape = graph.shape(self.out).ok_or_else(unfit)?.to_vec();
            let map = transpose(&mut patch, y, &[0, 3, 1, 2], format!("{name}/map"), &shape);
            patch.replace(self.out, map);
        }
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

/// The size of the kernel, if the plugin has it and it keeps the size of the map.
fn kernel(graph: &Graph, node: &Node, w: ValueId, map: &Map, label: &str) -> Outcome<i64> {
    let miss = |reason: &str| Miss::new(label, reason);
    let shape = graph.static_shape(w).unwrap_or_default();
    let size = match shape[..] {
        [rows, 1, height, width] if rows == map.1[0] && height == width && KERNELS.contains(&height) => height,
        _ => {
            return Err(miss("the plugin has no such kernel")
                .expected(format!("[{}, 1, k, k] where k is 3, 5 or 7", map.1[0]), format!("{shape:?}")));
        }
    };
    let differs = |name: &str, wanted: &[i64]| node.ints(name).is_some_and(|found| found != wanted);
    for (name, wanted) in [("strides", [1; 2]), ("dilations", [1; 2]), ("kernel_shape", [size; 2])] {
        if differs(name, &wanted) {
            return Err(miss("it goes over the map in other steps")
                .expected(format!("{name} {wanted:?}"), format!("{:?}", node.ints(name).unwrap_or_default())));
        }
    }
    // Of an odd kernel, all ways of keeping the size are one.
    let same = matches!(node.string("auto_pad"), Some("SAME_UPPER" | "SAME_LOWER"));
    let pads = node.ints("pads").unwrap_or(&[0; 4]);
    if !same && pads != [size / 2; 4] {
        return Err(miss("it is padded otherwise than all around").expected(
            format!("pads {:?}", [size / 2; 4]),
            format!("{pads:?} of {}", shape_text(graph.shape(node.input(0).unwrap_or(w)).unwrap_or_default())),
        ));
    }
    Ok(size)
}

/// The weights `[C, 1, k, k]` as `[k*k, C]`.
fn packed(graph: &Graph, w: ValueId, kernel: i64, channels: i64) -> Option<crate::onnx::proto::TensorProto> {
    let (places, channels) = ((kernel * kernel) as usize, channels as usize);
    let values = graph.constant(w)?.to_f64_vec().ok().filter(|values| values.len() == places * channels)?;
    let packed: Vec<f64> = (0..places * channels).map(|i| values[i % channels * places + i / channels]).collect();
    float_tensor(graph.dtype(w)?, &[places as i64, channels as i64], &packed)
}
