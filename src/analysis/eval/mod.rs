//! A small evaluator: what the nodes of constant subgraphs compute, exactly as ONNX defines it.
//!
//! [`eval`] gives up (`None`) rather than guess: an op or element type that it does not know, inputs that do not go
//! together, an index out of range, a float that does not fit the integer it is cast to.

mod math;
mod movement;

use bytes::Bytes;
use half::{bf16, f16};

use crate::analysis::infer::axis_of;
use crate::ir::Node;
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;

/// Outputs of more elements than this are not computed.
pub const MAX_ELEMENTS: usize = 1 << 24;

/// Elements, row major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Also float16 and bfloat16, whose values are rounded to their type after each op.
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I16(Vec<i16>),
    I8(Vec<i8>),
    U64(Vec<u64>),
    U32(Vec<u32>),
    U16(Vec<u16>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

/// A tensor whose elements are at hand; `shape` is `[]` for a scalar.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Data,
}

/// Maps the elements, whatever their type, to data of the same type.
macro_rules! same_type {
    ($data:expr, $v:ident => $result:expr) => {
        match $data {
            Data::F32($v) => Data::F32($result),
            Data::F64($v) => Data::F64($result),
            Data::I64($v) => Data::I64($result),
            Data::I32($v) => Data::I32($result),
            Data::I16($v) => Data::I16($result),
            Data::I8($v) => Data::I8($result),
            Data::U64($v) => Data::U64($result),
            Data::U32($v) => Data::U32($result),
            Data::U16($v) => Data::U16($result),
            Data::U8($v) => Data::U8($result),
            Data::Bool($v) => Data::Bool($result),
        }
    };
}

/// The same for two operands; `None` if their types differ.
macro_rules! both_types {
    ($a:expr, $b:expr, ($v:ident, $w:ident) => $result:expr) => {
        match ($a, $b) {
            (Data::F32($v), Data::F32($w)) => Data::F32($result),
            (Data::F64($v), Data::F64($w)) => Data::F64($result),
            (Data::I64($v), Data::I64($w)) => Data::I64($result),
            (Data::I32($v), Data::I32($w)) => Data::I32($result),
            (Data::I16($v), Data::I16($w)) => Data::I16($result),
            (Data::I8($v), Data::I8($w)) => Data::I8($result),
            (Data::U64($v), Data::U64($w)) => Data::U64($result),
            (Data::U32($v), Data::U32($w)) => Data::U32($result),
            (Data::U16($v), Data::U16($w)) => Data::U16($result),
            (Data::U8($v), Data::U8($w)) => Data::U8($result),
            (Data::Bool($v), Data::Bool($w)) => Data::Bool($result),
            _ => return None,
        }
    };
}
use {both_types, same_type};

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::Bool(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element as a float; integers over 2^53 are rounded.
    fn float(&self, i: usize) -> f64 {
        match self {
            Self::F32(v) => v[i].into(),
            Self::F64(v) => v[i],
            _ => self.int(i) as f64,
        }
    }

    /// The element of an integer or boolean type; 0 for floats, which callers keep out.
    fn int(&self, i: usize) -> i128 {
        match self {
            Self::F32(_) | Self::F64(_) => 0,
            Self::I64(v) => v[i].into(),
            Self::I32(v) => v[i].into(),
            Self::I16(v) => v[i].into(),
            Self::I8(v) => v[i].into(),
            Self::U64(v) => v[i].into(),
            Self::U32(v) => v[i].into(),
            Self::U16(v) => v[i].into(),
            Self::U8(v) => v[i].into(),
            Self::Bool(v) => v[i].into(),
        }
    }

    /// Integers as elements of an integer or boolean type, wrapped to its width.
    fn of_ints(dtype: DType, values: impl Iterator<Item = i128>) -> Option<Self> {
        Some(match dtype {
            DType::I64 => Self::I64(values.map(|v| v as i64).collect()),
            DType::I32 => Self::I32(values.map(|v| v as i32).collect()),
            DType::I16 => Self::I16(values.map(|v| v as i16).collect()),
            DType::I8 => Self::I8(values.map(|v| v as i8).collect()),
            DType::U64 => Self::U64(values.map(|v| v as u64).collect()),
            DType::U32 => Self::U32(values.map(|v| v as u32).collect()),
            DType::U16 => Self::U16(values.map(|v| v as u16).collect()),
            DType::U8 => Self::U8(values.map(|v| v as u8).collect()),
            DType::Bool => Self::Bool(values.map(|v| v != 0).collect()),
            _ => return None,
        })
    }

    /// Floats as elements of a float type, rounded to it.
    fn of_floats(dtype: DType, values: impl Iterator<Item = f64>) -> Option<Self> {
        Some(match dtype {
            DType::F64 => Self::F64(values.collect()),
            DType::F32 | DType::F16 | DType::BF16 => Self::F32(values.map(|v| round_to(dtype, v as f32)).collect()),
            _ => return None,
        })
    }

    /// The elements at `from`, which must be in range.
    fn pick(&self, from: &[usize]) -> Self {
        same_type!(self, v => from.iter().map(|&i| v[i]).collect())
    }
}

