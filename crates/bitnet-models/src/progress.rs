//! [`LoadProgress`]: how far a model is loaded, for a program that shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the layers of a model while it is loaded. Clones share the counts, so one may go with the
/// options of the loader and another to a thread that shows them.
#[derive(Clone, Debug, Default)]
pub struct LoadProgress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicUsize,
    total: AtomicUsize,
}

impl LoadProgress {
    /// Layers that are loaded, and layers of the model; 0 until the loader knows them.
    #[must_use]
    pub fn layers(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&self.0.done), load(&self.0.total))
    }

    pub(crate) fn begin(&self, num_layers: usize) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(num_layers, Ordering::Relaxed);
    }

    pub(crate) fn end_layer(&self) {
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }
}
