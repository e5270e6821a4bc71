//! [`Context`]: an open device with its memory, its programs and its one failure.
//!
//! All buffers of a model and of its runners belong to one context. Each buffer is counted while it
//! lives, and one that would exceed the limit is refused before the driver is asked for it.
//!
//! A counting context makes buffers without memory. The same code that loads and runs a model on a
//! device runs on it, computes nothing, and leaves the bytes that the device would need.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitnet_models::Error as ModelError;

use crate::adapters::{Adapter, FEATURES, IMMEDIATE_BYTES};
use crate::error::{Error, Result};
use crate::memory::{DeviceMemory, Part, Tally};
use crate::shaders::Shader;

/// The most bytes that are written to the device before the host waits for it: the driver keeps a
/// copy of them until then.
const UPLOAD_BYTES: usize = 32 << 20;
/// The largest buffer of a trial of how much memory the driver gives.
const TRIAL_BYTES: u64 = 256 << 20;

/// What a program may use of a device, beside the limits of its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// The most bytes of all buffers together; `None` for as much as the driver gives.
    pub total_bytes: Option<u64>,
    /// The most bytes of one binding; `None` for as much as the adapter can. Larger matrices and
    /// tables are cut at rows.
    pub binding_bytes: Option<u64>,
    /// Whether kernels may compute in f64, if the adapter can: decays of linear attention then have
    /// the CPU's bits.
    pub allows_f64: bool,
    /// Whether kernels may add integers over subgroups, if the adapter can. The bits are the same.
    pub allows_subgroups: bool,
}

impl Default for DeviceLimits {
    /// All that the adapter and the driver give.
    fn default() -> Self {
        Self {
            total_bytes: None,
            binding_bytes: None,
            allows_f64: true,
            allows_subgroups: true,
        }
    }
}

/// An open device.
pub(crate) struct Context {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    adapter: &'static Adapter,
    limits: DeviceLimits,
    /// Whether buffers have no memory.
    only_counts: bool,
    /// Bytes of all living buffers.
    used: Tally,
    /// Buffers that the driver may still give, if a test limits them.
    buffers_left: AtomicU64,
    /// Buffers that were made, and that were freed.
    num_made: AtomicU64,
    num_freed: AtomicU64,
    programs: Mutex<HashMap<Shader, Arc<Program>>>,
    failure: Arc<Failure>,
}

/// The first thing that went wrong.
#[derive(Default)]
struct Failure {
    is_there: AtomicBool,
    problem: Mutex<Option<String>>,
}

impl Failure {
    fn note(&self, problem: String) {
        lock(&self.problem).get_or_insert(problem);
        self.is_there.store(true, Ordering::Release);
    }
}

