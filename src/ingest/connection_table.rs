//! The open connections of one shard and their deadlines.
//!
//! A deadline is data, not a timer. A connection stores in its slot the number of the sweep by which it must be done,
//! which costs one store; the shard sweeps all slots four times a second. An overdue connection is not cancelled,
//! because a cancelled completion-based read may lose bytes. Its socket is shut down instead: the operation in flight
//! completes, and the connection's own task sends a response, if there is one to send, and ends.

#![allow(unsafe_code, reason = "shutdown(2) on a raw descriptor: monoio's TcpStream offers no AsFd; see `shut`")]

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};

use millrace_base::limits;

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The client's part of a handshake.
    Handshake,
    /// The next request.
    Idle,
    /// The rest of a request head.
    Header,
    /// The rest of a body.
    Body,
    /// The client to read its answer.
    Write,
    /// The client to close after a refusal.
    Linger,
    /// Nothing from the client: the server is at work.
    Work,
}

/// One connection, as the sweep sees it.
#[derive(Debug)]
pub struct Slot {
    fd: RawFd,
    phase: Cell<Phase>,
    /// The sweep by which the phase must be over.
    due: Cell<u64>,
    is_overdue: Cell<bool>,
}

impl Slot {
    /// Whether the sweep found the connection overdue.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue.get()
    }

    /// Closes the sending side: the client sees the end of the response, and can still be read from.
    pub fn finish_sending(&self) {
        shut(self.fd, Shutdown::Write);
    }
}

/// The table; only the thread of its shard uses it.
#[derive(Debug, Default)]
pub struct ConnectionTable {
    slots: RefCell<Vec<Option<Rc<Slot>>>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    /// How many are in [`Phase::Handshake`]; they stay in it until they leave the table.
    handshakes: Cell<usize>,
    sweep: Cell<u64>,
}

/// The registration of one connection in the table. Must be dropped before the socket is closed.
pub struct Registration {
    table: Rc<ConnectionTable>,
    index: usize,
    slot: Rc<Slot>,
}

impl ConnectionTable {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Registers the connection on `fd`.
    pub fn enter(self: &Rc<Self>, fd: RawFd) -> Registration {
        let slot =
            Rc::new(Slot { fd, phase: Cell::new(Phase::Work), due: Cell::new(u64::MAX), is_overdue: Cell::new(false) });
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[index] = Some(Rc::clone(&slot));
        self.open.set(self.open.get() + 1);
        Registration { table: Rc::clone(self), index, slot }
    }

    /// Shuts down the sockets of overdue connections and calls `count` with the phase of each. Called every
    /// [`limits::TIMEOUT_SWEEP_INTERVAL`].
    pub fn sweep(&self, mut count: impl FnMut(Phase)) {
        let now = self.sweep.get() + 1;
        self.sweep.set(now);
        for slot in self.slots.borrow().iter().flatten() {
            if slot.due.get() > now || slot.is_overdue.replace(true) {
                continue;
            }
            let phase = slot.phase.get();
            count(phase);
            match phase {
                // The task's read returns end-of-file, and it responds with 408.
                Phase::Header | Phase::Body => shut(slot.fd, Shutdown::Read),
                Phase::Handshake | Phase::Idle | Phase::Write | Phase::Linger | Phase::Work => {
                    shut(slot.fd, Shutdown::Both);
                }
            }
        }
    }

    /// Registers the connection on `fd` for its handshake and starts the deadline. If the most handshakes allowed are
    /// under way, the oldest of them is ended.
    pub fn enter_for_handshake(self: &Rc<Self>, fd: RawFd) -> Registration {
        if self.handshakes.get() >= limits::HANDSHAKES_MAX {
            let slots = self.slots.borrow();
            let under_way = slots.iter().flatten().filter(|slot| slot.phase.get() == Phase::Handshake);
            if let Some(oldest) = under_way.filter(|slot| !slot.is_overdue.get()).min_by_key(|slot| slot.due.get()) {
                oldest.is_overdue.set(true);
                shut(oldest.fd, Shutdown::Both);
            }
        }
        self.handshakes.set(self.handshakes.get() + 1);
        let registration = self.enter(fd);
        registration.begin(Phase::Handshake, limits::HANDSHAKE_TIMEOUT);
        registration
    }

