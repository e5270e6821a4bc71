//! [`Disjoint`]: a slice whose separate parts several threads write.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that may be handed to several threads at once.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: only `slice` gives access, and its callers guarantee that no two threads reach the same
// element.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// While the result lives, no other slice that shares an element with it may exist.
    ///
    /// # Panics
    /// If the range reaches past the end.
    #[expect(
        clippy::mut_from_ref,
        reason = "that several threads may write disjoint parts is what the type is for"
    )]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {} elements",
            self.len
        );
        // SAFETY: inside the borrowed slice, as just asserted; the caller promises that it is not
        // shared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
