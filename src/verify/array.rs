//! Tensors on their way in and out of ONNX Runtime.

use std::path::Path;

use half::{bf16, f16};
use npyz::TypeChar;
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

use crate::error::{Error, Result};
use crate::files;
use crate::onnx::DType;

/// A tensor: its elements in the widest type of their kind, and the type that they have in the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub data: Data,
}

/// Elements, row major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Float(Vec<f64>),
    /// Integers and booleans.
    Int(Vec<i128>),
    Text(Vec<String>),
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Self::Float(v) => v.len(),
            Self::Int(v) => v.len(),
            Self::Text(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub(super) fn dtype_of(ty: TensorElementType) -> Option<DType> {
    Some(match ty {
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::BF16,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Bool => DType::Bool,
        TensorElementType::String => DType::String,
        _ => return None,
    })
}

fn runtime_error(context: &str) -> impl FnOnce(ort::Error) -> Error + '_ {
    move |e| Error::Runtime { context: context.to_owned(), message: e.message().to_owned() }
}

impl Array {
    /// The tensor as ONNX Runtime takes it.
    pub(super) fn to_value(&self, name: &str) -> Result<DynValue> {
        let context = format!("input '{name}'");
        macro_rules! tensor {
            ($values:expr) => {
                Tensor::from_array((self.shape.clone(), $values.collect::<Vec<_>>()))
                    .map(|t| t.into_dyn())
                    .map_err(runtime_error(&context))
            };
        }
        match (&self.data, self.dtype) {
            (Data::Float(v), DType::F32) => tensor!(v.iter().map(|&x| x as f32)),
            (Data::Float(v), DType::F64) => tensor!(v.iter().copied()),
            (Data::Float(v), DType::F16) => tensor!(v.iter().map(|&x| f16::from_f64(x))),
            (Data::Float(v), DType::BF16) => tensor!(v.iter().map(|&x| bf16::from_f64(x))),
            (Data::Int(v), DType::U8) => tensor!(v.iter().map(|&x| x as u8)),
            (Data::Int(v), DType::I8) => tensor!(v.iter().map(|&x| x as i8)),
            (Data::Int(v), DType::U16) => tensor!(v.iter().map(|&x| x as u16)),
            (Data::Int(v), DType::I16) => tensor!(v.iter().map(|&x| x as i16)),
            (Data::Int(v), DType::U32) => tensor!(v.iter().map(|&x| x as u32)),
            (Data::Int(v), DType::I32) => tensor!(v.iter().map(|&x| x as i32)),
            (Data::Int(v), DType::U64) => tensor!(v.iter().map(|&x| x as u64)),
            (Data::Int(v), DType::I64) => tensor!(v.iter().map(|&x| x as i64)),
            (Data::Int(v), DType::Bool) => tensor!(v.iter().map(|&x| x != 0)),
            (Data::Text(v), DType::String) => Tensor::from_string_array((self.shape.clone(), v.as_slice()))
                .map(|t| t.into_dyn())
                .map_err(runtime_error(&context)),
            (_, dtype) => Err(Error::Usage(format!("{context}: no elements of type {dtype} can be made"))),
        }
    }

