//! What must hold when everything is over, by all that was posted, what each receiver saw and said, and what the database
//! and the API say: every event for every endpoint that wanted it has one delivery, which is delivered, failed with its
//! reason, or pending and due; and none was sent again after its yes without a cause.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::ToSql;
use uuid::Uuid;

use support::load::{Log, Told};
use support::oracle::{Verdict, postgres_verdict};
use support::sentences::Moment;

use crate::webhooks::clients::TYPES;
use crate::webhooks::fleet::{Endpoint, Fleet, Wants};
use crate::webhooks::inbox::{Again, Inbox};
use crate::webhooks::receivers::{Kind, PACE};
use crate::webhooks::site::{LEASE, Site, TIMEOUT, Tenant};

const PENDING: i16 = 0;
const DELIVERED: i16 = 1;
const FAILED: i16 = 2;
/// What was answered so long before something went wrong may not have been recorded by then.
const RECORDED_WITHIN: Duration = Duration::from_secs(3);
/// How far the clocks of the servers and of this process may be from each other, in microseconds: they are one clock.
const CLOCK_TOLERANCE: u64 = 100_000;
/// The longest pause of the schedule, spread, and what a receiver asks for.
const PAUSE_MAX: Duration = Duration::from_secs(12);
/// How many deliveries the API is asked about, too.
const SAMPLES: usize = 100;
/// At most so many of what is wrong are shown.
const SHOWN: usize = 10;

/// An event as it is stored.
struct Stored {
    org: usize,
    event_type: usize,
    stretch: usize,
}

/// What one endpoint's deliveries came to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    pending: u64,
    delivered: u64,
    failed: u64,
    /// Of events that it surely wanted.
    surely: u64,
}

pub struct Books<'a> {
    pub site: &'a mut Site,
    pub fleet: &'a Fleet,
    pub tenants: &'a [Tenant],
    pub log: &'a Log,
    /// Whether everything that can be delivered must be by now.
    pub is_drained: bool,
    pub faults: Vec<String>,
}

