//! What kinds of work a profiled engine spends its time on.

use super::schema::Layer;

/// Layers of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub kind: String,
    pub layers: usize,
    pub us: f64,
}

/// The kinds of layer in a profile, the most time first. The times add up to those of the layers.
pub fn shares(layers: &[Layer]) -> Vec<Share> {
    let mut shares: Vec<Share> = vec![];
    for layer in layers {
        let kind = kind(layer);
        match shares.iter_mut().find(|s| s.kind == kind) {
            Some(share) => {
                share.layers += 1;
                share.us += layer.us;
            }
            None => shares.push(Share { kind, layers: 1, us: layer.us }),
        }
    }
    shares.sort_by(|a, b| b.us.total_cmp(&a.us).then_with(|| a.kind.cmp(&b.kind)));
    shares
}

/// The kind of a layer: for a plugin its op, for what TensorRT knows a common name, and else its type as it is.
pub fn kind(layer: &Layer) -> String {
    if let Some(op) = plugin(&layer.name) {
        return op;
    }
    let (name, r#type) = (layer.name.as_str(), layer.r#type.to_ascii_lowercase());
    // What a layer's name says goes before its type, which is the same for much of what is different.
    if name.contains("ForeignNode[") || r#type.contains("myelin") {
        return "fused by TensorRT (Myelin)".into();
    }
    if name.starts_with("Reformatting CopyNode") || r#type.contains("reformat") {
        return "reformat".into();
    }
    let kinds: [(&str, &[&str]); 7] = [
        ("plugin", &["plugin"]),
        ("convolution", &["conv"]),
        ("matrix product", &["gemm", "matrixmultiply", "matmul", "fullyconnected"]),
        ("softmax", &["softmax"]),
        ("norm or reduction", &["norm", "reduce"]),
        ("pointwise", &["pointwise", "elementwise", "activation", "unary", "scale", "select", "cast", "kgen", "pwgen"]),
        (
            "data movement",
            &["shuffle", "slice", "concat", "gather", "copy", "resize", "noop", "constant", "padding", "pooling"],
        ),
    ];
    let found = kinds.iter().find(|(_, words)| words.iter().any(|w| r#type.contains(w)));
    match found {
        Some((kind, _)) => (*kind).into(),
        None if layer.r#type.is_empty() => "of no known type".into(),
        None => layer.r#type.clone(),
    }
}

/// The plugin op that a layer runs, by the name of its node: `/layers.0/norm1/TrtOptLayerNorm_2` runs `TrtOptLayerNorm`.
fn plugin(name: &str) -> Option<String> {
    let last = name.rsplit('/').next()?;
    let op = last.find("TrtOpt").map(|at| &last[at..])?;
    let end = op.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(op.len());
    Some(op[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, r#type: &str, us: f64) -> Layer {
        Layer { name: name.into(), r#type: r#type.into(), us }
    }

    #[test]
    fn kinds_of_layers() {
        for (name, r#type, expected) in [
            ("/layers.0/norm1/TrtOptLayerNorm_2", "PluginV2", "TrtOptLayerNorm"),
            ("/a/TrtOptWindow", "", "TrtOptWindow"),
            ("other_plugin", "PluginV2", "plugin"),
            ("{ForeignNode[/a...b]}", "Myelin", "fused by TensorRT (Myelin)"),
            ("Reformatting CopyNode for Input Tensor 0 to /a", "NoOp", "reformat"),
            ("/conv1/Conv + /relu/Relu", "CaskConvolution", "convolution"),
            ("/qkv/MatMul", "gemm", "matrix product"),
            ("/qkv/MatMul", "MatrixMultiply", "matrix product"),
            ("/attn/Softmax", "CudaSoftMax", "softmax"),
            ("PWN(/act/Erf)", "PointWiseV2", "pointwise"),
            ("/Slice", "Slice", "data movement"),
            ("/x", "Loop", "Loop"),
            ("/x", "", "of no known type"),
        ] {
            assert_eq!(kind(&layer(name, r#type, 1.0)), expected, "{name} {type}");
        }
    }

    #[test]
    fn shares_add_up() {
        let layers = [layer("/a", "gemm", 1.0), layer("/b", "Slice", 5.0), layer("/c", "MatrixMultiply", 2.5)];
        let expected = [("data movement", 1, 5.0), ("matrix product", 2, 3.5)];
        let shares = shares(&layers);
        assert_eq!(shares.iter().map(|s| (s.kind.as_str(), s.layers, s.us)).collect::<Vec<_>>(), expected);
    }
}
