//! One case: a machine that is switched on, takes events, loses power, again and again; then a last time for good,
//! when everything must come out that was ever promised.
//!
//! The journal is the real one with all its threads; the test plays the shards (an appender for each lane, their
//! tasks polled here), the clients (who note what they were promised) and the writers (who note what they stored).
//! What the threads do between two of its steps is up to the scheduler; the plan of a case (its seed) is not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;
use millrace_journal::queue::{Accepted, Queue, queue};
use millrace_journal::segment::SEGMENT_BYTES_MIN;
use millrace_journal::{AppendError, Journal, JournalConfig, Remaining, Replayed, reader};
use millrace_metrics::Metrics;
use support::lanes::{Lanes, PATIENCE};

use crate::power_loss::random::Random;
use crate::power_loss::sim_disk::{Honesty, Image, Plan, SimDisk, Tearing};

/// What was done in a case, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub cases: u64,
    pub cuts: u64,
    /// Of these while what was left by the life before was read back.
    pub cuts_in_replay: u64,
    pub promised: u64,
    pub refused: u64,
    pub unknown: u64,
    pub replayed: u64,
    /// Lives in which the journal reported events as lost, though none was.
    pub false_alarms: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.cases, other.cases),
            (&mut self.cuts, other.cuts),
            (&mut self.cuts_in_replay, other.cuts_in_replay),
            (&mut self.promised, other.promised),
            (&mut self.refused, other.refused),
            (&mut self.unknown, other.unknown),
            (&mut self.replayed, other.replayed),
            (&mut self.false_alarms, other.false_alarms),
        ] {
            *sum += more;
        }
    }
}

/// What a client knows of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Promised,
    Refused,
}

struct Sent {
    event: Event,
    told: Told,
}

/// What everybody but the machine knows.
#[derive(Default)]
struct World {
    sent: HashMap<EventId, Sent>,
    /// By the database.
    stored: HashSet<EventId>,
}

impl World {
    /// Sends the next event.
    fn event(&mut self, random: &mut Random) -> Event {
        let number = self.sent.len() as u64;
        let len = match random.below(20) {
            0..12 => random.below(300),
            12..17 => random.below(20_000),
            17 | 18 => random.below(limits::PAYLOAD_BYTES_MAX as u64 / 2),
            _ => limits::PAYLOAD_BYTES_MAX as u64 - random.below(64),
        };
        let mut payload = vec![b'x'; len as usize];
        // No two sectors are the same, of one event or of two.
        for (at, chunk) in payload.chunks_mut(256).enumerate() {
            let text = format!("{number}/{at}");
            let len = text.len().min(chunk.len());
            chunk[..len].copy_from_slice(&text.as_bytes()[..len]);
        }
        let dedup_id = random.chance(1, 3).then(|| format!("dedup-{number}"));
        let id = EventId(Uuid::from_u128(u128::from(number) << 64 | u128::from(random.next())));
        let org = OrgId(Uuid::from_u128(random.next().into()));
        let event = Event::new(id, org, Timestamp::now(), "power.loss", dedup_id.as_deref(), &payload);
        self.sent.insert(id, Sent { event: event.clone(), told: Told::Nothing });
        event
    }

    fn tell(&mut self, id: EventId, told: Told) {
        self.sent.get_mut(&id).expect("it was sent").told = told;
    }

    /// An event that a writer was given must be one that was sent, as it was sent, and not refused.
    fn recognise(&self, event: &Event) -> Result<(), String> {
        let Some(sent) = self.sent.get(&event.id) else {
            return Err(format!("{event:?} was never sent"));
        };
        if sent.told == Told::Refused {
            return Err(format!("{event:?} was refused"));
        }
        // Without what the journal and the writers noted about it.
        let dedup_id = event.dedup_id().map(|id| std::str::from_utf8(id).expect("the reader checked it"));
        let event = Event::new(event.id, event.org, event.received_at, event.type_text(), dedup_id, event.payload());
        if event == sent.event { Ok(()) } else { Err(format!("{event:?} is not as it was sent: {:?}", sent.event)) }
    }

