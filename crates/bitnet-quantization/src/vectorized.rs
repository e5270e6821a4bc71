//! `vectorized!`: compiles the loops of a function for each instruction set; a call runs the
//! version for the CPU's best set.

/// Wraps a function so that [`KernelSet::run`](bitnet_kernels::KernelSet::run) runs its body.
/// Functions that the body calls must be `#[inline(always)]`. References have the lifetime `'a`.
macro_rules! vectorized {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<'a $(, const $LEN:ident: usize)?>($($argument:ident: $type:ty),* $(,)?) -> $output:ty
        $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name<'a $(, const $LEN: usize)?>($($argument: $type),*) -> $output {
            struct Loops<'a $(, const $LEN: usize)?> { $($argument: $type),* }
            impl<'a $(, const $LEN: usize)?> bitnet_kernels::Work for Loops<'a $(, $LEN)?> {
                type Output = $output;
                #[inline(always)]
                fn run(self) -> $output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            bitnet_kernels::KernelSet::detect().run(Loops::<'a $(, $LEN)?> { $($argument),* })
        }
    };
}
pub(crate) use vectorized;
