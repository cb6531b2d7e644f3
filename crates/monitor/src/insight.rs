//! What the samples say: how a series usually is, where it goes, when it reaches a limit.

mod forecast;
mod trend;

pub use forecast::{Forecast, Side, time_to_limit};
pub use trend::{POINTS_MAX, POINTS_MIN, Trend, Z_SIGNIFICANT, downsample, theil_sen};
