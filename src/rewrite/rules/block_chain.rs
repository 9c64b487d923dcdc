//! Chains of blocks: attention blocks and MLP blocks in turn, each of which alone reads what the one before gives.
//!
//! ```text
//! x -> TrtOptSwinAttnBlock -> TrtOptMlpBlock -> TrtOptSwinAttnBlock -> TrtOptMlpBlock -> ... -> y     (or TrtOptAttnBlock)
//! becomes   TrtOptBlockChain(x) -> y
//!
//! x -> TrtOptAttnBlock -> TrtOptMlpBlock -> Add (out2) -> TrtOptAttnBlock -> TrtOptMlpBlock -> Add (out3) -> ... -> y
//! where   TrtOptTntWords(w) -> out1, out2, ...
//! becomes   TrtOptTntWords(w) -> out1, stack ;  TrtOptBlockChain(x, between = stack) -> y
//! ```
//!
//! Pairs of an attention block and its MLP block that differ in sizes or attributes end a chain, and the next one begins another; so do
//! values that are read otherwise. Runs on the blocks that there are, before attention blocks take residual adds: an add in front of a
//! chain stays outside of it. Of adds between pairs it takes those of words of TNT: the last that a node of them gives, in their order, which
//! that node then gives as one tensor.
//!
//! Chains in windows and chains without are kinds of their own, because on an H200 in float16 at batch 1 the op takes less time than its
//! blocks one by one in windows (Swin-T's stages 45.3 us for 54.8, 37.2 for 40.9, 121.7 for 138.0 and 54.6 for 60.9) and more without
//! (TNT-S's layer 27.3 us for 25.7, UniFormer-S's stage 3 26.5 for 22.9 and its stage 4 26.1 for 19.8; but ViT-S's twelve 295.6 for 307.9). So
//! without windows one pair alone is left to its blocks, and chains with words of TNT between their pairs are a kind of their own, or of chains
//! without windows where that is not asked for.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;

use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    AttnBlock, AttnWeights, Bias, BlockChain, MAX_PAIRS, Mask, MlpBlock, MlpWeights, TntWords, WindowMap, packed,
    padded, table_index,
};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::ahead;
use crate::rewrite::rules::block::limits::{CHAIN_FLOPS, CHAIN_ONE_KERNEL_CHANNELS, CHAIN_PAIR_WINDOWS, WIDE_ROWS};
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, flops_text, output, rounded, single_use, weight};

/// Of what sizes must be multiples, and up to where the plugin takes them.
pub(super) const MULTIPLE: i64 = 16;
const MAX_CHANNELS: i64 = 1024;
const MAX_HIDDEN: i64 = 4096;
/// Head sizes, and the most tokens that attend to each other: in windows, and without.
const IN_WINDOWS: (&[i64], i64) = (&[32], 64);
const OF_SEQUENCES: (&[i64], i64) = (&[32, 64], 256);
/// The fewest pairs of a chain without windows.
const FEWEST_PAIRS: usize = 2;

pub fn run(engine: &mut Engine) -> Result<()> {
    for kind in [Kind::BlockChain, Kind::TokenChain, Kind::SequenceChain] {
        let asked = |kind: Kind| engine.options().kinds.contains(&kind);
        let in_windows = kind == Kind::BlockChain;
        let mut chains = if asked(kind) { chains(engine.graph(), in_windows) } else { BTreeMap::new() };
        chains.retain(|_, chain| match kind {
            Kind::TokenChain => chain.has_words(),
            Kind::SequenceChain => !chain.has_words() || !asked(Kind::TokenChain),
            _ => true,
        });
        let rule = Rule {
            kind,
            name: kind.name(),
            part: if in_windows { Kind::SwinAttnBlock } else { Kind::AttnBlock },
            part_of: &|_, anchor| vec![anchor],
            fusion: &|graph, anchor, label| {
                let chain = chains.get(&anchor).ok_or_else(|| Miss::new(label, "its blocks are of no chain"))?;
                chain.fusion(graph, kind.name(), label)
            },
        };
        rule.run_if_asked(engine, |_, id| chains.contains_key(&id))?;
    }
    Ok(())
}

