//! [`Queue`]: counts the answers that wait for the engine, and computes `Retry-After` when there
//! are too many.
//!
//! The [`Backlog`](crate::backlog::Backlog) keeps the order; this file only counts. A [`Ticket`]
//! stands for one answer, from its admission until the engine is done with it or it is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitnet_inference::Priority;

/// Maximum of `Retry-After`, in seconds.
const RETRY_AFTER_MAX_S: f64 = 600.0;
/// Weight of the latest answer in the mean duration of answers.
const LATEST_WEIGHT: f64 = 0.2;

/// Counts of waiting and running answers, and their limits.
pub(crate) struct Queue {
    requests_max: usize,
    tokens_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// Answers that the engine has not begun.
    pub(crate) waiting: usize,
    /// Tokens of their prompts.
    pub(crate) waiting_tokens: usize,
    /// Answers in the background that the engine has not begun. They take no room from others.
    pub(crate) waiting_background: usize,
    /// Answers that the engine computes.
    pub(crate) running: usize,
    /// Mean time from an answer's beginning to its end, in seconds; 0 before the first has ended.
    service_s: f64,
    /// Start of the time in which at least one answer runs; `None` if no answer runs.
    busy_since: Option<Instant>,
}

/// The queue has no room for a request.
#[derive(Debug, PartialEq)]
pub(crate) struct QueueFull {
    pub(crate) waiting: usize,
    pub(crate) waiting_tokens: usize,
    /// Seconds until there should be room.
    pub(crate) retry_after_s: u64,
}

impl Queue {
    pub(crate) fn new(requests_max: usize, tokens_max: usize) -> Self {
        Self {
            requests_max,
            tokens_max,
            counts: Mutex::new(Counts::default()),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Lock poisoning is harmless: no change below can panic halfway.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits one answer for each prompt length, or none of them. An empty queue admits a request
    /// of any size; requests in the background are always admitted.
    pub(crate) fn enter(
        self: &Arc<Self>,
        prompt_tokens: &[usize],
        priority: Priority,
    ) -> Result<Vec<Ticket>, QueueFull> {
        let mut counts = self.lock();
        let (len, tokens) = (prompt_tokens.len(), prompt_tokens.iter().sum());
        if priority == Priority::Interactive {
            self.check(&counts, len, tokens)?;
        }
        counts.wait(priority, len, tokens);
        let ticket = |&prompt_tokens| Ticket {
            queue: Arc::clone(self),
            priority,
            prompt_tokens,
            started: None,
        };
        Ok(prompt_tokens.iter().map(ticket).collect())
    }

    /// Fails if the queue would refuse even the shortest request. Called before any work is done
    /// for a request.
    pub(crate) fn check_room(&self) -> Result<(), QueueFull> {
        self.check(&self.lock(), 1, 1)
    }

    fn check(&self, counts: &Counts, requests: usize, tokens: usize) -> Result<(), QueueFull> {
        let Counts {
            waiting,
            waiting_tokens,
            running,
            service_s,
            busy_since,
            ..
        } = *counts;
        let requests_over = (waiting + requests).saturating_sub(self.requests_max);
        let tokens_over = (waiting_tokens + tokens).saturating_sub(self.tokens_max);
        if waiting == 0 || requests_over == 0 && tokens_over == 0 {
            return Ok(());
        }
        // This many answers must begin before there is room. They begin as running ones end.
        let mean_tokens = (waiting_tokens as f64 / waiting as f64).max(1.0);
        let must_begin = (requests_over as f64)
            .max((tokens_over as f64 / mean_tokens).ceil())
            .min(waiting as f64);
        // Before the first answer has ended, assume the time that it has taken so far.
        let so_far = || busy_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let service_s = if service_s > 0.0 { service_s } else { so_far() };
        let wait_s = must_begin * service_s / running.max(1) as f64;
        Err(QueueFull {
            waiting,
            waiting_tokens,
            retry_after_s: wait_s.ceil().clamp(1.0, RETRY_AFTER_MAX_S) as u64,
        })
    }
}

/// One admitted answer.
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    priority: Priority,
    prompt_tokens: usize,
    started: Option<Instant>,
}

impl Ticket {
    /// Notes that the engine has begun; true the first time.
    pub(crate) fn start(&mut self) -> bool {
        if self.started.is_some() {
            return false;
        }
        self.started = Some(Instant::now());
        let mut counts = self.queue.lock();
        counts.stop_waiting(self.priority, self.prompt_tokens);
        counts.running += 1;
        counts.busy_since = counts.busy_since.or(self.started);
        true
    }

    /// Notes that the answer is complete, and counts its duration for the mean.
    pub(crate) fn finish(self) {
        if let Some(started) = self.started {
            self.queue.lock().learn(started.elapsed());
        }
    }
}

impl Counts {
    fn wait(&mut self, priority: Priority, len: usize, tokens: usize) {
        match priority {
            Priority::Interactive => {
                self.waiting += len;
                self.waiting_tokens += tokens;
            }
            Priority::Background => self.waiting_background += len,
        }
    }

