//! When a series reaches a limit, as a range.
//!
//! The time is the distance to the limit divided by the slope of the fitted line. The quartiles of the
//! slopes give the soonest and the latest time. A forecast is made of a clear trend only: a significant
//! one whose change over the window is at least three times the noise.

use serde::Serialize;

use super::trend::Trend;

/// On which side of the limit it is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Values at the limit and above are beyond it.
    Above,
    /// Values at the limit and below are beyond it.
    Below,
}

/// When a limit is reached if the trend goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// The limit, in the unit of the series.
    pub limit: f64,
    /// Value of the fitted line at the last point.
    pub level: f64,
    /// Seconds after the last point, by the median slope; zero if the limit is reached.
    pub expected_seconds: f64,
    /// Seconds by the steeper quartile of the slopes.
    pub soonest_seconds: f64,
    /// Seconds by the flatter quartile; `None` if that one does not lead there.
    pub latest_seconds: Option<f64>,
}

/// Returns when a limit is reached if a trend goes on.
///
/// `None` if the trend is not [clear](Trend::is_clear) or leads away from the limit. A level that is at
/// the limit or beyond has reached it, with a trend or without.
///
/// # Examples
///
/// ```
/// use monitor::insight::{Side, theil_sen, time_to_limit};
///
/// // A byte a second for a thousand seconds, and 500 bytes to go.
/// let points: Vec<_> = (0..=100).map(|at| (f64::from(at) * 10.0, f64::from(at) * 10.0)).collect();
/// let trend = theil_sen(&points).expect("enough points");
/// let forecast = time_to_limit(&trend, 1_500.0, Side::Above).expect("a clear trend");
/// assert!((forecast.expected_seconds - 500.0).abs() < 1e-6);
/// ```
#[must_use]
pub fn time_to_limit(trend: &Trend, limit: f64, side: Side) -> Option<Forecast> {
    if !limit.is_finite() {
        return None;
    }
    // From here on the limit is above: what falls is mirrored.
    let (sign, steep, flat) = match side {
        Side::Above => (1.0, trend.slope_high, trend.slope_low),
        Side::Below => (-1.0, -trend.slope_low, -trend.slope_high),
    };
    let distance = (limit - trend.level) * sign;
    if distance <= 0.0 {
        return Some(Forecast {
            limit,
            level: trend.level,
            expected_seconds: 0.0,
            soonest_seconds: 0.0,
            latest_seconds: Some(0.0),
        });
    }
    let slope = trend.slope * sign;
    let seconds = |slope: f64| Some(distance / slope).filter(|at| slope > 0.0 && at.is_finite());
    if !trend.is_clear() {
        return None;
    }
    Some(Forecast {
        limit,
        level: trend.level,
        expected_seconds: seconds(slope)?,
        soonest_seconds: seconds(steep)?,
        latest_seconds: seconds(flat),
    })
}

#[cfg(test)]
mod tests {
    use super::super::trend::theil_sen;
    use super::*;

    /// A line from `start` with a saw of height `noise`, a point a minute.
    fn trend(start: f64, slope: f64, noise: f64) -> Trend {
        let points: Vec<_> = (0..120)
            .map(|at| {
                let seconds = f64::from(at) * 60.0;
                (seconds, start + slope * seconds + noise * f64::from(at % 5 - 2))
            })
            .collect();
        theil_sen(&points).expect("120 points")
    }

    #[test]
    fn a_rising_series_reaches_a_limit_above_in_a_range() {
        let forecast =
            time_to_limit(&trend(100.0, 1.0, 50.0), 20_000.0, Side::Above).expect("clear");
        let seconds = (20_000.0 - forecast.level) / 1.0;
        assert!((forecast.expected_seconds / seconds - 1.0).abs() < 0.02, "{forecast:?}");
        assert!(forecast.soonest_seconds < forecast.expected_seconds);
        assert!(forecast.latest_seconds.expect("all slopes rise") > forecast.expected_seconds);
    }

    #[test]
    fn a_falling_series_reaches_a_limit_below() {
        let forecast =
            time_to_limit(&trend(10_000.0, -0.5, 10.0), 0.0, Side::Below).expect("clear");
        assert!((forecast.expected_seconds - forecast.level / 0.5).abs() < 300.0);
        assert!(forecast.soonest_seconds <= forecast.expected_seconds);
    }

    #[test]
    fn a_trend_that_leads_away_or_is_not_clear_has_no_forecast() {
        assert_eq!(time_to_limit(&trend(100.0, -0.01, 0.0), 200.0, Side::Above), None);
        assert_eq!(time_to_limit(&trend(100.0, 0.01, 0.0), 0.0, Side::Below), None);
        assert_eq!(time_to_limit(&trend(100.0, 0.0, 10.0), 200.0, Side::Above), None);
        // Significant, yet it drowns in the noise.
        assert_eq!(time_to_limit(&trend(100.0, 0.001, 10.0), 200.0, Side::Above), None);
        assert_eq!(time_to_limit(&trend(100.0, 1.0, 0.0), f64::NAN, Side::Above), None);
    }

    #[test]
    fn a_limit_that_is_passed_is_reached_now() {
        let flat = trend(100.0, 0.0, 1.0);
        assert_eq!(time_to_limit(&flat, 90.0, Side::Above).expect("reached").expected_seconds, 0.0);
        assert_eq!(time_to_limit(&flat, 110.0, Side::Below).expect("reached").soonest_seconds, 0.0);
    }
}