/// An attention block and the MLP block that alone reads what it gives.
#[derive(Clone)]
struct Pair {
    attention: NodeId,
    mlp: NodeId,
    /// Its windows are shifted.
    shifted: bool,
    /// What only regroups values between the blocks, and adds.
    between: Vec<NodeId>,
    /// What is added before the next pair of the chain.
    added: Option<Addend>,
}

/// A result of a node of words of TNT that nothing but an add reads.
#[derive(Clone)]
struct Addend {
    words: NodeId,
    value: ValueId,
    /// Of the node's outputs.
    number: usize,
}

impl Addend {
    /// What the node adds to a value.
    fn of(graph: &Graph, add: NodeId, to: ValueId) -> Option<Self> {
        let (a, b) = (graph.node(add).input(0)?, graph.node(add).input(1)?);
        let value = if a == to { b } else { a };
        let (words, node) = graph.producer(value)?;
        let op = TntWords::of(node)?;
        let number = node.outputs.iter().position(|&output| output == Some(value))?;
        let whole = graph.node(add).is("Add") && graph.shape(value) == graph.shape(to);
        (whole && number < op.after.len() && op.stacked == 0 && single_use(graph, value).is_ok()).then_some(Self {
            words,
            value,
            number,
        })
    }

    fn is_behind(&self, other: &Self) -> bool {
        self.words == other.words && self.number == other.number + 1
    }
}

/// What the pairs of a chain have in common.
#[derive(Clone, PartialEq)]
struct Form {
    images: Dim,
    dtype: Option<DType>,
    channels: i64,
    /// That attend to each other.
    tokens: i64,
    /// Without the pairs, and without what is only of shifted ones.
    op: BlockChain,
}

/// The shift of windows and what their mask adds between regions.
type Shift = ([i64; 2], f32);

struct Chain {
    pairs: Vec<Pair>,
    /// Why the op cannot be this pair, which then is the only one.
    form: Outcome<Form>,
    shift: Option<Shift>,
}

/// All chains with attention in windows, or without, by their first block.
fn chains(graph: &Graph, in_windows: bool) -> BTreeMap<NodeId, Chain> {
    let is_first = |id: NodeId| attention_of(graph, id).is_some_and(|block| block.in_windows() == in_windows);
    let blocks = graph.order().iter().copied().filter(|&id| is_first(id));
    let mut chained = BTreeSet::new();
    let mut chains = BTreeMap::new();
    // In the order of the graph the first block of a chain comes first.
    for first in blocks {
        if chained.contains(&first) {
            continue;
        }
        if let Some(chain) = Chain::from(graph, first) {
            chained.extend(chain.pairs.iter().map(|pair| pair.attention));
            chains.insert(first, chain);
        }
    }
    chains
}

/// The attention block that the node is, if nothing is added before it.
fn attention_of(graph: &Graph, id: NodeId) -> Option<AttnBlock> {
    AttnBlock::of(graph.node(id)).filter(|_| graph.node(id).int("residual") == Some(0))
}

/// The node that alone reads what a node gives, as its first input.
fn next(graph: &Graph, id: NodeId, between: &mut Vec<NodeId>) -> Option<NodeId> {
    let (value, user) = ahead(graph, graph.node(id).output(0)?, between).ok()?;
    (graph.node(user).input(0) == Some(value)).then_some(user)
}

/// The node that alone reads what an MLP block gives, or that and what words of TNT add to it.
fn next_pair(graph: &Graph, mlp: NodeId, between: &mut Vec<NodeId>) -> Option<(NodeId, Option<Addend>)> {
    let (value, user) = ahead(graph, graph.node(mlp).output(0)?, between).ok()?;
    if let Some(added) = Addend::of(graph, user, value) {
        between.push(user);
        return Some((next(graph, user, between)?, Some(added)));
    }
    (graph.node(user).input(0) == Some(value)).then_some((user, None))
}

impl Chain {
    /// Words of TNT are added between its pairs.
    fn has_words(&self) -> bool {
        self.pairs[0].added.is_some()
    }