impl Books<'_> {
    /// Prints what came of it all; returns where it does not balance.
    #[must_use]
    pub fn balance(mut self) -> Vec<String> {
        let mut admin = self.site.admin();
        self.events(&mut admin);
        let stored = self.stored(&mut admin);
        let tallies = self.deliveries(&mut admin, &stored);
        self.owed(&stored, &tallies);
        self.requests(&stored);
        self.duplicates(&mut admin);
        self.reasons(&mut admin);
        self.by_fault(&mut admin);
        self.pace(&mut admin);
        self.api(&mut admin);
        self.faults
    }

    fn fault(&mut self, all: &[String], what: &str) {
        if !all.is_empty() {
            self.faults.push(format!("{}: {what}\n  {}", all.len(), all[..all.len().min(SHOWN)].join("\n  ")));
        }
    }

    fn events(&mut self, admin: &mut Client) {
        let Verdict { stored, lost, dup, phantom, changed } = postgres_verdict(admin, self.log);
        println!(
            "accepted {}, of {} sent; {} unanswered, refused {:?}; {stored} stored, LOST {}, DUP {}, PHANTOM {}, altered {}",
            self.log.accepted(),
            self.log.sent(),
            self.log.unanswered(),
            self.log.refusals(),
            lost.len(),
            dup.len(),
            phantom.len(),
            changed.len()
        );
        for (what, numbers) in [("LOST", lost), ("DUP", dup), ("PHANTOM", phantom), ("altered", changed)] {
            self.fault(&numbers.iter().map(u64::to_string).collect::<Vec<_>>(), what);
        }
    }

    fn stored(&self, admin: &mut Client) -> HashMap<Uuid, Stored> {
        const EVENTS: &str =
            "SELECT id, org_id::text, type, (extract(epoch FROM received_at) * 1000000)::bigint FROM events";
        let orgs: HashMap<&str, usize> =
            self.tenants.iter().enumerate().map(|(at, tenant)| (&*tenant.id, at)).collect();
        let mut all = HashMap::new();
        let none: [&str; 0] = [];
        let mut rows = admin.query_raw(EVENTS, none).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let at = row.get::<_, i64>(3) as u64;
            let stored = Stored {
                org: orgs[row.get::<_, &str>(1)],
                event_type: TYPES
                    .iter()
                    .position(|known| *known == row.get::<_, &str>(2))
                    .expect("a type that was posted"),
                stretch: self.fleet.stretches.partition_point(|(begun, _)| *begun <= at) - 1,
            };
            all.insert(row.get(0), stored);
        }
        all
    }

    /// Every row of `deliveries` against what its receiver says.
    fn deliveries(&mut self, admin: &mut Client, stored: &HashMap<Uuid, Stored>) -> Vec<Tally> {
        const DELIVERIES: &str = "
            SELECT event_id, endpoint_id::text, status, (extract(epoch FROM next_attempt_at) * 1000000)::bigint
            FROM deliveries";
        let endpoints: HashMap<&str, usize> =
            self.fleet.endpoints.iter().enumerate().map(|(at, endpoint)| (&*endpoint.id, at)).collect();
        let mut tallies = vec![Tally::default(); self.fleet.endpoints.len()];
        let latest = Moment::now().micros() + (LEASE + PAUSE_MAX).as_micros() as u64;
        let (mut wrong, mut recorded_later, mut unheard) = (Vec::new(), 0, Vec::new());
        let none: [&str; 0] = [];
        let mut rows = admin.query_raw(DELIVERIES, none).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let event: Uuid = row.get(0);
            let at = endpoints[row.get::<_, &str>(1)];
            let (endpoint, tally) = (&self.fleet.endpoints[at], &mut tallies[at]);
            let kind = endpoint.kind;
            let mut complain = |why: &str| wrong.push(format!("{kind:?} {event}: {why}"));
            let Some(stored) = stored.get(&event) else {
                complain("no such event");
                continue;
            };
            let wanted = endpoint.history[stored.stretch].has(TYPES[stored.event_type]);
            if stored.org != endpoint.org || wanted == Some(false) {
                complain("it was not wanted");
            }
            tally.surely += u64::from(wanted == Some(true));
            let fate = self.inbox(endpoint).fate(event).unwrap_or_default();
            let status: i16 = row.get(2);
            match status {
                DELIVERED => {
                    tally.delivered += 1;
                    if fate.good == 0 {
                        complain("delivered, and the receiver never said yes");
                    }
                    if fate.requests == 1
                        && self.wrong_at(fate.good_at, Duration::ZERO).is_some_and(|why| why.contains("Postgres"))
                    {
                        recorded_later += 1;
                    }
                }
                PENDING => {
                    tally.pending += 1;
                    if row.get::<_, i64>(3) as u64 > latest {
                        complain("pending, and not due for longer than a lease and a pause");
                    }
                    if endpoint.is_deleted {
                        complain("pending, and its endpoint is gone");
                    }
                }
                FAILED => tally.failed += 1,
                _ => complain("blocked"),
            }
            if status == DELIVERED && kind.takes(event) == Some(false) {
                complain("delivered, and its receiver never takes it");
            }
            // What a picky one refuses opens its circuit once nothing else comes, and what it takes waits behind that.
            let is_drained = self.is_drained && kind != Kind::Picky;
            if status != DELIVERED && kind.takes(event) == Some(true) && (status == FAILED || is_drained) {
                complain(&format!("status {status}, and its receiver takes it; {fate:?}"));
            }
            let is_cut = !is_drained && self.wrong_at(fate.good_at, RECORDED_WITHIN).is_some();
            if status != DELIVERED && fate.good > 0 && !is_cut && !endpoint.is_deleted {
                // One may be under way where nobody waited for the last.
                let ended = fate.requests - u32::from(!self.is_drained);
                unheard.push((endpoint, event, ended, format!("status {status}, and the receiver said yes; {fate:?}")));
            }
        }
        drop(rows);
        // A yes that did not arrive in time is none to the server.
        unheard.retain(|(endpoint, event, ended, _)| !are_recorded(admin, endpoint, *event, *ended));
        wrong
            .extend(unheard.into_iter().map(|(endpoint, event, _, why)| format!("{:?} {event}: {why}", endpoint.kind)));
        self.site.paths.note("answered while Postgres was away, sent once", recorded_later);
        self.fault(&wrong, "deliveries are not what their receivers say");
        tallies
    }

    /// Each event has its delivery for each endpoint that wanted it, and the tables agree.
    fn owed(&mut self, stored: &HashMap<Uuid, Stored>, tallies: &[Tally]) {
        let mut posted: HashMap<(usize, usize, usize), u64> = HashMap::new();
        for event in stored.values() {
            *posted.entry((event.org, event.stretch, event.event_type)).or_default() += 1;
        }
        let mut wrong = Vec::new();
        let (mut owed_in_all, mut unsure) = (0, 0);
        let mut kinds: BTreeMap<Kind, Tally> = BTreeMap::new();
        for (endpoint, tally) in self.fleet.endpoints.iter().zip(tallies) {
            let owed = |wanted: Option<bool>| -> u64 {
                let of_org = posted.iter().filter(|((org, ..), _)| *org == endpoint.org);
                let has = |stretch: usize, event_type: usize| {
                    endpoint.history.get(stretch).copied().unwrap_or(Wants::Nothing).has(TYPES[event_type]) == wanted
                };
                of_org.filter(|((_, stretch, kind), _)| has(*stretch, *kind)).map(|(_, times)| times).sum()
            };
            owed_in_all += owed(Some(true));
            unsure += tally.pending + tally.delivered + tally.failed - tally.surely;
            if owed(Some(true)) != tally.surely {
                wrong.push(format!("{:?} {}: {} owed, {tally:?}", endpoint.kind, endpoint.id, owed(Some(true))));
            }
            let sum = kinds.entry(endpoint.kind).or_default();
            sum.pending += tally.pending;
            sum.delivered += tally.delivered;
            sum.failed += tally.failed;
        }
        println!(
            "{owed_in_all} deliveries owed for certain, {unsure} more of moments in which an endpoint was changed"
        );
        println!("  {:<16}{:>12}{:>12}{:>12}", "", "delivered", "failed", "pending");
        for (kind, Tally { pending, delivered, failed, .. }) in kinds {
            println!("  {:<16}{delivered:>12}{failed:>12}{pending:>12}", kind.name());
        }
        self.fault(&wrong, "endpoints have other deliveries than they are owed");
        let mut admin = self.site.admin();
        let mut none = |what: &str, sql: &str| {
            let count: i64 = admin.query_one(&format!("SELECT count(*) FROM ({sql}) AS wrong"), &[]).unwrap().get(0);
            if count > 0 {
                self.faults.push(format!("{count}: {what}"));
            }
        };
        none(
            "events with several deliveries for one endpoint",
            "SELECT FROM deliveries GROUP BY event_id, endpoint_id HAVING count(*) > 1",
        );
        none(
            "rows in which the queue and the deliveries do not agree",
            "SELECT FROM deliveries FULL JOIN delivery_queue ON delivery_id = id
            WHERE (status = 0) IS DISTINCT FROM (delivery_id IS NOT NULL)",
        );
        none(
            "failed without a reason",
            "SELECT FROM deliveries AS failed JOIN endpoints ON endpoints.id = endpoint_id WHERE status = 2
            AND NOT (attempts_made = 1 AND first_at IS NOT NULL
                AND (first_error IS NOT NULL OR first_status_code NOT BETWEEN 200 AND 299))
            AND NOT EXISTS (SELECT FROM delivery_attempts WHERE delivery_id = failed.id AND number = attempts_made
                AND (error IS NOT NULL OR status_code NOT BETWEEN 200 AND 299))",
        );
    }

    /// Every request was of an event that was posted for its endpoint, was signed, and said what was posted.
    fn requests(&mut self, stored: &HashMap<Uuid, Stored>) {
        let (mut wrong, mut requests, mut yes) = (Vec::new(), 0_u64, 0_u64);
        for endpoint in &self.fleet.endpoints {
            let inbox = self.inbox(endpoint);
            wrong.extend(inbox.wrong());
            for (id, fate) in inbox.fates() {
                requests += u64::from(fate.requests);
                yes += u64::from(fate.good);
                let is_told = match self.log.told(fate.number) {
                    Some(Told::Accepted(told)) => told == id.to_string(),
                    Some(Told::Nothing) => true,
                    _ => false,
                };
                if !is_told || !stored.contains_key(&id) {
                    wrong.push(format!("{:?} {id}: {fate:?}, which nobody posted", endpoint.kind));
                }
            }
        }
        println!(
            "{requests} requests that were read, each checked: signature, id, body; {yes} of them answered with a 2xx"
        );
        self.fault(&wrong, "requests are not what was posted");
        let in_silence: u64 = self.fleet.endpoints.iter().map(|endpoint| self.inbox(endpoint).in_silence()).sum();
        // No fault: a server goes on for a third of a lease after its first result that cannot be recorded, which may come late.
        println!("{in_silence} came when nothing had been recorded for more than a third of a lease");
        if self.fleet.trap.count() > 0 {
            self.faults.push(format!("{} redirects were followed", self.fleet.trap.count()));
        }
    }

    /// What was sent again after its yes, by cause. Whatever kept the yes from being recorded, nobody else may send while the
    /// lease lasts, which did not begin before the event was accepted.
    fn duplicates(&mut self, admin: &mut Client) {
        let (mut causes, mut without) = (BTreeMap::<&str, u64>::new(), Vec::new());
        for endpoint in &self.fleet.endpoints {
            for again in self.inbox(endpoint).again() {
                let Again { event, accepted_at, answered_at, at } = again;
                let requests = self.inbox(endpoint).fate(event).map_or(0, |fate| fate.requests);
                let has_lapsed = at + CLOCK_TOLERANCE >= accepted_at + LEASE.as_micros() as u64;
                if are_recorded(admin, endpoint, event, requests)
                    || is_recorded_late(admin, endpoint, event, answered_at)
                {
                    *causes.entry("the answer did not arrive in time, as is recorded").or_default() += 1;
                } else if let Some(fault) = self.wrong_at(answered_at, RECORDED_WITHIN).filter(|_| has_lapsed) {
                    *causes.entry(fault).or_default() += 1;
                } else {
                    let after = |from| Duration::from_micros(at - from);
                    without.push(format!(
                        "{:?} {event}: again {:?} after it was accepted and {:?} after its yes, at {answered_at}, {:?}",
                        endpoint.kind,
                        after(accepted_at),
                        after(answered_at),
                        self.wrong_at(answered_at, RECORDED_WITHIN)
                    ));
                }
            }
            for at in self.inbox(endpoint).too_early() {
                if self.wrong_at(at, LEASE).is_none() {
                    without.push(format!("{:?}: asked before its Retry-After was over, at {at}", endpoint.kind));
                }
            }
        }
        println!("sent again after a yes, by what was wrong when it was given or within {RECORDED_WITHIN:?} of that:");
        for (cause, times) in &causes {
            println!("  {cause:<52}{times:>8}");
        }
        let wrong: u64 = self.site.wrong.iter().map(|(from, until, _)| until - from).sum();
        let all = Moment::now().micros() - self.fleet.stretches[0].0;
        println!("  something was wrong for {} of {} s", wrong / 1_000_000, all / 1_000_000);
        self.fault(&without, "sent again without a cause");
        self.site.paths.note("sent again after a yes", causes.values().sum());
    }

    /// What was wrong at that moment, or soon after.
    fn wrong_at(&self, at: u64, soon: Duration) -> Option<&'static str> {
        let until = at + soon.as_micros() as u64;
        let wrong = self.site.wrong.iter().find(|(from, ended, _)| *from <= until && at <= *ended);
        wrong.map(|(.., fault)| *fault)
    }

    fn inbox(&self, endpoint: &Endpoint) -> &Inbox {
        &self.fleet.listeners[endpoint.listener].inbox
    }

    /// Why attempts failed, kind by kind.
    fn reasons(&mut self, admin: &mut Client) {
        const REASONS: &str = "
            SELECT endpoint_id::text, reason, sum(times)::bigint FROM (
                SELECT endpoint_id, COALESCE(first_error, first_status_code::text) AS reason, count(*) AS times
                FROM deliveries WHERE first_at IS NOT NULL GROUP BY 1, 2
                UNION ALL
                SELECT endpoint_id, COALESCE(error, status_code::text), count(*)
                FROM delivery_attempts JOIN deliveries ON id = delivery_id GROUP BY 1, 2
            ) AS all_of_them GROUP BY 1, 2";
        let kinds: HashMap<&str, Kind> =
            self.fleet.endpoints.iter().map(|endpoint| (&*endpoint.id, endpoint.kind)).collect();
        let mut reasons: BTreeMap<Kind, BTreeMap<String, i64>> = BTreeMap::new();
        for row in admin.query(REASONS, &[]).unwrap() {
            let of_kind = reasons.entry(kinds[row.get::<_, &str>(0)]).or_default();
            *of_kind.entry(row.get(1)).or_default() += row.get::<_, i64>(2);
        }
        println!("what came of attempts:");
        let mut wrong = Vec::new();
        for (kind, of_kind) in &reasons {
            let mut sorted: Vec<_> = of_kind.iter().map(|(reason, times)| (*times, reason.as_str())).collect();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let text: Vec<String> = sorted.iter().map(|(times, reason)| format!("{reason} {times}")).collect();
            println!("  {:<16}{}", kind.name(), text.join(", "));
            // On a busy machine many attempts end before the receiver has shown what it is.
            let is_shown = |given: &str, reason| given == reason || !["timeout", "connect_timeout"].contains(&given);
            let most = |reason| sorted.iter().find(|(_, given)| is_shown(given, reason)).map(|(_, given)| *given);
            if kind.reason().is_some_and(|reason| most(reason) != Some(reason)) {
                wrong.push(format!("{kind:?}: {}", text.join(", ")));
            }
        }
        self.fault(&wrong, "attempts fail for other reasons than their receivers give");
    }

    /// How many attempts each kind had in the stretches of each fault.
    fn by_fault(&mut self, admin: &mut Client) {
        const ATTEMPTS: &str = "
            SELECT endpoint_id::text, width_bucket(extract(epoch FROM at)::float8, $1), count(*) FROM (
                SELECT endpoint_id, first_at AS at FROM deliveries WHERE first_at IS NOT NULL
                UNION ALL
                SELECT endpoint_id, at FROM delivery_attempts JOIN deliveries ON id = delivery_id
            ) AS attempts GROUP BY 1, 2";
        let kinds: HashMap<&str, Kind> =
            self.fleet.endpoints.iter().map(|endpoint| (&*endpoint.id, endpoint.kind)).collect();
        let begun: Vec<f64> = self.fleet.stretches.iter().map(|(at, _)| *at as f64 / 1e6).collect();
        for row in admin.query(ATTEMPTS, &[&begun]).unwrap() {
            let stretch = row.get::<_, i32>(1) as usize - 1;
            let (kind, fault) = (kinds[row.get::<_, &str>(0)].name(), self.fleet.stretches[stretch].1);
            self.site.paths.struck_often(fault, &kind, row.get::<_, i64>(2) as u64);
        }
        let retried: i64 = admin.query_one("SELECT count(*) FROM delivery_attempts", &[]).unwrap().get(0);
        self.site.paths.note("attempts kept beside their deliveries", retried as u64);
    }

    /// Nobody who asked for a pace got more.
    fn pace(&mut self, admin: &mut Client) {
        const BEHIND: &str = "
            SELECT count(*), count(*) FILTER (WHERE first_at - event_received_at > interval '1 s'),
                (extract(epoch FROM max(first_at) - min(first_at)))::float8
            FROM deliveries WHERE endpoint_id::text = $1 AND first_at IS NOT NULL";
        let paced = self.fleet.endpoints.iter().find(|endpoint| endpoint.kind == Kind::Paced).expect("there is one");
        let row = admin.query_one(BEHIND, &[&paced.id]).unwrap();
        let (all, behind, seconds): (i64, i64, Option<f64>) = (row.get(0), row.get(1), row.get(2));
        self.site.paths.note("held back for their receiver's pace, or by an outage", behind as u64);
        // Each server keeps it for itself, and a new one begins with a full second's.
        let most = (2.0 * seconds.unwrap_or_default() + 2.0 * self.site.lives as f64 + 2.0) * PACE as f64;
        println!(
            "paced: {all} attempts at first in {:.0} s, {behind} of them more than a second late",
            seconds.unwrap_or_default()
        );
        if all as f64 > most {
            self.faults.push(format!("{all} attempts of who wants {PACE} a second from each server"));
        }
    }

    /// The API says what the database says.
    fn api(&mut self, admin: &mut Client) {
        let sql =
            format!("SELECT event_id, endpoint_id::text, status FROM deliveries ORDER BY random() LIMIT {SAMPLES}");
        let orgs: HashMap<&str, usize> =
            self.fleet.endpoints.iter().map(|endpoint| (&*endpoint.id, endpoint.org)).collect();
        let mut wrong = Vec::new();
        for (at, row) in admin.query(&sql, &[]).unwrap().iter().enumerate() {
            let (event, endpoint, status): (Uuid, &str, i16) = (row.get(0), row.get(1), row.get(2));
            let path = format!("/api/events/{event}/deliveries");
            let shown = self.site.call(at, "GET", &path, &self.tenants[orgs[endpoint]].key, None).json();
            let shown = shown["data"].as_array().and_then(|all| all.iter().find(|one| one["endpoint_id"] == endpoint));
            let shown = shown.map_or("nothing", |one| one["status"].as_str().unwrap_or_default()).to_owned();
            // What is under way may be over by now.
            if status != PENDING && shown != ["pending", "delivered", "failed", "blocked"][status as usize] {
                wrong.push(format!("{event} for {endpoint}: {status} in the database, shown as {shown}"));
            }
        }
        self.fault(&wrong, "deliveries that the API shows otherwise");
    }
}

