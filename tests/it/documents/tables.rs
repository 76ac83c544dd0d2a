//! Tables in `docs/` that are made from the code's own: settings, routes, codes of refusals, metrics, and what the rooms
//! import. Each stands between two marks in its page. To write them again after a change: `MILLRACE_WRITE_DOCS=1 cargo test --test it documents::tables`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use millrace_base::problem::Code;
use millrace_metrics::Metrics;
use millrace_server::config::setting::{Kind, SETTINGS, Setting};
use millrace_wire::routes::{OPENAPI_JSON, Row, TABLE};

use super::markdown::ROOT;
use crate::openapi::method_name;

const END: &str = "<!-- end -->";

/// A row of a table; bars in it are escaped.
fn row(cells: &[&str]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn table(head: &[&str], rows: impl Iterator<Item = String>) -> String {
    format!("{}|{}\n{}", row(head), "---|".repeat(head.len()), rows.collect::<String>())
}

/// Fails where the table in this page is not this one; or writes it, where that is asked for.
fn is_in(page: &str, name: &str, table: &str) {
    let path = Path::new(ROOT).join("docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("docs/{page} has no place for {name}"));
    let (there, after) = rest.split_once(END).unwrap_or_else(|| panic!("{name} in docs/{page} has no end"));
    let table = format!("\n{table}\n");
    if std::env::var_os("MILLRACE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{END}{after}")).unwrap();
        return;
    }
    let differing =
        |(there, wanted): (&str, &str)| (there != wanted).then(|| format!("there:  {there}\nwanted: {wanted}\n"));
    let rows = there.lines().chain(std::iter::repeat("")).zip(table.lines().chain([""]));
    let differences: String = rows.filter_map(differing).take(5).collect();
    assert!(
        there == table,
        "docs/{page}: the table of {name} is not what the code says. Write it again with\n\
         MILLRACE_WRITE_DOCS=1 cargo test --test it documents::tables\n{differences}"
    );
}

fn openapi() -> Value {
    serde_json::from_str(OPENAPI_JSON).unwrap()
}

#[test]
fn settings_are_those_of_the_code() {
    let setting = |setting: &Setting| {
        let name = setting.env.strip_prefix("MILLRACE_").unwrap_or(setting.env);
        assert_eq!(name.to_lowercase(), setting.key, "docs/configuration.md says how a key follows from its variable");
        let value = match setting.kind {
            Kind::Text(word) | Kind::Secret(word) | Kind::Listed(word) | Kind::Count(word, ..) => format!(" {word}"),
            Kind::Choice(words) => format!(" {words}"),
            Kind::Quantity(unit, ..) => format!(" {}", unit.word()),
            Kind::Switch { .. } => String::new(),
        };
        let takes = match setting.kind {
            Kind::Text(_) | Kind::Secret(_) | Kind::Listed(_) | Kind::Switch { .. } | Kind::Choice(_) => String::new(),
            // That a bare number is in the unit is said above the table.
            kind => format!(" ({})", kind.to_string().split(", or ").next().unwrap()),
        };
        row(&[
            &format!("`{}`", setting.env),
            &format!("`--{}{value}`", setting.flag),
            &setting.default_in_words(),
            &format!("{}{takes}", setting.help),
        ])
    };
    let head = ["variable", "flag", "default", "what it does"];
    is_in("configuration.md", "settings", &table(&head, SETTINGS.iter().map(setting)));
}

#[test]
fn routes_are_those_of_the_code() {
    let document = openapi();
    let route = |found: &Row| {
        let (method, path) = (method_name(found), found.path);
        let operation = &document["paths"][path][method.to_lowercase()];
        let answers = operation["responses"].as_object().unwrap().keys().filter(|status| status.starts_with('2'));
        let answers: Vec<&str> = answers.map(String::as_str).collect();
        row(&[&format!("`{method} {path}`"), operation["summary"].as_str().unwrap(), &answers.join(", ")])
    };
    let (api, others): (Vec<&Row>, Vec<&Row>) = TABLE.iter().partition(|row| row.path.starts_with("/api/"));
    is_in("api.md", "routes", &table(&["route", "", "answer"], api.into_iter().chain(others).map(route)));
}

