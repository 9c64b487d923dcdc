//! `TrtOptAttention`.

use super::body::Body;
use super::{
    AttributeDef, AttributeKind, OpDef, PortDef, Shapes, WindowMap, attribute, count, is, optional, plugin_node, port,
};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto};

pub(super) const BIAS: PortDef = optional("bias", "bias = 1: [P, h or 1, N, M]; bias = 2: [(2*wh-1)*(2*ww-1), h]");
pub(super) const MASK: PortDef = optional("mask", "mask = 1: [P, N, M]");

/// What [`Attention::score_attributes`] gives.
pub(super) const SCORE_ATTRIBUTES: [AttributeDef; 5] = [
    attribute("num_heads", AttributeKind::Int, "h"),
    attribute("scale", AttributeKind::Float, "multiplies the scores"),
    attribute("bias", AttributeKind::Int, "0 none, 1 dense, 2 relative-position table"),
    attribute("mask", AttributeKind::Int, "0 none, 1 dense, 2 shift mask from indices"),
    attribute("mask_value", AttributeKind::Float, "what mask = 2 adds between regions"),
];

pub static DEF: OpDef = OpDef {
    name: "TrtOptAttention",
    summary: "softmax(Q K^T * scale + bias + mask) V with head split and merge inside",
    replaces: "Reshape/Transpose/Gather/Mul/MatMul/Add/Softmax/MatMul/Transpose/Reshape",
    inputs: &[
        port("q", "as layout says; holds k and v too if packed"),
        optional("k", "as layout says"),
        optional("v", "as layout says"),
        BIAS,
        MASK,
    ],
    outputs: &[port("out", "[B, N, h*dv]")],
    attributes: &[
        SCORE_ATTRIBUTES[0],
        SCORE_ATTRIBUTES[1],
        attribute("layout", AttributeKind::String, "qkv, q_kv, qk_v, q_k_v or bhnd"),
        SCORE_ATTRIBUTES[2],
        SCORE_ATTRIBUTES[3],
        SCORE_ATTRIBUTES[4],
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map, for mask = 2"),
        attribute("window", AttributeKind::Ints(2), "height and width of a window, for bias = 2 and mask = 2"),
        attribute("shift", AttributeKind::Ints(2), "cyclic shift, for mask = 2"),
    ],
    shapes,
    body,
    work: |node, inputs, outputs| {
        // N M (d + dv) multiply-adds a head: d and dv are the same but where the layout lets them differ.
        let layout = Layout::parse(node.string("layout")?)?;
        let heads = node.int("num_heads").filter(|&h| h > 0)?;
        let (out, q) = (outputs.first()?, inputs.first()?);
        let (keys, d) = match layout {
            Layout::Qkv => (out[1], q[2] / (3 * heads)),
            Layout::QkV => (out[1], q[2] / (2 * heads)),
            Layout::QKv | Layout::QKV3 => (*inputs.get(1)?.get(1)?, q[2] / heads),
            Layout::Bhnd => (*inputs.get(1)?.get(2)?, *q.get(3)?),
        };
        let scores = count(&[out[0], heads, out[1], keys])?;
        let macs = scores.checked_mul(u64::try_from(d + out[2] / heads).ok()?)?;
        Some((macs.checked_mul(2)?.checked_add(scores.checked_mul(5)?)?, macs))
    },
};

/// How Q, K and V come; see `docs/ops.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One input `[B, N, 3*h*d]`.
    Qkv,
    /// `[B, N, h*d]` and `[B, M, 2*h*d]`.
    QKv,
    /// `[B, N, 2*h*d]` and `[B, N, h*dv]`.
    QkV,
    /// Three inputs of rank 3.
    QKV3,
    /// Three inputs of rank 4, heads before tokens.
    Bhnd,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::QKv => "q_kv",
            Self::QkV => "qk_v",
            Self::QKV3 => "q_k_v",
            Self::Bhnd => "bhnd",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Qkv, Self::QKv, Self::QkV, Self::QKV3, Self::Bhnd].into_iter().find(|l| l.name() == name)
    }

    /// How many inputs hold queries, keys and values.
    pub fn inputs(self) -> usize {
        match self {
            Self::Qkv => 1,
            Self::QKv | Self::QkV => 2,
            Self::QKV3 | Self::Bhnd => 3,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// `[P, h or 1, N, M]`.
    Dense(ValueId),
    /// `[(2*wh-1)*(2*ww-1), h]`.
    Table(ValueId),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// `[P, N, M]`.
    Dense(ValueId),
    /// This value between tokens of different regions of the shifted map.
    Shift(f32),
}

/// The attributes and optional inputs of a `TrtOptAttention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub num_heads: i64,
    pub scale: f32,
    pub layout: Layout,
    pub bias: Option<Bias>,
    pub mask: Option<Mask>,
    /// Window for a bias table; grid, window and shift for a shift mask. `pad_after_roll` is not used.
    pub map: WindowMap,
}

