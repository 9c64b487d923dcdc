//! How figures are set: numbers, tables and charts, whatever they are of.

pub mod chart;
pub mod format;
pub mod table;
