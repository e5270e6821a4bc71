//! How threads divide the products of many rows of activations, where a set multiplies
//! [`WIDE_ROWS`] of them at once.
//!
//! A thread makes tables of sums for some rows of activations and then goes through rows of weights
//! with them. So an item of work is [`WIDE_ROWS`] rows of activations and a share of the blocks.

use std::ops::Range;

use crate::layout::activations::WIDE_ROWS;
use crate::threads::pool::Pool;

/// Minimum number of rows for which tables pay: with fewer, too many lanes are empty.
const WIDE_ROWS_MIN: usize = 20;
/// Minimum number of blocks of an item: for 320 rows of weights, making the tables takes a third of
/// the time of their use.
const ITEM_BLOCKS_MIN: usize = 10;
/// Maximum number of blocks of an item: sums and indices of more do not stay in a second-level
/// cache of 1 MB.
const ITEM_BLOCKS_MAX: usize = 80;
/// From this number of items per thread on, threads finish nearly together.
const ITEMS_PER_THREAD: usize = 4;

/// The number of rows, from the first on, that are multiplied [`WIDE_ROWS`] at a time.
pub(crate) fn wide_rows(rows: usize, num_blocks: usize) -> usize {
    if num_blocks < ITEM_BLOCKS_MIN {
        return 0;
    }
    let rest = rows % WIDE_ROWS;
    if rest >= WIDE_ROWS_MIN {
        rows
    } else {
        rows - rest
    }
}

/// Runs `multiply(rows, share)` for the items of the given rows of activations and number of
/// blocks.
///
/// Threads take items block by block, so that they read the same weights at about the same time and
/// find them in the last-level cache.
pub(crate) fn deal_wide(
    pool: &Pool,
    rows: usize,
    num_blocks: usize,
    multiply: &(dyn Fn(Range<usize>, Range<usize>) + Sync),
) {
    let spans = rows.div_ceil(WIDE_ROWS);
    let shares = num_shares(spans, num_blocks, pool.num_threads());
    pool.deal(spans * shares, 1, &|items| {
        for item in items {
            let (share, first) = (item / spans, item % spans * WIDE_ROWS);
            let edge = |share| num_blocks * share / shares;
            multiply(
                first..rows.min(first + WIDE_ROWS),
                edge(share)..edge(share + 1),
            );
        }
    });
}

/// The smallest number of shares of blocks with which threads have equal numbers of items, or many
/// items.
fn num_shares(spans: usize, num_blocks: usize, threads: usize) -> usize {
    let least = num_blocks.div_ceil(ITEM_BLOCKS_MAX);
    let most = (num_blocks / ITEM_BLOCKS_MIN).max(least);
    let even = |shares: &usize| {
        let items = spans * shares;
        items.is_multiple_of(threads) || items >= ITEMS_PER_THREAD * threads
    };
    (least..=most).find(even).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_after_the_last_wide_ones_are_left() {
        let wide = [1, 19, 20, 32, 51, 52, 128, 133, 150].map(|rows| wide_rows(rows, 80));
        assert_eq!(wide, [0, 0, 20, 32, 32, 52, 128, 128, 150]);
        assert_eq!(wide_rows(128, 9), 0);
    }

    #[test]
    fn shares_are_large_but_enough_for_all_threads() {
        assert_eq!(num_shares(4, 60, 2), 1);
        assert_eq!(num_shares(4, 80, 2), 1);
        assert_eq!(num_shares(4, 432, 2), 6);
        assert_eq!(num_shares(1, 60, 2), 2);
        assert_eq!(num_shares(3, 80, 2), 2);
        assert_eq!(num_shares(4, 80, 16), 4);
        assert_eq!(num_shares(1, 20, 16), 2);
    }

    #[test]
    fn every_row_meets_every_block_once() {
        for (rows, blocks, threads) in [(32, 80, 2), (61, 130, 3), (128, 432, 2), (20, 10, 4)] {
            let met = std::sync::Mutex::new(vec![0; rows * blocks]);
            deal_wide(&Pool::new(threads), rows, blocks, &|rows, share| {
                let mut met = met.lock().expect("no thread panics");
                for row in rows {
                    share
                        .clone()
                        .for_each(|block| met[row * blocks + block] += 1);
                }
            });
            assert!(
                met.into_inner()
                    .expect("no thread panics")
                    .iter()
                    .all(|n| *n == 1)
            );
        }
    }
}