    /// Whether this may be added behind the last pair.
    fn takes(&self, graph: &Graph, added: Option<&Addend>) -> bool {
        let before = self.pairs.len().checked_sub(2).map(|i| self.pairs[i].added.as_ref());
        let of_all = graph.node(self.pairs[0].attention).input(0).and_then(|x| graph.shape(x));
        added.is_none_or(|added| graph.shape(added.value) == of_all)
            && before.is_none_or(|before| match (before, added) {
                (Some(before), Some(added)) => added.is_behind(before),
                (before, added) => before.is_none() && added.is_none(),
            })
    }

    fn from(graph: &Graph, first: NodeId) -> Option<Self> {
        let (pair, form, shift) = read(graph, first)?;
        let mut chain = Self { pairs: vec![pair], form, shift };
        while let Ok(form) = &chain.form {
            let mut between = vec![];
            let Some((id, added)) = next_pair(graph, chain.pairs.last()?.mlp, &mut between) else { break };
            let Some((pair, Ok(of_next), shift)) = read(graph, id) else { break };
            if of_next != *form
                || chain.shift.is_some_and(|of_all| shift.is_some_and(|of_pair| of_pair != of_all))
                || !chain.takes(graph, added.as_ref())
            {
                break;
            }
            let last = chain.pairs.last_mut()?;
            last.between.extend(between);
            last.added = added;
            chain.pairs.push(pair);
            chain.shift = chain.shift.or(shift);
        }
        Some(chain)
    }

    fn fusion(&self, graph: &Graph, rule: &'static str, label: &str) -> Outcome<Fusion> {
        let form = self.form.clone()?;
        check_sizes(label, &form, self.pairs.len())?;
        let (shift, mask_value) = self.shift.unwrap_or_default();
        let map = WindowMap { shift, ..form.op.map };
        let shifted = self.pairs.iter().map(|pair| pair.shifted).collect();
        let op = BlockChain { map, mask_value, shifted, between: self.has_words(), ..form.op.clone() };
        let x = graph.node(self.pairs[0].attention).input(0);
        let x = x.ok_or_else(|| Miss::new(label, "it has no input"))?;
        let out = output(graph, self.pairs[self.pairs.len() - 1].mlp)?;

        let mut tensors = Tensors::of(form.dtype.unwrap_or(DType::F32));
        for pair in &self.pairs {
            tensors.add(graph, pair, &form)?;
        }
        let name = fused_name(graph, label, "TrtOptBlockChain");
        let mut patch = Patch::new(graph, rule);
        let [weights, vectors] = tensors.finish(&mut patch, &name);
        let between = self.stack(graph, &mut patch, label)?;
        let nodes =
            self.pairs.iter().flat_map(|pair| [pair.attention, pair.mlp].into_iter().chain(pair.between.clone()));
        let covers: Vec<NodeId> = nodes.collect();
        Fusion::reshaped(graph, patch, label, name, op.node([x, weights, vectors], between), [x, out], covers)
    }

    /// What is added between the pairs as one result of its words, the node of which another of the same name takes the place of.
    fn stack(&self, graph: &Graph, patch: &mut Patch, label: &str) -> Outcome<Option<ValueId>> {
        let Some(first) = &self.pairs[0].added else { return Ok(None) };
        let (node, stacked) = (graph.node(first.words), self.pairs.len() - 1);
        let odd = || Miss::new(&node.name, "it has other inputs than its op");
        let op = TntWords::of(node).ok_or_else(odd)?;
        let (x, weights) = (node.input(0).ok_or_else(odd)?, node.input(1).ok_or_else(odd)?);
        let (begin, end, all) = (first.number, first.number + stacked, op.after.len());
        if end != all {
            return Err(Miss::new(label, "what is added between its pairs is not the last that their words give")
                .expected(format!("results {} to {all} of {}", begin + 1, node.name), {
                    format!("{} to {end}", begin + 1)
                }));
        }
        let mut outputs = vec![];
        for (number, &old) in node.outputs.iter().enumerate() {
            if number == begin {
                let of_one = graph.shape(first.value).unwrap_or_default();
                let shape = [&[Dim::from(stacked as i64)], of_one].concat();
                outputs.push(patch.value(&format!("{}/stack", node.name), graph.dtype(first.value), Some(shape)));
            }
            if !(begin..end).contains(&number) {
                let like = old.ok_or_else(odd)?;
                let y = patch.value_like(graph, &format!("{}/y{number}", node.name), like);
                patch.replace(like, y);
                outputs.push(y);
            }
        }
        let stack = outputs[begin];
        let mut fused = TntWords { stacked, ..op }.node(x, weights);
        fused.name.clone_from(&node.name);
        patch.node(fused, outputs);
        patch.cover([first.words]);
        Ok(Some(stack))
    }
}

