//! Running engines: memory, inferences, CUDA graphs, times.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, DevicePtr, DriverError, sys};
use cxx::{SharedPtr, UniquePtr};
use half::{bf16, f16};
use serde::Serialize;

use super::bridge::ffi;
use super::error::{Error, Result, refused};
use super::gpu::{Gpu, failed};
use super::layers::Layers;
use super::library::{Library, plugin_paths};
use crate::onnx::DType;
use crate::verify::{Array, Data};

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub is_input: bool,
    pub dtype: DType,
    /// -1 for open axes.
    pub shape: Vec<i64>,
    /// Of inputs with open axes: the smallest sizes, those that it was optimized for, the largest.
    pub profile: Option<super::Shape>,
}

/// An engine, deserialized.
pub struct Engine {
    inner: SharedPtr<ffi::Engine>,
    tensors: Vec<TensorInfo>,
    /// Of the serialized engine.
    pub size: usize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("tensors", &self.tensors).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Engine {
    /// Deserializes what [`super::build`] or another program built with the same version of TensorRT on the same kind of
    /// GPU, with the plugin libraries that it needs.
    pub fn deserialize(library: &Library, plan: &[u8], plugins: &[PathBuf]) -> Result<Self> {
        Gpu::first()?.bind()?;
        let runtime = library.runtime()?;
        let plugins = plugin_paths(plugins)?;
        let action = || "deserializing the engine".to_owned();
        // SAFETY: TensorRT's function of this name, of the headers' major version.
        let inner = refused(action, || unsafe { ffi::deserialize(runtime.0, plan, &plugins) })?;
        let tensors = refused(action, || inner.tensors())?.into_iter().map(tensor_info).collect::<Result<_>>()?;
        Ok(Self { inner, tensors, size: plan.len() })
    }

    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn inputs(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter(|t| t.is_input)
    }

    /// None, with a warning, where TensorRT's list of them is not understood: an engine that took minutes to build is
    /// not thrown away for that.
    pub fn layers(&self) -> Layers {
        let json = refused(|| "listing the layers of the engine".into(), || self.inner.information());
        json.and_then(Layers::parse).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Layers { layers: vec![], json: "{}".into() }
        })
    }

    /// Bytes of device memory that a session needs beside weights, inputs and outputs.
    pub fn device_memory(&self) -> u64 {
        self.inner.device_memory()
    }
}

fn tensor_info(raw: ffi::TensorInfo) -> Result<TensorInfo> {
    let unsupported = |what: &str| Error::Refused {
        action: format!("using the engine's tensor '{}'", raw.name),
        message: format!("{what}, which is not supported here"),
    };
    let dtype = match raw.kind {
        ffi::ElementType::Float32 => DType::F32,
        ffi::ElementType::Float16 => DType::F16,
        ffi::ElementType::BFloat16 => DType::BF16,
        ffi::ElementType::Int8 => DType::I8,
        ffi::ElementType::UInt8 => DType::U8,
        ffi::ElementType::Int32 => DType::I32,
        ffi::ElementType::Int64 => DType::I64,
        ffi::ElementType::Bool => DType::Bool,
        _ => return Err(unsupported("its elements are of another type than float, float16, bfloat16, int or bool")),
    };
    if !raw.on_device {
        return Err(unsupported("it lies in host memory since it is a shape"));
    }
    let open = raw.shape.contains(&-1);
    let profile = (raw.input && open).then_some(super::Shape { min: raw.min, opt: raw.opt, max: raw.max });
    Ok(TensorInfo { name: raw.name, is_input: raw.input, dtype, shape: raw.shape, profile })
}

/// How many kernels and other nodes an inference is as a CUDA graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GraphSize {
    pub kernels: usize,
    /// Kernels, copies, memory sets and others.
    pub nodes: usize,
}

/// Time of a layer, over the runs of a profile.
#[derive(Clone, Debug, Serialize)]
pub struct LayerTime {
    pub name: String,
    pub mean_us: f64,
}

struct Buffer {
    info: TensorInfo,
    shape: Vec<i64>,
    memory: CudaSlice<u8>,
}

/// An engine ready to run: an execution context with memory for all inputs and outputs, at fixed shapes.
pub struct Session {
    // Dropped in this order: the graph and context use the memory.
    graph: Option<CudaGraph>,
    context: UniquePtr<ffi::Context>,
    buffers: Vec<Buffer>,
    events: (CudaEvent, CudaEvent),
    gpu: Gpu,
}