    fn stop_waiting(&mut self, priority: Priority, tokens: usize) {
        match priority {
            Priority::Interactive => {
                self.waiting -= 1;
                self.waiting_tokens -= tokens;
            }
            Priority::Background => self.waiting_background -= 1,
        }
    }

    /// The answers of two queues together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            waiting_tokens: self.waiting_tokens + other.waiting_tokens,
            waiting_background: self.waiting_background + other.waiting_background,
            running: self.running + other.running,
            ..self
        }
    }

    fn learn(&mut self, service: Duration) {
        let latest = service.as_secs_f64();
        let is_first = self.service_s == 0.0;
        self.service_s = if is_first {
            latest
        } else {
            self.service_s + LATEST_WEIGHT * (latest - self.service_s)
        };
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.queue.lock();
        if self.started.is_some() {
            counts.running -= 1;
            counts.busy_since = counts.busy_since.filter(|_| counts.running > 0);
        } else {
            counts.stop_waiting(self.priority, self.prompt_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new(4, 100))
    }

    fn enter(queue: &Arc<Queue>, prompts: &[usize]) -> Result<Vec<Ticket>, QueueFull> {
        queue.enter(prompts, Priority::Interactive)
    }

    #[test]
    fn requests_and_tokens_are_bounded_and_released() {
        let queue = queue();
        let tickets = enter(&queue, &[30, 30, 30]).expect("room for three");
        assert!(enter(&queue, &[11]).is_err(), "too many tokens");
        let fourth = enter(&queue, &[10]).expect("room for a fourth");
        assert!(
            enter(&queue, &[0]).is_err() && queue.check_room().is_err(),
            "too many requests"
        );
        drop(fourth);
        assert!(queue.check_room().is_ok());
        assert!(
            enter(&queue, &[1, 1]).is_err(),
            "all of a request's answers or none"
        );
        assert_eq!(
            queue.counts(),
            Counts {
                waiting: 3,
                waiting_tokens: 90,
                ..Counts::default()
            }
        );
        drop(tickets);
        assert_eq!(queue.counts(), Counts::default());
    }

    #[test]
    fn answers_in_the_background_take_no_room() {
        let queue = queue();
        let behind = |prompts: &[usize]| queue.enter(prompts, Priority::Background);
        let mut tickets = behind(&[30; 9]).expect("room");
        assert!(queue.check_room().is_ok());
        assert_eq!(queue.counts().waiting_background, 9);
        let _full = enter(&queue, &[1; 4]).expect("room for four");
        assert!(queue.check_room().is_err());
        assert!(behind(&[1]).is_ok(), "always admitted");
        assert!(tickets[0].start());
        let counts = || (queue.counts().waiting_background, queue.counts().running);
        assert_eq!(counts(), (8, 1));
        drop(tickets);
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn an_empty_queue_accepts_a_request_above_its_limits() {
        let queue = queue();
        let mut tickets = enter(&queue, &[101; 5]).expect("an empty queue");
        assert!(enter(&queue, &[1]).is_err());
        assert!(tickets.iter_mut().all(Ticket::start) && !tickets[0].start());
        assert_eq!(queue.counts().running, 5);
        assert!(enter(&queue, &[1]).is_ok(), "running answers do not wait");
    }

    #[test]
    fn retry_after_is_the_time_to_serve_the_excess() {
        let queue = queue();
        let mut running = enter(&queue, &[10, 10]).expect("an empty queue");
        assert!(running.iter_mut().all(Ticket::start));
        let _waiting = enter(&queue, &[20; 4]).expect("room for four");
        assert_eq!(
            queue.check_room().map_err(|full| full.retry_after_s),
            Err(1),
            "no answer has ended yet"
        );
        let begun = Instant::now()
            .checked_sub(Duration::from_secs(40))
            .expect("a machine that has run for a while");
        queue.lock().busy_since = Some(begun);
        let told = queue.check_room().map_err(|full| full.retry_after_s);
        assert!(
            told.is_err_and(|seconds| (20..60).contains(&seconds)),
            "each of two has taken 40 s so far"
        );
        queue.lock().service_s = 30.0;
        let retry_after =
            |prompts: &[usize]| enter(&queue, prompts).err().map(|full| full.retry_after_s);
        // Two run for 30 s each, so one of the waiting begins every 15 s.
        assert_eq!(retry_after(&[1]), Some(15));
        assert_eq!(retry_after(&[1, 1]), Some(30));
        // There are 61 tokens too many, so more than three requests of 20 tokens must begin.
        assert_eq!(retry_after(&[81]), Some(60));
        queue.lock().service_s = 1e6;
        assert_eq!(retry_after(&[1]), Some(600));
    }

    #[test]
    fn the_mean_service_time_follows_recent_answers() {
        let mut counts = Counts::default();
        counts.learn(Duration::from_secs(10));
        assert_eq!(counts.service_s, 10.0);
        counts.learn(Duration::from_secs(20));
        assert_eq!(counts.service_s, 12.0);
    }
}
