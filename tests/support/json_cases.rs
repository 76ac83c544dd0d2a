//! Texts by class: what is JSON (RFC 8259), what is not, and what the RFC leaves to the implementation, with what this
//! one decided. One example a class at least, in bytes, because some are no UTF-8; and every byte there is in the places
//! where it decides, and every beginning of a text.

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON: stored verbatim as a payload.
    Json,
    /// Not JSON: 400 `invalid_json`.
    NotJson,
    /// Grammatical and over a bound of the contract: 422 `invalid_event`.
    OverBound,
}
use Kind::{Json, NotJson};

/// JSON by the grammar.
const VALID: &[&[u8]] = &[
    // structure: any value alone, white space around it
    b"null",
    b"true",
    b"false",
    b"7",
    b"\"\"",
    b"\"text\"",
    b"[]",
    b"{}",
    b" \t\r\n[ \t\r\n] \t\r\n",
    b"{\n}\n",
    // arrays
    b"[[]]",
    b"[null]",
    b"[\"\"]",
    b"[false , true]",
    b"[1,\n2\t,3]",
    b"[null,1,\"1\",{},[],false]",
    b"[[[[[[[[[[]]]]]]]]]]",
    // objects
    b"{\"\":0}",
    b"{\"a\":\"b\",\"c\":\"d\"}",
    b"{\"a\" : {\"b\" : [ ] } }",
    b"{\"a\":1,\"a\":2}",
    b"{\"a\":1,\"a\":1}",
    b"{\"a\\u0000b\":1}",
    b"{\"\\u0061\":1,\"a\":2}",
    b"{\"type\":1,\"payload\":{\"dedup_id\":2}}",
    // numbers
    b"0",
    b"-0",
    b"-0.0",
    b"10",
    b"-1",
    b"12.5",
    b"0.000000001",
    b"1e5",
    b"1E5",
    b"1e+05",
    b"1E-05",
    b"0e0",
    b"0E+1",
    b"-0.50e-07",
    b"9007199254740993",
    b"18446744073709551615",
    b"-9223372036854775808",
    b"3.141592653589793238462643383279502884197",
    b"[ -1 ]",
    // strings: plain, escaped, any scalar value
    b"\"/ // /* */ #\"",
    b"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
    b"\"\\\\u0041 \\\\n\"",
    b"\"\\u0041\\u00e9\\uABCD\\uabcd\"",
    b"\"\\u0000\"",
    b"\"a\\u0000b\\u001f\"",
    b"\"\\u007f\x7f\"",
    b"\"\\u0022\\u005c\"",
    b"\"\\ud83d\\udc22\"",
    b"\"\\uD800\\uDC00\\uDBFF\\uDFFF\"",
    b"\"\\ufffe\\uffff\\ufdd0\"",
    "\"ż é € 🐢\"".as_bytes(),
    "\"\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}\"".as_bytes(),
    "\"\u{d7ff}\u{e000}\u{fdd0}\u{fffe}\u{1fffe}\"".as_bytes(),
    "\"\u{2028}\u{2029}\u{a0}\u{200b}\u{2060}\"".as_bytes(),
    "\"\u{feff}\"".as_bytes(),
    "{\"clé\":\"œ\"}".as_bytes(),
];