impl Session {
    /// A session at these shapes of inputs with open axes; without one, at the shape that the engine was optimized for.
    ///
    /// In TensorRT 8 an engine with open axes has one session at a time.
    pub fn new(engine: &Engine, gpu: &Gpu, shapes: &BTreeMap<String, Vec<i64>>) -> Result<Self> {
        gpu.bind()?;
        let action = || "making an execution context".to_owned();
        let mut context = refused(action, || ffi::new_context(engine.inner.clone()))?;
        for input in engine.inputs() {
            let shape = shapes.get(&input.name).or(input.profile.as_ref().map(|p| &p.opt)).unwrap_or(&input.shape);
            let action =
                || format!("giving input '{}' ({:?} in the engine) the shape {shape:?}", input.name, input.shape);
            refused(action, || context.pin_mut().set_input_shape(&input.name, shape))?;
        }
        let mut buffers = vec![];
        for info in engine.tensors() {
            let action = || format!("placing '{}'", info.name);
            let shape = refused(action, || context.shape(&info.name))?;
            let bytes = bytes_of(info.dtype, &shape).ok_or_else(|| Error::Refused {
                action: action(),
                message: format!("its shape {shape:?} is too large"),
            })?;
            // TensorRT wants an address even where there is nothing.
            let memory = gpu
                .stream
                .alloc_zeros::<u8>(bytes.max(1))
                .map_err(failed(format!("allocating {bytes} bytes for '{}'", info.name)))?;
            let address = memory.device_ptr(&gpu.stream).0 as usize;
            // SAFETY: the memory is as large as the tensor and is kept for as long as the context.
            refused(action, || unsafe { context.pin_mut().set_address(&info.name, address) })?;
            buffers.push(Buffer { info: info.clone(), shape, memory });
        }
        let event = || gpu.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let events = event().and_then(|first| Ok((first, event()?))).map_err(failed("making events"))?;
        let session = Self { graph: None, context, buffers, events, gpu: gpu.clone() };
        session.wait("allocating memory")?;
        Ok(session)
    }

