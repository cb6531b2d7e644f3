//! Invalidations that do not say what or where.
use ultra_perf::{UltraPerf, cache_invalidate};

#[cache_invalidate]
async fn nothing(perf: &UltraPerf, id: u64) {}

#[cache_invalidate(key = id)]
async fn nowhere(perf: &UltraPerf, id: u64) {}

#[cache_invalidate(name = "users", all, tags = ["user:{id}"])]
async fn too_much(perf: &UltraPerf, id: u64) {}

fn not_cached() {}

#[cache_invalidate(of = not_cached, all)]
async fn of_nobody(perf: &UltraPerf) {}

fn main() {}
