//! Table lookup, one row after the other.

use crate::layout::lines::BLOCK_ROWS;
use crate::layout::lookup::{Cut, FIELDS, PAIRS, RADIX, TRIPLES, UNIT_COLS};
use crate::sets::lookup::{Lookup, LookupTable, finish};

pub(crate) const LOOKUP: Lookup = Lookup {
    triple_tables: 1,
    make_tables,
    add,
    finish,
};

fn make_tables(values: &[i16], cut: Cut, tables: &mut [LookupTable]) {
    let (triples, pairs) = values.split_at(cut.units * UNIT_COLS);
    let (triple_tables, pair_tables) = tables.split_at_mut(cut.units * FIELDS);
    fill(triples, &TRIPLES, triple_tables);
    fill(pairs, &PAIRS, pair_tables);
}

/// Fills a table for each `N` values: `Σ weight · value` for each index, split into two bytes.
fn fill<const N: usize>(values: &[i16], weights: &[[i16; 16]; N], tables: &mut [LookupTable]) {
    for (values, table) in values.as_chunks::<N>().0.iter().zip(tables) {
        for index in 0..16 {
            let product = values
                .iter()
                .zip(weights)
                .map(|(value, weights)| value * weights[index])
                .sum::<i16>();
            // Round to the nearest. Half the radix is not an integer, so there are no ties.
            let high = (product + RADIX / 2).div_euclid(RADIX);
            (table.0[index], table.0[16 + index]) = ((product - RADIX * high) as i8, high as i8);
        }
    }
}

/// Adds `Σ w · q` of each row of a chunk.
fn add(packed: &[u8], cut: Cut, tables: &[LookupTable], sums: &mut [i32; BLOCK_ROWS]) {
    let (units, lines) = cut.split(packed);
    let (unit_tables, line_tables) = tables.as_chunks::<FIELDS>().0.split_at(cut.units);
    for (row, sum) in sums.iter_mut().enumerate() {
        for (unit, tables) in units.iter().zip(unit_tables) {
            for (field, table) in tables.iter().enumerate() {
                let product = look_up(unit, row, field, table);
                *sum += if unit[4 * BLOCK_ROWS + row] >> field & 1 == 1 {
                    -product
                } else {
                    product
                };
            }
        }
        for (line, tables) in lines.iter().zip(line_tables) {
            *sum += (0..FIELDS)
                .map(|field| look_up(line, row, field, &tables[field]))
                .sum::<i32>();
        }
    }
}

fn look_up(runs: &[u8], row: usize, field: usize, table: &LookupTable) -> i32 {
    let index = usize::from(runs[field / 2 * BLOCK_ROWS + row] >> (4 * (field % 2)) & 15);
    i32::from(table.0[index]) + i32::from(RADIX) * i32::from(table.0[16 + index])
}
