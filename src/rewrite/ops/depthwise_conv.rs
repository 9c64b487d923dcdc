//! `TrtOptDepthwiseConv`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptDepthwiseConv",
    summary: "depthwise convolution of tokens of a map, zeros around it, added to x if residual = 1",
    replaces: "Transpose, depthwise Conv, Add, Transpose",
    inputs: &[
        port("x", "[B, H*W, C]"),
        port("w", "[k*k, C], rows as (row, column) of the kernel"),
        optional("b", "[C]; there if bias = 1"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("kernel", AttributeKind::Int, "height and width of the kernel: 3, 5 or 7"),
        attribute("bias", AttributeKind::Int, "1: b is there"),
        attribute("residual", AttributeKind::Int, "1: x is added"),
    ],
    shapes,
    body,
    work: |node, inputs, outputs| {
        let (elements, places) = (count(outputs.first()?)?, u64::try_from(*inputs.get(1)?.first()?).ok()?);
        let adds = elements.checked_mul(u64::from(node.int("residual")? != 0))?;
        let macs = elements.checked_mul(places)?;
        Some((macs.checked_mul(2)?.checked_add(adds)?, macs))
    },
};

/// Sizes of a kernel that the plugin takes.
pub const KERNELS: [i64; 3] = [3, 5, 7];

/// The attributes of a `TrtOptDepthwiseConv`, but for those that its inputs tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseConv {
    pub grid: [i64; 2],
    pub kernel: i64,
    pub residual: bool,
}

impl DepthwiseConv {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, w: ValueId, b: Option<ValueId>) -> Node {
        let inputs = [x, w].into_iter().chain(b);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(b.is_some())) }
    }

    pub(super) fn attributes(&self, bias: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::int("kernel", self.kernel),
            AttributeProto::int("bias", bias.into()),
            AttributeProto::int("residual", self.residual.into()),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let kernel = node.int("kernel").filter(|size| KERNELS.contains(size))?;
        Some(Self { grid: pair(node, "grid")?, kernel, residual: node.int("residual")? != 0 })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = DepthwiseConv::of(node)?;
    let x = node.input(0)?;
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [_, Dim::Int(tokens), Dim::Int(channels)] = shape else { return None };
    let fits = op.grid.iter().all(|&n| n > 0) && op.grid[0].checked_mul(op.grid[1]) == Some(*tokens);
    let weights = graph.static_shape(node.input(1)?)? == [op.kernel * op.kernel, *channels];
    let offset = node.int("bias")? == 0 || graph.static_shape(node.input(2)?)? == [*channels];
    (fits && weights && offset).then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = DepthwiseConv::of(node)?;
    shapes(graph, node)?;
    let x = node.input(0)?;
    let (dtype, channels) = (graph.dtype(x)?, graph.shape(x)?.last()?.int()?);
    let float = |body: &mut Body, name: &str| {
        let value = body.input(name);
        body.cast(&value, DType::F32)
    };
    let (x, w) = (float(body, "x"), float(body, "w"));
    let b = (node.int("bias")? != 0).then(|| float(body, "b"));
    let y = steps(body, &op, channels, &x, &w, b.as_deref());
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// What the op computes of tokens and weights, all of them float values.
pub(super) fn steps(body: &mut Body, op: &DepthwiseConv, channels: i64, x: &str, w: &str, b: Option<&str>) -> String {
    let ([height, width], kernel) = (op.grid, op.kernel);
    let map = body.reshape(x, &[-1, height, width, channels]);
    let map = body.transpose(&map, &[0, 3, 1, 2]);
    let w = body.transpose(w, &[1, 0]);
    let w = body.reshape(&w, &[channels, 1, kernel, kernel]);
    let operands: Vec<&str> = [map.as_str(), w.as_str()].into_iter().chain(b).collect();
    let attributes = vec![
        AttributeProto::int("group", channels),
        AttributeProto::ints("kernel_shape", &[kernel; 2]),
        AttributeProto::ints("pads", &[kernel / 2; 4]),
    ];
    let map = body.op("Conv", &operands, attributes);
    let tokens = body.transpose(&map, &[0, 2, 3, 1]);
    let y = body.reshape(&tokens, &[-1, height * width, channels]);
    if op.residual { body.op("Add", &[x, &y], vec![]) } else { y }
}
