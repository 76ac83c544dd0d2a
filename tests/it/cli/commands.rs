//! The command line, from the outside: the real program, real files, its two streams and its exit code.
//!
//! Every run starts from an empty environment in a directory of its own.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use support::shell::{Ended, Shell, assert_has, keys_of};

const PASSWORD: &str = "hunter2-canary";

// ---- arguments ---------------------------------------------------------------------------------------------

#[test]
fn help_and_version_are_results() {
    let shell = Shell::new().with("DATABASE_URL", format!("postgres://u:{PASSWORD}@127.0.0.1:1/db"));
    assert_eq!(shell.ok(&["--version"]), format!("millrace {}\n", env!("CARGO_PKG_VERSION")));
    assert_has(&shell.ok(&["--help"]), &["serve", "org", "key", "migrate", "config", "millrace org create acme"]);
    let serve = shell.ok(&["serve", "--help"]);
    for setting in millrace_server::config::setting::SETTINGS {
        assert_has(&serve, &[&format!("--{}", setting.flag), setting.env]);
    }
    for args in
        [&["org", "--help"][..], &["key", "rotate", "--help"], &["migrate", "-h"], &["config", "check", "--help"]]
    {
        let help = shell.ok(args);
        assert_has(&help, &["Usage: millrace", "--data-dir", "--database-url", "--config"]);
        assert!(!help.contains(PASSWORD), "{help}");
    }
}

#[test]
fn wrong_arguments_exit_with_64() {
    let shell = Shell::new();
    for args in [
        &["serv"][..],
        &["serve", "--shard", "1"],
        &["serve", "--shards"],
        &["serve", "--shards", "1", "--shards", "2"],
        &["serve", "now"],
        &["org", "create"],
        &["org", "create", ""],
        &["org", "create", "acme", "--rate-limit", "-1"],
        &["org", "update", "acme"],
        &["org", "update", "acme", "--rate-limit", "none"],
        &["key", "rotate", "4fK2mPq81xYz", "--grace", "soon"],
        &["key", "rotate", "4fK2mPq81xYz", "--grace", "31d"],
        &["key", "revoke", "not-an-id"],
        &["config", "check", "--json"],
    ] {
        shell.refused(64, args);
    }
    let missing = shell.run(&[]);
    assert_eq!((missing.code, missing.stdout.as_str()), (Some(64), ""));
    assert_has(&missing.stderr, &["Usage: millrace"]);
    assert_eq!(fs::read_dir(shell.dir.path()).unwrap().count(), 0, "a refused command leaves nothing behind");
}

#[test]
fn a_whole_key_given_as_an_id_is_not_repeated() {
    let key = millrace_base::key::ApiKey::generate().unwrap();
    let message = Shell::new().refused(64, &["key", "revoke", key.reveal()]);
    assert_has(&message, &[key.id().as_str()]);
    assert!(!message.contains(&key.reveal()[16..]), "{message}");
}

// ---- configuration -----------------------------------------------------------------------------------------

#[test]
fn defaults_give_way_to_file_then_environment_then_flags() {
    let shell = Shell::new();
    shell.file("m.toml", "shards = 2\nwriters = 3\nqueue_capacity = 5\n");
    let shell =
        shell.with("MILLRACE_CONFIG", "m.toml").with("MILLRACE_WRITERS", "7").with("MILLRACE_QUEUE_CAPACITY", "11");
    let text = shell.ok(&["config", "check", "--queue-capacity", "13"]);
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "listen = \"127.0.0.1:3000\" # default",
        "shards = 2 # `shards` in m.toml",
        "writers = 7 # MILLRACE_WRITERS",
        "queue_capacity = 13 # --queue-capacity",
        "# database_url is not set # default",
    ] {
        assert!(lines.iter().any(|l| l == line), "{lines:#?} lacks {line:?}");
    }
    shell.file("other.toml", "shards = 4\n");
    assert_has(&shell.ok(&["config", "check", "--config", "other.toml"]), &["shards = 4"]);
}

#[test]
fn the_printed_configuration_is_a_configuration_file() {
    let shell = Shell::new();
    let flags = ["--shards", "2", "--data-dir", "a \"b\" é", "--no-pin", "--shutdown-grace", "7"];
    shell.file("printed.toml", &shell.ok(&[&["config", "check"][..], &flags].concat()));
    let values =
        |text: String| text.lines().map(|l| l.rsplit_once("  #").unwrap().0.trim_end().to_owned()).collect::<Vec<_>>();
    let again = values(shell.ok(&["config", "check", "--config", "printed.toml"]));
    assert_eq!(again, values(fs::read_to_string(shell.dir.path().join("printed.toml")).unwrap()));
    assert!(again.contains(&"data_dir = \"a \\\"b\\\" é\"".to_owned()), "{again:?}");
}

