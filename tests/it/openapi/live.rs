//! The document against a running server: every route answers with a status, a media type, header fields and a body
//! that are described for it.

use regex::Regex;
use serde_json::Value;

use millrace_wire::routes::TABLE;
use support::postgres::Cluster;
use support::receiver::{self, Receiver};
use support::server::{Options, PATIENCE, Response, Server, event, request};
use support::webhook;

use super::{document, method_name, operations, resolve};

/// Keys and ids to ask with.
struct World {
    server: Server,
    key: String,
    /// Of an organisation that is disabled.
    disabled: String,
    /// Of an organisation that has used its minute up.
    limited: String,
    stored_event: String,
    spare_key_id: String,
    endpoint: String,
    doomed_endpoint: String,
    disabled_endpoint: String,
    delivery: String,
}

impl World {
    fn on(options: Options) -> Self {
        let server = Server::start(options);
        let (org, key) = server.organization("described", "1000");
        let (_, disabled) = server.organization("disabled", "1000");
        server.cli(&["org", "disable", "disabled"]);
        let (_, limited) = server.organization("limited", "1");
        assert_eq!(server.post("/api/events", &limited, &event("e", None, "1")).status, 202);
        let stored_event = server.post("/api/events", &key, &event("e", Some("d"), r#"{"a": 1}"#)).id();
        server.post("/api/events", &key, &event("e", None, "null")).id();
        server.drained();
        let spare: Value = serde_json::from_str(&server.cli(&["key", "create", &org, "--json"])).expect("JSON");
        let spare_key_id = key_id(spare["api_key"].as_str().expect("api_key"));
        let make = |body: &str| {
            let made = server.post("/api/endpoints", &key, body);
            assert_eq!(made.status, 201);
            made.json()["id"].as_str().expect("an id").to_owned()
        };
        // No such name, ever (RFC 2606).
        let endpoint = make(r#"{"url":"https://example.invalid/","event_types":["only.this"]}"#);
        let doomed_endpoint = make(r#"{"url":"https://example.invalid/","headers":{"X-A":"1"}}"#);
        let disabled_endpoint = make(r#"{"url":"https://example.invalid/","enabled":false}"#);
        let sent = server.post(&format!("/api/endpoints/{endpoint}/test"), &key, "").json();
        let delivery = sent["delivery_id"].as_str().expect("an id").to_owned();
        Self {
            server,
            key,
            disabled,
            limited,
            stored_event,
            spare_key_id,
            endpoint,
            doomed_endpoint,
            disabled_endpoint,
            delivery,
        }
    }

    /// What to send to a route, with the status each must get: what it is for first, then what it refuses.
    fn requests(&self, method: &str, path: &str) -> Vec<(Vec<u8>, u16)> {
        let target = self.target(method, path);
        let send = |target: &str, key: &str, body: Option<&str>| {
            request(method, target, (!key.is_empty()).then_some(key), body.map(str::as_bytes))
        };
        let with = |body: &str| send(&target, &self.key, Some(body));
        let without = |target: &str| send(target, &self.key, None);
        let head = |fields: &str| format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
        let good = event("e", None, r#"{"a":[1,"two",null]}"#);
        let mut requests = match (method, path) {
            ("POST", "/api/events") => vec![
                (with(&good), 202),
                (with(&event("e", Some("again"), "1")), 202),
                (with("{"), 400),
                (without(&target), 411),
                (head(&format!("X-API-Key: {}\r\nContent-Length: 99999999\r\n", self.key)), 413),
                (head(&format!("X-API-Key: {}\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n", self.key)), 415),
                (with(r#"{"type":" ","payload":1}"#), 422),
                (send(&target, &self.limited, Some(&good)), 429),
            ],
            ("POST", "/api/events/batch") => vec![
                (with(&format!(r#"[{good},{{"type":"e"}}]"#)), 202),
                (with("[}"), 400),
                (with("[]"), 422),
                (with(r#"[{"type":"e"},7]"#), 422),
                (send(&target, &self.limited, Some(&format!("[{good}]"))), 429),
            ],
            ("GET", "/api/events") => vec![
                (without(&target), 200),
                (without("/api/events?type=e&limit=1"), 200),
                (without("/api/events?type=nothing"), 200),
                (without("/api/events?limit=none"), 400),
            ],
            ("GET", "/api/events/{id}") => {
                vec![(without(&target), 200), (without("/api/events/01890a5d-ac96-774b-bcce-b302099a8057"), 404)]
            }
            ("POST", "/api/keys/rotate") => {
                vec![(with(r#"{"grace_seconds":600}"#), 200), (with(r#"{"grace":1}"#), 400), (with("{"), 400)]
            }
            ("DELETE", "/api/keys/{id}") => vec![(without(&target), 204), (without("/api/keys/0aZ0aZ0aZ0aZ"), 404)],
            ("GET", "/" | "/api/keys" | "/health" | "/ready" | "/metrics" | "/openapi.json") => {
                vec![(without(&target), 200)]
            }
            _ => self.webhook_requests(method, path),
        };
        let body = (method == "POST").then_some("{}");
        if path.starts_with("/api/") {
            requests.push((send(&target, "", body), 401));
            requests.push((send(&target, "nonsense", body), 401));
            requests.push((send(&target, &self.disabled, body), 403));
        }
        // Refused before the route matters, hence on every route.
        requests.push((request("PUT", &target, Some(&self.key), None), 405));
        requests.push((request("BREW", &target, Some(&self.key), None), 501));
        requests.push((head(&format!("X: {}\r\n", "x".repeat(20_000))), 431));
        requests.push((head("Expect: tea\r\nContent-Length: 0\r\n"), 417));
        requests.push((send(&format!("{target}?{}", "x".repeat(9000)), &self.key, None), 414));
        requests.push((format!("{method} {target} HTTP/2.0\r\nHost: h\r\n\r\n").into_bytes(), 505));
        requests
    }

    /// The path with an id of something that is there.
    fn target(&self, method: &str, path: &str) -> String {
        match path {
            "/api/events/{id}" | "/api/events/{id}/deliveries" => path.replace("{id}", &self.stored_event),
            "/api/deliveries/{id}/retry" => path.replace("{id}", &self.delivery),
            "/api/endpoints/{id}" if method == "DELETE" => path.replace("{id}", &self.doomed_endpoint),
            endpoint if endpoint.starts_with("/api/endpoints/{id}") => path.replace("{id}", &self.endpoint),
            "/api/keys/{id}" => path.replace("{id}", &self.spare_key_id),
            plain => plain.to_owned(),
        }
    }

    /// The same for the routes of endpoints and deliveries.
    fn webhook_requests(&self, method: &str, path: &str) -> Vec<(Vec<u8>, u16)> {
        let target = self.target(method, path);
        let absent = path.replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057");
        let send = |target: &str, body: Option<&str>| request(method, target, Some(&self.key), body.map(str::as_bytes));
        let with = |body: &str| send(&target, Some(body));
        let without = |target: &str| send(target, None);
        let head = |fields: &str| {
            let key = &self.key;
            format!("{method} {target} HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n{fields}\r\n\r\n").into_bytes()
        };
        match (method, path) {
            ("GET", "/api/events/{id}/deliveries") => {
                vec![(without(&target), 200), (without(&format!("{target}?limit=none")), 400), (without(&absent), 404)]
            }
            ("GET", "/api/deliveries") => vec![
                (without(&target), 200),
                (without(&format!("{target}?status=pending&limit=1&endpoint_id={}", self.endpoint)), 200),
                (without(&format!("{target}?status=none")), 400),
            ],
            ("GET", "/api/endpoints") => {
                vec![
                    (without(&target), 200),
                    (without(&format!("{target}?limit=1")), 200),
                    (without("/api/endpoints?cursor=x"), 400),
                ]
            }
            ("POST", "/api/endpoints") => vec![
                (with(r#"{"url":"https://example.com/","event_types":["a.*"],"headers":{"X-A":"1"}}"#), 201),
                (with("{"), 400),
                (head("Content-Length: 99999999"), 413),
                (head("Content-Type: text/plain\r\nContent-Length: 2"), 415),
                (with(r#"{"url":"http://127.0.0.1/"}"#), 422),
            ],
            ("GET", "/api/endpoints/{id}") => vec![(without(&target), 200), (without(&absent), 404)],
            ("DELETE", "/api/endpoints/{id}") => {
                vec![(without(&target), 204), (without(&target), 404), (without(&absent), 404)]
            }
            ("PATCH", "/api/endpoints/{id}") => vec![
                (with(r#"{"description":"d"}"#), 200),
                (with("{"), 400),
                (without(&target), 400),
                (with(r#"{"url":null}"#), 422),
                (send(&absent, Some("{}")), 404),
            ],
            ("POST", "/api/endpoints/{id}/rotate-secret") => vec![
                (with(r#"{"overlap_seconds":60}"#), 200),
                (without(&target), 200),
                (with("{"), 400),
                (with(r#"{"overlap":1}"#), 422),
                (without(&absent), 404),
            ],
            ("POST", "/api/endpoints/{id}/test") => vec![
                (without(&target), 202),
                (without(&path.replace("{id}", &self.disabled_endpoint)), 409),
                (without(&absent), 404),
            ],
            ("POST", "/api/endpoints/{id}/recover") => vec![
                (with(r#"{"since":"2026-01-01T00:00:00Z"}"#), 202),
                (with("{"), 400),
                (with("{}"), 422),
                (send(&absent, Some(r#"{"since":"2026-01-01T00:00:00Z"}"#)), 404),
            ],
            ("POST", "/api/deliveries/{id}/retry") => vec![(without(&target), 202), (without(&absent), 404)],
            _ => panic!("{method} {path} has no request here"),
        }
    }
}

/// The public part of a key.
fn key_id(key: &str) -> String {
    key.split('_').nth(1).expect("mr_<id>_<secret>").to_owned()
}

#[test]
fn every_route_answers_as_described() {
    let document = document();
    for options in [Options::default(), Options::postgres(&Cluster::shared().create_database())] {
        let world = World::on(options);
        for row in TABLE {
            let (method, path) = (method_name(row), row.path);
            let operations = operations(&document);
            let operation = operations.iter().find(|(m, p, _)| m == method && *p == path);
            let (_, _, operation) = operation.unwrap_or_else(|| panic!("{method} {path} is not described"));
            for (bytes, status) in world.requests(method, path) {
                let mut client = world.server.connect();
                client.send(&bytes);
                let answer = client.response();
                let sent = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                assert_eq!(answer.status, status, "{sent}\n{}", String::from_utf8_lossy(&answer.body));
                check_answer(&document, operation, &answer, &sent);
            }
        }
    }
}

#[test]
fn a_server_without_its_database_answers_as_described() {
    let document = document();
    // Nothing listens there.
    let server = Server::start_unready(Options::postgres("postgres://nobody@127.0.0.1:9/nothing"));
    let key = millrace_base::key::ApiKey::generate().expect("randomness");
    for (method, path, operation) in operations(&document) {
        let status = match path {
            "/" | "/health" | "/metrics" | "/openapi.json" => 200,
            _ => 503,
        };
        let target = path.replace("/api/keys/{id}", "/api/keys/0aZ0aZ0aZ0aZ");
        let target = target.replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057");
        let body = (method == "POST").then_some(&b"{}"[..]);
        let answer = server.connect().request(&method, &target, Some(key.reveal()), body);
        assert_eq!(answer.status, status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        check_answer(&document, operation, &answer, &format!("{method} {path}"));
    }
}

#[test]
fn an_endpoint_gets_what_is_described() {
    let document = document();
    let receiver = Receiver::start(|_| receiver::answer(204, ""));
    let server = Server::start(Options::default().with(&webhook::arguments(&[])));
    let key = server.key();
    let url = receiver.url("/");
    assert_eq!(server.post("/api/endpoints", &key, &format!(r#"{{"url":"{url}"}}"#)).status, 201);
    let id = server.post("/api/events", &key, &event("user.login", None, r#"{"a":[1,"two",null]}"#)).id();
    let seen = receiver.wait_for(1, PATIENCE).remove(0);
    let operation = &document["webhooks"]["event"]["post"];
    assert_eq!(seen.method, "POST");
    for parameter in operation["parameters"].as_array().expect("header fields") {
        let name = parameter["name"].as_str().expect("a name");
        let value = seen.header(name).unwrap_or_else(|| panic!("no {name}"));
        check(&document, &parameter["schema"], &Value::from(value), name);
    }
    assert_eq!(seen.header("webhook-id"), Some(id.as_str()));
    let media_type = seen.header("content-type").expect("a media type");
    let schema = &operation["requestBody"]["content"][media_type]["schema"];
    check(&document, schema, &serde_json::from_slice(&seen.body).expect("JSON"), "the request");
}

/// Whether `operation` describes `answer`; a described header field of a good answer is there.
fn check_answer(document: &Value, operation: &Value, answer: &Response, sent: &str) {
    let described = &operation["responses"][answer.status.to_string()];
    assert!(described.is_object(), "{sent}: {} is not described", answer.status);
    let described = resolve(document, described);
    for name in described["headers"].as_object().into_iter().flat_map(serde_json::Map::keys) {
        // Some fields of a refusal belong to one of its codes only: RateLimit to `rate_limited`.
        let is_problem = answer.headers.get("content-type").is_some_and(|kind| kind.contains("problem"));
        let always = answer.status < 400 || (is_problem && matches!(name.as_str(), "Retry-After" | "Allow"));
        let is_there = answer.headers.contains_key(&name.to_ascii_lowercase());
        assert!(is_there || !always, "{sent}: {} without {name}: {:?}", answer.status, answer.headers);
    }
    let Some(content) = described["content"].as_object() else {
        assert!(answer.body.is_empty(), "{sent}: a body where none is described");
        return;
    };
    let media_type = &answer.headers["content-type"];
    let described = content.get(media_type).unwrap_or_else(|| panic!("{sent}: {media_type} is not described"));
    if media_type == "application/problem+json" {
        let examples = described["examples"].as_object().expect("an example of each code");
        assert!(examples.contains_key(&answer.code()), "{sent}: {} has no example", answer.code());
    }
    if media_type.ends_with("json") {
        check(document, &described["schema"], &answer.json(), sent);
    }
}

/// The part of JSON Schema that the document uses for answers. A member that is not described is at fault too.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolve(document, schema);
    if let Some(constant) = schema.get("const") {
        assert_eq!(value, constant, "{at}");
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value}");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().map(|one| one.as_str().expect("a type's name")).collect(),
        _ => Vec::new(),
    };
    let is_a = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: type {other}"),
    };
    assert!(types.is_empty() || types.iter().any(is_a), "{at}: {value} is no {types:?}");
    let variants = schema["anyOf"].as_array().or(schema["oneOf"].as_array());
    if let Some(variants) = variants {
        let fits = |variant: &&Value| {
            let members = resolve(document, variant)["required"].as_array().into_iter().flatten();
            let is_null = resolve(document, variant)["type"] == "null";
            is_null == value.is_null() && members.into_iter().all(|name| has(value, name))
        };
        let variant = variants.iter().find(fits).unwrap_or_else(|| panic!("{at}: {value} fits no variant"));
        check(document, variant, value, at);
    }
    if let Some(length) = value.as_str().map(|text| text.chars().count() as u64) {
        let within = schema["minLength"].as_u64().unwrap_or(0)..=schema["maxLength"].as_u64().unwrap_or(u64::MAX);
        assert!(within.contains(&length), "{at}: {length} characters");
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
        assert!(Regex::new(pattern).expect(pattern).is_match(text), "{at}: {text} is not {pattern}");
    }
    if schema["format"] == "uuid" {
        assert!(value.as_str().is_some_and(|text| uuid::Uuid::try_parse(text).is_ok()), "{at}: {value}");
    }
    // An object is described by one schema, or by the parts of `allOf` together.
    let parts: Vec<&Value> = match schema["allOf"].as_array() {
        Some(parts) => parts.iter().map(|part| resolve(document, part)).collect(),
        None => vec![schema],
    };
    for part in &parts {
        for name in part["required"].as_array().into_iter().flatten() {
            assert!(has(value, name), "{at}: no {name} in {value}");
        }
    }
    if parts.iter().any(|part| part["properties"].is_object()) {
        for (name, member) in value.as_object().expect("an object, as its type says") {
            let described = parts.iter().find_map(|part| part["properties"].get(name));
            let described = described.unwrap_or_else(|| panic!("{at}: {name} is not described"));
            check(document, described, member, &format!("{at}: {name}"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for value in values {
            check(document, items, value, at);
        }
    }
}

/// Whether `value` has the member that `name` names.
fn has(value: &Value, name: &Value) -> bool {
    value.get(name.as_str().expect("a member's name")).is_some()
}
