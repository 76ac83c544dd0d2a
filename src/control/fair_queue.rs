//! Decides whose job is next: a queue that is fair by the time jobs took, not by their number.
//!
//! Start-time fair queuing. For each organisation it keeps the time its jobs have used, on a virtual clock that stands at
//! the start of the job that began last. An organisation that was idle starts at that time, so it can save nothing up. Of the
//! organisations with a waiting job, the one that has used least is next; among equals, the one whose job came first. An
//! organisation has at most one job running, so however long that takes, the other workers serve the others.
//!
//! An organisation whose jobs take a second gets one of them for a thousand of another's that take a millisecond. One that
//! asks rarely waits for the running jobs and for one job of each organisation that began before it.
//!
//! Pure: no clock, no thread. Admission bounds the number of jobs, and so everything here.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use millrace_base::event::OrgId;
use millrace_base::limits::CONTROL_LANES_MAX;

/// Jobs by organisation, in fair order.
pub(super) struct FairQueue<T> {
    orgs: HashMap<OrgId, OrgQueue<T>>,
    /// The used time at which the job that began last started.
    virtual_time: Duration,
    /// How many jobs were pushed so far.
    pushed: u64,
}

struct OrgQueue<T> {
    used: Duration,
    is_running: bool,
    /// The waiting jobs with their numbers in order of arrival.
    waiting: VecDeque<(u64, T)>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { orgs: HashMap::new(), virtual_time: Duration::ZERO, pushed: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Adds a job behind the others of its organisation.
    pub(super) fn push(&mut self, org: OrgId, job: T) {
        if self.orgs.len() >= CONTROL_LANES_MAX {
            self.orgs.retain(|_, queue| queue.is_running || !queue.waiting.is_empty());
        }
        let now = self.virtual_time;
        let queue =
            self.orgs.entry(org).or_insert_with(|| OrgQueue { used: now, is_running: false, waiting: VecDeque::new() });
        if queue.waiting.is_empty() && !queue.is_running {
            // An idle organisation saves no time up.
            queue.used = queue.used.max(now);
        }
        queue.waiting.push_back((self.pushed, job));
        self.pushed += 1;
    }

    /// Takes the next job. Its organisation has a running job from now on, until [`Self::finish`].
    pub(super) fn pop(&mut self) -> Option<(OrgId, T)> {
        let waiting = self.orgs.iter_mut().filter(|(_, queue)| !queue.is_running);
        let next = waiting.filter_map(|(org, queue)| Some((queue.used, queue.waiting.front()?.0, *org, queue)));
        let (used, _, org, queue) = next.min_by_key(|(used, number, _, _)| (*used, *number))?;
        let (_, job) = queue.waiting.pop_front()?;
        queue.is_running = true;
        self.virtual_time = self.virtual_time.max(used);
        Some((org, job))
    }

    /// Notes that the running job of an organisation has ended, and how long it took.
    pub(super) fn finish(&mut self, org: OrgId, time_taken: Duration) {
        if let Some(queue) = self.orgs.get_mut(&org) {
            queue.is_running = false;
            queue.used += time_taken;
        }
        let now = self.virtual_time;
        self.orgs.retain(|_, queue| queue.is_running || !queue.waiting.is_empty() || queue.used > now);
    }

    /// Whether no job waits and none is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.orgs.values().all(|queue| !queue.is_running && queue.waiting.is_empty())
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
    fn an_organisation_runs_one_job_and_others_overtake_it() {
        let mut queue = FairQueue::default();
        for n in 0..3 {
            queue.push(org(1), n);
        }
        queue.push(org(2), 10);
        assert_eq!(queue.pop(), Some((org(1), 0)));
        assert_eq!(queue.pop(), Some((org(2), 10)));
        assert_eq!(queue.pop(), None);
        queue.finish(org(1), MILLISECOND);
        assert_eq!(queue.pop(), Some((org(1), 1)));
        assert!(!queue.is_idle());
    }

    #[test]
    fn a_newcomer_waits_for_one_turn_of_each_organisation() {
        let mut queue = FairQueue::default();
        for n in 0..50 {
            queue.push(org(1), n);
            queue.push(org(2), n);
        }
        // Both have used much already.
        for _ in 0..10 {
            for _ in 0..2 {
                let (org, _) = queue.pop().unwrap();
                queue.finish(org, 1000 * MILLISECOND);
            }
        }
        let (under_way, _) = queue.pop().unwrap();
        queue.push(org(3), 0);
        queue.finish(under_way, 1000 * MILLISECOND);
        let mut before = 0;
        while let Some((of, _)) = queue.pop() {
            if of == org(3) {
                break;
            }
            before += 1;
            queue.finish(of, 1000 * MILLISECOND);
        }
        assert!(before <= 1, "{before} turns before it");
    }

    #[test]
    fn turns_are_shared_by_time_and_not_by_number() {
        let mut queue = FairQueue::default();
        let (mut of_slow, mut of_quick) = (0, 0);
        let mut time = Duration::ZERO;
        queue.push(org(1), ());
        queue.push(org(2), ());
        while time < 10_000 * MILLISECOND {
            let (of, ()) = queue.pop().unwrap();
            let time_taken = if of == org(1) { 100 * MILLISECOND } else { MILLISECOND };
            *(if of == org(1) { &mut of_slow } else { &mut of_quick }) += 1;
            time += time_taken;
            queue.push(of, ());
            queue.finish(of, time_taken);
        }
        assert!((48..=52).contains(&of_slow), "{of_slow} of 100 ms");
        assert!((4800..=5200).contains(&of_quick), "{of_quick} of 1 ms");
    }

    #[test]
    fn unused_share_is_not_saved_and_used_share_is_soon_forgotten() {
        let mut queue = FairQueue::default();
        queue.push(org(1), ());
        queue.pop().unwrap();
        queue.finish(org(1), 60_000 * MILLISECOND);
        assert_eq!(queue.orgs.len(), 1, "its last job counts against it while others have used less");
        for _ in 0..3 {
            queue.push(org(1), ());
            assert_eq!(queue.pop().unwrap().0, org(1), "and nobody else is there");
            queue.finish(org(1), MILLISECOND);
        }
        // Another, after a long time: it is not ahead by all of that.
        for _ in 0..4 {
            queue.push(org(1), ());
            queue.push(org(2), ());
        }
        let mut order = Vec::new();
        while let Some((of, ())) = queue.pop() {
            order.push(of);
            queue.finish(of, 10 * MILLISECOND);
        }
        assert!(order[..4].contains(&org(1)) && order[..4].contains(&org(2)), "{order:?}");
    }

    #[test]
    fn nothing_is_kept_of_organisations_without_end() {
        let mut queue = FairQueue::default();
        for n in 0..10 * CONTROL_LANES_MAX as u128 {
            queue.push(org(n), ());
            queue.pop().unwrap();
            queue.finish(org(n), MILLISECOND);
            assert!(queue.orgs.len() <= CONTROL_LANES_MAX);
        }
        assert!(queue.is_idle());
    }
}