/// A single-precision value rounded to the type that is held in single precision.
fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// The number of elements, if it is at most [`MAX_ELEMENTS`]; also without the empty axes, so that no product of a part
/// of the shape can overflow.
fn count(shape: &[usize]) -> Option<usize> {
    let spread = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1))).filter(|n| *n <= MAX_ELEMENTS)?;
    Some(if shape.contains(&0) { 0 } else { spread })
}

/// Distance in elements between neighbours along each axis.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

/// `offset + index * strides` for every index of `shape`, row major.
fn affine(shape: &[usize], strides: &[isize], offset: usize) -> Vec<usize> {
    let total: usize = shape.iter().product();
    let mut out = Vec::with_capacity(total);
    if total == 0 {
        return out;
    }
    let (inner, inner_stride, outer) = match (shape.split_last(), strides.split_last()) {
        (Some((n, outer)), Some((s, _))) => (*n, *s, outer),
        _ => return vec![offset],
    };
    let mut index = vec![0usize; outer.len()];
    let mut base = offset as isize;
    loop {
        out.extend((0..inner as isize).map(|i| (base + i * inner_stride) as usize));
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            base += strides[axis];
            if index[axis] < outer[axis] {
                break;
            }
            base -= strides[axis] * outer[axis] as isize;
            index[axis] = 0;
        }
    }
}

/// The shape that two shapes broadcast to.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    let axis = |i| match (at(a, i), at(b, i)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    (0..rank).map(axis).collect()
}

/// Where the elements of a tensor of shape `from`, broadcast to `to`, come from.
fn broadcast_map(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(from);
    let lead = to.len() - from.len();
    let stride = |i: usize| match i.checked_sub(lead) {
        Some(axis) if from[axis] != 1 => own[axis] as isize,
        _ => 0,
    };
    affine(to, &(0..to.len()).map(stride).collect::<Vec<_>>(), 0)
}

impl Tensor {
    fn new(dtype: DType, shape: Vec<usize>, data: Data) -> Option<Self> {
        (count(&shape)? == data.len()).then_some(Self { dtype, shape, data })
    }

    pub fn of_i64(shape: Vec<usize>, values: Vec<i64>) -> Option<Self> {
        Self::new(DType::I64, shape, Data::I64(values))
    }

    /// Floats rounded to a float type; `None` for other types, or if `shape` is not of as many elements.
    pub fn of_floats(dtype: DType, shape: &[usize], values: Vec<f64>) -> Option<Self> {
        Self::new(dtype, shape.to_vec(), Data::of_floats(dtype, values.into_iter())?)
    }

    /// A tensor of a float type with one value everywhere.
    pub fn filled(dtype: DType, shape: &[usize], value: f64) -> Option<Self> {
        Self::of_floats(dtype, shape, vec![value; count(shape)?])
    }

    pub fn of_f32(shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        Self::new(DType::F32, shape, Data::F32(values))
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Integers or booleans, where all fit an `i64`.
    pub fn ints(&self) -> Option<Vec<i64>> {
        if self.dtype.is_float() {
            return None;
        }
        (0..self.len()).map(|i| i64::try_from(self.data.int(i)).ok()).collect()
    }

    /// The elements as floats, whatever their type.
    pub fn floats(&self) -> Vec<f64> {
        (0..self.len()).map(|i| self.data.float(i)).collect()
    }

    /// `None` for strings, complex numbers, floats of 8 bits and elements of less than 8 bits, for malformed tensors
    /// and for those of more than [`MAX_ELEMENTS`] elements.
    pub fn from_proto(tensor: &TensorProto) -> Option<Self> {
        let dtype = tensor.dtype().ok()?;
        let shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().ok()?;
        count(&shape)?;
        let bytes = |t: &TensorProto| t.data().ok();
        macro_rules! unpack {
            ($t:ty, $variant:ident) => {{
                let data = bytes(tensor)?;
                Data::$variant(data.as_chunks().0.iter().map(|b| <$t>::from_le_bytes(*b)).collect())
            }};
        }
        let data = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Data::F32(tensor.to_f32_vec().ok()?),
            DType::F64 => unpack!(f64, F64),
            DType::I64 => unpack!(i64, I64),
            DType::I32 => unpack!(i32, I32),
            DType::I16 => unpack!(i16, I16),
            DType::I8 => unpack!(i8, I8),
            DType::U64 => unpack!(u64, U64),
            DType::U32 => unpack!(u32, U32),
            DType::U16 => unpack!(u16, U16),
            DType::U8 => unpack!(u8, U8),
            DType::Bool => Data::Bool(bytes(tensor)?.iter().map(|b| *b != 0).collect()),
            _ => return None,
        };
        Self::new(dtype, shape, data)
    }