    /// Whatever was promised must be stored or among `brought`.
    fn expect_all(&self, brought: &HashSet<EventId>) -> Result<(), String> {
        let is_lost = |(id, sent): &(&EventId, &Sent)| {
            sent.told == Told::Promised && !self.stored.contains(id) && !brought.contains(id)
        };
        let lost: Vec<_> = self.sent.iter().filter(is_lost).map(|(_, sent)| &sent.event).collect();
        if lost.is_empty() { Ok(()) } else { Err(format!("LOST {}: {lost:?}", lost.len())) }
    }

    fn are_all_stored(&self) -> bool {
        self.sent.iter().all(|(id, sent)| sent.told != Told::Promised || self.stored.contains(id))
    }
}

/// Runs the case of `seed`; `Err` says what went wrong.
pub fn run(seed: u64, honesty: Honesty) -> Result<Tally, String> {
    let mut random = Random::new(seed);
    let mut case = Case {
        tearing: Tearing {
            sector_bytes: random.pick(&[512, 4096]),
            is_in_order: random.chance(1, 4),
            has_rubbish: random.chance(1, 2),
            keeps_names_in_order: random.chance(1, 2),
        },
        random,
        honesty,
        world: World::default(),
        image: Image::default(),
        tally: Tally { cases: 1, ..Tally::default() },
        trace: Vec::new(),
    };
    let lives = 1 + case.random.below(3);
    let done = (|| {
        (0..lives).try_for_each(|_| case.live())?;
        case.last_life()
    })();
    match done {
        Ok(()) => Ok(case.tally),
        Err(why) => Err(format!("{why}\n{:?}\n{}", case.tearing, case.trace.join("\n-- power is back --\n"))),
    }
}

struct Case {
    random: Random,
    tearing: Tearing,
    honesty: Honesty,
    world: World,
    image: Image,
    tally: Tally,
    /// Of each life.
    trace: Vec<String>,
}

/// The server in one life.
struct Server {
    disk: SimDisk,
    journal: Arc<Journal>,
    shards: usize,
    may_spill: bool,
    queue: Queue,
    accepted: Accepted,
    stop: Arc<AtomicBool>,
}

impl Case {
    /// A life that ends with the power.
    fn live(&mut self) -> Result<(), String> {
        let horizon = self.random.pick(&[12, 40, 120, 400]);
        let full_from = if self.random.chance(1, 4) { self.random.below(horizon) } else { u64::MAX / 2 };
        let plan = Plan {
            cut_after: self.random.below(horizon),
            full: full_from..full_from + self.random.below(30),
            honesty: self.honesty,
        };
        let Some(server) = self.boot(plan)? else { return Ok(()) };
        let storing = self.random.pick(&[0, 5, 10]);
        if self.random.chance(1, 2) {
            // As a server does: what was left is read back beside new events. That all of it comes the last life tells.
            server.journal.open();
            server.start_feeder();
            server.journal.start_replay(server.queue.clone(), Arc::clone(&server.stop)).expect("a thread");
            self.work(&server, storing, true)?;
            server.stop.store(true, Ordering::Relaxed);
            self.cut(server);
            return Ok(());
        }
        let mut brought = HashSet::new();
        let is_replayed = self.replay(&server, storing, &mut brought)?.is_some();
        if is_replayed {
            self.world.expect_all(&brought)?;
            server.journal.open();
            server.start_feeder();
            self.work(&server, storing, true)?;
            server.stop.store(true, Ordering::Relaxed);
        } else {
            self.tally.cuts_in_replay += 1;
        }
        self.cut(server);
        Ok(())
    }

