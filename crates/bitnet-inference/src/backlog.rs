//! [`Backlog`]: work that waits for the engine, and the order in which the engine gets it.
//!
//! An engine runs its requests in the order of their arrival. So that a burst of one client does
//! not delay all other clients, the engine gets only as many requests as it can run at once, and
//! the others wait here. Next is the oldest request of the owner with the fewest requests in the
//! engine; among equals, of the owner that was served longest ago. Requests in the background come
//! after all others, and the engine has a limited number of them at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The name of a client. Clients share the engine equally.
pub type Owner = Arc<str>;

/// Which requests come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits for the answer.
    #[default]
    Interactive,
    /// Runs when no interactive request waits, in at most half of the engine's places. Its tokens
    /// wait for prompts.
    Background,
}

/// Work that waits, by its priority and owner.
pub(crate) struct Backlog<T> {
    shares: BTreeMap<(Priority, Owner), Share<T>>,
    last_number: u64,
    last_turn: u64,
}

struct Share<T> {
    /// With the number of its arrival.
    waiting: VecDeque<(u64, T)>,
    /// Number of its requests that the engine has.
    running: Arc<AtomicUsize>,
    /// The turn in which it was last served; 0 before the first.
    last_turn: u64,
}

/// A request of an owner in the engine, until it is dropped.
pub(crate) struct InEngine(Arc<AtomicUsize>);

impl Drop for InEngine {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> Share<T> {
    fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }
}

impl<T> Backlog<T> {
    pub(crate) fn new() -> Self {
        Self {
            shares: BTreeMap::new(),
            last_number: 0,
            last_turn: 0,
        }
    }

    pub(crate) fn push(&mut self, priority: Priority, owner: Owner, work: T) {
        self.retain(|_| true);
        self.last_number += 1;
        let share = self
            .shares
            .entry((priority, owner))
            .or_insert_with(|| Share {
                waiting: VecDeque::new(),
                running: Arc::default(),
                last_turn: 0,
            });
        share.waiting.push_back((self.last_number, work));
    }

    /// Takes the next work; none in the background if the engine has `background_max` of that.
    pub(crate) fn next(&mut self, background_max: usize) -> Option<(InEngine, T)> {
        let is_background = |priority: Priority| priority == Priority::Background;
        let of_background = self.shares.iter();
        let of_background = of_background.filter(|((priority, _), _)| is_background(*priority));
        let num_background: usize = of_background.map(|(_, share)| share.running()).sum();
        let candidates = self.shares.iter_mut().filter_map(|((priority, _), share)| {
            let number = share.waiting.front()?.0;
            let rank = (*priority, share.running(), share.last_turn, number);
            let may_run = !is_background(*priority) || num_background < background_max;
            may_run.then_some((rank, share))
        });
        let (_, share) = candidates.min_by_key(|(rank, _)| *rank)?;
        self.last_turn += 1;
        share.last_turn = self.last_turn;
        let (_, work) = share.waiting.pop_front()?;
        share.running.fetch_add(1, Ordering::Relaxed);
        Some((InEngine(Arc::clone(&share.running)), work))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shares.values().all(|share| share.waiting.is_empty())
    }

    /// Forgets waiting work that is not wanted any more, and owners without work.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&T) -> bool) {
        drop(self.take_unwanted(is_wanted));
    }

    /// Removes the waiting work that is not wanted, and owners without work.
    pub(crate) fn take_unwanted(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut unwanted = Vec::new();
        self.shares.retain(|_, share| {
            for index in (0..share.waiting.len()).rev() {
                if !is_wanted(&share.waiting[index].1) {
                    unwanted.extend(share.waiting.remove(index).map(|(_, work)| work));
                }
            }
            share.running() > 0 || !share.waiting.is_empty()
        });
        unwanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes work in order, as `owner` and a number, and takes it out again, `running` at once.
    fn order(work: &[(&str, u32)], running_max: usize) -> Vec<u32> {
        let mut backlog = Backlog::new();
        for (owner, number) in work {
            backlog.push(Priority::Interactive, (*owner).into(), *number);
        }
        let (mut running, mut out) = (VecDeque::new(), Vec::new());
        loop {
            if running.len() == running_max {
                running.pop_front();
            }
            let Some((in_engine, number)) = backlog.next(1) else {
                return out;
            };
            running.push_back(in_engine);
            out.push(number);
        }
    }

    #[test]
    fn one_owner_is_served_in_order() {
        assert_eq!(order(&[("a", 1), ("a", 2), ("a", 3)], 2), [1, 2, 3]);
    }

    #[test]
    fn a_burst_of_one_owner_does_not_hold_up_another() {
        let burst: Vec<_> = (1..=6).map(|number| ("a", number)).collect();
        let work = [&burst[..], &[("b", 7), ("b", 8)]].concat();
        assert_eq!(order(&work, 1), [1, 7, 2, 8, 3, 4, 5, 6]);
        assert_eq!(order(&work, 2), [1, 7, 2, 8, 3, 4, 5, 6]);
    }

    #[test]
    fn work_in_the_background_comes_last_and_leaves_places_free() {
        let mut backlog = Backlog::new();
        for number in 1..=3 {
            backlog.push(Priority::Background, "a".into(), number);
        }
        let (first, number) = backlog.next(2).expect("work");
        assert_eq!(number, 1);
        backlog.push(Priority::Interactive, "a".into(), 4);
        backlog.push(Priority::Interactive, "b".into(), 5);
        let next = |backlog: &mut Backlog<u32>| backlog.next(2).map(|(_, number)| number);
        assert_eq!(next(&mut backlog), Some(4));
        assert_eq!(next(&mut backlog), Some(5));
        let (second, number) = backlog.next(2).expect("work");
        assert_eq!(number, 2);
        assert_eq!(next(&mut backlog), None, "two run in the background");
        drop((first, second));
        assert_eq!(next(&mut backlog), Some(3));
    }

    #[test]
    fn owners_without_work_are_forgotten() {
        let mut backlog = Backlog::new();
        backlog.push(Priority::Interactive, "a".into(), 1);
        backlog.push(Priority::Interactive, "b".into(), 2);
        let (in_engine, _) = backlog.next(1).expect("work");
        backlog.retain(|work| *work != 2);
        assert!(backlog.is_empty() && backlog.next(1).is_none());
        assert_eq!(
            backlog.shares.len(),
            1,
            "the first owner has work in the engine"
        );
        drop(in_engine);
        backlog.retain(|_| true);
        assert!(backlog.shares.is_empty());
    }
}
