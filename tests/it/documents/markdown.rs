//! Every Markdown file: links and anchors lead somewhere, the files and items it names are there, tables have the same number
//! of cells in each row, and code fences are closed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where files are that documents name.
const TOP_FOLDERS: [&str; 8] = ["benches", "docs", "examples", "fuzz", "migrations", "src", "tests", "tuning"];

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

    /// The first words of what it has in backticks, where that is a path in this repository; with the item in it, if any.
    fn paths(&self) -> Vec<(String, Option<String>)> {
        let is_path = |word: &str| {
            let begins =
                TOP_FOLDERS.iter().any(|folder| word.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
            let is_plain = word.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
            is_plain && (begins || is_rust(word))
        };
        let path = |event| match event {
            Event::Code(code) => {
                let word = code.split_whitespace().next()?;
                let (path, item) = word.split_once("::").map_or((word, None), |(path, item)| (path, Some(item)));
                is_path(path).then(|| (path.to_owned(), item.map(str::to_owned)))
            }
            _ => None,
        };
        self.events().filter_map(path).collect()
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

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
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

/// Every file under `folder`, and under what is in it, by its path from the root.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_symlink()
            || name.starts_with('.')
            || matches!(name, "target" | "node_modules" | "corpus" | "artifacts")
        {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.strip_prefix(ROOT).unwrap().to_owned());
        }
    }
}

fn all_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(Path::new(ROOT), &mut found);
    found
}

fn all_pages() -> BTreeMap<PathBuf, Page> {
    let pages = all_files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| {
        (path.clone(), Page { text: std::fs::read_to_string(Path::new(ROOT).join(&path)).unwrap(), path })
    };
    let found: BTreeMap<_, _> = pages.map(read).collect();
    assert!(found.contains_key(Path::new("README.md")) && found.len() > 20, "{:?}", found.keys());
    found
}

/// What is wrong with a path that a page names: from the root, from the page's folder, or the end of one.
fn fault_of_path(page: &Page, path: &str, item: Option<&str>, files: &[PathBuf]) -> Option<String> {
    let beside = page.path.parent().unwrap().join(path);
    let is_there = |file: &&PathBuf| {
        if is_rust(path) { file.ends_with(path) } else { file.starts_with(path) || file.starts_with(&beside) }
    };
    let named: Vec<&PathBuf> = files.iter().filter(is_there).collect();
    if named.is_empty() {
        return Some(format!("{path}: there is no such file"));
    }
    let item = item?.rsplit("::").next().unwrap();
    let has_item = |file: &&PathBuf| {
        let text = std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
        text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == item)
    };
    (!named.iter().any(has_item)).then(|| format!("{path}: there is no {item} in it"))
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
fn files_and_items_that_are_named_exist() {
    let files = all_files();
    let mut faults = Vec::new();
    // Reports of runs are of their time.
    for page in all_pages().values().filter(|page| !page.path.starts_with("perf/runs")) {
        let fault = |(path, item): &(String, Option<String>)| fault_of_path(page, path, item.as_deref(), &files);
        faults.extend(page.paths().iter().filter_map(fault).map(|fault| format!("{}: {fault}", page.path.display())));
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

    let paths =
        page("`src/main.rs` `main.rs::main` `cargo test` `mr_x/y` `tests/no.rs::such a` `docs/` `0.0.0.0`").paths();
    let paths: Vec<(&str, Option<&str>)> = paths.iter().map(|(path, item)| (path.as_str(), item.as_deref())).collect();
    let expected = [("src/main.rs", None), ("main.rs", Some("main")), ("tests/no.rs", Some("such")), ("docs/", None)];
    assert_eq!(paths, expected);
    let files = all_files();
    let faults = paths.iter().filter(|(path, item)| fault_of_path(&page(""), path, *item, &files).is_some()).count();
    assert_eq!(faults, 1);
    assert!(fault_of_path(&page(""), "src/main.rs", Some("nothing_of_that_name"), &files).is_some());

    let other = Page { path: PathBuf::from("README.md"), text: "# It's `one` thing\n## Twice\n## Twice\n".to_owned() };
    let pages = BTreeMap::from([(other.path.clone(), other)]);
    let is_right = |target: &str| fault_of_link(&page(""), target, &pages).is_none();
    for target in
        ["../README.md", "../README.md#its-one-thing", "../README.md#twice-1", "../src", "https://example.com/#x"]
    {
        assert!(is_right(target), "{target}");
    }
    for target in ["README.md", "../README.md#thrice", "../../README.md", "/README.md", "../Cargo.toml#x", "#x"] {
        assert!(!is_right(target), "{target}");
    }
}
