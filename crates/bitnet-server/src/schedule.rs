//! [`Schedule`]: decides which models are loaded and unloaded, and when. Numbers only: no models,
//! no threads.
//!
//! Models that requests wait for stand in line for memory. The first in line gets it: the least
//! recently used models leave, first those that no request uses, then those in use, which finish
//! their requests before they leave. Requests for a model that leaves wait in line for it, so that
//! no model can keep another one out for ever.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Where a model is between its file and the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It takes no memory.
    Absent,
    /// Its thread loads it.
    Loading,
    /// It answers requests.
    Ready,
    /// Its thread ends, and frees its memory.
    Unloading,
}

/// What must happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Load the model.
    Load(usize),
    /// Unload the model.
    Unload(usize),
    /// Give the model to all requests that wait for it.
    Grant(usize),
}

/// A model.
#[derive(Clone, Copy, Debug)]
struct Entry {
    stage: Stage,
    /// Memory that it takes when it is loaded.
    bytes: usize,
    /// Number of requests that use it.
    uses: usize,
    /// Number of requests that wait for it.
    waiting: usize,
    last_use: Instant,
    /// How long it stays loaded after its last use; `None` for ever.
    keep_alive: Option<Duration>,
    /// Whether it makes room for another model.
    makes_room: bool,
    /// Whether its files were changed.
    must_reload: bool,
}

impl Entry {
    /// Whether it takes no more requests, and is unloaded after the last one.
    fn is_leaving(&self) -> bool {
        self.makes_room || self.must_reload
    }

    fn is_idle(&self) -> bool {
        self.stage == Stage::Ready && self.uses == 0 && (self.waiting == 0 || self.is_leaving())
    }

    /// Whether requests wait for it that memory must be found for.
    fn needs_room(&self) -> bool {
        self.waiting > 0 && matches!(self.stage, Stage::Absent | Stage::Unloading)
    }

    /// When it is unloaded if no request comes.
    fn expires(&self) -> Option<Instant> {
        self.last_use.checked_add(self.keep_alive?)
    }

    /// The memory that it takes now.
    fn used_bytes(&self) -> usize {
        match self.stage {
            Stage::Absent => 0,
            Stage::Loading | Stage::Ready | Stage::Unloading => self.bytes,
        }
    }
}

/// The state of all models.
pub(crate) struct Schedule {
    models: Vec<Entry>,
    /// Maximum memory of all models together, in bytes; `None` for no limit.
    bytes_max: Option<usize>,
    /// The models that wait for memory; the first gets it first.
    line: VecDeque<usize>,
}

impl Schedule {
    /// Models of these sizes in bytes, none of them loaded, that stay loaded for `keep_alive` after
    /// their last use.
    pub(crate) fn new(
        sizes: impl Iterator<Item = usize>,
        bytes_max: Option<usize>,
        keep_alive: Option<Duration>,
    ) -> Self {
        let entry = |bytes| Entry {
            stage: Stage::Absent,
            bytes,
            uses: 0,
            waiting: 0,
            last_use: Instant::now(),
            keep_alive,
            makes_room: false,
            must_reload: false,
        };
        Self {
            models: sizes.map(entry).collect(),
            bytes_max,
            line: VecDeque::new(),
        }
    }

    pub(crate) fn stage(&self, index: usize) -> Stage {
        self.models[index].stage
    }

    /// Bytes that the model needs and the maximum, if it can never be loaded.
    pub(crate) fn too_large(&self, index: usize) -> Option<(usize, usize)> {
        let (bytes, bytes_max) = (self.models[index].bytes, self.bytes_max?);
        (bytes > bytes_max).then_some((bytes, bytes_max))
    }

    /// A request arrives; true if it may use the model now. Otherwise it must wait.
    pub(crate) fn take(&mut self, index: usize, now: Instant) -> bool {
        let entry = &mut self.models[index];
        let is_open = entry.stage == Stage::Ready && !entry.is_leaving();
        if is_open {
            entry.uses += 1;
            entry.last_use = now;
        }
        is_open
    }

