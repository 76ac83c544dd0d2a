//! Tables for every production of the grammar, and a comparison with `serde_json` on mutated documents.

use proptest::prelude::*;

use super::*;

fn offset(input: &[u8]) -> usize {
    match check(input) {
        Ok(_) => panic!("accepted: {}", String::from_utf8_lossy(input)),
        Err(error) => error.offset,
    }
}

#[test]
fn accepts_every_production() {
    for text in [
        "null",
        "true",
        "false",
        " \t\r\n0\n",
        "-0",
        "0e0",
        "12.50E+07",
        "-1e-9999999999",
        "1e999999",
        "123456789012345678901234567890.000",
        r#""""#,
        r#""\"\\\/\b\f\n\r\t\u00e9\uABCD""#,
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\u0000""#,
        "\"\u{7f}\u{80}\u{2028}\u{ffff}\u{10ffff}\u{feff}\"",
        "[]",
        "[ ]",
        "{}",
        "{\n}",
        r#"[1,[],{},"",null]"#,
        r#"{"":{"":[{"a" : 1 , "a":2}]}}"#,
    ] {
        assert!(check(text.as_bytes()).is_ok(), "{text}: {:?}", check(text.as_bytes()));
    }
}

#[test]
fn counts_the_deepest_nesting() {
    for (text, depth_max) in
        [("1", 0), ("[]", 1), (r#"{"a":[]}"#, 2), ("[[],[[]],[]]", 3), (r#"[{"a":{"b":[1]}},2]"#, 4)]
    {
        assert_eq!(check(text.as_bytes()), Ok(Checked { depth_max }), "{text}");
    }
}

#[test]
fn a_million_levels_cost_no_stack_and_close_in_the_right_order() {
    let depth = 1_000_000;
    let mut text = Vec::new();
    for level in 0..depth {
        text.extend_from_slice(if level % 3 == 0 { b"{\"\":" } else { b"[" });
    }
    text.push(b'0');
    let opened = text.len();
    for level in (0..depth).rev() {
        text.push(if level % 3 == 0 { b'}' } else { b']' });
    }
    assert_eq!(check(&text), Ok(Checked { depth_max: depth }));
    assert_eq!(offset(&text[..opened]), opened);
    let wrong = opened + 1000;
    text[wrong] = if text[wrong] == b'}' { b']' } else { b'}' };
    assert_eq!(offset(&text), wrong);
}

#[test]
fn refuses_at_the_first_byte_at_fault() {
    let table: &[(&[u8], usize)] = &[
        // nothing there, or not a value
        (b"", 0),
        (b"  ", 2),
        (b"\xef\xbb\xbf{}", 0),
        (b"\xc2\xa01", 0),
        (b"\x0b1", 0),
        (b"\x001", 0),
        (b"'a'", 0),
        (b"+1", 0),
        (b".5", 0),
        (b"NaN", 0),
        (b"Infinity", 0),
        (b"// c\n1", 0),
        (b"}", 0),
        // words
        (b"tru", 3),
        (b"truE", 3),
        (b"nulll", 4),
        (b"False", 0),
        // trailing data
        (b"1 2", 2),
        (b"{}{}", 2),
        (b"[]]", 2),
        (b"\"a\"b", 3),
        (b"null\0", 4),
        // numbers
        (b"-", 1),
        (b"-a", 1),
        (b"01", 1),
        (b"-012", 2),
        (b"1.", 2),
        (b"1.e1", 2),
        (b"1e", 2),
        (b"1e+", 3),
        (b"1e1.5", 3),
        (b"0x10", 1),
        (b"1_000", 1),
        (b"--1", 1),
        (b"\xef\xbc\x91", 0),
        // strings
        (b"\"", 1),
        (b"\"abc", 4),
        (b"\"a\nb\"", 2),
        (b"\"a\x00\"", 2),
        (b"\"\x1f\"", 1),
        (b"\"\\", 2),
        (b"\"\\x41\"", 2),
        (b"\"\\'\"", 2),
        (b"\"\\U0041\"", 2),
        (b"\"\\u12\"", 5),
        (b"\"\\u12g4\"", 5),
        (b"\"\\u", 3),
        (b"\"\\\xc3\xa9\"", 2),
        // UTF-8, only where a string could hold it
        (b"\"\xff\"", 1),
        (b"\"a\x80\"", 2),
        (b"\"\xc0\xaf\"", 1),
        (b"\"\xed\xa0\x80\"", 1),
        (b"\"\xf4\x90\x80\x80\"", 1),
        (b"\"\xc3\xa9\xe2\x82\"", 3),
        (b"\"\xe2\x82", 1),
        (b"[1,\"\xc3\xa9\",\xff]", 8),
        (b"[01,\"\xff\"]", 2),
        // arrays
        (b"[", 1),
        (b"[1", 2),
        (b"[1,", 3),
        (b"[1,]", 3),
        (b"[,1]", 1),
        (b"[1,,2]", 3),
        (b"[1 2]", 3),
        (b"[1:2]", 2),
        (b"[1}", 2),
        (b"[\"a\"", 4),
        // objects
        (b"{", 1),
        (b"{1:2}", 1),
        (b"{a:1}", 1),
        (b"{,}", 1),
        (b"{\"a\"", 4),
        (b"{\"a\"}", 4),
        (b"{\"a\" 1}", 5),
        (b"{\"a\":", 5),
        (b"{\"a\":}", 5),
        (b"{\"a\":1", 6),
        (b"{\"a\":1,}", 7),
        (b"{\"a\":1,,", 7),
        (b"{\"a\":1 \"b\":2}", 7),
        (b"{\"a\":1]", 6),
        (b"{\"a\"::1}", 5),
    ];
    for (input, at) in table {
        assert_eq!(offset(input), *at, "{}", String::from_utf8_lossy(input));
    }
}

#[test]
fn says_what_would_be_right() {
    let shown = check(b"{\"a\":1,}").unwrap_err().to_string();
    assert_eq!(shown, "expected a string as the field's name at byte 7");
}

/// Any JSON document, as text, with white space and escapes in it.
fn document() -> impl Strategy<Value = String> {
    let string = r#""([ !#-Z^-~é€😀]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,6}""#;
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,4})?",
        string,
    ];
    leaf.prop_recursive(6, 40, 5, move |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..5), "[ \n\t\r]{0,2}")
                .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!("{space},")))),
            (prop::collection::vec((string, inner), 0..5), "[ \n\t\r]{0,2}").prop_map(|(fields, space)| {
                let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key}{space}:{value}")).collect();
                format!("{{{space}{}}}", fields.join(&format!(",{space}")))
            }),
        ]
    })
}

