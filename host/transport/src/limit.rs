//! Limits of transfer: a bucket of tokens, one a byte.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many bytes a second, and so many at once after a pause.
#[derive(Debug)]
pub struct RateLimit {
    rate: f64,
    burst: f64,
    /// tokens, which go below zero, and when they were counted
    bucket: Mutex<(f64, Instant)>,
}

impl RateLimit {
    /// `burst` is one second's worth unless given.
    pub fn new(rate: u64, burst: Option<u64>) -> Self {
        let rate = rate.max(1) as f64;
        let burst = burst.map_or(rate, |burst| burst.max(1) as f64);
        Self { rate, burst, bucket: Mutex::new((burst, Instant::now())) }
    }

    /// Takes so many tokens; returns how long to wait before using them.
    pub(crate) fn take(&self, bytes: u64) -> Duration {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: u64, now: Instant) -> Duration {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, counted) = *bucket;
        let gained = now.saturating_duration_since(counted).as_secs_f64() * self.rate;
        let tokens = (tokens + gained).min(self.burst) - bytes as f64;
        *bucket = (tokens, now);
        if tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-tokens / self.rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_burst_it_takes_time() {
        let limit = RateLimit::new(1000, Some(500));
        let start = limit.bucket.lock().unwrap().1;
        assert_eq!(limit.take_at(500, start), Duration::ZERO);
        assert_eq!(limit.take_at(1000, start), Duration::from_secs(1));
        assert_eq!(limit.take_at(1000, start), Duration::from_secs(2));
        let later = start + Duration::from_secs(60);
        assert_eq!(limit.take_at(500, later), Duration::ZERO, "a pause fills the bucket");
        assert_eq!(limit.take_at(100, later), Duration::from_millis(100));
    }
}
