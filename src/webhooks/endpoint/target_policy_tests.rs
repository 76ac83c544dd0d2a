//! The edges of every address range, and every way to write a URL that leads to a refused address.

use std::net::IpAddr;

use super::{TargetPolicy, request_uri};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn insecure() -> TargetPolicy {
    TargetPolicy { allow_insecure: true, ..TargetPolicy::default() }
}

#[test]
fn the_edges_of_every_range() {
    // The address before the range, its first, its last, and the one after it; "-" if that is in another refused range or
    // does not exist.
    let ranges = [
        ["-", "0.0.0.0", "0.255.255.255", "1.0.0.0"],
        ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"],
        ["100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"],
        ["126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"],
        ["169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"],
        ["172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"],
        ["191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"],
        ["192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"],
        ["192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0"],
        ["192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0"],
        ["192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"],
        ["192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"],
        ["192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0"],
        ["198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"],
        ["198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"],
        ["203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"],
        ["223.255.255.255", "224.0.0.0", "239.255.255.255", "-"],
        ["-", "240.0.0.0", "255.255.255.255", "-"],
        // Everything below and above global unicast.
        ["-", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"],
        ["3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"],
        ["3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"],
        ["2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"],
        [
            "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db9::",
        ],
        ["2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"],
    ];
    let policy = TargetPolicy::default();
    for [before, first, last, after] in ranges {
        for (text, allowed) in [(before, true), (first, false), (last, false), (after, true)] {
            if text != "-" {
                assert_eq!(policy.allows(address(text)), allowed, "{text}");
                assert!(insecure().allows(address(text)), "{text}");
            }
        }
    }
}

#[test]
fn addresses_that_are_something_else_in_disguise() {
    let policy = TargetPolicy::default();
    for text in [
        "::1",                     // loopback
        "::ffff:127.0.0.1",        // mapped
        "::ffff:8.8.8.8",          // mapped, of a public one
        "::127.0.0.1",             // compatible
        "::ffff:0:127.0.0.1",      // translated
        "64:ff9b::10.0.0.1",       // NAT64
        "64:ff9b:1::a00:1",        // local NAT64
        "100::1",                  // discard
        "2001::53aa:64c:0:7f00:1", // Teredo
        "2002:7f00:1::",           // 6to4
        "5f00::1",                 // SRv6
        "fc00::1",                 // unique local
        "fd00:ec2::254",           // a cloud's metadata
        "fe80::1",                 // link-local
        "fec0::1",                 // site-local
        "ff02::1",                 // multicast
    ] {
        assert!(!policy.allows(address(text)), "{text}");
    }
    for text in ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"] {
        assert!(policy.allows(address(text)), "{text}");
    }
}

#[test]
fn networks_are_opened_and_addresses_stay_closed() {
    let policy = TargetPolicy {
        allow_insecure: false,
        allowed_networks: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
        forbidden: ["10.1.0.1", "8.8.4.4", "2606:4700::1"].map(address).to_vec(),
        ..TargetPolicy::default()
    };
    for (text, allowed) in [
        ("10.1.0.0", true),
        ("10.1.255.255", true),
        ("10.0.255.255", false),
        ("10.2.0.0", false),
        ("::ffff:10.1.0.2", false),
        ("fd00:1::5", true),
        ("fd00:2::5", false),
        ("10.1.0.1", false),
        ("8.8.4.4", false),
        ("8.8.8.8", true),
        ("2606:4700::1", false),
    ] {
        assert_eq!(policy.allows(address(text)), allowed, "{text}");
    }
    let open = TargetPolicy { allow_insecure: true, ..policy };
    for (text, allowed) in
        [("127.0.0.1", true), ("10.1.0.1", false), ("::ffff:10.1.0.1", false), ("::ffff:10.1.0.2", true)]
    {
        assert_eq!(open.allows(address(text)), allowed, "{text}");
    }
    // The same for literal addresses in URLs.
    assert!(open.parse_url("https://10.1.0.1/").is_err());
    assert!(open.parse_url("https://10.1.0.2/").is_ok());
}

