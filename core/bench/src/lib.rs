//! Benchmarks: what plugins cost, as a ratio to the same work without them, measured in the same run.
#![forbid(unsafe_code)]

pub mod disk;
pub mod network;
pub mod plugins;
pub mod transport;
mod wire;

use std::time::Duration;
pub use wire::WireError;

/// Median and 99 %, in microseconds.
fn quantiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| {
        let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    })
}
