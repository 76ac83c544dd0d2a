//! Endpoints made, read, changed and deleted; their secrets.

use serde_json::{Value, json};

use support::installation::Installation;
use support::on_both_stores;

use crate::webhook_routes::{Api, id_of, ids};

on_both_stores!(
    an_endpoint_lives_from_post_to_delete,
    a_change_leaves_what_it_does_not_name,
    secrets_are_shown_once_and_nowhere_else,
    pages_of_endpoints_meet,
    settings_of_the_server_decide_which_targets_are_allowed,
    the_sealing_key_outlives_the_server,
);

fn an_endpoint_lives_from_post_to_delete(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let least = api.create(&json!({"url": "https://EXAMPLE.invalid"}));
    let expected = json!({
        "id": least["id"], "url": "https://example.invalid/", "description": "", "event_types": null, "headers": {},
        "enabled": true, "disabled_reason": null, "rate_limit_per_second": null, "created_at": least["created_at"],
        "secret": least["secret"],
    });
    assert_eq!(least, expected);
    let whole = json!({
        "url": "https://example.invalid/a?b=c", "description": "\"Ünï\" 😀", "event_types": ["a.*", "b"],
        "headers": {"X-Z": "1", "Authorization": "Bearer x\ty"}, "enabled": false, "rate_limit_per_second": 7,
    });
    let made = api.create(&whole);
    for (name, value) in whole.as_object().unwrap() {
        assert_eq!(made[name], *value, "{name}");
    }
    let answer = api.ask(
        "POST",
        "/api/endpoints",
        Some(&json!({"url": "https://example.invalid/", "rate_limit_per_second": 8.0})),
    );
    let located = answer.headers["location"].clone();
    assert_eq!(api.get(200, "GET", &located, None)["rate_limit_per_second"], 8, "an integer, however it is written");
    api.get(204, "DELETE", &located, None);
    let path = format!("/api/endpoints/{}", id_of(&made));
    let mut shown = made.clone();
    shown.as_object_mut().unwrap().remove("secret");
    assert_eq!(api.get(200, "GET", &path, None), shown);
    assert_eq!(api.ask("HEAD", &path, None).status, 200);
    assert_eq!(ids(&api.walk("/api/endpoints", 100)), [id_of(&made), id_of(&least)]);
    assert_eq!(api.get(200, "GET", "/api/endpoints?cursor=", None)["data"].as_array().unwrap().len(), 2);

    assert_eq!(api.get(204, "DELETE", &path, None), Value::Null);
    for method in ["DELETE", "GET"] {
        let refused = api.refused(404, "not_found", method, &path, None);
        assert!(refused["detail"].as_str().unwrap().contains("there is no such endpoint"), "{refused}");
    }
    api.refused(404, "not_found", "PATCH", &path, Some(&json!({"enabled": true})));
    assert_eq!(ids(&api.walk("/api/endpoints", 100)), [id_of(&least)]);
}

fn a_change_leaves_what_it_does_not_name(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let mut expected = api.create(&json!({
        "url": "https://example.invalid/", "description": "d", "event_types": ["a"], "headers": {"X-A": "1"},
        "rate_limit_per_second": 5,
    }));
    expected.as_object_mut().unwrap().remove("secret");
    let path = format!("/api/endpoints/{}", id_of(&expected));
    for (name, value, shown) in [
        ("url", json!("https://example.invalid/other"), json!("https://example.invalid/other")),
        ("description", json!("e"), json!("e")),
        ("event_types", json!(["b.*", "c"]), json!(["b.*", "c"])),
        ("headers", json!({"X-B": "2"}), json!({"X-B": "2"})),
        ("enabled", json!(false), json!(false)),
        ("rate_limit_per_second", json!(9), json!(9)),
        ("description", Value::Null, json!("")),
        ("event_types", Value::Null, Value::Null),
        ("headers", Value::Null, json!({})),
        ("rate_limit_per_second", Value::Null, Value::Null),
        ("enabled", json!(true), json!(true)),
    ] {
        expected[name] = shown;
        assert_eq!(api.get(200, "PATCH", &path, Some(&json!({name: value}))), expected, "{name}");
        assert_eq!(api.get(200, "GET", &path, None), expected);
    }
    assert_eq!(api.get(200, "PATCH", &path, Some(&json!({}))), expected);
    api.refused(400, "invalid_json", "PATCH", &path, None);
    assert_eq!(api.get(200, "GET", &path, None), expected, "no body is no change");
}