    /// Ends the connections that are idle or in a handshake; those in the middle of a request go on.
    pub fn close_idle(&self) {
        for slot in self.slots.borrow().iter().flatten() {
            match slot.phase.get() {
                Phase::Idle => shut(slot.fd, Shutdown::Read),
                Phase::Handshake => shut(slot.fd, Shutdown::Both),
                Phase::Header | Phase::Body | Phase::Write | Phase::Linger | Phase::Work => {}
            }
        }
    }

    /// Ends every connection, in whatever phase.
    pub fn close_all(&self) {
        for slot in self.slots.borrow().iter().flatten() {
            shut(slot.fd, Shutdown::Both);
        }
    }
}

impl Registration {
    /// Starts a phase that must be over within `limit`; see [`Self::extend`].
    pub fn begin(&self, phase: Phase, limit: Duration) {
        self.slot.phase.set(phase);
        self.slot.is_overdue.set(false);
        self.extend(limit);
    }

    /// Moves the deadline of the current phase to `limit` from now. The connection is never overdue before that; it
    /// is at the next sweep after it, or the one after that if `limit` is not a multiple of the interval.
    pub fn extend(&self, limit: Duration) {
        let sweeps = limit.as_millis().div_ceil(limits::TIMEOUT_SWEEP_INTERVAL.as_millis());
        // One more, because the next sweep may be due at once.
        self.slot.due.set(self.table.sweep.get() + sweeps as u64 + 1);
    }

    /// Stops the deadline while the server works.
    pub fn work(&self) {
        self.slot.phase.set(Phase::Work);
        self.slot.due.set(u64::MAX);
    }

    /// The slot.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.slots.borrow_mut()[self.index] = None;
        self.table.free.borrow_mut().push(self.index);
        self.table.open.set(self.table.open.get() - 1);
        if self.slot.phase.get() == Phase::Handshake {
            self.table.handshakes.set(self.table.handshakes.get() - 1);
        }
    }
}

/// Shuts a socket down. An error is ignored: the socket is gone already.
fn shut(fd: RawFd, how: Shutdown) {
    // SAFETY: a descriptor is in the table from `enter` until its `Registration` is dropped, and the connection's task
    // drops its `Registration` before the `Stream` that owns the descriptor, on this same thread. So it is open here.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = shutdown(socket, how);
}

/// Ends the accept in flight on a listening socket; the port accepts no more connections.
pub(super) fn stop_listening(listener: RawFd) {
    shut(listener, Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn nobody_is_overdue_before_the_limit() {
        const SWEEP: u64 = limits::TIMEOUT_SWEEP_INTERVAL.as_millis() as u64;
        let (socket, _other) = UnixStream::pair().unwrap();
        for limit in [1, SWEEP - 1, SWEEP, SWEEP + 1, 4 * SWEEP - 1, 4 * SWEEP, 4 * SWEEP + 1, 40 * SWEEP] {
            let table = Rc::new(ConnectionTable::default());
            let registration = table.enter(socket.as_raw_fd());
            registration.begin(Phase::Body, Duration::from_millis(limit));
            let mut sweeps = 0;
            while !registration.slot().is_overdue() {
                table.sweep(|_| ());
                sweeps += 1;
            }
            // The first sweep came at once, at the earliest, and an interval after the present, at the latest.
            let (earliest, latest) = ((sweeps - 1) * SWEEP, sweeps * SWEEP);
            assert!(earliest >= limit && latest < limit + 2 * SWEEP, "{limit} ms: {sweeps} sweeps");
        }
    }
}
