//! What a client is told when the journal's disk fails.

use libc::{EIO, ENOSPC};

use support::in_process::InProcess;
use support::server::{Response, eventually};

use crate::journal::errors::faulty_disk::{Fault, Kind, Of};
use crate::journal::errors::fixture::{SHARDS, Shards, config};

const IO_FAILURES: &str = r#"journal_failures_total{reason="io"}"#;
const NO_SPACE_FAILURES: &str = r#"journal_failures_total{reason="no_space"}"#;

fn expect_unavailable(answer: Option<&Response>) {
    let answer = answer.expect("a refusal, not silence");
    assert_eq!((answer.status, answer.code().as_str()), (503, "journal_unavailable"));
    assert!(answer.headers["retry-after"].parse::<u32>().unwrap() >= 1);
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_acknowledged() {
    let surroundings = InProcess::new(SHARDS);
    for (kind, nth) in [(Kind::Write, 1), (Kind::Write, 2), (Kind::Write, 6), (Kind::Sync, 1), (Kind::Sync, 5)] {
        // Only once: a second attempt would succeed, and would prove nothing about what the first left undone.
        let fault = Fault { kind, of: Of::InUse, nth, lasts: false, errno: EIO };
        let mut shards = Shards::start(&surroundings, Some(fault));
        (1..nth).for_each(|_| assert_eq!(shards.post(0, 10), 202));
        assert!(!shards.journal.has_failed());
        assert_eq!(shards.post(0, 10), 0, "{fault:?}: nobody knows whether it is stored");
        assert!(shards.journal.has_failed());
        for _ in 0..3 {
            expect_unavailable(shards.try_post(0, 10).as_ref());
            expect_unavailable(shards.try_post(1, 10).as_ref());
        }
        let payload = shards.told.payload(10);
        let answer = shards.connect(0).exchange(&shards.batch(&[&payload]));
        expect_unavailable(Some(&answer));
        shards.told.note(payload, Some(&answer));
        assert_eq!((shards.metric(IO_FAILURES), shards.metric(NO_SPACE_FAILURES)), (1.0, 0.0));
        assert_eq!(shards.accepted.slots.events(), shards.told.accepted.len(), "slots of the others are free");
        assert_eq!(shards.check().lost, 0, "{fault:?}");
    }
}

#[test]
fn a_failing_group_is_unanswered_and_those_behind_are_refused() {
    let surroundings = InProcess::new(SHARDS);
    let fault = Fault { kind: Kind::Sync, of: Of::InUse, nth: 1, lasts: false, errno: EIO };
    let mut shards = Shards::start(&surroundings, Some(fault));
    // The key is known to the shard before anything is held up.
    shards.disk.hold();
    let mut in_flight = shards.connect(0);
    let payload = shards.told.payload(10);
    in_flight.send(&shards.request(&payload));
    eventually("its group is being synchronised", || shards.disk.waiting() == 1);
    let mut behind = Vec::new();
    for _ in 0..3 {
        let (mut client, payload) = (shards.connect(0), shards.told.payload(10));
        client.send(&shards.request(&payload));
        behind.push((client, payload));
    }
    let (mut batch, payloads) = (shards.connect(0), [shards.told.payload(10), shards.told.payload(10)]);
    batch.send(&shards.batch(&[&payloads[0], &payloads[1]]));
    eventually("all are appended", || shards.accepted.slots.events() == 1 + 3 + 2);
    shards.disk.let_go();
    assert!(in_flight.try_receive(false).is_none(), "nobody knows whether it is stored");
    for (mut client, payload) in behind {
        let answer = client.try_receive(false);
        expect_unavailable(answer.as_ref());
        assert!(client.is_closed());
        shards.told.note(payload, answer.as_ref());
    }
    let answer = batch.try_receive(false);
    expect_unavailable(answer.as_ref());
    shards.told.refused.extend(payloads);
    assert_eq!(shards.accepted.slots.events(), 0);
    shards.check();
}

#[test]
fn a_batch_on_its_way_to_a_failing_disk_gets_no_answer() {
    let surroundings = InProcess::new(SHARDS);
    let fault = Fault { kind: Kind::Write, of: Of::InUse, nth: 1, lasts: false, errno: EIO };
    let mut shards = Shards::start(&surroundings, Some(fault));
    let payloads = [shards.told.payload(10), shards.told.payload(10)];
    let mut client = shards.connect(0);
    client.send(&shards.batch(&[&payloads[0], &payloads[1]]));
    assert!(client.try_receive(false).is_none());
    expect_unavailable(shards.try_post(0, 10).as_ref());
    shards.check();
}

#[test]
fn events_are_refused_while_no_segment_can_be_made() {
    let surroundings = InProcess::new(SHARDS);
    for (kind, of, errno) in [
        (Kind::Create, Of::Making, ENOSPC),
        (Kind::Allocate, Of::Making, ENOSPC),
        (Kind::Write, Of::Making, ENOSPC),
        (Kind::Sync, Of::Making, ENOSPC),
        (Kind::Create, Of::Making, EIO),
        (Kind::Sync, Of::Making, EIO),
        (Kind::Rename, Of::Making, EIO),
        (Kind::SyncDirectory, Of::Any, EIO),
    ] {
        let fault = Fault { kind, of, nth: 1, lasts: true, errno };
        let mut shards = Shards::start(&surroundings, Some(fault));
        for _ in 0..3 {
            expect_unavailable(shards.try_post(0, 10).as_ref());
        }
        let counted = shards.metric(if errno == ENOSPC { NO_SPACE_FAILURES } else { IO_FAILURES });
        assert!(counted >= 1.0, "{fault:?}");
        shards.disk.mend();
        for shard in 0..SHARDS {
            eventually("events are accepted again", || shards.post(shard, 10) == 202);
        }
        assert!(!shards.journal.has_failed(), "{fault:?}");
        assert_eq!(shards.check().lost, 0, "{fault:?}");
    }
}

#[test]
fn the_refusal_names_the_reason_the_disk_gave() {
    use libc::{EACCES, EINVAL, EMFILE, ENOSYS, EPERM, EROFS};
    let surroundings = InProcess::new(SHARDS);
    for (kind, errno, label, words) in [
        (Kind::Create, EACCES, "permission", "may not write its journal"),
        (Kind::Create, EROFS, "permission", "may not write its journal"),
        (Kind::Sync, EPERM, "permission", "may not write its journal"),
        (Kind::Allocate, ENOSYS, "unsupported", "refuses an operation"),
        (Kind::Sync, ENOSYS, "unsupported", "refuses an operation"),
        (Kind::Sync, EINVAL, "unsupported", "refuses an operation"),
        (Kind::Create, EMFILE, "descriptors", "no file descriptor"),
        (Kind::Write, ENOSPC, "no_space", "disk is full"),
        (Kind::Write, EIO, "io", "refuses a new segment"),
    ] {
        let fault = Fault { kind, of: Of::Making, nth: 1, lasts: true, errno };
        let mut shards = Shards::start(&surroundings, Some(fault));
        // Without an event that finds it out.
        eventually("the journal is closed", || shards.journal.closed().is_some());
        assert!(shards.journal.closed().unwrap().reason().contains(words), "{fault:?}: {:?}", shards.journal.closed());
        let answer = shards.try_post(0, 10);
        expect_unavailable(answer.as_ref());
        let detail = answer.unwrap().json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{fault:?}: {detail}");
        assert_eq!(detail.contains("full"), errno == ENOSPC, "{detail}");
        assert!(shards.metric(&format!(r#"journal_failures_total{{reason="{label}"}}"#)) >= 1.0, "{fault:?}");
        shards.disk.mend();
        eventually("events are accepted again", || shards.post(0, 10) == 202);
        assert_eq!(shards.check().lost, 0, "{fault:?}");
    }
}

#[test]
fn segments_that_cannot_be_deleted_are_counted_until_they_are() {
    let surroundings = InProcess::new(SHARDS);
    let mut shards = Shards::start(&surroundings, None);
    for _ in 0..12 {
        assert_eq!(shards.post(0, 150_000), 202);
    }
    shards.disk.fail(Fault { kind: Kind::Remove, of: Of::Any, nth: 1, lasts: true, errno: EIO });
    shards.store();
    // Three to a segment: of the first four one is kept for the next.
    eventually("deleting fails", || shards.disk.failed() >= 3);
    let counted = shards.metric(IO_FAILURES);
    assert!((1.0..=4.0).contains(&counted), "once each: {counted}");
    assert!(shards.segments() > 2);
    eventually("all are in the books", || shards.metric("journal_segments") as usize == shards.segments());
    shards.disk.mend();
    eventually("they are deleted", || shards.segments() <= 2);
    eventually("the gauge follows", || shards.metric("journal_segments") <= 2.0);
    shards.check();
}

#[test]
fn a_disk_that_fills_up_later_refuses_beyond_the_last_segment() {
    let surroundings = InProcess::new(SHARDS);
    // One segment, and no more.
    let fault = Fault { kind: Kind::Allocate, of: Of::Making, nth: 2, lasts: true, errno: ENOSPC };
    let mut shards = Shards::start(&surroundings, Some(fault));
    let mut accepted = 0;
    let refusal = loop {
        match shards.try_post(0, 150_000) {
            Some(answer) if answer.status == 202 => accepted += 1,
            answer => break answer,
        }
    };
    expect_unavailable(refusal.as_ref());
    assert_eq!(accepted, 3);
    expect_unavailable(shards.try_post(1, 10).as_ref());
    shards.disk.mend();
    eventually("events are accepted again", || shards.post(0, 10) == 202);
    assert_eq!(shards.check().lost, 0, "what was refused is not missing");
}

#[test]
fn a_write_to_a_full_disk_costs_only_its_group() {
    let surroundings = InProcess::new(SHARDS);
    for kind in [Kind::Write, Kind::Sync] {
        let fault = Fault { kind, of: Of::InUse, nth: 2, lasts: false, errno: ENOSPC };
        let mut shards = Shards::start(&surroundings, Some(fault));
        assert_eq!([10, 9000, 10, 10].map(|len| shards.post(0, len)), [202, 0, 202, 202]);
        assert!(!shards.journal.has_failed());
        assert_eq!((shards.metric(IO_FAILURES), shards.metric(NO_SPACE_FAILURES)), (0.0, 1.0));
        assert_eq!(shards.check().lost, 0, "what nobody was promised is not missing");
    }
}

#[test]
fn of_pipelined_requests_none_behind_a_refused_one_is_answered() {
    let surroundings = InProcess::new(SHARDS);
    let fault = Fault { kind: Kind::Create, of: Of::Making, nth: 2, lasts: true, errno: ENOSPC };
    let mut shards = Shards::start(&surroundings, Some(fault));
    // 127 blocks are for events; these leave one.
    assert_eq!([250_000, 250_000].map(|len| shards.post(0, len)), [202, 202]);
    let mut client = shards.connect(0);
    let payload = shards.told.payload(7700);
    let answer = client.exchange(&shards.request(&payload));
    assert_eq!(shards.told.note(payload, Some(&answer)), 202);
    // Two do not fit into a block, and there is no other segment. The request before made the connection read this much
    // at once, so that all three are appended together.
    let payloads = [0; 3].map(|_| shards.told.payload(2100));
    client.send(&payloads.clone().map(|payload| shards.request(&payload)).concat());
    let [first, second, third] = payloads;
    let answer = client.try_receive(false);
    assert_eq!(shards.told.note(first, answer.as_ref()), 202);
    let answer = client.try_receive(false);
    expect_unavailable(answer.as_ref());
    assert_eq!(answer.as_ref().unwrap().headers["connection"], "close");
    shards.told.note(second, answer.as_ref());
    assert!(client.is_closed(), "the third gets no answer");
    shards.told.refused.push(third);
    shards.check();
}

#[test]
fn a_full_journal_is_a_full_queue_until_the_database_catches_up() {
    let surroundings = InProcess::new(SHARDS);
    let bytes_max = config().segment_bytes * 2 * SHARDS as u64;
    let config = millrace_journal::JournalConfig { bytes_max, ..config() };
    let mut shards = Shards::start_with(&surroundings, None, config, 1000);
    let refusal = loop {
        match shards.try_post(0, 150_000) {
            Some(answer) if answer.status == 202 => {}
            answer => break answer.expect("a refusal, not silence"),
        }
    };
    assert_eq!((refusal.status, refusal.code().as_str()), (429, "queue_full"));
    assert!(refusal.headers["retry-after"].parse::<u32>().unwrap() >= 1);
    shards.store();
    eventually("there is room again", || shards.post(0, 10) == 202);
    assert!(!shards.journal.has_failed());
    assert_eq!(shards.check().lost, 0, "what was refused is not missing");
}
