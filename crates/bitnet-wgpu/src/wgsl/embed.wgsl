// x[row] = table[token of the row], for the tokens whose rows are in this piece of the table.
// One workgroup a row; `element` is in format_*.wgsl. x: [rows, cols].

struct Params {
    cols: u32,
    row_bytes: u32,
    first_row: u32, // of this piece
    rows: u32,      // of this piece
    groups: u32,    // scales of a row, for tables with group scales
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> plan: array<u32>; // begins with the tokens
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x + group.y * groups.x;
    let token = plan[row];
    if token < p.first_row || token - p.first_row >= p.rows {
        return;
    }
    for (var i = thread; i < p.cols; i += 64u) {
        x[row * p.cols + i] = element(token - p.first_row, i);
    }
}
