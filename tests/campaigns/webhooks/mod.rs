//! The webhooks' campaign: 20 organisations whose receivers are good, slow, paced, dead, hostile and changing, two servers on
//! one Postgres, restarts and outages; and at the end the books balance.
//!
//!     ./test webhooks [--minutes N] [--seed S]
//!
//! First by turns: the good receivers without the bad ones, and beside them, at one rate and without faults, for what the
//! bad ones cost them. Then a fault in every stretch of time (`webhook_campaign/faults.rs`), while endpoints are changed
//! (`fleet.rs`). `receivers.rs` is what receivers do, `inbox.rs` what they saw, `books.rs` what must hold in the end. Which
//! faults and changes come follows from the seed; what else happens in between is the machine's. The short run of the
//! ordinary tests has a new seed each time and prints it.

mod books;
mod clients;
mod faults;
mod fleet;
mod inbox;
mod receivers;
mod site;

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::certificates::Authority;
use support::draws::Draws;
use support::load::Log;
use support::sentences::Moment;

use books::Books;
use clients::Clients;
use faults::{FAULTS, Fault};
use fleet::Fleet;
use inbox::Turn;
use receivers::Kind;
use site::{LEASE, Site, Tenant};

const ORGANISATIONS: usize = 20;
/// Of the ordinary tests; the first faults, none of which is long.
const SHORT_FAULTS: usize = 4;
/// From so long a run on each fault comes several times, so that every path must have been gone.
const LONG_RUN: Duration = Duration::from_secs(25 * 60);
/// Between two faults nothing is wrong for so long at least, and every server knows of every change.
const CALM: Duration = Duration::from_secs(5);
/// What a stretch without a fault is called.
const CALM_NAME: &str = "nothing is wrong";
/// What must have been gone by any run.
const PATHS: &[&str] = &[
    "with deliveries",
    "derived, with deliveries",
    "attempt delivered",
    "attempt failed, another follows",
    "circuit opened",
    "endpoint disabled for 410",
];
/// And by a long one.
const LONG_PATHS: &[&str] = &[
    "replayed",
    "last attempt failed",
    "lease lost",
    "circuit closed",
    "results that had to wait",
    "nothing sent for what was not recorded",
    "claims that had to wait",
    "answered while Postgres was away, sent once",
    "sent again after a yes",
    "held back for their receiver's pace, or by an outage",
    "attempts kept beside their deliveries",
];
/// How many times a good receiver's p99 may be what it is without the bad ones.
const P99_RATIO_MAX: f64 = 2.0;

struct Campaign {
    site: Site,
    fleet: Fleet,
    tenants: Vec<Tenant>,
    clients: Clients,
    began: Instant,
}

impl Campaign {
    fn begin(site: Site, mut fleet: Fleet, tenants: Vec<Tenant>, log: &Arc<Log>) -> Self {
        // Every server knows the first endpoints before the first event.
        sleep(CALM / 2);
        fleet.begin_stretch(Moment::now().micros(), CALM_NAME);
        let inboxes: Vec<_> = fleet.listeners.iter().map(|listener| Arc::clone(&listener.inbox)).collect();
        let clients = Clients::start(&tenants, &inboxes, &site.addresses(), log);
        fleet.add_others(&site, &tenants);
        Self { site, fleet, tenants, clients, began: Instant::now() }
    }

    /// A stretch of time begins: what was posted before is stored, and every server knows what endpoints are.
    fn begin_stretch(&mut self, name: &'static str) {
        let _nobody_posts = self.clients.pause();
        self.site.right("");
        self.fleet.begin_stretch(Moment::now().micros(), name);
    }

    /// The good ones without the bad ones and beside them, by turns.
    fn take_turns(&mut self, length: Duration, rounds: usize) {
        for _ in 0..rounds {
            for (turn, is_on) in [(Turn::Alone, false), (Turn::Beside, true)] {
                self.begin_stretch(CALM_NAME);
                self.fleet.switch_bad(&self.site, &self.tenants, is_on);
                // What waited for them is on its way, and the circuits of those who fail are open.
                sleep(if rounds > 1 { 2 * CALM } else { CALM / 2 });
                turn.begin();
                sleep(length);
                Turn::None.begin();
            }
        }
    }

    /// A stretch in which these happen, one after the other.
    fn strike(&mut self, faults: &[Fault], draws: &mut Draws, log: &Log) {
        self.begin_stretch(faults[0].name);
        self.fleet.change(&self.site, &self.tenants, draws);
        for fault in faults {
            sleep(draws.millis(500, 2000));
            let (struck, accepted) = (Instant::now(), log.accepted());
            self.site.begin_wrong();
            (fault.strike)(&mut self.site, draws);
            self.site.right(fault.name);
            println!(
                "{:7.1} s  {}, for {:.1} s; {} accepted meanwhile",
                struck.duration_since(self.began).as_secs_f64(),
                fault.name,
                struck.elapsed().as_secs_f64(),
                log.accepted() - accepted
            );
        }
        sleep(CALM);
    }

