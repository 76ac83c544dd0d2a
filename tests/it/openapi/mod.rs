//! The OpenAPI document says what the server does: its paths are the route table, its codes are the refusals, its
//! bounds are the limits, and a running server answers as described (`openapi/live.rs`).

mod live;

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use millrace_base::key::API_KEY_LEN;
use millrace_base::limits;
use millrace_base::problem::{Problem, reason_phrase};
use millrace_webhooks::endpoint::secret::WebhookSecret;
use millrace_webhooks::endpoint::validate;
use millrace_wire::routes::{Body, Method, OPENAPI_JSON, Row, Scope, TABLE, route};

fn document() -> Value {
    serde_json::from_str(OPENAPI_JSON).expect("the document is JSON")
}

/// Every operation: (method in capitals, path, operation).
fn operations(document: &Value) -> Vec<(String, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths are an object");
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .expect("a path item is an object")
                .iter()
                .map(move |(method, op)| (method.to_uppercase(), path.as_str(), op))
        })
        .collect()
}

/// Calls `visit` with every object in the document.
fn each_object<'a>(node: &'a Value, visit: &mut impl FnMut(&'a serde_json::Map<String, Value>)) {
    match node {
        Value::Object(fields) => {
            visit(fields);
            fields.values().for_each(|child| each_object(child, visit));
        }
        Value::Array(items) => items.iter().for_each(|child| each_object(child, visit)),
        _ => {}
    }
}

fn resolve<'a>(document: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(target) => document.pointer(&target[1..]).unwrap_or_else(|| panic!("{target} leads nowhere")),
        None => node,
    }
}

/// One of each refusal. The match makes a new variant fail to compile until it is added here.
fn every_problem() -> Vec<Problem> {
    let next = |problem: &Problem| match problem {
        Problem::BadRequest(_) => Some(Problem::BadHead(String::new())),
        Problem::BadHead(_) => Some(Problem::BadQuery("".into())),
        Problem::BadQuery(_) => Some(Problem::InvalidJson { offset: None, detail: "".into() }),
        Problem::InvalidJson { .. } => Some(Problem::MissingApiKey),
        Problem::MissingApiKey => Some(Problem::InvalidApiKey),
        Problem::InvalidApiKey => Some(Problem::MalformedApiKey),
        Problem::MalformedApiKey => Some(Problem::OrgDisabled),
        Problem::OrgDisabled => Some(Problem::NotFound),
        Problem::NotFound => Some(Problem::NoSuch("")),
        Problem::NoSuch(_) => Some(Problem::MethodNotAllowed("")),
        Problem::MethodNotAllowed(_) => Some(Problem::RequestTimeout),
        Problem::RequestTimeout => Some(Problem::LengthRequired),
        Problem::LengthRequired => Some(Problem::PayloadTooLarge(0)),
        Problem::PayloadTooLarge(_) => Some(Problem::UriTooLong),
        Problem::UriTooLong => Some(Problem::UnsupportedMediaType("")),
        Problem::UnsupportedMediaType(_) => Some(Problem::UnsupportedContentCoding),
        Problem::UnsupportedContentCoding => Some(Problem::ExpectationFailed),
        Problem::ExpectationFailed => Some(Problem::HeadersTooLarge),
        Problem::HeadersTooLarge => Some(Problem::UnsupportedTransferCoding),
        Problem::UnsupportedTransferCoding => Some(Problem::UnknownMethod),
        Problem::UnknownMethod => Some(Problem::HttpVersionNotSupported),
        Problem::HttpVersionNotSupported => Some(Problem::InvalidEvent(Vec::new())),
        Problem::InvalidEvent(_) => Some(Problem::InvalidEndpoint(Vec::new())),
        Problem::InvalidEndpoint(_) => Some(Problem::EndpointDisabled),
        Problem::EndpointDisabled => Some(Problem::TooManyEndpoints),
        Problem::TooManyEndpoints => Some(Problem::TooManyKeys),
        Problem::TooManyKeys => Some(Problem::RateLimited { retry_after: 1 }),
        Problem::RateLimited { .. } => Some(Problem::ControlLimited { limit: 1, retry_after: 1 }),
        Problem::ControlLimited { .. } => Some(Problem::TooManyWaiting),
        Problem::TooManyWaiting => Some(Problem::QueueFull),
        Problem::QueueFull => Some(Problem::AuthBusy),
        Problem::AuthBusy => Some(Problem::AuthThrottled { retry_after: 1 }),
        Problem::AuthThrottled { .. } => Some(Problem::ShuttingDown),
        Problem::ShuttingDown => Some(Problem::StoreUnavailable),
        Problem::StoreUnavailable => Some(Problem::ControlBusy),
        Problem::ControlBusy => Some(Problem::JournalUnavailable("")),
        Problem::JournalUnavailable(_) => Some(Problem::TooManyConnections),
        Problem::TooManyConnections => Some(Problem::Internal),
        Problem::Internal => Some(Problem::SecretUnavailable),
        Problem::SecretUnavailable => None,
    };
    std::iter::successors(Some(Problem::BadRequest("")), next).collect()
}

