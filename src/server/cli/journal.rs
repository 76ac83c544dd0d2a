//! `millrace journal`: shows what the journal on disk holds, for an operator who looks for lost events.
//!
//! It reads files only, without a configuration, a database or a lock, and works beside a running server. [`survey`] says how
//! it avoids taking a file that is being written for a damaged one.

mod survey;

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use millrace_base::clock::Timestamp;
use millrace_base::event::Event;
use millrace_journal::held_list::HeldList;

use super::failure::Failure;
use super::output::{show, show_json, table};
use survey::{Directory, Survey, Surveyed};

/// Most held events that are shown; JSON has them all.
const HELD_SHOWN_MAX: usize = 20;
/// Bytes of exported lines written at a time.
const EXPORT_BUFFER_BYTES: usize = 256 * 1024;

#[derive(Args)]
#[command(after_help = "\
Examples:
  millrace journal inspect ./millrace-data
  millrace journal verify ./millrace-data || echo damaged
  millrace journal export ./millrace-data > events.ndjson

DIR is a server's data directory, or a journal directory itself. Nothing is changed and nothing is locked: the server
may be running. Exit code 65 where verify or export found damage, 1 where something could not be read.")]
pub struct Journal {
    #[command(subcommand)]
    command: JournalCommand,
}

#[derive(Subcommand)]
enum JournalCommand {
    /// Show each segment, and the oldest event that may not be in the database yet
    Inspect(Looked),
    /// Show only what is wrong: file, offset, bytes, events lost
    ///
    /// Exit code 0 where the journal is sound, 65 where it is damaged, 1 where something could not be read. Looks into
    /// segments that an earlier start kept aside as `.damaged`, too; remove those once they are understood.
    Verify(Looked),
    /// Write every event that can be read as a line of JSON
    ///
    /// `{"id","org_id","type","dedup_id","payload","received_at"}`; payloads are as they were sent, but for line breaks
    /// between their values, which become spaces. Some of the events may be in the database already. Those in files
    /// that were kept aside as `.damaged` are, and are left out. Exit code 65 where damage kept events out.
    Export {
        /// A server's data directory, or a journal directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Looked {
    /// A server's data directory, or a journal directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(journal: Journal) -> Result<(), Failure> {
    match journal.command {
        JournalCommand::Inspect(Looked { directory, json }) => inspect(&Directory::find(&directory)?, json),
        JournalCommand::Verify(Looked { directory, json }) => verify(&Directory::find(&directory)?, json),
        JournalCommand::Export { directory } => export(&Directory::find(&directory)?),
    }
}

// ---- inspect -----------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct InspectedJson<'a> {
    directory: String,
    segments: Vec<SegmentJson<'a>>,
    kept_aside: Vec<SegmentJson<'a>>,
    foreign: &'a [String],
    held: &'a HeldList,
    events: u64,
    spilled: u64,
    bytes_used: u64,
    bytes: u64,
    events_lost: u64,
    oldest: Option<String>,
    newest: Option<String>,
}

#[derive(Serialize)]
struct SegmentJson<'a> {
    file: &'a str,
    created_at: Option<String>,
    events: u64,
    spilled: u64,
    bytes_used: u64,
    bytes: u64,
    oldest: Option<String>,
    newest: Option<String>,
    torn_tail: Option<u64>,
    damage: Vec<DamageJson<'a>>,
}

#[derive(Serialize)]
struct DamageJson<'a> {
    file: &'a str,
    offset: u64,
    bytes: u64,
    events_lost: u64,
    what: &'a str,
}

/// Sums over the segments; files that were kept aside are not counted.
struct Totals {
    segments: usize,
    events: u64,
    spilled: u64,
    bytes_used: u64,
    bytes: u64,
    oldest: Option<Timestamp>,
    newest: Option<Timestamp>,
}

impl Totals {
    fn of(survey: &Survey) -> Self {
        let segments: Vec<_> = survey.segments().map(|file| &file.report).collect();
        Self {
            segments: segments.len(),
            events: segments.iter().map(|report| report.records).sum(),
            spilled: segments.iter().map(|report| report.spilled).sum(),
            bytes_used: segments.iter().map(|report| report.used_bytes).sum(),
            bytes: segments.iter().map(|report| report.file_bytes).sum(),
            oldest: segments.iter().filter_map(|report| report.oldest).min(),
            newest: segments.iter().filter_map(|report| report.newest).max(),
        }
    }
}

