// Q4_0, 32 values in 18 bytes: scale d f16 | byte j holds values j (low) and j + 16 (high), minus 8.

fn element(row: u32, i: u32) -> f32 {
    let block = row * p.row_bytes + i / 32u * 18u;
    let nibbles = byte_at(block + 2u + i % 16u);
    let code = (nibbles >> (i % 32u / 16u * 4u)) & 15u;
    return half_at(block) * f32(i32(code) - 8);
}
