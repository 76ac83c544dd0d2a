//! What happens to a site. Each fault is over when its function returns: the database answers, the server listens, and
//! whatever one left behind is there for the next to happen to.

use std::thread::sleep;
use std::time::{Duration, Instant};

use support::database::DATABASE_FAULTS;
use support::draws::Draws;
use support::proxy::Cut;

use crate::chaos::site::Site;

/// A fault by its name.
type Fault = (&'static str, fn(&mut Site, &mut Draws));

/// How many there are.
pub fn count() -> usize {
    DATABASE_FAULTS.len() + FAULTS.len()
}

/// Does one of them; its name.
pub fn strike(which: usize, site: &mut Site, draws: &mut Draws) -> &'static str {
    let name = DATABASE_FAULTS.get(which).map_or_else(|| FAULTS[which - DATABASE_FAULTS.len()].0, |fault| fault.0);
    site.struck(name);
    if let Some((_, strike)) = DATABASE_FAULTS.get(which) {
        strike(&mut site.cluster, &mut site.database, draws);
    } else {
        // Connections are cut up to nine times.
        site.database.blows += 9;
        FAULTS[which - DATABASE_FAULTS.len()].1(site, draws);
    }
    name
}

/// Those of the way to the database and of the server, beside those of [`DATABASE_FAULTS`].
const FAULTS: &[Fault] = &[
    ("Postgres stands still", |site, draws| {
        site.cluster.freeze();
        sleep(draws.millis(500, 6000));
        site.cluster.thaw();
    }),
    ("Postgres is slow", |site, draws| {
        site.proxy.delay(draws.millis(20, 250));
        sleep(draws.millis(1000, 5000));
        site.proxy.delay(Duration::ZERO);
    }),
    ("nothing passes to Postgres", |site, draws| {
        site.proxy.hold(true);
        sleep(draws.millis(500, 5000));
        site.proxy.hold(false);
    }),
    ("all connections to Postgres are cut", |site, draws| {
        for _ in 0..=draws.below(5) {
            site.proxy.cut_all();
            draws.pause(300);
        }
    }),
    ("connections are cut at a commit", |site, draws| {
        for _ in 0..=draws.below(8) {
            let cuts = site.proxy.cuts();
            site.proxy.arm(if draws.below(2) == 0 { Cut::AfterRequest } else { Cut::BeforeAnswer });
            let patience = Instant::now() + Duration::from_secs(1);
            while site.proxy.cuts() == cuts && Instant::now() < patience {
                sleep(Duration::from_millis(5));
            }
        }
    }),
    ("the server is killed", |site, draws| {
        site.kill_server();
        draws.pause(1000);
        site.start_server(draws);
        site.ready();
    }),
    ("the server is killed, and again while it recovers", |site, draws| {
        site.kill_server();
        for _ in 0..=draws.below(2) {
            site.start_server(draws);
            draws.pause(150);
            site.kill_server();
        }
        site.start_server(draws);
        site.ready();
    }),
    ("the server is stopped and started", |site, draws| {
        site.stop_server();
        site.start_server(draws);
        site.ready();
    }),
    ("the server stands still", |site, draws| site.suspend_server(draws.millis(300, 4000))),
    ("Postgres is killed, then the server", |site, draws| {
        site.cluster.kill();
        draws.pause(500);
        site.kill_server();
        // Without a database it starts and takes what it can.
        site.start_server(draws);
        draws.pause(1500);
        site.cluster.start();
        site.ready();
    }),
    ("the server is killed while Postgres stands still", |site, draws| {
        site.cluster.freeze();
        draws.pause(1000);
        site.kill_server();
        site.start_server(draws);
        draws.pause(1500);
        site.cluster.thaw();
        site.ready();
    }),
    ("the server is stopped while nothing passes to Postgres", |site, draws| {
        site.proxy.hold(true);
        draws.pause(1000);
        site.stop_server();
        site.proxy.hold(false);
        site.start_server(draws);
        site.ready();
    }),
];
