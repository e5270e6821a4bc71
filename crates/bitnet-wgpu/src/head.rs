//! Hidden states to logits, and logits to the host.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use bitnet_kernels::Kernel;

use crate::buffers::{GpuInt8, GpuRows, Store};
use crate::context::{Buffer, WAIT_MAX, WAIT_PAUSE};
use crate::gpu::Gpu;
use crate::shaders::Shader;
use crate::table::{GpuTable, Kind, StoredRows};

/// The most bytes of logits that are read back at once.
pub const LOGITS_BYTES: usize = 64 << 20;

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
        let mut buffers = self.logits.borrow_mut();
        let LogitsBuffers {
            picked,
            hidden: gathered,
            rounded,
            out,
            staging,
        } = &mut *buffers;
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
        self.read_back((out.buffer(), 0), staging, to);
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
        self.read_back((rows.buffer(), first), staging, to);
    }

    /// Runs all that was recorded, and copies numbers from a byte of a buffer on to the host. After a
    /// failure they are zeros.
    fn read_back(
        &self,
        (source, first): (Option<&Buffer>, u64),
        staging: &mut Option<Buffer>,
        to: &mut [f32],
    ) {
        to.fill(0.0);
        let bytes = (to.len() * 4) as u64;
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
                Ok(numbers) => to.copy_from_slice(bytemuck::cast_slice(&numbers)),
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
