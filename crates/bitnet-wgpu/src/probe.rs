//! [`Probe`]: measures a device's peak rates.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bitnet_kernels::math::median;
use bitnet_models::Result;

use crate::context::Buffer;
use crate::gpu::OpenGpu;
use crate::memory::Part;
use crate::recorder::Recorder;
use crate::shaders::Shader;

/// Bytes that the memory probe reads, or a quarter of the largest binding if that is less: more than
/// the caches of any GPU.
const READ_BYTES: u64 = 1 << 30;
/// Vectors of 16 bytes that a thread of the memory probe reads.
const VECTORS_PER_THREAD: u64 = 16;
/// Workgroups and rounds of the int8 probe.
const INT8_GROUPS: usize = 8192;
const INT8_ROUNDS: u32 = 512;
/// int8 products of a round of a workgroup.
const INT8_PRODUCTS: f64 = 64.0 * 32.0;
/// Repetitions; the median counts.
const REPETITIONS: usize = 5;

/// Buffers to measure with.
pub struct Probe {
    recorder: RefCell<Recorder>,
    data: Buffer,
    out: Buffer,
    is_software: bool,
}

impl Probe {
    /// Reserves memory to measure with.
    ///
    /// # Errors
    /// If the device does not have it.
    pub fn new(open: &OpenGpu) -> Result<Self> {
        let context = open.context();
        let adapter = context.adapter();
        let is_software = adapter.is_software();
        // Software reads the host's memory, at its speed.
        let most = if is_software {
            READ_BYTES / 16
        } else {
            READ_BYTES
        };
        let bytes = most.min(context.binding_bytes_max() / 4);
        let probe = Self {
            data: context.buffer(Part::Workspace, "the memory probe", bytes)?,
            out: context.buffer(Part::Workspace, "the memory probe", 4096)?,
            recorder: RefCell::new(Recorder::new(context)),
            is_software,
        };
        // The first run compiles the kernels.
        probe.read_once();
        probe.multiply_once();
        Ok(probe)
    }

    /// The rate at which all threads together read a buffer once, in bytes per second.
    #[must_use]
    pub fn read_bytes_per_s(&self) -> f64 {
        self.data.bytes() as f64 / median_time(|| self.read_once())
    }

    /// The peak rate of int8 products per second.
    #[must_use]
    pub fn peak_i8_macs_per_s(&self) -> f64 {
        let groups = self.int8_groups() as f64;
        let products = groups * f64::from(INT8_ROUNDS) * INT8_PRODUCTS;
        products / median_time(|| self.multiply_once())
    }

    /// The time from a submission of almost nothing to its end.
    #[must_use]
    pub fn submission_latency(&self) -> Duration {
        let empty = || {
            let mut recorder = self.recorder.borrow_mut();
            recorder.call(Shader::ProbeInt8, &[Some(&self.out)], &[1], 1);
            recorder.submit();
            recorder.wait();
        };
        Duration::from_secs_f64(median_time(empty))
    }

    fn int8_groups(&self) -> usize {
        if self.is_software {
            INT8_GROUPS / 256
        } else {
            INT8_GROUPS
        }
    }

    fn read_once(&self) {
        let vectors = self.data.bytes() / 16;
        let groups = (vectors / VECTORS_PER_THREAD).div_ceil(64);
        let params = [vectors as u32, groups as u32 * 64];
        let mut recorder = self.recorder.borrow_mut();
        let buffers = [Some(&self.data), Some(&self.out)];
        recorder.call(Shader::ProbeRead, &buffers, &params, groups as usize);
        recorder.submit();
        recorder.wait();
    }

    fn multiply_once(&self) {
        let mut recorder = self.recorder.borrow_mut();
        let groups = self.int8_groups();
        recorder.call(
            Shader::ProbeInt8,
            &[Some(&self.out)],
            &[INT8_ROUNDS],
            groups,
        );
        recorder.submit();
        recorder.wait();
    }
}

/// The median time of some runs, in seconds.
fn median_time(run: impl Fn()) -> f64 {
    let mut times = [0.0; REPETITIONS];
    for time in &mut times {
        let start = Instant::now();
        run();
        *time = start.elapsed().as_secs_f64();
    }
    median(&mut times).unwrap_or(f64::NAN)
}