    /// A request no longer uses the model.
    pub(crate) fn release(&mut self, index: usize, now: Instant) {
        let entry = &mut self.models[index];
        entry.uses -= 1;
        entry.last_use = now;
    }

    /// Sets the number of requests that wait for the model.
    pub(crate) fn set_waiting(&mut self, index: usize, waiting: usize) {
        self.models[index].waiting = waiting;
    }

    /// Sets how long the model stays loaded after its last use; `None` for ever.
    pub(crate) fn set_keep_alive(&mut self, index: usize, keep_alive: Option<Duration>) {
        self.models[index].keep_alive = keep_alive;
    }

    /// The model is loaded, and takes `bytes`.
    pub(crate) fn loaded(&mut self, index: usize, bytes: usize, now: Instant) {
        let entry = &mut self.models[index];
        (entry.stage, entry.bytes, entry.last_use) = (Stage::Ready, bytes, now);
    }

    /// The model takes no memory any more, or could not be loaded.
    pub(crate) fn gone(&mut self, index: usize) {
        let entry = &mut self.models[index];
        entry.stage = Stage::Absent;
        (entry.makes_room, entry.must_reload) = (false, false);
    }

    /// The model must be loaded again: it takes no more requests, and leaves after the last one.
    pub(crate) fn leave(&mut self, index: usize) {
        let entry = &mut self.models[index];
        entry.must_reload = entry.stage == Stage::Ready;
    }

    /// When the model is unloaded if no request comes; `None` if a request uses it or it stays.
    pub(crate) fn expires(&self, index: usize) -> Option<Instant> {
        let entry = &self.models[index];
        let is_idle = entry.stage == Stage::Ready && entry.uses == 0 && entry.waiting == 0;
        entry.expires().filter(|_| is_idle)
    }

