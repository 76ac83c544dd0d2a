//! What the first start of an empty embedded store tells its user: the key, once, and two lines to paste.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An event to try it with.
const EVENT: &str = r#"{"type":"user.login","payload":{"user":"ada"}}"#;

/// The key and two curl lines ready to paste: one that posts an event to the server at `listen`, one that reads
/// it back. Holds the key in clear: print it once, to standard output, never to the log.
pub fn first_run_banner(listen: SocketAddr, api_key: &str) -> String {
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    format!(
        r#"
First start: made the organisation "default" with this API key, which is shown only this once:

  {api_key}

Post an event:

  curl -i 'http://{address}/api/events' -H 'X-API-Key: {api_key}' -H 'Content-Type: application/json' -d '{EVENT}'

Read it back:

  curl -H 'X-API-Key: {api_key}' 'http://{address}/api/events'

"#
    )
}

/// An address to connect to where the server listens on all of them.
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
            let banner = first_run_banner(listen.parse().unwrap(), "mr_key");
            let curls: Vec<&str> = banner.lines().filter(|line| line.starts_with("  curl ")).collect();
            assert_eq!(curls.len(), 2, "{banner}");
            for curl in curls {
                assert!(curl.contains(url) && curl.contains("-H 'X-API-Key: mr_key'"), "{curl}");
            }
            assert!(banner.contains(r#"-d '{"type":"user.login","payload":{"user":"ada"}}'"#), "{banner}");
        }
    }
}