    /// Waits until all is delivered that will be, or, where there is no time for that, for a while.
    fn drain(&mut self, is_long: bool) {
        let takes: Vec<String> = {
            let takes = |endpoint: &&fleet::Endpoint| {
                !endpoint.kind.takes_nothing() && endpoint.kind != Kind::Picky && !endpoint.is_deleted
            };
            self.fleet.endpoints.iter().filter(takes).map(|endpoint| endpoint.id.clone()).collect()
        };
        let mut admin = self.site.admin();
        let mut pending = || -> i64 {
            let sql = "SELECT count(*) FROM delivery_queue WHERE endpoint_id::text = ANY ($1)";
            admin.query_one(sql, &[&takes]).unwrap().get(0)
        };
        // What a killed server held is due when its lease ends; after that there is always some progress.
        let patience = if is_long { 2 * LEASE } else { Duration::from_secs(2) };
        let (mut least, mut at) = (pending(), Instant::now());
        println!("{:7.1} s  {least} left to deliver", self.began.elapsed().as_secs_f64());
        while least > 0 && at.elapsed() < patience && (is_long || self.began.elapsed() < Duration::from_secs(50)) {
            sleep(Duration::from_millis(200));
            let now = pending();
            if now < least {
                (least, at) = (now, Instant::now());
            }
        }
        println!("{:7.1} s  {least} left to deliver", self.began.elapsed().as_secs_f64());
    }

    /// What the bad ones cost the good ones.
    fn p99s(&self, is_long: bool) -> Vec<String> {
        let p99s = self.fleet.p99s();
        let ratio = |(beside, alone, _): &(u64, u64, usize)| *beside as f64 / (*alone).max(1) as f64;
        let mut ratios: Vec<f64> = p99s.iter().map(ratio).collect();
        let fewest = p99s.iter().map(|(.., count)| *count).min().unwrap_or_default();
        println!(
            "good receivers, p99 from acceptance to arrival in ms, beside the bad ones / without, of {fewest} and more each:"
        );
        let shown =
            p99s.iter().map(|(beside, alone, _)| format!("{:.1}/{:.1}", *beside as f64 / 1e3, *alone as f64 / 1e3));
        println!("  {}", shown.collect::<Vec<_>>().join(" "));
        ratios.sort_unstable_by(f64::total_cmp);
        println!(
            "  ratios {:.2} to {:.2}, median {:.2}",
            ratios[0],
            ratios[ratios.len() - 1],
            ratios[ratios.len() / 2]
        );
        let worst = ratios.iter().filter(|ratio| is_long && **ratio > P99_RATIO_MAX);
        worst
            .map(|ratio| format!("a good receiver's p99 is {ratio:.2} times what it is without the bad ones"))
            .collect()
    }
}

#[test]
fn every_event_reaches_its_endpoints_whatever_happens() {
    let _alone = crate::alone();
    let minutes = crate::number("MILLRACE_WEBHOOKS_MINUTES").filter(|minutes| *minutes > 0);
    let seed = crate::number("MILLRACE_WEBHOOKS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}, {}", minutes.map_or("short".to_owned(), |minutes| format!("{minutes} minutes")));
    let mut draws = Draws::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let site = Site::open(authority.file(directory.path()).to_str().expect("text"));
    let tenants: Vec<Tenant> =
        (0..ORGANISATIONS).map(|number| site.tenant(&format!("organisation {number}"))).collect();
    let fleet = Fleet::open(&site, &tenants, authority);
    let log = Log::new();
    let mut campaign = Campaign::begin(site, fleet, tenants, &log);
    let (length, rounds) = match minutes {
        None => (Duration::from_secs(4), 1),
        Some(minutes) => (Duration::from_secs(minutes).min(Duration::from_secs(25)), 4),
    };
    campaign.take_turns(length, rounds);
    let too_slow = campaign.p99s(minutes.is_some_and(is_long));
    campaign.clients.post_in_full();
    match minutes {
        None => {
            let (first, second) = FAULTS[..SHORT_FAULTS].split_at(SHORT_FAULTS / 2);
            campaign.strike(first, &mut draws, &log);
            campaign.strike(second, &mut draws, &log);
        }
        Some(minutes) => {
            let until = campaign.began + Duration::from_secs(minutes * 60).saturating_sub(3 * LEASE);
            let mut deck: Vec<usize> = Vec::new();
            while Instant::now() < until {
                // Every fault once before any comes again.
                if deck.is_empty() {
                    deck = (0..FAULTS.len()).collect();
                }
                let which = deck.swap_remove(draws.below(deck.len() as u64) as usize);
                campaign.strike(&FAULTS[which..=which], &mut draws, &log);
            }
        }
    }
    campaign.begin_stretch(CALM_NAME);
    campaign.fleet.heal(&campaign.site, &campaign.tenants);
    let posted_for = campaign.began.elapsed();
    campaign.clients.stop();
    println!("{:.0} accepted a second", log.accepted() as f64 / posted_for.as_secs_f64());
    campaign.drain(minutes.is_some());

    let Campaign { mut site, fleet, tenants, .. } = campaign;
    site.right("");
    site.count_all();
    let is_drained = minutes.is_some();
    let books = Books { site: &mut site, fleet: &fleet, tenants: &tenants, log: &log, is_drained, faults: too_slow };
    let wrong = books.balance();
    println!("{}", site.paths);
    assert!(wrong.is_empty(), "the books do not balance:\n{}", wrong.join("\n"));
    assert_eq!(site.paths.untaken(PATHS), [""; 0], "the campaign did not go these ways");
    if minutes.is_some_and(is_long) {
        assert_eq!(site.paths.untaken(LONG_PATHS), [""; 0], "the campaign did not go these ways");
        let faults: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        let kinds: Vec<String> = receivers::OTHERS.iter().chain(&[Kind::Good]).map(|kind| kind.name()).collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        assert_eq!(
            site.paths.unstruck(&faults, &kinds),
            [("", ""); 0],
            "no attempt of these receivers in these faults"
        );
    }
}

/// Whether each fault comes several times in so many minutes.
fn is_long(minutes: u64) -> bool {
    Duration::from_secs(minutes * 60) >= LONG_RUN
}