#[test]
fn the_document_names_this_version() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn paths_and_methods_are_the_route_table() {
    let document = document();
    let described: BTreeSet<_> = operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let routed: BTreeSet<_> = TABLE.iter().map(|row| (method_name(row).to_owned(), row.path)).collect();
    assert_eq!(described, routed);
    assert_eq!(TABLE.len(), routed.len(), "no route twice");
}

#[test]
fn operations_are_described_as_their_rows_have_them() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let row = TABLE.iter().find(|row| (method_name(row), row.path) == (method.as_str(), path)).expect("a row");
        let good: Vec<_> = operation["responses"].as_object().unwrap().keys().filter(|s| s.starts_with('2')).collect();
        assert_eq!(good, [&row.status.to_string()], "{method} {path}");
        let public = operation.get("security").is_some_and(|schemes| schemes.as_array().unwrap().is_empty());
        assert_eq!(public, row.scope == Scope::Public, "{method} {path}");
        let max = operation.get("requestBody").map(|body| body["x-body-bytes-max"].as_u64().expect("a bound"));
        let expected = match row.body {
            Body::None => None,
            Body::Json(max) => Some(max as u64),
        };
        assert_eq!(max, expected, "{method} {path}");
    }
}

pub fn method_name(row: &Row) -> &'static str {
    match row.method {
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Patch => "PATCH",
        Method::Delete => "DELETE",
        other => panic!("no route takes {other:?}"),
    }
}

#[test]
fn the_example_of_every_path_is_routed() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let mut target = path.to_owned();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = resolve(&document, parameter);
            if parameter["in"] == "path" {
                let variable = format!("{{{}}}", parameter["name"].as_str().unwrap());
                target = target.replace(&variable, parameter["example"].as_str().expect("a path parameter's example"));
            }
        }
        let method = match method.as_str() {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            other => panic!("{other} is not routed"),
        };
        let found = route(method, target.as_bytes()).expect(&target);
        assert_eq!(found.row().expect("it has a row").path, path);
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    each_object(&document, &mut |fields| {
        if let Some(target) = fields.get("$ref") {
            let target = target.as_str().unwrap();
            assert!(document.pointer(&target[1..]).is_some(), "{target} leads nowhere");
            used.insert(target.to_owned());
        }
    });
    for kind in ["schemas", "responses", "parameters", "headers"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "{kind}/{name} is not used");
        }
    }
}

#[test]
fn every_refusal_of_the_code_is_described_and_no_other() {
    let document = document();
    let listed: BTreeSet<_> = document["components"]["schemas"]["ErrorCode"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    let rows: Vec<_> = every_problem().iter().map(Problem::row).collect();
    assert_eq!(listed, rows.iter().map(|row| row.code.as_str()).collect::<BTreeSet<_>>());

    // The refusals as operations list them: (status, code, whether it carries Retry-After).
    let mut described = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolve(&document, response);
            let content = &response["content"]["application/problem+json"];
            assert_eq!(content.is_object(), status.starts_with(['4', '5']), "{method} {path} {status}");
            for example in content["examples"].as_object().into_iter().flat_map(serde_json::Map::values) {
                let example = &example["value"];
                assert_eq!(example["status"].to_string(), *status, "{method} {path}");
                assert_eq!(example["title"], reason_phrase(status.parse().unwrap()), "{method} {path}");
                let retry = response["headers"].get("Retry-After").is_some();
                described.insert((status.parse().unwrap(), example["code"].as_str().unwrap(), retry));
            }
        }
    }
    let expected: BTreeSet<_> =
        rows.iter().map(|row| (row.status, row.code.as_str(), row.retry_after.is_some())).collect();
    assert_eq!(described, expected);
}

#[test]
fn a_problem_has_the_fields_of_its_schema() {
    let document = document();
    let schema = &document["components"]["schemas"]["Problem"];
    for problem in every_problem() {
        let mut body = Vec::new();
        problem.write_body(&mut body);
        let body: Value = serde_json::from_slice(&body).unwrap();
        for field in body.as_object().unwrap().keys() {
            assert!(schema["properties"].get(field).is_some(), "{field} of {problem:?}");
        }
        for field in schema["required"].as_array().unwrap() {
            assert!(body.get(field.as_str().unwrap()).is_some(), "{problem:?} has no {field}");
        }
    }
}