/// The pair that begins with this node, what it has in common with others, and its shift.
fn read(graph: &Graph, id: NodeId) -> Option<(Pair, Outcome<Form>, Option<Shift>)> {
    let attention = attention_of(graph, id)?;
    let mut between = vec![];
    let mlp_id = next(graph, id, &mut between)?;
    let mlp_node = graph.node(mlp_id);
    let mlp = MlpBlock::of(mlp_node).filter(|_| mlp_node.int("residual") == Some(0))?;
    let (of_attention, of_mlp) = (AttnBlock::weights(graph.node(id))?, MlpBlock::weights(mlp_node)?);
    let matrix = |v: ValueId| <[i64; 2]>::try_from(graph.static_shape(v)?).ok();
    let ([inner, channels], [width, hidden]) = (matrix(of_attention.w_proj)?, matrix(of_mlp.w1)?);
    let x = graph.node(id).input(0)?;
    let (shape, map, op) = (graph.shape(x)?, attention.attention.map, attention.attention);
    if width != channels {
        return None;
    }
    let shift = match op.mask {
        Some(Mask::Shift(value)) => Some((map.shift, value)),
        _ => None,
    };
    let normalized = of_mlp.norm.is_some();
    let form = check_kinds(graph, &attention, normalized.then_some(mlp.epsilon)).map(|bias| Form {
        images: shape[0].clone(),
        dtype: graph.dtype(x),
        channels,
        tokens: attention.tokens(shape).unwrap_or_default(),
        op: BlockChain {
            epsilon: mlp.epsilon,
            num_heads: op.num_heads,
            head_dim: inner / op.num_heads,
            hidden,
            scale: op.scale,
            tanh: mlp.tanh,
            bias,
            mask_value: 0.0,
            map: WindowMap { shift: [0; 2], ..map },
            shifted: vec![],
            between: false,
            merged: None,
        },
    });
    Some((Pair { attention: id, mlp: mlp_id, shifted: shift.is_some(), between, added: None }, form, shift))
}

/// Whether scores have a bias; a miss where that, the mask or the norm of the MLP, by its epsilon, is of another kind than the op has.
fn check_kinds(graph: &Graph, block: &AttnBlock, epsilon: Option<f32>) -> Outcome<bool> {
    let (op, shift) = (&block.attention, block.attention.map.shift);
    let Some(epsilon) = epsilon else {
        return Err(
            Miss::new("", "its MLP has no norm").expected("a norm before each product that reads the stream", "none")
        );
    };
    if block.epsilon != epsilon {
        return Err(Miss::new("", "its norms add different epsilons to the variance")
            .expected(format!("{} as in the attention", block.epsilon), format!("{epsilon} in the MLP")));
    }
    if let Some(Bias::Dense(value)) = op.bias {
        let shape = graph.shape(value).unwrap_or_default();
        // One that differs may hold the mask, too.
        if shape.len() != 4 || shape[0] != Dim::Int(1) {
            return Err(Miss::new("", "the bias of its scores is not the same for all windows or sequences")
                .expected("[1, heads or 1, tokens, tokens]", shape_text(shape)));
        }
    }
    let mask = |found: &str| {
        Err(Miss::new("", "its scores have no such mask as the plugin makes")
            .expected("that of shifted windows, or neither mask nor shift", found))
    };
    match op.mask {
        Some(Mask::Dense(_)) => mask("a dense mask"),
        Some(Mask::Shift(_)) if shift == [0; 2] => mask("that of shifted windows without a shift"),
        None if shift != [0; 2] => mask("shifted windows without a mask"),
        _ => Ok(op.bias.is_some()),
    }
}

