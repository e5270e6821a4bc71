//! Merges neighbours, best pair first: the loop that BPE and SentencePiece share.
//!
//! Symbols form a linked list over one array and candidate pairs a heap, so a word of n symbols
//! costs O(n log n) in the worst case. Among equally good pairs the leftmost merges first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: u32 = u32::MAX;

/// A part of a word: `len` bytes from `start`; `len` is 0 once it has merged into its left
/// neighbour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    pub(crate) id: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
    prev: u32,
    next: u32,
}

/// A candidate pair. The order of the fields is the order of the heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Lower is better.
    priority: u32,
    left: u32,
    right: u32,
    /// Bytes of both symbols together: if one of them has grown since, the candidate is out of
    /// date.
    len: u32,
    merged: u32,
}

/// A word being merged; kept between words for its buffers.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Clears the previous word.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol to the word.
    pub(crate) fn push(&mut self, id: u32, start: usize, len: usize) {
        let index = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        let prev = index.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol {
            id,
            start: start as u32,
            len: len as u32,
            prev,
            next: NONE,
        });
    }

    /// Merges until no pair is left; `pair` gives the priority (lower is better) and the id of two
    /// neighbours' union.
    pub(crate) fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &pair);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (
                self.symbols[best.left as usize],
                self.symbols[best.right as usize],
            );
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
            }
            self.symbols[best.left as usize] = Symbol {
                id: best.merged,
                len: best.len,
                next: right.next,
                ..left
            };
            self.consider(left.prev, best.left, &pair);
            self.consider(best.left, right.next, &pair);
        }
    }

    fn consider(
        &mut self,
        left: u32,
        right: u32,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        if left == NONE || right == NONE {
            return;
        }
        let (a, b) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((priority, merged)) = pair(a, b) {
            let len = a.len + b.len;
            self.heap.push(Reverse(Candidate {
                priority,
                left,
                right,
                len,
                merged,
            }));
        }
    }

    /// The remaining symbols of the word, in order.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }
}