impl Attention {
    /// The node, without outputs; `qkv` as the layout says.
    pub fn node(&self, qkv: &[ValueId]) -> Node {
        let mut attributes = self.score_attributes();
        attributes.insert(2, AttributeProto::string("layout", self.layout.name()));
        attributes.extend([
            AttributeProto::ints("grid", &self.map.grid),
            AttributeProto::ints("window", &self.map.window),
            AttributeProto::ints("shift", &self.map.shift),
        ]);
        let inputs = qkv.iter().copied().chain(self.inputs()).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, attributes) }
    }

    /// Bias and mask, where they are inputs.
    pub(super) fn inputs(&self) -> impl Iterator<Item = ValueId> + use<> {
        let bias = self.bias.map(|(Bias::Dense(v) | Bias::Table(v))| v);
        let mask = match self.mask {
            Some(Mask::Dense(v)) => Some(v),
            _ => None,
        };
        bias.into_iter().chain(mask)
    }

    /// How scores are made of queries and keys.
    pub(super) fn score_attributes(&self) -> Vec<AttributeProto> {
        let bias = match self.bias {
            None => 0,
            Some(Bias::Dense(_)) => 1,
            Some(Bias::Table(_)) => 2,
        };
        let (mask, mask_value) = match self.mask {
            None => (0, 0.0),
            Some(Mask::Dense(_)) => (1, 0.0),
            Some(Mask::Shift(value)) => (2, value),
        };
        vec![
            AttributeProto::int("num_heads", self.num_heads),
            AttributeProto::float("scale", self.scale),
            AttributeProto::int("bias", bias),
            AttributeProto::int("mask", mask),
            AttributeProto::float("mask_value", mask_value),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let layout = Layout::parse(node.string("layout")?)?;
        Self::parse(node, layout, layout.inputs())
    }

    /// The same of a node that has bias and mask from input `next` on.
    pub(super) fn parse(node: &Node, layout: Layout, mut next: usize) -> Option<Self> {
        let mut take = || {
            next += 1;
            node.input(next - 1)
        };
        let bias = match node.int("bias")? {
            0 => None,
            1 => Some(Bias::Dense(take()?)),
            2 => Some(Bias::Table(take()?)),
            _ => return None,
        };
        let mask = match node.int("mask")? {
            0 => None,
            1 => Some(Mask::Dense(take()?)),
            2 => Some(Mask::Shift(node.float("mask_value")?)),
            _ => return None,
        };
        Some(Self {
            num_heads: node.int("num_heads").filter(|&h| h > 0)?,
            scale: node.float("scale")?,
            layout,
            bias,
            mask,
            map: WindowMap::of(node)?,
        })
    }
}

/// Sizes of one attention.
struct Sizes {
    batch: Dim,
    /// Query tokens, key tokens, head size of Q and K, head size of V.
    n: i64,
    m: i64,
    d: i64,
    dv: i64,
}

fn sizes(graph: &Graph, node: &Node, op: &Attention) -> Option<Sizes> {
    let shape = |i: usize| graph.shape(node.input(i)?);
    let h = op.num_heads;
    let per_head = |channels: &Dim, parts: i64| channels.div_exact(&(h * parts).into())?.int();
    let rank3 = |i: usize| match shape(i)? {
        [b, n, c] => Some((b.clone(), n.int()?, c.clone())),
        _ => None,
    };
    let rank4 = |i: usize| match shape(i)? {
        [b, heads, n, d] if *heads == Dim::Int(h) => Some((b.clone(), n.int()?, d.int()?)),
        _ => None,
    };
    Some(match op.layout {
        Layout::Qkv => {
            let (batch, n, c) = rank3(0)?;
            let d = per_head(&c, 3)?;
            Sizes { batch, n, m: n, d, dv: d }
        }
        Layout::QKv => {
            let ((batch, n, c), (_, m, kv)) = (rank3(0)?, rank3(1)?);
            let (d, dv) = (per_head(&c, 1)?, per_head(&kv, 2)?);
            Sizes { batch, n, m, d, dv }
        }
        Layout::QkV => {
            let ((batch, n, qk), (_, m, c)) = (rank3(0)?, rank3(1)?);
            Sizes { batch, n, m, d: per_head(&qk, 2)?, dv: per_head(&c, 1)? }
        }
        Layout::QKV3 => {
            let ((batch, n, c), (_, m, v)) = (rank3(0)?, rank3(2)?);
            Sizes { batch, n, m, d: per_head(&c, 1)?, dv: per_head(&v, 1)? }
        }
        Layout::Bhnd => {
            let ((batch, n, d), (_, m, dv)) = (rank4(0)?, rank4(2)?);
            Sizes { batch, n, m, d, dv }
        }
    })
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = Attention::of(node)?;
    let s = sizes(graph, node, &op)?;
    Some(vec![Some((graph.dtype(node.input(0)?)?, vec![s.batch, s.n.into(), (op.num_heads * s.dv).into()]))])
}