fn inspect(directory: &Directory, json: bool) -> Result<(), Failure> {
    let survey = directory.survey(&mut |_| ControlFlow::Continue(()))?;
    let totals = Totals::of(&survey);
    if json {
        show_json(&InspectedJson {
            directory: directory.path().display().to_string(),
            segments: survey.segments().map(segment_json).collect(),
            kept_aside: survey.files.iter().filter(|file| file.is_kept_aside).map(segment_json).collect(),
            foreign: &survey.foreign,
            held: &survey.held,
            events: totals.events,
            spilled: totals.spilled,
            bytes_used: totals.bytes_used,
            bytes: totals.bytes,
            events_lost: events_lost(&survey.damage()),
            oldest: totals.oldest.map(Timestamp::to_rfc3339),
            newest: totals.newest.map(Timestamp::to_rfc3339),
        })?;
        return survey.unread();
    }
    let headings = ["SEGMENT", "EVENTS", "SPILLED", "USED", "BYTES", "OLDEST", "NEWEST", "STATE"];
    let rows: Vec<_> = survey.files.iter().map(row).collect();
    let Totals { segments, events, spilled, bytes_used, bytes, oldest, .. } = totals;
    let text = [
        if rows.is_empty() { String::new() } else { table(headings, &rows) + "\n" },
        format!(
            "{segments} segments, {events} events ({spilled} spilled), {bytes_used} of {bytes} bytes used: {}\n",
            directory.path().display()
        ),
        match oldest {
            Some(oldest) => format!("The oldest event that may not be in the database yet: {}\n", oldest.to_rfc3339()),
            None => "No event waits for the database.\n".to_owned(),
        },
        held(&survey.held),
        match &survey.foreign[..] {
            [] => String::new(),
            foreign => format!("Not the journal's: {}\n", foreign.join(", ")),
        },
    ];
    let text = text.concat();
    show(&text)?;
    survey.unread()
}

/// The events that wait because the database does not take them, though it takes others.
fn held(held: &HeldList) -> String {
    if held.events.is_empty() {
        return String::new();
    }
    let shown = &held.events[..held.events.len().min(HELD_SHOWN_MAX)];
    let rows: Vec<_> = shown
        .iter()
        .map(|held| {
            [&held.id, &held.org_id, &held.event_type, &held.held_since, &held.code, &held.reason].map(String::clone)
        })
        .collect();
    [
        format!(
            "\nThe database does not take {} of them while it takes others; they are held and tried again (as of {}):\n",
            held.events.len(),
            held.as_of
        ),
        table(["EVENT", "ORGANIZATION", "TYPE", "HELD SINCE", "CODE", "REASON"], &rows),
        match held.events.len() - shown.len() {
            0 => "\n".to_owned(),
            more => format!("and {more} more: --json shows all\n\n"),
        },
    ]
    .concat()
}

fn row(file: &Surveyed) -> [String; 8] {
    let report = &file.report;
    let moment = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), Timestamp::to_rfc3339);
    [
        file.name.clone(),
        report.records.to_string(),
        report.spilled.to_string(),
        report.used_bytes.to_string(),
        report.file_bytes.to_string(),
        moment(report.oldest),
        moment(report.newest),
        state(file),
    ]
}

fn state(file: &Surveyed) -> String {
    let report = &file.report;
    let damage = match report.damage.len() {
        0 => None,
        places => Some(format!("DAMAGED in {places} places, {} events lost", report.records_lost())),
    };
    let torn = report.torn_tail.map(|offset| format!("a write was cut short at {offset}"));
    let aside = file.is_kept_aside.then(|| "kept aside".to_owned());
    let states: Vec<String> = [aside, damage, torn].into_iter().flatten().collect();
    if states.is_empty() { "sound".to_owned() } else { states.join("; ") }
}

fn segment_json(file: &Surveyed) -> SegmentJson<'_> {
    let report = &file.report;
    SegmentJson {
        file: &file.name,
        created_at: report.created_at.map(Timestamp::to_rfc3339),
        events: report.records,
        spilled: report.spilled,
        bytes_used: report.used_bytes,
        bytes: report.file_bytes,
        oldest: report.oldest.map(Timestamp::to_rfc3339),
        newest: report.newest.map(Timestamp::to_rfc3339),
        torn_tail: report.torn_tail,
        damage: damage_of(file),
    }
}

// ---- verify ------------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct VerifiedJson<'a> {
    sound: bool,
    segments: usize,
    events: u64,
    events_lost: u64,
    damage: &'a [DamageJson<'a>],
}

fn verify(directory: &Directory, json: bool) -> Result<(), Failure> {
    let survey = directory.survey(&mut |_| ControlFlow::Continue(()))?;
    let damage = survey.damage();
    let Totals { segments, events, .. } = Totals::of(&survey);
    let lost = events_lost(&damage);
    if json {
        let sound = damage.is_empty() && survey.unreadable.is_empty();
        show_json(&VerifiedJson { sound, segments, events, events_lost: lost, damage: &damage })?;
    } else if damage.is_empty() && survey.unreadable.is_empty() {
        show(&format!("Sound: {segments} segments, {events} events.\n"))?;
    } else if !damage.is_empty() {
        let in_words = |DamageJson { file, offset, bytes, events_lost, what }: &DamageJson<'_>| {
            format!("{file}: offset {offset}, {bytes} bytes, {events_lost} events lost: {what}\n")
        };
        let places: Vec<String> = damage.iter().map(in_words).collect();
        show(&format!(
            "{}DAMAGED in {} places, at least {lost} events lost; {events} events in {segments} segments are intact.\n",
            places.concat(),
            places.len()
        ))?;
    }
    survey.unread()?;
    if damage.is_empty() { Ok(()) } else { Err(Failure::Damaged(None)) }
}