    /// A life at whose end everything is stored and the journal is empty.
    fn last_life(&mut self) -> Result<(), String> {
        let server = self.boot(Plan { honesty: self.honesty, ..Plan::none() })?.expect("this power never goes");
        let mut brought = HashSet::new();
        let replayed = self.replay(&server, 10, &mut brought)?.ok_or("the replay failed with the power on")?;
        self.world.expect_all(&brought)?;
        if replayed.lost > 0 {
            self.tally.false_alarms += 1;
            // Of what a disk writes in order the end can be missing, nothing else.
            if self.tearing.is_in_order && self.tearing.keeps_names_in_order && !self.tearing.has_rubbish {
                return Err(format!("{replayed:?}, and nothing is lost"));
            }
        }
        server.journal.open();
        server.start_feeder();
        self.work(&server, 10, false)?;
        let begun = Instant::now();
        while !self.world.are_all_stored() {
            self.store(&server, 10, Duration::from_millis(1))?;
            if begun.elapsed() > PATIENCE {
                return Err("something that is durable never comes to the writers".to_owned());
            }
        }
        server.stop.store(true, Ordering::Relaxed);
        self.trace.push(server.disk.trace());
        server.journal.close(Instant::now() + PATIENCE);
        let left = server.journal.end();
        if left != (Remaining { unread_events: Some(0), ..Remaining::default() }) {
            return Err(format!("{left:?} in the journal, and all are stored"));
        }
        server.disk.cut();
        self.image = server.disk.image(&mut self.random, self.tearing);
        let after = SimDisk::new(&self.image, Plan::none());
        let listing = reader::list(&after).map_err(|error| error.to_string())?;
        if !listing.segments.is_empty() && self.honesty == Honesty::Honest {
            return Err(format!("{:?} are left, and all is stored", listing.segments));
        }
        Ok(())
    }

    /// Switches the machine on; `None` where the power goes before the journal is there.
    fn boot(&mut self, plan: Plan) -> Result<Option<Server>, String> {
        let disk = SimDisk::new(&self.image, plan);
        let shards = 1 + self.random.below(2) as usize;
        let config = JournalConfig {
            shards,
            is_synchronised: true,
            segment_bytes: SEGMENT_BYTES_MIN as u64,
            bytes_max: self.random.pick(&[2 * shards as u64, 1024]) * SEGMENT_BYTES_MIN as u64,
            is_store_here: false,
        };
        let (queue, accepted) = queue(self.random.pick(&[2, 8, limits::QUEUE_EVENTS_DEFAULT]));
        match Journal::start(Arc::new(disk.clone()), config, &Metrics::new(1)) {
            Ok(journal) => Ok(Some(Server {
                disk,
                journal,
                shards,
                may_spill: self.random.chance(1, 4),
                queue,
                accepted,
                stop: Arc::default(),
            })),
            Err(_) if disk.is_cut() => {
                self.tally.cuts += 1;
                self.tally.cuts_in_replay += 1;
                self.trace.push(disk.trace());
                self.image = disk.image(&mut self.random, self.tearing);
                Ok(None)
            }
            Err(error) => Err(format!("the journal does not start: {error}")),
        }
    }

    /// Replays, playing the writers meanwhile. `None` where the power went.
    fn replay(
        &mut self,
        server: &Server,
        storing: u64,
        brought: &mut HashSet<EventId>,
    ) -> Result<Option<Replayed>, String> {
        let replayed = thread::scope(|scope| {
            let replay = scope.spawn(|| server.journal.replay(&server.queue, &server.stop));
            let result = loop {
                let is_finished = replay.is_finished();
                let stored = self.store_into(server, storing, Duration::from_micros(100), brought);
                if stored.is_err() || is_finished {
                    // Ends a replay that is still waiting for a slot.
                    server.stop.store(!is_finished, Ordering::Relaxed);
                    break stored;
                }
            };
            let replayed = replay.join().expect("the replay does not panic");
            result.map(|()| replayed)
        })?;
        self.tally.replayed += brought.len() as u64;
        match replayed {
            Ok(replayed) => Ok(Some(replayed)),
            Err(_) if server.disk.is_cut() => Ok(None),
            Err(error) => Err(format!("the replay failed with the power on: {error}")),
        }
    }

