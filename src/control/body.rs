//! Reads a JSON body field by field, strictly.
//!
//! All errors are reported at once, by field. An unknown field and a repeated one are refused by name, because a typo must
//! not turn a change into none. Messages do not quote values, which may be secrets. Bodies are at most
//! [`CONTROL_BODY_BYTES_MAX`](millrace_base::limits::CONTROL_BODY_BYTES_MAX) long.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use millrace_base::problem::{FieldError, Problem};
use millrace_wire::json_syntax;

/// What is wrong with a field, for people: "must be a string".
pub(super) type Message = Cow<'static, str>;

/// Most errors that are reported: a body of many unknown fields must not become an answer of its size.
const ERRORS_MAX: usize = 16;
/// Longest part of an unknown field's name that is quoted.
const NAME_SHOWN_CHARS: usize = 64;

/// Refuses a body that is not JSON, with the offset of the error.
pub(super) fn check_syntax(body: &[u8]) -> Result<(), Problem> {
    json_syntax::check(body).map(|_| ()).map_err(|error| Problem::InvalidJson {
        offset: Some(error.offset),
        detail: format!("expected {}", error.expected).into(),
    })
}

/// The members of a body that are still to be read, and the errors so far.
pub(super) struct Body<'a> {
    known: &'a [&'static str],
    members: Vec<(String, &'a RawValue)>,
    errors: Vec<FieldError>,
    /// How many of the errors are not about the value of a known field.
    errors_of_names: usize,
}

impl<'a> Body<'a> {
    /// Takes an object with some of the `known` fields. An empty body is an object without any.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn read_optional(body: &'a [u8], known: &'a [&'static str]) -> Result<Self, Problem> {
        if is_empty(body) { Ok(Self::without_members(known)) } else { Self::read(body, known) }
    }

    fn without_members(known: &'a [&'static str]) -> Self {
        Self { known, members: Vec::new(), errors: Vec::new(), errors_of_names: 0 }
    }

    /// Takes an object with some of the `known` fields.
    ///
    /// # Errors
    /// [`Problem::InvalidJson`], also for an empty body; all other errors are kept for [`Self::finish`].
    pub(super) fn read(body: &'a [u8], known: &'a [&'static str]) -> Result<Self, Problem> {
        let mut read = Self::without_members(known);
        if is_empty(body) {
            let detail = "the body is empty; this route takes a JSON object".into();
            return Err(Problem::InvalidJson { offset: None, detail });
        }
        check_syntax(body)?;
        let Ok(Members(members)) = serde_json::from_slice(body) else {
            read.refuse("", "the body must be an object");
            read.errors_of_names = read.errors.len();
            return Ok(read);
        };
        for (name, value) in members {
            if !known.contains(&name.as_str()) {
                let shown: String = name.chars().take(NAME_SHOWN_CHARS).collect();
                read.refuse(shown, format!("is not one of the fields taken here: {}", known.join(", ")));
            } else if read.members.iter().any(|(other, _)| *other == name) {
                read.refuse(name, "is there more than once");
            } else {
                read.members.push((name, value));
            }
        }
        read.errors_of_names = read.errors.len();
        Ok(read)
    }

    /// Reads a field where it is given.
    pub(super) fn field<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&'a RawValue) -> Result<T, Message>,
    ) -> Option<T> {
        let at = self.members.iter().position(|(given, _)| given == name)?;
        let (_, value) = self.members.swap_remove(at);
        parse(value).map_err(|message| self.refuse(name, message)).ok()
    }

    /// Reads a field that must be given.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&'a RawValue) -> Result<T, Message>,
    ) -> Option<T> {
        self.require(name);
        self.field(name, parse)
    }

    /// Notes an error where a field is not given.
    pub(super) fn require(&mut self, name: &'static str) {
        if !self.members.iter().any(|(given, _)| given == name) && !self.errors.iter().any(|error| error.field == name)
        {
            self.refuse(name, "is missing");
        }
    }

    /// Treats every field that is `null` as not given, except this one.
    pub(super) fn leave_out_nulls_except(&mut self, name: &str) {
        self.members.retain(|(given, value)| given == name || value.get() != "null");
    }

    /// Notes an error of a field.
    pub(super) fn refuse(&mut self, field: impl Into<Message>, message: impl Into<Message>) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(FieldError { field: field.into(), message: message.into() });
        }
    }

    /// Ends the reading. Errors of values are in the order of the known fields.
    ///
    /// # Errors
    /// [`Problem::InvalidEndpoint`] with all errors.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        let known = self.known;
        self.errors[self.errors_of_names..].sort_by_key(|error| known.iter().position(|name| *name == error.field));
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::InvalidEndpoint(self.errors)) }
    }
}

