//! Classifiers: the mean over all tokens of an image, or its class token, with the norm before it, and the product with the weights of the classes.
//!
//! ```text
//! x -> TrtOptNormPool -> Gemm | MatMul, Add [-> Cast] = y
//! x -> [Transpose, Reshape, ...] -> ReduceMean | GlobalAveragePool -> Gemm | MatMul, Add [-> Cast] = y
//! x -> TrtOptLayerNorm -> Gather | Slice -> Gemm | MatMul, Add [-> Cast] = y            become   TrtOptClassifier(x) -> y
//! ```
//!
//! Scale and bias of the norm move into the weights, as those of batch norms do: `w' = w scale` along the channels and `b' = b + w bias`, computed in
//! float64 and rounded once. A cast of what float16 tokens give to float32 is part of it.
//!
//! Runs on what the rules of norms, pools and blocks have left.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Addends, Classifier, LayerNorm, MAX_SIZES, NormPool};
use crate::rewrite::pattern::{fused_name, is_float_cast, only_user};
use crate::rewrite::rules::block::{Fusion, Linear, Outcome, Rule, check_flops, limits, output, rounded, weight};
use crate::rewrite::rules::norm_pool::{as_tokens, axes_of, is_mean, tokens_of};

const RULE: &str = "classifier";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::Classifier,
        name: RULE,
        // The site is called after the product, which is no site of another kind.
        part: Kind::Classifier,
        part_of: &|_, _| vec![],
        fusion: &|graph, product, label| Head::of(graph, product, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// A product of weights with rows, one an image, that are a mean, or some of the tokens of a norm.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let constant = |i: usize| node.input(i).is_some_and(|v| graph.constant(v).is_some());
    let Some(rows) = node.input(0).filter(|&rows| graph.rank(rows) == Some(2)) else { return false };
    (node.is("Gemm") || node.is("MatMul")) && constant(1) && !constant(0) && source_of(graph, rows).is_some()
}

/// What the rows are taken from.
#[derive(Clone, Copy)]
enum Source {
    /// A fused norm with its mean.
    NormPool(NodeId),
    Mean(NodeId),
    /// A fused norm, of some of whose tokens they are.
    Norm(NodeId),
}

impl Source {
    fn node(self) -> NodeId {
        let (Self::NormPool(id) | Self::Mean(id) | Self::Norm(id)) = self;
        id
    }
}

fn source_of(graph: &Graph, rows: ValueId) -> Option<Source> {
    let through = |id| cast_of(graph, id);
    let region = movement::region(graph, rows, &Walk { through: &through, ..Walk::default() })?;
    let &[source] = &region.sources[..] else { return None };
    let (id, node) = graph.producer(source)?;
    let whole = || Dim::product(graph.shape(source)?).zip(Dim::product(graph.shape(rows)?)).map(|(a, b)| a == b);
    if NormPool::of(node).is_some() {
        Some(Source::NormPool(id))
    } else if is_mean(node) {
        Some(Source::Mean(id))
    } else {
        (LayerNorm::of(node).is_some() && whole() == Some(false)).then_some(Source::Norm(id))
    }
}

/// What a cast between floating types casts.
fn cast_of(graph: &Graph, id: NodeId) -> Option<ValueId> {
    graph.node(id).input(0).filter(|_| is_float_cast(graph, graph.node(id)))
}