/// A compiled shader.
pub(crate) struct Program {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Memory of the device.
pub(crate) struct Buffer {
    /// `None` in a context that only counts.
    raw: Option<wgpu::Buffer>,
    /// Unique in its context.
    pub id: u64,
    part: Part,
    bytes: u64,
    context: Arc<Context>,
}

impl Buffer {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The driver's buffer; `None` in a context that only counts.
    pub fn raw(&self) -> Option<&wgpu::Buffer> {
        self.raw.as_ref()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.context.used.subtract(self.part, self.bytes);
        self.context.num_freed.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    /// Opens an adapter.
    pub fn open(adapter: &'static Adapter, limits: DeviceLimits) -> Result<Arc<Self>> {
        if let Some(missing) = adapter.missing() {
            return Err(Error::Adapter {
                adapter: adapter.name().into(),
                missing,
            });
        }
        let mut optional = wgpu::Features::empty();
        optional.set(wgpu::Features::SHADER_F64, limits.allows_f64);
        optional.set(wgpu::Features::SUBGROUP, limits.allows_subgroups);
        let optional = optional & adapter.raw.features();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("bitnet"),
            required_features: FEATURES | optional,
            // The default limits are too small: a head of 128,000 rows has 657 MB.
            required_limits: adapter.raw.limits(),
            ..Default::default()
        };
        let opened = pollster::block_on(adapter.raw.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| Error::Open {
            adapter: adapter.name().into(),
            problem: error.to_string(),
        })?;
        let failure = Arc::new(Failure::default());
        let noted = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            noted.note(error.to_string().lines().collect::<Vec<_>>().join(" "));
        }));
        let noted = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            noted.note(format!("the device was lost ({reason:?}): {message}"));
        });
        Ok(Arc::new(Self {
            device,
            queue,
            adapter,
            limits,
            only_counts: false,
            used: Tally::default(),
            buffers_left: AtomicU64::new(u64::MAX),
            num_made: AtomicU64::new(0),
            num_freed: AtomicU64::new(0),
            programs: Mutex::default(),
            failure,
        }))
    }

    /// A context of the same device that only counts. It has no limit on the sum of its buffers.
    pub fn counting(&self) -> Arc<Self> {
        Arc::new(Self {
            device: self.device.clone(),
            queue: self.queue.clone(),
            adapter: self.adapter,
            limits: DeviceLimits {
                total_bytes: None,
                ..self.limits
            },
            only_counts: true,
            used: Tally::default(),
            buffers_left: AtomicU64::new(u64::MAX),
            num_made: AtomicU64::new(0),
            num_freed: AtomicU64::new(0),
            programs: Mutex::default(),
            failure: Arc::default(),
        })
    }

    /// The adapter that is open.
    pub fn adapter(&self) -> &'static Adapter {
        self.adapter
    }

    /// The most bytes that one binding of a kernel can reach.
    pub fn binding_bytes_max(&self) -> u64 {
        let most = self.adapter.binding_bytes_max();
        self.limits
            .binding_bytes
            .map_or(most, |limit| limit.min(most))
    }

    /// Whether kernels may compute in f64.
    pub fn has_f64(&self) -> bool {
        let features = self.device.features();
        features.contains(wgpu::Features::SHADER_F64)
    }

    /// The most lanes of a subgroup, if kernels may use subgroups.
    pub fn subgroup_lanes(&self) -> Option<usize> {
        let features = self.device.features();
        let has_subgroups = features.contains(wgpu::Features::SUBGROUP);
        has_subgroups.then(|| self.adapter.subgroup_lanes_max())
    }

    /// Whether buffers have no memory.
    pub fn only_counts(&self) -> bool {
        self.only_counts
    }

    /// Bytes of all living buffers, by their use.
    pub fn memory(&self) -> DeviceMemory {
        self.used.memory()
    }

    /// Bytes of all living buffers.
    pub fn used_bytes(&self) -> u64 {
        self.memory().total()
    }

    /// The driver gives `count` buffers from now on, then says that it has no memory. For tests.
    pub fn refuse_after(&self, count: u64) {
        self.buffers_left.store(count, Ordering::Relaxed);
    }

    /// Buffers that were freed so far.
    pub fn num_freed(&self) -> u64 {
        self.num_freed.load(Ordering::Relaxed)
    }

    /// What went wrong, if anything did: all later results are worthless.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failure.problem).clone()
    }

    /// Whether anything went wrong.
    pub fn has_failed(&self) -> bool {
        self.failure.is_there.load(Ordering::Acquire)
    }

    /// Notes that results are worthless from now on.
    pub fn fail(&self, problem: String) {
        self.failure.note(problem);
    }

    /// An error of this device.
    pub fn error(&self, problem: String) -> ModelError {
        ModelError::Device {
            device: self.adapter.name().into(),
            problem,
        }
    }

    /// Checks that buffers of `bytes` together stay within the limit of the context.
    ///
    /// # Errors
    /// If they do not.
    pub fn check_room(&self, what: &str, bytes: u64) -> std::result::Result<(), ModelError> {
        let used = self.used_bytes();
        match self.limits.total_bytes {
            Some(most) if used + bytes > most => Err(self.error(format!(
                "{what} needs {bytes} bytes of device memory, but {used} of {most} are in use"
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that there is room for all of `needed` beside what is in use, before any of it is
    /// made: first against the limit of the context, then by asking the driver for as many bytes,
    /// which are given back at once.
    ///
    /// # Errors
    /// With the numbers if there is not.
    pub fn check_plan(&self, needed: &DeviceMemory) -> std::result::Result<(), ModelError> {
        let used = self.used_bytes();
        let refuse = |available: u64, of: &str| {
            Err(self.error(format!(
                "the model needs {needed} of device memory, but {available} {of} are available"
            )))
        };
        if let Some(most) = self.limits.total_bytes
            && needed.total() > most.saturating_sub(used)
        {
            return refuse(
                most.saturating_sub(used),
                &format!("of the limit of {most}"),
            );
        }
        match self.given_bytes(needed.total()) {
            given if given < needed.total() => refuse(given, "of the driver's"),
            _ => Ok(()),
        }
    }

    /// How many of `bytes` the driver gives now. Takes them for a moment and uses none.
    fn given_bytes(&self, bytes: u64) -> u64 {
        let (mut taken, mut given) = (Vec::new(), 0);
        while given < bytes {
            let piece = (bytes - given)
                .min(TRIAL_BYTES)
                .min(self.binding_bytes_max());
            let piece = piece.next_multiple_of(16);
            let Some(buffer) = self.create(piece, wgpu::BufferUsages::STORAGE) else {
                break;
            };
            taken.push(buffer);
            given += piece;
        }
        taken.iter().for_each(wgpu::Buffer::destroy);
        drop(taken);
        self.settle();
        given
    }

    /// Memory of `bytes`, zeros. `what`: its use, for errors.
    ///
    /// # Errors
    /// If it exceeds a limit of the adapter or of the context, or the driver has no more.
    pub fn buffer(
        self: &Arc<Self>,
        part: Part,
        what: &str,
        bytes: u64,
    ) -> std::result::Result<Buffer, ModelError> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let bytes = bytes.next_multiple_of(16).max(16);
        let most = self.binding_bytes_max();
        if bytes > most {
            let problem =
                format!("{what} needs a buffer of {bytes} bytes, at most {most} are possible");
            return Err(self.error(problem));
        }
        self.make(part, what, bytes, usage)
    }

    /// Memory of `bytes` that the host reads from.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn staging(
        self: &Arc<Self>,
        what: &str,
        bytes: u64,
    ) -> std::result::Result<Buffer, ModelError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.make(Part::Workspace, what, bytes, usage)
    }

    fn make(
        self: &Arc<Self>,
        part: Part,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> std::result::Result<Buffer, ModelError> {
        self.check_room(what, bytes)?;
        let raw = match self.only_counts {
            true => None,
            false => Some(self.create(bytes, usage).ok_or_else(|| {
                let used = self.used_bytes();
                self.error(format!(
                    "{what} needs {bytes} bytes of device memory beside the {used} in use, and the driver has no more"
                ))
            })?),
        };
        self.used.add(part, bytes);
        Ok(Buffer {
            raw,
            id: self.num_made.fetch_add(1, Ordering::Relaxed),
            part,
            bytes,
            context: Arc::clone(self),
        })
    }

    /// A buffer of the driver; `None` if it has no memory for it.
    fn create(&self, bytes: u64, usage: wgpu::BufferUsages) -> Option<wgpu::Buffer> {
        let left = &self.buffers_left;
        let take = |left: u64| left.checked_sub(1);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage,
            mapped_at_creation: false,
        });
        let refusal = pollster::block_on(scope.pop());
        refusal.is_none().then_some(raw)
    }

    /// Memory with these contents; their length is a multiple of 4.
    ///
    /// # Errors
    /// As [`Context::buffer`].
    pub fn upload(
        self: &Arc<Self>,
        part: Part,
        what: &str,
        contents: &[u8],
    ) -> std::result::Result<Buffer, ModelError> {
        let buffer = self.buffer(part, what, contents.len() as u64)?;
        self.fill(&buffer, contents);
        Ok(buffer)
    }

    /// Writes the beginning of a buffer; the length of `contents` is a multiple of 4.
    pub fn fill(&self, buffer: &Buffer, contents: &[u8]) {
        for (index, piece) in contents.chunks(UPLOAD_BYTES).enumerate() {
            self.write(buffer, (index * UPLOAD_BYTES) as u64, piece);
            if piece.len() == UPLOAD_BYTES && !self.only_counts {
                self.wait(self.queue.submit([]));
            }
        }
    }

    /// Writes `contents` from byte `at` on before the next submission; both are multiples of 4. Does
    /// nothing in a context that only counts.
    pub fn write(&self, buffer: &Buffer, at: u64, contents: &[u8]) {
        if let Some(raw) = buffer.raw() {
            self.queue.write_buffer(raw, at, contents);
        }
    }

    /// Waits until a submission is done.
    pub fn wait(&self, submission: wgpu::SubmissionIndex) {
        let until = wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: Some(WAIT_MAX),
        };
        if let Err(error) = self.device.poll(until) {
            self.fail(format!("the device does not answer: {error}"));
        }
    }

    /// Waits until the device is idle and has given back the memory of freed buffers.
    pub fn settle(&self) {
        self.wait(self.queue.submit([]));
    }

    /// The program of a shader, compiled at its first use.
    pub fn program(&self, shader: Shader) -> Arc<Program> {
        let mut programs = lock(&self.programs);
        let made = programs
            .entry(shader)
            .or_insert_with(|| Arc::new(self.compile(shader)));
        Arc::clone(made)
    }

    fn compile(&self, shader: Shader) -> Program {
        let (name, source) = (shader.name(), shader.source());
        let entries: Vec<wgpu::BindGroupLayoutEntry> = source
            .lines()
            .filter(|line| line.contains("@binding("))
            .zip(0..)
            .map(|(line, binding)| storage_entry(binding, !line.contains("read_write")))
            .collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&name),
                entries: &entries,
            });
        let pipeline_layout = self
            .device
            .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: IMMEDIATE_BYTES,
            });
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&name),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
        let pipeline = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
        Program { pipeline, layout }
    }
}

/// The longest time that the device may take for a submission.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(600);
/// The time between two checks for a failure while the host waits.
pub(crate) const WAIT_PAUSE: Duration = Duration::from_millis(50);

fn storage_entry(binding: u32, read_only: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}
