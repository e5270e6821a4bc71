//! [`FloatArray`]: numbers that NumPy reads where they lie.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// `f32` numbers `[rows, cols]`, row by row. `numpy.asarray` makes an array of them without a copy
/// and keeps this object alive.
///
/// The buffer protocol would do the same, but the stable interface has it only from Python 3.11 on.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct FloatArray {
    /// Not touched after the object is made: NumPy owns the contents then.
    values: Vec<f32>,
    shape: (usize, usize),
}

impl FloatArray {
    /// # Panics
    /// If `values` has another length than `rows · cols`.
    pub(crate) fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * cols,
            "the numbers of {rows} rows of {cols}"
        );
        Self {
            values,
            shape: (rows, cols),
        }
    }
}

#[pymethods]
impl FloatArray {
    /// Address, shape and type, as NumPy's array interface (version 3) defines them.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let order = if cfg!(target_endian = "little") {
            "<f4"
        } else {
            ">f4"
        };
        let is_read_only = false;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.shape)?;
        interface.set_item("typestr", order)?;
        interface.set_item("data", (self.values.as_ptr().addr(), is_read_only))?;
        Ok(interface)
    }
}
