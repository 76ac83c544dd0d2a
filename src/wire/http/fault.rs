//! Describes what is wrong with a request head: names the field and the byte. Only for refusals, so it may allocate.
//!
//! Values are never repeated, because they may be secrets. Names are repeated as far as they are tokens.

use millrace_base::problem::Problem;

use super::chunked::is_token;

/// The most bytes of a field's name that are repeated.
const NAME_SHOWN_BYTES: usize = 64;

/// The refusal of a head that httparse refuses.
pub(super) fn of_head(error: httparse::Error, head: &[u8]) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => Problem::HeadersTooLarge,
        httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => {
            of_fields(head).map_or(Problem::BadRequest("a header field is malformed"), Problem::BadHead)
        }
        // The version at the end of the line was checked before, so the error is in front of it.
        httparse::Error::Token | httparse::Error::Version | httparse::Error::Status => {
            Problem::BadRequest("the request line is a method, a target and a version, with one space between them")
        }
    }
}

/// The refusal of a byte in the target.
pub(super) fn in_target(byte: u8) -> Problem {
    Problem::BadHead(format!(
        "the request target holds {}, which must be percent-encoded: `%{byte:02X}`",
        described(byte)
    ))
}

/// What is wrong with the first field that is malformed.
fn of_fields(head: &[u8]) -> Option<String> {
    let lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.enumerate().skip(1).take_while(|(_, line)| !line.is_empty()).find_map(|(number, line)| of_field(number, line))
}

fn of_field(number: usize, line: &[u8]) -> Option<String> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some(format!("header field {number} begins with white space: a field is one line"));
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return Some(format!("header field {number} has no colon"));
    };
    let (name, value) = line.split_at(colon);
    if name.is_empty() {
        return Some(format!("header field {number} has no name"));
    }
    if let Some(byte) = name.iter().find(|byte| !is_token(**byte)) {
        return Some(format!("the name of header field {number} holds {}", described(*byte)));
    }
    let byte = value.iter().find(|byte| byte.is_ascii_control() && **byte != b'\t')?;
    let shown = String::from_utf8_lossy(&name[..name.len().min(NAME_SHOWN_BYTES)]);
    Some(format!("the value of `{shown}` holds {}", described(*byte)))
}

fn described(byte: u8) -> String {
    match byte {
        b' ' => "a space".to_owned(),
        b'\t' => "a tab".to_owned(),
        b'\r' => "a CR without its LF".to_owned(),
        byte if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
        byte => format!("the byte 0x{byte:02X}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_head;

    #[test]
    fn the_field_and_the_byte_are_named() {
        for (fields, words) in [
            ("nocolon\r\n", "header field 2 has no colon"),
            (": a\r\n", "header field 2 has no name"),
            (" X: a\r\n", "header field 2 begins with white space"),
            ("A: b\r\n c\r\n", "header field 3 begins with white space"),
            ("B@d: x\r\n", "the name of header field 2 holds `@`"),
            ("B d: x\r\n", "the name of header field 2 holds a space"),
            ("X : a\r\n", "the name of header field 2 holds a space"),
            ("B\u{e9}: x\r\n", "the name of header field 2 holds the byte 0xC3"),
            ("X-Foo: a\x01secret\r\n", "the value of `X-Foo` holds the byte 0x01"),
            ("X-Foo: a\0\r\n", "the value of `X-Foo` holds the byte 0x00"),
            ("X-Foo: a\rb\r\n", "the value of `X-Foo` holds a CR without its LF"),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let problem = parse_head(head.as_bytes()).expect_err(fields);
            let detail = problem.detail();
            assert!(detail.contains(words) && !detail.contains("secret"), "{fields:?}: {detail}");
        }
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\n{}: \0\r\n\r\n", "x".repeat(5000));
        assert!(parse_head(long.as_bytes()).unwrap_err().detail().len() < 200);
        let target = parse_head(b"GET /a{b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err();
        assert!(target.detail().contains("holds `{`, which must be percent-encoded: `%7B`"), "{target:?}");
    }
}