    pub(super) fn of_value(name: &str, value: &DynValue) -> Result<Self> {
        let context = format!("output '{name}'");
        let ValueType::Tensor { ty, .. } = value.dtype() else {
            let what = format!("is {}, and only tensors can be compared", value.dtype());
            return Err(Error::invalid(context, what));
        };
        let dtype = dtype_of(*ty)
            .ok_or_else(|| Error::invalid(&context, format!("has elements of type {ty}, which cannot be compared")))?;
        macro_rules! elements {
            ($t:ty, $kind:ident, $convert:expr) => {{
                let (shape, data) = value.try_extract_tensor::<$t>().map_err(runtime_error(&context))?;
                (shape.to_vec(), Data::$kind(data.iter().map($convert).collect()))
            }};
        }
        let (shape, data) = match dtype {
            DType::F32 => elements!(f32, Float, |&x| f64::from(x)),
            DType::F64 => elements!(f64, Float, |&x| x),
            DType::F16 => elements!(f16, Float, |x| x.to_f64()),
            DType::BF16 => elements!(bf16, Float, |x| x.to_f64()),
            DType::U8 => elements!(u8, Int, |&x| x.into()),
            DType::I8 => elements!(i8, Int, |&x| x.into()),
            DType::U16 => elements!(u16, Int, |&x| x.into()),
            DType::I16 => elements!(i16, Int, |&x| x.into()),
            DType::U32 => elements!(u32, Int, |&x| x.into()),
            DType::I32 => elements!(i32, Int, |&x| x.into()),
            DType::U64 => elements!(u64, Int, |&x| x.into()),
            DType::I64 => elements!(i64, Int, |&x| x.into()),
            DType::Bool => elements!(bool, Int, |&x| x.into()),
            _ => {
                let (shape, data) = value.try_extract_strings().map_err(runtime_error(&context))?;
                (shape.to_vec(), Data::Text(data))
            }
        };
        Ok(Self { dtype, shape, data })
    }

    /// The array with elements of another type of its kind (float or integer).
    pub fn cast(self, dtype: DType) -> Option<Self> {
        let same_kind = match &self.data {
            Data::Float(_) => dtype.is_float(),
            Data::Int(_) => !dtype.is_float() && dtype != DType::String,
            Data::Text(_) => dtype == DType::String,
        };
        same_kind.then_some(Self { dtype, ..self })
    }
}

impl Array {
    /// Writes a `.npy` file: floats as 32-bit floats, integers and booleans as 64-bit integers.
    pub fn write_npy(&self, path: &Path) -> Result<()> {
        use npyz::WriterBuilder;

        fn bytes<T: npyz::AutoSerialize>(shape: &[u64], values: impl Iterator<Item = T>) -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![];
            let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut bytes).begin_nd()?;
            writer.extend(values)?;
            writer.finish()?;
            Ok(bytes)
        }
        let shape: Vec<u64> = self.shape.iter().map(|&d| d.unsigned_abs()).collect();
        let bytes = match &self.data {
            Data::Float(v) => bytes(&shape, v.iter().map(|&x| x as f32)),
            Data::Int(v) => bytes(&shape, v.iter().map(|&x| x as i64)),
            Data::Text(_) => return Err(Error::Usage(format!("{}: text is not written", path.display()))),
        };
        files::write(path, &bytes.map_err(Error::io("write", path))?)
    }
}

/// Arrays of a `.npz` file by name, or the one of a `.npy` file, whose name is empty.
pub fn read_numpy(path: &Path) -> Result<Vec<(String, Array)>> {
    let bad = |what: String| Error::malformed(path, what);
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
            Error::malformed(path, format!("is not a NumPy file: {e}"))
        }
        _ => Error::io("read", path)(e),
    };
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut head = [0u8; 2];
    std::io::Read::read(&mut &file, &mut head).map_err(Error::io("read", path))?;
    std::io::Seek::rewind(&mut &file).map_err(Error::io("read", path))?;
    let file = std::io::BufReader::new(file);
    if &head != b"PK" {
        let npy = npyz::NpyFile::new(file).map_err(io)?;
        return Ok(vec![(String::new(), of_npy(npy).map_err(bad)?)]);
    }
    let unzip = |e: zip::result::ZipError| bad(format!("is not a NumPy archive: {e}"));
    let mut archive = zip::ZipArchive::new(file).map_err(unzip)?;
    let mut arrays = vec![];
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(unzip)?;
        let file_name = entry.name().map_err(unzip)?.into_owned();
        let Some(name) = npyz::npz::array_name_from_file_name(&file_name) else { continue };
        let npy = npyz::NpyFile::new(entry).map_err(io)?;
        let array = of_npy(npy).map_err(|what| bad(format!("array '{name}': {what}")))?;
        arrays.push((name.to_owned(), array));
    }
    Ok(arrays)
}