/// Sizes that the plugin takes.
fn check_sizes(label: &str, form: &Form, pairs: usize) -> Outcome<()> {
    let (op, channels) = (&form.op, form.channels);
    let inner = op.num_heads * op.head_dim;
    if [channels, inner, op.hidden].iter().any(|size| size % MULTIPLE != 0) {
        return Err(Miss::new(label, "the tensor cores take no such sizes").expected(
            format!("multiples of {MULTIPLE}"),
            format!("{channels} channels, {inner} of all heads, {} hidden columns", op.hidden),
        ));
    }
    if channels > MAX_CHANNELS || inner > MAX_CHANNELS || op.hidden > MAX_HIDDEN {
        return Err(Miss::new(label, "the blocks are too large").expected(
            format!("at most {MAX_CHANNELS} channels, and of all heads, and {MAX_HIDDEN} hidden columns"),
            format!("{channels}, {inner} and {}", op.hidden),
        ));
    }
    let (heads, tokens) = if op.map.is_none() { OF_SEQUENCES } else { IN_WINDOWS };
    let which = if op.map.is_none() { "a sequence" } else { "a window" };
    if !heads.contains(&op.head_dim) || form.tokens > tokens {
        let sizes: Vec<String> = heads.iter().map(ToString::to_string).collect();
        return Err(Miss::new(label, "the plugin takes no such attention").expected(
            format!("heads of {} and at most {tokens} tokens of {which}", sizes.join(" or ")),
            format!("heads of {} and {} tokens", op.head_dim, form.tokens),
        ));
    }
    // Tokens that a window is filled up with are zeros behind a norm, and would get the norm's bias with the product's.
    if !op.map.is_none() && op.map.padded() != op.map.grid {
        return Err(Miss::new(label, "its windows are padded, and the norms' biases are folded into the products")
            .expected(format!("a map of whole windows of {}x{}", op.map.window[0], op.map.window[1]), {
                format!("a map of {}x{}", op.map.grid[0], op.map.grid[1])
            }));
    }
    let places = if op.map.is_none() { Some(form.tokens) } else { op.map.grid[0].checked_mul(op.map.grid[1]) };
    let rows = form.images.eval(|_| Some(1)).and_then(|images| images.checked_mul(places?));
    let flops = rows.and_then(|rows| rows.checked_mul(4 * channels)?.checked_mul(op.hidden));
    if flops.is_none_or(|flops| flops > CHAIN_FLOPS) {
        let found = flops.map_or_else(|| "more than can be counted".into(), flops_text);
        return Err(Miss::new(label, "its blocks have more rows than the plugin's kernel is made for").expected(
            format!("at most {} in both products of an MLP, an open batch counted as 1", flops_text(CHAIN_FLOPS)),
            found,
        ));
    }
    let of_image = if op.map.is_none() { 0 } else { op.map.windows() };
    let windows = form.images.eval(|_| Some(1)).and_then(|images| images.checked_mul(of_image));
    let pair = has_pair_kernel(op, channels) && windows.is_some_and(|windows| windows <= CHAIN_PAIR_WINDOWS);
    let many = rows.is_some_and(|rows| rows >= WIDE_ROWS);
    if !op.map.is_none() && channels <= CHAIN_ONE_KERNEL_CHANNELS && many && !pair {
        let kernel = format!("up to {CHAIN_PAIR_WINDOWS} windows and sizes of a kernel of both blocks");
        return Err(Miss::new(label, "its blocks are a kernel each, which are faster by themselves").expected(
            format!("fewer than {WIDE_ROWS} rows, more than {CHAIN_ONE_KERNEL_CHANNELS} channels, or {kernel}"),
            format!(
                "{} rows of {channels} channels in {} windows of {} tokens, {} heads, {} hidden columns",
                rows.unwrap_or_default(),
                windows.unwrap_or_default(),
                form.tokens,
                op.num_heads,
                op.hidden
            ),
        ));
    }
    if pairs > MAX_PAIRS {
        return Err(Miss::new(label, "it has more blocks than the plugin takes")
            .expected(format!("at most {MAX_PAIRS} of attention"), pairs));
    }
    if op.map.is_none() && pairs < FEWEST_PAIRS {
        return Err(Miss::new(label, "one pair of blocks without windows takes more time as a chain")
            .expected(format!("at least {FEWEST_PAIRS} of attention"), pairs));
    }
    Ok(())
}

