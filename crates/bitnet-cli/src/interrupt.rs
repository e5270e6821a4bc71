//! Ctrl-C: the first asks the program to stop, the second ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit code that shells use for a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// Returns a flag that Ctrl-C sets. Can be called only once.
pub fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&asked);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(asked)
}
