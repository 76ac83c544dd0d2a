//! Lists whose filters leave out more than a page may look at: pages are short, or empty, and meet all the same.

use std::collections::HashSet;

use uuid::Uuid;

use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;
use millrace_store::webhooks::{DeliveryQuery, DeliveryStatus};
use millrace_store::{EventQuery, Store};

use crate::store::fixture::{Fixture, on_both_stores, org};

on_both_stores!(
    a_page_of_a_type_scans_a_bounded_number_of_events,
    a_page_of_deliveries_looks_at_so_many_and_the_next_goes_on,
);

const EVENTS: usize = 2 * limits::LIST_SCAN_ROWS_MAX + 5000;
const RARE_EVERY: usize = 9000;

/// Fills the list of an organisation: event n is one second after event n - 1.
fn fill_events(fixture: &Fixture, org: OrgId) {
    let hex = org.0.simple();
    fixture.sql(
        &format!(
            "SELECT events_ensure_day_v1('2024-05-01 00:00:00+00');
            INSERT INTO events (id, org_id, received_at, type, payload)
            SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, '{hex}',
                '2024-05-01 00:00:00+00'::timestamptz + n * interval '1 second',
                CASE WHEN n % {RARE_EVERY} = 0 THEN 'rare' ELSE 'usual' END, '1'
            FROM generate_series(1, {EVENTS}) AS n"
        ),
        &format!(
            "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {EVENTS})
            INSERT INTO events (id, org_id, received_at, type, payload)
            SELECT unhex(printf('00000000000070008000%012x', n)), unhex('{hex}'), 1714521600000000 + n * 1000000,
                CASE WHEN n % {RARE_EVERY} = 0 THEN 'rare' ELSE 'usual' END, '1'
            FROM numbers"
        ),
    );
}

/// The sizes of the pages of a type, and the ids of all of them.
fn walk(store: &dyn Store, org: OrgId, event_type: &str, limit: u32) -> (Vec<usize>, Vec<EventId>) {
    let (mut sizes, mut ids, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let query = EventQuery { event_type: Some(event_type.to_owned()), cursor, limit, ..EventQuery::default() };
        let (page, next) = store.events(org, &query).unwrap();
        assert!(page.iter().all(|event| event.event_type == event_type && event.payload == "1"));
        sizes.push(page.len());
        ids.extend(page.iter().map(|event| event.id));
        if next.is_none() {
            return (sizes, ids);
        }
        assert!(next < cursor || cursor.is_none(), "no page stands still");
        cursor = next;
    }
}

fn a_page_of_a_type_scans_a_bounded_number_of_events(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    fill_events(fixture, org);
    let (sizes, ids) = walk(&*store, org, "none", 100);
    assert_eq!((sizes, ids), (vec![0, 0, 0], vec![]));
    let id = |n: usize| EventId(Uuid::from_u128(0x7000_8000_0000_0000_0000 + n as u128));
    let rare: Vec<EventId> = (1..=EVENTS / RARE_EVERY).rev().map(|n| id(n * RARE_EVERY)).collect();
    assert_eq!(rare.len(), 5);
    let (sizes, ids) = walk(&*store, org, "rare", 100);
    // Three are among the newest 20,000, two among the next, none among the last 5000.
    assert_eq!((sizes, &ids), (vec![3, 2, 0], &rare));
    for limit in [1, 2, 3] {
        let (sizes, ids) = walk(&*store, org, "rare", limit);
        assert_eq!(ids, rare, "pages of {limit}");
        assert!(sizes.iter().all(|size| *size <= limit as usize));
    }
    // What is not rare fills its pages.
    let query = EventQuery { event_type: Some("usual".to_owned()), limit: 1000, ..EventQuery::default() };
    let (page, next) = store.events(org, &query).unwrap();
    assert_eq!((page.len(), next.is_some()), (1000, true));
}

const DELIVERIES: usize = limits::LIST_SCAN_ROWS_MAX + 1000;
/// Of each status, older than all the others, to another endpoint.
const FEW: usize = 3;

/// Fills the list of an organisation: of each status the few, then the many, and the ids of the statuses take turns.
fn fill_deliveries(fixture: &Fixture, org: OrgId, many: EndpointId, few: EndpointId) {
    let all = 4 * (DELIVERIES + FEW);
    let (org, many, few, oldest) = (org.0.simple(), many.0.simple(), few.0.simple(), 4 * FEW);
    fixture.sql(
        &format!(
            "CREATE TEMP TABLE made AS
            SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id, (n % 4)::smallint AS status,
                CASE WHEN n < {oldest} THEN '{few}' ELSE '{many}' END::uuid AS endpoint_id
            FROM generate_series(0, {all} - 1) AS n;
            INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, status, next_attempt_at)
            SELECT id, id, endpoint_id, '{org}', now(), status, CASE WHEN status = 0 THEN now() END FROM made;
            INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
            SELECT '{org}', id, endpoint_id, now() FROM made WHERE status = 0;
            INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
            SELECT '{org}', status, id, endpoint_id FROM made WHERE status IN (2, 3)"
        ),
        &format!(
            "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {all} - 1)
            INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, status, next_attempt_at)
            SELECT unhex(printf('00000000000070008000%012x', n)), unhex(printf('00000000000070008000%012x', n)),
                unhex(CASE WHEN n < {oldest} THEN '{few}' ELSE '{many}' END), unhex('{org}'), 1, n % 4,
                CASE WHEN n % 4 = 0 THEN 1 END
            FROM numbers"
        ),
    );
}

fn a_page_of_deliveries_looks_at_so_many_and_the_next_goes_on(fixture: &Fixture) {
    let store = fixture.migrated();
    let org = org();
    let (many, few) = (EndpointId(Uuid::now_v7()), EndpointId(Uuid::now_v7()));
    fill_deliveries(fixture, org, many, few);
    let statuses = DeliveryStatus::ALL.into_iter().map(Some).chain([None]);
    for status in statuses {
        let (mut pages, mut seen, mut cursor) = (0, Vec::new(), None);
        loop {
            let query = DeliveryQuery { status, endpoint: Some(few), cursor, limit: 100 };
            let (page, next) = store.deliveries(org, &query).unwrap();
            assert!(page.iter().all(|record| record.delivery.endpoint == few));
            seen.extend(page.iter().map(|record| (record.delivery.id, record.delivery.status)));
            pages += 1;
            if next.is_none() {
                break;
            }
            assert!(next < cursor || cursor.is_none(), "no page stands still");
            cursor = next;
        }
        assert!(pages > 1, "{status:?}: one page looked at everything");
        assert!(seen.is_sorted_by(|newer, older| newer.0 > older.0));
        let expected = if status.is_some() { FEW } else { 4 * FEW };
        assert_eq!(seen.len(), expected, "{status:?}");
        assert!(seen.iter().all(|(_, came)| status.is_none_or(|status| status == *came)));
        assert_eq!(seen.iter().map(|(id, _)| *id).collect::<HashSet<DeliveryId>>().len(), expected);
    }
    let query = DeliveryQuery { status: None, endpoint: None, cursor: None, limit: 1000 };
    let (page, next) = store.deliveries(org, &query).unwrap();
    assert_eq!((page.len(), next), (1000, page.last().map(|record| record.delivery.id)));
}
