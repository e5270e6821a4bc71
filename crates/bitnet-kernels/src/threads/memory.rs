//! [`Huge`]: memory for data that every token reads completely, in huge pages if the system
//! provides them.
//!
//! With pages of 4 KiB a CPU spends much of its time looking addresses up: on a virtual machine
//! with Zen 4 cores one thread reads 22 GB/s from such pages and 31 from pages of 2 MiB. The size
//! of most matrices is not a multiple of 2 MiB, and many are smaller. So the slices of a thread are
//! cut one after the other from chunks of many huge pages.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use memmap2::{MmapMut, MmapRaw};

/// The size of a huge page on the systems that have them.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a chunk, unless a slice needs more. A page takes no memory before it is written to.
const CHUNK: usize = 32 * HUGE_PAGE;
/// The alignment of every slice: two cache lines, since CPUs fetch them in pairs.
const ALIGN: usize = 128;

/// An element type of a [`Huge`] slice: numbers, for which any bytes are a valid value.
pub trait Plain: Copy + private::Sealed + 'static {}
mod private {
    pub trait Sealed {}
}
macro_rules! plain {
    ($($number:ty),*) => { $(impl private::Sealed for $number {} impl Plain for $number {})* };
}
plain!(u8, i8, u16, half::f16, f32);

/// A slice of numbers in huge pages, all 0 at first.
pub struct Huge<T: Plain> {
    chunk: Arc<Chunk>,
    /// Bytes from the beginning of the chunk.
    offset: usize,
    len: usize,
    numbers: PhantomData<T>,
}

/// Memory that slices are cut from.
struct Chunk {
    map: MmapRaw,
    /// Where the first huge page begins.
    start: usize,
    len: usize,
}

thread_local! {
    /// The chunk that this thread cuts slices from, as long as one of its slices lives, and the
    /// number of bytes already used.
    static CURRENT: RefCell<(Weak<Chunk>, usize)> = const { RefCell::new((Weak::new(), 0)) };
}

impl<T: Plain> Huge<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the system has no memory, as allocations do.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        let bytes = (len * size_of::<T>()).next_multiple_of(ALIGN);
        let (chunk, offset) = CURRENT.with_borrow_mut(|(current, used)| {
            if let Some(chunk) = current.upgrade()
                && bytes <= chunk.len - *used
            {
                *used += bytes;
                return (chunk, *used - bytes);
            }
            let chunk = Arc::new(Chunk::new(bytes.next_multiple_of(HUGE_PAGE).max(CHUNK)));
            (*current, *used) = (Arc::downgrade(&chunk), bytes);
            (chunk, 0)
        });
        Self {
            chunk,
            offset,
            len,
            numbers: PhantomData,
        }
    }

    fn start(&self) -> *mut T {
        self.chunk
            .map
            .as_mut_ptr()
            .wrapping_add(self.chunk.start + self.offset)
            .cast()
    }
}

impl Chunk {
    fn new(len: usize) -> Self {
        let map = MmapMut::map_anon(len + HUGE_PAGE)
            .unwrap_or_else(|error| panic!("no memory for {len} bytes of weights: {error}"));
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        // This is only a hint: without huge pages everything works, but more slowly.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
        Self {
            map: map.into(),
            start,
            len,
        }
    }
}

impl<T: Plain> Deref for Huge<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: inside the chunk, which `self` keeps alive, at a multiple of `ALIGN`. Mapped
        // memory is zeros at first, and all bytes are valid for `T`. No other slice has these
        // bytes, because each byte of a chunk is handed out only once.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T: Plain> DerefMut for Huge<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl AsRef<[u8]> for Huge<u8> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

// SAFETY: like a `Vec<T>`, it is the only owner of its bytes. `MmapRaw` is Send and Sync itself.
unsafe impl<T: Plain + Send> Send for Huge<T> {}
// SAFETY: a shared reference gives shared slices only.
unsafe impl<T: Plain + Sync> Sync for Huge<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_begin_with_zeros_and_do_not_overlap() {
        let lens = [
            1,
            127,
            128,
            0,
            3 * HUGE_PAGE / 4,
            CHUNK - 1000,
            2 * CHUNK + 1,
            5,
        ];
        let mut slices: Vec<Huge<f32>> = lens.iter().map(|len| Huge::zeros(len / 4)).collect();
        for (i, slice) in slices.iter_mut().enumerate() {
            assert!(
                slice.as_ptr().addr().is_multiple_of(ALIGN) && slice.iter().all(|x| *x == 0.0),
                "slice {i}"
            );
            slice.fill(i as f32);
        }
        // The bytes of a dropped slice are not reused while its chunk lives.
        drop(slices.remove(1));
        slices.push(Huge::zeros(1000));
        for (slice, i) in slices.iter().zip([0, 2, 3, 4, 5, 6, 7]) {
            assert!(slice.iter().all(|x| *x == i as f32), "slice {i}");
        }
        assert!(slices[7].iter().all(|x| *x == 0.0));
    }
}
