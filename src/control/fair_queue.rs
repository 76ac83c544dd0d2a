//! Whose job is next: turns that are fair by the time jobs took, not by their number.
//!
//! Start-time fair queuing. Each organisation has the time it has used, on a clock that all share and that stands where the
//! job that began last stood; whoever comes anew begins there. Of those who wait the one who has used least is next, and
//! of equals the one whose job came first. An organisation has one job under way at most: so however long that takes, the
//! other threads are the others'.
//!
//! So one whose jobs take a second each gets one of them for a thousand of another's that take a millisecond, and one who
//! asks now and then waits for what is under way and for one turn of those who began before it, whatever they have queued.
//!
//! Pure: no clock, no thread. The number of jobs is bounded by whoever admits them, and with it everything here.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use millrace_base::event::OrgId;
use millrace_base::limits::CONTROL_LANES_MAX;

/// See the module.
pub(super) struct Turns<T> {
    lanes: HashMap<OrgId, Lane<T>>,
    /// Where the job that began last stood.
    now: Duration,
    /// How many jobs came so far.
    came: u64,
}

struct Lane<T> {
    used: Duration,
    is_at_work: bool,
    /// The jobs that wait, with their numbers.
    waiting: VecDeque<(u64, T)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), now: Duration::ZERO, came: 0 }
    }
}

impl<T> Turns<T> {
    /// Lines a job up behind the others of its organisation.
    pub(super) fn push(&mut self, org: OrgId, job: T) {
        if self.lanes.len() >= CONTROL_LANES_MAX {
            self.lanes.retain(|_, lane| lane.is_at_work || !lane.waiting.is_empty());
        }
        let now = self.now;
        let lane =
            self.lanes.entry(org).or_insert_with(|| Lane { used: now, is_at_work: false, waiting: VecDeque::new() });
        if lane.waiting.is_empty() && !lane.is_at_work {
            // Time in which it asked for nothing is not saved up.
            lane.used = lane.used.max(now);
        }
        lane.waiting.push_back((self.came, job));
        self.came += 1;
    }

    /// The job whose turn it is, whose organisation has one under way from now on until [`Self::done`].
    pub(super) fn take(&mut self) -> Option<(OrgId, T)> {
        let waiting = self.lanes.iter_mut().filter(|(_, lane)| !lane.is_at_work);
        let next = waiting.filter_map(|(org, lane)| Some((lane.used, lane.waiting.front()?.0, *org, lane)));
        let (used, _, org, lane) = next.min_by_key(|(used, number, _, _)| (*used, *number))?;
        let (_, job) = lane.waiting.pop_front()?;
        lane.is_at_work = true;
        self.now = self.now.max(used);
        Some((org, job))
    }

    /// The job of an organisation that was under way has ended, and took so long.
    pub(super) fn done(&mut self, org: OrgId, took: Duration) {
        if let Some(lane) = self.lanes.get_mut(&org) {
            lane.is_at_work = false;
            lane.used += took;
        }
        let now = self.now;
        self.lanes.retain(|_, lane| lane.is_at_work || !lane.waiting.is_empty() || lane.used > now);
    }

    /// Whether no job waits and none is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.values().all(|lane| !lane.is_at_work && lane.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    #[test]
    fn an_organisation_has_one_job_under_way_and_the_others_go_past_it() {
        let mut turns = Turns::default();
        for n in 0..3 {
            turns.push(org(1), n);
        }
        turns.push(org(2), 10);
        assert_eq!(turns.take(), Some((org(1), 0)));
        assert_eq!(turns.take(), Some((org(2), 10)));
        assert_eq!(turns.take(), None);
        turns.done(org(1), MILLISECOND);
        assert_eq!(turns.take(), Some((org(1), 1)));
        assert!(!turns.is_idle());
    }

    #[test]
    fn who_comes_anew_waits_for_one_turn_of_each_whatever_they_have_queued() {
        let mut turns = Turns::default();
        for n in 0..50 {
            turns.push(org(1), n);
            turns.push(org(2), n);
        }
        // Both have used much already.
        for _ in 0..10 {
            for _ in 0..2 {
                let (org, _) = turns.take().unwrap();
                turns.done(org, 1000 * MILLISECOND);
            }
        }
        let (under_way, _) = turns.take().unwrap();
        turns.push(org(3), 0);
        turns.done(under_way, 1000 * MILLISECOND);
        let mut before = 0;
        while let Some((of, _)) = turns.take() {
            if of == org(3) {
                break;
            }
            before += 1;
            turns.done(of, 1000 * MILLISECOND);
        }
        assert!(before <= 1, "{before} turns before it");
    }

    #[test]
    fn turns_are_shared_by_time_and_not_by_number() {
        let mut turns = Turns::default();
        let (mut of_slow, mut of_quick) = (0, 0);
        let mut time = Duration::ZERO;
        turns.push(org(1), ());
        turns.push(org(2), ());
        while time < 10_000 * MILLISECOND {
            let (of, ()) = turns.take().unwrap();
            let took = if of == org(1) { 100 * MILLISECOND } else { MILLISECOND };
            *(if of == org(1) { &mut of_slow } else { &mut of_quick }) += 1;
            time += took;
            turns.push(of, ());
            turns.done(of, took);
        }
        assert!((48..=52).contains(&of_slow), "{of_slow} of 100 ms");
        assert!((4800..=5200).contains(&of_quick), "{of_quick} of 1 ms");
    }

    #[test]
    fn what_was_not_asked_for_is_not_saved_up_and_what_was_used_is_not_held_against_anybody_for_long() {
        let mut turns = Turns::default();
        turns.push(org(1), ());
        turns.take().unwrap();
        turns.done(org(1), 60_000 * MILLISECOND);
        assert_eq!(turns.lanes.len(), 1, "its last job counts against it while others have used less");
        for _ in 0..3 {
            turns.push(org(1), ());
            assert_eq!(turns.take().unwrap().0, org(1), "and nobody else is there");
            turns.done(org(1), MILLISECOND);
        }
        // Another, after a long time: it is not ahead by all of that.
        for _ in 0..4 {
            turns.push(org(1), ());
            turns.push(org(2), ());
        }
        let mut order = Vec::new();
        while let Some((of, ())) = turns.take() {
            order.push(of);
            turns.done(of, 10 * MILLISECOND);
        }
        assert!(order[..4].contains(&org(1)) && order[..4].contains(&org(2)), "{order:?}");
    }

    #[test]
    fn nothing_is_kept_of_organisations_without_end() {
        let mut turns = Turns::default();
        for n in 0..10 * CONTROL_LANES_MAX as u128 {
            turns.push(org(n), ());
            turns.take().unwrap();
            turns.done(org(n), MILLISECOND);
            assert!(turns.lanes.len() <= CONTROL_LANES_MAX);
        }
        assert!(turns.is_idle());
    }
}
