//! Writes tables: the embedding and the head.

use std::sync::{Mutex, PoisonError};

use bitnet_kernels::Pool;
use bitnet_quantization::Error as NotStored;
use bitnet_quantization::dense::Dense;

use crate::error::{Error, Result};
use crate::table::Table;

/// Number of weights to unpack at once.
pub(super) const BATCH_WEIGHTS: usize = 1 << 20;

/// Writes a table some rows at a time: in the source's format as it is, in another format on all
/// threads.
pub(super) fn write_table(
    name: &str,
    table: &Table,
    format: Dense,
    pool: &Pool,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let of_tensor = |source| Error::Tensor {
        tensor: name.to_owned(),
        source,
    };
    let cols = table.cols();
    let row_bytes = format.size_bytes(1, cols).map_err(of_tensor)?;
    let batch = (BATCH_WEIGHTS / cols).clamp(1, table.rows());
    let mut bytes = vec![0; batch * row_bytes];
    let store = |index: usize, values: &[f32], bytes: &mut [u8]| {
        if format != table.format() {
            return format.quantize(values, bytes);
        }
        bytes.copy_from_slice(table.stored_row(index));
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(NotStored::Value {
                format: format.name(),
                index: at,
                value: values[at],
            }),
        }
    };
    for first in (0..table.rows()).step_by(batch) {
        let num_rows = batch.min(table.rows() - first);
        let bytes = &mut bytes[..num_rows * row_bytes];
        let rows: Vec<_> = bytes
            .chunks_exact_mut(row_bytes)
            .map(|row| Mutex::new((row, Ok(()))))
            .collect();
        pool.split(num_rows, 1, &|share| {
            let mut values = vec![0.0; cols];
            for row in share {
                table.read_row(first + row, &mut values);
                let mut slot = rows[row].lock().unwrap_or_else(PoisonError::into_inner);
                slot.1 = store(first + row, &values, slot.0);
            }
        });
        for (row, slot) in (first..).zip(rows) {
            // Report the index within the whole tensor.
            slot.into_inner()
                .unwrap_or_else(PoisonError::into_inner)
                .1
                .map_err(|error| match error {
                    NotStored::Value {
                        format,
                        index,
                        value,
                    } => of_tensor(NotStored::Value {
                        format,
                        index: row * cols + index,
                        value,
                    }),
                    other => of_tensor(other),
                })?;
        }
        table.advise_done();
        write(bytes)?;
    }
    Ok(())
}