    /// When [`advance`](Self::advance) unloads the next model that no request uses.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        (0..self.models.len())
            .filter_map(|index| self.expires(index))
            .min()
    }

    /// How long the model stays loaded after its last use; `None` for ever.
    pub(crate) fn keep_alive(&self, index: usize) -> Option<Duration> {
        self.models[index].keep_alive
    }

    /// Everything that can happen now, in this order.
    pub(crate) fn advance(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.models.iter().any(Entry::needs_room) {
            // The requests for which models make room may have been cancelled.
            let models = self.models.iter_mut();
            models.for_each(|entry| entry.makes_room = false);
        }
        // First, so that no model leaves before the requests that it was loaded for have it.
        for (index, entry) in self.models.iter_mut().enumerate() {
            if entry.stage == Stage::Ready && !entry.is_leaving() && entry.waiting > 0 {
                entry.uses += std::mem::take(&mut entry.waiting);
                entry.last_use = now;
                steps.push(Step::Grant(index));
            }
        }
        self.update_line();
        self.load_first(&mut steps);
        for (index, entry) in self.models.iter_mut().enumerate() {
            let has_expired = entry.expires().is_some_and(|expires| expires <= now);
            if entry.is_idle() && (entry.is_leaving() || has_expired) {
                entry.stage = Stage::Unloading;
                steps.push(Step::Unload(index));
            }
        }
        steps
    }

    /// Adds the models that requests began to wait for, and removes the others.
    fn update_line(&mut self) {
        let models = &self.models;
        let needs_memory = |index: usize| {
            let entry = &models[index];
            entry.needs_room() || entry.waiting > 0 && entry.is_leaving()
        };
        self.line.retain(|index| needs_memory(*index));
        let new = (0..models.len()).filter(|index| needs_memory(*index));
        let new: Vec<_> = new.filter(|index| !self.line.contains(index)).collect();
        self.line.extend(new);
    }

    /// Loads the first models in line as long as there is memory for them, and makes room for the
    /// next.
    fn load_first(&mut self, steps: &mut Vec<Step>) {
        // Others in line still have their old memory.
        let is_absent = |index: &usize| self.models[*index].stage == Stage::Absent;
        let line: Vec<usize> = self.line.iter().copied().filter(is_absent).collect();
        for index in line {
            let needed = self.used_bytes() + self.models[index].bytes;
            let missing = needed.saturating_sub(self.bytes_max.unwrap_or(usize::MAX));
            if missing > 0 {
                return self.make_room(missing);
            }
            self.models[index].stage = Stage::Loading;
            steps.push(Step::Load(index));
        }
    }

    fn used_bytes(&self) -> usize {
        self.models.iter().map(Entry::used_bytes).sum()
    }

    /// Lets models leave until `missing` bytes will be free.
    fn make_room(&mut self, missing: usize) {
        let is_going = |entry: &Entry| entry.stage == Stage::Unloading || entry.is_leaving();
        let going = self.models.iter().filter(|entry| is_going(entry));
        let mut freed: usize = going.map(Entry::used_bytes).sum();
        let mut others: Vec<&mut Entry> = self.models.iter_mut().collect();
        others.retain(|entry| entry.stage == Stage::Ready && !entry.is_leaving());
        others.sort_by_key(|entry| (!entry.is_idle(), entry.last_use));
        for entry in others {
            if freed >= missing {
                return;
            }
            entry.makes_room = true;
            freed += entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Three models of 10 bytes each, and memory for two.
    fn schedule() -> (Schedule, Instant) {
        (
            Schedule::new([10; 3].into_iter(), Some(20), None),
            Instant::now(),
        )
    }

    /// A request for a model that is not loaded loads it, uses it and releases it.
    fn use_once(schedule: &mut Schedule, index: usize, now: Instant) {
        schedule.set_waiting(index, 1);
        assert_eq!(schedule.advance(now), [Step::Load(index)]);
        schedule.loaded(index, 10, now);
        assert_eq!(schedule.advance(now), [Step::Grant(index)]);
        schedule.release(index, now);
        assert_eq!(schedule.advance(now), []);
    }

    #[test]
    fn the_least_recently_used_idle_model_makes_room() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        use_once(&mut schedule, 1, now + SECOND);
        assert!(schedule.take(0, now + 2 * SECOND));
        schedule.release(0, now + 2 * SECOND);
        schedule.set_waiting(2, 1);
        let now = now + 3 * SECOND;
        assert_eq!(schedule.advance(now), [Step::Unload(1)]);
        assert_eq!(schedule.advance(now), [], "the memory is not free yet");
        schedule.gone(1);
        assert_eq!(schedule.advance(now), [Step::Load(2)]);
        assert_eq!(schedule.stage(0), Stage::Ready);
    }

    #[test]
    fn an_idle_model_leaves_before_an_older_one_in_use() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        use_once(&mut schedule, 1, now + SECOND);
        assert!(schedule.take(0, now));
        schedule.set_waiting(2, 1);
        assert_eq!(schedule.advance(now + 2 * SECOND), [Step::Unload(1)]);
    }

    #[test]
    fn a_model_in_use_leaves_only_after_its_requests_and_then_waits_its_turn() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        use_once(&mut schedule, 1, now);
        assert!(schedule.take(0, now) && schedule.take(1, now + SECOND));
        schedule.set_waiting(2, 1);
        assert_eq!(schedule.advance(now), [], "both are in use");
        assert!(!schedule.take(0, now), "it takes no more requests");
        schedule.set_waiting(0, 1);
        assert!(schedule.take(1, now + SECOND), "the other does");
        schedule.release(1, now + SECOND);
        schedule.release(0, now);
        assert_eq!(schedule.advance(now), [Step::Unload(0)]);
        schedule.gone(0);
        assert_eq!(schedule.advance(now), [Step::Load(2)]);
        // Now the first model stands in line, and the one in the middle must leave for it.
        schedule.loaded(2, 10, now);
        assert_eq!(schedule.advance(now), [Step::Grant(2)]);
        schedule.release(1, now + SECOND);
        assert_eq!(schedule.advance(now), [Step::Unload(1)]);
        schedule.gone(1);
        assert_eq!(schedule.advance(now), [Step::Load(0)]);
    }

    #[test]
    fn a_model_that_requests_wait_for_is_not_unloaded_before_they_had_it() {
        let (mut schedule, now) = schedule();
        (0..3).for_each(|index| schedule.set_waiting(index, 2));
        let loads = [Step::Load(0), Step::Load(1)];
        assert_eq!(schedule.advance(now), loads);
        schedule.loaded(0, 10, now);
        assert_eq!(schedule.advance(now), [Step::Grant(0)]);
        schedule.release(0, now);
        assert_eq!(schedule.advance(now), [], "the second request uses it");
        schedule.release(0, now);
        assert_eq!(schedule.advance(now), [Step::Unload(0)]);
    }

    #[test]
    fn a_model_is_not_loaded_after_its_requests_were_cancelled() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        use_once(&mut schedule, 1, now);
        assert!(schedule.take(0, now) && schedule.take(1, now));
        schedule.set_waiting(2, 1);
        assert_eq!(schedule.advance(now), []);
        schedule.set_waiting(0, 1);
        assert_eq!(schedule.advance(now), [], "the first one makes room");
        schedule.set_waiting(2, 0);
        assert_eq!(schedule.advance(now), [Step::Grant(0)]);
        schedule.release(1, now);
        assert_eq!(schedule.advance(now), []);
        assert_eq!(schedule.stage(2), Stage::Absent);
    }

    #[test]
    fn an_idle_model_is_unloaded_after_its_time() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        assert_eq!(schedule.next_expiry(), None);
        schedule.set_keep_alive(0, Some(SECOND));
        assert_eq!(schedule.next_expiry(), Some(now + SECOND));
        assert_eq!(schedule.advance(now), []);
        assert!(schedule.take(0, now));
        assert_eq!(schedule.next_expiry(), None, "in use");
        assert_eq!(schedule.advance(now + 2 * SECOND), []);
        schedule.release(0, now + 2 * SECOND);
        assert_eq!(schedule.advance(now + 2 * SECOND), []);
        assert_eq!(schedule.advance(now + 3 * SECOND), [Step::Unload(0)]);
        schedule.set_keep_alive(1, Some(Duration::ZERO));
        schedule.set_waiting(1, 1);
        assert_eq!(schedule.advance(now), [Step::Load(1)]);
        schedule.loaded(1, 10, now);
        assert_eq!(schedule.advance(now), [Step::Grant(1)]);
        schedule.release(1, now);
        assert_eq!(schedule.advance(now), [Step::Unload(1)], "at once");
    }

    #[test]
    fn a_model_with_changed_files_leaves_and_comes_back() {
        let (mut schedule, now) = schedule();
        use_once(&mut schedule, 0, now);
        assert!(schedule.take(0, now));
        schedule.leave(0);
        assert!(!schedule.take(0, now));
        schedule.set_waiting(0, 1);
        assert_eq!(schedule.advance(now), []);
        schedule.set_waiting(1, 1);
        assert_eq!(schedule.advance(now), [Step::Load(1)], "others do not wait");
        schedule.release(0, now);
        assert_eq!(schedule.advance(now), [Step::Unload(0)]);
        schedule.gone(0);
        assert_eq!(schedule.advance(now), [Step::Load(0)]);
    }

    #[test]
    fn a_model_larger_than_the_memory_is_named_with_both_numbers() {
        let schedule = Schedule::new([10, 21].into_iter(), Some(20), None);
        assert_eq!(schedule.too_large(0), None);
        assert_eq!(schedule.too_large(1), Some((21, 20)));
        let unbounded = Schedule::new([10, 21].into_iter(), None, None);
        assert_eq!(unbounded.too_large(1), None);
    }
}
