//! Counts per client address in a table of fixed size: open connections, recent wrong keys, recent TLS handshakes.
//!
//! A count-min sketch that all shards share: two rows of cells. An address has one cell in each row, found by a hash
//! with a random key, so that nobody can aim at another's cell. Addresses in one cell are counted together. The count
//! of an address is the lower of its two cells: never below the truth, and above it only if both cells are shared
//! with busy addresses. With [`limits::ADDRESS_CELLS`] a row and a few hundred busy addresses, that happens to one
//! address in ten thousand.
//!
//! The shards only add and compare: no locks, no allocation. A connection touches it when it opens and closes, and a
//! request only when its key is not in the cache.
//!
//! A rate is kept as a point in time (a leaky bucket): each occurrence moves it on by one step, and its distance from
//! now says how many are not forgotten yet.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_base::limits;

/// One wrong key is forgiven in this time.
const FORGIVEN_IN: Duration =
    Duration::from_micros(60 * 1_000_000 / limits::AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX as u64);
/// Wrong keys that are not forgiven yet may add up to this.
const FAILURES_HELD: Duration = Duration::from_secs(60);
/// One handshake is forgotten in this time.
const HANDSHAKE_STEP: Duration =
    Duration::from_micros(1_000_000 / limits::HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX as u64);

/// The cells of an address: one in each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchCells([u32; 2]);

/// The sketch.
#[derive(Debug)]
pub struct AddressSketch {
    hasher: RandomState,
    /// Open connections.
    connections: [Box<[AtomicU32]>; 2],
    connections_max: u32,
    /// When all wrong keys so far are forgiven, in microseconds since `started`.
    forgiven_at: [Box<[AtomicU64]>; 2],
    /// When all handshakes so far are forgotten, in microseconds since `started`.
    handshakes_until: [Box<[AtomicU64]>; 2],
    /// Handshakes that are not forgotten yet may add up to this.
    handshakes_held: Duration,
    started: Instant,
}

impl AddressSketch {
    /// An empty sketch. An address may hold `connections_max` connections, and open as many over TLS at once.
    pub fn new(connections_max: u32) -> Self {
        fn row<T: Default>() -> Box<[T]> {
            (0..limits::ADDRESS_CELLS).map(|_| T::default()).collect()
        }
        Self {
            hasher: RandomState::new(),
            connections: [row(), row()],
            connections_max,
            forgiven_at: [row(), row()],
            handshakes_until: [row(), row()],
            handshakes_held: HANDSHAKE_STEP * connections_max.max(limits::HANDSHAKES_AT_ONCE_MIN),
            started: Instant::now(),
        }
    }

    /// The cells of `address`. An IPv6 client owns at least a /64 and can use any address in it, so a /64 counts as
    /// one.
    pub fn cells(&self, address: IpAddr) -> SketchCells {
        let counted = match address.to_canonical() {
            IpAddr::V4(address) => u128::from(u32::from(address)) | u128::from(u16::MAX) << 32,
            IpAddr::V6(address) => u128::from(address) & !u128::from(u64::MAX),
        };
        let hash = self.hasher.hash_one(Ipv6Addr::from(counted));
        let cell = |bits: u32| bits % limits::ADDRESS_CELLS as u32;
        SketchCells([cell(hash as u32), cell((hash >> 32) as u32)])
    }

    /// Counts a connection for as long as the result lives; `None` if the address has the most it may.
    pub fn connect(self: &Arc<Self>, cells: SketchCells) -> Option<OpenConnection> {
        let connected = OpenConnection { addresses: Arc::clone(self), cells };
        // Relaxed: only the count itself is shared, nothing is published by it.
        let [first, second] = of(&self.connections, cells).map(|cell| cell.fetch_add(1, Ordering::Relaxed));
        (first.min(second) < self.connections_max).then_some(connected)
    }

    /// Counts a wrong key.
    pub fn note_failure(&self, cells: SketchCells, now: Instant) {
        let now = self.micros(now);
        for cell in of(&self.forgiven_at, cells) {
            let later = |at: u64| Some(at.max(now) + FORGIVEN_IN.as_micros() as u64);
            // Relaxed, as above. `later` always returns `Some`, so this cannot fail.
            let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        }
    }

    /// How long the address must wait before it may send a key that is not cached; `None` if it need not wait.
    pub fn must_wait(&self, cells: SketchCells, now: Instant) -> Option<Duration> {
        let [first, second] = of(&self.forgiven_at, cells).map(|cell| cell.load(Ordering::Relaxed));
        let held = Duration::from_micros(first.min(second).saturating_sub(self.micros(now)));
        held.checked_sub(FAILURES_HELD).filter(|wait| !wait.is_zero())
    }

    /// Counts a TLS handshake and returns how long it must wait: zero unless the address opened too many shortly
    /// before, `None` if the wait would exceed [`limits::HANDSHAKE_WAIT_MAX`].
    pub fn begin_handshake(&self, cells: SketchCells, now: Instant) -> Option<Duration> {
        let now = self.micros(now);
        let step = HANDSHAKE_STEP.as_micros() as u64;
        let latest = now + (self.handshakes_held + limits::HANDSHAKE_WAIT_MAX).as_micros() as u64;
        let [first, second] = of(&self.handshakes_until, cells).map(|cell| {
            // Refused ones do not count.
            let later = |until: u64| Some(until.max(now) + step).filter(|until| *until <= latest);
            // Relaxed, as above.
            let before = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
            before.map_or(u64::MAX, |before| before.max(now) + step)
        });
        let until = Some(first.min(second)).filter(|until| *until < u64::MAX)?;
        Some(Duration::from_micros(until - now).saturating_sub(self.handshakes_held))
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_micros() as u64
    }
}

