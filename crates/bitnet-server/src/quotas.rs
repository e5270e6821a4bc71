//! [`Quotas`]: how much each client may use. A client is the owner of an API key or, without keys,
//! an address.
//!
//! Requests and tokens a minute are buckets that hold one minute's allowance, and that fill evenly.
//! A request takes its prompt's tokens when it is admitted, and the generated ones when it ends. So
//! a bucket of tokens may be overdrawn by one answer; the next request waits until it is even.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitnet_inference::Owner;

use crate::api::ApiError;
use crate::options::KeyLimits;

/// Clients that are remembered before those that have used nothing for a while are forgotten.
const CLIENTS_KEPT: usize = 1024;
/// The largest error of a bucket from rounding.
const ROUNDING: f64 = 1e-6;
const MINUTE: Duration = Duration::from_secs(60);

/// The remaining requests and tokens of all clients.
pub(crate) struct Quotas {
    limits: KeyLimits,
    clients: Mutex<HashMap<Owner, Client>>,
}

/// The remaining requests and tokens of a client.
struct Client {
    /// Requests; below 0 never.
    requests: f64,
    /// Tokens; below 0 after answers that were longer than the rest.
    tokens: f64,
    /// Answers that have not ended.
    running: usize,
    filled: Instant,
}

/// A request that was admitted, until it is dropped.
pub(crate) struct Admitted {
    quotas: Arc<Quotas>,
    client: Owner,
    num_answers: usize,
    /// Tokens generated so far.
    pub(crate) generated: usize,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut clients = self.quotas.lock();
        if let Some(client) = clients.get_mut(&self.client) {
            client.running = client.running.saturating_sub(self.num_answers);
            client.tokens -= self.generated as f64;
        }
    }
}

impl Quotas {
    pub(crate) fn new(limits: KeyLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            clients: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Client>> {
        // No change under this lock can panic halfway.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a request for `num_answers` answers; `None` where nothing is limited.
    ///
    /// # Errors
    /// If the client has reached a limit: 429 with the time until it may ask again.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: &Owner,
        num_answers: usize,
        prompt_tokens: usize,
    ) -> Result<Option<Admitted>, ApiError> {
        self.admit_at(client, num_answers, prompt_tokens, Instant::now())
    }

    fn admit_at(
        self: &Arc<Self>,
        client: &Owner,
        num_answers: usize,
        prompt_tokens: usize,
        now: Instant,
    ) -> Result<Option<Admitted>, ApiError> {
        let limits = self.limits;
        if limits == KeyLimits::default() {
            return Ok(None);
        }
        let mut clients = self.lock();
        if clients.len() >= CLIENTS_KEPT {
            clients.retain(|_, client| !client.is_idle(&limits, now));
        }
        let known = clients
            .entry(Owner::clone(client))
            .or_insert_with(|| Client::new(&limits, now));
        known.fill(&limits, now);
        known.check(&limits, num_answers, prompt_tokens)?;
        known.requests -= 1.0;
        known.tokens -= prompt_tokens as f64;
        known.running += num_answers;
        Ok(Some(Admitted {
            quotas: Arc::clone(self),
            client: Owner::clone(client),
            num_answers,
            generated: 0,
        }))
    }
}

impl Client {
    fn new(limits: &KeyLimits, now: Instant) -> Self {
        Self {
            requests: limits.requests_per_minute.unwrap_or(0) as f64,
            tokens: limits.tokens_per_minute.unwrap_or(0) as f64,
            running: 0,
            filled: now,
        }
    }

    /// Adds the allowance of the time since the last call.
    fn fill(&mut self, limits: &KeyLimits, now: Instant) {
        let minutes = now.saturating_duration_since(self.filled).as_secs_f64() / 60.0;
        let filled = |left: f64, limit: Option<usize>| {
            let limit = limit.unwrap_or(0) as f64;
            (left + limit * minutes).min(limit)
        };
        self.requests = filled(self.requests, limits.requests_per_minute);
        self.tokens = filled(self.tokens, limits.tokens_per_minute);
        self.filled = now;
    }

    fn is_idle(&self, limits: &KeyLimits, now: Instant) -> bool {
        let is_even = self.tokens >= 0.0 || limits.tokens_per_minute.is_none();
        self.running == 0 && is_even && now.saturating_duration_since(self.filled) >= MINUTE
    }

