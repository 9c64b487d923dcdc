//! Access to the elements of a [`TensorProto`], whichever of its fields holds them.
//!
//! Errors are [`Error::Invalid`] with the tensor's name as the place. Tensors of a model that
//! `load` returned have passed [`TensorProto::check`], so for them only a conversion between
//! element types can fail.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};

use super::DType;
use super::proto::{DataLocation, TensorProto};
use crate::error::{Error, Result};

/// The field that the elements are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Raw,
    Float,
    Int32,
    String,
    Int64,
    Double,
    Uint64,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw_data",
            Self::Float => "float_data",
            Self::Int32 => "int32_data",
            Self::String => "string_data",
            Self::Int64 => "int64_data",
            Self::Double => "double_data",
            Self::Uint64 => "uint64_data",
        }
    }

    /// The typed field that ONNX prescribes for a type, and the number of its entries that `count` elements take.
    fn typed(dtype: DType, count: usize) -> Option<(Self, usize)> {
        use DType::*;
        Some(match dtype {
            F32 => (Self::Float, count),
            C64 => (Self::Float, count.checked_mul(2)?),
            F64 => (Self::Double, count),
            C128 => (Self::Double, count.checked_mul(2)?),
            I64 => (Self::Int64, count),
            U32 | U64 => (Self::Uint64, count),
            String => (Self::String, count),
            I32 | I16 | I8 | U16 | U8 | Bool | F16 | BF16 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 => {
                (Self::Int32, count)
            }
            // One entry holds one byte of packed elements.
            U4 | I4 | F4E2M1 => (Self::Int32, count.div_ceil(2)),
            U2 | I2 => (Self::Int32, count.div_ceil(4)),
        })
    }
}

/// Constructors. They do not check that the number of elements is the product of `dims`: [`TensorProto::check`]
/// does, and saving a model calls it.
impl TensorProto {
    /// A tensor of packed little-endian elements, as ONNX lays out `raw_data`. The bytes are not copied.
    pub fn from_raw(name: impl Into<String>, dtype: DType, dims: &[i64], data: Bytes) -> Self {
        Self {
            dims: dims.to_vec(),
            data_type: Some(dtype as i32),
            name: Some(name.into()),
            raw_data: Some(data),
            ..Self::default()
        }
    }

