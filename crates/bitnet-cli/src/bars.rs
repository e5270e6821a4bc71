//! Progress bars on a terminal.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bitnet_models::LoadProgress;
use indicatif::{ProgressBar, ProgressStyle};

/// The time between two looks at how far a model is loaded.
const LOAD_BAR_PAUSE: Duration = Duration::from_millis(100);

/// Runs `load`, and shows its progress in a bar on a terminal; nothing in a pipe.
pub fn with_load_bar<T>(progress: &LoadProgress, message: String, load: impl FnOnce() -> T) -> T {
    let template = "{msg} {wide_bar} {pos} of {len} layers, {eta} left";
    let bar = styled(ProgressBar::new(0).with_message(message), template);
    let (end, has_ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let has_ended = has_ended;
            while has_ended.recv_timeout(LOAD_BAR_PAUSE) == Err(RecvTimeoutError::Timeout) {
                let (done, total) = progress.layers();
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            bar.finish_and_clear();
        });
        let loaded = load();
        drop(end);
        loaded
    })
}

/// A bar on a terminal that counts bytes and shows their rate; nothing in a pipe.
#[cfg(feature = "hub")]
pub fn byte_bar(len: u64, what: String) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    styled(ProgressBar::new(len).with_message(what), template)
}

/// A bar on a terminal that counts to `len`; nothing in a pipe.
pub fn bar(len: usize, what: &'static str) -> ProgressBar {
    let template = "{wide_bar} {pos} of {len} {msg}, {eta} left";
    styled(ProgressBar::new(len as u64).with_message(what), template)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
