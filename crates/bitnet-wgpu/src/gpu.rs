//! [`Gpu`]: a backend on an open device: threads, counters, and the kernels of a pass.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use bitnet_kernels::{Counters, Pool};
use bitnet_models::{Config, FfnSparsity, HeadMode, LoadOptions};

use crate::adapters::Adapter;
use crate::buffers::GpuRows;
use crate::context::{Buffer, Context, DeviceLimits};
use crate::error::Result;
use crate::head::LogitsBuffers;
use crate::linear::LINEAR_HEAD_DIM_MAX;
use crate::memory::{DeviceMemory, Part};
use crate::recorder::Recorder;
use crate::shaders::Shader;

/// A device that runs models: its memory and kernels, and threads of the host that read files.
///
/// Records the kernels of a pass and submits them when logits are read, or when the next pass
/// begins. After a failure, such as a lost device, it computes nothing, and [`bitnet_models::Backend::failure`]
/// says why.
pub struct Gpu {
    pub(crate) context: Arc<Context>,
    pub(crate) pool: Pool,
    pub(crate) counters: Counters,
    pub(crate) recorder: RefCell<Recorder>,
    pub(crate) logits: RefCell<LogitsBuffers>,
    pub(crate) bytes_read: Cell<u64>,
    /// The numbers 0, 1, 2, …: every row of a buffer.
    pub(crate) every: RefCell<Option<Arc<Buffer>>>,
}

/// Constants on the device and on the host.
pub struct GpuVector {
    pub(crate) values: Vec<f32>,
    pub(crate) buffer: Buffer,
}

/// An open device. Backends on it share its memory, so that they can run one another's models.
#[derive(Clone)]
pub struct OpenGpu(Arc<Context>);

impl OpenGpu {
    /// Opens a device.
    ///
    /// # Errors
    /// If the adapter lacks something, or the driver refuses.
    pub fn new(adapter: &'static Adapter, limits: DeviceLimits) -> Result<Self> {
        Ok(Self(Context::open(adapter, limits)?))
    }

    /// A backend on this device, with `num_threads` threads of the host.
    #[must_use]
    pub fn start(&self, num_threads: usize) -> Gpu {
        Gpu {
            recorder: RefCell::new(Recorder::new(Arc::clone(&self.0))),
            context: Arc::clone(&self.0),
            pool: Pool::new(num_threads),
            counters: Counters::default(),
            logits: RefCell::default(),
            bytes_read: Cell::new(0),
            every: RefCell::default(),
        }
    }

    pub(crate) fn context(&self) -> Arc<Context> {
        Arc::clone(&self.0)
    }

    /// The same device with buffers that are only counted: models load and run as on the device,
    /// but take no memory, read no weights and compute nothing. [`OpenGpu::memory`] then has the
    /// bytes that the device needs for them. Limits of single buffers hold, the limit of all does
    /// not.
    #[must_use]
    pub fn counting(&self) -> Self {
        Self(self.0.counting())
    }

    /// Device memory that models and runners use now.
    #[must_use]
    pub fn memory(&self) -> DeviceMemory {
        self.0.memory()
    }

    /// Checks that there is room for all of `needed` beside what is in use.
    ///
    /// # Errors
    /// With the numbers if there is not.
    pub fn check_room(&self, needed: &DeviceMemory) -> bitnet_models::Result<()> {
        self.0.check_plan(needed)
    }

    /// Bytes that the driver's allocator has handed out now, if it counts them.
    #[must_use]
    pub fn allocated_bytes(&self) -> Option<u64> {
        // Memory of dropped buffers is given back when the device is polled.
        self.0.settle();
        let report = self.0.device.generate_allocator_report()?;
        Some(report.total_allocated_bytes)
    }

    /// Makes the driver give `count` buffers from now on, and then say that it has no memory. For
    /// tests of what follows.
    pub fn refuse_after(&self, count: u64) {
        self.0.refuse_after(count);
    }

    /// Waits until the device is idle. Returns why results are worthless since some earlier work,
    /// such as a lost device; `None` as long as they are right.
    #[must_use]
    pub fn finish(&self) -> Option<String> {
        self.0.settle();
        self.failure()
    }

