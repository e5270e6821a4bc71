//! NUMBERS: the arithmetic of ternary language models, slices in and slices out.
