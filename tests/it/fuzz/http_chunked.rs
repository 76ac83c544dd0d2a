//! Bytes as a chunked body: the decoder against a second, slow reading of the grammar that sees all of it at once, and
//! against itself with the same bytes in pieces.

use millrace_base::limits;
use millrace_wire::http::ChunkedDecoder;

/// The largest body taken here: small, so that inputs reach it.
const BODY_BYTES_MAX: usize = 4096;

/// What became of the bytes.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A whole body, and how many bytes of the input were its.
    Whole(Vec<u8>, usize),
    /// So far there is nothing wrong with it.
    Incomplete,
    Refused,
}

/// Panics where the readings differ.
pub fn check(bytes: &[u8]) {
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(whole, expected(bytes), "against the grammar");
    for piece in [1, 2, 7, 64] {
        let in_pieces = decoded(bytes, piece);
        assert_eq!(in_pieces, whole, "in pieces of {piece}");
    }
    if let Outcome::Whole(body, _) = whole {
        let again = format!("{:x};again\r\n", body.len()).into_bytes();
        let again = if body.is_empty() { Vec::new() } else { [&again, &body[..], b"\r\n"].concat() };
        let again = [&again[..], b"0\r\nT: x\r\n\r\n"].concat();
        assert_eq!(decoded(&again, 5), Outcome::Whole(body, again.len()));
    }
}

/// Feeds the decoder as a connection does: what it leaves is offered again, with more behind it.
fn decoded(bytes: &[u8], piece: usize) -> Outcome {
    let (mut decoder, mut body, mut taken, mut arrived) = (ChunkedDecoder::default(), Vec::new(), 0, 0);
    loop {
        match decoder.decode(&bytes[taken..arrived], &mut body, BODY_BYTES_MAX) {
            Err(_) => return Outcome::Refused,
            Ok((now, is_complete)) => {
                taken += now;
                assert!(taken <= arrived && body.len() <= BODY_BYTES_MAX);
                if is_complete {
                    return Outcome::Whole(body, taken);
                }
            }
        }
        if arrived == bytes.len() {
            return Outcome::Incomplete;
        }
        arrived = (arrived + piece).min(bytes.len());
    }
}

/// The grammar of RFC 9112, 7.1, with this server's bounds.
fn expected(bytes: &[u8]) -> Outcome {
    let (mut rest, mut body, mut framing) = (bytes, Vec::new(), 0);
    loop {
        let line = match line(rest, limits::CHUNK_LINE_BYTES_MAX) {
            Ok(line) => line,
            Err(outcome) => return outcome,
        };
        let Some(size) = size(line) else { return Outcome::Refused };
        rest = &rest[line.len() + 2..];
        framing += line.len() + 4;
        if framing > limits::CHUNK_FRAMING_BYTES_MAX || size > (BODY_BYTES_MAX - body.len()) as u128 {
            return Outcome::Refused;
        }
        if size == 0 {
            break;
        }
        let size = size as usize;
        let Some((data, behind)) = rest.split_at_checked(size) else { return Outcome::Incomplete };
        body.extend_from_slice(data);
        rest = match behind {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Outcome::Incomplete,
            _ => return Outcome::Refused,
        };
    }
    let mut trailers = 0;
    loop {
        let line = match line(rest, limits::TRAILER_BYTES_MAX) {
            Ok(line) => line,
            Err(outcome) => return outcome,
        };
        rest = &rest[line.len() + 2..];
        trailers += line.len() + 2;
        if line.is_empty() {
            return Outcome::Whole(body, bytes.len() - rest.len());
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let is_field = name.len() < line.len() && is_token(name) && line.iter().all(|byte| is_text(*byte));
        if trailers > limits::TRAILER_BYTES_MAX || !is_field || frames_a_message(name) {
            return Outcome::Refused;
        }
    }
}

/// Whether `name` is that of a framing field, with any separators.
fn frames_a_message(name: &[u8]) -> bool {
    let plain = |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_lowercase()) } else { '-' };
    let plain: String = name.iter().map(plain).collect();
    plain == "content-length" || plain == "transfer-encoding"
}

/// A line without its CR LF. Too long is too long, whatever stands at its end.
fn line(bytes: &[u8], max: usize) -> Result<&[u8], Outcome> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    if end > max {
        return Err(Outcome::Refused);
    }
    match &bytes[end..] {
        [b'\r', b'\n', ..] => Ok(&bytes[..end]),
        [] | [b'\r'] => Err(Outcome::Incomplete),
        _ => Err(Outcome::Refused),
    }
}

/// The size of a chunk, where the line is a size and extensions: one state after each byte.
fn size(line: &[u8]) -> Option<u128> {
    #[derive(Clone, Copy)]
    enum At {
        Size,
        /// White space behind the size or a value: a semicolon must come.
        Gap,
        NameBegin,
        Name,
        /// White space behind a name: a semicolon or an equals sign must come.
        NameGap,
        ValueBegin,
        Value,
        Quoted,
        Escaped,
        QuoteEnd,
    }
    let mut at = At::Size;
    let mut digits = String::new();
    for byte in line {
        let is_blank = matches!(byte, b' ' | b'\t');
        at = match (at, byte) {
            (At::Size, byte) if byte.is_ascii_hexdigit() => {
                digits.push(char::from(*byte));
                At::Size
            }
            (At::Size | At::Gap | At::Name | At::NameGap | At::Value | At::QuoteEnd, b';') => At::NameBegin,
            (At::Size | At::Gap | At::Value | At::QuoteEnd, _) if is_blank => At::Gap,
            (At::NameBegin, _) if is_blank => At::NameBegin,
            (At::NameBegin | At::Name, byte) if is_token(&[*byte]) => At::Name,
            (At::Name | At::NameGap, _) if is_blank => At::NameGap,
            (At::Name | At::NameGap, b'=') => At::ValueBegin,
            (At::ValueBegin, _) if is_blank => At::ValueBegin,
            (At::ValueBegin, b'"') => At::Quoted,
            (At::ValueBegin | At::Value, byte) if is_token(&[*byte]) => At::Value,
            (At::Quoted, b'"') => At::QuoteEnd,
            (At::Quoted, b'\\') => At::Escaped,
            (At::Quoted | At::Escaped, byte) if is_text(*byte) => At::Quoted,
            _ => return None,
        };
    }
    let is_whole = matches!(at, At::Size | At::Name | At::Value | At::QuoteEnd);
    // Fifteen digits are this server's bound, zeros in front included.
    if is_whole && digits.len() <= 15 { u128::from_str_radix(&digits, 16).ok() } else { None }
}

fn is_token(text: &[u8]) -> bool {
    let is_delimiter = |byte: &u8| b"\"(),/:;<=>?@[\\]{}".contains(byte);
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_graphic() && !is_delimiter(byte))
}

fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || byte == b'\t'
}