impl Survey {
    fn segments(&self) -> impl Iterator<Item = &Surveyed> {
        self.files.iter().filter(|file| !file.is_kept_aside)
    }

    fn damage(&self) -> Vec<DamageJson<'_>> {
        self.files.iter().flat_map(damage_of).collect()
    }

    /// Fails where something could not be read.
    fn unread(&self) -> Result<(), Failure> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        Err(Failure::Refused(format!(
            "not everything could be read:\n  {}\n  fix: read it as the user who runs the server; where the disk refuses, \
             copy the file with a tool that skips what it cannot read, and verify the copy",
            self.unreadable.join("\n  ")
        )))
    }
}

/// The damage of a file. A file that was kept aside always has some.
fn damage_of(file: &Surveyed) -> Vec<DamageJson<'_>> {
    let mut damage: Vec<_> = file.report.damage.iter().map(|place| to_json(file, place)).collect();
    if damage.is_empty() && file.is_kept_aside {
        damage.push(DamageJson {
            file: &file.name,
            offset: file.report.torn_tail.unwrap_or(0),
            bytes: 0,
            events_lost: 0,
            what: "kept aside when it was replayed; the server's log then said what was missing",
        });
    }
    damage
}

fn to_json<'a>(file: &'a Surveyed, place: &'a millrace_journal::reader::Damage) -> DamageJson<'a> {
    DamageJson {
        file: &file.name,
        offset: place.offset,
        bytes: place.bytes,
        events_lost: place.records_lost,
        what: place.what,
    }
}

fn events_lost(damage: &[DamageJson<'_>]) -> u64 {
    damage.iter().fold(0, |lost, place| lost.saturating_add(place.events_lost))
}

// ---- export ------------------------------------------------------------------------------------------------

fn export(directory: &Directory) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(EXPORT_BUFFER_BYTES, io::stdout().lock());
    let mut written = Ok(());
    let survey = directory.survey(&mut |record| {
        written = write_event(&mut out, &record.event);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written.and_then(|()| out.flush()).map_err(Failure::Output)?;
    survey.unread()?;
    let places: usize = survey.segments().map(|file| file.report.damage.len()).sum();
    if places == 0 {
        return Ok(());
    }
    let lost = survey.segments().fold(0u64, |lost, file| lost.saturating_add(file.report.records_lost()));
    let path = directory.path().display();
    Err(Failure::Damaged(Some(format!(
        "the journal is damaged in {places} places: at least {lost} events are not among those written\n  fix: see what \
         is wrong with `millrace journal verify {path}`"
    ))))
}

/// One line of the export. A payload is written as it was sent, except that line breaks between its values, which would end
/// the line, become spaces.
fn write_event(out: &mut impl Write, event: &Event) -> io::Result<()> {
    const TEXT: &str = "a record's texts are checked when it is read";
    write!(out, r#"{{"id":"{}","org_id":"{}","type":"#, event.id, event.org)?;
    serde_json::to_writer(&mut *out, std::str::from_utf8(event.event_type()).expect(TEXT))?;
    out.write_all(br#","dedup_id":"#)?;
    serde_json::to_writer(&mut *out, &event.dedup_id().map(|dedup_id| std::str::from_utf8(dedup_id).expect(TEXT)))?;
    out.write_all(br#","payload":"#)?;
    let mut written = 0;
    let payload = event.payload();
    for at in memchr::memchr2_iter(b'\n', b'\r', payload) {
        out.write_all(&payload[written..at])?;
        out.write_all(b" ")?;
        written = at + 1;
    }
    out.write_all(&payload[written..])?;
    writeln!(out, r#","received_at":"{}"}}"#, event.received_at.to_rfc3339())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::event::{EventId, OrgId};

    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_payload_as_sent() {
        let line = |dedup_id, payload: &[u8]| {
            let (id, org) = (EventId(Uuid::from_u128(1)), OrgId(Uuid::from_u128(2)));
            let event = Event::new(id, org, Timestamp::from_micros(0), "a.b", dedup_id, payload);
            let mut out = Vec::new();
            write_event(&mut out, &event).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            line(Some("q\"\u{fc}"), br#"{"b":1.0, "a" :"\u0041"}"#),
            concat!(
                r#"{"id":"00000000-0000-0000-0000-000000000001","org_id":"00000000-0000-0000-0000-000000000002","#,
                r#""type":"a.b","dedup_id":"q\"ü","payload":{"b":1.0, "a" :"\u0041"},"#,
                r#""received_at":"1970-01-01T00:00:00.000000Z"}"#,
                "\n"
            )
        );
        let line = line(None, b"\n[1,\r\n\"x\\n\"]\n");
        assert!(line.contains(r#""dedup_id":null,"payload": [1,  "x\n"] ,"received_at""#), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
