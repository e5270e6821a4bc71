// Rows of bf16: the upper half of an f32.

fn element(row: u32, i: u32) -> f32 {
    let at = row * p.row_bytes + 2u * i;
    return bitcast<f32>(((table[at / 4u] >> (8u * (at % 4u))) & 0xffffu) << 16u);
}
