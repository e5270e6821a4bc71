//! FORMATS: the ternary and embedding formats: sizes, pack, unpack, quantize, dequantize.
