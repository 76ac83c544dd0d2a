//! What one receiver has seen, and what it said: the books of its side.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use uuid::Uuid;

use support::load::payload;
use support::receiver::Seen;
use support::sentences::Moment;
use support::webhook::signatures_of;

/// So many wrong requests are kept to be shown.
const WRONG_MAX: usize = 20;
/// How far `webhook-timestamp` may be from the receiver's clock, in seconds: what receivers are told to allow.
const TIMESTAMP_TOLERANCE: u64 = 300;

/// What became of an event at one receiver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    /// The number in its payload.
    pub number: u64,
    /// When it was accepted, as the body says, in microseconds since the epoch.
    pub accepted_at: u64,
    pub requests: u32,
    /// How many of them were answered with a 2xx.
    pub good: u32,
    /// When the last of those answers was given.
    pub good_at: u64,
    /// Until when the receiver asked for nothing more of it.
    pub not_before: u64,
}

/// A request for an event that was answered with a 2xx before.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    pub event: Uuid,
    /// When the event was accepted.
    pub accepted_at: u64,
    /// When it was answered so.
    pub answered_at: u64,
    pub at: u64,
}

/// Which latencies are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    None = 0,
    /// Without the bad receivers.
    Alone = 1,
    /// Beside them.
    Beside = 2,
}

/// The turn that it is, for all receivers.
static TURN: AtomicU8 = AtomicU8::new(0);

impl Turn {
    /// From now on it is this one.
    pub fn begin(self) {
        TURN.store(self as u8, Ordering::SeqCst);
    }
}

/// Whether nothing can have been recorded for so long that nothing may be sent, for all receivers.
static SILENCE: AtomicBool = AtomicBool::new(false);

/// From now on nothing may arrive, or it may again.
pub fn expect_silence(is_silent: bool) {
    SILENCE.store(is_silent, Ordering::SeqCst);
}

/// One receiver's.
#[derive(Default)]
pub struct Inbox {
    /// Any of these may sign.
    pub secrets: Mutex<Vec<String>>,
    /// Requests to paths of earlier versions are wrong.
    pub version_min: AtomicU32,
    fates: Mutex<HashMap<Uuid, Fate>>,
    again: Mutex<Vec<Again>>,
    wrong: Mutex<Vec<String>>,
    /// How many requests came when nothing might be sent.
    in_silence: AtomicU64,
    /// When each was asked too early, by what its answer had said.
    too_early: Mutex<Vec<u64>>,
    /// By turn: microseconds from acceptance to arrival, of first requests.
    latencies: [Mutex<Vec<u64>>; 3],
}

impl Inbox {
    /// Enters a request; returns which event it is of, and what had become of that before. What is wrong with a
    /// request is kept for the end.
    pub fn enter(&self, seen: &Seen) -> Option<(Uuid, Fate)> {
        let now = Moment::now().micros();
        let (id, number, accepted_at) = match self.read(seen, now) {
            Ok(read) => read,
            Err(why) => {
                let mut wrong = self.wrong.lock().unwrap();
                if wrong.len() < WRONG_MAX {
                    wrong.push(format!("{why}: {} {:?}", seen.target, String::from_utf8_lossy(&seen.body)));
                }
                return None;
            }
        };
        self.in_silence.fetch_add(u64::from(SILENCE.load(Ordering::SeqCst)), Ordering::SeqCst);
        let mut fates = self.fates.lock().unwrap();
        let fate = fates.entry(id).or_insert(Fate { number, accepted_at, ..Fate::default() });
        let before = *fate;
        if (before.number, before.accepted_at) != (number, accepted_at) {
            self.wrong.lock().unwrap().push(format!("{id} has another body than before: {before:?}"));
        }
        fate.requests += 1;
        if before.good > 0 {
            self.again.lock().unwrap().push(Again { event: id, accepted_at, answered_at: before.good_at, at: now });
        }
        if before.not_before > now {
            self.too_early.lock().unwrap().push(now);
        }
        if before.requests == 0 {
            let turn = TURN.load(Ordering::SeqCst) as usize;
            if turn > 0 {
                self.latencies[turn].lock().unwrap().push(now.saturating_sub(accepted_at));
            }
        }
        Some((id, before))
    }

    fn read(&self, seen: &Seen, now: u64) -> Result<(Uuid, u64, u64), &'static str> {
        let header = |name| seen.header(name).ok_or("a header is missing");
        let id = Uuid::parse_str(header("webhook-id")?).map_err(|_| "webhook-id is no id")?;
        let sent: u64 = header("webhook-timestamp")?.parse().map_err(|_| "webhook-timestamp is no number")?;
        if sent.abs_diff(now / 1_000_000) > TIMESTAMP_TOLERANCE {
            return Err("webhook-timestamp is far away");
        }
        header("webhook-signature")?;
        if !self.secrets.lock().unwrap().iter().any(|secret| signatures_of(seen, secret) > 0) {
            return Err("the signature does not fit");
        }
        let version = seen.target.trim_start_matches("/v").parse().unwrap_or(0);
        if version < self.version_min.load(Ordering::SeqCst) {
            return Err("sent to an earlier URL");
        }
        let body = std::str::from_utf8(&seen.body).map_err(|_| "the body is no text")?;
        let rest = body.strip_prefix(r#"{"type":""#).ok_or("the body has no type")?;
        let (_, rest) = rest.split_once(r#"","timestamp":""#).ok_or("the body has no timestamp")?;
        let (at, data) = rest.split_once(r#"","data":"#).ok_or("the body has no data")?;
        let accepted_at = Moment::of(at).ok_or("the timestamp is no time")?.micros();
        let data = data.strip_suffix('}').ok_or("the body has no end")?;
        let digits = data.strip_prefix(r#"{"m":"#).and_then(|rest| rest.split_once([',', '}'])).ok_or("no number")?.0;
        let number = digits.trim().parse().map_err(|_| "no number")?;
        if data != payload(number) {
            return Err("the payload is not what was posted");
        }
        Ok((id, number, accepted_at))
    }

    /// Its answer is a 2xx, given at that moment.
    pub fn accept(&self, id: Uuid, at: u64) {
        if let Some(fate) = self.fates.lock().unwrap().get_mut(&id) {
            fate.good += 1;
            fate.good_at = at;
        }
    }

    /// Its answer asks for nothing before that moment.
    pub fn postpone(&self, id: Uuid, until: u64) {
        if let Some(fate) = self.fates.lock().unwrap().get_mut(&id) {
            fate.not_before = until;
        }
    }

    /// How many different events arrived.
    pub fn events(&self) -> usize {
        self.fates.lock().unwrap().len()
    }

    pub fn fate(&self, id: Uuid) -> Option<Fate> {
        self.fates.lock().unwrap().get(&id).copied()
    }

    pub fn fates(&self) -> Vec<(Uuid, Fate)> {
        self.fates.lock().unwrap().iter().map(|(id, fate)| (*id, *fate)).collect()
    }

    pub fn again(&self) -> Vec<Again> {
        self.again.lock().unwrap().clone()
    }

    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    pub fn in_silence(&self) -> u64 {
        self.in_silence.load(Ordering::SeqCst)
    }

    pub fn too_early(&self) -> Vec<u64> {
        self.too_early.lock().unwrap().clone()
    }

    /// Of the turn, sorted.
    pub fn latencies(&self, turn: Turn) -> Vec<u64> {
        let mut all = self.latencies[turn as usize].lock().unwrap().clone();
        all.sort_unstable();
        all
    }
}
