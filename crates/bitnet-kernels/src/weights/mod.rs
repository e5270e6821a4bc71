//! WEIGHTS: the containers that hold a model's matrices in one of the layouts. This storey uses
//! layout and threads.

pub mod columns;
pub mod groups;
pub mod head;
pub mod matrix;
pub mod rows;
pub mod runs;