/// The region of padded position `(y, x)`: tokens of different regions must not see each other.
pub fn region(map: &WindowMap, y: i64, x: i64) -> (i64, i64) {
    let band = |i: i64, size: i64, window: i64, shift: i64| {
        if shift == 0 || i < size - window {
            0
        } else if i < size - shift {
            1
        } else {
            2
        }
    };
    let [hp, wp] = map.padded();
    (band(y, hp, map.window[0], map.shift[0]), band(x, wp, map.window[1], map.shift[1]))
}

/// The shift mask `[nW, N, N]`: 0 within a region, `value` between regions.
fn shift_mask(map: &WindowMap, value: f32) -> Vec<f32> {
    let ([wh, ww], across) = (map.window, map.padded()[1] / map.window[1]);
    let n = map.tokens();
    let mut mask = Vec::with_capacity((map.windows() * n * n) as usize);
    for window in 0..map.windows() {
        let (top, left) = (window / across * wh, window % across * ww);
        let regions: Vec<_> = (0..n).map(|t| region(map, top + t / ww, left + t % ww)).collect();
        for query in &regions {
            mask.extend(regions.iter().map(|key| if query == key { 0.0 } else { value }));
        }
    }
    mask
}

/// Row of the bias table for each (query, key), row major.
pub fn table_index(window: [i64; 2]) -> Vec<i64> {
    let [wh, ww] = window;
    let n = wh * ww;
    let row = |q: i64, k: i64| (q / ww - k / ww + wh - 1) * (2 * ww - 1) + (q % ww - k % ww + ww - 1);
    (0..n).flat_map(|q| (0..n).map(move |k| row(q, k))).collect()
}

/// Part `part` of `parts` of a value `[B, tokens, parts*h*size]`, as `[B, h, tokens, size]`.
fn split(body: &mut Body, x: &str, h: i64, [tokens, size]: [i64; 2], part: i64, parts: i64) -> String {
    let part_of = if parts == 1 { x.to_owned() } else { body.slice(x, 2, part * h * size, (part + 1) * h * size, 1) };
    let heads = body.reshape(&part_of, &[-1, tokens, h, size]);
    body.transpose(&heads, &[0, 2, 1, 3])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = Attention::of(node)?;
    let s = sizes(graph, node, &op)?;
    let (h, dtype) = (op.num_heads, graph.dtype(node.input(0)?)?);
    let [q, k, v] = match op.layout {
        Layout::Qkv => {
            let x = body.input("q");
            [0, 1, 2].map(|part| split(body, &x, h, [s.n, s.d], part, 3))
        }
        Layout::QKv => {
            let (q, kv) = (body.input("q"), body.input("kv"));
            [
                split(body, &q, h, [s.n, s.d], 0, 1),
                split(body, &kv, h, [s.m, s.d], 0, 2),
                split(body, &kv, h, [s.m, s.dv], 1, 2),
            ]
        }
        Layout::QkV => {
            let (qk, v) = (body.input("qk"), body.input("v"));
            [
                split(body, &qk, h, [s.n, s.d], 0, 2),
                split(body, &qk, h, [s.m, s.d], 1, 2),
                split(body, &v, h, [s.m, s.dv], 0, 1),
            ]
        }
        Layout::QKV3 => {
            let (q, k, v) = (body.input("q"), body.input("k"), body.input("v"));
            [
                split(body, &q, h, [s.n, s.d], 0, 1),
                split(body, &k, h, [s.m, s.d], 0, 1),
                split(body, &v, h, [s.m, s.dv], 0, 1),
            ]
        }
        Layout::Bhnd => ["q", "k", "v"].map(|name| body.input(name)),
    };
    let terms = terms(body, graph, &op, [s.n, s.m])?;
    let out = scored(body, &op, &s, [q, k, v], &terms);
    let out = body.cast(&out, dtype);
    body.output(&out, "out");
    Some(())
}