/// The cell of an address in each row.
fn of<T>(rows: &[Box<[T]>; 2], cells: SketchCells) -> [&T; 2] {
    let SketchCells([first, second]) = cells;
    [&rows[0][first as usize], &rows[1][second as usize]]
}

/// One connection in the count of its address.
#[derive(Debug)]
pub struct OpenConnection {
    addresses: Arc<AddressSketch>,
    cells: SketchCells,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        for cell in of(&self.addresses.connections, self.cells) {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_an_ipv4_address_or_a_64() {
        let addresses = AddressSketch::new(1);
        for (a, b, is_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("0.0.0.0", "::", false),
        ] {
            // Two that differ share both cells once in 2^30.
            assert_eq!(addresses.cells(ip(a)) == addresses.cells(ip(b)), is_same, "{a} {b}");
        }
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let addresses = Arc::new(AddressSketch::new(2));
        let (one, other) = (addresses.cells(ip("192.0.2.1")), addresses.cells(ip("192.0.2.2")));
        let first = addresses.connect(one).unwrap();
        let _second = addresses.connect(one).unwrap();
        assert!(addresses.connect(one).is_none() && addresses.connect(one).is_none(), "and a refused one is not held");
        assert!(addresses.connect(other).is_some());
        drop(first);
        let again = addresses.connect(one);
        assert!(again.is_some() && addresses.connect(one).is_none());
    }

    #[test]
    fn a_crowd_does_not_use_up_the_places_of_one() {
        let addresses = Arc::new(AddressSketch::new(8));
        let of = |n: u32| addresses.cells(IpAddr::from(n.to_be_bytes()));
        let _held: Vec<_> = (0..300 * 8).filter_map(|n| addresses.connect(of(n / 8))).collect();
        let refused = (1000..3000).filter(|n| addresses.connect(of(*n)).is_none()).count();
        assert!(refused <= 5, "{refused} of 2000");
    }

    #[test]
    fn wrong_keys_add_up_to_a_minute_s_worth_and_are_forgiven_one_by_one() {
        const MAX: u32 = limits::AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX;
        let addresses = AddressSketch::new(1);
        let now = Instant::now();
        let (one, other) = (addresses.cells(ip("192.0.2.1")), addresses.cells(ip("192.0.2.2")));
        for _ in 0..MAX {
            assert_eq!(addresses.must_wait(one, now), None);
            addresses.note_failure(one, now);
        }
        addresses.note_failure(one, now);
        assert_eq!(addresses.must_wait(one, now), Some(FORGIVEN_IN));
        assert_eq!(addresses.must_wait(other, now), None);
        let later = now + FORGIVEN_IN;
        assert_eq!(addresses.must_wait(one, later), None);
        addresses.note_failure(one, later);
        assert_eq!(addresses.must_wait(one, later), Some(FORGIVEN_IN));
        let minutes_later = now + FAILURES_HELD + FORGIVEN_IN * 2;
        assert_eq!(addresses.must_wait(one, minutes_later), None);
        for _ in 0..MAX {
            addresses.note_failure(one, minutes_later);
        }
        assert_eq!(addresses.must_wait(one, minutes_later), None, "nothing was saved up, nothing is owed");
    }

    #[test]
    fn handshakes_of_one_address_have_a_rate_after_many_at_once() {
        const STEP: Duration = HANDSHAKE_STEP;
        let most = (limits::HANDSHAKE_WAIT_MAX.as_millis() / STEP.as_millis()) as u32;
        for (connections_max, at_once) in [(1, limits::HANDSHAKES_AT_ONCE_MIN), (20_000, 20_000)] {
            let addresses = AddressSketch::new(connections_max);
            let now = Instant::now();
            let (one, other) = (addresses.cells(ip("192.0.2.1")), addresses.cells(ip("192.0.2.2")));
            for _ in 0..at_once {
                assert_eq!(addresses.begin_handshake(one, now), Some(Duration::ZERO));
            }
            for n in 1..=most {
                assert_eq!(addresses.begin_handshake(one, now), Some(STEP * n));
            }
            assert_eq!((addresses.begin_handshake(one, now), addresses.begin_handshake(one, now)), (None, None));
            assert_eq!(addresses.begin_handshake(other, now), Some(Duration::ZERO));
            let later = now + STEP;
            assert_eq!(
                addresses.begin_handshake(one, later),
                Some(limits::HANDSHAKE_WAIT_MAX),
                "the refused are not waited for"
            );
            let much_later = later + limits::HANDSHAKE_WAIT_MAX;
            assert_eq!(addresses.begin_handshake(one, much_later), Some(STEP), "and those that waited had their turn");
            assert_eq!(addresses.begin_handshake(one, much_later + STEP * 2), Some(Duration::ZERO));
        }
    }
}
