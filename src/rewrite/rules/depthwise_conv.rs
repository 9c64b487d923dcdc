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

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{DepthwiseConv, KERNELS};
use crate::rewrite::pattern::{float_tensor, fused_name, only_user};
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output};
use crate::rewrite::rules::token_map::{self, Ends, Map, Moves, ends, tokens_before};

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

/// A depthwise convolution that keeps the size of its map, which is tokens before it or behind it.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { return false };
    let Some(y) = node.output(0).filter(|_| is_depthwise(graph, id)) else { return false };
    if graph.shape(x) != graph.shape(y) || graph.rank(w) != Some(4) {
        return false;
    }
    let (out, _) = end_of(graph, x, y);
    tokens_before(graph, x).is_some() || !ends(graph, out, &|_| false).tokens.is_empty()
}

/// Whether the node is a convolution of each channel of a map by itself.
pub fn is_depthwise(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let map = node.input(0).filter(|_| node.is("Conv")).and_then(|x| Map::of(graph, x));
    map.is_some_and(|map| map.channels > 1 && node.int("group") == Some(map.channels))
}

/// What is behind the convolution `y` of `x` and the sum of both, if that is all that reads it; and the Add.
pub fn end_of(graph: &Graph, x: ValueId, y: ValueId) -> (ValueId, Option<NodeId>) {
    let add = only_user(graph, y).filter(|&user| {
        let (node, xy) = (graph.node(user), [Some(x), Some(y)]);
        node.is("Add") && (node.inputs == xy || node.inputs == [xy[1], xy[0]])
    });
    match add.and_then(|id| Some((graph.node(id).output(0)?, id))) {
        Some((sum, id)) => (sum, Some(id)),
        None => (y, None),
    }
}

/// A depthwise convolution that the op can be, with the sum of it and of what it reads, if there is one.
pub struct Depthwise {
    op: DepthwiseConv,
    pub x: ValueId,
    w: ValueId,
    b: Option<ValueId>,
    pub out: ValueId,
    /// The convolution and the Add.
    pub covers: Vec<NodeId>,
}

impl Depthwise {
    pub fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(conv);
        let miss = |reason: &str| Miss::new(label, reason);
        let (Some(x), Some(w), b) = (node.input(0), node.input(1), node.input(2)) else {
            return Err(miss("it has no operands"));
        };
        let map = Map::of(graph, x).ok_or_else(|| miss("it is of no map of known size"))?;
        check_operands(graph, label, x, std::iter::once(w).chain(b))?;
        let kernel = kernel(graph, node, w, &map, label)?;
        let (out, add) = end_of(graph, x, output(graph, conv)?);
        let op = DepthwiseConv { grid: map.sides, kernel, residual: add.is_some() };
        let covers = [conv].into_iter().chain(add).collect();
        Ok(Self { op, x, w, b, out, covers })
    }

    /// The node that makes tokens of tokens.
    pub fn node(&self, patch: &mut Patch, graph: &Graph, tokens: ValueId, name: &str) -> Option<ValueId> {
        let w = patch.constant(&format!("{name}/w"), channels_last(graph, self.w)?);
        let (dtype, shape) = (graph.dtype(self.x), Map::of(graph, self.out)?.tokens()?);
        let y = patch.value(name, dtype, Some(shape.to_vec()));
        patch.node(Node { name: name.into(), ..self.op.node(tokens, w, self.b) }, [y]);
        Some(y)
    }
}

/// The weights `[D, ...]` of a convolution as a matrix `[..., D]`.
pub fn channels_last(graph: &Graph, w: ValueId) -> Option<TensorProto> {
    let shape = graph.static_shape(w)?;
    let (&rows, sizes) = shape.split_first()?;
    let columns: i64 = sizes.iter().product();
    let (height, width) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
    let values = graph.constant(w)?.to_f64_vec().ok().filter(|v| Some(v.len()) == height.checked_mul(width))?;
    let moved: Vec<f64> = (0..values.len()).map(|i| values[i % height * width + i / height]).collect();
    float_tensor(graph.dtype(w)?, &[columns, rows], &moved)
}

/// A miss unless the plugin takes the type of `x`, and the operands are constants of it.
pub fn check_operands(graph: &Graph, label: &str, x: ValueId, operands: impl Iterator<Item = ValueId>) -> Outcome<()> {
    let dtype = graph.dtype(x).filter(|dtype| [DType::F32, DType::F16].contains(dtype));
    let dtype = dtype.ok_or_else(|| {
        let found = graph.dtype(x).map_or("an unknown type", DType::name);
        Miss::new(label, "the plugin takes no such type").expected("float or float16", found)
    })?;
    for v in operands {
        if graph.constant(v).is_none() || graph.dtype(v) != Some(dtype) {
            return Err(Miss::new(&graph.value(v).name, "an operand of the convolution is no weight of its type")
                .expected(format!("a constant of {}", dtype.name()), "another value"));
        }
    }
    Ok(())
}

/// A whole site.
struct Encoding {
    conv: Depthwise,
    ends: Ends,
}

impl Encoding {
    fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let conv = Depthwise::of(graph, conv, label)?;
        let ends = ends(graph, conv.out, &|_| false);
        let mut moves = Moves::default();
        moves.enter(graph, conv.x, &|user| conv.covers.contains(&user));
        moves.leave(&ends);
        moves.check(label)?;
        Ok(Self { conv, ends })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let Self { conv, ends } = self;
        let name = fused_name(graph, label, "TrtOptDepthwiseConv");
        let mut patch = Patch::new(graph, RULE);
        let make = |patch: &mut Patch| {
            let x = token_map::enter(patch, graph, conv.x, &name)?;
            let y = conv.node(patch, graph, x, &name)?;
            token_map::leave(patch, graph, y, conv.out, &ends, &name)
        };
        make(&mut patch).ok_or_else(|| Miss::new(label, "the shapes do not suit the plugin"))?;
        patch.cover(conv.covers.iter().copied());
        Ok(Fusion { patch, name, covers: conv.covers })
    }
}

/// The size of the kernel, if the plugin has it and it keeps the size of the map.
fn kernel(graph: &Graph, node: &Node, w: ValueId, map: &Map, label: &str) -> Outcome<i64> {
    let miss = |reason: &str| Miss::new(label, reason);
    let shape = graph.static_shape(w).unwrap_or_default();
    let size = match shape[..] {
        [rows, 1, height, width] if rows == map.channels && height == width && KERNELS.contains(&height) => height,
        _ => {
            return Err(miss("the plugin has no such kernel")
                .expected(format!("[{}, 1, k, k] where k is 3, 5 or 7", map.channels), format!("{shape:?}")));
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
