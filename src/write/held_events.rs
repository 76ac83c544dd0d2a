//! Held events: events that cannot be stored while others can, kept off the writers.
//!
//! They are bounded in events and bytes, and each keeps its slot in the queue. Writers put events in; the `held-events` thread
//! tries each again with growing pauses. It is stored, or quarantined if the database refuses its data, or stays here if
//! `quarantined_events` does not take it either. None of them blocks a writer.
//!
//! Held events must not keep old segments of the journal alive. Once they are all that keeps a segment, the `held-journal`
//! thread has them rewritten into the open segment. That thread also writes the list of held events for `millrace journal
//! inspect`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, SegmentRef};
use millrace_base::limits;
use millrace_base::retry::{LogThrottle, sleep_unless};
use millrace_journal::Rewriter;
use millrace_journal::held_list::{HeldEvent, HeldList};
use millrace_metrics::HeldReason;

use super::writer::{Attempt, Shared};

/// How often the thread looks for events that are due.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often each line is logged.
const REPEAT: Duration = Duration::from_secs(10);
/// How often the list is written at most.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// Why an event cannot be stored.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The kind of failure.
    pub reason: HeldReason,
    /// The error code of the database.
    pub code: String,
    /// The error in words.
    pub why: String,
}

struct Entry {
    event: Event,
    cause: Cause,
    since: Instant,
    retry_at: Instant,
    pause: Duration,
    /// Whether it was tried since the shutdown began.
    was_tried_at_end: bool,
}

/// The held events.
pub struct HeldEvents {
    events_max: usize,
    held: Mutex<Entries>,
    is_ending: AtomicBool,
    throttles: Mutex<[LogThrottle; 5]>,
    /// Quarantined events that no log line has counted yet.
    untold: AtomicU64,
}

#[derive(Default)]
struct Entries {
    by_key: BTreeMap<u64, Entry>,
    next_key: u64,
    bytes: usize,
    /// Counts additions, removals and changed causes.
    changes: u64,
}

/// Lines that are logged at most once per [`REPEAT`].
#[derive(Clone, Copy)]
enum LogLine {
    Held = 0,
    Full = 1,
    Quarantine = 2,
    SetAside = 3,
    List = 4,
}

impl HeldEvents {
    /// For a queue of `queue_events_max` slots.
    pub fn new(queue_events_max: usize) -> Self {
        Self {
            events_max: limits::STORE_HELD_EVENTS_MAX.min(queue_events_max / 4).max(1),
            held: Mutex::default(),
            is_ending: AtomicBool::new(false),
            throttles: Mutex::new([LogThrottle::new(REPEAT); 5]),
            untold: AtomicU64::new(0),
        }
    }

    /// Holds an event, to be tried again after `pause`.
    ///
    /// # Errors
    /// The event, if there is no room.
    pub fn put(&self, event: Event, cause: &Cause, pause: Duration) -> Result<(), Event> {
        let now = Instant::now();
        let count = {
            let mut entries = self.lock();
            if entries.by_key.len() >= self.events_max || entries.bytes + event.weight() > limits::STORE_HELD_BYTES_MAX
            {
                return Err(event);
            }
            entries.bytes += event.weight();
            let key = entries.next_key;
            entries.next_key += 1;
            entries.changes += 1;
            let held = Entry {
                event: event.clone(),
                cause: cause.clone(),
                since: now,
                retry_at: now + pause,
                pause: limits::STORE_HELD_PAUSE_MIN,
                was_tried_at_end: false,
            };
            entries.by_key.insert(key, held);
            entries.by_key.len()
        };
        // A refused event is quarantined soon, and logged then.
        if cause.reason != HeldReason::Refused && self.may_log(LogLine::Held) {
            let Cause { code, why, .. } = cause;
            tracing::warn!(
                held = count, event = %event.id, org = %event.org, code, why,
                "events cannot be stored while others are; they are held and tried again"
            );
        }
        Ok(())
    }

    /// Logs that there is no room for one more.
    pub fn log_full(&self, cause: &Cause) {
        if self.may_log(LogLine::Full) {
            let Cause { code, why, .. } = cause;
            tracing::error!(
                held = self.len(),
                code,
                why,
                "there is no room for more events that cannot be stored; each further one holds up a writer until the \
                 database takes it, or takes it into quarantined_events: fix what it says"
            );
        }
    }

