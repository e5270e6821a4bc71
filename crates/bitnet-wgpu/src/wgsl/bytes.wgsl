// Bytes and halves of rows that lie side by side in words, little endian.

fn byte_at(at: u32) -> u32 {
    return (table[at / 4u] >> (8u * (at % 4u))) & 0xffu;
}

fn signed_byte_at(at: u32) -> i32 {
    return i32(byte_at(at) << 24u) >> 24u;
}

// The f16 at an even byte.
fn half_at(at: u32) -> f32 {
    return unpack2x16float((table[at / 4u] >> (8u * (at % 4u))) & 0xffffu).x;
}
