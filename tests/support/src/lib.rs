//! What tests share: the entry points of the fuzz targets, and a comparer of trees.

pub mod fuzz;
pub mod tree;