/// Whether a body is empty or white space.
pub(super) fn is_empty(body: &[u8]) -> bool {
    body.iter().all(|byte| b" \t\r\n".contains(byte))
}

/// `null`, or what `parse` makes of the value.
pub(super) fn or_null<'a, T>(
    parse: impl FnOnce(&'a RawValue) -> Result<T, Message>,
) -> impl FnOnce(&'a RawValue) -> Result<Option<T>, Message> {
    |value| if value.get() == "null" { Ok(None) } else { parse(value).map(Some) }
}

/// A string; one with lone surrogates is refused.
pub(super) fn text(value: &RawValue) -> Result<String, Message> {
    serde_json::from_str(value.get()).map_err(|_| "must be a string".into())
}

/// True or false.
pub(super) fn switch(value: &RawValue) -> Result<bool, Message> {
    value.get().parse().map_err(|_| "must be true or false".into())
}

/// A whole number.
pub(super) fn count(value: &RawValue) -> Result<u64, Message> {
    whole(value.get()).ok_or_else(|| "must be a whole number".into())
}

/// A whole number as JSON may write it: `46651`, and also `46651.0` or `4.6651e4`, as some clients write it.
pub(super) fn whole(text: &str) -> Option<u64> {
    /// 2^53: up to it every whole number is exact as a float.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        (number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number)).then_some(number as u64)
    })
}

/// Strings in an array.
pub(super) fn texts(value: &RawValue) -> Result<Vec<String>, Message> {
    serde_json::from_str(value.get()).map_err(|_| "must be an array of strings".into())
}

/// Strings by name, in the order they are given.
pub(super) fn named_texts(value: &RawValue) -> Result<Vec<(String, String)>, Message> {
    let wrong = || Message::from("must be an object whose values are strings");
    let Members(members) = serde_json::from_str(value.get()).map_err(|_| wrong())?;
    members.into_iter().map(|(name, value)| Ok((name, text(value).map_err(|_| wrong())?))).collect()
}