    /// Number of events held for this reason.
    pub fn count(&self, reason: HeldReason) -> usize {
        self.lock().by_key.values().filter(|held| held.cause.reason == reason).count()
    }

    /// Number of held events.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// An outage is over: makes all due.
    pub fn retry_all(&self) {
        let now = Instant::now();
        self.lock().by_key.values_mut().for_each(|held| held.retry_at = now);
    }

    /// The writers have ended: allows one more attempt for each.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.retry_all();
    }

    fn due(&self) -> Option<(u64, Event, Cause)> {
        let now = Instant::now();
        let entries = self.lock();
        let (key, held) = entries.by_key.iter().min_by_key(|(_, held)| held.retry_at)?;
        (held.retry_at <= now).then(|| (*key, held.event.clone(), held.cause.clone()))
    }

    /// Removes an event that is stored, and returns it with its current segment.
    fn remove(&self, key: u64) -> Option<Event> {
        let mut entries = self.lock();
        let held = entries.by_key.remove(&key)?;
        entries.bytes -= held.event.weight();
        entries.changes += 1;
        Some(held.event)
    }

    /// Notes a failed attempt that took `took`. `pause_max` bounds the pause before the next.
    fn put_back(&self, key: u64, cause: Cause, is_unknown: bool, took: Duration, pause_max: Duration) {
        let now = Instant::now();
        let mut entries = self.lock();
        let Some(held) = entries.by_key.get_mut(&key) else { return };
        let is_other = held.cause.code != cause.code;
        held.cause = cause;
        if is_unknown {
            held.event.note_may_be_stored();
        }
        held.was_tried_at_end = self.is_ending.load(Ordering::Acquire);
        // A slow attempt must not keep the thread from the other events.
        held.retry_at = now + held.pause.min(pause_max) + took * 4;
        held.pause = (held.pause * 2).min(limits::STORE_HELD_PAUSE_MAX);
        entries.changes += u64::from(is_other);
    }

    /// The list of held events if it changed since `noted`, which is updated.
    fn changed_since(&self, noted: &mut u64) -> Option<HeldList> {
        let entries = self.lock();
        if entries.changes == *noted {
            return None;
        }
        *noted = entries.changes;
        let now = Timestamp::now();
        let events = entries.by_key.values().map(|held| HeldEvent {
            id: held.event.id.to_string(),
            org_id: held.event.org.to_string(),
            event_type: String::from_utf8_lossy(held.event.event_type()).into_owned(),
            held_since: before(now, held.since.elapsed()).to_rfc3339(),
            code: held.cause.code.clone(),
            reason: held.cause.why.clone(),
        });
        Some(HeldList { as_of: now.to_rfc3339(), events: events.collect() })
    }

    /// Number of held events in each segment of the journal.
    fn by_segment(&self) -> HashMap<SegmentRef, u32> {
        let mut by_segment = HashMap::new();
        for held in self.lock().by_key.values().filter(|held| held.event.segment_ref != SegmentRef::NONE) {
            *by_segment.entry(held.event.segment_ref).or_default() += 1;
        }
        by_segment
    }

    /// The held events in these segments, as many as are rewritten at a time.
    fn in_segments(&self, segments: &[SegmentRef]) -> Vec<(u64, Event)> {
        let mut bytes = 0;
        let entries = self.lock();
        let there = entries.by_key.iter().filter(|(_, held)| segments.contains(&held.event.segment_ref));
        there
            .take_while(|(_, held)| {
                let is_first = bytes == 0;
                bytes += held.event.weight();
                is_first || bytes <= limits::STORE_HELD_REWRITE_BYTES
            })
            .map(|(key, held)| (*key, held.event.clone()))
            .collect()
    }

    /// Notes that the event is durable in another segment; `false` if it is not held any more.
    fn moved(&self, key: u64, segment_ref: SegmentRef) -> bool {
        match self.lock().by_key.get_mut(&key) {
            Some(held) => {
                held.event.segment_ref = segment_ref;
                // A replay would find both records.
                held.event.note_may_be_stored();
                true
            }
            None => false,
        }
    }

    fn since(&self, key: u64) -> Option<Instant> {
        self.lock().by_key.get(&key).map(|held| held.since)
    }

    fn is_done(&self, is_journaled: bool) -> bool {
        self.is_ending.load(Ordering::Acquire)
            && self.lock().by_key.values().all(|held| is_journaled && held.was_tried_at_end)
    }

    fn may_log(&self, line: LogLine) -> bool {
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        throttles[line as usize].pass().is_some()
    }

    /// Counts a quarantined event, and logs all since the last line.
    pub fn log_set_aside(&self, event: &Event, reason: &str) {
        self.untold.fetch_add(1, Ordering::Relaxed);
        if self.may_log(LogLine::SetAside) {
            tracing::warn!(
                events = self.untold.swap(0, Ordering::Relaxed), event = %event.id, org = %event.org, reason,
                "the database refused events for their data; they are in quarantined_events (`millrace quarantine list`)"
            );
        }
    }

    /// Logs that `quarantined_events` does not take an event.
    pub fn log_not_quarantined(&self, event: &Event, why: &str) {
        if self.may_log(LogLine::Quarantine) {
            tracing::error!(
                held = self.len(), event = %event.id, why,
                "the table quarantined_events does not take a refused event; it is held until it does"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn before(now: Timestamp, elapsed: Duration) -> Timestamp {
    Timestamp::from_micros(now.as_micros().saturating_sub(elapsed.as_micros() as i64))
}

/// The `held-events` thread: runs until nothing is held after [`HeldEvents::end`], or time is up.
pub(super) fn run(shared: &Shared) {
    while !shared.give_up.load(Ordering::Relaxed) {
        let Some((key, event, cause)) = shared.held_events.due() else {
            if shared.held_events.is_done(shared.segment_refs.is_some()) {
                return;
            }
            thread::sleep(LOOK_INTERVAL);
            continue;
        };
        let began = Instant::now();
        match shared.try_one(&event, &cause) {
            Attempt::Settled => {
                if let Some(event) = shared.held_events.remove(key) {
                    shared.settle(std::slice::from_ref(&event));
                }
            }
            Attempt::Failed { cause, is_unknown } => {
                // If nothing else was stored since, it may be an outage that is over soon.
                let since = shared.held_events.since(key).unwrap_or(began);
                let pause_max = if shared.refusals.stored_since(since) {
                    limits::STORE_HELD_PAUSE_MAX
                } else {
                    2 * limits::STORE_BACKOFF_MAX
                };
                shared.held_events.put_back(key, cause, is_unknown, began.elapsed(), pause_max);
            }
        }
    }
}

/// The `held-journal` thread: rewrites held events into the open segment, and writes their list.
pub(super) fn free_segments(shared: &Shared, rewriter: &Rewriter) {
    let Some(segment_refs) = &shared.segment_refs else { return };
    let (mut noted, mut noted_at) = (0, None::<Instant>);
    while !shared.give_up.load(Ordering::Relaxed) {
        thread::sleep(LOOK_INTERVAL);
        if noted_at.is_none_or(|at| at.elapsed() >= NOTE_INTERVAL)
            && let Some(held) = shared.held_events.changed_since(&mut noted)
        {
            noted_at = Some(Instant::now());
            write_list(shared, rewriter, &held);
        }
        let held = shared.held_events.by_segment();
        if held.is_empty() {
            continue;
        }
        let (keys, mut events): (Vec<u64>, Vec<Event>) =
            shared.held_events.in_segments(&rewriter.segments_kept_only_by(&held)).into_iter().unzip();
        if events.is_empty() {
            continue;
        }
        let written = rewriter.rewrite(&events);
        let bytes: usize = events.iter().map(Event::weight).sum();
        for ((key, event), segment_ref) in keys.into_iter().zip(&mut events).zip(written) {
            let Some(segment_ref) = segment_ref else { continue };
            // The old record is not needed any more; or the new one is not, if the event was settled meanwhile.
            if !shared.held_events.moved(key, segment_ref) {
                event.segment_ref = segment_ref;
            }
            segment_refs.commit(std::slice::from_ref(event));
        }
        let seconds = bytes as f64 / limits::STORE_HELD_REWRITE_BYTES as f64;
        sleep_unless(&shared.give_up, Duration::from_secs_f64(seconds.max(0.1)));
    }
    if let Some(held) = shared.held_events.changed_since(&mut noted) {
        write_list(shared, rewriter, &held);
    }
}

fn write_list(shared: &Shared, rewriter: &Rewriter, held: &HeldList) {
    if let Err(error) = rewriter.write_list(held)
        && shared.held_events.may_log(LogLine::List)
    {
        tracing::warn!(%error, "what is held cannot be written down; `journal inspect` does not know of it");
    }
}
