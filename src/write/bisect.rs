//! Stores one batch: whole if possible, else in parts, until each event is stored or known to be one that cannot be.
//!
//! - Too much at a time: halve it, and [`BatchSize`](super::batch_size::BatchSize) remembers.
//! - An error that may be one row's, whatever its code: halve it, down to that row. If nothing at all can be stored, some single
//!   rows are probed; if all of them fail alike, the database is at fault, and the batch waits with backoff.
//! - The database is away: retry with backoff.
//! - A lock while deliveries are planned: store the events without deliveries first, by themselves.

use std::ops::Range;
use std::time::{Duration, Instant};

use millrace_base::event::Event;
use millrace_base::limits;
use millrace_base::retry::Backoff;
use millrace_metrics::HeldReason;
use millrace_store::StoreError;

use super::held_events::Cause;
use super::writer::Shared;

/// How the next part to try is chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// From the front.
    Halving,
    /// The largest remaining part, whole: is the database working again?
    Whole,
    /// Single rows from the middle of what is left: can any be stored?
    Probing,
}

/// The state of one batch.
pub(super) struct Bisection<'a> {
    shared: &'a Shared,
    events: Vec<Event>,
    /// Number of deliveries of each event; empty if there are none.
    owed: Vec<u32>,
    opened_at: Instant,
    /// Parts still to be tried.
    work: Vec<Range<usize>>,
    /// Rows that failed by themselves, with the cause.
    suspects: Vec<(usize, Cause)>,
    /// Parts that wait for a lock on `deliveries`, and how long the longest attempt took.
    put_off: Vec<Range<usize>>,
    put_off_for: Duration,
    mode: Mode,
    /// When this batch first failed since it last saw a success.
    failed_at: Option<Instant>,
    /// Whether the refusals of this batch are counted already.
    is_noted: bool,
    /// Attempts that found the database away, and since when. It may have served others meanwhile.
    away: Option<(u32, Instant)>,
    backoff: Backoff,
}

/// The events that were not stored.
#[derive(Default)]
pub(super) struct Unstored {
    /// Events that cannot be stored, with the cause and whether others could be stored.
    pub suspects: Vec<(Event, Cause, bool)>,
    /// Events whose deliveries wait for a lock.
    pub put_off: Vec<Event>,
    /// How long to leave `put_off` alone.
    pub pause: Duration,
    /// The shutdown came first.
    pub is_given_up: bool,
}

impl<'a> Bisection<'a> {
    pub fn new(shared: &'a Shared, events: Vec<Event>, owed: Vec<u32>, opened_at: Instant) -> Self {
        let whole = 0..events.len();
        Self {
            shared,
            events,
            owed,
            opened_at,
            work: vec![whole],
            suspects: Vec::new(),
            put_off: Vec::new(),
            put_off_for: Duration::ZERO,
            mode: Mode::Halving,
            failed_at: None,
            is_noted: false,
            away: None,
            backoff: Backoff::for_store().with_jitter(),
        }
    }

    pub fn run(mut self) -> Unstored {
        while let Some(part) = self.next() {
            if self.shared.is_given_up() {
                return Unstored { is_given_up: true, ..Unstored::default() };
            }
            let part = self.cut(part);
            let began = Instant::now();
            match self.shared.store(&self.events[part.clone()], self.opened_at) {
                Ok(()) => self.stored(part),
                Err(error) => self.failed(part, &error, began),
            }
            if self.mode == Mode::Probing {
                self.judge();
            }
        }
        self.finish()
    }

    fn next(&mut self) -> Option<Range<usize>> {
        if self.mode != Mode::Halving && self.is_stored_since() {
            self.mode = Mode::Halving;
        }
        if self.mode == Mode::Halving {
            return self.work.pop();
        }
        let largest = (0..self.work.len()).max_by_key(|n| self.work[*n].len())?;
        let part = self.work.swap_remove(largest);
        if self.mode == Mode::Whole || part.len() == 1 {
            return Some(part);
        }
        let middle = part.start + part.len() / 2;
        for rest in [middle + 1..part.end, part.start..middle] {
            self.push(rest);
        }
        Some(middle..middle + 1)
    }

    fn push(&mut self, part: Range<usize>) {
        if !part.is_empty() {
            self.work.push(part);
        }
    }

