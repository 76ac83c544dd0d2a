//! Prints results: aligned for people, JSON for programs.
//!
//! A result is written whole and flushed before the command ends, and a write error fails the command: a key that was made
//! but could not be shown must not look like a success.

use std::io::{self, Write as _};
use std::iter::zip;

use serde::Serialize;

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;

use super::failure::Failure;

/// Prints a result that can be asked for again.
pub fn show(text: &str) -> Result<(), Failure> {
    write(text).map_err(Failure::Output)
}

/// Prints a remark on standard error.
pub fn note(text: &str) {
    // A failure to write it does not change the result.
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// Prints on standard error which store a command works on.
pub fn say_store(store: &str) {
    let _ = writeln!(io::stderr(), "store: {store}");
}

/// Prints a result as one line of JSON.
pub fn show_json(result: &impl Serialize) -> Result<(), Failure> {
    show(&json_line(result))
}

/// Prints a result with a new key in it. Where that fails the key is lost, and the error says how to get another.
pub fn show_key(text: &str, key_id: &str) -> Result<(), Failure> {
    write(text).map_err(|error| {
        Failure::Refused(format!(
            "key {key_id} was made, but it could not be shown: {error}\n  fix: replace it with \
             `millrace key rotate {key_id}`"
        ))
    })
}

/// Prints a result with an endpoint's new secret in it. Where that fails the secret is lost, and the error says how to get
/// another.
pub fn show_secret(text: &str, endpoint: EndpointId) -> Result<(), Failure> {
    write(text).map_err(|error| {
        Failure::Refused(format!(
            "endpoint {endpoint} has a new secret, but it could not be shown: {error}\n  fix: replace it with \
             `millrace endpoint rotate-secret {endpoint}`"
        ))
    })
}

/// A result as one line of JSON.
pub fn json_line(result: &impl Serialize) -> String {
    let mut line = serde_json::to_string(result).expect("results are plain structs of strings and numbers");
    line.push('\n');
    line
}

/// A document that is JSON already as one line.
pub fn json_line_of(mut document: Vec<u8>) -> String {
    document.push(b'\n');
    String::from_utf8(document).expect("documents are made of text")
}

/// RFC 3339 without the fraction, for people.
pub fn to_the_second(at: Timestamp) -> String {
    let text = at.to_rfc3339();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// Labels and values, the values aligned, indented by two.
pub fn fields(rows: &[(&str, &str)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let line = |(label, value): &(&str, &str)| format!("  {label:width$}  {value}\n");
    rows.iter().map(line).collect::<Vec<_>>().concat()
}

/// Rows under their headings, the columns aligned.
pub fn table<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in zip(&mut widths, row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; COLUMNS]| {
        let padded: Vec<String> = zip(cells, widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(headings);
    text.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    text
}

/// Writes `text` to standard output at once.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [["é".to_owned(), "1".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["A", "B"], &rows), "A     B\né     1\nlong\n");
        assert_eq!(fields(&[("id", "1"), ("API key", "2")]), "  id       1\n  API key  2\n");
    }
}