    fn check(
        &self,
        limits: &KeyLimits,
        num_answers: usize,
        prompt_tokens: usize,
    ) -> Result<(), ApiError> {
        if let Some(limit) = limits.concurrency
            && self.running + num_answers > limit
            // A request for more answers than the limit runs alone.
            && (self.running > 0 || num_answers == 1)
        {
            let message = format!(
                "this client has {} answers under way and may have {limit} at once",
                self.running
            );
            return Err(ApiError::limit_exceeded(message, 1));
        }
        if let Some(limit) = limits.requests_per_minute
            && self.requests < 1.0 - ROUNDING
        {
            let wait_s = seconds_until(1.0 - self.requests, limit);
            let message =
                format!("this client may make {limit} requests a minute; try again in {wait_s} s");
            return Err(ApiError::limit_exceeded(message, wait_s));
        }
        let Some(limit) = limits.tokens_per_minute else {
            return Ok(());
        };
        // A prompt that is longer than a minute's allowance needs a full bucket.
        let needed = (prompt_tokens as f64).min(limit as f64);
        if self.tokens >= needed - ROUNDING {
            return Ok(());
        }
        let wait_s = seconds_until(needed - self.tokens, limit);
        let message =
            format!("this client may use {limit} tokens a minute; try again in {wait_s} s");
        Err(ApiError::limit_exceeded(message, wait_s))
    }
}

/// Whole seconds until a bucket of `limit` a minute has filled by `amount`.
fn seconds_until(amount: f64, limit: usize) -> u64 {
    (amount * 60.0 / limit as f64 - ROUNDING).ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(limits: KeyLimits) -> Arc<Quotas> {
        Quotas::new(limits)
    }

    /// Admits a request; the error is the time until the next try, in seconds.
    fn admit(
        quotas: &Arc<Quotas>,
        client: &str,
        tokens: usize,
        now: Instant,
    ) -> Result<Option<Admitted>, u64> {
        let admitted = quotas.admit_at(&client.into(), 1, tokens, now);
        admitted.map_err(|error| error.retry_after_s().expect("a time"))
    }

    #[test]
    fn requests_of_each_client_are_limited_and_return_evenly() {
        let quotas = quotas(KeyLimits {
            requests_per_minute: Some(2),
            ..KeyLimits::default()
        });
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(admit(&quotas, "a", 5, start).is_ok());
        assert!(admit(&quotas, "a", 5, start).is_ok());
        assert_eq!(admit(&quotas, "a", 5, start).err(), Some(30));
        assert!(admit(&quotas, "b", 5, start).is_ok());
        assert_eq!(admit(&quotas, "a", 5, later(10)).err(), Some(20));
        assert!(admit(&quotas, "a", 5, later(30)).is_ok());
        assert_eq!(admit(&quotas, "a", 5, later(30)).err(), Some(30));
        // A long pause allows no more than one minute does.
        assert!(admit(&quotas, "a", 5, later(900)).is_ok());
        assert!(admit(&quotas, "a", 5, later(900)).is_ok());
        assert_eq!(admit(&quotas, "a", 5, later(900)).err(), Some(30));
    }

    #[test]
    fn generated_tokens_are_paid_at_the_end() {
        let quotas = quotas(KeyLimits {
            tokens_per_minute: Some(60),
            ..KeyLimits::default()
        });
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut first = admit(&quotas, "a", 20, start)
            .expect("room")
            .expect("a limit");
        first.generated = 70;
        drop(first);
        // 60 - 20 - 70 = -30 are left.
        assert_eq!(admit(&quotas, "a", 10, start).err(), Some(40));
        assert!(admit(&quotas, "a", 10, later(40)).is_ok());
        // A prompt that no minute allows waits for a full bucket.
        assert_eq!(admit(&quotas, "a", 100, later(40)).err(), Some(60));
        assert!(admit(&quotas, "a", 100, later(100)).is_ok());
    }

    #[test]
    fn answers_at_once_are_limited() {
        let quotas = quotas(KeyLimits {
            concurrency: Some(2),
            ..KeyLimits::default()
        });
        let now = Instant::now();
        let first = admit(&quotas, "a", 1, now).expect("room");
        let second = admit(&quotas, "a", 1, now).expect("room");
        assert_eq!(admit(&quotas, "a", 1, now).err(), Some(1));
        assert!(admit(&quotas, "b", 1, now).is_ok());
        drop(first);
        let third = admit(&quotas, "a", 1, now).expect("room");
        drop((second, third));
        // A request for more answers runs alone.
        let many = quotas.admit_at(&"a".into(), 5, 1, now).expect("room");
        assert_eq!(admit(&quotas, "a", 1, now).err(), Some(1));
        drop(many);
        assert!(admit(&quotas, "a", 1, now).is_ok());
    }

    #[test]
    fn clients_that_use_nothing_are_forgotten() {
        let quotas = quotas(KeyLimits {
            requests_per_minute: Some(2),
            ..KeyLimits::default()
        });
        let start = Instant::now();
        for index in 0..CLIENTS_KEPT {
            assert!(admit(&quotas, &index.to_string(), 1, start).is_ok());
        }
        assert!(admit(&quotas, "new", 1, start + MINUTE).is_ok());
        assert_eq!(quotas.lock().len(), 1);
        let unlimited = Quotas::new(KeyLimits::default());
        assert!(matches!(admit(&unlimited, "a", 1, start), Ok(None)));
        assert!(unlimited.lock().is_empty());
    }
}