    pub fn to_proto(&self, name: &str) -> TensorProto {
        let dims: Vec<i64> = self.shape.iter().map(|&d| d as i64).collect();
        macro_rules! pack {
            ($v:expr) => {
                $v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()
            };
        }
        let bytes: Vec<u8> = match &self.data {
            Data::F32(v) => match self.dtype {
                DType::F16 => v.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                DType::BF16 => v.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                _ => pack!(v),
            },
            Data::F64(v) => pack!(v),
            Data::I64(v) => pack!(v),
            Data::I32(v) => pack!(v),
            Data::I16(v) => pack!(v),
            Data::I8(v) => pack!(v),
            Data::U64(v) => pack!(v),
            Data::U32(v) => pack!(v),
            Data::U16(v) => pack!(v),
            Data::U8(v) => v.clone(),
            Data::Bool(v) => v.iter().map(|b| u8::from(*b)).collect(),
        };
        TensorProto::from_raw(name, self.dtype, &dims, Bytes::from(bytes))
    }

    fn pick(&self, shape: Vec<usize>, from: &[usize]) -> Option<Self> {
        Self::new(self.dtype, shape, self.data.pick(from))
    }

    fn reshaped(&self, shape: Vec<usize>) -> Option<Self> {
        Self::new(self.dtype, shape, self.data.clone())
    }

    /// The tensor broadcast to a shape that its own broadcasts to.
    fn spread(&self, shape: &[usize]) -> Option<Self> {
        if self.shape == shape {
            return Some(self.clone());
        }
        count(shape)?;
        if broadcast(&self.shape, shape)? != shape {
            return None;
        }
        self.pick(shape.to_vec(), &broadcast_map(&self.shape, shape))
    }
}

/// What an evaluation works on.
struct Call<'a> {
    node: &'a Node,
    opset: i64,
    inputs: &'a [Option<&'a Tensor>],
}

impl<'a> Call<'a> {
    fn input(&self, i: usize) -> Option<&'a Tensor> {
        self.inputs.get(i).copied().flatten()
    }

    fn int_or(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    fn axis(&self, name: &str, default: i64, rank: usize) -> Option<usize> {
        axis_of(self.int_or(name, default), rank)
    }

    /// A list that is attribute `name` or input `slot`; `None` if it is neither.
    fn list(&self, name: &str, slot: usize) -> Option<Vec<i64>> {
        match self.node.ints(name) {
            Some(list) => Some(list.to_vec()),
            None => self.input(slot)?.ints(),
        }
    }

    /// The element type that an attribute names.
    fn dtype_of(&self, name: &str) -> Option<DType> {
        DType::from_code(i32::try_from(self.node.int(name)?).ok()?)
    }
}

/// Evaluates a node of the standard domain. `inputs` has an entry for each input slot, `None` for one left out.
///
/// The result has the outputs that the node names, in their order. `None` if the op, its element types or its
/// arguments are beyond this evaluator.
pub fn eval(node: &Node, opset: i64, inputs: &[Option<&Tensor>]) -> Option<Vec<Tensor>> {
    if !node.domain.is_empty() || inputs.len() != node.inputs.len() {
        return None;
    }
    // A slot that is named but has no tensor would be taken for one left out.
    if node.inputs.iter().zip(inputs).any(|(slot, tensor)| slot.is_some() != tensor.is_some()) {
        return None;
    }
    let call = Call { node, opset, inputs };
    let outputs = call.movement().or_else(|| call.math())??;
    (outputs.len() >= node.outputs.len()).then_some(outputs)
}
