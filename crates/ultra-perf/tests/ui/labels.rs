//! Labels that are ours, given twice, or known too late.
use ultra_perf::{UltraPerf, monitored};

#[monitored(labels(function = "a", kind = "b", kind = "c"))]
fn one(perf: &UltraPerf) {}

#[monitored(labels(kind = id))]
fn other(perf: &UltraPerf, id: u8) {}

fn main() {}