/// Not JSON by the grammar.
const INVALID: &[&[u8]] = &[
    // nothing there, or only white space
    b"",
    b" ",
    b"\n\t",
    // something before, after or between
    b"1 2",
    b"[] []",
    b"{}}",
    b"[]]",
    b"[1]x",
    b"\"a\"b",
    b"null,",
    b"{}#",
    b"{} // end",
    b"{} /* end */",
    b"/**/1",
    b"<1>",
    b"*",
    b"]",
    b"}",
    b",",
    b":",
    b"null\x00",
    b"\x00",
    // white space that is none
    b"\x0b1",
    b"[\x0c]",
    b"[1,\x0b2]",
    "\u{a0}1".as_bytes(),
    "\u{2028}1".as_bytes(),
    "\u{2060}1".as_bytes(),
    "[\u{200b}]".as_bytes(),
    // words
    b"nul",
    b"truth",
    b"False",
    b"NULL",
    b"nulll",
    b"undefined",
    b"[tru]",
    b"[fals",
    // arrays
    b"[",
    b"[1",
    b"[1,",
    b"[\"a\"",
    b"[\"a",
    b"[{}",
    b"[[]",
    b"[,]",
    b"[1,]",
    b"[,1]",
    b"[1,,2]",
    b"[1,2,,]",
    b"[1 2]",
    b"[1:2]",
    b"[1;2]",
    b"[3[4]]",
    b"[1}",
    b"[*]",
    b"[-]",
    b"[\n1\n",
    // objects
    b"{",
    b"{\"a\"",
    b"{\"a\"}",
    b"{\"a\":",
    b"{\"a\":}",
    b"{\"a\":1",
    b"{\"a\":1,",
    b"{\"a\":1,}",
    b"{\"a\":1,,\"b\":2}",
    b"{,\"a\":1}",
    b"{\"a\",1}",
    b"{\"a\" 1}",
    b"{\"a\"::1}",
    b"{\"a\":1 \"b\":2}",
    b"{\"a\":1;\"b\":2}",
    b"{:1}",
    b"{a:1}",
    b"{'a':1}",
    b"{1:1}",
    b"{null:1}",
    b"{[\"a\"]:1}",
    b"{\"a\":1]",
    b"{\"a\":1/*c*/}",
    b"{\"a\":x}",
    b"{\"a\":\"b}",
    "{🐢:1}".as_bytes(),
    // numbers
    b"-",
    b"+1",
    b"--1",
    b"- 1",
    b"00",
    b"01",
    b"-01",
    b"1.",
    b".5",
    b"-.5",
    b"1.e3",
    b"1.5.2",
    b"1e",
    b"1e+",
    b"1E-",
    b"1e1e1",
    b"1e1.5",
    b"1+1",
    b"1_000",
    b"1,5",
    b"0x1F",
    b"0b1",
    b"0o7",
    b"1f",
    b"1a",
    b"NaN",
    b"-NaN",
    b"Infinity",
    b"-Infinity",
    b"Inf",
    "１".as_bytes(),
    b"1\xe5",
    b"1e1\xe5",
    // strings
    b"\"",
    b"\"a",
    b"'a'",
    b"a",
    b"\\u0041",
    b"\"\\\"",
    b"\"\\",
    b"\"\\x41\"",
    b"\"\\a\"",
    b"\"\\0\"",
    b"\"\\'\"",
    b"\"\\U0041\"",
    b"\"\\u\"",
    b"\"\\u00\"",
    b"\"\\u004\"",
    b"\"\\u00G0\"",
    b"\"\\u{41}\"",
    b"\"\\ud83d\\u\"",
    b"\"\\ud83d\\u1\"",
    b"\"\\ud83d\\x\"",
    b"\"\\ud83d\\",
    b"\"a\nb\"",
    b"\"a\rb\"",
    b"\"a\tb\"",
    b"\"\x00\"",
    b"\"\x1f\"",
    "\"\\🐢\"".as_bytes(),
    "é".as_bytes(),
    b"\"\\\xe5\"",
    b"\"\\u\xe5\"",
    // bytes that are no UTF-8, outside strings
    b"\xff",
    b"[\xff]",
    b"[\"a\",\xe9]",
    // a byte order mark with nothing behind it, or half of one
    b"\xef\xbb\xbf",
    b"\xef\xbb{}",
];

/// What RFC 8259 leaves open, and what is done here.
const DECIDED: &[(&str, &[u8], Kind)] = &[
    // Section 6: any magnitude and precision is grammatical. The text is kept and never made a number.
    ("integer past 64 bits", b"123456789012345678901234567890", Json),
    ("negative integer past 64 bits", b"-123456789012345678901234567890", Json),
    ("overflow to infinity", b"1e999", Json),
    ("negative overflow", b"-1e+9999", Json),
    ("underflow to zero", b"1e-999", Json),
    ("tiny negative", b"-2.5e-4321", Json),
    ("exponent past 64 bits", b"7.1e+00012345678901234567890123456789", Json),
    ("past what Postgres numeric holds", b"1e131072", Json),
    // Section 8.2: escapes of surrogates without their other half are grammatical; they are kept as escapes.
    ("high surrogate alone", b"\"\\ud800\"", Json),
    ("low surrogate alone", b"\"\\udfff\"", Json),
    ("high surrogate, then text", b"\"\\udb40x\"", Json),
    ("high surrogate, then an escape", b"\"\\uDa12\\t\"", Json),
    ("high surrogate twice, then low", b"\"\\ud800\\ud800\\udc00\"", Json),
    ("surrogates in the wrong order", b"\"\\udc22\\ud83d\"", Json),
    ("surrogate in a name", b"{\"\\udE01\":0}", Json),
    // Section 8.1: texts are UTF-8, and a byte order mark MUST NOT be added. All else is refused.
    ("byte order mark before an object", b"\xef\xbb\xbf{}", NotJson),
    ("byte order mark before a scalar", b"\xef\xbb\xbf1", NotJson),
    ("byte order mark behind white space", b" \xef\xbb\xbf[]", NotJson),
    ("byte order mark at the end", b"[]\xef\xbb\xbf", NotJson),
    ("byte order mark before a name", b"{\xef\xbb\xbf\"a\":1}", NotJson),
    ("UTF-16, little endian, with mark", b"\xff\xfe[\x00\"\x00\xe9\x00\"\x00]\x00", NotJson),
    ("UTF-16, little endian", b"[\x00\"\x00\xe9\x00\"\x00]\x00", NotJson),
    ("UTF-16, big endian", b"\x00[\x00\"\x00\xe9\x00\"\x00]", NotJson),
    ("UTF-32, little endian", b"[\x00\x00\x00]\x00\x00\x00", NotJson),
    ("Latin-1", b"[\"\xe9\"]", NotJson),
    ("continuation byte alone", b"[\"a\x9f\"]", NotJson),
    ("cut sequence", b"[\"\xe2\x82!\"]", NotJson),
    ("sequence cut by the quote", b"[\"\xe2\x82\"]", NotJson),
    ("sequence cut by the end", b"\"\xf0\x9f\x90", NotJson),
    ("overlong, two bytes", b"[\"\xc0\xaf\"]", NotJson),
    ("overlong, three bytes", b"[\"\xe0\x80\xaf\"]", NotJson),
    ("overlong, six bytes", b"[\"\xfc\x80\x80\x80\x81\x81\"]", NotJson),
    ("overlong NUL", b"[\"\xc0\x80\"]", NotJson),
    ("encoded surrogate", b"[\"\xed\xa0\x80\"]", NotJson),
    ("past U+10FFFF", b"[\"\xf4\x90\x80\x80\"]", NotJson),
    ("past U+10FFFF, five bytes", b"[\"\xf8\x88\x80\x80\x80\"]", NotJson),
];

