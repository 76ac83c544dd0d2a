//! Shows the first API key, on the first start of an empty embedded store, with two lines to paste.
//!
//! The key is printed to a terminal only. Where standard output is anything else, somebody stores it: a journal, a log driver,
//! a file. Then the key goes to a file that only its owner can read, and the output names that file.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::output;

/// The key's file in the data directory.
const FILE: &str = "first-api-key";

/// The event of the example.
const EVENT: &str = r#"{"type":"user.login","payload":{"user":"ada"}}"#;

/// Prints the first key of the server at `listen`, or writes it to a file in `data_dir`.
///
/// # Errors
/// Where neither is possible. The key is lost then.
pub fn show_first_key(listen: SocketAddr, data_dir: &Path, api_key: &str) -> io::Result<()> {
    if io::stdout().is_terminal() {
        let shown = format!("with this API key, which is shown only this once:\n\n  {api_key}");
        return output::write(&banner(listen, &shown, &format!("'X-API-Key: {api_key}'")));
    }
    let path = keep(data_dir, api_key)?;
    let path = path.display();
    let kept = format!("and put its API key into this file; remove it once you have the key:\n\n  {path}");
    output::write(&banner(listen, &kept, &format!("\"X-API-Key: $(cat '{path}')\"")))
        .map_err(|error| io::Error::other(format!("it is in {path}, which could not be printed: {error}")))
}

/// Writes the key into a new file that only this user may read.
fn keep(data_dir: &Path, api_key: &str) -> io::Result<PathBuf> {
    let path = std::path::absolute(data_dir)?.join(FILE);
    // A file that an earlier store left.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "{api_key}")?;
    file.sync_all()?;
    Ok(path)
}

/// The text that says where the key is, with two curl lines to paste: one posts an event to the server at `listen`, the other
/// reads it back.
fn banner(listen: SocketAddr, key: &str, header: &str) -> String {
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    format!(
        r#"
First start: made the organisation "default" {key}

Post an event:

  curl -i 'http://{address}/api/events' -H {header} -H 'Content-Type: application/json' -d '{EVENT}'

Read it back:

  curl -H {header} 'http://{address}/api/events'

"#
    )
}

/// An address that one can connect to, also where the server listens on all addresses.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_the_key_and_an_address_one_can_connect_to() {
        for (listen, url) in [
            ("127.0.0.1:3000", "'http://127.0.0.1:3000/api/events'"),
            ("0.0.0.0:80", "'http://127.0.0.1:80/api/events'"),
            ("[::]:3000", "'http://[::1]:3000/api/events'"),
            ("192.0.2.7:3000", "'http://192.0.2.7:3000/api/events'"),
        ] {
            let banner = banner(listen.parse().unwrap(), "mr_key", "'X-API-Key: mr_key'");
            let curls: Vec<&str> = banner.lines().filter(|line| line.starts_with("  curl ")).collect();
            assert_eq!(curls.len(), 2, "{banner}");
            for curl in curls {
                assert!(curl.contains(url) && curl.contains("-H 'X-API-Key: mr_key'"), "{curl}");
            }
            assert!(banner.contains(r#"-d '{"type":"user.login","payload":{"user":"ada"}}'"#), "{banner}");
        }
    }

    #[test]
    fn the_key_s_file_is_new_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "an older one, which anybody may read").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(keep(dir.path(), "mr_key").unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mr_key\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
