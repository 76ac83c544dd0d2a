//! The chunked transfer coding (RFC 9112, 7.1): a decoder that takes bytes as they arrive and keeps none of them.
//!
//! Runs on a shard while a body is read. Every line is bounded, and so are framing and trailers in all ([`limits`]).
//! Extensions and trailers are checked and ignored. After a refusal the decoder must not be used again.

use millrace_base::limits;
use millrace_base::problem::Problem;

use super::is_framing;

/// Decodes a chunked body: feed it the bytes after the head as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkedDecoder {
    state: ChunkState,
    framing_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunkState {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    Done,
}

impl ChunkedDecoder {
    /// Takes what it can from `input`, appending data to `body` (at most `body_bytes_max` in all).
    /// Returns how many bytes were taken and whether the body is complete.
    pub fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<(usize, bool), Problem> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            match self.state {
                ChunkState::Size => {
                    let Some(line) = take_line(rest, limits::CHUNK_LINE_BYTES_MAX)? else { return Ok((taken, false)) };
                    let size = chunk_size(line)?;
                    taken += line.len() + 2;
                    self.framing_bytes += line.len() + 4;
                    if self.framing_bytes > limits::CHUNK_FRAMING_BYTES_MAX {
                        return Err(Problem::BadRequest("the body is cut into too many chunks"));
                    }
                    if size > (body_bytes_max - body.len()) as u64 {
                        return Err(Problem::PayloadTooLarge(body_bytes_max));
                    }
                    self.state = if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size as usize) };
                }
                ChunkState::Data(left) => {
                    let now = left.min(rest.len());
                    body.extend_from_slice(&rest[..now]);
                    taken += now;
                    if now < left {
                        self.state = ChunkState::Data(left - now);
                        return Ok((taken, false));
                    }
                    self.state = ChunkState::DataEnd;
                }
                ChunkState::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        taken += 2;
                        self.state = ChunkState::Size;
                    }
                    [] | [b'\r'] => return Ok((taken, false)),
                    _ => return Err(Problem::BadRequest("a chunk ends with CR LF")),
                },
                ChunkState::Trailer => {
                    let Some(line) = take_line(rest, limits::TRAILER_BYTES_MAX)? else { return Ok((taken, false)) };
                    taken += line.len() + 2;
                    self.trailer_bytes += line.len() + 2;
                    if line.is_empty() {
                        self.state = ChunkState::Done;
                        return Ok((taken, true));
                    }
                    if self.trailer_bytes > limits::TRAILER_BYTES_MAX {
                        return Err(Problem::HeadersTooLarge);
                    }
                    check_trailer(line)?;
                }
                ChunkState::Done => return Ok((taken, true)),
            }
        }
    }
}

/// One line without its CR LF; `None` while it is incomplete.
fn take_line(bytes: &[u8], max: usize) -> Result<Option<&[u8]>, Problem> {
    const TOO_LONG: Problem = Problem::BadRequest("a chunk-size or trailer line is too long");
    match memchr::memchr2(b'\r', b'\n', bytes) {
        Some(at) if at > max => Err(TOO_LONG),
        Some(at) if bytes[at] == b'\n' => Err(Problem::BadRequest("a line ends with CR LF, not with a bare LF")),
        Some(at) => match bytes.get(at + 1) {
            Some(b'\n') => Ok(Some(&bytes[..at])),
            Some(_) => Err(Problem::BadRequest("a CR without its LF")),
            None => Ok(None),
        },
        None if bytes.len() > max => Err(TOO_LONG),
        None => Ok(None),
    }
}

/// The size at the start of a chunk-size line. Extensions are checked and ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Problem> {
    const WRONG: Problem = Problem::BadRequest("a chunk starts with its size in hexadecimal");
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extensions) = line.split_at(digits);
    // 15 digits fit a u64 with room to spare. Leading zeros count as digits.
    if size.is_empty() || size.len() > 15 {
        return Err(WRONG);
    }
    if !are_extensions(extensions) {
        return Err(Problem::BadRequest("a chunk-size line holds something other than a size and extensions"));
    }
    Ok(size.iter().fold(0, |n, b| n * 16 + u64::from(char::from(*b).to_digit(16).expect("checked to be hex"))))
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`, to the end (RFC 9112, 7.1.1).
fn are_extensions(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        let Some(named) = skip_blank(rest).strip_prefix(b";").and_then(|rest| skip_token(skip_blank(rest))) else {
            return false;
        };
        rest = named;
        if let Some(value) = skip_blank(rest).strip_prefix(b"=") {
            let value = skip_blank(value);
            let Some(behind) = skip_token(value).or_else(|| skip_quoted(value)) else { return false };
            rest = behind;
        }
    }
    true
}

fn skip_blank(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    &text[blanks..]
}

/// The text behind a token, if there is one.
fn skip_token(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().take_while(|b| is_token(**b)).count();
    (len > 0).then(|| &text[len..])
}

/// The text behind a quoted string, if there is one.
fn skip_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', escaped, rest @ ..] if is_text(*escaped) => rest,
            [b'\\', ..] => return None,
            [plain, rest @ ..] if is_text(*plain) => rest,
            _ => return None,
        }
    }
}

pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a field's value may hold the byte: any but control bytes, except the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= 0x20 && byte != 0x7f
}

/// Checks a trailer. Trailers are never used, but must look like fields: anything else suggests a smuggled request. So
/// does a framing field, for a server that reads trailers as header fields.
fn check_trailer(line: &[u8]) -> Result<(), Problem> {
    match skip_token(line) {
        Some([b':', value @ ..]) if value.iter().all(|b| is_text(*b)) => {
            let name = &line[..line.len() - value.len() - 1];
            if is_framing(name) { Err(Problem::BadRequest("a trailer field may not frame a message")) } else { Ok(()) }
        }
        _ => Err(Problem::BadRequest("a trailer field is malformed")),
    }
}

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