fn of_npy<R: std::io::Read>(npy: npyz::NpyFile<R>) -> Result<Array, String> {
    let header = npy.header();
    let npyz::DType::Plain(ty) = header.dtype() else {
        return Err("has records for elements; numbers are expected".into());
    };
    let shape: Option<Vec<i64>> = header.shape().iter().map(|&d| d.try_into().ok()).collect();
    let shape = shape.ok_or("has an axis that is too long")?;
    let (order, descr) = (header.order(), ty.to_string());
    macro_rules! elements {
        ($dtype:ident, $t:ty, $kind:ident, $convert:expr) => {{
            let data = npy.into_vec::<$t>().map_err(|e| e.to_string())?;
            (DType::$dtype, Data::$kind(data.into_iter().map($convert).collect()))
        }};
    }
    let (dtype, data) = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Float, 2) => elements!(F16, f16, Float, |x| x.to_f64()),
        (TypeChar::Float, 4) => elements!(F32, f32, Float, f64::from),
        (TypeChar::Float, 8) => elements!(F64, f64, Float, |x| x),
        (TypeChar::Int, 1) => elements!(I8, i8, Int, i128::from),
        (TypeChar::Int, 2) => elements!(I16, i16, Int, i128::from),
        (TypeChar::Int, 4) => elements!(I32, i32, Int, i128::from),
        (TypeChar::Int, 8) => elements!(I64, i64, Int, i128::from),
        (TypeChar::Uint, 1) => elements!(U8, u8, Int, i128::from),
        (TypeChar::Uint, 2) => elements!(U16, u16, Int, i128::from),
        (TypeChar::Uint, 4) => elements!(U32, u32, Int, i128::from),
        (TypeChar::Uint, 8) => elements!(U64, u64, Int, i128::from),
        (TypeChar::Bool, _) => elements!(Bool, bool, Int, i128::from),
        _ => return Err(format!("has elements of type {descr}; float, int, uint or bool is expected")),
    };
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize)).ok_or("is too large")?;
    if data.len() != count {
        return Err(format!("has {} elements, and its shape {shape:?} needs {count}", data.len()));
    }
    let data = match (order, data) {
        (npyz::Order::Fortran, Data::Float(v)) => Data::Float(row_major(&shape, &v)),
        (npyz::Order::Fortran, Data::Int(v)) => Data::Int(row_major(&shape, &v)),
        (_, data) => data,
    };
    Ok(Array { dtype, shape, data })
}

/// Column-major elements in row-major order.
fn row_major<T: Copy>(shape: &[i64], data: &[T]) -> Vec<T> {
    let mut index = vec![0usize; shape.len()];
    let mut out = Vec::with_capacity(data.len());
    for _ in 0..data.len() {
        let at = index.iter().zip(shape).rev().fold(0, |at, (&i, &d)| at * d as usize + i);
        out.push(data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] as usize {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_major_is_transposed() {
        // 2x3, columns first.
        assert_eq!(row_major(&[2, 3], &[1, 4, 2, 5, 3, 6]), [1, 2, 3, 4, 5, 6]);
        assert!(row_major::<i32>(&[0, 3], &[]).is_empty());
        assert_eq!(row_major(&[], &[7]), [7]);
    }

    #[test]
    fn what_is_written_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let floats =
            Array { dtype: DType::F32, shape: vec![2, 1, 2], data: Data::Float(vec![0.5, -1.0, 3.0, 1e30f32.into()]) };
        let integers = Array { dtype: DType::I64, shape: vec![3], data: Data::Int(vec![1, -2, i128::from(i64::MAX)]) };
        let scalar = Array { dtype: DType::F32, shape: vec![], data: Data::Float(vec![2.0]) };
        for array in [floats, integers, scalar] {
            array.write_npy(file.path()).unwrap();
            assert_eq!(read_numpy(file.path()).unwrap(), [(String::new(), array)]);
        }
    }

    #[test]
    fn text_is_no_numpy_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello").unwrap();
        let error = read_numpy(file.path()).unwrap_err();
        assert!(error.to_string().contains("not a NumPy file"), "{error}");
    }
}