#[derive(Clone, Debug)]
enum Mutation {
    Replace(u8),
    Insert(u8),
    Remove,
    Truncate,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let byte = prop_oneof![
        4 => prop::sample::select(b"{}[]:,\"\\-+.eE01tfnu \n\x00\x1f\x7f".to_vec()),
        1 => any::<u8>(),
    ];
    prop_oneof![
        byte.clone().prop_map(Mutation::Replace),
        byte.prop_map(Mutation::Insert),
        Just(Mutation::Remove),
        Just(Mutation::Truncate),
    ]
}

/// What `serde_json` says of the same bytes. Skipping a value, it decodes nothing: it minds neither depth, nor
/// magnitude, nor surrogates, as we do not, and (unlike us) not whether the text is UTF-8, hence the first half.
fn serde_json_accepts(input: &[u8]) -> bool {
    std::str::from_utf8(input).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn agrees_with_serde_json(
        text in document(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), mutation()), 0..4),
    ) {
        let mut bytes = text.into_bytes();
        if mutations.is_empty() {
            prop_assert!(check(&bytes).is_ok(), "{:?}", check(&bytes));
        }
        for (place, mutation) in mutations {
            let at = place.index(bytes.len() + 1);
            match mutation {
                Mutation::Insert(byte) => bytes.insert(at, byte),
                Mutation::Truncate => bytes.truncate(at),
                Mutation::Replace(byte) if at < bytes.len() => bytes[at] = byte,
                Mutation::Remove if at < bytes.len() => drop(bytes.remove(at)),
                Mutation::Replace(_) | Mutation::Remove => {}
            }
        }
        let ours = check(&bytes);
        prop_assert_eq!(ours.is_ok(), serde_json_accepts(&bytes), "{:?}: {}", ours, String::from_utf8_lossy(&bytes));
    }

    /// The error's place is the true one: what stands before it can still become JSON, with it nothing can.
    #[test]
    fn the_offset_is_where_the_text_goes_wrong(
        text in document(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = text.into_bytes();
        let at = place.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = check(&bytes) {
            prop_assert!(error.offset <= bytes.len());
            // Cut there, the text is only too short (or, after a number, even whole).
            if let Err(cut) = check(&bytes[..error.offset]) {
                prop_assert_eq!(cut.offset, error.offset, "{:?} then {:?}", error, cut);
            }
        }
    }
}
