// Rows of codes with group scales, as group_gemv.wgsl has them: [rows, words] of codes, and scales
// in f16, [rows, groups rounded up to even].

fn element(row: u32, i: u32) -> f32 {
    let word = row * (p.row_bytes / 4u) + i / 32u * BITS;
    let s = i % 32u / 4u;
    let codes = table[word + s * BITS / 8u] >> (BITS * s % 8u + 8u * (i % 4u));
    let weight = FACTOR * i32(codes & (MASK & 0xffu)) - 1;
    let g = i / (p.cols / p.groups);
    let pair = unpack2x16float(scales[row * ((p.groups + 1u) / 2u) + g / 2u]);
    return f32(weight) * select(pair.x, pair.y, g % 2u == 1u);
}