    pub fn from_f32(name: impl Into<String>, dims: &[i64], data: &[f32]) -> Self {
        Self::from_raw(name, DType::F32, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_f64(name: impl Into<String>, dims: &[i64], data: &[f64]) -> Self {
        Self::from_raw(name, DType::F64, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_f16(name: impl Into<String>, dims: &[i64], data: &[f16]) -> Self {
        Self::from_raw(name, DType::F16, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_bf16(name: impl Into<String>, dims: &[i64], data: &[bf16]) -> Self {
        Self::from_raw(name, DType::BF16, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_i32(name: impl Into<String>, dims: &[i64], data: &[i32]) -> Self {
        Self::from_raw(name, DType::I32, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_i64(name: impl Into<String>, dims: &[i64], data: &[i64]) -> Self {
        Self::from_raw(name, DType::I64, dims, pack(data.iter().map(|v| v.to_le_bytes())))
    }

    pub fn from_bool(name: impl Into<String>, dims: &[i64], data: &[bool]) -> Self {
        Self::from_raw(name, DType::Bool, dims, pack(data.iter().map(|v| [u8::from(*v)])))
    }
}

impl TensorProto {
    /// The element type; an error where it is unset or unknown to this version.
    pub fn dtype(&self) -> Result<DType> {
        let code = self.data_type.unwrap_or(0);
        DType::from_code(code).ok_or_else(|| {
            self.invalid(match code {
                0 => "has no element type (data_type is unset or 0)".to_owned(),
                _ => format!("unknown element type {code} (known: 1 to 26)"),
            })
        })
    }

    /// The number of elements, the product of `dims`; 1 for a scalar. An error where an axis is negative or the
    /// product does not fit.
    pub fn len(&self) -> Result<usize> {
        element_count(&self.dims).map_err(|what| self.invalid(what))
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether the elements are meant to be in another file. `load` puts them into `raw_data` even so.
    pub fn is_external(&self) -> bool {
        self.data_location == Some(DataLocation::External as i32)
    }

    /// Bytes that the elements take in `raw_data`, from type and dims alone. An error for strings.
    pub fn byte_len(&self) -> Result<usize> {
        let (dtype, count) = (self.dtype()?, self.len()?);
        if dtype == DType::String {
            return Err(self.invalid("strings have no size in raw_data"));
        }
        dtype.byte_len(count).ok_or_else(|| self.too_large())
    }

    /// Checks type, dims and the amount of data against each other, without allocating.
    ///
    /// A tensor that is one segment of a larger one is checked for its type and dims only.
    pub fn check(&self) -> Result<()> {
        let count = self.len()?;
        let dtype = self.dtype()?;
        if self.segment.is_some() {
            return Ok(());
        }
        let found = self.field_in_use()?;
        let Some((field, found)) = found else {
            return match count {
                0 => Ok(()),
                _ => Err(self.invalid(format!("no data for {count} elements ({})", self.type_text(dtype)))),
            };
        };
        let (typed, entries) = Field::typed(dtype, count).ok_or_else(|| self.too_large())?;
        let (want, unit) = match field {
            Field::Raw if dtype == DType::String => {
                return Err(self.invalid("strings must be in string_data, not in raw_data"));
            }
            Field::Raw => (dtype.byte_len(count).ok_or_else(|| self.too_large())?, "bytes"),
            _ if field == typed => (entries, "entries"),
            _ => {
                return Err(self.invalid(format!(
                    "the elements are in {}, which is not for {dtype} (expected raw_data or {})",
                    field.name(),
                    typed.name()
                )));
            }
        };
        if want != found {
            return Err(self.invalid(format!(
                "{} needs {want} {unit} in {}, found {found}",
                self.type_text(dtype),
                field.name()
            )));
        }
        Ok(())
    }

    /// The elements, packed and little endian as in `raw_data`. Copies nothing if they are in `raw_data`.
    /// An error for strings and segments, and where [`check`](Self::check) finds one.
    pub fn data(&self) -> Result<Bytes> {
        self.check()?;
        if self.segment.is_some() {
            return Err(self.invalid("is a segment of a larger tensor, which is not supported here"));
        }
        let dtype = self.dtype()?;
        if dtype == DType::String {
            return Err(self.invalid("holds strings where numbers are expected"));
        }
        let Some((field, _)) = self.field_in_use()? else { return Ok(Bytes::new()) };
        // Entries of int32_data and uint64_data hold smaller types in their low bits.
        let low = dtype.bits().unwrap_or(8).div_ceil(8);
        Ok(match field {
            Field::Raw => self.raw_data.clone().unwrap_or_default(),
            Field::Float => pack(self.float_data.iter().map(|v| v.to_le_bytes())),
            Field::Double => pack(self.double_data.iter().map(|v| v.to_le_bytes())),
            Field::Int64 => pack(self.int64_data.iter().map(|v| v.to_le_bytes())),
            Field::Int32 => pack_low(self.int32_data.iter().map(|v| v.to_le_bytes()), low),
            Field::Uint64 => pack_low(self.uint64_data.iter().map(|v| v.to_le_bytes()), low),
            Field::String => return Err(self.invalid("holds strings where numbers are expected")),
        })
    }

    /// The elements of any real type as f64; 64-bit integers are rounded, booleans become 0 and 1.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        use DType::*;
        let (dtype, count, data) = (self.dtype()?, self.len()?, self.data()?);
        let d = &data[..];
        Ok(match dtype {
            F32 => unpack(d, |b| f32::from_le_bytes(b).into()),
            F64 => unpack(d, f64::from_le_bytes),
            F16 => unpack(d, |b| f16::from_le_bytes(b).to_f64()),
            BF16 => unpack(d, |b| bf16::from_le_bytes(b).to_f64()),
            U8 => unpack(d, |[b]| b.into()),
            I8 => unpack(d, |b| i8::from_le_bytes(b).into()),
            U16 => unpack(d, |b| u16::from_le_bytes(b).into()),
            I16 => unpack(d, |b| i16::from_le_bytes(b).into()),
            U32 => unpack(d, |b| u32::from_le_bytes(b).into()),
            I32 => unpack(d, |b| i32::from_le_bytes(b).into()),
            U64 => unpack(d, |b| u64::from_le_bytes(b) as f64),
            I64 => unpack(d, |b| i64::from_le_bytes(b) as f64),
            Bool => unpack(d, |[b]| f64::from(b != 0)),
            F8E4M3FN => unpack(d, |[b]| if b & 0x7f == 0x7f { f64::NAN } else { minifloat(b, 4, 3, 7) }),
            F8E4M3FNUZ => unpack(d, |[b]| if b == 0x80 { f64::NAN } else { minifloat(b, 4, 3, 8) }),
            F8E5M2 => unpack(d, |[b]| match b & 0x7f {
                0x7c => f64::INFINITY.copysign(if b < 0x80 { 1.0 } else { -1.0 }),
                0x7d.. => f64::NAN,
                _ => minifloat(b, 5, 2, 15),
            }),
            F8E5M2FNUZ => unpack(d, |[b]| if b == 0x80 { f64::NAN } else { minifloat(b, 5, 2, 16) }),
            F8E8M0 => unpack(d, |[b]| if b == 0xff { f64::NAN } else { 2f64.powi(i32::from(b) - 127) }),
            F4E2M1 => unpack_bits(d, 4, count, |b| minifloat(b, 2, 1, 1)),
            U4 => unpack_bits(d, 4, count, f64::from),
            U2 => unpack_bits(d, 2, count, f64::from),
            I4 => unpack_bits(d, 4, count, |b| sign_extend(b, 4).into()),
            I2 => unpack_bits(d, 2, count, |b| sign_extend(b, 2).into()),
            String | C64 | C128 => return Err(self.not_convertible(dtype, "real numbers")),
        })
    }

    /// The elements of any real type as f32, rounded to nearest.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        let dtype = self.dtype()?;
        Ok(match dtype {
            DType::F32 => unpack(&self.data()?, f32::from_le_bytes),
            DType::F16 => unpack(&self.data()?, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => unpack(&self.data()?, |b| bf16::from_le_bytes(b).to_f32()),
            _ => self.to_f64_vec()?.into_iter().map(|v| v as f32).collect(),
        })
    }

    /// The elements of an integer or boolean type. An error for other types and for values over `i64::MAX`.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>> {
        use DType::*;
        let (dtype, count, data) = (self.dtype()?, self.len()?, self.data()?);
        let d = &data[..];
        Ok(match dtype {
            I64 => unpack(d, i64::from_le_bytes),
            I32 => unpack(d, |b| i32::from_le_bytes(b).into()),
            I16 => unpack(d, |b| i16::from_le_bytes(b).into()),
            I8 => unpack(d, |b| i8::from_le_bytes(b).into()),
            U8 => unpack(d, |[b]| b.into()),
            U16 => unpack(d, |b| u16::from_le_bytes(b).into()),
            U32 => unpack(d, |b| u32::from_le_bytes(b).into()),
            U64 => {
                let values = unpack(d, u64::from_le_bytes);
                let signed: Result<Vec<i64>, _> = values.into_iter().map(i64::try_from).collect();
                signed.map_err(|_| self.invalid("a value is over the largest int64"))?
            }
            Bool => unpack(d, |[b]| i64::from(b != 0)),
            U4 => unpack_bits(d, 4, count, i64::from),
            U2 => unpack_bits(d, 2, count, i64::from),
            I4 => unpack_bits(d, 4, count, |b| sign_extend(b, 4).into()),
            I2 => unpack_bits(d, 2, count, |b| sign_extend(b, 2).into()),
            _ => return Err(self.not_convertible(dtype, "integers")),
        })
    }

    /// Whether any field for elements has entries.
    pub(super) fn has_elements(&self) -> bool {
        !matches!(self.field_in_use(), Ok(None))
    }

    /// The one field that has entries. Empty fields do not count, since an empty tensor may leave any of them.
    fn field_in_use(&self) -> Result<Option<(Field, usize)>> {
        let fields = [
            (Field::Raw, self.raw_data.as_ref().map_or(0, Bytes::len)),
            (Field::Float, self.float_data.len()),
            (Field::Int32, self.int32_data.len()),
            (Field::String, self.string_data.len()),
            (Field::Int64, self.int64_data.len()),
            (Field::Double, self.double_data.len()),
            (Field::Uint64, self.uint64_data.len()),
        ];
        let mut used = fields.into_iter().filter(|(_, len)| *len > 0);
        match (used.next(), used.next()) {
            (Some((a, _)), Some((b, _))) => {
                Err(self.invalid(format!("has elements in both {} and {}", a.name(), b.name())))
            }
            (first, _) => Ok(first),
        }
    }

    /// The tensor as messages name it.
    pub(super) fn place(&self) -> String {
        match self.name.as_deref() {
            None | Some("") => "unnamed tensor".to_owned(),
            Some(name) => format!("tensor '{name}'"),
        }
    }

    fn type_text(&self, dtype: DType) -> String {
        format!("{dtype}{}", DimsText(&self.dims))
    }

    fn invalid(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.place(), what)
    }

    fn too_large(&self) -> Error {
        self.invalid(format!("dims {} are too large", DimsText(&self.dims)))
    }

    fn not_convertible(&self, dtype: DType, to: &str) -> Error {
        self.invalid(format!("holds {dtype} where {to} are expected"))
    }
}

/// Dims as text, short even if there are many.
struct DimsText<'a>(&'a [i64]);

impl fmt::Display for DimsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        f.write_str("[")?;
        for (i, dim) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "," })?;
        }
        if self.0.len() > SHOWN {
            write!(f, ",... {} axes", self.0.len())?;
        }
        f.write_str("]")
    }
}

/// The product of dims. A zero anywhere gives zero, however large the others are.
fn element_count(dims: &[i64]) -> Result<usize, String> {
    if let Some(negative) = dims.iter().find(|d| **d < 0) {
        return Err(format!("negative axis {negative} in dims {}", DimsText(dims)));
    }
    if dims.contains(&0) {
        return Ok(0);
    }
    let product = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?));
    product.ok_or_else(|| format!("dims {} are too large", DimsText(dims)))
}