/// Every case: name, text, kind.
pub fn all() -> Vec<(String, Vec<u8>, Kind)> {
    let named = |kind| move |text: &&[u8]| (String::from_utf8_lossy(text).into_owned(), text.to_vec(), kind);
    let nested = |n: usize| ["[".repeat(n), "]".repeat(n)].concat().into_bytes();
    let objects = |n: usize| ["{\"a\":".repeat(n), "0".to_owned(), "}".repeat(n)].concat().into_bytes();
    let mixed = |n: usize| ["[{\"a\":".repeat(n), "0".to_owned(), "}]".repeat(n)].concat().into_bytes();
    let mut cases: Vec<(String, Vec<u8>, Kind)> = VALID.iter().map(named(Json)).collect();
    cases.extend(INVALID.iter().map(named(NotJson)));
    cases.extend(DECIDED.iter().map(|(name, text, kind)| ((*name).to_owned(), text.to_vec(), *kind)));
    // Section 9: depth may be limited. It is, at 128, after the grammar: what is unbalanced is no JSON at any depth.
    cases.extend([
        ("128 arrays".to_owned(), nested(128), Json),
        ("129 arrays".to_owned(), nested(129), Kind::OverBound),
        ("128 objects".to_owned(), objects(128), Json),
        ("129 objects".to_owned(), objects(129), Kind::OverBound),
        ("64 arrays of objects".to_owned(), mixed(64), Json),
        ("65 arrays of objects".to_owned(), mixed(65), Kind::OverBound),
        ("130,000 arrays".to_owned(), nested(130_000), Kind::OverBound),
        ("130,000 arrays left open".to_owned(), vec![b'['; 130_000], NotJson),
        ("40,000 objects left open".to_owned(), b"[{\"\":".repeat(40_000), NotJson),
    ]);
    cases.extend((0..=u8::MAX).flat_map(every_place_of));
    let whole = "[{\"k\\u00e9y\":[null,true,false,-0.5e+10,\"\\\"\\ud83d\\udc22é🐢\"],\"\":{}} ]".as_bytes();
    cases.push(("whole".to_owned(), whole.to_vec(), Json));
    cases.extend((0..whole.len()).map(|len| (format!("the first {len} bytes"), whole[..len].to_vec(), NotJson)));
    cases
}

/// A byte where it may be white space, a digit, a character of a string or of an escape.
fn every_place_of(byte: u8) -> [(String, Vec<u8>, Kind); 3] {
    let kind = |is_json| if is_json { Json } else { NotJson };
    let is_character = (0x20..0x80).contains(&byte) && !b"\"\\".contains(&byte);
    [
        ("behind a number", [b"[1", &[byte][..], b"]"], b" \t\r\n0123456789".contains(&byte)),
        ("in a string", [b"\"b", &[byte], b"a\""], is_character),
        ("in an escape", [b"\"\\", &[byte], b"\""], b"\"\\/bfnrt".contains(&byte)),
    ]
    .map(|(place, parts, is_json)| (format!("byte {byte:#04x} {place}"), parts.concat(), kind(is_json)))
}