fn secrets_are_shown_once_and_nowhere_else(installation: &Installation) {
    let server = installation.start(&["--log", "debug"]);
    let mut api = Api::new(&server, "ours");
    let given = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let made = api.create(&json!({"url": "https://example.invalid/", "secret": given}));
    assert_eq!(made["secret"], given);
    let path = format!("/api/endpoints/{}", id_of(&made));
    let rotate = format!("{path}/rotate-secret");
    let generated = api.get(200, "POST", &rotate, None);
    let again = api.get(200, "POST", &rotate, Some(&json!({"overlap_seconds": 0})));
    let back = api.get(200, "POST", &rotate, Some(&json!({"secret": given, "overlap_seconds": 60})));
    assert_eq!((&back["secret"], back.as_object().unwrap().len()), (&json!(given), 10));
    let secrets = [&made, &generated, &again].map(|answer| answer["secret"].as_str().unwrap().to_owned());
    assert!(secrets.iter().all(|secret| secret.starts_with("whsec_")));
    assert_ne!(secrets[1], secrets[2]);
    let shown = [
        api.get(200, "GET", &path, None).to_string(),
        api.get(200, "GET", "/api/endpoints", None).to_string(),
        api.get(200, "PATCH", &path, Some(&json!({"description": "d"}))).to_string(),
        server.cli(&["endpoint", "list", "ours", "--json"]),
        server.scrape(),
        server.log(),
    ];
    for (secret, shown) in secrets.iter().flat_map(|secret| shown.iter().map(move |shown| (secret, shown))) {
        assert!(!shown.contains(&secret["whsec_".len()..]), "{shown}");
    }
}

fn pages_of_endpoints_meet(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let mut made: Vec<String> =
        (0..7).map(|_| id_of(&api.create(&json!({"url": "https://example.invalid/"})))).collect();
    made.reverse();
    for limit in [1, 2, 3, 7, 8] {
        assert_eq!(ids(&api.walk("/api/endpoints", limit)), made, "{limit}");
    }
}

fn settings_of_the_server_decide_which_targets_are_allowed(installation: &Installation) {
    for (args, insecure, private) in [
        (&[][..], 422, 422),
        (&["--webhook-allowed-networks", "10.1.0.0/16,fd00::/8"], 422, 201),
        (&["--allow-insecure-webhooks"], 201, 201),
    ] {
        // Each server has a data directory of its own, and the key is one.
        let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let mut server = installation.start(&[args, &["--webhook-secret-key", key]].concat());
        let mut api = Api::new(&server, &format!("org{}", args.concat()));
        for (url, status) in [
            ("http://127.0.0.1:1/", insecure),
            ("https://127.0.0.1:1/", insecure),
            ("https://10.1.2.3/", private),
            ("https://[fd00::1]/", private),
            ("https://8.8.8.8/", 201),
        ] {
            let answer = api.ask("POST", "/api/endpoints", Some(&json!({"url": url, "enabled": false})));
            assert_eq!(answer.status, status, "{args:?} {url}");
        }
        server.stop();
    }
}

fn the_sealing_key_outlives_the_server(installation: &Installation) {
    // On Postgres it must be configured to do so.
    let key = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
    let args: &[&str] = if installation.is_postgres() { &["--webhook-secret-key", key] } else { &[] };
    let mut server = installation.start(args);
    let mut api = Api::new(&server, "ours");
    api.create(&json!({"url": "https://example.invalid/"}));
    server.stop();
    let server = installation.start(args);
    // The command refuses where the secrets that are there cannot be opened with the server's key.
    let create = ["endpoint", "create", "ours", "https://example.invalid/", "--json"];
    server.cli(&[&create, args].concat());
    if !installation.is_postgres() {
        let mode = std::fs::metadata(installation.data_dir().join("webhook-secret.key")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    }
}
