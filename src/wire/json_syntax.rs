//! The JSON grammar of RFC 8259, exactly: is this text JSON, and if not, where does it stop being JSON?
//!
//! The slow path of a shard, only for a body that the fast parser refused. It finds the byte to name in the 400, or
//! finds that the text is valid and the parser refused it for another reason (nesting, a number's magnitude, a lone
//! surrogate).
//!
//! One pass, no recursion, no copy of the input. Each open container is one bit, so the deepest input costs an eighth
//! of its length and nothing can overflow a stack. The text must be UTF-8 without a byte order mark; the first
//! violation, of grammar or of encoding, is the one reported. Never panics, whatever the input.

use std::fmt;

/// What is known about a valid text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Most arrays and objects open at once; 0 for a scalar.
    pub depth_max: usize,
}

/// The first place where a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Bytes before it; the length of the input if the text ends too early.
    pub offset: usize,
    /// What was expected there, worded to follow "expected".
    pub expected: &'static str,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.offset)
    }
}

impl std::error::Error for SyntaxError {}

/// Checks a whole text: one value, with nothing but white space around it.
///
/// # Errors
/// The first violation, if `input` is not JSON in UTF-8.
pub fn check(input: &[u8]) -> Result<Checked, SyntaxError> {
    let mut scan = Scanner::new(input);
    let mut open = OpenContainers::default();
    if input.starts_with(b"\xef\xbb\xbf") {
        return Err(scan.expected("a value (a byte order mark is not allowed)"));
    }
    scan.white_space();
    loop {
        // Here a value starts. An opened container leads to its first value, anything else is a finished value.
        match scan.peek() {
            Some(b'[') => {
                scan.at += 1;
                open.push(Container::Array);
                scan.white_space();
                if scan.peek() != Some(b']') {
                    continue;
                }
                scan.at += 1;
                open.pop();
            }
            Some(b'{') => {
                scan.at += 1;
                open.push(Container::Object);
                scan.white_space();
                if scan.peek() != Some(b'}') {
                    scan.key("a string as the field's name, or `}`")?;
                    continue;
                }
                scan.at += 1;
                open.pop();
            }
            _ => scan.scalar()?,
        }
        // Here a value has ended: close what it completes, until something asks for another value.
        loop {
            scan.white_space();
            match (open.innermost(), scan.peek()) {
                (None, None) => return Ok(Checked { depth_max: open.depth_max }),
                (None, Some(_)) => return Err(scan.expected("the end of the text")),
                (Some(Container::Array), Some(b',')) => {
                    scan.at += 1;
                    scan.white_space();
                    break;
                }
                (Some(Container::Object), Some(b',')) => {
                    scan.at += 1;
                    scan.white_space();
                    scan.key("a string as the field's name")?;
                    break;
                }
                (Some(Container::Array), Some(b']')) | (Some(Container::Object), Some(b'}')) => {
                    scan.at += 1;
                    open.pop();
                }
                (Some(Container::Array), _) => return Err(scan.expected("`,` or `]`")),
                (Some(Container::Object), _) => return Err(scan.expected("`,` or `}`")),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

/// The containers around the current value, outermost first, a bit each (set: object).
#[derive(Default)]
struct OpenContainers {
    words: Vec<u64>,
    depth: usize,
    depth_max: usize,
}

impl OpenContainers {
    fn push(&mut self, container: Container) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.words.len() {
            self.words.push(0);
        }
        match container {
            Container::Array => self.words[word] &= !(1 << bit),
            Container::Object => self.words[word] |= 1 << bit,
        }
        self.depth += 1;
        self.depth_max = self.depth_max.max(self.depth);
    }

    fn pop(&mut self) {
        debug_assert!(self.depth > 0, "only a container that was opened is closed");
        self.depth -= 1;
    }

    fn innermost(&self) -> Option<Container> {
        let level = self.depth.checked_sub(1)?;
        let object = self.words[level / 64] >> (level % 64) & 1 == 1;
        Some(if object { Container::Object } else { Container::Array })
    }
}

struct Scanner<'a> {
    input: &'a [u8],
    /// The next byte to look at; at most `input.len()`.
    at: usize,
    /// The offset at which the input stops being UTF-8; its length if it never does.
    utf8_up_to: usize,
}

impl<'a> Scanner<'a> {
    fn new(input: &'a [u8]) -> Self {
        let utf8_up_to = std::str::from_utf8(input).map_or_else(|error| error.valid_up_to(), str::len);
        Self { input, at: 0, utf8_up_to }
    }

    fn expected(&self, expected: &'static str) -> SyntaxError {
        SyntaxError { offset: self.at, expected }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// A field's name and its colon, up to where the value starts.
    fn key(&mut self, expected: &'static str) -> Result<(), SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected(expected));
        }
        self.string()?;
        self.white_space();
        if self.peek() != Some(b':') {
            return Err(self.expected("`:`"));
        }
        self.at += 1;
        self.white_space();
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true", "`true`"),
            Some(b'f') => self.literal(b"false", "`false`"),
            Some(b'n') => self.literal(b"null", "`null`"),
            _ => Err(self.expected("a value")),
        }
    }

    fn literal(&mut self, word: &[u8], expected: &'static str) -> Result<(), SyntaxError> {
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(self.expected(expected));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// From the opening quote past the closing one.
    fn string(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape()?;
                }
                Some(0x00..=0x1f) => return Err(self.expected("an escape (`\\n`, `\\u0000`) for a control character")),
                Some(0x20..=0x7f) => self.at += 1,
                Some(0x80..) if self.at < self.utf8_up_to => self.at += 1,
                Some(0x80..) => return Err(self.expected("UTF-8")),
                None => return Err(self.expected("`\"` to end the string")),
            }
        }
    }

    /// What follows a backslash. A surrogate alone is grammatical (RFC 8259, section 8.2).
    fn escape(&mut self) -> Result<(), SyntaxError> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.expected("four hexadecimal digits after `\\u`"));
                    }
                    self.at += 1;
                }
                Ok(())
            }
            _ => Err(self.expected("one of `\"\\/bfnrtu` after `\\`")),
        }
    }

    /// Any magnitude and any precision. A digit after a leading zero is where the number has ended and something
    /// else begins.
    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return Err(self.expected("no digit after a leading zero"));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(self.expected("a digit")) } else { Ok(()) }
    }
}

#[cfg(test)]
#[path = "json_syntax_tests.rs"]
mod tests;