/// The attention of packed queries, keys and values `qkv` `[B, N, 3*h*d]`, in float32: `[B, N, h*d]`. `terms`: as [`terms`] gives them.
pub(super) fn packed_body(body: &mut Body, op: &Attention, qkv: &str, n: i64, d: i64, terms: &[Term]) -> String {
    let parts = [0, 1, 2].map(|part| split(body, qkv, op.num_heads, [n, d], part, 3));
    scored(body, op, &Sizes { batch: Dim::Int(1), n, m: n, d, dv: d }, parts, terms)
}

/// The same of queries `[B, N, h*d]` and packed keys and values `[B, M, 2*h*d]`.
pub(super) fn pooled_body(
    body: &mut Body,
    op: &Attention,
    [q, kv]: [&str; 2],
    [n, m]: [i64; 2],
    d: i64,
    terms: &[Term],
) -> String {
    let h = op.num_heads;
    let parts = [split(body, q, h, [n, d], 0, 1), split(body, kv, h, [m, d], 0, 2), split(body, kv, h, [m, d], 1, 2)];
    scored(body, op, &Sizes { batch: Dim::Int(1), n, m, d, dv: d }, parts, terms)
}

/// A float32 value that is added to scores, `[P, h or 1, N, M]`: to batch row b its row b mod P.
#[derive(Clone)]
pub(super) struct Term {
    pub value: String,
    /// `P`.
    pub period: i64,
}

/// Bias and mask, over `n` queries and `m` keys. Declares the inputs `bias` and `mask` where there are any.
pub(super) fn terms(body: &mut Body, graph: &Graph, op: &Attention, [n, m]: [i64; 2]) -> Option<Vec<Term>> {
    let mut terms = vec![];
    match op.bias {
        None => {}
        Some(Bias::Dense(value)) => {
            let period = graph.shape(value)?.first()?.int()?;
            let dense = body.input("bias");
            terms.push(Term { value: body.cast(&dense, DType::F32), period });
        }
        Some(Bias::Table(_)) => {
            let table = body.input("bias");
            let table = body.cast(&table, DType::F32);
            let index = body.ints(&table_index(op.map.window));
            let rows = body.op("Gather", &[&table, &index], vec![AttributeProto::int("axis", 0)]);
            let rows = body.reshape(&rows, &[1, n, m, op.num_heads]);
            terms.push(Term { value: body.transpose(&rows, &[0, 3, 1, 2]), period: 1 });
        }
    }
    match op.mask {
        None => {}
        Some(Mask::Dense(value)) => {
            let period = graph.shape(value)?.first()?.int()?;
            let mask = body.input("mask");
            let mask = body.cast(&mask, DType::F32);
            terms.push(Term { value: body.reshape(&mask, &[period, 1, n, m]), period });
        }
        Some(Mask::Shift(value)) => terms.push(shift_term(body, &op.map, value, [n, m])?),
    }
    Some(terms)
}

/// The shift mask of a map, over windows of `n` tokens.
pub(super) fn shift_term(body: &mut Body, map: &WindowMap, value: f32, [n, m]: [i64; 2]) -> Option<Term> {
    if !map.is_valid() || map.tokens() != n || n != m {
        return None;
    }
    let period = map.windows();
    let mask = TensorProto::from_f32("", &[period, 1, n, n], &shift_mask(map, value));
    Some(Term { value: body.constant(mask), period })
}

fn scored(body: &mut Body, op: &Attention, s: &Sizes, qkv: [String; 3], terms: &[Term]) -> String {
    let h = op.num_heads;
    let [q, k, v] = qkv.map(|x| body.cast(&x, DType::F32));
    let keys = body.transpose(&k, &[0, 1, 3, 2]);
    let scores = body.op("MatMul", &[&q, &keys], vec![]);
    let scale = body.float(op.scale);
    let mut scores = body.op("Mul", &[&scores, &scale], vec![]);
    for Term { value, period } in terms {
        if *period == 1 {
            scores = body.op("Add", &[&scores, value], vec![]);
            continue;
        }
        let grouped = body.reshape(&scores, &[-1, *period, h, s.n, s.m]);
        let sum = body.op("Add", &[&grouped, value], vec![]);
        scores = body.reshape(&sum, &[-1, h, s.n, s.m]);
    }
    let weights = body.op("Softmax", &[&scores], vec![AttributeProto::int("axis", -1)]);
    let context = body.op("MatMul", &[&weights, &v], vec![]);
    let merged = body.transpose(&context, &[0, 2, 1, 3]);
    body.reshape(&merged, &[-1, s.n, h * s.dv])
}
