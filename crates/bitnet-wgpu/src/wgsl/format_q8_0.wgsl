// Q8_0, 32 values in 34 bytes: scale d f16 | int8[32].

fn element(row: u32, i: u32) -> f32 {
    let block = row * p.row_bytes + i / 32u * 34u;
    return half_at(block) * f32(signed_byte_at(block + 2u + i % 32u));
}