    /// As much of `part` as fits into one transaction; the rest comes next.
    fn cut(&mut self, part: Range<usize>) -> Range<usize> {
        let most = self.shared.gatherer.size().most();
        let (mut bytes, mut deliveries, mut end) = (0, 0, part.start);
        while end < part.end {
            bytes += self.events[end].weight();
            deliveries += self.owed.get(end).map_or(0, |owed| *owed as usize);
            let fits = end - part.start < most.events && bytes <= most.bytes && deliveries <= most.deliveries;
            if !fits && end > part.start {
                break;
            }
            end += 1;
        }
        self.push(end..part.end);
        part.start..end
    }

    fn stored(&mut self, part: Range<usize>) {
        self.shared.settle(&self.events[part.clone()]);
        if self.owes(part) {
            self.shared.permits.succeed();
        }
        self.mode = Mode::Halving;
        self.backoff.reset();
    }

    fn failed(&mut self, part: Range<usize>, error: &StoreError, began: Instant) {
        let cause = |reason, code: &str, why| Cause { reason, code: code.to_owned(), why };
        let cause = match error {
            StoreError::Unavailable(why) => {
                self.mark_unknown(part.clone());
                if !self.is_away_for_these_alone() {
                    return self.again(part, error, began);
                }
                cause(HeldReason::Unexplained, "unavailable", why.clone())
            }
            StoreError::Locked(_) if self.owes(part.clone()) => return self.set_apart(part, began),
            StoreError::Locked(_) | StoreError::Rejected(_) => {
                return self.again(part, error, began);
            }
            StoreError::TooMuch(why) => {
                self.mark_unknown(part.clone());
                self.shared.outage.note(error, began, self.shared.slots.events());
                if self.owes(part.clone()) && self.owes_nothing_in(part.clone()) {
                    return self.set_apart(part, began);
                }
                cause(HeldReason::TooMuch, "too_much", why.clone())
            }
            StoreError::RowRefused(error) => cause(HeldReason::Refused, &error.code, error.message.clone()),
            StoreError::Unexplained(error) => cause(HeldReason::Unexplained, &error.code, error.message.clone()),
            StoreError::Misconfigured(why) => cause(HeldReason::Unexplained, "misconfigured", why.clone()),
        };
        self.failed_at.get_or_insert_with(Instant::now);
        if part.len() > 1 {
            if self.mode == Mode::Whole && cause.reason != HeldReason::TooMuch {
                self.mode = Mode::Probing;
                self.work.push(part);
            } else {
                let middle = part.start + part.len() / 2;
                self.work.push(middle..part.end);
                self.work.push(part.start..middle);
            }
            return;
        }
        self.suspects.push((part.start, cause));
        if !self.is_stored_since() {
            self.mode = Mode::Probing;
        }
    }

    /// Once enough rows have been probed, decides whether the database is at fault.
    fn judge(&mut self) {
        let left: usize = self.work.iter().map(Range::len).sum::<usize>() + self.suspects.len();
        let Some((_, cause)) = self.suspects.first().cloned() else { return };
        let enough = match cause.reason {
            // Each attempt takes long.
            HeldReason::TooMuch => 1,
            _ if left < limits::STORE_REFUSED_ALIKE_EVENTS => left,
            _ => limits::STORE_REFUSED_PROBES,
        };
        if self.suspects.len() < enough || self.is_stored_since() {
            return;
        }
        let is_alike = self.suspects.iter().all(|(_, other)| other.code == cause.code);
        let since = self.failed_at.unwrap_or_else(Instant::now);
        let is_database = match cause.reason {
            HeldReason::TooMuch => true,
            _ if !is_alike => false,
            _ if self.is_noted => self.shared.refusals.is_everything(&cause.code),
            _ => {
                self.is_noted = true;
                self.shared.refusals.note(&cause.code, left, since)
            }
        };
        if !is_database {
            // A few rows are at fault: try each by itself, and hold it.
            self.mode = Mode::Halving;
            return;
        }
        let suspects: Vec<usize> = self.suspects.drain(..).map(|(n, _)| n).collect();
        self.work.extend(suspects.into_iter().map(|n| n..n + 1));
        let error = match cause.reason {
            HeldReason::TooMuch => StoreError::TooMuch(cause.why),
            HeldReason::Refused => StoreError::RowRefused(millrace_store::DatabaseError::new(cause.code, cause.why)),
            HeldReason::Unexplained if cause.code == "misconfigured" => StoreError::Misconfigured(cause.why),
            HeldReason::Unexplained => {
                StoreError::Unexplained(millrace_store::DatabaseError::new(cause.code, cause.why))
            }
        };
        self.wait(&error, since);
        self.mode = Mode::Whole;
        self.failed_at = None;
    }