fn pack<const N: usize>(values: impl ExactSizeIterator<Item = [u8; N]>) -> Bytes {
    let mut out = Vec::with_capacity(values.len() * N);
    values.for_each(|v| out.extend_from_slice(&v));
    out.into()
}

fn pack_low<const N: usize>(values: impl ExactSizeIterator<Item = [u8; N]>, low: usize) -> Bytes {
    let low = low.min(N);
    let mut out = Vec::with_capacity(values.len() * low);
    values.for_each(|v| out.extend_from_slice(&v[..low]));
    out.into()
}

fn unpack<const N: usize, T>(data: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|chunk| f(*chunk)).collect()
}

/// Elements of `bits` bits each, the first in the low bits of a byte.
fn unpack_bits<T>(data: &[u8], bits: usize, count: usize, f: impl Fn(u8) -> T) -> Vec<T> {
    let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
    let elements = data.iter().flat_map(|byte| (0..per_byte).map(move |i| (byte >> (i * bits)) & mask));
    elements.take(count).map(f).collect()
}

fn sign_extend(value: u8, bits: u32) -> i8 {
    let shift = 8 - bits;
    ((value << shift) as i8) >> shift
}

/// A small float without infinities: sign, exponent and mantissa in the low bits of `code`.
fn minifloat(code: u8, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f64 {
    let mantissa = f64::from(code & ((1 << mantissa_bits) - 1));
    let exponent = i32::from((code >> mantissa_bits) & ((1 << exponent_bits) - 1));
    let scale = f64::from(1u32 << mantissa_bits);
    let magnitude = match exponent {
        0 => mantissa / scale * 2f64.powi(1 - bias),
        _ => (1.0 + mantissa / scale) * 2f64.powi(exponent - bias),
    };
    if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(dtype: DType, dims: &[i64]) -> TensorProto {
        TensorProto {
            dims: dims.to_vec(),
            data_type: Some(dtype as i32),
            name: Some("w".to_owned()),
            ..TensorProto::default()
        }
    }

    fn message(result: Result<impl fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn raw_data_is_shared_not_copied() {
        let data = Bytes::from(vec![0u8; 8]);
        let tensor = TensorProto::from_raw("w", DType::F32, &[2], data.clone());
        assert_eq!(tensor.data().unwrap().as_ptr(), data.as_ptr());
    }

    #[test]
    fn constructors_and_conversions_agree() {
        let values = [1.5f32, -2.0, 0.0];
        let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
        let brains: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
        let doubles: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        for tensor in [
            TensorProto::from_f32("w", &[3], &values),
            TensorProto::from_f16("w", &[3], &halves),
            TensorProto::from_bf16("w", &[3], &brains),
            TensorProto::from_f64("w", &[3], &doubles),
        ] {
            assert_eq!(tensor.to_f32_vec().unwrap(), values);
            assert_eq!(tensor.to_f64_vec().unwrap(), doubles);
            assert!(message(tensor.to_i64_vec()).contains("where integers are expected"));
        }
        assert_eq!(TensorProto::from_i64("w", &[2], &[i64::MIN, 7]).to_i64_vec().unwrap(), [i64::MIN, 7]);
        assert_eq!(TensorProto::from_i32("w", &[2], &[-1, 7]).to_i64_vec().unwrap(), [-1, 7]);
        assert_eq!(TensorProto::from_bool("w", &[2], &[true, false]).to_f32_vec().unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn every_typed_field_is_packed() {
        let mut tensor = typed(DType::F16, &[2]);
        tensor.int32_data = vec![0x3c00, 0xc000];
        assert_eq!(tensor.data().unwrap()[..], [0x00, 0x3c, 0x00, 0xc0]);
        assert_eq!(tensor.to_f32_vec().unwrap(), [1.0, -2.0]);

        let mut tensor = typed(DType::I8, &[2]);
        tensor.int32_data = vec![-1, 5];
        assert_eq!(tensor.to_i64_vec().unwrap(), [-1, 5]);

        let mut tensor = typed(DType::U32, &[1]);
        tensor.uint64_data = vec![0xffff_ffff];
        assert_eq!(tensor.to_i64_vec().unwrap(), [0xffff_ffff]);

        let mut tensor = typed(DType::I4, &[3]);
        tensor.int32_data = vec![0xf1, 0x07];
        assert_eq!(tensor.to_i64_vec().unwrap(), [1, -1, 7]);
        tensor.data_type = Some(DType::U4 as i32);
        assert_eq!(tensor.to_f64_vec().unwrap(), [1.0, 15.0, 7.0]);

        let mut tensor = typed(DType::I2, &[5]);
        tensor.int32_data = vec![0b11_10_01_00, 0b01];
        assert_eq!(tensor.to_i64_vec().unwrap(), [0, 1, -2, -1, 1]);

        let mut tensor = typed(DType::C64, &[1]);
        tensor.float_data = vec![1.0, 2.0];
        assert_eq!(tensor.data().unwrap().len(), 8);
        assert!(message(tensor.to_f64_vec()).contains("complex64"));

        let mut tensor = typed(DType::U64, &[1]);
        tensor.uint64_data = vec![u64::MAX];
        assert!(message(tensor.to_i64_vec()).contains("over the largest int64"));
    }

    #[test]
    fn small_floats() {
        let decode = |dtype, codes: &'static [u8], n: i64| {
            TensorProto::from_raw("w", dtype, &[n], Bytes::from_static(codes)).to_f64_vec().unwrap()
        };
        assert_eq!(decode(DType::F8E4M3FN, &[0x38, 0x7e, 0x01, 0xb8], 4), [1.0, 448.0, 2f64.powi(-9), -1.0]);
        assert!(decode(DType::F8E4M3FN, &[0xff], 1)[0].is_nan());
        assert_eq!(decode(DType::F8E4M3FNUZ, &[0x40, 0x7f], 2), [1.0, 240.0]);
        assert_eq!(decode(DType::F8E5M2, &[0x3c, 0x7b, 0xfc], 3), [1.0, 57344.0, f64::NEG_INFINITY]);
        assert_eq!(decode(DType::F8E5M2FNUZ, &[0x40, 0x7f], 2), [1.0, 57344.0]);
        assert!(decode(DType::F8E5M2FNUZ, &[0x80], 1)[0].is_nan());
        assert_eq!(decode(DType::F8E8M0, &[127, 130], 2), [1.0, 8.0]);
        assert_eq!(decode(DType::F4E2M1, &[0x72, 0x09], 3), [1.0, 6.0, -0.5]);
    }

    #[test]
    fn wrong_sizes_are_named() {
        let tensor = TensorProto::from_f32("w", &[2, 3], &[0.0; 5]);
        assert_eq!(message(tensor.check()), "tensor 'w': float[2,3] needs 24 bytes in raw_data, found 20");
        let huge = TensorProto::from_f32("w", &[i64::MAX, 4], &[0.0]);
        assert!(message(huge.data()).contains("are too large"));
        let huge = TensorProto::from_f32("w", &[i64::MAX], &[0.0]);
        assert!(message(huge.data()).contains("are too large"));
        let huge = TensorProto::from_f32("w", &[1 << 50], &[0.0]);
        assert!(message(huge.to_f32_vec()).contains("found 4"));
        let empty = TensorProto::from_f32("w", &[i64::MAX, i64::MAX, 0], &[]);
        assert_eq!(empty.to_f32_vec().unwrap(), [0f32; 0]);
        assert!(message(TensorProto::from_f32("w", &[-1], &[]).check()).contains("negative axis -1"));
        assert!(message(typed(DType::F32, &[]).check()).contains("no data for 1 elements (float[])"));

        let mut tensor = typed(DType::F32, &[1]);
        tensor.int64_data = vec![1];
        assert!(message(tensor.check()).contains("int64_data, which is not for float"));
        tensor.raw_data = Some(Bytes::from_static(&[0; 4]));
        assert!(message(tensor.check()).contains("both raw_data and int64_data"));
        tensor.data_type = Some(99);
        assert!(message(tensor.check()).contains("unknown element type 99"));
    }
}
