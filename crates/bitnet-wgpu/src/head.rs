//! Hidden states to logits, and logits to the host.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use bitnet_kernels::Kernel;

use crate::buffers::{GpuInt8, GpuRows, Store};
use crate::context::{Buffer, WAIT_MAX, WAIT_PAUSE};
use crate::gpu::Gpu;
use crate::shaders::Shader;
use crate::table::{GpuTable, Kind, StoredRows};

/// The most bytes of logits that are computed at once.
pub const LOGITS_BYTES: usize = 64 << 20;
/// The most logits of a row that are chosen on the device: each takes a turn of its kernel.
pub const TOP_MAX: usize = 64;
/// Logits of a segment, whose largest ones one workgroup finds.
const SEGMENT: usize = 4096;

/// What the driver reports about a mapping.
type MapResult = std::result::Result<(), wgpu::BufferAsyncError>;

/// Buffers between the head and the host.
#[derive(Default)]
pub(crate) struct LogitsBuffers {
    /// The rows of the hidden states whose logits are wanted.
    picked: Store,
    /// These hidden states, for a head with group scales.
    hidden: GpuRows,
    rounded: GpuInt8,
    out: GpuRows,
    /// The largest logits of each segment, and of each row.
    top: [Store; 2],
    staging: Option<Buffer>,
}

impl Gpu {
    /// The logits of a few rows, `[rows, vocab]`.
    pub(crate) fn read_logits(
        &self,
        head: &GpuTable,
        hidden: &GpuRows,
        rows: &[usize],
        to: &mut [f32],
    ) {
        let buffers = &mut *self.logits.borrow_mut();
        self.compute_logits(head, hidden, rows, buffers);
        let (out, staging) = (buffers.out.buffer(), &mut buffers.staging);
        self.read_back((out, 0), staging, bytemuck::cast_slice_mut(to));
    }

    /// The first `k` logits of a few rows in the order of `top_k.wgsl`: `to` is `[rows, k]` pairs of
    /// a token and the bits of its logit. `k` is at most the number of tokens.
    pub(crate) fn read_top(
        &self,
        head: &GpuTable,
        hidden: &GpuRows,
        rows: &[usize],
        k: usize,
        to: &mut [[u32; 2]],
    ) {
        let buffers = &mut *self.logits.borrow_mut();
        self.compute_logits(head, hidden, rows, buffers);
        let logits = (buffers.out.buffer(), rows.len(), head.rows);
        self.find_top(logits, k, &mut buffers.top);
        let (top, staging) = (buffers.top[1].get(), &mut buffers.staging);
        self.read_back((top, 0), staging, bytemuck::cast_slice_mut(to));
    }

    /// The first `k` of each row of logits: the second buffer becomes `[rows, k]` pairs. The first
    /// buffer gets the first `k` of each segment of the rows.
    fn find_top(
        &self,
        (logits, rows, len): (Option<&Buffer>, usize, usize),
        k: usize,
        buffers: &mut [Store; 2],
    ) {
        let segments = len.div_ceil(SEGMENT);
        let [pairs, top] = buffers;
        pairs.reserve(&self.context, 2 * rows * segments * k);
        top.reserve(&self.context, 2 * rows * k);
        let calls = [
            (false, pairs.get(), logits, [len, SEGMENT, segments]),
            (
                true,
                top.get(),
                pairs.get(),
                [segments * k, segments * k, 1],
            ),
        ];
        for (of_pairs, out, values, [len, segment, segments]) in calls {
            let params = [rows, len, segment, segments, k].map(|n| n as u32);
            let shader = Shader::TopK(of_pairs);
            self.call(shader, &[out, values], &params, rows * segments);
        }
    }

