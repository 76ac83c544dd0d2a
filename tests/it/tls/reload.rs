//! New certificate files at SIGHUP, and files that cannot be used.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustls::version::TLS13;
use rustls::{ALL_VERSIONS, HandshakeKind};

use support::program::program;
use support::server::eventually;

use crate::tls::fixture::{exchange, on_both_drivers, shown};

#[test]
fn new_certificates_are_loaded_under_load_without_errors() {
    on_both_drivers(&["--shards", "2"], |f| {
        let (is_over, requests) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for keeps_alive in [true, true, false, false] {
                let (is_over, requests) = (&is_over, &requests);
                scope.spawn(move || {
                    let config = f.client_config(ALL_VERSIONS);
                    let mut client = f.connect(&config);
                    while !is_over.load(Ordering::Relaxed) {
                        if !keeps_alive {
                            client = f.connect(&f.client_config(ALL_VERSIONS));
                        }
                        assert_eq!(exchange(&mut client, &f.good()).0, 202);
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut before = shown(&f.connect(&f.client_config(ALL_VERSIONS)));
            for _ in 0..5 {
                f.renew();
                f.server.signal("HUP");
                // Each shard looks when it accepts: both have when none shows the old one for a while.
                eventually("all shards show the new certificate", || {
                    (0..16).all(|_| shown(&f.connect(&f.client_config(ALL_VERSIONS))) != before)
                });
                before = shown(&f.connect(&f.client_config(ALL_VERSIONS)));
                // Each certificate is under load for a while, however slow the machine is.
                let seen = requests.load(Ordering::Relaxed);
                eventually("requests go on", || requests.load(Ordering::Relaxed) >= seen + 20);
            }
            is_over.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn files_that_cannot_be_used_change_nothing_and_the_log_says_so() {
    on_both_drivers(&["--shards", "1"], |f| {
        let config = f.client_config(&[&TLS13]);
        let mut held = f.connect(&config);
        let before = shown(&held);
        let [certificates, key] = f.files();
        let good = fs::read(&key).unwrap();
        fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        f.server.signal("HUP");
        eventually("the log says so", || f.server.log().contains("THE CERTIFICATE WAS NOT RELOADED"));
        assert_eq!(shown(&f.connect(&f.client_config(ALL_VERSIONS))), before);
        fs::remove_file(&certificates).unwrap();
        f.server.signal("HUP");
        eventually("again", || f.server.log().matches("THE CERTIFICATE WAS NOT RELOADED").count() == 2);
        assert_eq!(exchange(&mut held, &f.good()).0, 202);
        assert!(
            !f.server.log().contains(std::str::from_utf8(&good).unwrap().lines().nth(1).unwrap()),
            "the key is shown"
        );
        // Mended: the new certificate is shown, and tickets from before still work.
        f.renew();
        f.server.signal("HUP");
        eventually("the new certificate is shown", || shown(&f.connect(&f.client_config(ALL_VERSIONS))) != before);
        assert_eq!(f.connect(&config).conn.handshake_kind(), Some(HandshakeKind::Resumed));
    });
}

#[test]
fn a_start_without_usable_files_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (absent, empty) = (dir.path().join("absent.pem"), dir.path().join("empty.pem"));
    fs::write(&empty, "").unwrap();
    for (certificates, key, words) in [
        (Some(&absent), Some(&empty), "absent.pem"),
        (Some(&empty), Some(&absent), "no certificate in it"),
        (Some(&empty), None, "tls_key_file is not"),
    ] {
        for command in [&["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"][..], &["config", "check"]]
        {
            let mut program = Command::new(program());
            program.args(command).env_remove("DATABASE_URL").env("MILLRACE_DATA_DIR", dir.path().join("data"));
            for (flag, path) in [("--tls-cert-file", certificates), ("--tls-key-file", key)] {
                path.map(|path| program.arg(flag).arg(path));
            }
            let output = program.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{said}");
            assert!(said.contains(words) && said.contains("fix: "), "{said}");
        }
    }
}