    /// Whether the database was away for these events many times while it took others: one of them may crash it.
    fn is_away_for_these_alone(&mut self) -> bool {
        let (tries, since) = self.away.get_or_insert((0, Instant::now()));
        *tries += 1;
        let is_alone = *tries > limits::STORE_AWAY_TRIES && self.shared.refusals.stored_since(*since);
        if *tries > limits::STORE_AWAY_TRIES {
            self.away = None;
        }
        is_alone
    }

    /// Tries the part again after a wait.
    fn again(&mut self, part: Range<usize>, error: &StoreError, began: Instant) {
        self.work.push(part);
        self.wait(error, began);
    }

    fn wait(&mut self, error: &StoreError, began: Instant) {
        self.shared.outage.note(error, began, self.shared.slots.events());
        self.backoff.wait(&self.shared.give_up);
    }

    /// Storing deliveries is stuck: the events without deliveries go first, and those with deliveries are put off.
    fn set_apart(&mut self, part: Range<usize>, began: Instant) {
        self.shared.permits.fail();
        let is_by_itself = !self.owes_nothing_in(part.clone());
        let mut parts = std::mem::take(&mut self.work);
        parts.push(part);
        let (mut owing, mut others) = (Vec::new(), Vec::new());
        for part in parts {
            let middle = self.sort(part.clone());
            owing.push(middle..part.end);
            others.push(part.start..middle);
        }
        if is_by_itself {
            self.put_off_for = self.put_off_for.max(began.elapsed());
            self.put_off.append(&mut owing);
        }
        owing.into_iter().chain(others).for_each(|part| self.push(part));
    }

    /// Moves events without deliveries to the front of `part`, keeping the order within both; returns where the rest begins.
    fn sort(&mut self, part: Range<usize>) -> usize {
        let owed = self.owed[part.clone()].to_vec();
        let events = self.events.splice(part.clone(), std::iter::empty());
        let mut sorted: Vec<(Event, u32)> = events.zip(owed).collect();
        sorted.sort_by_key(|(_, owed)| *owed > 0);
        let middle = part.start + sorted.iter().take_while(|(_, owed)| *owed == 0).count();
        self.owed.splice(part.clone(), sorted.iter().map(|(_, owed)| *owed));
        self.events.splice(part.start..part.start, sorted.into_iter().map(|(event, _)| event));
        middle
    }

    fn owes(&self, part: Range<usize>) -> bool {
        self.owed.get(part).is_some_and(|owed| owed.iter().any(|owed| *owed > 0))
    }

    /// Whether any event of `part` has no deliveries.
    fn owes_nothing_in(&self, part: Range<usize>) -> bool {
        self.owed.get(part).is_none_or(|owed| owed.contains(&0))
    }

    fn mark_unknown(&mut self, part: Range<usize>) {
        self.events[part].iter_mut().for_each(Event::note_may_be_stored);
    }

    /// Whether the database stored other events since these failed.
    fn is_stored_since(&self) -> bool {
        self.failed_at.is_some_and(|at| self.shared.refusals.stored_since(at))
    }

    fn finish(self) -> Unstored {
        let are_others_stored = self.is_stored_since();
        let mut left = Unstored { pause: self.put_off_for, ..Unstored::default() };
        if self.suspects.is_empty() && self.put_off.is_empty() {
            return left;
        }
        let mut suspects: Vec<Option<Cause>> = vec![None; self.events.len()];
        self.suspects.into_iter().for_each(|(n, cause)| suspects[n] = Some(cause));
        let put_off = self.put_off;
        for (n, event) in self.events.into_iter().enumerate() {
            if let Some(cause) = suspects[n].take() {
                left.suspects.push((event, cause, are_others_stored));
            } else if put_off.iter().any(|part| part.contains(&n)) {
                left.put_off.push(event);
            }
        }
        left
    }
}
