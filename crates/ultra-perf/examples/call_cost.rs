//! What a hit of a cached function costs beside a look-up in the same cache by hand.
//!
//! `cargo run --release -p ultra-perf --example call_cost`

use std::hint::black_box;
use std::time::Instant;

use ultra_perf::{UltraPerf, cached};

const ROUNDS: usize = 31;
const CALLS: u64 = 200_000;
const KEYS: u64 = 1_000;

#[cached]
async fn square(perf: &UltraPerf, number: u64) -> u64 {
    number * number
}

#[cached]
fn square_now(perf: &UltraPerf, number: u64) -> u64 {
    number * number
}

#[cached]
async fn length(perf: &UltraPerf, tenant: &str, number: u64) -> u64 {
    tenant.len() as u64 + number
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let perf = UltraPerf::builder().set("level", "basic").build().await?;
    let direct = perf.cache::<u64, u64>("direct").build()?;
    for number in 0..KEYS {
        direct.insert(number, number * number);
        square(&perf, number).await;
        square_now(&perf, number);
        length(&perf, "a-tenant-of-some-length", number).await;
    }
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for call in 0..CALLS {
            black_box(direct.get(black_box(&(call % KEYS))).await);
        }
        times[0].push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        let began = Instant::now();
        for call in 0..CALLS {
            black_box(square(&perf, black_box(call % KEYS)).await);
        }
        times[1].push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        let began = Instant::now();
        for call in 0..CALLS {
            black_box(square_now(&perf, black_box(call % KEYS)));
        }
        times[2].push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        let began = Instant::now();
        for call in 0..CALLS {
            black_box(length(&perf, "a-tenant-of-some-length", black_box(call % KEYS)).await);
        }
        times[3].push(began.elapsed().as_nanos() as f64 / CALLS as f64);
    }
    let [direct, cached, sync, text] = times.map(median);
    println!("cache.get(&key).await          {direct:6.1} ns");
    println!("cached async fn of a u64       {cached:6.1} ns  {:.2}x", cached / direct);
    println!("cached fn of a u64             {sync:6.1} ns  {:.2}x", sync / direct);
    println!("cached async fn of text + u64  {text:6.1} ns  {:.2}x", text / direct);
    Ok(())
}