/// Generators make nothing of a schema that narrows another.
#[test]
fn every_refusal_has_the_one_schema() {
    let document = document();
    let mut refusals = 0;
    each_object(&document, &mut |fields| {
        if let Some(content) = fields.get("application/problem+json") {
            assert_eq!(content["schema"], serde_json::json!({"$ref": "#/components/schemas/Problem"}));
            refusals += 1;
        }
    });
    assert!(refusals > 0);
}

#[test]
fn everything_a_client_is_generated_from_is_described() {
    let document = document();
    let described = |node: &Value| node["description"].as_str().is_some_and(|text| !text.is_empty());
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(described(schema), "{name}");
    }
    each_object(&document["components"]["schemas"], &mut |fields| {
        for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            assert!(described(property) || described(resolve(&document, property)), "{name} in {fields:?}");
            // Reference by reference: what is inside another schema has no name of its own in a generated client.
            let target = property["$ref"].as_str().unwrap_or("#/components/schemas/");
            assert_eq!(target.matches('/').count(), 3, "{target}");
        }
    });
    for (method, path, operation) in operations(&document) {
        assert!(described(operation), "{method} {path}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = resolve(&document, parameter);
            assert!(described(parameter), "{} of {method} {path}", parameter["name"]);
        }
    }
    for tag in document["tags"].as_array().unwrap() {
        assert!(described(tag), "{tag}");
    }
    assert!(document["info"]["contact"].is_object());
    let servers = document["servers"].as_array().unwrap();
    assert!(servers.iter().any(|server| server["url"].as_str().unwrap().starts_with("http://")), "an absolute one");
}

/// A generator takes a member with a default for one that is always there, so that a client would have to send it.
#[test]
fn no_member_of_a_body_has_a_default() {
    let document = document();
    each_object(&document["components"]["schemas"], &mut |fields| {
        assert!(!fields.contains_key("default"), "{fields:?}");
    });
}

#[test]
fn a_secret_is_described_as_it_is_read() {
    use base64::Engine as _;
    let document = document();
    let schema = &document["components"]["schemas"]["WebhookSecret"];
    let pattern = Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
    let fits = |text: &str| {
        let length = schema["minLength"].as_u64().unwrap()..=schema["maxLength"].as_u64().unwrap();
        length.contains(&(text.len() as u64)) && pattern.is_match(text)
    };
    let check = |text: &str| assert_eq!(fits(text), WebhookSecret::parse(text).is_ok(), "{text}");
    for bytes in 0..=70 {
        for fill in [0, 0x5a, 0xff] {
            let encoded = base64::prelude::BASE64_STANDARD.encode(vec![fill; bytes]);
            check(&encoded);
            check(&format!("whsec_{encoded}="));
            check(&format!("whsec_{}", encoded.trim_end_matches('=')));
            check(&format!("whsec_{encoded}"));
            // Every last character: where it is padded, most leave bits that are not zero.
            let text = encoded.trim_end_matches('=');
            let padding = &encoded[text.len()..];
            for last in ('+'..='z').filter(|_| !text.is_empty()) {
                check(&format!("whsec_{}{last}{padding}", &text[..text.len() - 1]));
            }
        }
    }
}

#[test]
fn headers_of_an_endpoint_are_described_as_they_are_read() {
    let document = document();
    let schema = &document["components"]["schemas"]["EndpointHeaders"];
    let pattern = |schema: &Value| Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
    let (names, values) = (pattern(&schema["propertyNames"]), pattern(&schema["additionalProperties"]));
    let taken = |name: &str, value: &str| validate::own_headers(vec![(name.to_owned(), value.to_owned())]).is_ok();
    for byte in 0..=0x100_u32 {
        let character = char::from_u32(byte).unwrap();
        for text in [character.to_string(), format!("a{character}"), format!("{character}a"), format!("a{character}a")]
        {
            assert_eq!(names.is_match(&text), taken(&text, "v"), "name {text:?}");
            assert_eq!(values.is_match(&text), taken("x-a", &text), "value {text:?}");
        }
    }
    assert!(!names.is_match("") && !taken("", "v") && !values.is_match("") && !taken("x-a", ""));
}

#[test]
fn what_needs_a_key_says_so() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let public = operation.get("security").is_some_and(|schemes| schemes.as_array().unwrap().is_empty());
        assert_eq!(public, !path.starts_with("/api/"), "{method} {path}");
        assert_eq!(public, operation["responses"].get("401").is_none(), "{method} {path}");
    }
}

