//! Convolutions, pooling, matrix products, normalizations, attention, quantization.

use super::elementwise::broadcast;
use super::{Cx, Inferred, axis_of, ceil_div, floor_div};
use crate::ir::Dim;
use crate::onnx::DType;

/// What a convolution or pool does along its spatial axes.
struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
}

impl Cx<'_> {
    /// `None`: not an op of this family.
    pub(super) fn nn(&self) -> Option<Option<Vec<Inferred>>> {
        let dtype = self.dtype(0);
        let one = |shape: Option<Vec<Dim>>| Some(vec![Inferred::new(dtype, shape)]);
        Some(match self.node.op.as_str() {
            "Conv" => one(self.conv(0, 1)),
            "ConvInteger" => Some(vec![Inferred::new(Some(DType::I32), self.conv(0, 1))]),
            "QLinearConv" => Some(vec![Inferred::new(self.dtype(7), self.conv(0, 3))]),
            "ConvTranspose" => one(self.conv_transpose()),
            "MaxPool" => {
                let shape = self.pool();
                Some(vec![Inferred::new(dtype, shape.clone()), Inferred::new(Some(DType::I64), shape)])
            }
            "AveragePool" | "LpPool" => one(self.pool()),
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                let ones = |s: &[Dim]| s.iter().take(2).cloned().chain(s.iter().skip(2).map(|_| Dim::Int(1))).collect();
                one(self.shape(0).map(ones))
            }
            "Gemm" => one(self.gemm()),
            "MatMul" => one(self.matmul(0, 1)),
            "MatMulInteger" => Some(vec![Inferred::new(Some(DType::I32), self.matmul(0, 1))]),
            "QLinearMatMul" => Some(vec![Inferred::new(self.dtype(7), self.matmul(0, 3))]),
            "Einsum" => one(self.einsum()),
            "Attention" => self.attention(),
            "BatchNormalization" => {
                let parameter = || self.shape(1).map(<[Dim]>::to_vec);
                let mut out = vec![Inferred::new(dtype, self.shape(0).map(<[Dim]>::to_vec))];
                // The statistics' types are those of their inputs.
                for slot in [3, 4, 3, 4] {
                    out.push(Inferred::new(self.dtype(slot), parameter()));
                }
                Some(out)
            }
            "LayerNormalization" => self.layer_norm(),
            "Dropout" => {
                let shape = self.shape(0).map(<[Dim]>::to_vec);
                let mask = if self.opset >= 10 { Some(DType::Bool) } else { dtype };
                Some(vec![Inferred::new(dtype, shape.clone()), Inferred::new(mask, shape)])
            }
            "QuantizeLinear" => {
                let named = self.node.int("output_dtype").filter(|c| *c != 0);
                let named = named.and_then(|c| DType::from_code(i32::try_from(c).ok()?));
                let of_zero_point = if self.given(2) { self.dtype(2) } else { Some(DType::U8) };
                Some(vec![Inferred::new(named.or(of_zero_point), self.shape(0).map(<[Dim]>::to_vec))])
            }
            "DequantizeLinear" => {
                let named = self.node.int("output_dtype").filter(|c| *c != 0);
                let named = named.and_then(|c| DType::from_code(i32::try_from(c).ok()?));
                Some(vec![Inferred::new(named.or(self.dtype(1)), self.shape(0).map(<[Dim]>::to_vec))])
            }
            "DynamicQuantizeLinear" => Some(vec![
                Inferred::new(Some(DType::U8), self.shape(0).map(<[Dim]>::to_vec)),
                Inferred::new(Some(DType::F32), Some(vec![])),
                Inferred::new(Some(DType::U8), Some(vec![])),
            ]),
            "RandomNormal" | "RandomUniform" => {
                let named = self.int_or("dtype", 1);
                let shape = self.node.ints("shape").map(|s| s.iter().map(|&d| Dim::Int(d)).collect());
                Some(vec![Inferred::new(DType::from_code(i32::try_from(named).ok()?), shape)])
            }
            "GridSample" => {
                let shape = || {
                    let (x, grid) = (self.shape(0)?, self.shape(1)?);
                    let spatial = grid.get(1..grid.len().checked_sub(1)?)?;
                    Some(x.get(..2)?.iter().chain(spatial).cloned().collect())
                };
                one(shape())
            }
            _ => return None,
        })
    }

    /// Kernel, strides, dilations and pads for `axes` spatial axes.
    fn window(&self, kernel: Vec<i64>) -> Option<Window> {
        let axes = kernel.len();
        let list = |name: &str, count: usize, default: i64| match self.node.ints(name) {
            Some(list) => (list.len() == count).then(|| list.to_vec()),
            None => Some(vec![default; count]),
        };
        let window = Window {
            kernel,
            strides: list("strides", axes, 1)?,
            dilations: list("dilations", axes, 1)?,
            pads: list("pads", axes.checked_mul(2)?, 0)?,
        };
        let positive = |l: &[i64]| l.iter().all(|v| *v > 0);
        (positive(&window.kernel) && positive(&window.strides) && positive(&window.dilations)).then_some(window)
    }

    fn windowed(&self, spatial: &[Dim], window: &Window) -> Option<Vec<Dim>> {
        if spatial.len() != window.kernel.len() {
            return None;
        }
        let auto = self.node.string("auto_pad").unwrap_or("NOTSET");
        let ceil = self.int_or("ceil_mode", 0) != 0;
        let size = |i: usize| -> Option<Dim> {
            let stride = window.strides[i];
            let reach = window.kernel[i].checked_sub(1)?.checked_mul(window.dilations[i])?.checked_add(1)?;
            let (begin, end) = match auto {
                "SAME_UPPER" | "SAME_LOWER" => return ceil_div(&spatial[i], stride),
                "VALID" => (0, 0),
                _ => (window.pads[i], window.pads[i + spatial.len()]),
            };
            let room = spatial[i].add(&Dim::Int(begin))?.add(&Dim::Int(end))?.sub(&Dim::Int(reach))?;
            if room.int().is_some_and(|r| r < 0) {
                return None;
            }
            let down = floor_div(&room, stride)?.add(&Dim::Int(1))?;
            if !ceil {
                return Some(down);
            }
            let up = ceil_div(&room, stride)?.add(&Dim::Int(1))?;
            // A last window that starts in the padding is dropped by some versions and not by others.
            let last = up.sub(&Dim::Int(1))?.mul(&Dim::Int(stride))?;
            let limit = spatial[i].add(&Dim::Int(begin))?;
            (up == down || super::always_positive(&limit.sub(&last)?)).then_some(up)
        };
        let axis = |i: usize| size(i).unwrap_or_else(|| self.unknown(0, i + 2));
        Some((0..spatial.len()).map(axis).collect())
    }

    fn conv(&self, x: usize, w: usize) -> Option<Vec<Dim>> {
        let (x, w) = (self.shape(x)?, self.shape(w)?);
        if x.len() != w.len() || x.len() < 3 {
            return None;
        }
        let kernel = match self.node.ints("kernel_shape") {
            Some(kernel) => kernel.to_vec(),
            None => w[2..].iter().map(Dim::int).collect::<Option<_>>()?,
        };
        let spatial = self.windowed(&x[2..], &self.window(kernel)?)?;
        Some([x[0].clone(), w[0].clone()].into_iter().chain(spatial).collect())
    }

    fn conv_transpose(&self) -> Option<Vec<Dim>> {
        let (x, w) = (self.shape(0)?, self.shape(1)?);
        if x.len() != w.len() || x.len() < 3 {
            return None;
        }
        let axes = x.len() - 2;
        let kernel = match self.node.ints("kernel_shape") {
            Some(kernel) => kernel.to_vec(),
            None => w[2..].iter().map(Dim::int).collect::<Option<_>>()?,
        };
        let window = self.window(kernel).filter(|win| win.kernel.len() == axes)?;
        let channels = w[1].mul(&Dim::Int(self.int_or("group", 1)))?;
        let mut out = vec![x[0].clone(), channels];
        let same = matches!(self.node.string("auto_pad"), Some("SAME_UPPER" | "SAME_LOWER"));
        for i in 0..axes {
            if let Some(shape) = self.node.ints("output_shape").filter(|s| !s.is_empty()) {
                out.push(Dim::Int(*shape.get(shape.len().checked_sub(axes)? + i)?));
                continue;
            }
            let stride = Dim::Int(window.strides[i]);
            if same {
                out.push(x[i + 2].mul(&stride)?);
                continue;
            }
            let extra = self.node.ints("output_padding").and_then(|p| p.get(i)).copied().unwrap_or(0);
            let reach = window.kernel[i].checked_sub(1)?.checked_mul(window.dilations[i])?.checked_add(1)?;
            let fixed = Dim::Int(extra)
                .add(&Dim::Int(reach))?
                .sub(&Dim::Int(window.pads[i]))?
                .sub(&Dim::Int(window.pads[i + axes]))?;
            out.push(x[i + 2].sub(&Dim::Int(1))?.mul(&stride)?.add(&fixed)?);
        }
        Some(out)
    }

    fn pool(&self) -> Option<Vec<Dim>> {
        let x = self.shape(0)?;
        let kernel = self.node.ints("kernel_shape")?.to_vec();
        let spatial = self.windowed(x.get(2..)?, &self.window(kernel)?)?;
        Some(x[..2].iter().cloned().chain(spatial).collect())
    }

    fn gemm(&self) -> Option<Vec<Dim>> {
        let ([a0, a1], [b0, b1]) = (self.shape(0)?, self.shape(1)?) else { return None };
        let flag = |name| self.int_or(name, 0) != 0;
        let (m, ka) = if flag("transA") { (a1, a0) } else { (a0, a1) };
        let (kb, n) = if flag("transB") { (b1, b0) } else { (b0, b1) };
        let clash = matches!((ka, kb), (Dim::Int(a), Dim::Int(b)) if a != b);
        (!clash).then(|| vec![m.clone(), n.clone()])
    }

    fn matmul(&self, a: usize, b: usize) -> Option<Vec<Dim>> {
        let (a, b) = (self.shape(a)?, self.shape(b)?);
        let (a_last, a_front) = a.split_last()?;
        let (b_inner, b_front) = match b {
            [] => return None,
            [k] => (k, &[][..]),
            [front @ .., k, _] => (k, front),
        };
        if matches!((a_last, b_inner), (Dim::Int(x), Dim::Int(y)) if x != y) {
            return None;
        }
        let (rows, a_front) = match a_front.split_last() {
            Some((rows, front)) => (Some(rows), front),
            None => (None, &[][..]),
        };
        let mut out = broadcast(&[a_front, b_front], |axis| self.unknown(0, axis))?;
        out.extend(rows.cloned());
        if b.len() > 1 {
            out.extend(b.last().cloned());
        }
        Some(out)
    }

    fn einsum(&self) -> Option<Vec<Dim>> {
        let equation: String = self.node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        if equation.len() > 256 {
            return None;
        }
        let (left, right) = match equation.split_once("->") {
            Some((left, right)) => (left.to_owned(), Some(right.to_owned())),
            None => (equation.clone(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != self.node.inputs.len() {
            return None;
        }
        let mut sizes: Vec<(char, Dim)> = vec![];
        let mut dots: Vec<&[Dim]> = vec![];
        for (i, term) in terms.iter().enumerate() {
            let shape = self.shape(i)?;
            let (front, back) = term.split_once("...").unwrap_or((term, ""));
            let (front, back): (Vec<char>, Vec<char>) = (front.chars().collect(), back.chars().collect());
            let covered = shape.len().checked_sub(front.len() + back.len())?;
            if term.contains("...") {
                dots.push(&shape[front.len()..front.len() + covered]);
            } else if covered != 0 {
                return None;
            }
            let back_dims = &shape[shape.len() - back.len()..];
            for (letter, dim) in front.iter().zip(shape).chain(back.iter().zip(back_dims)) {
                match sizes.iter_mut().find(|(l, _)| l == letter) {
                    None => sizes.push((*letter, dim.clone())),
                    Some((_, known)) => match (&*known, dim) {
                        (Dim::Int(a), Dim::Int(b)) if a != b && *a != 1 && *b != 1 => return None,
                        (Dim::Int(1), other) => *known = other.clone(),
                        (Dim::Poly(_), Dim::Int(v)) if *v != 1 => *known = dim.clone(),
                        _ => {}
                    },
                }
            }
        }
        let right = right.unwrap_or_else(|| {
            let letters = left.chars().filter(|c| c.is_alphabetic());
            let mut once: Vec<char> = letters.clone().filter(|c| left.matches(*c).count() == 1).collect();
            once.sort_unstable();
            let front = if left.contains("...") { "..." } else { "" };
            front.chars().chain(once).collect()
        });
        let (front, back) = right.split_once("...").unwrap_or((&right, ""));
        let size = |c: char| sizes.iter().find(|(l, _)| *l == c).map(|(_, d)| d.clone());
        let mut out: Vec<Dim> = front.chars().map(size).collect::<Option<_>>()?;
        if right.contains("...") && !dots.is_empty() {
            let offset = out.len();
            out.extend(broadcast(&dots, |axis| self.unknown(0, axis + offset))?);
        }
        out.extend(back.chars().map(size).collect::<Option<Vec<_>>>()?);
        Some(out)
    }

    /// Outputs: Y, present_key, present_value, qk_matmul_output.
    fn attention(&self) -> Option<Vec<Inferred>> {
        let dtype = self.dtype(0);
        let none = || Some(vec![Inferred::new(dtype, None)]);
        let (Some(q), Some(k), Some(v)) = (self.shape(0), self.shape(1), self.shape(2)) else { return none() };
        let heads = |name: &str| self.node.int(name).filter(|h| *h > 0).map(Dim::Int);
        let split = |x: &[Dim], count: Option<Dim>| -> Option<[Dim; 4]> {
            match x {
                [b, h, s, d] => Some([b.clone(), h.clone(), s.clone(), d.clone()]),
                [b, s, width] => {
                    let count = count?;
                    Some([b.clone(), count.clone(), s.clone(), width.div_exact(&count)?])
                }
                _ => None,
            }
        };
        let all = || {
            let q4 = split(q, heads("q_num_heads"))?;
            let k4 = split(k, heads("kv_num_heads"))?;
            let v4 = split(v, heads("kv_num_heads"))?;
            Some((q4, k4, v4))
        };
        let Some(([batch, q_heads, q_len, _], k4, v4)) = all() else { return none() };
        let y = match q.len() {
            4 => Some(vec![batch.clone(), q_heads.clone(), q_len.clone(), v4[3].clone()]),
            _ => q_heads.mul(&v4[3]).map(|width| vec![batch.clone(), q_len.clone(), width]),
        };
        let present = |new: &[Dim; 4], slot: usize, output: usize| {
            let mut shape = new.to_vec();
            if self.given(slot) {
                let past = self.shape(slot).and_then(|p| p.get(2)?.add(&new[2]));
                shape[2] = past.unwrap_or_else(|| self.unknown(output, 2));
            }
            shape
        };
        let key = present(&k4, 4, 1);
        let scores = vec![batch, q_heads, q_len, key[2].clone()];
        Some(vec![
            Inferred::new(dtype, y),
            Inferred::new(self.dtype(1), Some(key)),
            Inferred::new(self.dtype(2), Some(present(&v4, 5, 2))),
            Inferred::new(dtype, Some(scores)),
        ])
    }

    fn layer_norm(&self) -> Option<Vec<Inferred>> {
        let stash = self.int_or("stash_type", 1);
        let stash = DType::from_code(i32::try_from(stash).ok()?);
        let shape = self.shape(0);
        let statistics = || {
            let shape = shape?;
            let axis = axis_of(self.int_or("axis", -1), shape.len())?;
            let one = |(i, d): (usize, &Dim)| if i < axis { d.clone() } else { Dim::Int(1) };
            Some(shape.iter().enumerate().map(one).collect::<Vec<Dim>>())
        };
        let statistics = statistics();
        Some(vec![
            Inferred::new(self.dtype(0), shape.map(<[Dim]>::to_vec)),
            Inferred::new(stash, statistics.clone()),
            Inferred::new(stash, statistics),
        ])
    }
}