#[test]
fn codes_are_those_of_the_code() {
    let document = openapi();
    let mut details: BTreeMap<&str, &str> = BTreeMap::new();
    for response in document["components"]["responses"].as_object().unwrap().values() {
        let examples = response.pointer("/content/application~1problem+json/examples").and_then(Value::as_object);
        for example in examples.into_iter().flat_map(|examples| examples.values()) {
            let text = |name: &str| example["value"][name].as_str().unwrap();
            details.entry(text("code")).or_insert(text("detail"));
        }
    }
    let mut codes = Code::ALL;
    codes.sort_by_key(|code| code.status());
    let rows = codes.iter().map(|code| {
        let detail = details.get(code.as_str()).unwrap_or_else(|| panic!("openapi.json has no example of {code:?}"));
        row(&[&code.status().to_string(), &format!("`{}`", code.as_str()), detail])
    });
    is_in("api.md", "codes", &table(&["status", "code", "what an answer says, for example"], rows));
}

#[test]
fn metrics_are_those_of_the_code() {
    let page = String::from_utf8(Metrics::new(1).render()).unwrap();
    let mut families: BTreeMap<&str, Family> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().help = help;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().kind = kind;
        } else if let Some((name, labels)) = line.split_once('{') {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|name| families.contains_key(name)))
                .unwrap_or(name);
            families.get_mut(name).unwrap().labels(labels.split_once('}').unwrap().0);
        }
    }
    let metric = |(&name, family): (&&str, &Family)| {
        let mut help = family.help.to_owned();
        for (label, values) in &family.labels {
            write!(help, " By `{label}`").unwrap();
            // These have tables of their own, or change with each version.
            if !matches!(name, "http_requests_total" | "rejected_total" | "millrace_build_info") {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                write!(help, ": {}", values.join(", ")).unwrap();
            }
            help.push('.');
        }
        row(&[&format!("`{name}`"), family.kind, &help])
    };
    is_in("operations.md", "metrics", &table(&["metric", "kind", "what it counts"], families.iter().map(metric)));
}

#[test]
fn rooms_import_what_the_manifests_say() {
    let mut rooms: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for entry in Path::new(ROOT).join("src").read_dir().unwrap() {
        let Ok(manifest) = std::fs::read_to_string(entry.as_ref().unwrap().path().join("Cargo.toml")) else { continue };
        let name = entry.unwrap().file_name().into_string().unwrap();
        let dependencies = manifest.split_once("\n[dependencies]\n").unwrap().1.split("\n[").next().unwrap();
        let imports = dependencies.lines().filter_map(|line| line.strip_prefix("millrace-")?.split(['.', ' ']).next());
        let imports: Vec<String> = imports.map(|room| format!("`{room}`")).collect();
        let shown = if imports.is_empty() { "nothing of ours".to_owned() } else { imports.join(", ") };
        rooms.insert(name, (imports.len(), shown));
    }
    assert!(rooms.len() > 5, "{rooms:?}");
    let mut rooms: Vec<_> = rooms.into_iter().collect();
    rooms.sort_by_key(|(_, (imports, _))| *imports);
    let rows = rooms.iter().map(|(room, (_, imports))| row(&[&format!("`src/{room}`"), imports]));
    is_in("architecture.md", "imports", &table(&["room", "imports"], rows));
}

#[derive(Default)]
struct Family<'a> {
    help: &'a str,
    kind: &'a str,
    /// Names and values, buckets aside.
    labels: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Family<'a> {
    fn labels(&mut self, labels: &'a str) {
        for label in labels.split(',') {
            let (name, value) = label.split_once('=').unwrap();
            let values = if name == "le" { continue } else { self.labels.entry(name).or_default() };
            let value = value.trim_matches('"');
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
}
