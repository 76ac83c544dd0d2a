//! The walls and habits of the house that no compiler keeps: which room may import which, words that a room never says,
//! names that stand for one thing, and files and functions of a size that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// Which rooms a room may import: `cargo` keeps everybody else out, as long as the manifests say no more than this.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("wire", &["base"]),
    ("metrics", &["base", "wire"]),
    ("journal", &["base", "metrics"]),
    ("store", &["base"]),
    ("tenant", &["base", "metrics", "store"]),
    ("webhooks", &["base", "metrics", "store", "tenant"]),
    ("write", &["base", "journal", "metrics", "store", "webhooks"]),
    ("control", &["base", "metrics", "store", "webhooks", "wire"]),
    ("ingest", &["base", "control", "journal", "metrics", "tenant", "wire"]),
    ("bench", &["base"]),
    (
        "server",
        &["base", "bench", "control", "ingest", "journal", "metrics", "store", "tenant", "webhooks", "wire", "write"],
    ),
];

/// What a room never does, and the words that would show it.
const FORBIDDEN: &[(&str, &str, &[&str])] = &[
    (
        "ingest",
        "a shard never waits for a lock, a file or a database",
        &[r"\bMutex\b", r"\bRwLock\b", r"\bstd::fs\b", r"\bthread::sleep\b", r"\bmillrace_store\b", r"\bpostgres\b"],
    ),
    (
        "wire",
        "functions of bytes: no file, no socket, no thread, no clock",
        &[r"\bstd::fs\b", r"\bTcp(Stream|Listener)\b", r"\bstd::thread\b", r"\bInstant\b", r"\bSystemTime\b"],
    ),
    ("store", "SQL, and no HTTP", &[r"\bhyper\b", r"\bhttparse\b", r"\bmillrace_wire\b"]),
    ("journal", "files, and no database", &[r"\brusqlite\b", r"\bpostgres\b", r"\bmillrace_store\b"]),
    ("base", "no socket, no database", &[r"\bTcp(Stream|Listener)\b", r"\brusqlite\b", r"\bpostgres\b"]),
    ("metrics", "counts, and nothing else", &[r"\bstd::thread\b"]),
];

/// A file is read in one sitting up to here.
const FILE_LINES_MAX: usize = 500;
/// A function is seen on one screen up to here.
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `directory` that end in `extension`, relative to the root; what is built or not committed aside.
fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "millrace-data", "node_modules"].contains(&&*name) {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rooms() -> Vec<String> {
    let manifests = files("src", "toml");
    assert!(manifests.len() >= MAY_IMPORT.len());
    manifests
        .iter()
        .filter(|path| path.ends_with("Cargo.toml"))
        .map(|path| path.components().nth(1).unwrap().as_os_str().to_string_lossy().into_owned())
        .collect()
}

/// The file without what only its tests say.
fn without_tests(path: &Path) -> String {
    let text = text(path);
    text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    name.ends_with("_tests") || name == "tests" || name.starts_with("fake_") || name.starts_with("test_")
}

fn sources_of(room: &str) -> Vec<PathBuf> {
    files(&format!("src/{room}"), "rs").into_iter().filter(|path| !is_test(path)).collect()
}

/// Comments aside.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}:\n{}", problems.join("\n"));
}

#[test]
fn rooms_import_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let import = Regex::new(r"(?m)^millrace-(\w+)(?:\.workspace| =)").unwrap();
    let mut problems = Vec::new();
    for room in rooms() {
        let manifest = text(&Path::new("src").join(&room).join("Cargo.toml"));
        let Some(allowed) = allowed.get(&*room) else {
            problems.push(format!("src/{room} is not in the list of rooms"));
            continue;
        };
        let used: BTreeSet<&str> =
            import.captures_iter(&manifest).map(|found| found.get(1).unwrap().as_str()).collect();
        for used in used.difference(&allowed.iter().copied().collect()) {
            problems.push(format!("src/{room}/Cargo.toml: {room} may not import {used}"));
        }
    }
    // An order in which each room comes after those it may import: no circle.
    for (position, (room, imports)) in MAY_IMPORT.iter().enumerate() {
        for import in *imports {
            let before = MAY_IMPORT[..position].iter().any(|(name, _)| name == import);
            assert!(before, "{room} may import {import}, which stands after it");
        }
    }
    none(&problems, "an import that the map does not have");
}

#[test]
fn no_room_says_a_word_that_is_forbidden_there() {
    let mut problems = Vec::new();
    for (room, why, words) in FORBIDDEN {
        let words = Regex::new(&words.join("|")).unwrap();
        for path in sources_of(room) {
            if let Some(found) = words.find(&code(&without_tests(&path))) {
                problems.push(format!("{}: {} ({why})", path.display(), found.as_str()));
            }
        }
    }
    none(&problems, "forbidden words");
}

