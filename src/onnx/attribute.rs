//! Making attributes.

use bytes::Bytes;

use super::proto::{AttributeProto, AttributeType, TensorProto};

impl AttributeProto {
    fn of(name: &str, kind: AttributeType) -> Self {
        Self { name: Some(name.into()), r#type: Some(kind as i32), ..Self::default() }
    }

    pub fn int(name: &str, value: i64) -> Self {
        Self { i: Some(value), ..Self::of(name, AttributeType::Int) }
    }

    pub fn float(name: &str, value: f32) -> Self {
        Self { f: Some(value), ..Self::of(name, AttributeType::Float) }
    }

    pub fn string(name: &str, value: &str) -> Self {
        Self { s: Some(Bytes::copy_from_slice(value.as_bytes())), ..Self::of(name, AttributeType::String) }
    }

    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { ints: values.to_vec(), ..Self::of(name, AttributeType::Ints) }
    }

    pub fn tensor(name: &str, value: TensorProto) -> Self {
        Self { t: Some(Box::new(value)), ..Self::of(name, AttributeType::Tensor) }
    }
}
