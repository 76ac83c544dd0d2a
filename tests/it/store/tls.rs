//! TLS to Postgres: `require` verifies, `prefer` encrypts where it can.

use std::path::Path;
use std::process::{Command, Stdio};

use millrace_store::postgres::PostgresStore;
use millrace_store::{Store, StoreError};
use support::postgres::{Cluster, Options, with_option};

use crate::store::fixture::admin;

const EC_KEY: &str = "ec -pkeyopt ec_paramgen_curve:prime256v1";

/// A certificate authority and a certificate for `localhost`, as files in `dir`; the server's key is of this kind.
fn make_certificates(dir: &Path, server_key: &str) {
    let openssl = |args: &str| {
        let run = Command::new("openssl").current_dir(dir).args(args.split_whitespace()).stdin(Stdio::null()).output();
        let run = run.expect("these tests need the program `openssl`");
        assert!(run.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&run.stderr));
    };
    std::fs::write(dir.join("leaf.ext"), "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n").unwrap();
    openssl(&format!("req -x509 -days 2 -newkey {EC_KEY} -nodes -subj /CN=ca -keyout ca.key -out ca.pem"));
    openssl(&format!("req -newkey {server_key} -nodes -subj /CN=server -keyout server.key -out server.csr"));
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out server.crt",
    );
}

#[test]
fn the_servers_certificate_is_verified_where_tls_is_required() {
    let mut cluster = Cluster::start_own(Options::default());
    let url = cluster.tcp_url("postgres");
    let organizations = |url: &str| PostgresStore::new(url, 1).unwrap().organizations();
    let encrypted = |cluster: &Cluster, url: &str| {
        let store = PostgresStore::new(url, 1).unwrap();
        store.organizations().unwrap();
        let count = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE application_name = 'millrace' AND ssl";
        admin(&cluster.url("postgres")).query_one(count, &[]).unwrap().get::<_, i64>(0) > 0
    };
    PostgresStore::new(&url, 1).unwrap().migrate().unwrap();

    // A server without TLS.
    assert!(!encrypted(&cluster, &url));
    assert!(matches!(organizations(&with_option(&url, "sslmode=require")), Err(StoreError::Misconfigured(_))));

    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path(), EC_KEY);
    cluster.install_certificate(&dir.path().join("server.crt"), &dir.path().join("server.key"));
    let by_name = url.replace("127.0.0.1", "localhost");
    let trusted = format!("sslrootcert={}", dir.path().join("ca.pem").display());

    assert!(encrypted(&cluster, &with_option(&by_name, &format!("sslmode=require&{trusted}"))));
    assert!(encrypted(&cluster, &with_option(&by_name, &format!("sslmode=verify-full&{trusted}"))));
    assert!(encrypted(&cluster, &with_option(&url, "sslmode=prefer")));
    assert!(!encrypted(&cluster, &with_option(&url, "sslmode=disable")));
    for wrong in [
        // Nobody we know signed it; signed, for another name; the same although TLS is only preferred.
        with_option(&by_name, "sslmode=require"),
        with_option(&url, &format!("sslmode=require&{trusted}")),
        with_option(&url, &trusted),
    ] {
        let refused = organizations(&wrong);
        let Err(StoreError::Misconfigured(why)) = refused else { panic!("{wrong}: {refused:?}") };
        assert!(why.contains("certificate"), "{why}");
    }
}

#[test]
fn a_server_with_an_rsa_pss_key_is_connected_to() {
    let restricted = "rsa-pss -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:sha256 -pkeyopt \
                      rsa_pss_keygen_mgf1_md:sha256 -pkeyopt rsa_pss_keygen_saltlen:32";
    for server_key in ["rsa-pss -pkeyopt rsa_keygen_bits:2048", restricted] {
        let mut cluster = Cluster::start_own(Options::default());
        let dir = tempfile::tempdir().unwrap();
        make_certificates(dir.path(), server_key);
        cluster.install_certificate(&dir.path().join("server.crt"), &dir.path().join("server.key"));
        let url = cluster.tcp_url("postgres").replace("127.0.0.1", "localhost");
        let trusted = format!("sslmode=verify-full&sslrootcert={}", dir.path().join("ca.pem").display());
        for options in ["sslmode=prefer", "sslmode=no-verify", &trusted] {
            let store = PostgresStore::new(&with_option(&url, options), 1).unwrap();
            let migrated = store.migrate();
            assert!(migrated.is_ok(), "{server_key}, {options}: {migrated:?}");
        }
        // Nobody we know signed it.
        let refused = PostgresStore::new(&with_option(&url, "sslmode=require"), 1).unwrap().organizations();
        assert!(matches!(refused, Err(StoreError::Misconfigured(_))), "{refused:?}");
    }
}