/// Whether the plugin has a kernel of a pair in windows: a thread block has a window, a warpgroup a head and as many channels.
pub(super) fn has_pair_kernel(op: &BlockChain, channels: i64) -> bool {
    let (heads, hidden, tokens) = match op.num_heads {
        3 => (3, 64, 64),
        4 => (4, 32, 56),
        _ => return false,
    };
    !op.map.is_none()
        && op.head_dim == 32
        && channels == 32 * heads
        && op.hidden % hidden == 0
        && op.map.tokens() <= tokens
}

/// The two weights of the op, as far as pairs have been added, as bytes.
pub(super) struct Tensors {
    dtype: DType,
    weights: Vec<u8>,
    vectors: Vec<u8>,
}

impl Tensors {
    pub(super) fn of(dtype: DType) -> Self {
        Self { dtype, weights: vec![], vectors: vec![] }
    }

    fn add(&mut self, graph: &Graph, pair: &Pair, form: &Form) -> Outcome<()> {
        let (attention, mlp) = (graph.node(pair.attention), graph.node(pair.mlp));
        let odd = |node: &Node| Miss::new(&node.name, "it has other inputs than its op");
        let a: AttnWeights = AttnBlock::weights(attention).ok_or_else(|| odd(attention))?;
        let m: MlpWeights = MlpBlock::weights(mlp).ok_or_else(|| odd(mlp))?;
        self.product(graph, a.w_qkv, a.b_qkv, Some([a.norm_scale, a.norm_bias]))?;
        if let Some(bias) = AttnBlock::of(attention).and_then(|block| block.attention.bias) {
            let values = dense(graph, bias, form)?;
            push(&mut self.vectors, &attention.name, self.dtype, &values)?;
        }
        self.product(graph, a.w_proj, a.b_proj, None)?;
        self.product(graph, m.w1, m.b1, m.norm)?;
        self.product(graph, m.w2, m.b2, None)
    }

    /// A product with its offset, and in both what the norm before it has of scale and bias.
    pub(super) fn product(&mut self, graph: &Graph, w: ValueId, b: ValueId, norm: Option<[ValueId; 2]>) -> Outcome<()> {
        let (name, name_b) = (&graph.value(w).name, &graph.value(b).name);
        let ((_, sizes, mut matrix), (_, _, mut offset)) = (weight(graph, w)?, weight(graph, b)?);
        let unfit = || Miss::new(name, "its weights are of no product").expected("a matrix", format!("{sizes:?}"));
        let sizes: [i64; 2] = sizes.clone().try_into().map_err(|_| unfit())?;
        if let Some([scale, bias]) = norm {
            let ((.., scale), (.., bias)) = (weight(graph, scale)?, weight(graph, bias)?);
            let rows = matrix.chunks_exact_mut(offset.len().max(1)).zip(scale.iter().zip(&bias));
            for (row, (scale, bias)) in rows {
                for (v, offset) in row.iter_mut().zip(&mut offset) {
                    *offset += bias * *v;
                    *v *= scale;
                }
            }
        }
        let matrix = packed(&matrix, sizes).ok_or_else(unfit)?;
        push(&mut self.weights, name, self.dtype, &matrix)?;
        push(&mut self.vectors, name_b, self.dtype, &offset)
    }

