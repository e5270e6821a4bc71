//! OPS: the operations of a forward pass, each on all threads and counted. The top storey.

pub mod attention;
pub mod cpu;
pub mod groups;
pub mod lookup;
pub mod probe;
pub mod prompt;
pub mod recurrent;
pub mod rows;
pub mod screen;
pub mod sparse;
