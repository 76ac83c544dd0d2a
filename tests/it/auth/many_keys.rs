//! How many keys an organisation can have, by the API and on the command line.

use millrace_base::limits::LIVE_KEYS_PER_ORG_MAX;
use support::installation::Installation;
use support::on_both_stores;
use support::server::Client;

use crate::auth::refusals::{id_of, key_made};

on_both_stores!(an_organisation_has_at_most_a_hundred_live_keys);

fn an_organisation_has_at_most_a_hundred_live_keys(installation: &Installation) {
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let mut client = server.connect();
    let rotate = |client: &mut Client, key: &str, grace: u32| {
        let body = format!("{{\"grace_seconds\":{grace}}}");
        client.request("POST", "/api/keys/rotate", Some(key), Some(body.as_bytes()))
    };
    let mut keys = vec![key];
    while keys.len() < LIVE_KEYS_PER_ORG_MAX {
        let rotated = rotate(&mut client, &keys[0], 3600);
        assert_eq!(rotated.status, 200, "{rotated:?}");
        keys.push(key_made(std::str::from_utf8(&rotated.body).expect("text")));
    }
    let refused = rotate(&mut client, &keys[0], 3600);
    assert_eq!((refused.status, &*refused.code()), (422, "too_many_keys"));
    for command in [&["key", "create", "test"][..], &["key", "rotate", id_of(&keys[1]), "--grace", "60"]] {
        let why = server.cli_refused(command);
        assert!(why.contains("100 live keys") && why.contains("fix: revoke one"), "{why}");
    }
    // Nothing became of what was refused, and a plain replacement goes on.
    let list = client.request("GET", "/api/keys", Some(&keys[1]), None).json();
    assert_eq!((list["data"].as_array().expect("a list").len(), &list["has_more"]), (100, &false.into()));
    let replaced = rotate(&mut client, &keys[1], 0);
    assert_eq!(replaced.status, 200, "{replaced:?}");
    server.cli(&["key", "rotate", id_of(&keys[2]), "--grace", "0"]);
    assert_eq!(rotate(&mut client, &keys[3], 1).code(), "too_many_keys");
    server.cli(&["key", "revoke", id_of(&keys[4])]);
    key_made(&server.cli(&["key", "create", "test", "--json"]));
    assert_eq!(server.cli(&["key", "list", "test"]).lines().count(), 1 + 103);
}