/// A product of rows with constant weights, and its offset.
struct Product {
    rows: ValueId,
    /// Of the weights, and channels and classes of them.
    dtype: DType,
    sizes: [i64; 2],
    /// `[classes, channels]`, with the factors of a Gemm.
    w: Vec<f64>,
    b: Vec<f64>,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Product {
    fn of(graph: &Graph, id: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(id);
        let gemm = node.is("Gemm");
        let (Some(rows), Some(w)) = (node.input(0), node.input(1)) else {
            return Err(Miss::new(label, "it has no operands"));
        };
        let flag = |name: &str| gemm && node.int(name).unwrap_or(0) != 0;
        if flag("transA") {
            return Err(Miss::new(label, "its rows are transposed").expected("transA = 0", "transA = 1"));
        }
        let (dtype, sizes, values) = weight(graph, w)?;
        let [first, last]: [i64; 2] = sizes[..].try_into().map_err(|_| {
            Miss::new(label, "the weight is no matrix").expected("two axes", format!("{} axes", sizes.len()))
        })?;
        let factor = |name: &str| f64::from(node.float(name).filter(|_| gemm).unwrap_or(1.0));
        let (alpha, beta) = (factor("alpha"), factor("beta"));
        let [channels, classes] = if flag("transB") { [last, first] } else { [first, last] };
        let w = if flag("transB") {
            values.iter().map(|v| alpha * v).collect()
        } else {
            let column = |n: usize| values.iter().skip(n).step_by((classes as usize).max(1)).map(|v| alpha * v);
            (0..classes as usize).flat_map(column).collect()
        };
        let mut product =
            Self { rows, dtype, sizes: [channels, classes], w, b: vec![], out: output(graph, id)?, covers: vec![id] };
        let offset = if gemm { node.input(2) } else { product.added(graph) };
        product.b = vec![0.0; classes as usize];
        if let Some(offset) = offset {
            let (_, sizes, values) = weight(graph, offset)?;
            let wide = sizes[..] == [classes] || sizes[..] == [1, classes];
            if !wide && values.len() != 1 {
                return Err(Miss::new(label, "its offset is not one value a class")
                    .expected(format!("[{classes}]"), format!("{sizes:?}")));
            }
            product.b.iter_mut().enumerate().for_each(|(i, b)| *b = beta * values[if wide { i } else { 0 }]);
        }
        Ok(product)
    }

    /// Takes the add of a constant offset behind a MatMul, and gives the offset.
    fn added(&mut self, graph: &Graph) -> Option<ValueId> {
        let add = only_user(graph, self.out).filter(|&user| graph.node(user).is("Add"))?;
        let offset = graph.node(add).inputs.iter().flatten().copied().find(|&v| v != self.out)?;
        let (sizes, out) = (graph.constant(offset).and(graph.static_shape(offset))?, graph.node(add).output(0)?);
        let [_, classes] = self.sizes;
        ([&[classes][..], &[1, classes], &[1], &[]].contains(&&sizes[..])).then_some(())?;
        (graph.shape(out) == graph.shape(self.out)).then_some(())?;
        self.covers.push(add);
        self.out = out;
        Some(offset)
    }
}

/// The tokens of a classifier, and what becomes of them before the product.
struct Pooled {
    op: Classifier,
    x: ValueId,
    residual: Option<ValueId>,
    /// Scale and bias of the norm.
    norm: Option<[ValueId; 2]>,
    /// Images, tokens and channels.
    sizes: [Dim; 3],
    covers: Vec<NodeId>,
}

impl Pooled {
    /// Those that `rows` are taken from, of which there is one an image.
    fn of(graph: &Graph, source: Source, rows: ValueId, channels: i64, label: &str) -> Outcome<Self> {
        let unknown = || Miss::new(label, "where its rows come from is not known");
        let (id, of) = (source.node(), output(graph, source.node())?);
        let node = graph.node(id);
        let through = |id| cast_of(graph, id);
        let stop = |value| value == of;
        let walk = Walk { stop: &stop, through: &through };
        let region = movement::region(graph, rows, &walk).ok_or_else(unknown)?;
        let shape = graph.shape(rows).ok_or_else(unknown)?;
        let view = movement::strided(graph, rows, shape, &walk).filter(|view| view.source == of);
        let mut covers: Vec<NodeId> = region.nodes.into_iter().chain([id]).collect();
        if let Source::Norm(_) = source {
            let plain = LayerNorm::of(node).filter(|norm| norm.map.is_none() && !norm.reverse && norm.axes == 1);
            let added = Addends::of(node).filter(|added| added.part.is_none());
            let (Some(layer_norm), Some(added)) = (plain, added) else {
                let reason = "the norm has windows, is over several axes, or adds to some of the tokens only";
                return Err(Miss::new(graph.node_label(id), reason));
            };
            let &[Some(x), .., Some(scale), Some(bias)] = &node.inputs[..] else { return Err(unknown()) };
            let sizes = sizes_of(graph, of).ok_or_else(unknown)?;
            let tokens = sizes[1].int().ok_or_else(unknown)?;
            let token = view.as_ref().map(|view| view.offset / channels.max(1)).filter(|&token| token < tokens);
            let one = |&token: &i64| {
                let stride = tokens.checked_mul(channels);
                view.as_ref().zip(stride).is_some_and(|(v, n)| v.offset == token * channels && v.has(&[n, 1]))
            };
            let token = token.filter(one).ok_or_else(|| {
                Miss::new(label, "its rows are not the same token of each image")
                    .expected(format!("a token of {}", shape_text(&sizes)), shape_text(shape))
            })?;
            let op = Classifier { epsilon: Some(layer_norm.epsilon), token: Some(token) };
            let residual = added.residual;
            return Ok(Self { op, x, residual, norm: Some([scale, bias]), sizes, covers });
        }
        if !view.is_some_and(|view| view.offset == 0 && view.has(&[channels, 1])) {
            return Err(Miss::new(label, "its rows are not those of the mean, one an image")
                .expected(format!("rows of {channels} channels"), shape_text(shape)));
        }
        if let Some(pool) = NormPool::of(node) {
            let &[Some(x), .., Some(scale), Some(bias)] = &node.inputs[..] else { return Err(unknown()) };
            let residual = node.input(1).filter(|_| node.inputs.len() == 4);
            let op = Classifier { epsilon: Some(pool.epsilon), token: None };
            let sizes = sizes_of(graph, x).ok_or_else(unknown)?;
            return Ok(Self { op, x, residual, norm: Some([scale, bias]), sizes, covers });
        }
        let axes = axes_of(graph, id)?;
        let read = node.input(0).ok_or_else(unknown)?;
        let moved =
            movement::region(graph, read, &Walk { through: &through, ..Walk::default() }).ok_or_else(unknown)?;
        let &[x] = &moved.sources[..] else {
            return Err(Miss::new(graph.node_label(id), "its mean is of several tensors"));
        };
        let (sizes, moves) = tokens_of(graph, x, channels, id, &axes)?;
        covers.extend(moves);
        Ok(Self { op: Classifier { epsilon: None, token: None }, x, residual: None, norm: None, sizes, covers })
    }
}

/// Images, tokens and channels of a value, all axes between of which are tokens.
fn sizes_of(graph: &Graph, value: ValueId) -> Option<[Dim; 3]> {
    let [images, tokens @ .., channels] = graph.shape(value)? else { return None };
    Some([images.clone(), Dim::product(tokens)?, channels.clone()])
}

/// A whole classifier.
struct Head {
    pooled: Pooled,
    product: Product,
    /// Of the tokens.
    dtype: DType,
    out: ValueId,
    /// Of the result: that of the tokens or float32.
    made: DType,
    covers: Vec<NodeId>,
}

impl Head {
    fn of(graph: &Graph, id: NodeId, label: &str) -> Outcome<Self> {
        let product = Product::of(graph, id, label)?;
        let source =
            source_of(graph, product.rows).ok_or_else(|| Miss::new(label, "where its rows come from is not known"))?;
        let pooled = Pooled::of(graph, source, product.rows, product.sizes[0], label)?;
        let name = |t: Option<DType>| t.map_or("an unknown type", DType::name);
        let found = graph.dtype(pooled.x);
        let Some(dtype) = found.filter(|t| matches!(t, DType::F32 | DType::F16)) else {
            return Err(Miss::new(label, "the plugin takes no such type").expected("float or float16", name(found)));
        };
        let mut covers: Vec<NodeId> = product.covers.iter().chain(&pooled.covers).copied().collect();
        let mut out = product.out;
        let wide = only_user(graph, out).filter(|&user| dtype == DType::F16 && cast_of(graph, user).is_some());
        if let Some(user) = wide
            && let Some(cast) = graph.node(user).output(0).filter(|&v| graph.dtype(v) == Some(DType::F32))
        {
            out = cast;
            covers.push(user);
        }
        let alike = product.dtype == dtype && graph.dtype(product.rows) == Some(dtype);
        let made = graph.dtype(out).filter(|&t| alike && (t == dtype || t == DType::F32)).ok_or_else(|| {
            Miss::new(label, "its weights or what it gives are of another type than the tokens")
                .expected(dtype.name(), product.dtype.name())
        })?;
        let head = Self { pooled, product, dtype, out, made, covers };
        head.check(graph, label)?;
        Ok(head)
    }

