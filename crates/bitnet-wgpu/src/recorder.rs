//! [`Recorder`]: collects the kernels of a pass, so that a token is one submission.

use std::collections::HashMap;
use std::sync::Arc;

use crate::context::{Buffer, Context, Program};
use crate::shaders::Shader;

/// The most workgroups in one direction.
const GROUPS_X: usize = 32_768;
/// The most buffers of a kernel.
const BUFFERS_MAX: usize = 8;

/// A kernel with the buffers it is bound to.
type Binding = (Shader, [u64; BUFFERS_MAX]);

/// The kernels that were called but not yet submitted.
pub(crate) struct Recorder {
    context: Arc<Context>,
    programs: HashMap<Shader, Arc<Program>>,
    /// Bindings are made once: the buffers of a pass are the same for every token.
    bindings: HashMap<Binding, wgpu::BindGroup>,
    /// [`Context::num_freed`] when `bindings` was last checked: bindings keep buffers alive.
    num_freed: u64,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    last: Option<wgpu::SubmissionIndex>,
    num_submissions: u64,
}

impl Recorder {
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            programs: HashMap::new(),
            bindings: HashMap::new(),
            num_freed: 0,
            encoder: None,
            pass: None,
            last: None,
            num_submissions: 0,
        }
    }

    /// Calls a kernel with `groups` workgroups. Does nothing after a failure, if a buffer could not be
    /// made, which is a failure, too, or in a context that only counts.
    pub fn call(
        &mut self,
        shader: Shader,
        buffers: &[Option<&Buffer>],
        params: &[u32],
        groups: usize,
    ) {
        let x = groups.min(GROUPS_X);
        self.call_in_grid(shader, buffers, params, [x, groups.div_ceil(x.max(1))]);
    }

    /// The same with a grid of `x · y` workgroups.
    pub fn call_in_grid<'b>(
        &mut self,
        shader: Shader,
        buffers: &[Option<&'b Buffer>],
        params: &[u32],
        [x, y]: [usize; 2],
    ) {
        let ids_and_memory = |buffer: &Option<&'b Buffer>| {
            let buffer = (*buffer)?;
            Some((buffer.id, buffer.raw()?))
        };
        let buffers = buffers.iter().map(ids_and_memory);
        let Some(buffers) = buffers.collect::<Option<Vec<(u64, &wgpu::Buffer)>>>() else {
            return;
        };
        if x == 0 || y == 0 || self.context.has_failed() {
            return;
        }
        let context = &self.context;
        let program = self
            .programs
            .entry(shader)
            .or_insert_with(|| context.program(shader));
        let mut ids = [u64::MAX; BUFFERS_MAX];
        ids.iter_mut()
            .zip(&buffers)
            .for_each(|(id, (of_buffer, _))| *id = *of_buffer);
        let binding = self.bindings.entry((shader, ids)).or_insert_with(|| {
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
                .zip(&buffers)
                .map(|(binding, (_, memory))| wgpu::BindGroupEntry {
                    binding,
                    resource: memory.as_entire_binding(),
                })
                .collect();
            context
                .device
                .create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &program.layout,
                    entries: &entries,
                })
        });
        let encoder = self.encoder.get_or_insert_with(|| {
            context
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
        });
        let pass = self.pass.get_or_insert_with(|| {
            let descriptor = wgpu::ComputePassDescriptor::default();
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(&program.pipeline);
        pass.set_bind_group(0, &*binding, &[]);
        pass.set_immediates(0, bytemuck::cast_slice(params));
        pass.dispatch_workgroups(x as u32, y as u32, 1);
    }

    /// Copies bytes after the kernels so far. The buffers must differ.
    pub fn copy(&mut self, source: (&Buffer, u64), target: (&Buffer, u64), bytes: u64) {
        let (Some(from), Some(to)) = (source.0.raw(), target.0.raw()) else {
            return;
        };
        self.pass = None;
        let context = &self.context;
        let encoder = self.encoder.get_or_insert_with(|| {
            context
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
        });
        encoder.copy_buffer_to_buffer(from, source.1, to, target.1, bytes);
    }

    /// Submits what was recorded, and waits for the submission before it, so that the host is at
    /// most one submission ahead.
    pub fn submit(&mut self) {
        self.pass = None;
        let Some(encoder) = self.encoder.take() else {
            return;
        };
        let submission = self.context.queue.submit([encoder.finish()]);
        self.num_submissions += 1;
        if let Some(last) = self.last.replace(submission) {
            self.context.wait(last);
        }
        if self.num_freed != self.context.num_freed() {
            self.num_freed = self.context.num_freed();
            self.bindings.clear();
        }
    }

    /// Submissions so far.
    pub fn num_submissions(&self) -> u64 {
        self.num_submissions
    }

    /// Waits for the last submission.
    pub fn wait(&mut self) {
        if let Some(last) = self.last.take() {
            self.context.wait(last);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // The pass borrows the encoder.
        self.pass = None;
    }
}
