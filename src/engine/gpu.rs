//! The GPU, through CUDA's driver, which is loaded at run time.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use serde::Serialize;

use super::error::{Error, Result};
use crate::rewrite::ComputeCapability;

/// A GPU in use: its primary context, which TensorRT uses too, and a stream.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) stream: Arc<CudaStream>,
    pub description: Description,
}

/// What results are worth nothing without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    pub name: String,
    pub compute_capability: ComputeCapability,
    pub memory_bytes: u64,
    /// Version of CUDA that the driver has: `12.4`.
    pub cuda: String,
    /// `550.54.15`, if it is known.
    pub driver: Option<String>,
}

impl Gpu {
    /// The first GPU that the driver shows; `CUDA_VISIBLE_DEVICES` decides which that is.
    pub fn first() -> Result<Self> {
        let context = context()?;
        let describe = || {
            let (major, minor) = context.compute_capability()?;
            // Neither is negative.
            let [major, minor] = [major, minor].map(i32::unsigned_abs);
            Ok(Description {
                name: context.name()?,
                compute_capability: ComputeCapability { major, minor },
                memory_bytes: context.total_mem()? as u64,
                cuda: cuda_version()?,
                driver: driver_version(),
            })
        };
        let description = describe().map_err(no_gpu)?;
        let stream = context.new_stream().map_err(no_gpu)?;
        Ok(Self { stream, description })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// The stream as TensorRT takes it.
    pub(super) fn raw_stream(&self) -> usize {
        self.stream.cu_stream() as usize
    }

    /// Makes the context current in this thread, which TensorRT needs.
    pub(super) fn bind(&self) -> Result<()> {
        self.context().bind_to_thread().map_err(failed("using the GPU"))
    }
}

fn no_gpu(error: DriverError) -> Error {
    Error::NoGpu { why: format!("CUDA's driver says: {}", words(error)) }
}

/// The primary context. It is kept to the end of the process: TensorRT's objects live in it and are not counted among
/// its users.
fn context() -> Result<Arc<CudaContext>> {
    static CONTEXT: Mutex<Option<Arc<CudaContext>>> = Mutex::new(None);
    let mut kept = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = &*kept {
        return Ok(context.clone());
    }
    // SAFETY: looks whether a library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoGpu { why: "CUDA's driver (libcuda.so.1) is not on this machine".into() });
    }
    if CudaContext::device_count().map_err(no_gpu)? < 1 {
        return Err(Error::NoGpu { why: "CUDA's driver shows none".into() });
    }
    let context = CudaContext::new(0).map_err(no_gpu)?;
    // SAFETY: memory is used in the stream that it was allocated in, or after waiting for that stream; and the events
    // that keep track would be in the way of captures.
    unsafe { context.disable_event_tracking() };
    *kept = Some(context.clone());
    Ok(context)
}

fn cuda_version() -> Result<String, DriverError> {
    let mut version = 0;
    // SAFETY: writes the one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |w: &&str| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// `CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected`.
fn words(error: DriverError) -> String {
    let name = result::DriverError::error_name(&error).map(|n| n.to_string_lossy().into_owned());
    let text = result::DriverError::error_string(&error).map(|n| n.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name}: {text}"),
        _ => format!("{:?}", error.0),
    }
}

/// An error of the driver while doing something.
pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    let action = action.into();
    move |error| Error::Cuda { action, message: words(error) }
}
