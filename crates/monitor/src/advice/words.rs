//! Numbers as titles and reasons have them: with three digits that matter, and a unit that fits.

use std::time::Duration;

/// Writes a number with three digits that matter.
#[must_use]
pub fn number(value: f64) -> String {
    let digits = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    let places = (2.0 - digits).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Writes a part of a whole as a percentage: `9.1 %`, `93 %`.
#[must_use]
pub fn percent(ratio: f64) -> String {
    match (ratio * 100.0).abs() {
        ..10.0 => format!("{:.1} %", ratio * 100.0),
        _ => format!("{:.0} %", ratio * 100.0),
    }
}

/// Writes a number of bytes: `950 MiB`.
#[must_use]
pub fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (value, 0);
    while value.abs() >= 1_024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1_024.0, unit + 1);
    }
    format!("{} {}", number(value), units[unit])
}

/// Writes a number of seconds: `20 ms`, `10 min`.
#[must_use]
pub fn seconds(value: f64) -> String {
    match value {
        ..0.001 => format!("{:.0} us", value * 1e6),
        ..1.0 => format!("{:.0} ms", value * 1e3),
        ..120.0 => format!("{} s", number(value)),
        ..7_200.0 => format!("{:.0} min", value / 60.0),
        ..172_800.0 => format!("{:.0} h", value / 3_600.0),
        _ => format!("{:.0} days", value / 86_400.0),
    }
}

/// Writes a duration as [`seconds`] does.
#[must_use]
pub fn duration(value: Duration) -> String {
    seconds(value.as_secs_f64())
}
