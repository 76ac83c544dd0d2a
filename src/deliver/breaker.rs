//! A circuit breaker for each endpoint, so that a dead one is not hammered by its backlog. Pure: a state and the moments
//! the sender, which owns it, tells it.
//!
//! ```text
//!           failures one after another               rested
//!   closed ───────────────────────────────▶ resting ◀──────────▶ probing
//!      ▲                                       │    failed, lost     │
//!      └──────────────── any success ──────────┴─────────────────────┘
//! ```
//!
//! Invariants: nothing is sent while it rests; one probe is out at a time; each failed probe doubles the rest up to
//! [`limits::BREAKER_REST_MAX`]; results of requests from before it opened never prolong a rest.
//!
//! A result does not say which request it is of. So a straggler's failure during a probe counts as the probe's, which
//! costs one doubling; and any success closes, because an endpoint that answers is not dead.
//!
//! Moments are wall-clock time, which may be set back: a rest then lasts its own length once more at the longest.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::limits;

/// Whether an endpoint gets requests. Closed at first.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    state: State,
    /// After one another, up to now; counted while closed.
    failures: u32,
    failing_since: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Closed,
    /// Open. `until` is at most `rest` away.
    Resting { until: Timestamp, rest: Duration },
    /// Half open: a request is out. `lost_at` is when its result is given up.
    Probing { lost_at: Timestamp, rest: Duration },
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anybody waits for.
    None,
    /// It rests until then: it has just opened, or its probe has failed.
    Opened {
        /// The earliest moment of the next probe.
        until: Timestamp,
    },
    /// It was open and is not any more.
    Closed,
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a probe is out once it is allowed"]
pub enum Gate {
    /// Yes.
    Open,
    /// This one: its result decides.
    Probe,
    /// No.
    Wait {
        /// Ask again then, or after the next change.
        until: Timestamp,
    },
}

impl Breaker {
    /// A request was answered as it should be.
    pub fn success(&mut self) -> Change {
        let was_open = self.is_open();
        *self = Self::default();
        if was_open { Change::Closed } else { Change::None }
    }

    /// One failed.
    pub fn failure(&mut self, now: Timestamp) -> Change {
        self.failing_since.get_or_insert(now);
        match self.state {
            State::Closed => {
                self.failures += 1;
                if self.failures < limits::BREAKER_FAILURES {
                    return Change::None;
                }
                self.rest(now, limits::BREAKER_REST_MIN)
            }
            State::Resting { .. } => Change::None,
            State::Probing { rest, .. } => self.rest(now, (rest * 2).min(limits::BREAKER_REST_MAX)),
        }
    }

    fn rest(&mut self, now: Timestamp, rest: Duration) -> Change {
        let until = now.plus(rest);
        self.state = State::Resting { until, rest };
        Change::Opened { until }
    }

    /// Whether a request may be sent now. A [`Gate::Probe`] is out from here on.
    pub fn may_send(&mut self, now: Timestamp) -> Gate {
        let (due, longest, rest) = match self.state {
            State::Closed => return Gate::Open,
            State::Resting { until, rest } => (until, rest, rest),
            State::Probing { lost_at, rest, .. } => (lost_at, limits::BREAKER_PROBE_WAIT, rest),
        };
        // Further away only where the clock was set back.
        let due = due.min(now.plus(longest));
        if due <= now {
            self.state = State::Probing { lost_at: now.plus(limits::BREAKER_PROBE_WAIT), rest };
            return Gate::Probe;
        }
        match &mut self.state {
            State::Closed => {}
            State::Resting { until, .. } => *until = due,
            State::Probing { lost_at, .. } => *lost_at = due,
        }
        Gate::Wait { until: due }
    }

    /// Whether it is anything but closed.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// When the first failure after the last success was told; `None` where there is none. As long as this breaker is
    /// remembered: the store keeps it beyond that.
    pub fn failing_since(&self) -> Option<Timestamp> {
        self.failing_since
    }
}

