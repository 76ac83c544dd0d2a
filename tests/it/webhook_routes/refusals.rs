//! What is refused: wrong bodies field by field, what is another organisation's, wrong methods and media types.

use serde_json::{Value, json};

use support::installation::Installation;
use support::on_both_stores;
use support::server::{post_with, request};

use crate::webhook_routes::{Api, id_of};

on_both_stores!(
    wrong_fields_are_named,
    bodies_that_are_no_objects_are_refused,
    another_organisations_endpoints_are_not_there,
    one_endpoint_too_many_is_refused,
    wrong_methods_and_media_types_are_refused,
);

fn wrong_fields_are_named(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let endpoint = id_of(&api.create(&json!({"url": "https://example.invalid/"})));
    let (one, rotate, recover) = (
        format!("/api/endpoints/{endpoint}"),
        format!("/api/endpoints/{endpoint}/rotate-secret"),
        format!("/api/endpoints/{endpoint}/recover"),
    );
    let url = "https://example.invalid/";
    let long = "x".repeat(501);
    for (method, path, body, field, words) in [
        ("POST", "/api/endpoints", json!({}), "url", "is missing"),
        ("POST", "/api/endpoints", json!({"url": null}), "url", "must be a string"),
        ("POST", "/api/endpoints", json!({"url": "nowhere"}), "url", "https://"),
        ("POST", "/api/endpoints", json!({"url": "ftp://example.com"}), "url", "https://"),
        ("POST", "/api/endpoints", json!({"url": "https://u:p@example.com"}), "url", "credentials"),
        ("POST", "/api/endpoints", json!({"url": "https://169.254.169.254/"}), "url", "169.254.169.254"),
        ("POST", "/api/endpoints", json!({"url": "https://2130706433/"}), "url", "127.0.0.1"),
        ("POST", "/api/endpoints", json!({"url": "https://localhost/"}), "url", "public"),
        ("POST", "/api/endpoints", json!({"url": url, "description": 5}), "description", "must be a string"),
        ("POST", "/api/endpoints", json!({"url": url, "description": "a\u{0}"}), "description", "control"),
        ("POST", "/api/endpoints", json!({"url": url, "description": long}), "description", "500"),
        ("POST", "/api/endpoints", json!({"url": url, "event_types": []}), "event_types", "null"),
        ("POST", "/api/endpoints", json!({"url": url, "event_types": "a"}), "event_types", "array"),
        ("POST", "/api/endpoints", json!({"url": url, "event_types": ["a", "*"]}), "event_types", "entry 2"),
        ("POST", "/api/endpoints", json!({"url": url, "headers": []}), "headers", "object"),
        ("POST", "/api/endpoints", json!({"url": url, "headers": {"X-A": 1}}), "headers", "strings"),
        (
            "POST",
            "/api/endpoints",
            json!({"url": url, "headers": {"X-A": "1", "x-a": "2"}}),
            "headers",
            "more than once",
        ),
        ("POST", "/api/endpoints", json!({"url": url, "headers": {"webhook-id": "1"}}), "headers", "webhook-id"),
        ("POST", "/api/endpoints", json!({"url": url, "enabled": "true"}), "enabled", "true or false"),
        ("POST", "/api/endpoints", json!({"url": url, "rate_limit_per_second": 0}), "rate_limit_per_second", "from 1"),
        ("POST", "/api/endpoints", json!({"url": url, "rate_limit_per_second": 1.5}), "rate_limit_per_second", "whole"),
        ("POST", "/api/endpoints", json!({"url": url, "secret": "whsec_c2hvcnQ="}), "secret", "24 to 64 bytes"),
        ("POST", "/api/endpoints", json!({"url": url, "event_type": ["a"]}), "event_type", "url, description"),
        ("PATCH", &one, json!({"url": null}), "url", "must be a string"),
        ("PATCH", &one, json!({"enabled": null}), "enabled", "true or false"),
        ("PATCH", &one, json!({"secret": "whsec_"}), "secret", "url, description"),
        ("PATCH", &one, json!({"id": endpoint}), "id", "url, description"),
        ("POST", &rotate, json!({"secret": "x"}), "secret", "24 to 64 bytes"),
        ("POST", &rotate, json!({"overlap_seconds": 2_592_001}), "overlap_seconds", "from 0 to 2592000"),
        ("POST", &rotate, json!({"overlap_seconds": -1}), "overlap_seconds", "whole"),
        ("POST", &rotate, json!({"overlap": 1}), "overlap", "secret, overlap_seconds"),
        ("POST", &recover, json!({}), "since", "is missing"),
        ("POST", &recover, json!({"since": "yesterday"}), "since", "RFC 3339"),
        ("POST", &recover, json!({"until": "2026-01-01T00:00:00Z"}), "since", "is missing"),
        ("POST", &recover, json!({"since": 1, "until": "2026-01-01T00:00:00Z"}), "since", "must be a string"),
        (
            "POST",
            &recover,
            json!({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}),
            "until",
            "before",
        ),
    ] {
        let refused = api.refused(422, "invalid_endpoint", method, path, Some(&body));
        let errors = refused["errors"].as_array().unwrap();
        assert_eq!((errors.len(), &errors[0]["field"]), (1, &json!(field)), "{body}: {refused}");
        assert!(errors[0]["message"].as_str().unwrap().contains(words), "{body}: {refused}");
    }
    let all = json!({"uri": 1, "enabled": 1, "secret": 1});
    let refused = api.refused(422, "invalid_endpoint", "POST", "/api/endpoints", Some(&all));
    let fields: Vec<&str> =
        refused["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["uri", "url", "enabled", "secret"], "everything at once");
    assert_eq!(api.walk("/api/endpoints", 100).len(), 1, "nothing was made");
}

fn bodies_that_are_no_objects_are_refused(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    for (body, code) in
        [("{", "invalid_json"), ("{} x", "invalid_json"), ("[]", "invalid_endpoint"), ("", "invalid_json")]
    {
        let answer = api.client.request("POST", "/api/endpoints", Some(&api.key), Some(body.as_bytes()));
        assert_eq!(answer.code(), code, "{body}");
    }
    let made = id_of(&api.create(&json!({"url": "https://example.invalid/"})));
    let one = format!("/api/endpoints/{made}");
    for (method, path) in [("POST", "/api/endpoints"), ("PATCH", &one), ("POST", &format!("{one}/recover"))] {
        let refused = api.refused(400, "invalid_json", method, path, None);
        assert!(refused["detail"].as_str().unwrap().contains("the body is empty"), "{method} {path}: {refused}");
    }
    let far = json!({"since": "9999-01-01T00:00:00Z"});
    let recovered = api.get(202, "POST", &format!("{one}/recover"), Some(&far));
    assert_eq!(recovered["recovered"], 0, "a time to come is no fault");
    let twice = br#"{"url":"https://example.invalid/","url":"https://example.invalid/2"}"#;
    let answer = api.client.request("POST", "/api/endpoints", Some(&api.key), Some(twice));
    assert_eq!((answer.code().as_str(), &answer.json()["errors"][0]["field"]), ("invalid_endpoint", &json!("url")));
    let mut client = server.connect();
    client.send(&request("POST", "/api/endpoints", Some(&api.key), Some(&vec![b' '; 70_000])));
    assert_eq!(client.response().status, 413);
}

fn another_organisations_endpoints_are_not_there(installation: &Installation) {
    let server = installation.start(&[]);
    let (mut ours, mut theirs) = (Api::new(&server, "ours"), Api::new(&server, "theirs"));
    let mut made = ours.create(&json!({"url": "https://example.invalid/"}));
    let one = format!("/api/endpoints/{}", id_of(&made));
    let sent = ours.get(202, "POST", &format!("{one}/test"), None);
    let [event, delivery] = ["event_id", "delivery_id"].map(|name| sent[name].as_str().unwrap().to_owned());
    let since = json!({"since": "2026-01-01T00:00:00Z"});
    for (method, path, body) in [
        ("GET", one.clone(), None),
        ("PATCH", one.clone(), Some(json!({"enabled": false}))),
        ("DELETE", one.clone(), None),
        ("POST", format!("{one}/rotate-secret"), None),
        ("POST", format!("{one}/test"), None),
        ("POST", format!("{one}/recover"), Some(since)),
        ("GET", format!("/api/events/{event}/deliveries"), None),
        ("POST", format!("/api/deliveries/{delivery}/retry"), None),
    ] {
        theirs.refused(404, "not_found", method, &path, body.as_ref());
        let absent = path.replace(|c: char| c.is_ascii_digit(), "0");
        ours.refused(404, "not_found", method, &absent, body.as_ref());
    }
    for list in ["/api/endpoints", "/api/deliveries", &format!("/api/deliveries?endpoint_id={}", id_of(&made))] {
        assert_eq!(theirs.walk(list, 10), [] as [Value; 0]);
    }
    made.as_object_mut().unwrap().remove("secret");
    assert_eq!(ours.get(200, "GET", &one, None), made, "nothing changed");
}

fn one_endpoint_too_many_is_refused(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let body = json!({"url": "https://example.invalid/"});
    let made: Vec<String> =
        (0..millrace_base::limits::ENDPOINTS_PER_ORG_MAX).map(|_| id_of(&api.create(&body))).collect();
    let refused = api.refused(422, "too_many_endpoints", "POST", "/api/endpoints", Some(&body));
    assert!(refused["detail"].as_str().unwrap().contains("100"), "{refused}");
    api.get(204, "DELETE", &format!("/api/endpoints/{}", made[0]), None);
    api.create(&body);
}

fn wrong_methods_and_media_types_are_refused(installation: &Installation) {
    let server = installation.start(&[]);
    let mut api = Api::new(&server, "ours");
    let one = format!("/api/endpoints/{}", id_of(&api.create(&json!({"url": "https://example.invalid/"}))));
    for (method, path, allow) in [
        ("PUT", "/api/endpoints".to_owned(), "GET, HEAD, OPTIONS, POST"),
        ("POST", one.clone(), "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", format!("{one}/test"), "OPTIONS, POST"),
        ("GET", format!("{one}/rotate-secret"), "OPTIONS, POST"),
        ("DELETE", format!("{one}/recover"), "OPTIONS, POST"),
        ("POST", "/api/deliveries".to_owned(), "GET, HEAD, OPTIONS"),
        ("PATCH", one.replace("endpoints", "events") + "/deliveries", "GET, HEAD, OPTIONS"),
        ("GET", one.replace("endpoints", "deliveries") + "/retry", "OPTIONS, POST"),
    ] {
        let answer = api.ask(method, &path, None);
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, allow), "{method} {path}");
    }
    let body = br#"{"url":"https://example.invalid/"}"#;
    for fields in [[("Content-Type", "text/plain")], [("Content-Encoding", "gzip")]] {
        let mut client = server.connect();
        client.send(&post_with("/api/endpoints", &api.key, &fields, body));
        assert_eq!(client.response().code(), "unsupported_media_type", "{fields:?}");
    }
    let mut client = server.connect();
    client.send(&post_with("/api/endpoints", &api.key, &[], body));
    assert_eq!(client.response().status, 201, "a media type that is not said is JSON");
    assert_eq!(server.connect().request("GET", "/api/endpoints", None, None).code(), "missing_api_key");
}
