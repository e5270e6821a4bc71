// Rows of f32.

fn element(row: u32, i: u32) -> f32 {
    return bitcast<f32>(table[row * p.cols + i]);
}