/// Whether an endpoint that fails once more at `now`, and has done nothing else since then, is to be disabled.
pub fn should_disable(failing_since: Option<Timestamp>, now: Timestamp) -> bool {
    failing_since.is_some_and(|since| now >= since.plus(limits::ENDPOINT_DISABLE_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn opened(seconds: u64) -> Change {
        Change::Opened { until: at(seconds) }
    }

    fn wait(seconds: u64) -> Gate {
        Gate::Wait { until: at(seconds) }
    }

    /// Opened at 0 s, to be probed at 5 s.
    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..limits::BREAKER_FAILURES {
            assert_eq!(breaker.failure(START), Change::None);
        }
        assert_eq!(breaker.failure(START), opened(5));
        breaker
    }

    #[test]
    fn only_failures_after_one_another_open_it() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..limits::BREAKER_FAILURES {
                assert_eq!(breaker.failure(START), Change::None);
                assert_eq!(breaker.may_send(START), Gate::Open);
            }
            assert_eq!(breaker.success(), Change::None);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn one_probe_at_a_time_and_rests_that_double() {
        let mut breaker = open();
        let mut now = 0;
        for rest in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(breaker.may_send(at(now + rest - 1)), wait(now + rest));
            now += rest;
            assert_eq!(breaker.may_send(at(now)), Gate::Probe);
            assert_eq!(breaker.may_send(at(now)), wait(now + 150));
            assert_eq!(breaker.failure(at(now)), opened(now + (rest * 2).min(300)));
        }
        assert_eq!(breaker.failing_since(), Some(START));
        assert_eq!(breaker.may_send(at(now + 300)), Gate::Probe);
        assert_eq!(breaker.success(), Change::Closed);
        assert_eq!((breaker.is_open(), breaker.failing_since()), (false, None));
        assert_eq!(breaker.may_send(at(now)), Gate::Open);
        // And begins anew.
        for _ in 1..limits::BREAKER_FAILURES {
            assert_eq!(breaker.failure(at(now)), Change::None);
        }
        assert_eq!(breaker.failure(at(now)), opened(now + 5));
    }

    #[test]
    fn late_failures_do_not_prolong_a_rest_and_a_late_success_ends_it() {
        let mut breaker = open();
        for _ in 0..100 {
            assert_eq!(breaker.failure(at(4)), Change::None);
        }
        assert_eq!(breaker.may_send(at(4)), wait(5));
        assert_eq!(breaker.success(), Change::Closed);
        assert_eq!(breaker.may_send(at(4)), Gate::Open);
    }

    #[test]
    fn a_probe_that_is_lost_gives_way_to_another() {
        let mut breaker = open();
        assert_eq!(breaker.may_send(at(4)), wait(5), "there was none");
        assert_eq!(breaker.may_send(at(6)), Gate::Probe);
        assert_eq!(breaker.may_send(at(155)), wait(156));
        assert_eq!(breaker.may_send(at(156)), Gate::Probe);
        assert_eq!(breaker.may_send(at(157)), wait(306));
    }

    #[test]
    fn a_clock_that_is_set_back_delays_by_one_rest_at_most() {
        let (hour, mut breaker) = (3600, Breaker::default());
        for _ in 0..limits::BREAKER_FAILURES {
            let _ = breaker.failure(at(hour));
        }
        assert_eq!(breaker.may_send(at(0)), wait(5));
        assert_eq!(breaker.may_send(at(3)), wait(5));
        assert_eq!(breaker.may_send(at(hour)), Gate::Probe);
        assert_eq!(breaker.may_send(at(10)), wait(160));
        assert_eq!(breaker.may_send(at(160)), Gate::Probe);
    }

    #[test]
    fn an_endpoint_is_disabled_after_five_days_of_failures() {
        let days = 5 * 86_400;
        assert!(!should_disable(None, at(days)));
        assert!(!should_disable(Some(START), at(days - 1)));
        assert!(should_disable(Some(START), at(days)));
        assert!(!should_disable(Some(at(1)), START));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Success,
        Failure,
        Ask,
        /// Seconds.
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => Just(Step::Success),
            8 => Just(Step::Failure),
            8 => Just(Step::Ask),
            8 => (1..400u64).prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn whatever_happens_the_invariants_hold(steps in steps()) {
            let mut breaker = Breaker::default();
            let (mut now, mut probe_out_since, mut failed_first) = (0, None, None);
            for step in steps {
                let was_open = breaker.is_open();
                match step {
                    Step::Pass(seconds) => now += seconds,
                    Step::Success => {
                        let change = breaker.success();
                        prop_assert_eq!(change, if was_open { Change::Closed } else { Change::None });
                        prop_assert_eq!(breaker.may_send(at(now)), Gate::Open);
                        (probe_out_since, failed_first) = (None, None);
                    }
                    Step::Failure => {
                        failed_first = failed_first.or(Some(at(now)));
                        match breaker.failure(at(now)) {
                            Change::Opened { until } => {
                                prop_assert!(!was_open || probe_out_since.is_some());
                                prop_assert!(until >= at(now).plus(limits::BREAKER_REST_MIN));
                                prop_assert!(until <= at(now).plus(limits::BREAKER_REST_MAX));
                            }
                            Change::None => prop_assert!(probe_out_since.is_none()),
                            Change::Closed => prop_assert!(false, "a failure closes nothing"),
                        }
                        probe_out_since = None;
                    }
                    Step::Ask => match breaker.may_send(at(now)) {
                        Gate::Open => prop_assert!(!was_open),
                        Gate::Probe => {
                            let lost = |since| now >= since + limits::BREAKER_PROBE_WAIT.as_secs();
                            prop_assert!(was_open && probe_out_since.is_none_or(lost));
                            probe_out_since = Some(now);
                        }
                        Gate::Wait { until } => {
                            prop_assert!(was_open && until > at(now));
                            prop_assert!(until <= at(now).plus(limits::BREAKER_REST_MAX.max(limits::BREAKER_PROBE_WAIT)));
                            prop_assert_eq!(breaker.may_send(at(now)), Gate::Wait { until }, "asking changes nothing");
                        }
                    },
                }
                prop_assert_eq!(breaker.failing_since(), failed_first);
                prop_assert!(breaker.is_open() || breaker.may_send(at(now)) == Gate::Open);
            }
        }
    }
}
