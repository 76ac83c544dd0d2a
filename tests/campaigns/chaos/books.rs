//! What must hold when everything is over: each event that got a 202 is stored once with its own bytes, or set aside;
//! and each stored event of the organisation with an endpoint has one delivery.

use postgres::Client;

use support::database::{LATE_POISON, POISON};
use support::load::Log;
use support::oracle::{Verdict, count, postgres_verdict};

use crate::chaos::site::Site;

/// The journal is empty by now (see `Site::settle`), so what was accepted is in the database.
pub fn balance(site: &mut Site, log: &Log) {
    let mut admin = site.admin();
    let Verdict { stored, lost, dup, phantom, changed } = postgres_verdict(&mut admin, log);
    let quarantined = count(&mut admin, "quarantined_events");
    println!(
        "accepted {}, of {} sent; {} unanswered, refused {:?}",
        log.accepted(),
        log.sent(),
        log.unanswered(),
        log.refusals()
    );
    println!(
        "{stored} rows: {} in events, {quarantined} in quarantine, 0 in the journal; {} of them accepted, {} unanswered",
        stored as i64 - quarantined,
        log.accepted() - lost.len(),
        stored + lost.len() - log.accepted()
    );
    println!("LOST {}, DUP {}, PHANTOM {}, altered {}", lost.len(), dup.len(), phantom.len(), changed.len());
    assert!(lost.is_empty(), "LOST: {lost:?}");
    assert!(dup.is_empty(), "DUP: {dup:?}");
    assert!(phantom.is_empty(), "PHANTOM: {phantom:?}");
    assert!(changed.is_empty(), "stored with another id or payload: {changed:?}");
    let poisoned = format!("SELECT count(*) FROM events WHERE type IN ('{POISON}', '{LATE_POISON}')");
    assert_eq!(admin.query_one(&poisoned, &[]).unwrap().get::<_, i64>(0), 0, "what the database refuses is in events");
    assert!(log.accepted() > 0 && quarantined > 0 && site.lives > 1, "nothing happened that mattered");
    deliveries(site, &mut admin);
}

fn deliveries(site: &Site, admin: &mut Client) {
    let mut number = |sql: &str| -> i64 { admin.query_one(sql, &[]).unwrap().get(0) };
    let hooked = &site.hooked.id;
    let owed = number(&format!("SELECT count(*) FROM events WHERE org_id = '{hooked}'"));
    let of_status = |status| format!("SELECT count(*) FROM deliveries WHERE status = {status}");
    let [pending, delivered, failed, blocked] = [0, 1, 2, 3].map(|status| number(&of_status(status)));
    let (arrived, good, bad) = site.inbox.counts();
    println!(
        "{owed} events of the organisation with an endpoint: {delivered} delivered, {pending} pending, {failed} failed; \
         {arrived} arrived, {good} requests answered with 200, {bad} badly"
    );
    let not_one = format!(
        "SELECT count(*) FROM (
            SELECT FROM events LEFT JOIN deliveries ON event_id = events.id WHERE events.org_id = '{hooked}'
            GROUP BY events.id HAVING count(deliveries.id) <> 1
        ) AS wrong"
    );
    assert_eq!(number(&not_one), 0, "events with no delivery, or several");
    assert_eq!(owed, delivered + pending, "a delivery vanished, failed or is of no stored event");
    assert_eq!((failed, blocked), (0, 0));
    // Nobody else's events were delivered, or stored as another's.
    assert_eq!(number(&format!("SELECT count(*) FROM deliveries WHERE org_id <> '{hooked}'")), 0);
    let strayed = format!("SELECT count(*) FROM events WHERE (type = 'hooked') <> (org_id = '{hooked}')");
    assert_eq!(number(&strayed), 0, "events of one organisation are stored for the other");
    // Whatever is pending is to be found, and nothing else is.
    let queue = "SELECT count(*) FROM deliveries FULL JOIN delivery_queue ON delivery_id = id
        WHERE (status = 0) IS DISTINCT FROM (delivery_id IS NOT NULL)";
    assert_eq!(number(queue), 0, "the queue of deliveries does not agree with them");
    let delivered = admin.query("SELECT event_id::text FROM deliveries WHERE status = 1", &[]).unwrap();
    let never = delivered.iter().filter(|row| !site.inbox.accepted(row.get(0))).count();
    assert_eq!(never, 0, "deliveries that the receiver never said yes to");
}