    /// The logits of a few rows on the device, in `out` of the buffers.
    fn compute_logits(
        &self,
        head: &GpuTable,
        hidden: &GpuRows,
        rows: &[usize],
        buffers: &mut LogitsBuffers,
    ) {
        let LogitsBuffers {
            picked,
            hidden: gathered,
            rounded,
            out,
            ..
        } = buffers;
        let context = &self.context;
        out.shape(context, rows.len(), head.rows);
        picked.reserve(context, rows.len());
        let ids: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        if let Some(picked) = picked.get() {
            context.write(picked, 0, bytemuck::cast_slice(&ids));
        }
        match &head.kind {
            Kind::Stored(stored) => {
                self.head_floats(
                    head,
                    stored,
                    hidden,
                    picked.get(),
                    (rows.len(), out.buffer()),
                );
            }
            Kind::Grouped { weights, .. } => {
                gathered.shape(context, rows.len(), hidden.cols);
                let params = [hidden.cols, 0, gathered.rows * gathered.cols].map(|n| n as u32);
                let gather = [picked.get(), hidden.buffer(), gathered.buffer()];
                self.call_flat(
                    Shader::Gather,
                    &gather,
                    &params,
                    gathered.rows * gathered.cols,
                );
                self.round_groups(Some(gathered), weights, rounded);
                self.multiply_groups(weights, rounded, out.buffer());
            }
        }
        let (bytes, macs) = (
            head.rows * head.row_bytes(),
            head.rows * head.cols * rows.len(),
        );
        self.counters.add(Kernel::LogitsProjection, macs, bytes);
    }

    pub(crate) fn head_floats(
        &self,
        head: &GpuTable,
        stored: &StoredRows,
        hidden: &GpuRows,
        picked: Option<&Buffer>,
        (rows, out): (usize, Option<&Buffer>),
    ) {
        for piece in &stored.pieces {
            for first in (0..rows).step_by(4) {
                let params = [
                    head.cols,
                    stored.row_bytes,
                    piece.first_row,
                    piece.rows,
                    0,
                    head.rows,
                    first,
                    rows,
                ];
                let table = Some(&piece.weights);
                self.call(
                    Shader::Head(stored.format),
                    &[table, table, hidden.buffer(), picked, out],
                    &params.map(|n| n as u32),
                    piece.rows.div_ceil(4),
                );
            }
        }
    }

    /// Copies a row to the host. After a failure it is zeros.
    pub(crate) fn read_row_back(&self, rows: &GpuRows, row: usize, to: &mut [f32]) {
        let first = (row * rows.cols * size_of::<f32>()) as u64;
        let staging = &mut self.logits.borrow_mut().staging;
        self.read_back(
            (rows.buffer(), first),
            staging,
            bytemuck::cast_slice_mut(to),
        );
    }

