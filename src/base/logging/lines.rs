//! The path of a log line to standard error: a bounded buffer and one thread behind it.
//!
//! Putting a line never waits. A line that does not fit ([`limits::LOG_LINES_MAX`], [`limits::LOG_BYTES_MAX`]) is dropped and
//! counted, and so is a line that standard error refuses (a closed pipe, a full disk). A notice tells how many lines are missing
//! as soon as one can be written. Only [`Lines::flush`] waits, as long as its caller allows.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::limits;

/// The sending side of the buffer, for any thread.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    messages: Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Message {
    Line {
        text: Box<[u8]>,
        /// Lines that were dropped since the one before this.
        dropped_before: u64,
    },
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of the lines in the buffer and of the one being written.
    bytes: AtomicUsize,
    /// Lines dropped so far.
    dropped: AtomicU64,
    /// Dropped lines that no notice has counted yet.
    unreported: AtomicU64,
    /// Whether a flush ran out of time and nothing was written since.
    is_stuck: AtomicBool,
}

/// The receiving side, for the thread that writes.
pub(super) struct LineWriter<W> {
    messages: Receiver<Message>,
    shared: Arc<Shared>,
    sink: W,
    /// Makes the notice about missing lines.
    notice: fn(u64) -> Vec<u8>,
    /// Whether a line was refused after a part of it was written.
    is_cut: bool,
}

/// Makes a buffer in front of `sink`. `notice` makes the line that tells how many are missing.
pub(super) fn lines<W: Write>(sink: W, notice: fn(u64) -> Vec<u8>) -> (Lines, LineWriter<W>) {
    let (sender, messages) = bounded(limits::LOG_LINES_MAX);
    let shared = Arc::new(Shared::default());
    let lines = Lines { messages: sender, shared: Arc::clone(&shared) };
    (lines, LineWriter { messages, shared, sink, notice, is_cut: false })
}

impl Lines {
    /// Puts a whole line into the buffer, or drops it.
    pub(super) fn put(&self, line: &[u8]) {
        let Shared { bytes, dropped, unreported, .. } = &*self.shared;
        let fits = bytes.fetch_add(line.len(), Ordering::Relaxed) + line.len() <= limits::LOG_BYTES_MAX;
        let dropped_before = unreported.swap(0, Ordering::Relaxed);
        let message = || Message::Line { text: line.into(), dropped_before };
        if !fits || self.messages.try_send(message()).is_err() {
            bytes.fetch_sub(line.len(), Ordering::Relaxed);
            dropped.fetch_add(1, Ordering::Relaxed);
            unreported.fetch_add(dropped_before + 1, Ordering::Relaxed);
        }
    }

    /// Waits until everything put so far is written, at most for `wait`. Returns whether it is.
    pub(super) fn flush(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let (done, flushed) = bounded(1);
        let is_written = match self.messages.send_deadline(Message::Flush(done), deadline) {
            Ok(()) => flushed.recv_deadline(deadline).is_ok(),
            Err(_) => false,
        };
        if !is_written {
            self.shared.is_stuck.store(true, Ordering::Relaxed);
        }
        is_written
    }

    /// Whether nothing was written since a flush ran out of time.
    pub(super) fn is_stuck(&self) -> bool {
        self.shared.is_stuck.load(Ordering::Relaxed)
    }