    /// Names, types and shapes of the inputs as they are now.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, DType, &[i64])> {
        self.buffers
            .iter()
            .filter(|b| b.info.is_input)
            .map(|b| (b.info.name.as_str(), b.info.dtype, b.shape.as_slice()))
    }

    /// Copies an array into an input, in the type that the engine has.
    pub fn set_input(&mut self, name: &str, array: &Array) -> Result<()> {
        let names = self.inputs().map(|(name, ..)| name.to_owned()).collect::<Vec<_>>().join(", ");
        let Some(buffer) = self.buffers.iter_mut().find(|b| b.info.is_input && b.info.name == name) else {
            return Err(Error::Option {
                what: format!("input '{name}'"),
                why: format!("is not of the engine, which has: {names}"),
            });
        };
        if array.shape != buffer.shape {
            return Err(Error::Option {
                what: format!("input '{name}'"),
                why: format!("has the shape {:?}, and the array {:?}", buffer.shape, array.shape),
            });
        }
        let bytes = encode(&array.data, buffer.info.dtype).ok_or_else(|| Error::Option {
            what: format!("input '{name}'"),
            why: format!("is {}, and the array {}", buffer.info.dtype, array.dtype),
        })?;
        let action = || format!("copying input '{name}' to the GPU");
        if !bytes.is_empty() {
            self.gpu.stream.memcpy_htod(&bytes, &mut buffer.memory).map_err(failed(action()))?;
        }
        self.wait(&action())
    }

    /// Fills every input with random values, the same for the same seed, names and shapes.
    pub fn fill_random(&mut self, seed: u64) -> Result<()> {
        let inputs: Vec<_> =
            self.inputs().map(|(name, dtype, shape)| (name.to_owned(), dtype, shape.to_vec())).collect();
        for (i, (name, dtype, shape)) in inputs.into_iter().enumerate() {
            self.set_input(&name, &Array::random(dtype, shape, seed.wrapping_add(i as u64)))?;
        }
        Ok(())
    }

    /// All outputs as they are now.
    pub fn outputs(&self) -> Result<Vec<(String, Array)>> {
        let outputs = self.buffers.iter().filter(|b| !b.info.is_input);
        let read = |b: &Buffer| {
            let bytes = self.gpu.stream.clone_dtoh(&b.memory);
            let mut bytes = bytes.map_err(failed(format!("copying output '{}' from the GPU", b.info.name)))?;
            self.wait("copying outputs from the GPU")?;
            bytes.truncate(bytes_of(b.info.dtype, &b.shape).unwrap_or(0));
            let data = decode(&bytes, b.info.dtype);
            Ok((b.info.name.clone(), Array { dtype: b.info.dtype, shape: b.shape.clone(), data }))
        };
        outputs.map(read).collect()
    }

    /// Fills all outputs with ones in every bit, which is NaN in floats: what is read afterwards was written since.
    pub fn poison_outputs(&mut self) -> Result<()> {
        let stream = self.gpu.raw_stream() as sys::CUstream;
        for b in self.buffers.iter().filter(|b| !b.info.is_input) {
            let address = b.memory.device_ptr(&self.gpu.stream).0;
            // SAFETY: the memory is of this length.
            let set = unsafe { cudarc::driver::result::memset_d8_async(address, 0xff, b.memory.len(), stream) };
            set.map_err(failed("filling outputs"))?;
        }
        self.wait("filling outputs")
    }

    fn enqueue(&mut self) -> Result<()> {
        let stream = self.gpu.raw_stream();
        // SAFETY: every tensor has memory of its size, and the stream is of the same context.
        refused(|| "running the engine".into(), || unsafe { self.context.pin_mut().enqueue(stream) })
    }

    fn wait(&self, action: &str) -> Result<()> {
        self.gpu.stream.synchronize().map_err(failed(action))
    }

    /// One inference, to its end.
    pub fn run(&mut self) -> Result<()> {
        self.gpu.bind()?;
        self.enqueue()?;
        self.wait("running the engine")
    }

    /// One inference by the graph that [`Self::capture`] took.
    pub fn replay(&mut self) -> Result<()> {
        self.graph()?.launch().map_err(failed("replaying the CUDA graph"))?;
        self.wait("replaying the CUDA graph")
    }

    fn graph(&self) -> Result<&CudaGraph> {
        self.graph.as_ref().ok_or_else(|| Error::Option {
            what: "a CUDA graph".into(),
            why: "has not been captured in this session".into(),
        })
    }

    /// Captures an inference as a CUDA graph.
    pub fn capture(&mut self) -> Result<GraphSize> {
        // The first run after a change of shapes does what cannot be captured.
        self.run()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.gpu.stream.begin_capture(mode).map_err(failed("starting to capture a CUDA graph"))?;
        let enqueued = self.enqueue();
        let graph = self.gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        enqueued?;
        let graph = graph
            .map_err(failed("capturing a CUDA graph"))?
            .ok_or_else(|| Error::Refused { action: "capturing a CUDA graph".into(), message: "it is empty".into() })?;
        let size = graph_size(graph.cu_graph()).map_err(failed("counting the nodes of the CUDA graph"))?;
        self.graph = Some(graph);
        self.replay()?;
        Ok(size)
    }

    /// Microseconds that one inference takes on the GPU, from before its first kernel to after its last.
    pub fn time_enqueue(&mut self) -> Result<f64> {
        self.gpu.bind()?;
        self.mark(true)?;
        self.enqueue()?;
        self.mark(false)?;
        self.elapsed()
    }

    /// The same for a replay of the captured graph.
    pub fn time_graph(&mut self) -> Result<f64> {
        self.mark(true)?;
        self.graph()?.launch().map_err(failed("replaying the CUDA graph"))?;
        self.mark(false)?;
        self.elapsed()
    }

    fn mark(&self, first: bool) -> Result<()> {
        let event = if first { &self.events.0 } else { &self.events.1 };
        event.record(&self.gpu.stream).map_err(failed("recording an event"))
    }

    fn elapsed(&self) -> Result<f64> {
        let time = self.events.1.synchronize().and_then(|()| self.events.0.elapsed_ms(&self.events.1));
        time.map(|ms| f64::from(ms) * 1000.0).map_err(failed("timing an inference"))
    }

    /// Times of the layers over a number of inferences, in order of execution. Every layer is timed by itself, so their
    /// sum is more than an inference takes.
    pub fn profile(&mut self, inferences: usize) -> Result<Vec<LayerTime>> {
        self.run()?;
        let stream = self.gpu.raw_stream();
        let mut sums: Vec<(String, f64)> = vec![];
        // Of its own, since a profiler slows all that its context runs afterwards.
        let mut context = refused(|| "preparing to profile the engine".into(), || self.context.twin())?;
        for i in 0..inferences {
            // SAFETY: as in `enqueue`.
            let times = refused(|| "profiling the engine".into(), || unsafe { context.pin_mut().profile(stream) })?;
            if i == 0 {
                sums = times.iter().map(|t| (t.name.clone(), 0.0)).collect();
            }
            if sums.len() != times.len() || sums.iter().zip(&times).any(|(sum, time)| sum.0 != time.name) {
                return Err(Error::Refused {
                    action: "profiling the engine".into(),
                    message: format!("{} layers in one run, {} in another", sums.len(), times.len()),
                });
            }
            sums.iter_mut().zip(&times).for_each(|(sum, time)| sum.1 += f64::from(time.ms));
        }
        let mean = |(name, ms): (String, f64)| LayerTime { name, mean_us: ms * 1000.0 / inferences.max(1) as f64 };
        Ok(sums.into_iter().map(mean).collect())
    }
}