#[test]
fn a_bad_configuration_exits_with_64_and_names_the_fault() {
    let shell = Shell::new();
    shell.file("unknown.toml", "listen = '127.0.0.1:0'\nshard = 2\n");
    shell.file("broken.toml", "shards = 2\nlisten =\n");
    let shell = shell.with("MILLRACE_SHARDS", "2");
    for (args, words) in [
        (&["--config", "absent.toml"][..], &["absent.toml", "--config"][..]),
        (&["--config", "unknown.toml"], &["`shard`", "the settings are", "shards"]),
        (&["--config", "broken.toml"], &["broken.toml, line 2", "not TOML"]),
        (&["--shards", "0"], &["--shards is 0", "from 1 to 1024", "MILLRACE_SHARDS", "`shards`"]),
        (&["--listen", "localhost"], &["--listen is \"localhost\"", "127.0.0.1:3000"]),
        (&["--listen", "127.0.0.1:9464"], &["--ops-listen"]),
        (&["--log", "loud"], &["--log is \"loud\""]),
        (
            &["--durability", "memory", "--queue-overflow", "spill"],
            &["--queue-overflow is \"spill\"", "no journal to spill into"],
        ),
        (&["--journal-bytes-max", "1000000"], &["--journal-bytes-max is 1000000", "a size from 1MiB"]),
        (&["--durability", "none"], &["fsync, os, memory"]),
    ] {
        for command in [&["config", "check"][..], &["serve"]] {
            assert_has(&shell.refused(64, &[command, args].concat()), words);
        }
    }
    let shell = shell.with("MILLRACE_PIN", "perhaps");
    for command in [&["serve"][..], &["org", "list"], &["migrate"]] {
        assert_has(&shell.refused(64, command), &["MILLRACE_PIN is \"perhaps\"", "true or false"]);
    }
}

#[test]
fn the_database_password_is_never_shown() {
    let shell =
        Shell::new().with("DATABASE_URL", format!("postgres://app:{PASSWORD}@127.0.0.1:1/db?password={PASSWORD}"));
    let text = shell.ok(&["config", "check"]);
    assert_has(&text, &["database_url = \"postgres://app:***@127.0.0.1:1/db?password=***\"", "# DATABASE_URL"]);
    assert!(!text.contains(PASSWORD), "{text}");

    shell.file("broken.toml", &format!("database_url = \"postgres://app:{PASSWORD}@h/db\n"));
    let flag = format!("app:{PASSWORD}@h/db");
    for args in [&["serve", "--config", "broken.toml"][..], &["org", "list", "--database-url", &flag]] {
        let message = shell.refused(64, args);
        assert!(!message.contains(PASSWORD), "{message}");
    }
}

#[test]
fn a_bad_database_url_exits_with_64_and_names_the_option() {
    for (query, option) in [
        ("?pgbouncer=true", "`pgbouncer`"),
        ("?connection_limit=5", "`connection_limit`"),
        ("?gssencmode=require", "`gssencmode`"),
        ("?target_session_attrs=read-only", "`target_session_attrs`"),
        ("?sslmode=sometimes", "`sslmode`"),
        ("?sslrootcert=/nowhere.pem", "`sslrootcert`"),
        ("?sslcert=/c.pem", "`sslcert`"),
        ("@/db", "%40"),
    ] {
        let url = format!("postgres://app:{PASSWORD}@127.0.0.1:1/db{query}");
        let shell = Shell::new().with("DATABASE_URL", url.replace("/db@/db", "@127.0.0.1/db"));
        for args in [&["serve"][..], &["org", "list"], &["migrate"], &["config", "check"]] {
            let message = shell.refused(64, args);
            assert_has(&message, &["DATABASE_URL cannot be used", option]);
            assert!(!message.contains(PASSWORD), "{message}");
        }
    }
    let as_read_from_a_file = format!("postgres://app:{PASSWORD}@127.0.0.1:1/db?sslmode=allow&schema=app\n");
    let shell = Shell::new().with("DATABASE_URL", as_read_from_a_file);
    assert_has(&shell.refused(1, &["org", "list"]), &["unavailable"]);
}

#[test]
fn an_unreachable_database_exits_with_1_and_says_what_to_check() {
    let shell = Shell::new().with("DATABASE_URL", format!("postgres://app:{PASSWORD}@127.0.0.1:1/db"));
    for args in [&["org", "list"][..], &["migrate"]] {
        let message = shell.refused(1, args);
        assert_has(&message, &["unavailable", "fix: ", "postgres://app:***@127.0.0.1:1/db"]);
        assert!(!message.contains(PASSWORD), "{message}");
    }
}