    /// The writers' part: takes what is in the queue, stores `storing` of ten, counts it in the ledger.
    fn store(&mut self, server: &Server, storing: u64, wait: Duration) -> Result<(), String> {
        self.store_into(server, storing, wait, &mut HashSet::new())
    }

    fn store_into(
        &mut self,
        server: &Server,
        storing: u64,
        wait: Duration,
        brought: &mut HashSet<EventId>,
    ) -> Result<(), String> {
        let receiver = &server.accepted.receiver;
        let mut next = if wait.is_zero() { receiver.try_recv().ok() } else { receiver.recv_timeout(wait).ok() };
        while let Some(event) = next {
            self.world.recognise(&event)?;
            brought.insert(event.id);
            // What a machine without power stores is nobody's.
            if self.random.chance(storing, 10) && !server.disk.is_cut() {
                self.world.stored.insert(event.id);
                server.journal.segment_refs().commit(std::slice::from_ref(&event));
            }
            server.accepted.slots.release(std::slice::from_ref(&event), event.weight());
            next = receiver.try_recv().ok();
        }
        Ok(())
    }

    /// Takes events for a while, or until the power goes; with `may_end` perhaps stops the server or cuts the power then.
    fn work(&mut self, server: &Server, storing: u64, may_end: bool) -> Result<(), String> {
        let mut lanes = Lanes::new(&server.journal, server.shards, &server.queue, server.may_spill);
        let bursts = 1 + self.random.below(14);
        for _ in 0..bursts {
            for _ in 0..=self.random.pick(&[0, 2, 10]) {
                let event = self.world.event(&mut self.random);
                let id = event.id;
                if lanes.accept(self.random.below(server.shards as u64) as usize, event).is_err() {
                    self.refused(id);
                }
            }
            if self.random.chance(2, 3) {
                self.settle(&mut lanes)?;
            } else {
                lanes.tend();
            }
            self.store(server, storing, Duration::ZERO)?;
            if server.disk.is_cut() {
                break;
            }
        }
        if may_end && self.random.chance(1, 3) && !server.disk.is_cut() {
            // As a server that is stopped: the power may go in the middle of that, too.
            server.stop.store(true, Ordering::Relaxed);
            server.journal.close(Instant::now() + PATIENCE);
            self.settle(&mut lanes)?;
            self.store(server, storing, Duration::ZERO)?;
            if self.random.chance(1, 2) {
                server.journal.end();
            }
        } else if may_end && self.random.chance(1, 2) {
            server.disk.cut();
        }
        // Also with the power gone: what was made durable before is promised, the rest comes to nothing.
        self.settle(&mut lanes)?;
        self.store(server, storing, Duration::ZERO)
    }

    fn refused(&mut self, id: EventId) {
        self.tally.refused += 1;
        self.world.tell(id, Told::Refused);
    }

    /// Tells the clients what became of their events, until all know.
    fn settle(&mut self, lanes: &mut Lanes) -> Result<(), String> {
        let settled = lanes.settle(|id, trouble| match trouble {
            None => {
                self.tally.promised += 1;
                self.world.tell(id, Told::Promised);
            }
            Some(AppendError::Refused(_)) => self.refused(id),
            Some(AppendError::Unknown) => self.tally.unknown += 1,
        });
        settled.map_err(|left| format!("{left} events are never settled"))
    }

    /// The power goes, unless it has; then it comes back.
    fn cut(&mut self, server: Server) {
        server.disk.cut();
        self.tally.cuts += 1;
        self.trace.push(server.disk.trace());
        self.image = server.disk.image(&mut self.random, self.tearing);
        server.stop.store(true, Ordering::Relaxed);
        // What still runs of it meets a dead disk only; nobody waits for it.
        thread::spawn(move || {
            server.journal.close(Instant::now() + PATIENCE);
            server.journal.end();
        });
    }
}

impl Server {
    fn start_feeder(&self) {
        if self.may_spill {
            self.journal.start_feeder(self.queue.clone(), Arc::clone(&self.stop)).expect("a thread");
        }
    }
}
