//! Tables for the envelope: what is an event, what is not, and what the refusal says.

use super::*;

fn parsed(body: &str) -> Result<(String, Option<String>, String), Invalid> {
    with_key(body, None)
}

fn with_key(body: &str, key: Option<&str>) -> Result<(String, Option<String>, String), Invalid> {
    let mut scratch = Scratch::default();
    let envelope = parse(&mut scratch, body.as_bytes(), key.map(str::as_bytes))?;
    let payload = String::from_utf8(envelope.payload.to_vec()).unwrap();
    Ok((envelope.event_type.into_owned(), envelope.dedup_id.map(Cow::into_owned), payload))
}

fn refused(body: &str) -> (u16, ValidationErrorKind) {
    let invalid = parsed(body).expect_err(body);
    (invalid.problem.row().status, invalid.kind)
}

#[test]
fn the_payload_is_cut_out_verbatim_wherever_it_stands() {
    for payload in [
        r#"{"b":1,"a":[1.0,1e2,-0,"x\u0041\"}"]}"#,
        "[ ]",
        "{ \"k\" :\t{ } }",
        "null",
        "true",
        "-0.10e+5",
        "\"\\\\\"",
        "\"}{,\"",
        "123456789012345678901234567890",
        "1e999",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "[[],{},[{\"payload\":1}]]",
    ] {
        for (shape, dedup) in [
            (r#"{"type":"t","payload":X}"#, None),
            (r#"{"payload":X,"type":"t"}"#, None),
            (" { \"type\" : \"t\" ,\n\"payload\" :\tX \r} \n", None),
            (r#"{"payload": X , "dedup_id": "d", "type":"t"}"#, Some("d")),
            (r#"{"dedup_id":null,"type":"t","payload":X }"#, None),
            (r#"{"t\u0079pe":"t","p\u0061yload":X}"#, None),
        ] {
            let body = shape.replace('X', payload);
            let expected = ("t".to_owned(), dedup.map(str::to_owned), payload.to_owned());
            assert_eq!(parsed(&body), Ok(expected), "{body}");
        }
    }
}

#[test]
fn each_rule_of_the_envelope_is_enforced_by_name() {
    use ValidationErrorKind as Kind;
    for (body, status, kind) in [
        ("", 400, Kind::InvalidJson),
        ("{", 400, Kind::InvalidJson),
        (r#"{"type":"t","payload":1}x"#, 400, Kind::InvalidJson),
        (r#"{"type":"t","payload":01}"#, 400, Kind::InvalidJson),
        (r#"{"type":"t","payload":[1,]}"#, 400, Kind::InvalidJson),
        ("[]", 422, Kind::NotAnObject),
        ("1", 422, Kind::NotAnObject),
        ("\"x\"", 422, Kind::NotAnObject),
        (" null ", 422, Kind::NotAnObject),
        ("{}", 422, Kind::MissingField),
        (r#"{"type":"t"}"#, 422, Kind::MissingField),
        (r#"{"payload":1}"#, 422, Kind::MissingField),
        (r#"{"type":1,"payload":1}"#, 422, Kind::WrongType),
        (r#"{"type":null,"payload":1}"#, 422, Kind::WrongType),
        (r#"{"type":"","payload":1}"#, 422, Kind::TypeInvalid),
        (r#"{"type":"a b","payload":1}"#, 422, Kind::TypeInvalid),
        (r#"{"type":"é","payload":1}"#, 422, Kind::TypeInvalid),
        (r#"{"type":"t","dedup_id":7,"payload":1}"#, 422, Kind::WrongType),
        (r#"{"type":"t","dedup_id":"","payload":1}"#, 422, Kind::DedupIdInvalid),
        (r#"{"type":"t","dedup_id":"a\nb","payload":1}"#, 422, Kind::DedupIdInvalid),
        (r#"{"type":"t","dedup_id":"a\u0000b","payload":1}"#, 422, Kind::DedupIdInvalid),
        (r#"{"type":"t","dedup_id":"\ud800","payload":1}"#, 422, Kind::WrongType),
        (r#"{"type":"t","dedupid":"x","payload":1}"#, 422, Kind::UnknownField),
        (r#"{"type":"t","type":"t","payload":1}"#, 422, Kind::DuplicateField),
        (r#"{"type":"t","payload":1,"payload":1}"#, 422, Kind::DuplicateField),
        (r#"{"type":"t","dedup_id":null,"dedup_id":"a","payload":1}"#, 422, Kind::DuplicateField),
    ] {
        assert_eq!(refused(body), (status, kind), "{body}");
    }
    let long = |n| format!(r#"{{"type":"{}","payload":1}}"#, "a".repeat(n));
    assert!(parsed(&long(128)).is_ok());
    assert_eq!(refused(&long(129)), (422, Kind::TypeInvalid));
    let long = |n| format!(r#"{{"type":"t","dedup_id":"{}","payload":1}}"#, "é".repeat(n));
    assert!(parsed(&long(255)).is_ok());
    assert_eq!(refused(&long(256)), (422, Kind::DedupIdInvalid));
}

#[test]
fn every_field_at_fault_is_named_within_a_bound() {
    let invalid = parsed(r#"{"tipe":"t","dedup_id":1}"#).unwrap_err();
    let Problem::InvalidEvent(errors) = invalid.problem else { panic!("{:?}", invalid.problem) };
    let fields: Vec<&str> = errors.iter().map(|e| &*e.field).collect();
    assert_eq!(fields, ["tipe", "dedup_id", "type", "payload"]);
    let many: Vec<String> = (0..1000).map(|n| format!("\"x{n}\":1")).collect();
    let invalid = parsed(&format!("{{{}}}", many.join(","))).unwrap_err();
    let Problem::InvalidEvent(errors) = invalid.problem else { panic!("{:?}", invalid.problem) };
    assert_eq!(errors.len(), 16);
}

#[test]
fn invalid_json_tells_the_offset() {
    let invalid = parsed(r#"{"type":"t","payload":tru}"#).unwrap_err();
    let Problem::InvalidJson { offset, .. } = invalid.problem else { panic!("{:?}", invalid.problem) };
    assert!(matches!(offset, Some(22..=25)), "{offset:?}");
}

#[test]
fn nesting_is_bounded_at_128_and_broken_nesting_is_not_json() {
    let nested = |n: usize| format!(r#"{{"type":"t","payload":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    assert!(parsed(&nested(128)).is_ok());
    assert_eq!(refused(&nested(129)), (422, ValidationErrorKind::PayloadTooDeep));
    assert_eq!(refused(&nested(100_000)), (422, ValidationErrorKind::PayloadTooDeep));
    assert_eq!(refused(&"[".repeat(100_000)), (400, ValidationErrorKind::InvalidJson));
    // The slow path must find the same bound as the fast one: a huge number sends it there.
    let slow = |n: usize| format!(r#"{{"type":"t","payload":{}1e999{}}}"#, "[".repeat(n), "]".repeat(n));
    assert!(parsed(&slow(128)).is_ok());
    assert_eq!(refused(&slow(129)), (422, ValidationErrorKind::PayloadTooDeep));
}

#[test]
fn a_payload_is_bounded_in_bytes_as_sent() {
    let sized = |n: usize| format!(r#"{{"type":"t","payload":"{}"}}"#, "a".repeat(n - 2));
    assert!(parsed(&sized(limits::PAYLOAD_BYTES_MAX)).is_ok());
    assert_eq!(refused(&sized(limits::PAYLOAD_BYTES_MAX + 1)), (413, ValidationErrorKind::PayloadTooLarge));
}

#[test]
fn the_idempotency_key_stands_in_for_the_dedup_id() {
    let body = r#"{"type":"t","payload":1}"#;
    let dedup = |body: &str, key: &str| with_key(body, Some(key)).map(|(_, dedup, _)| dedup.unwrap());
    assert_eq!(dedup(body, "abc").as_deref(), Ok("abc"));
    assert_eq!(dedup(body, "\"a\\\"b\\\\c\"").as_deref(), Ok("a\"b\\c"));
    assert_eq!(dedup(r#"{"type":"t","dedup_id":"abc","payload":1}"#, "\"abc\"").as_deref(), Ok("abc"));
    for (body, key) in [
        (r#"{"type":"t","dedup_id":"abd","payload":1}"#, "abc"),
        (body, ""),
        (body, "\"\""),
        (body, "\"abc"),
        (body, "\"a\"b\""),
        (body, "\"a\\b\""),
        (body, "a\tb"),
    ] {
        assert_eq!(dedup(body, key).expect_err(key).problem.row().status, 422, "{key}");
    }
}

#[test]
fn scratch_space_carries_nothing_over() {
    let mut scratch = Scratch::default();
    let large = format!(r#"{{"type":"a","payload":[{}1]}}"#, "1,".repeat(10_000));
    for _ in 0..3 {
        assert!(parse(&mut scratch, large.as_bytes(), None).is_ok());
        assert!(parse(&mut scratch, b"{\"type\":", None).is_err());
        let small = parse(&mut scratch, b"{\"type\":\"b\",\"payload\":{}}", None).unwrap();
        assert_eq!((&*small.event_type, small.payload), ("b", b"{}".as_slice()));
    }
}
