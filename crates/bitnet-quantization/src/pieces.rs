//! Splits large tensors into pieces, which threads take one after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bitnet_kernels::Pool;

use crate::error::{Error, Result};

/// Number of weights in a piece unless a format says otherwise: floats and codes together stay in a
/// core's cache.
pub(crate) const PIECE_WEIGHTS: usize = 1 << 16;

/// Minimum size for which several threads are worth it: waking parked ones takes some 80 µs, and in
/// that time one core quantizes or dequantizes half a million weights of the fastest formats.
pub(crate) const PARALLEL_MIN_WEIGHTS: usize = 1 << 19;

/// The (weights, bytes) of each row into which a tensor of blocks is cut.
///
/// If blocks fill the rows, the borders of rows do not matter, and the size of the cache decides
/// the length of a piece.
pub(crate) fn block_rows(
    rows: usize,
    cols: usize,
    block_len: usize,
    block_bytes: usize,
) -> (usize, usize) {
    let len = if cols.is_multiple_of(block_len) {
        (rows * cols).min(PIECE_WEIGHTS)
    } else {
        cols
    };
    (len, len.div_ceil(block_len) * block_bytes)
}

/// Calls `work(index, piece)` for each piece, on all threads if the whole tensor is large enough.
///
/// If several pieces fail, the error of the first one is returned, so threads change nothing.
pub(crate) fn for_each_piece<P: Send>(
    pool: &Pool,
    num_weights: usize,
    pieces: impl Iterator<Item = P> + Send,
    work: impl Fn(usize, P) -> Result<()> + Sync,
) -> Result<()> {
    let mut pieces = pieces.enumerate();
    if num_weights < PARALLEL_MIN_WEIGHTS || pool.num_threads() == 1 {
        return pieces.try_for_each(|(index, piece)| work(index, piece));
    }
    let queue = Mutex::new(pieces);
    let failed = Mutex::new(None::<(usize, Error)>);
    pool.run(&|_| {
        loop {
            let next = lock(&queue).next();
            let Some((index, piece)) = next else { return };
            if let Err(error) = work(index, piece) {
                let mut failed = lock(&failed);
                if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                    *failed = Some((index, error));
                }
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Ignores poisoning: the pool reports the panic, and the data are not used afterwards.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_error_of_the_first_piece_is_returned_whichever_failed_first() {
        let (failed, has_failed) = mpsc::channel();
        let has_failed = Mutex::new(has_failed);
        let result = for_each_piece(
            &Pool::new(2),
            PARALLEL_MIN_WEIGHTS,
            0..2,
            |index, _: usize| {
                if index == 0 {
                    // By now the second piece is about to fail.
                    lock(&has_failed)
                        .recv_timeout(Duration::from_secs(60))
                        .expect("another thread takes the second piece");
                    std::thread::sleep(Duration::from_millis(20));
                } else {
                    failed.send(()).expect("the first piece waits");
                }
                Err(Error::NotFinite {
                    what: "weight",
                    index,
                    value: f32::NAN,
                })
            },
        );
        assert!(
            matches!(result, Err(Error::NotFinite { index: 0, .. })),
            "{result:?}"
        );
    }
}