#[test]
fn own_addresses_are_refused_when_listening_on_all() {
    let everything = || vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let open = TargetPolicy { allowed_networks: everything(), ..TargetPolicy::default() };
    let policy = TargetPolicy { allowed_networks: everything(), forbids_machine: true, ..TargetPolicy::default() };
    // An address of this machine other than loopback.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own =
        socket.connect("192.0.2.1:9").ok().and_then(|()| socket.local_addr().ok()).map(|own| own.ip().to_string());
    let loopback = ["127.0.0.1", "127.8.9.10", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"];
    for text in loopback.into_iter().chain(own.as_deref()) {
        assert!(open.allows(address(text)) && !policy.allows(address(text)), "{text}");
    }
    for text in ["10.0.0.1", "192.0.2.1", "8.8.8.8", "2606:4700::1", "fd00::1"] {
        assert!(policy.allows(address(text)), "{text}");
    }
}

#[test]
fn the_database_stays_closed_wherever_it_is() {
    let policy = TargetPolicy { allowed_networks: vec!["0.0.0.0/0".parse().unwrap()], ..TargetPolicy::default() };
    assert!(policy.allows(address("10.0.0.5")));
    policy.database.set(["10.0.0.5", "127.0.0.1"].map(address).to_vec());
    let known_elsewhere = policy.clone();
    for text in ["10.0.0.5", "::ffff:10.0.0.5", "127.0.0.1", "0.0.0.0"] {
        assert!(!known_elsewhere.allows(address(text)), "{text}");
    }
    assert!(policy.parse_url("https://10.0.0.5:5432/").unwrap_err().contains("this server or its database is there"));
    // The database has moved.
    policy.database.set(vec![address("10.0.0.6")]);
    assert!(known_elsewhere.allows(address("10.0.0.5")) && !known_elsewhere.allows(address("10.0.0.6")));
    // Loopback is no longer the database, nor is the unspecified address, which leads to loopback.
    assert!(known_elsewhere.allows(address("0.0.0.0")));
}

#[test]
fn urls_that_are_taken() {
    let policy = TargetPolicy::default();
    for (text, normalised) in [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/a?b=c", "https://example.com/a?b=c"),
        ("https://example.com:8443/hook", "https://example.com:8443/hook"),
        ("https://bücher.example/ü?ü", "https://xn--bcher-kva.example/%C3%BC?%C3%BC"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://134744072/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]:1/", "https://[2606:4700::1111]:1/"),
        ("https://example.com/a/../b", "https://example.com/b"),
        ("https://example.com/?{a}|^`'", "https://example.com/?{a}|^`%27"),
        ("https://notlocalhost/", "https://notlocalhost/"),
    ] {
        let url = policy.parse_url(text).unwrap_or_else(|complaint| panic!("{text}: {complaint}"));
        assert_eq!(url.as_str(), normalised);
        assert_eq!(request_uri(&url).unwrap().to_string(), normalised);
    }
    for text in ["http://127.0.0.1:3000/", "http://localhost/", "https://[::1]/", "http://a.localhost/"] {
        assert!(insecure().parse_url(text).is_ok(), "{text}");
    }
}

#[test]
fn urls_that_are_refused() {
    let policy = TargetPolicy::default();
    let cases = [
        ("", "not a URL"),
        ("example.com/hook", "not a URL"),
        ("//example.com/hook", "not a URL"),
        ("https://", "not a URL"),
        ("https://exa mple.com/", "white space"),
        (" https://example.com/", "white space"),
        ("https://exam\tple.com/", "white space"),
        ("https://example.com/\n", "white space"),
        ("https://example.com/\u{7f}", "white space"),
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("data:text/plain,x", "https://"),
        ("javascript:alert(1)", "https://"),
        ("https://user@example.com/", "credentials"),
        ("https://user:password@example.com/", "credentials"),
        ("https://:password@example.com/", "credentials"),
        ("https://example.com/#", "fragment"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:65536/", "not a URL"),
        ("https://localhost/", "this machine"),
        ("https://LOCALHOST./", "this machine"),
        ("https://a.b.localhost/", "this machine"),
        ("https://1.2.3.4.5/", "not a URL"),
        ("https://[fe80::1%25eth0]/", "not a URL"),
    ];
    for (text, complaint) in cases {
        let answer = policy.parse_url(text).expect_err(text);
        assert!(answer.contains(complaint), "{text}: {answer}");
        assert!(!answer.contains("password"), "{answer}");
    }
    let long = |length: usize| format!("https://example.com/{}", "a".repeat(length - 20));
    assert!(policy.parse_url(&long(millrace_base::limits::WEBHOOK_URL_BYTES_MAX)).is_ok());
    assert!(policy.parse_url(&long(millrace_base::limits::WEBHOOK_URL_BYTES_MAX + 1)).unwrap_err().contains("longer"));
    let grows = format!("https://example.com/{}", "ü".repeat(millrace_base::limits::WEBHOOK_URL_BYTES_MAX / 4));
    assert!(policy.parse_url(&grows).unwrap_err().contains("cannot be sent"));
}

#[test]
fn every_way_to_write_an_address() {
    let policy = TargetPolicy::default();
    for text in [
        "https://127.0.0.1/",
        "https://127.0.0.1./",
        "https://127.1/",
        "https://127.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0X7F.1/",
        "https://017700000001/",
        "https://0177.0.0.01/",
        "https://0177.0x0.1/",
        "https://%31%32%37.0.0.1/",
        "https://127。0。0。1/",
        "https://①②⑦.0.0.1/",
        "https://0/",
        "https://0x0/",
        "https://10.1/",
        "https://0xa9fea9fe/",
        "https://2852039166/",
        "https://169.254.169.254:443/latest/meta-data",
        "https://192.168.257/",
        "https://[::1]/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[::]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[fe80::1]/",
        "https:\\\\127.0.0.1\\",
        "https:127.0.0.1/",
        "https:///127.0.0.1/",
    ] {
        let complaint = policy.parse_url(text).expect_err(text);
        assert!(complaint.contains("is not allowed"), "{text}: {complaint}");
    }
}