    /// The same without waiting, as far as it is known.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.failure()
    }

    /// Loses the device, as a driver does that resets it. For tests of what follows.
    pub fn lose(&self) {
        self.0.device.destroy();
        self.0.fail("the device was lost: it was destroyed".into());
    }
}

impl Gpu {
    /// The adapter in use.
    #[must_use]
    pub fn adapter(&self) -> &'static Adapter {
        self.context.adapter()
    }

    /// Submissions of this backend so far.
    #[must_use]
    pub fn num_submissions(&self) -> u64 {
        self.recorder.borrow().num_submissions()
    }

    /// Bytes that this backend has read back so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Refuses a model whose shape the kernels have no room for.
    ///
    /// # Errors
    /// Says what does not fit, with the numbers.
    pub fn check_config(&self, config: &Config) -> bitnet_models::Result<()> {
        let linear = config.linear.as_ref();
        let head_dim = linear.map_or(0, |linear| linear.shape.head_dim);
        if head_dim > LINEAR_HEAD_DIM_MAX {
            return Err(self.context.error(format!(
                "linear attention with heads of {head_dim} is not supported, at most {LINEAR_HEAD_DIM_MAX}"
            )));
        }
        Ok(())
    }

    /// Refuses options that ask for something that a device does not have.
    ///
    /// # Errors
    /// Names the option.
    pub fn check_options(&self, options: &LoadOptions) -> bitnet_models::Result<()> {
        let refuse = |what: &str| Err(self.context.error(format!("{what} is not supported")));
        if options.head == HeadMode::Screened {
            return refuse("a screened head");
        }
        if options.ffn_sparsity == FfnSparsity::On {
            return refuse("skipping zeros of feed-forward networks (ffn sparsity on)");
        }
        if let Some(packing) = options.packing {
            return refuse(&format!("the packing {}", packing.name()));
        }
        Ok(())
    }

    pub(crate) fn call(
        &self,
        shader: Shader,
        buffers: &[Option<&Buffer>],
        params: &[u32],
        groups: usize,
    ) {
        self.recorder
            .borrow_mut()
            .call(shader, buffers, params, groups);
    }

    /// Calls a kernel with one thread for each of `total` values.
    pub(crate) fn call_flat(
        &self,
        shader: Shader,
        buffers: &[Option<&Buffer>],
        params: &[u32],
        total: usize,
    ) {
        self.call(shader, buffers, params, total.div_ceil(64));
    }

    /// The numbers from 0 to at least `rows`.
    pub(crate) fn every_row(&self, rows: usize) -> Option<Arc<Buffer>> {
        let mut every = self.every.borrow_mut();
        if every
            .as_ref()
            .is_none_or(|every| every.bytes() < 4 * rows as u64)
        {
            let numbers: Vec<u32> = (0..rows.next_power_of_two() as u32).collect();
            match self.context.upload(
                Part::Workspace,
                "row numbers",
                bytemuck::cast_slice(&numbers),
            ) {
                Ok(made) => *every = Some(Arc::new(made)),
                Err(error) => self.context.fail(error.to_string()),
            }
        }
        every.clone()
    }

    /// `x[row][columns]` and the values of `y`, as `columns.wgsl` has the modes.
    pub(crate) fn change_columns(
        &self,
        x: &GpuRows,
        columns: &Range<usize>,
        y: (Option<&Buffer>, usize, usize),
        mode: u32,
    ) {
        let (y, y_stride, y_start) = y;
        let total = x.rows * columns.len();
        let params = [
            x.cols,
            columns.start,
            columns.len(),
            y_stride,
            y_start,
            total,
            mode as usize,
        ];
        let params = params.map(|n| n as u32);
        self.call_flat(Shader::Columns, &[y, x.buffer()], &params, total);
    }

    pub(crate) fn norm_heads(
        &self,
        x: &GpuRows,
        columns: &Range<usize>,
        head_dim: usize,
        (weight, eps, scale, mode): (Option<&Buffer>, f32, f32, u32),
    ) {
        let heads = columns.len() / head_dim;
        let [stride, start, num, dim] = [x.cols, columns.start, heads, head_dim].map(|n| n as u32);
        let params = [
            stride,
            start,
            num,
            dim,
            eps.to_bits(),
            scale.to_bits(),
            mode,
        ];
        self.call(
            Shader::NormHeads,
            &[weight, x.buffer()],
            &params,
            x.rows * heads,
        );
    }
}
