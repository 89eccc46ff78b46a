//! Repeated measurements of one thing.

use std::time::Duration;

/// Values of one measurement, at least one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// One more.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// In the order in which they were taken.
    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    /// The value at or below which this share of them lies (nearest rank); NaN where there is none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2)) {
            (Some(low), Some(high)) => f64::midpoint(*low, *high),
            _ => f64::NAN,
        }
    }

    /// Smallest and largest.
    pub(crate) fn spread(&self) -> (f64, f64) {
        (self.quantile(0.0), self.quantile(1.0))
    }
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Sample(vec![value])
    }
}

/// Milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_quantiles_and_spread() {
        let sample = Sample((1..=100).rev().map(f64::from).collect());
        assert!((sample.median() - 50.5).abs() < 1e-9);
        assert!((sample.quantile(0.5) - 50.0).abs() < 1e-9);
        assert!((sample.quantile(0.99) - 99.0).abs() < 1e-9);
        assert_eq!(sample.spread(), (1.0, 100.0));
        assert!((Sample::from(3.0).median() - 3.0).abs() < 1e-9);
        assert!(Sample::default().median().is_nan());
    }
}
