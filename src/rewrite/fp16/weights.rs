//! Weights in float16: what of them is lost, and the conversion.

use bytes::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::Result;
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;

/// The elements of a float32 tensor, as far as float16 is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// The largest finite magnitude.
    pub max_abs: f32,
    /// The smallest element.
    pub min: f32,
    /// Finite elements that float16 makes infinite.
    pub overflows: usize,
    pub nonzero: usize,
    /// Elements that float16 makes zero, of those that are not.
    pub vanish: usize,
    /// The one value that all elements have.
    pub uniform: Option<f32>,
}

impl Stats {
    pub fn of(tensor: &TensorProto) -> Result<Self> {
        let values = tensor.to_f32_vec()?;
        let first = values.first().copied();
        let mut stats = Self { min: f32::INFINITY, uniform: first, ..Self::default() };
        for &value in &values {
            let magnitude = value.abs();
            stats.min = stats.min.min(value);
            if magnitude.is_finite() {
                stats.max_abs = stats.max_abs.max(magnitude);
                stats.overflows += usize::from(magnitude >= OVERFLOWS);
            }
            stats.nonzero += usize::from(magnitude != 0.0);
            stats.vanish += usize::from(magnitude != 0.0 && magnitude <= VANISHES);
            if Some(value) != first {
                stats.uniform = None;
            }
        }
        Ok(stats)
    }
}

/// The smallest magnitude that rounds to infinity: half a unit beyond the largest number, 65504.
const OVERFLOWS: f32 = 65520.0;
/// The largest magnitude that rounds to zero: half of the smallest subnormal number.
const VANISHES: f32 = 1.0 / (1u32 << 25) as f32;

/// The tensor with its elements rounded to float16. One that was external stays so, which has it packed anew on saving.
pub fn to_half(tensor: &TensorProto) -> Result<TensorProto> {
    let values = tensor.to_f32_vec()?;
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(&values);
    let data: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    Ok(TensorProto {
        data_type: Some(DType::F16 as i32),
        raw_data: Some(Bytes::from(data)),
        dims: tensor.dims.clone(),
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        metadata_props: tensor.metadata_props.clone(),
        data_location: tensor.data_location,
        external_data: tensor.external_data.clone(),
        ..TensorProto::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> TensorProto {
        TensorProto::from_f32("w", &[values.len() as i64], values)
    }

    #[test]
    fn the_borders_are_those_of_rounding() {
        let below = |x: f32| f32::from_bits(x.to_bits() - 1);
        assert!(f16::from_f32(OVERFLOWS).is_infinite() && f16::from_f32(below(OVERFLOWS)).is_finite());
        let above = f32::from_bits(VANISHES.to_bits() + 1);
        assert!(f16::from_f32(VANISHES) == f16::ZERO && f16::from_f32(above) != f16::ZERO);
        let stats = Stats::of(&of(&[below(OVERFLOWS), -OVERFLOWS, VANISHES, -above, 0.0, f32::INFINITY])).unwrap();
        assert_eq!((stats.overflows, stats.nonzero, stats.vanish), (1, 5, 1));
        assert_eq!(stats.max_abs, OVERFLOWS);
    }

    #[test]
    fn one_value_is_uniform_and_two_are_not() {
        assert_eq!(Stats::of(&of(&[2.0, 2.0])).unwrap().uniform, Some(2.0));
        assert_eq!(Stats::of(&of(&[2.0, 3.0])).unwrap().uniform, None);
        assert_eq!(Stats::of(&of(&[])).unwrap().uniform, None);
    }

    #[test]
    fn elements_are_rounded_to_nearest_in_any_field() {
        let mut typed = TensorProto { raw_data: None, ..of(&[]) };
        (typed.float_data, typed.dims) = (vec![1.0, 1.0004883, -3.5, 1e9], vec![4]);
        for tensor in [typed.clone(), of(&typed.float_data)] {
            let half = to_half(&tensor).unwrap();
            half.check().unwrap();
            assert_eq!(half.to_f32_vec().unwrap(), [1.0, 1.0, -3.5, f32::INFINITY]);
        }
    }
}