struct Function {
    name: String,
    /// Where its documentation and attributes begin.
    from: usize,
    /// Where it says `fn`.
    line: usize,
    /// From there to its end.
    lines: usize,
}

/// What a room is made of, as the parser sees it.
#[derive(Default)]
struct Parts {
    /// Names of types, with how often each is defined.
    types: BTreeMap<String, usize>,
    /// Each function outside of tests.
    functions: Vec<Function>,
    is_in_test: bool,
}

impl Parts {
    fn function(&mut self, signature: &syn::Signature, whole: proc_macro2::Span) {
        if !self.is_in_test {
            let (name, line) = (signature.ident.to_string(), signature.fn_token.span().start().line);
            let (from, lines) = (whole.start().line, whole.end().line + 1 - line);
            self.functions.push(Function { name, from, line, lines });
        }
    }

    fn named(&mut self, name: &syn::Ident) {
        if !self.is_in_test {
            *self.types.entry(name.to_string()).or_default() += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Parts {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let was_in_test = self.is_in_test;
        self.is_in_test |= module.attrs.iter().any(|attribute| attribute.path().is_ident("cfg"));
        visit::visit_item_mod(self, module);
        self.is_in_test = was_in_test;
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, function.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.named(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.named(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.named(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.named(&item.ident);
        visit::visit_item_type(self, item);
    }
}

fn parts_of(path: &Path) -> Parts {
    let mut parts = Parts::default();
    let file = syn::parse_file(&text(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parts.visit_file(&file);
    parts
}

#[test]
fn no_type_name_twice_in_a_crate() {
    let mut problems = Vec::new();
    for room in rooms() {
        let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in sources_of(&room) {
            for (name, count) in parts_of(&path).types {
                types.entry(name).or_default().extend(std::iter::repeat_n(path.display().to_string(), count));
            }
        }
        for (name, paths) in types.into_iter().filter(|(_, paths)| paths.len() > 1) {
            problems.push(format!("{name}: {}", paths.join(", ")));
        }
    }
    none(&problems, "one name, two types of one crate");
}

/// `// Over 500 lines: why` in a file that is longer, and `// Over 70 lines: why` above a function that is.
#[test]
fn what_is_too_long_says_why() {
    let mut problems = Vec::new();
    let mut longest = Vec::new();
    let over_file = format!("// Over {FILE_LINES_MAX} lines: ");
    let over_function = format!("// Over {FUNCTION_LINES_MAX} lines: ");
    for path in files("src", "rs").into_iter().filter(|path| !is_test(path)) {
        let text = text(&path);
        let lines: Vec<&str> = text.lines().collect();
        let has_reason = lines.iter().any(|line| line.starts_with(&over_file));
        if lines.len() > FILE_LINES_MAX && !has_reason {
            problems.push(format!("{}: {} lines, and no line that begins {over_file:?}", path.display(), lines.len()));
        }
        if lines.len() <= FILE_LINES_MAX && has_reason {
            problems.push(format!("{}: {} lines, which need no reason", path.display(), lines.len()));
        }
        let mut reasons = lines.iter().filter(|line| line.trim_start().starts_with(&over_function)).count();
        for Function { name, from, line, lines: count } in parts_of(&path).functions {
            longest.push((count, format!("{}:{line} {name}", path.display())));
            if count <= FUNCTION_LINES_MAX {
                continue;
            }
            // Above the function, among its documentation and attributes, or on its first line.
            let mut near = lines[from.saturating_sub(2)..=line].iter();
            if near.any(|line| line.trim_start().starts_with(&over_function)) {
                reasons -= 1;
            } else {
                problems.push(format!("{}:{line}: {name} has {count} lines, and no reason", path.display()));
            }
        }
        if reasons > 0 {
            problems.push(format!("{}: {reasons} functions need no reason", path.display()));
        }
    }
    longest.sort();
    let median = longest[longest.len() / 2].0;
    println!("{} functions, median {median} lines, longest {:?}", longest.len(), longest.last().unwrap());
    none(&problems, "too long");
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    let place = Regex::new(r"(?:^|[\s\x22'`(=])/(?:home|root|Users|work)/").unwrap();
    let mut problems = Vec::new();
    for extension in ["md", "rs", "toml", "py", "yml", "conf", "sql", "txt"] {
        for path in files("", extension) {
            if let Some(found) = place.find(&text(&path)) {
                problems.push(format!("{}: {}", path.display(), found.as_str().trim()));
            }
        }
    }
    none(&problems, "absolute paths");
}
