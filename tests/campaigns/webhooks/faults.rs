//! What happens to the site. Each fault is over when its function returns: the database answers, both servers listen.

use std::time::Duration;

use support::draws::Draws;
use support::postgres::Cluster;

use crate::webhooks::site::{LEASE, Site};

pub struct Fault {
    pub name: &'static str,
    pub strike: fn(&mut Site, &mut Draws),
}

const fn fault(name: &'static str, strike: fn(&mut Site, &mut Draws)) -> Fault {
    Fault { name, strike }
}

pub const FAULTS: &[Fault] = &[
    fault("a server is killed", |site, draws| {
        let which = draws.below(2) as usize;
        site.kill(which);
        draws.pause(2000);
        site.start(which);
    }),
    fault("a server is stopped and started", |site, draws| {
        let which = draws.below(2) as usize;
        site.stop(which);
        draws.pause(1000);
        site.start(which);
    }),
    fault("Postgres is restarted", |site, _| site.take_database_away(Cluster::stop, Duration::ZERO)),
    fault("Postgres is stopped at once", |site, draws| {
        let pause = draws.millis(0, 3000);
        site.take_database_away(Cluster::crash, pause);
    }),
    fault("both servers are killed", |site, draws| {
        site.kill(0);
        draws.pause(500);
        site.kill(1);
        draws.pause(1000);
        site.start(0);
        site.start(1);
    }),
    fault("a server stands still", |site, draws| {
        let pause = draws.millis(500, 6000);
        site.freeze(draws.below(2) as usize, pause);
    }),
    fault("a server is killed while Postgres is away", |site, draws| {
        let which = draws.below(2) as usize;
        site.cluster.crash();
        draws.pause(2000);
        site.kill(which);
        draws.pause(1000);
        site.start(which);
        draws.pause(1000);
        site.cluster.start();
    }),
    fault("a server is stopped while Postgres is away", |site, draws| {
        let which = draws.below(2) as usize;
        site.cluster.stop();
        draws.pause(2000);
        site.stop(which);
        site.start(which);
        site.cluster.start();
    }),
    fault("Postgres is away for more than a third of a lease", |site, draws| {
        let pause = LEASE / 3 + draws.millis(7000, 9000);
        site.take_database_away(Cluster::stop, pause);
    }),
    fault("Postgres is away for longer than a lease", |site, draws| {
        let pause = LEASE + draws.millis(2000, 5000);
        site.take_database_away(Cluster::crash, pause);
    }),
    fault("a server stands still for longer than a lease", |site, draws| {
        let pause = LEASE + draws.millis(2000, 5000);
        site.freeze(draws.below(2) as usize, pause);
    }),
];