// ---- organisations and keys, on the embedded store ---------------------------------------------------------

#[test]
fn an_organisation_is_made_listed_changed_and_disabled() {
    organisation_commands(&Shell::with_store());
}

#[test]
fn a_key_is_made_listed_rotated_and_revoked() {
    key_commands(&Shell::with_store());
}

/// Every `org` command, on the store that the shell's environment names; it must be empty.
fn organisation_commands(shell: &Shell) {
    let made = shell.json(&["org", "create", "acme", "--rate-limit", "0"]);
    assert_eq!(keys_of(&made).len(), 4);
    assert_eq!((&made["name"], &made["rate_limit_per_minute"]), (&Value::from("acme"), &Value::from(0)));
    let key = made["api_key"].as_str().unwrap();
    assert!(millrace_base::key::parse(key.as_bytes()).is_some());

    assert_eq!(shell.json(&["org", "create", "beta"])["rate_limit_per_minute"], Value::Null);
    assert_has(&shell.refused(1, &["org", "create", "acme"]), &["acme"]);

    let listed = shell.json(&["org", "list"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|org| org["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["acme", "beta"]);
    assert_eq!(listed[0]["org_id"], made["org_id"]);
    assert!(!listed.to_string().contains(key), "a key is shown once");

    let id = made["org_id"].as_str().unwrap();
    let changed = shell.json(&["org", "update", id, "--name", "acme 2", "--rate-limit", "60"]);
    assert_eq!((&changed["name"], &changed["rate_limit_per_minute"]), (&Value::from("acme 2"), &Value::from(60)));
    assert_eq!(shell.json(&["org", "update", id, "--rate-limit", "default"])["rate_limit_per_minute"], Value::Null);
    assert_eq!(shell.json(&["org", "disable", "acme 2"])["disabled"], Value::Bool(true));
    assert_eq!(shell.json(&["org", "update", "acme 2", "--enable"])["disabled"], Value::Bool(false));
    assert_eq!(shell.json(&["org", "disable", "acme 2"])["disabled"], Value::Bool(true));
    assert_eq!(shell.json(&["org", "enable", "acme 2"])["disabled"], Value::Bool(false));
    shell.refused(1, &["org", "disable", "nobody"]);
    shell.refused(1, &["org", "enable", "nobody"]);

    let table = shell.ok(&["org", "list"]);
    assert_has(&table, &["NAME", "acme 2", id, "the server's default", "enabled"]);
}

/// Every `key` command, on the store that the shell's environment names; it must be empty.
fn key_commands(shell: &Shell) {
    let org = shell.json(&["org", "create", "acme"]);
    let made = shell.json(&["key", "create", "acme", "--argon2-memory-kib", "64"]);
    assert_eq!(keys_of(&made).len(), 3);
    assert_eq!(made["org_id"], org["org_id"]);
    let id = made["key_id"].as_str().unwrap();
    let parsed = millrace_base::key::parse(made["api_key"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(parsed.as_str(), id);

    let seconds_left = |rotated: &Value| {
        let at =
            millrace_base::clock::Timestamp::parse_rfc3339(rotated["previous_expires_at"].as_str().unwrap()).unwrap();
        (at.as_micros() - millrace_base::clock::Timestamp::now().as_micros()) / 1_000_000
    };
    let rotated = shell.json(&["key", "rotate", id]);
    assert!((86_000..=86_400).contains(&seconds_left(&rotated)), "a day where nothing is said: {rotated}");
    shell.json(&["key", "revoke", rotated["key_id"].as_str().unwrap()]);
    let rotated = shell.json(&["key", "rotate", id, "--grace", "1h"]);
    assert_eq!(keys_of(&rotated).len(), 3);
    assert!((3500..=3600).contains(&seconds_left(&rotated)), "{rotated}");

    let new_id = rotated["key_id"].as_str().unwrap();
    assert_eq!(shell.json(&["key", "revoke", new_id])["revoked"], Value::Bool(true));
    let listed = shell.json(&["key", "list", "acme"]);
    let find = |id: &str| listed.as_array().unwrap().iter().find(|key| key["key_id"] == id).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(find(id)["expires_at"], rotated["previous_expires_at"]);
    assert!(find(new_id)["revoked_at"].is_string());
    assert!(!listed.to_string().contains("mr_"), "a key is shown once");
    assert_has(&shell.ok(&["key", "list", "acme"]), &["KEY ID", "valid until 20", "revoked 20", "never"]);

    assert_has(&shell.refused(1, &["key", "revoke", "000000000000"]), &["000000000000", "key list"]);
    shell.refused(1, &["key", "rotate", "000000000000"]);
    shell.refused(1, &["key", "list", "nobody"]);
}

#[test]
fn people_are_told_that_a_key_is_shown_once() {
    let shell = Shell::with_store();
    let org = shell.ok(&["org", "create", "acme"]);
    let key = shell.ok(&["key", "create", "acme"]);
    let id = |text: &str| text[text.find("mr_").unwrap() + 3..][..12].to_owned();
    for text in [&org, &key, &shell.ok(&["key", "rotate", &id(&key)])] {
        assert_has(text, &["mr_", "only this once"]);
    }
}

#[test]
fn migrating_twice_is_no_error() {
    let shell = Shell::new();
    fs::create_dir(shell.dir.path().join("here")).unwrap();
    shell.file("here/millrace.db", "");
    assert_has(&shell.ok(&["migrate", "--data-dir", "here"]), &["Applied", "sqlite"]);
    assert_has(&shell.ok(&["--data-dir", "here", "migrate"]), &["sqlite schema is up to date"]);
}

#[test]
fn a_command_makes_no_store_and_says_which_it_used() {
    let shell = Shell::new();
    for args in [&["org", "list"][..], &["org", "create", "acme"], &["migrate"], &["quarantine", "list"]] {
        assert_has(&shell.refused(1, args), &["no store in ./millrace-data", "--data-dir", "DATABASE_URL", "serve"]);
    }
    assert_eq!(fs::read_dir(shell.dir.path()).unwrap().count(), 0, "nothing is left behind");

    let shell = Shell::with_store();
    let place = shell.dir.path().canonicalize().unwrap().join("millrace-data");
    for args in [&["org", "list"][..], &["org", "list", "--json"], &["migrate"]] {
        let ended = shell.run(args);
        assert_eq!(ended.stderr, format!("store: the embedded store in {}\n", place.display()), "{ended:?}");
    }
    let shell = shell.with("DATABASE_URL", format!("postgres://app:{PASSWORD}@127.0.0.1:1/db"));
    let ended = shell.run(&["org", "list"]);
    assert!(ended.stderr.starts_with("store: postgres://app:***@127.0.0.1:1/db\nerror: "), "{ended:?}");
}

#[test]
fn what_root_makes_beside_another_users_store_is_that_users() {
    use std::os::unix::fs::{MetadataExt, chown};
    const OWNER: u32 = 65_534;
    let shell = Shell::with_store();
    let directory = shell.dir.path().join("millrace-data");
    let files = || fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = files().chain([directory.clone()]).collect();
    // Only root may give files away.
    let owner = if all.iter().all(|path| chown(path, Some(OWNER), Some(OWNER)).is_ok()) {
        OWNER
    } else {
        directory.metadata().unwrap().uid()
    };
    shell.ok(&["org", "create", "acme"]);
    shell.ok(&["endpoint", "create", "acme", "https://example.com/hook"]);
    assert!(directory.join("webhook-secret.key").exists());
    for path in files() {
        assert_eq!(path.metadata().unwrap().uid(), owner, "{}", path.display());
    }
}

#[test]
fn a_data_directory_that_is_a_file_exits_with_1() {
    let shell = Shell::new();
    shell.file("file", "");
    assert_has(&shell.refused(1, &["org", "list", "--data-dir", "file"]), &["fix: ", "--data-dir"]);
}

// ---- closed and full outputs -------------------------------------------------------------------------------

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let shell = Shell::new();
    let ended = with_closed_stdout(&shell, &["config", "check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let ended = with_closed_stdout(&shell, &["--help"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

#[test]
fn a_full_disk_is_an_error() {
    let shell = Shell::new();
    let full = fs::OpenOptions::new().write(true).open(Path::new("/dev/full")).unwrap();
    let output = shell.command(&["config", "check"]).stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_has(&stderr, &["the result cannot be written"]);
}

#[test]
fn a_key_that_could_not_be_shown_is_an_error() {
    let shell = Shell::with_store();
    let ended = with_closed_stdout(&shell, &["org", "create", "acme"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_has(&ended.stderr, &["could not be shown", "fix: replace it with `millrace key rotate "]);
    let rotate = ended.stderr.split("rotate ").nth(1).unwrap();
    shell.json(&["key", "rotate", &rotate[..12]]);
}

/// Runs a command whose standard output is a pipe that nobody reads any more.
fn with_closed_stdout(shell: &Shell, args: &[&str]) -> Ended {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = shell.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Ended { code: child.wait().unwrap().code(), stdout: String::new(), stderr }
}