    /// Sizes that the plugin takes, and is made for.
    fn check(&self, graph: &Graph, label: &str) -> Outcome<()> {
        let [channels, classes] = self.product.sizes;
        let [images, tokens, last] = &self.pooled.sizes;
        if *last != Dim::Int(channels) {
            let reason = "its weights are not of these channels";
            return Err(Miss::new(label, reason).expected(format!("{channels} channels"), last));
        }
        let [most_channels, most_classes] = MAX_SIZES;
        if channels > most_channels || classes > most_classes {
            return Err(Miss::new(label, "the classifier is too large").expected(
                format!("at most {most_channels} channels and {most_classes} classes"),
                format!("{channels}, {classes}"),
            ));
        }
        let tokens = tokens.int().ok_or_else(|| Miss::new(label, "how many tokens there are is not known"))?;
        let read = if self.pooled.op.token.is_some() { Some(channels) } else { tokens.checked_mul(channels) };
        if read.is_none_or(|read| read > limits::CLASSIFIER_POOLED) {
            return Err(Miss::new(label, "its mean is over so many tokens that a kernel of its own is faster")
                .expected(
                    format!("at most {} values an image", limits::CLASSIFIER_POOLED),
                    format!("{tokens} tokens of {channels}"),
                ));
        }
        let linear =
            Linear { x: self.product.rows, w: self.product.rows, b: None, sizes: self.product.sizes, covers: vec![] };
        check_flops(label, std::slice::from_ref(images), &[&linear], limits::CLASSIFIER_FLOPS, "")?;
        // An Add that is not the offset's, or a second reader, is found when the nodes have to go.
        if graph.shape(self.out).is_none_or(|shape| *shape != [images.clone(), classes.into()]) {
            return Err(Miss::new(label, "what it gives is not one row an image").expected(
                shape_text(&[images.clone(), classes.into()]),
                graph.shape(self.out).map_or_else(|| "an unknown shape".into(), shape_text),
            ));
        }
        Ok(())
    }

