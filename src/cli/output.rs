//! Results on standard output: aligned for people, JSON for programs.
//!
//! Written whole and flushed before the command ends, and an error is a result of the command: a key that was
//! made but could not be shown must not look like a success.

use std::io::{self, Write as _};
use std::iter::zip;

use serde::Serialize;

use super::failure::Failure;

/// Prints a result that can be asked for again.
pub fn show(text: &str) -> Result<(), Failure> {
    write(text).map_err(Failure::Output)
}

/// Prints a result as one line of JSON.
pub fn show_json(result: &impl Serialize) -> Result<(), Failure> {
    show(&json_line(result))
}

/// Prints a result with a new key in it. Where that fails the key is lost for good: says how to get another.
pub fn show_key(text: &str, key_id: &str) -> Result<(), Failure> {
    write(text).map_err(|error| {
        Failure::Refused(format!(
            "key {key_id} was made, but it could not be shown: {error}\n  fix: replace it with \
             `millrace key rotate {key_id}`"
        ))
    })
}

/// A result as one line of JSON.
pub fn json_line(result: &impl Serialize) -> String {
    let mut line = serde_json::to_string(result).expect("results are plain structs of strings and numbers");
    line.push('\n');
    line
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
