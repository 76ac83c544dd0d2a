//! A circuit breaker per endpoint, which stops a dead endpoint from being sent its whole backlog. Pure: the sender owns it and
//! passes the time.
//!
//! ```text
//!           consecutive failures                     rest is over
//!   closed ───────────────────────────────▶ resting ◀──────────▶ probing
//!      ▲                                       │ failed, withdrawn,  │
//!      │                                       │ lost                │
//!      └──────────────── any success ──────────┴─────────────────────┘
//! ```
//!
//! Invariants: nothing is sent while it rests; at most one probe is in flight; each failed probe doubles the rest, up to
//! [`limits::BREAKER_REST_MAX`]; results of requests from before it opened never extend a rest.
//!
//! A result does not say which request it belongs to. A late failure during a probe therefore counts as the probe's, at the cost
//! of one doubling, and any success closes the circuit, because an endpoint that responds is alive.
//!
//! All times are monotonic: a step of the wall clock does not change a rest.

use std::time::{Duration, Instant};

use millrace_base::limits;

/// Decides whether an endpoint gets requests. Initially closed.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    state: CircuitState,
    /// Consecutive failures; counted while closed.
    failures: u32,
    /// The end of the failing time that [`Self::take_failing`] has reported; initially the first failure.
    told_until: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
enum CircuitState {
    #[default]
    Closed,
    /// Open. `until` is at most `rest` away.
    Resting { until: Instant, rest: Duration },
    /// Half open: one request is in flight. At `lost_at` its result is no longer expected.
    Probing { lost_at: Instant, rest: Duration },
}

/// How a result changed the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It did not.
    None,
    /// It opened, or its probe failed: it rests until then.
    Opened {
        /// The earliest time of the next probe.
        until: Instant,
    },
    /// It was open and is now closed.
    Closed,
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a probe is out once it is allowed"]
pub enum Admission {
    /// Yes: the circuit is closed.
    Allow,
    /// Yes, as the probe: its result decides.
    Probe,
    /// No: the circuit is open.
    Wait {
        /// Ask again then, or after the next transition.
        until: Instant,
    },
}

impl Breaker {
    /// A request succeeded.
    pub fn success(&mut self) -> Transition {
        let was_open = self.is_open();
        *self = Self::default();
        if was_open { Transition::Closed } else { Transition::None }
    }

    /// A request failed.
    pub fn failure(&mut self, now: Instant) -> Transition {
        self.told_until.get_or_insert(now);
        match self.state {
            CircuitState::Closed => {
                self.failures += 1;
                if self.failures < limits::BREAKER_FAILURES {
                    return Transition::None;
                }
                self.rest(now, limits::BREAKER_REST_MIN)
            }
            CircuitState::Resting { .. } => Transition::None,
            CircuitState::Probing { rest, .. } => self.rest(now, (rest * 2).min(limits::BREAKER_REST_MAX)),
        }
    }

    fn rest(&mut self, now: Instant, rest: Duration) -> Transition {
        let until = now + rest;
        self.state = CircuitState::Resting { until, rest };
        Transition::Opened { until }
    }

    /// Whether a request may be sent now. After [`Admission::Probe`] that probe counts as in flight.
    pub fn may_send(&mut self, now: Instant) -> Admission {
        let (due, rest) = match self.state {
            CircuitState::Closed => return Admission::Allow,
            CircuitState::Resting { until, rest } => (until, rest),
            CircuitState::Probing { lost_at, rest } => (lost_at, rest),
        };
        if due <= now {
            self.state = CircuitState::Probing { lost_at: now + limits::BREAKER_PROBE_WAIT, rest };
            return Admission::Probe;
        }
        Admission::Wait { until: due }
    }

    /// The probe was not sent and will have no result; another one may be sent.
    pub fn withdraw_probe(&mut self, now: Instant) {
        if let CircuitState::Probing { rest, .. } = self.state {
            self.state = CircuitState::Resting { until: now, rest };
        }
    }