/// Nodes of a graph and of the graphs inside it.
fn graph_size(graph: sys::CUgraph) -> Result<GraphSize, DriverError> {
    const KERNEL: u32 = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL as u32;
    const GRAPH: u32 = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_GRAPH as u32;
    let mut size = GraphSize { kernels: 0, nodes: 0 };
    let mut count = 0;
    // SAFETY: the graph is alive; with null for the nodes only their number is written, and then as many nodes.
    let nodes = unsafe {
        sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut count).result()?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count).result()?;
        nodes.truncate(count);
        nodes
    };
    for node in nodes {
        // As a number: a newer driver may have types that the enumeration does not.
        let mut kind = 0u32;
        // SAFETY: a node of the graph; the enumeration is represented as a number of this type.
        unsafe { sys::cuGraphNodeGetType(node, (&raw mut kind).cast()) }.result()?;
        match kind {
            GRAPH => {
                let mut child = std::ptr::null_mut();
                // SAFETY: the node is of this type; the graph inside belongs to it.
                unsafe { sys::cuGraphChildGraphNodeGetGraph(node, &mut child) }.result()?;
                let inner = graph_size(child)?;
                size.kernels += inner.kernels;
                size.nodes += inner.nodes;
            }
            kind => {
                size.kernels += usize::from(kind == KERNEL);
                size.nodes += 1;
            }
        }
    }
    Ok(size)
}

fn bytes_of(dtype: DType, shape: &[i64]) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?;
    dtype.byte_len(count)
}

/// Elements as the engine has them; `None` where the kinds differ.
fn encode(data: &Data, dtype: DType) -> Option<Vec<u8>> {
    macro_rules! bytes {
        ($values:expr, $convert:expr) => {
            $values.iter().flat_map(|&x| $convert(x).to_ne_bytes()).collect()
        };
    }
    Some(match (data, dtype) {
        (Data::Float(v), DType::F32) => bytes!(v, |x| x as f32),
        (Data::Float(v), DType::F16) => bytes!(v, f16::from_f64),
        (Data::Float(v), DType::BF16) => bytes!(v, bf16::from_f64),
        (Data::Int(v), DType::I8) => bytes!(v, |x| x as i8),
        (Data::Int(v), DType::U8) => bytes!(v, |x| x as u8),
        (Data::Int(v), DType::I32) => bytes!(v, |x| x as i32),
        (Data::Int(v), DType::I64) => bytes!(v, |x| x as i64),
        (Data::Int(v), DType::Bool) => bytes!(v, |x| u8::from(x != 0)),
        _ => return None,
    })
}

fn decode(bytes: &[u8], dtype: DType) -> Data {
    macro_rules! elements {
        ($t:ty, $kind:ident, $convert:expr) => {{
            let element = |b: &[u8]| <$t>::from_ne_bytes(b.try_into().expect("chunks are of this size"));
            Data::$kind(bytes.chunks_exact(size_of::<$t>()).map(element).map($convert).collect())
        }};
    }
    match dtype {
        DType::F32 => elements!(f32, Float, f64::from),
        DType::F16 => elements!(f16, Float, f16::to_f64),
        DType::BF16 => elements!(bf16, Float, bf16::to_f64),
        DType::I8 => elements!(i8, Int, i128::from),
        DType::I32 => elements!(i32, Int, i128::from),
        DType::I64 => elements!(i64, Int, i128::from),
        // Unsigned bytes and booleans; `tensor_info` lets no other type through.
        _ => elements!(u8, Int, i128::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_go_to_the_engine_and_back() {
        let floats = Data::Float(vec![0.0, -1.5, 65504.0, 0.25]);
        for dtype in [DType::F32, DType::F16] {
            let bytes = encode(&floats, dtype).unwrap();
            assert_eq!(Some(bytes.len()), bytes_of(dtype, &[2, 2]));
            assert_eq!(decode(&bytes, dtype), floats);
        }
        let integers = Data::Int(vec![0, 1, 127]);
        for dtype in [DType::I8, DType::U8, DType::I32, DType::I64] {
            assert_eq!(decode(&encode(&integers, dtype).unwrap(), dtype), integers);
        }
        assert_eq!(encode(&integers, DType::Bool).unwrap(), [0, 1, 1]);
        assert!(encode(&integers, DType::F32).is_none() && encode(&floats, DType::I32).is_none());
        assert_eq!(bytes_of(DType::F32, &[1 << 40, 1 << 40]), None);
        assert_eq!(bytes_of(DType::F32, &[-1]), None);
    }
}