    /// Number of lines dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl<W: Write> LineWriter<W> {
    /// Writes lines until the last sender is gone. May wait for the sink forever.
    pub(super) fn run(mut self) {
        loop {
            let message = match self.messages.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    self.report_missing();
                    let Ok(message) = self.messages.recv() else { return };
                    message
                }
            };
            match message {
                Message::Line { text, dropped_before } => {
                    self.report(dropped_before);
                    if !self.write(&text) {
                        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                        self.shared.unreported.fetch_add(1, Ordering::Relaxed);
                    }
                    self.shared.bytes.fetch_sub(text.len(), Ordering::Relaxed);
                }
                Message::Flush(done) => {
                    self.report_missing();
                    // The caller may have given up.
                    let _ = done.send(());
                }
            }
        }
    }

    fn report_missing(&mut self) {
        let unreported = self.shared.unreported.swap(0, Ordering::Relaxed);
        self.report(unreported);
    }

    fn report(&mut self, dropped: u64) {
        if dropped > 0 && !self.write(&(self.notice)(dropped)) {
            self.shared.unreported.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Writes a line; `false` if the sink did not take all of it.
    fn write(&mut self, line: &[u8]) -> bool {
        if self.is_cut && self.write_all(b"\n").is_err() {
            return false;
        }
        self.is_cut = false;
        match self.write_all(line) {
            Ok(()) => {
                self.shared.is_stuck.store(false, Ordering::Relaxed);
                true
            }
            Err(left) => {
                self.is_cut = left < line.len();
                false
            }
        }
    }

    /// Like [`Write::write_all`], but waits if a non-blocking sink is full. The error is the number of bytes left.
    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), usize> {
        const FULL_PAUSE: Duration = Duration::from_millis(10);
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(bytes.len()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(_) => return Err(bytes.len()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// Takes what it is told to take, and refuses or holds the rest.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        written: Vec<u8>,
        is_full: bool,
        is_broken: bool,
        room_before_break: usize,
    }

    impl Sink {
        fn set(&self, change: impl FnOnce(&mut State)) {
            change(&mut self.0.lock().unwrap());
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().written.clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            if state.is_full {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = if state.is_broken { bytes.len().min(state.room_before_break) } else { bytes.len() };
            if taken == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            state.room_before_break -= if state.is_broken { taken } else { 0 };
            state.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Lines, Sink) {
        let sink = Sink::default();
        let (entrance, writer) = lines(sink.clone(), |dropped| format!("{dropped} missing\n").into_bytes());
        thread::spawn(move || writer.run());
        (entrance, sink)
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn lines_come_out_in_order_and_none_is_missing() {
        let (lines, sink) = start();
        let expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        for line in &expected {
            lines.put(format!("{line}\n").as_bytes());
        }
        assert!(lines.flush(PATIENCE));
        assert_eq!(sink.text().lines().collect::<Vec<_>>(), expected);
        assert_eq!(lines.dropped(), 0);
    }

    #[test]
    fn a_sink_that_takes_nothing_holds_nobody_up() {
        let (lines, sink) = start();
        sink.set(|sink| sink.is_full = true);
        // One may be in the writer's hands.
        let put = limits::LOG_LINES_MAX + 100;
        (0..put).for_each(|_| lines.put(b"x\n"));
        let dropped = lines.dropped();
        assert!((99..=100).contains(&dropped), "{dropped}");
        assert!(!lines.flush(Duration::ZERO) && lines.is_stuck());
        sink.set(|sink| sink.is_full = false);
        assert!(lines.flush(PATIENCE) && !lines.is_stuck());
        lines.put(b"after\n");
        assert!(lines.flush(PATIENCE));
        let text = sink.text();
        assert_eq!(text.matches("x\n").count() as u64, put as u64 - dropped);
        assert!(text.ends_with(&format!("x\n{dropped} missing\nafter\n")), "{}", &text[text.len() - 60..]);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let (lines, sink) = start();
        sink.set(|sink| sink.is_full = true);
        let line = vec![b'x'; limits::LOG_BYTES_MAX / 4];
        (0..6).for_each(|_| lines.put(&line));
        assert_eq!(lines.dropped(), 2);
        sink.set(|sink| sink.is_full = false);
        assert!(lines.flush(PATIENCE));
        lines.put(&line);
        assert!(lines.flush(PATIENCE));
        assert_eq!(lines.dropped(), 2, "there is room again");
    }

    #[test]
    fn what_the_sink_refuses_is_counted_and_told() {
        let (lines, sink) = start();
        lines.put(b"first\n");
        assert!(lines.flush(PATIENCE));
        sink.set(|sink| (sink.is_broken, sink.room_before_break) = (true, 3));
        lines.put(b"second\n");
        lines.put(b"third\n");
        assert!(lines.flush(PATIENCE), "a refusal is not waited for");
        assert_eq!(lines.dropped(), 2);
        sink.set(|sink| sink.is_broken = false);
        lines.put(b"fourth\n");
        assert!(lines.flush(PATIENCE));
        assert_eq!(sink.text(), "first\nsec\n2 missing\nfourth\n");
    }
}