    fn fusion(mut self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptClassifier");
        let [channels, classes] = self.product.sizes;
        if let Some([scale, bias]) = self.pooled.norm {
            let vector = |v: ValueId| {
                let (_, sizes, values) = weight(graph, v)?;
                let fits = values.len() as i64 == channels;
                fits.then_some(values).ok_or_else(|| {
                    Miss::new(&graph.value(v).name, "it is not one value a channel")
                        .expected(format!("[{channels}]"), format!("{sizes:?}"))
                })
            };
            let (scale, bias) = (vector(scale)?, vector(bias)?);
            for (row, b) in self.product.w.chunks_exact_mut(scale.len().max(1)).zip(&mut self.product.b) {
                *b += row.iter().zip(&bias).map(|(w, bias)| w * bias).sum::<f64>();
                row.iter_mut().zip(&scale).for_each(|(w, scale)| *w *= scale);
            }
        }
        let mut patch = Patch::new(graph, RULE);
        let w =
            patch.constant(&format!("{name}/w"), rounded(label, self.dtype, &[classes, channels], &self.product.w)?);
        let b = patch.constant(&format!("{name}/b"), rounded(label, self.made, &[classes], &self.product.b)?);
        let Pooled { op, x, residual, sizes, .. } = &self.pooled;
        let open = || Miss::new(label, "more than one axis of the tokens is not an integer");
        let mut tokens = |value: ValueId, what: &str| {
            as_tokens(&mut patch, graph, value, sizes, &format!("{name}/{what}")).ok_or_else(open)
        };
        let x = tokens(*x, "x")?;
        let residual = residual.map(|r| tokens(r, "residual")).transpose()?;
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = op.node(x, residual, w, b);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}