    /// Whether it is open or half open.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, CircuitState::Closed)
    }

    /// How long the endpoint has failed since the last call, or since the first failure; zero if it has not failed. Monotonic
    /// time: setting a clock does not change it.
    pub fn take_failing(&mut self, now: Instant) -> Duration {
        let since = self.told_until.as_mut().map(|told_until| std::mem::replace(told_until, now));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(seconds: u64) -> Instant {
        *START + Duration::from_secs(seconds)
    }

    fn opened(seconds: u64) -> Transition {
        Transition::Opened { until: at(seconds) }
    }

    fn wait(seconds: u64) -> Admission {
        Admission::Wait { until: at(seconds) }
    }

    /// Opened at 0 s, to be probed at 5 s.
    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 1..limits::BREAKER_FAILURES {
            assert_eq!(breaker.failure(at(0)), Transition::None);
        }
        assert_eq!(breaker.failure(at(0)), opened(5));
        breaker
    }

    #[test]
    fn only_failures_after_one_another_open_it() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..limits::BREAKER_FAILURES {
                assert_eq!(breaker.failure(at(0)), Transition::None);
                assert_eq!(breaker.may_send(at(0)), Admission::Allow);
            }
            assert_eq!(breaker.success(), Transition::None);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_withdrawn_probe_is_repeated_without_doubling_the_rest() {
        let mut breaker = open();
        assert_eq!(breaker.may_send(at(5)), Admission::Probe);
        breaker.withdraw_probe(at(7));
        assert!(breaker.is_open());
        assert_eq!(breaker.may_send(at(7)), Admission::Probe);
        assert_eq!(breaker.failure(at(8)), opened(18));
        breaker.withdraw_probe(at(9));
        assert_eq!(breaker.may_send(at(9)), wait(18), "none is out");
        let mut closed = Breaker::default();
        closed.withdraw_probe(at(0));
        assert_eq!(closed.may_send(at(0)), Admission::Allow);
    }

    #[test]
    fn one_probe_at_a_time_and_rests_that_double() {
        let mut breaker = open();
        let mut now = 0;
        for rest in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(breaker.may_send(at(now + rest - 1)), wait(now + rest));
            now += rest;
            assert_eq!(breaker.may_send(at(now)), Admission::Probe);
            assert_eq!(breaker.may_send(at(now)), wait(now + 150));
            assert_eq!(breaker.failure(at(now)), opened(now + (rest * 2).min(300)));
        }
        assert_eq!(breaker.take_failing(at(now)), Duration::from_secs(now));
        assert_eq!(breaker.may_send(at(now + 300)), Admission::Probe);
        assert_eq!(breaker.success(), Transition::Closed);
        assert_eq!((breaker.is_open(), breaker.take_failing(at(now + 300))), (false, Duration::ZERO));
        assert_eq!(breaker.may_send(at(now)), Admission::Allow);
        // And starts over.
        for _ in 1..limits::BREAKER_FAILURES {
            assert_eq!(breaker.failure(at(now)), Transition::None);
        }
        assert_eq!(breaker.failure(at(now)), opened(now + 5));
    }

    #[test]
    fn late_failures_do_not_extend_a_rest_a_late_success_ends_it() {
        let mut breaker = open();
        for _ in 0..100 {
            assert_eq!(breaker.failure(at(4)), Transition::None);
        }
        assert_eq!(breaker.may_send(at(4)), wait(5));
        assert_eq!(breaker.success(), Transition::Closed);
        assert_eq!(breaker.may_send(at(4)), Admission::Allow);
    }

    #[test]
    fn a_probe_that_is_lost_gives_way_to_another() {
        let mut breaker = open();
        assert_eq!(breaker.may_send(at(4)), wait(5), "there was none");
        assert_eq!(breaker.may_send(at(6)), Admission::Probe);
        assert_eq!(breaker.may_send(at(155)), wait(156));
        assert_eq!(breaker.may_send(at(156)), Admission::Probe);
        assert_eq!(breaker.may_send(at(157)), wait(306));
    }

    #[test]
    fn the_time_that_it_fails_is_told_once() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.take_failing(at(7)), Duration::ZERO);
        let _ = breaker.failure(at(10));
        let _ = breaker.failure(at(15));
        assert_eq!(breaker.take_failing(at(20)), Duration::from_secs(10));
        assert_eq!(breaker.take_failing(at(20)), Duration::ZERO);
        let _ = breaker.failure(at(4000));
        assert_eq!(breaker.take_failing(at(5000)), Duration::from_secs(4980));
        let _ = breaker.success();
        let _ = breaker.failure(at(6000));
        assert_eq!(breaker.take_failing(at(6001)), Duration::from_secs(1));
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
                        prop_assert_eq!(change, if was_open { Transition::Closed } else { Transition::None });
                        prop_assert_eq!(breaker.may_send(at(now)), Admission::Allow);
                        (probe_out_since, failed_first) = (None, None);
                    }
                    Step::Failure => {
                        failed_first = failed_first.or(Some(at(now)));
                        match breaker.failure(at(now)) {
                            Transition::Opened { until } => {
                                prop_assert!(!was_open || probe_out_since.is_some());
                                prop_assert!(until >= at(now) + limits::BREAKER_REST_MIN);
                                prop_assert!(until <= at(now) + limits::BREAKER_REST_MAX);
                            }
                            Transition::None => prop_assert!(probe_out_since.is_none()),
                            Transition::Closed => prop_assert!(false, "a failure closes nothing"),
                        }
                        probe_out_since = None;
                    }
                    Step::Ask => match breaker.may_send(at(now)) {
                        Admission::Allow => prop_assert!(!was_open),
                        Admission::Probe => {
                            let lost = |since| now >= since + limits::BREAKER_PROBE_WAIT.as_secs();
                            prop_assert!(was_open && probe_out_since.is_none_or(lost));
                            probe_out_since = Some(now);
                        }
                        Admission::Wait { until } => {
                            prop_assert!(was_open && until > at(now));
                            prop_assert!(until <= at(now) + limits::BREAKER_REST_MAX.max(limits::BREAKER_PROBE_WAIT));
                            prop_assert_eq!(breaker.may_send(at(now)), Admission::Wait { until }, "asking changes nothing");
                        }
                    },
                }
                let failing = failed_first.map_or(Duration::ZERO, |first| at(now) - first);
                prop_assert_eq!(breaker.clone().take_failing(at(now)), failing);
                prop_assert!(breaker.is_open() || breaker.may_send(at(now)) == Admission::Allow);
            }
        }
    }
}