#[test]
fn bounds_are_the_limits() {
    let document = document();
    let at = |pointer: &str| document.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).as_u64().expect(pointer);
    let schema = "/components/schemas";
    for (pointer, limit) in [
        (format!("{schema}/EventType/maxLength"), limits::EVENT_TYPE_BYTES_MAX as u64),
        (format!("{schema}/DedupId/maxLength"), limits::DEDUP_ID_CHARS_MAX as u64),
        (format!("{schema}/Payload/x-bytes-max"), limits::PAYLOAD_BYTES_MAX as u64),
        (format!("{schema}/Payload/x-depth-max"), limits::PAYLOAD_DEPTH_MAX as u64),
        (format!("{schema}/EventBatch/maxItems"), limits::BATCH_EVENTS_MAX as u64),
        (format!("{schema}/BatchResult/properties/results/maxItems"), limits::BATCH_EVENTS_MAX as u64),
        (format!("{schema}/BatchResult/properties/accepted/maximum"), limits::BATCH_EVENTS_MAX as u64),
        (format!("{schema}/BatchResult/properties/rejected/maximum"), limits::BATCH_EVENTS_MAX as u64),
        (format!("{schema}/EventPage/properties/data/maxItems"), u64::from(limits::LIST_LIMIT_MAX)),
        (format!("{schema}/EventPage/x-looked-at-max"), limits::LIST_SCAN_ROWS_MAX as u64),
        (format!("{schema}/DeliveryPage/x-looked-at-max"), limits::LIST_SCAN_ROWS_MAX as u64),
        (format!("{schema}/KeyList/properties/data/maxItems"), limits::LIST_KEYS_MAX as u64),
        (format!("{schema}/RotateRequest/properties/grace_seconds/maximum"), limits::KEY_ROTATION_GRACE_MAX.as_secs()),
        (format!("{schema}/RotatedKey/properties/api_key/minLength"), API_KEY_LEN as u64),
        (format!("{schema}/RotatedKey/properties/api_key/maxLength"), API_KEY_LEN as u64),
        (format!("{schema}/EndpointUrl/maxLength"), limits::WEBHOOK_URL_BYTES_MAX as u64),
        (format!("{schema}/EndpointDescription/maxLength"), limits::ENDPOINT_DESCRIPTION_CHARS_MAX as u64),
        (format!("{schema}/EventTypeFilters/maxItems"), limits::EVENT_TYPE_FILTERS_MAX as u64),
        (format!("{schema}/EndpointHeaders/maxProperties"), limits::ENDPOINT_HEADERS_MAX as u64),
        (format!("{schema}/EndpointRateLimit/maximum"), u64::from(limits::ENDPOINT_RATE_LIMIT_MAX)),
        (format!("{schema}/SecretRotation/properties/overlap_seconds/maximum"), limits::SECRET_OVERLAP_MAX.as_secs()),
        (format!("{schema}/Recovered/properties/recovered/maximum"), limits::RECOVER_DELIVERIES_MAX),
        (format!("{schema}/Delivery/properties/attempts/maxItems"), limits::DELIVERY_ATTEMPTS_SHOWN_MAX as u64),
        (format!("{schema}/DeliveryPage/properties/data/maxItems"), u64::from(limits::LIST_LIMIT_MAX)),
        ("/components/parameters/Limit/schema/maximum".into(), u64::from(limits::LIST_LIMIT_MAX)),
        ("/components/parameters/Limit/schema/default".into(), u64::from(limits::LIST_LIMIT_DEFAULT)),
    ] {
        assert_eq!(at(&pointer), limit, "{pointer}");
    }
    for (pointer, said) in [
        (
            format!("{schema}/SecretRotation/properties/overlap_seconds"),
            format!("Left out: {}, a day", limits::SECRET_OVERLAP_DEFAULT.as_secs()),
        ),
        (
            format!("{schema}/RotateRequest/properties/grace_seconds"),
            format!("Left out: {}, a day", limits::KEY_ROTATION_GRACE_DEFAULT.as_secs()),
        ),
        (format!("{schema}/EndpointHeaders"), format!("at most {} bytes", limits::ENDPOINT_HEADERS_BYTES_MAX)),
        (format!("{schema}/EventTypeFilters"), format!("at most {} bytes", limits::EVENT_TYPE_FILTERS_BYTES_MAX)),
    ] {
        let description = document.pointer(&format!("{pointer}/description")).and_then(Value::as_str).expect(&pointer);
        assert!(description.contains(&said), "{pointer}: {description}");
    }
}
