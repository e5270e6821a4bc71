//! The two orders in which files keep the rows of rotated heads.

/// Where a row of rotated heads lies when the two elements of a pair stand side by side: element
/// `i` of a head's first half at `2i`, of its second at `2i + 1`.
pub(crate) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, element) = (row / head_dim, row % head_dim);
    head * head_dim + 2 * (element % (head_dim / 2)) + element / (head_dim / 2)
}

/// The inverse: the row of the graph that is stored at `stored`.
pub(crate) fn half_split_row(stored: usize, head_dim: usize) -> usize {
    let (head, element) = (stored / head_dim, stored % head_dim);
    head * head_dim + element % 2 * (head_dim / 2) + element / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_heads_go_to_pairs_and_back() {
        let stored: Vec<usize> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!((0..192).all(|row| half_split_row(interleaved_row(row, 96), 96) == row));
    }
}
