// Q6_K, 256 values in 210 bytes: low 4 bits [128] | high 2 bits [64] | int8 scale of each 16 values
// [16] | scale d f16. In a half of 128 values, byte l of 64 low bytes has value l (low nibble) and
// l + 64 (high nibble), and bits 2r..2r+1 of high byte l % 32 belong to value 32 r + l % 32.

fn element(row: u32, i: u32) -> f32 {
    let block = row * p.row_bytes + i / 256u * 210u;
    let half = i % 256u / 128u;
    let l = i % 128u;
    let low = (byte_at(block + 64u * half + l % 64u) >> (l / 64u * 4u)) & 15u;
    let high = (byte_at(block + 128u + 32u * half + l % 32u) >> (l / 32u * 2u)) & 3u;
    let scale = half_at(block + 208u) * f32(signed_byte_at(block + 192u + i % 256u / 16u));
    return scale * f32(i32(low | (high << 4u)) - 32);
}
