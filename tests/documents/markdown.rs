//! Every Markdown file: links and anchors lead somewhere, tables have the same number of cells in each row, and code fences
//! are closed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Markdown file, by its path from the root.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn events(&self) -> Parser<'_> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES)
    }

    /// Anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut heading: Option<String> = None;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut anchors = BTreeSet::new();
        for event in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    let name = slug(&heading.take().unwrap());
                    let before = seen.entry(name.clone()).or_default();
                    anchors.insert(if *before == 0 { name } else { format!("{name}-{before}") });
                    *before += 1;
                }
                _ => {}
            }
        }
        anchors
    }

    /// Targets of its links and images.
    fn targets(&self) -> Vec<String> {
        let target = |event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some(dest_url.into_string()),
            _ => None,
        };
        self.events().filter_map(target).collect()
    }

    /// Its lines, with their numbers and whether each is code.
    fn lines(&self) -> Vec<(usize, &str, bool)> {
        let mut fence: Option<&str> = None;
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(self.text.lines()) {
            let mark = fence_mark(line);
            let is_code = fence.is_some() || mark.is_some();
            match (fence, mark) {
                (None, Some(opening)) => fence = Some(opening),
                (Some(opening), Some(mark)) if mark.starts_with(opening) && line.trim() == mark => fence = None,
                _ => {}
            }
            lines.push((number, line, is_code));
        }
        lines
    }

    /// What is wrong with it by itself.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let lines = self.lines();
        let fences = lines.iter().filter(|(_, line, _)| fence_mark(line).is_some()).count();
        if !fences.is_multiple_of(2) {
            faults.push("a code fence is not closed".to_owned());
        }
        let mut tables = 0;
        let rows: Vec<_> = lines.iter().filter(|(_, line, is_code)| !is_code && line.starts_with('|')).collect();
        for table in rows.chunk_by(|a, b| a.0 + 1 == b.0) {
            tables += 1;
            let width = cells(table[0].1);
            for (number, line, _) in table {
                if cells(line) != width {
                    faults.push(format!("line {number}: {} cells, and the table has {width}", cells(line)));
                }
            }
        }
        let parsed = self.events().filter(|event| matches!(event, Event::Start(Tag::Table(_)))).count();
        if parsed != tables {
            faults.push(format!("{tables} tables are written, and {parsed} are read as tables"));
        }
        faults
    }
}

/// The backticks or tildes that open or close a block of code.
fn fence_mark(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let first = line.chars().next().filter(|first| matches!(first, '`' | '~'))?;
    let mark = &line[..line.len() - line.trim_start_matches(first).len()];
    (mark.len() >= 3 && !line[mark.len()..].contains('`')).then_some(mark)
}

/// Cells of a row of a table: what is between its bars, the escaped ones aside.
fn cells(row: &str) -> usize {
    let bars = row.replace("\\|", "").matches('|').count();
    assert!(bars >= 2, "{row}");
    bars - 1
}

fn slug(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

/// Every Markdown file under `folder`, and under what is in it, by its path from the root.
fn pages(folder: &Path, pages: &mut BTreeMap<PathBuf, Page>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_symlink() || name.starts_with('.') || matches!(name, "target" | "node_modules" | "corpus" | "artifacts") {
            continue;
        }
        if path.is_dir() {
            self::pages(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(ROOT).unwrap().to_owned();
            pages.insert(path.clone(), Page { path, text });
        }
    }
}

fn all_pages() -> BTreeMap<PathBuf, Page> {
    let mut found = BTreeMap::new();
    pages(Path::new(ROOT), &mut found);
    assert!(found.contains_key(Path::new("README.md")) && found.len() > 20, "{:?}", found.keys());
    found
}

/// Takes `.` and `..` out of a path from the root; `None` where it leaves the root.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => normal.push(part),
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => normal.pop().then_some(())?,
            _ => return None,
        }
    }
    Some(normal)
}

/// What is wrong with a link of a page.
fn fault_of_link(page: &Page, target: &str, pages: &BTreeMap<PathBuf, Page>) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let folder = page.path.parent().unwrap();
    let path = if file.is_empty() { Some(page.path.clone()) } else { normal(&folder.join(file)) };
    let Some(path) = path.filter(|path| Path::new(ROOT).join(path).exists()) else {
        return Some(format!("{target}: there is no such file"));
    };
    let anchor = anchor?;
    match pages.get(&path) {
        Some(other) if other.anchors().contains(anchor) => None,
        Some(_) => Some(format!("{target}: there is no such heading")),
        None => Some(format!("{target}: an anchor in a file that is not Markdown")),
    }
}

#[test]
fn links_lead_somewhere_and_tables_and_fences_are_whole() {
    let pages = all_pages();
    let mut faults = Vec::new();
    for page in pages.values() {
        let links = page.targets();
        let links = links.iter().filter_map(|target| fault_of_link(page, target, &pages));
        faults.extend(page.faults().into_iter().chain(links).map(|fault| format!("{}: {fault}", page.path.display())));
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let lines = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "{lines} lines");
}

#[test]
fn faults_are_found() {
    let page = |text: &str| Page { path: PathBuf::from("docs/page.md"), text: text.to_owned() };
    let faults = |text: &str| page(text).faults().len();
    assert_eq!(faults("| a | b |\n|---|---|\n| `x\\|y` | 2 |\n\n```\n| not a table\n```\n"), 0);
    assert_eq!(faults("| a | b |\n|---|---|\n| `x|y` | 2 |\n"), 1, "a bar too many");
    assert_eq!(faults("| a | b |\n| 1 | 2 |\n"), 1, "no line under the head");
    assert_eq!(faults("text\n```sh\ncommand\n"), 1, "a fence that stays open");
    assert_eq!(faults("````\n```\n````\n"), 1, "a fence within one is taken for open: write it otherwise");

    let other = Page { path: PathBuf::from("README.md"), text: "# It's `one` thing\n## Twice\n## Twice\n".to_owned() };
    let pages = BTreeMap::from([(other.path.clone(), other)]);
    let is_right = |target: &str| fault_of_link(&page(""), target, &pages).is_none();
    for target in ["../README.md", "../README.md#its-one-thing", "../README.md#twice-1", "../src", "https://example.com/#x"] {
        assert!(is_right(target), "{target}");
    }
    for target in ["README.md", "../README.md#thrice", "../../README.md", "/README.md", "../Cargo.toml#x", "#x"] {
        assert!(!is_right(target), "{target}");
    }
}
