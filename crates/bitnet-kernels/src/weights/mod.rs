//! WEIGHTS: the containers that hold a model's matrices in one of the layouts.

pub mod matrix;
