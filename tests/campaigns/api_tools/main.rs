//! The API document in the hands of the tools that people use with it, against a running server: schemathesis sends what
//! the document allows and what it does not, redocly and Spectral read it, and clients in Python and TypeScript are
//! generated from it and used.
//!
//!     ./test api [--examples N] [--seed S]
//!
//! It installs the tools of `api_tools/requirements.txt` and `api_tools/package-lock.json` under `target/` first: from `PyPI`
//! and npm, which the other tests do without. So `cargo test` leaves this out (Cargo.toml).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what the tools say is for whoever runs the campaign")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use support::server::{Options, Server};

/// Requests to each operation and phase where nobody says how many.
const EXAMPLES: &str = "200";
/// The one warning of openapi-python-client: it makes a client that posts batches as arrays alone.
const EXPECTED_WARNING: &str = "Unsupported content type application/x-ndjson";

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/campaigns/api_tools");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/openapi.json");

/// Where `./test` has put the tools.
fn tools() -> PathBuf {
    let place = std::env::var_os("MILLRACE_API_TOOLS").map(PathBuf::from);
    place.expect("the tools are not here: `./test api` installs and runs them")
}

/// One of the tools, in `directory`.
fn tool(name: &str, directory: &Path) -> Command {
    let tools = tools();
    let places = [tools.join("python/bin"), tools.join("npm/node_modules/.bin")];
    let program = places.iter().map(|place| place.join(name)).find(|program| program.exists());
    let mut command =
        Command::new(program.unwrap_or_else(|| panic!("{name} is not installed: remove {}", tools.display())));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(places.into_iter().chain(std::env::split_paths(&path))).unwrap();
    command.current_dir(directory).env("PATH", path);
    // They would ask for newer versions, or tell others how they are used.
    command.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true").env("NO_COLOR", "1");
    command
}

/// Runs it to a good end; what it said.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    said
}

/// A directory with some of the files, and the packages from npm.
fn workplace(files: &[&str]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(Path::new(FILES).join(file), place.path().join(file)).unwrap();
    }
    std::fs::write(place.path().join("package.json"), r#"{"type":"module"}"#).unwrap();
    std::os::unix::fs::symlink(tools().join("npm/node_modules"), place.path().join("node_modules")).unwrap();
    place
}

#[test]
fn schemathesis_finds_nothing() {
    let server = Server::start(Options::default());
    let place = workplace(&["schemathesis.toml", "hooks.py"]);
    let identities = ["ada", "bob"].map(|name| {
        let (org, key) = server.organization(name, "0");
        // For whoever revokes one that is listed.
        for _ in 0..5 {
            server.cli(&["key", "create", &org]);
        }
        json!({"name": name, "fixedHeaders": [{"name": "X-API-Key", "value": key}]})
    });
    let auth = place.path().join("identities.json");
    std::fs::write(&auth, json!({"auth": identities}).to_string()).unwrap();
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let url = format!("http://{}", server.addr);
    let said = run(tool("schemathesis", place.path())
        .env("MILLRACE_URL", &url)
        .env("MILLRACE_IDENTITIES", &auth)
        .env("MILLRACE_SPARE_KEY", server.organization("spare", "0").1)
        .args(["run", &format!("{url}/openapi.json")])
        .args(["--max-examples", &setting("MILLRACE_API_EXAMPLES", EXAMPLES)])
        .args(["--seed", &setting("MILLRACE_API_SEED", &std::process::id().to_string())]));
    println!("{said}");
    // A run that tested nothing fails nothing.
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(&format!("✅ {phase}")), "{phase} is not in what was run");
    }
    let operations = serde_json::from_str::<Value>(millrace_wire::routes::OPENAPI_JSON).unwrap();
    let methods = ["get", "post", "patch", "delete"];
    // It leaves out where it has the document from.
    let paths = operations["paths"].as_object().unwrap().iter().filter(|(path, _)| *path != "/openapi.json");
    let of_path = |path: &Value| methods.iter().filter(|method| path.get(method).is_some()).count();
    let operations: usize = paths.map(|(_, path)| of_path(path)).sum();
    assert!(said.contains(&format!("Tested: {operations}")), "not all of {operations} operations were tested");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn linters_have_nothing_to_say() {
    let place = workplace(&["spectral.yaml"]);
    run(tool("redocly", place.path()).args(["lint", "--extends", "recommended-strict", DOCUMENT]));
    let spectral = ["lint", "--ruleset", "spectral.yaml", "--fail-severity", "hint", DOCUMENT];
    run(tool("spectral", place.path()).args(spectral));
}

#[test]
fn a_generated_typescript_client_works() {
    let server = Server::start(Options::default());
    let place = workplace(&["client.ts", "tsconfig.json"]);
    run(tool("openapi-typescript", place.path()).args([DOCUMENT, "--output", "schema.d.ts"]));
    run(tool("tsc", place.path()).args(["--project", "."]));
    run(tool("node", place.path()).arg("client.ts").arg(format!("http://{}", server.addr)).arg(server.key()));
}

#[test]
fn a_generated_python_client_works() {
    let server = Server::start(Options::default());
    let place = workplace(&["client.py"]);
    let generate = ["generate", "--path", DOCUMENT, "--output-path", "millrace_client", "--meta", "none"];
    let said = run(tool("openapi-python-client", place.path()).args(generate));
    assert_eq!(said.matches("WARNING").count(), 1, "{said}");
    assert!(said.contains(EXPECTED_WARNING) && !said.contains("Unable to"), "{said}");
    run(tool("python3", place.path()).arg("client.py").arg(format!("http://{}", server.addr)).arg(server.key()));
}