/// The members of an object, in their order, repeated names too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(body: Body<'_>) -> Vec<(String, String)> {
        let Err(Problem::InvalidEndpoint(errors)) = body.finish() else { return Vec::new() };
        errors.into_iter().map(|error| (error.field.into_owned(), error.message.into_owned())).collect()
    }

    #[test]
    fn fields_are_read_by_name() {
        let bytes = br#" {"t":"a\u00e9","n":5,"b":false,"l":["x"],"h":{"B":"2","A":"1"},"z":null}"#;
        let mut body = Body::read(bytes, &["t", "n", "b", "l", "h", "z", "other"]).unwrap();
        assert_eq!(body.field("t", text).as_deref(), Some("aé"));
        assert_eq!(body.required("n", count), Some(5));
        assert_eq!(body.field("b", switch), Some(false));
        assert_eq!(body.field("l", or_null(texts)), Some(Some(vec!["x".to_owned()])));
        let pairs = [("B", "2"), ("A", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(body.field("h", named_texts), Some(pairs.to_vec()), "in their order");
        assert_eq!(body.field("z", or_null(count)), Some(None));
        assert_eq!(body.field("other", text), None);
        body.finish().unwrap();
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("46651", 46651),
            ("46651.0", 46651),
            ("4.6651e4", 46651),
            ("4665100E-2", 46651),
            ("18446744073709551615", u64::MAX),
            ("9007199254740992.0", 1 << 53),
        ] {
            assert_eq!(whole(text), Some(expected), "{text}");
        }
        for text in
            ["1.5", "-1", "-1.0", "1e-1", "1e400", "9007199254740994.0", "18446744073709551616", "true", "\"5\""]
        {
            assert_eq!(whole(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_is_an_object_without_fields() {
        for empty in ["", " \r\n", "{}", " { } "] {
            let mut body = Body::read_optional(empty.as_bytes(), &["a"]).unwrap();
            assert_eq!(body.field("a", text), None);
            body.finish().unwrap();
        }
        for empty in ["", " \r\n"] {
            let problem = Body::read(empty.as_bytes(), &["a"]).err().unwrap();
            assert!(matches!(&problem, Problem::InvalidJson { offset: None, .. }), "{empty:?}: {problem:?}");
            assert!(problem.detail().contains("the body is empty"));
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let bytes = br#"{"a":1,"b":1.5,"c":"1","d":[1],"e":{"x":1},"typo":1,"a":2}"#;
        let mut body = Body::read(bytes, &["a", "b", "c", "d", "e", "f"]).unwrap();
        assert_eq!(body.field("a", text), None);
        assert_eq!(body.field("b", count), None);
        assert_eq!(body.field("c", switch), None);
        assert_eq!(body.field("d", texts), None);
        assert_eq!(body.field("e", named_texts), None);
        assert_eq!(body.required("f", text), None);
        let said: Vec<String> = errors(body).into_iter().map(|(field, message)| format!("{field} {message}")).collect();
        assert_eq!(
            said,
            [
                "typo is not one of the fields taken here: a, b, c, d, e, f",
                "a is there more than once",
                "a must be a string",
                "b must be a whole number",
                "c must be true or false",
                "d must be an array of strings",
                "e must be an object whose values are strings",
                "f is missing",
            ]
        );
    }

    #[test]
    fn a_required_field_that_is_wrong_is_not_also_missing() {
        let mut body = Body::read(br#"{"a":1}"#, &["a"]).unwrap();
        assert_eq!(body.required("a", text), None);
        assert_eq!(body.required("a", text), None);
        assert_eq!(errors(body).len(), 1);
    }

    #[test]
    fn what_is_no_object_and_what_is_no_json_is_told_apart() {
        for bytes in ["[]", "null", "5", "\"a\"", r#"{"\ud800":1}"#] {
            let body = Body::read(bytes.as_bytes(), &["a"]).unwrap();
            assert_eq!(errors(body), [(String::new(), "the body must be an object".to_owned())], "{bytes}");
        }
        for (bytes, at) in [("{", 1), ("{\"a\":05}", 6), ("{} x", 3), ("a=5", 0)] {
            let problem = Body::read(bytes.as_bytes(), &["a"]).err().unwrap();
            assert!(matches!(problem, Problem::InvalidJson { offset: Some(offset), .. } if offset == at), "{bytes}");
        }
    }

    #[test]
    fn what_is_said_back_is_bounded() {
        let many =
            format!("{{{}}}", (0..500).map(|n| format!("\"{}{n}\":1", "é".repeat(90))).collect::<Vec<_>>().join(","));
        let said = errors(Body::read(many.as_bytes(), &["a"]).unwrap());
        assert_eq!(said.len(), ERRORS_MAX);
        assert!(said.iter().all(|(field, _)| field.chars().count() == NAME_SHOWN_CHARS));
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
        let mut body = Body::read(deep.as_bytes(), &["a"]).unwrap();
        assert_eq!(body.field("a", texts), None);
        assert!(errors(body).len() == 1);
    }
}
