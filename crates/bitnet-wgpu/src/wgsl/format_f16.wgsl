// Rows of f16.

fn element(row: u32, i: u32) -> f32 {
    return half_at(row * p.row_bytes + 2u * i);
}
