//! A CPU-bound image service: interactive thumbnails keep their p99 while a batch takes every core.
//!
//! The service shrinks pictures. People wait for thumbnails, one every few milliseconds; at night a batch
//! renders all pictures anew. Without an order the thumbnails stand behind the whole batch. With two
//! priorities they stand behind the pictures that are being rendered at that moment, and the batch loses
//! nothing.
//!
//! ```text
//! cargo run -p ultra-perf --example images
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use ultra_perf::{OptimizationLevel, TaskError, UltraPerf};

/// Thumbnails of a round, and how often one is asked for.
const THUMBNAILS: u32 = 60;
const EVERY: Duration = Duration::from_millis(10);
/// How long the batch alone would take every core.
const BATCH: Duration = Duration::from_millis(1_500);

/// A picture of three bytes for each point.
struct Image {
    width: usize,
    height: usize,
    points: Vec<[u8; 3]>,
}

impl Image {
    /// A picture with something on it.
    fn generated(width: usize, height: usize) -> Self {
        let point = |at: usize| {
            let (x, y) = (at % width, at / width);
            [(x ^ y) as u8, (x * y / 64) as u8, (x + 2 * y) as u8]
        };
        Self { width, height, points: (0..width * height).map(point).collect() }
    }

    /// Makes each square of `factor` points one point, the mean of them.
    fn shrunk(&self, factor: usize) -> Self {
        let (width, height) = (self.width / factor, self.height / factor);
        let mut points = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                let mut sums = [0_usize; 3];
                for row in 0..factor {
                    let start = (y * factor + row) * self.width + x * factor;
                    for point in &self.points[start..start + factor] {
                        for (sum, part) in sums.iter_mut().zip(point) {
                            *sum += usize::from(*part);
                        }
                    }
                }
                points.push(sums.map(|sum| (sum / (factor * factor)) as u8));
            }
        }
        Self { width, height, points }
    }
}

/// What somebody waits for.
#[ultra_perf::optimize(cpu, priority = High)]
async fn thumbnail(perf: &UltraPerf, image: Arc<Image>) -> Result<usize, TaskError> {
    Ok(image.shrunk(8).points.len())
}

/// What nobody waits for.
#[ultra_perf::optimize(cpu, priority = Low)]
async fn render(perf: &UltraPerf, image: Arc<Image>) -> Result<usize, TaskError> {
    Ok(image.shrunk(4).points.len())
}

/// As `thumbnail`, and as important as everything else.
#[ultra_perf::optimize(cpu)]
async fn some_thumbnail(perf: &UltraPerf, image: Arc<Image>) -> Result<usize, TaskError> {
    Ok(image.shrunk(8).points.len())
}

/// As `render`, and as important as everything else.
#[ultra_perf::optimize(cpu)]
async fn some_picture(perf: &UltraPerf, image: Arc<Image>) -> Result<usize, TaskError> {
    Ok(image.shrunk(4).points.len())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let perf = UltraPerf::builder()
        .level(OptimizationLevel::Advanced)
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        .build()
        .await?;
    let shop = Shop {
        perf: perf.clone(),
        small: Arc::new(Image::generated(320, 240)),
        large: Arc::new(Image::generated(640, 480)),
    };
    // As many pictures as take every core for a while, on this machine and in this build.
    let began = Instant::now();
    let sample = shop.large.shrunk(4);
    let one = began.elapsed().max(Duration::from_micros(10));
    let threads = perf.config().scheduler.cpu.threads as u32;
    let pictures = (BATCH.as_micros() * u128::from(threads) / one.as_micros()).clamp(20, 5_000);
    println!(
        "a picture of {} x {} shrinks to {} x {} in {one:.1?}; {threads} threads, {pictures} in the batch",
        shop.large.width, shop.large.height, sample.width, sample.height,
    );

    let alone = shop.round(0, false).await?;
    let unordered = shop.round(pictures, false).await?;
    let ordered = shop.round(pictures, true).await?;
    println!("{:<36}{:>10}{:>10}{:>16}", "thumbnails, in ms", "p50", "p99", "batch, in ms");
    for (name, round) in [
        ("nothing else to do", &alone),
        ("beside the batch, no priorities", &unordered),
        ("beside the batch, High over Low", &ordered),
    ] {
        let batch = round.batch.map_or("-".to_owned(), milliseconds);
        let (p50, p99) = (milliseconds(round.quantile(0.5)), milliseconds(round.quantile(0.99)));
        println!("{name:<36}{p50:>10}{p99:>10}{batch:>16}");
    }

    let report = perf.shutdown(Duration::from_secs(10)).await;
    if ordered.quantile(0.99) * 3 > unordered.quantile(0.99) {
        return Err("the priority did not keep the p99 of the thumbnails".into());
    }
    if report.is_clean() { Ok(()) } else { Err(format!("not all was stopped: {report}").into()) }
}

/// What a round came to.
struct Round {
    /// Of the thumbnails, from the shortest on.
    latencies: Vec<Duration>,
    /// Until the last picture of the batch was done.
    batch: Option<Duration>,
}

impl Round {
    fn quantile(&self, q: f64) -> Duration {
        let at = (q * self.latencies.len() as f64).ceil() as usize;
        self.latencies[at.clamp(1, self.latencies.len()) - 1]
    }
}

/// The service with its pictures.
struct Shop {
    perf: UltraPerf,
    small: Arc<Image>,
    large: Arc<Image>,
}

impl Shop {
    /// Asks for a thumbnail every few milliseconds while a batch is rendered.
    async fn round(&self, pictures: u128, ordered: bool) -> Result<Round, Box<dyn Error>> {
        let began = Instant::now();
        let mut batch = JoinSet::new();
        for _ in 0..pictures {
            let (perf, image) = (self.perf.clone(), Arc::clone(&self.large));
            batch.spawn(async move {
                match ordered {
                    true => render(&perf, image).await,
                    false => some_picture(&perf, image).await,
                }
            });
        }
        let mut asked = JoinSet::new();
        let mut timer = tokio::time::interval(EVERY);
        for _ in 0..THUMBNAILS {
            timer.tick().await;
            let (perf, image) = (self.perf.clone(), Arc::clone(&self.small));
            asked.spawn(async move {
                let start = Instant::now();
                let thumbnail = match ordered {
                    true => thumbnail(&perf, image).await,
                    false => some_thumbnail(&perf, image).await,
                };
                thumbnail.map(|_| start.elapsed())
            });
        }
        let mut latencies = Vec::new();
        while let Some(latency) = asked.join_next().await {
            latencies.push(latency??);
        }
        latencies.sort();
        while let Some(picture) = batch.join_next().await {
            picture??;
        }
        let batch = (pictures > 0).then(|| began.elapsed());
        Ok(Round { latencies, batch })
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