/// Whether an attempt that began within a few times its timeout before this yes is recorded as one that timed out.
fn is_recorded_late(admin: &mut Client, endpoint: &Endpoint, event: Uuid, answered_at: u64) -> bool {
    const LATE: &str = "
        WITH delivery AS (SELECT * FROM deliveries WHERE event_id = $1 AND endpoint_id::text = $2), attempts AS (
            SELECT first_at AS at, first_error AS error FROM delivery
            UNION ALL
            SELECT at, error FROM delivery_attempts WHERE delivery_id = (SELECT id FROM delivery)
        )
        SELECT EXISTS (SELECT 1 FROM attempts WHERE error LIKE 'timeout%'
            AND (extract(epoch FROM at) * 1000000)::bigint BETWEEN $3 AND $4)";
    let (answered_at, longest) = (answered_at as i64, 4 * TIMEOUT.as_micros() as i64);
    let params: [&(dyn ToSql + Sync); 4] = [&event, &endpoint.id, &(answered_at - longest), &(answered_at + 1_000_000)];
    admin.query_one(LATE, &params).unwrap().get(0)
}

/// Whether as many attempts are recorded as there were requests: then each but the last is recorded as failed, because its
/// yes did not arrive, or not in time. Attempts that reached nobody do not count.
fn are_recorded(admin: &mut Client, endpoint: &Endpoint, event: Uuid, requests: u32) -> bool {
    const RECORDED: &str = "
        SELECT (first_at IS NOT NULL AND COALESCE(first_error, '') NOT LIKE 'connect\\_%')::integer::bigint
            + (SELECT count(*) FROM delivery_attempts
                WHERE delivery_id = id AND COALESCE(error, '') NOT LIKE 'connect\\_%')
        FROM deliveries WHERE event_id = $1 AND endpoint_id::text = $2";
    let recorded: Option<i64> = admin.query_opt(RECORDED, &[&event, &endpoint.id]).unwrap().map(|row| row.get(0));
    recorded.is_some_and(|recorded| recorded >= i64::from(requests))
}