    /// Runs all that was recorded, and copies bytes from a byte of a buffer on to the host; both are
    /// multiples of 4. After a failure they are zeros.
    fn read_back(
        &self,
        (source, first): (Option<&Buffer>, u64),
        staging: &mut Option<Buffer>,
        to: &mut [u8],
    ) {
        to.fill(0);
        let bytes = to.len() as u64;
        self.bytes_read.set(self.bytes_read.get() + bytes);
        let (Some(source), false) = (source, self.context.has_failed()) else {
            return;
        };
        if staging
            .as_ref()
            .is_none_or(|staging| staging.bytes() < bytes)
        {
            *staging = None;
            match self.context.staging("results on the host", bytes) {
                Ok(made) => *staging = Some(made),
                Err(error) => return self.context.fail(error.to_string()),
            }
        }
        let Some((staging, mapped)) = staging.as_ref().zip(staging.as_ref().and_then(Buffer::raw))
        else {
            return;
        };
        let mut recorder = self.recorder.borrow_mut();
        recorder.copy((source, first), (staging, 0), bytes);
        recorder.submit();
        let slice = mapped.slice(..bytes);
        let (sender, receiver) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| {
            // The receiver waits below; if it is gone, no code needs the result.
            let _ = sender.send(result);
        });
        recorder.wait();
        match self.mapped(&receiver) {
            Ok(()) if !self.context.has_failed() => match slice.get_mapped_range() {
                Ok(bytes) => to.copy_from_slice(&bytes),
                Err(error) => self.context.fail(error.to_string()),
            },
            Ok(()) => {}
            Err(problem) => self.context.fail(format!("cannot read results: {problem}")),
        }
        mapped.unmap();
    }

    /// Waits for the result of a mapping. The thread of another model may be the one that reports
    /// it, after the wait of this one; after a failure perhaps no thread does.
    fn mapped(&self, result: &Receiver<MapResult>) -> std::result::Result<(), String> {
        let deadline = Instant::now() + WAIT_MAX;
        while !self.context.has_failed() && Instant::now() < deadline {
            match result.recv_timeout(WAIT_PAUSE) {
                Ok(result) => return result.map_err(|error| error.to_string()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Err("the device did not finish".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Part;
    use crate::{DeviceLimits, OpenGpu, adapters};

    /// A backend on any adapter that can run the kernels.
    fn gpu() -> Option<Gpu> {
        let able = |adapter: &&crate::Adapter| adapter.missing().is_none();
        let Some(adapter) = adapters().iter().rev().find(able) else {
            eprintln!(
                "skipped: no adapter here that can run the kernels (Debian: mesa-vulkan-drivers)"
            );
            return None;
        };
        let open = OpenGpu::new(adapter, DeviceLimits::default()).expect("an able adapter opens");
        Some(open.start(1))
    }

    /// The first `k` values of each row on the device.
    fn top(gpu: &Gpu, logits: &[f32], len: usize, k: usize) -> Vec<[u32; 2]> {
        let rows = logits.len() / len;
        let logits = bytemuck::cast_slice(logits);
        let logits = gpu.context.upload(Part::Workspace, "logits", logits);
        let logits = logits.expect("memory");
        let mut buffers = <[Store; 2]>::default();
        gpu.find_top((Some(&logits), rows, len), k, &mut buffers);
        let mut found = vec![[0; 2]; rows * k];
        let to = bytemuck::cast_slice_mut(&mut found);
        gpu.read_back((buffers[1].get(), 0), &mut None, to);
        assert_eq!(gpu.context.failure(), None);
        found
    }

    /// The same by sorting: the larger first, the lower id among equals, NaN last.
    fn sorted(logits: &[f32], len: usize, k: usize) -> Vec<[u32; 2]> {
        let first_of = |row: &[f32]| {
            let mut ids: Vec<usize> = (0..len).collect();
            let is_nan = |id: &usize| row[*id].is_nan();
            ids.sort_by(|a, b| {
                let by_value = row[*b].partial_cmp(&row[*a]);
                is_nan(a)
                    .cmp(&is_nan(b))
                    .then(by_value.unwrap_or(std::cmp::Ordering::Equal))
                    .then(a.cmp(b))
            });
            let pair = |id: usize| [id as u32, row[id].to_bits()];
            ids.into_iter().take(k).map(pair).collect::<Vec<_>>()
        };
        logits.chunks_exact(len).flat_map(first_of).collect()
    }

    /// Values without a pattern in 1/64, with every special float among them.
    fn values(count: usize, step: u32) -> Vec<f32> {
        let special = [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            -0.0,
            f32::MIN_POSITIVE / 2.0,
            -f32::MIN_POSITIVE / 2.0,
            f32::MAX,
            f32::MIN,
        ];
        let mut state = step;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let value = |_| match next() {
            n if n % 97 == 0 => special[n as usize / 97 % special.len()],
            n => (n as f32 - 32768.0) / 64.0,
        };
        (0..count).map(value).collect()
    }

    #[test]
    fn the_first_logits_of_rows_have_the_order_of_the_sampler() {
        let Some(gpu) = gpu() else { return };
        for (rows, len, k) in [
            (1, 10_000, TOP_MAX),
            (3, 4097, 40),
            (2, 4096, 1),
            (5, 300, 7),
            (1, 8, 8),
            (1, 1, 1),
        ] {
            let logits = values(rows * len, len as u32);
            let found = top(&gpu, &logits, len, k);
            assert_eq!(found, sorted(&logits, len, k), "{rows} {len} {k}");
        }
    }

    #[test]
    fn equal_and_missing_numbers_have_the_order_of_their_ids() {
        let Some(gpu) = gpu() else { return };
        for value in [1.5, 0.0, f32::NEG_INFINITY, f32::NAN] {
            let logits = vec![value; 9000];
            let expected: Vec<[u32; 2]> = (0..40).map(|id| [id, value.to_bits()]).collect();
            assert_eq!(top(&gpu, &logits, 9000, 40), expected, "{value}");
        }
    }
}
