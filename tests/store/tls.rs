//! TLS to Postgres: `require` verifies, `prefer` encrypts where it can.

use std::path::Path;
use std::process::{Command, Stdio};

use millrace::store::postgres::PostgresStore;
use millrace::store::{Store, StoreError};

use crate::common::postgres::{Cluster, Options, with_option};
use crate::fixture::admin;

/// A certificate authority and a certificate for `localhost`, as files in `dir`.
fn make_certificates(dir: &Path) {
    let openssl = |args: &str| {
        let run = Command::new("openssl").current_dir(dir).args(args.split_whitespace()).stdin(Stdio::null()).output();
        let run = run.expect("these tests need the program `openssl`");
        assert!(run.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&run.stderr));
    };
    std::fs::write(dir.join("leaf.ext"), "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n").unwrap();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 -days 2 {new_key} -subj /CN=ca -keyout ca.key -out ca.pem"));
    openssl(&format!("req {new_key} -subj /CN=server -keyout server.key -out server.csr"));
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
    make_certificates(dir.path());
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