    /// Of each column of the first product, which is of such sizes, the sum of its weights, as float16 rounds these: as a value of float16, and what is left of it as another.
    pub(super) fn column_sums(&mut self, at: &str, sizes: [i64; 2]) -> Outcome<()> {
        let [rows, columns] = sizes.map(|n| usize::try_from(n).unwrap_or(0));
        let places: Vec<usize> = (0..rows * columns).map(|place| place % columns).collect();
        let odd = || Miss::new(at, "its weights are of no product").expected("a matrix", format!("{sizes:?}"));
        let places = packed(&places, sizes).ok_or_else(odd)?;
        let values = tensor(self.dtype, self.weights.clone()).to_f64_vec().map_err(|_| odd())?;
        let half = |v: f64| f16::from_f64(v).to_f64();
        let mut sums = vec![0.0; columns];
        values.into_iter().zip(places).for_each(|(v, column)| sums[column] += half(v));
        let rest: Vec<f64> = sums.iter().map(|&sum| half(sum - half(sum))).collect();
        sums.iter_mut().for_each(|sum| *sum = half(*sum));
        push(&mut self.vectors, at, self.dtype, &sums)?;
        push(&mut self.vectors, at, self.dtype, &rest)
    }

    /// Puts those of a whole op behind.
    pub(super) fn append(&mut self, graph: &Graph, tensors: [ValueId; 2]) -> Outcome<()> {
        for (bytes, value) in [&mut self.weights, &mut self.vectors].into_iter().zip(tensors) {
            let odd = || Miss::new(&graph.value(value).name, "a weight that has to be known is computed");
            let data = graph.constant(value).and_then(|tensor| tensor.data().ok());
            bytes.extend_from_slice(&data.ok_or_else(odd)?);
        }
        Ok(())
    }

    pub(super) fn finish(self, patch: &mut Patch, name: &str) -> [ValueId; 2] {
        [("weights", self.weights), ("vectors", self.vectors)]
            .map(|(what, bytes)| patch.constant(&format!("{name}/{what}"), tensor(self.dtype, bytes)))
    }
}

/// Elements along one axis.
fn tensor(dtype: DType, bytes: Vec<u8>) -> TensorProto {
    let elements = bytes.len() / dtype.byte_len(1).unwrap_or(1).max(1);
    TensorProto::from_raw("", dtype, &[elements as i64], bytes.into())
}

/// Rounds values to the type and puts them behind the others. `at`: where they come from.
fn push(bytes: &mut Vec<u8>, at: &str, dtype: DType, values: &[f64]) -> Outcome<()> {
    let tensor = rounded(at, dtype, &[values.len() as i64], values)?;
    let data = tensor.data().map_err(|error| Miss::new(at, format!("a weight cannot be written: {error}")))?;
    bytes.extend_from_slice(&data);
    Ok(())
}

/// The bias of scores for each head, rows padded with zeros.
fn dense(graph: &Graph, bias: Bias, form: &Form) -> Outcome<Vec<f64>> {
    let (Bias::Dense(value) | Bias::Table(value)) = bias;
    let (_, sizes, values) = weight(graph, value)?;
    let sizes_of = |n: i64| usize::try_from(n).unwrap_or(0);
    let [heads, tokens, row] = [form.op.num_heads, form.tokens, padded(form.tokens)].map(sizes_of);
    let rows = match bias {
        Bias::Table(_) => table_index(form.op.map.window),
        Bias::Dense(_) => vec![],
    };
    let element = |head: usize, query: usize, key: usize| {
        let place = query * tokens + key;
        let at = match bias {
            Bias::Table(_) => sizes_of(*rows.get(place)?) * heads + head,
            Bias::Dense(_) if sizes.get(1) == Some(&1) => place,
            Bias::Dense(_) => head * tokens * tokens + place,
        };
        values.get(at).copied()
    };
    let places = (0..heads).flat_map(|head| (0..tokens).flat_map(move |q| (0..row).map(move |key| (head, q, key))));
    let all = places.map(|(head, q, key)| if key < tokens { element(head, q, key) } else { Some(0.0) });
    all.collect::<Option<_>>().ok_or_else(|| {
        Miss::new(&graph.value(value).name, "the bias of its scores is of other tokens")
            .expected(format!("{heads} heads and {tokens} tokens"), format!("{sizes:?}"))
    })
}
