//! What values a setting takes, with the Rust type they become.
//!
//! A row of the table calls one of these constructors. It fixes three things at once: the [`Kind`] that all layers check
//! a value against, the default, and the function that turns the text in force into the type of [`Config`]'s field. So a
//! kind and a reader that do not fit each other do not compile. The words of a choice and the values they stand for are
//! one list.
//!
//! [`Config`]: super::Config

use std::borrow::Cow;
use std::time::Duration;

use millrace_base::logging::LogFormat;
use millrace_base::quantity::Unit;
use millrace_ingest::shard::IoDriver;
use millrace_webhooks::client::TrustRoots;
use millrace_wire::forwarded::ForwardedField;

use super::read::never_shown;
use super::setting::{Kind, Preset};

/// Completes the sentence "it must be …".
pub(super) type Expected = Cow<'static, str>;

/// The values of a setting whose field in `Config` has the type `T`.
pub(super) struct Typed<T> {
    /// What every layer checks a value against.
    pub(super) kind: Kind,
    /// The value where nothing is configured.
    pub(super) preset: Preset,
    /// A secret value without its secrets.
    pub(super) masked: fn(&str) -> Option<String>,
    read: Read<T>,
}

/// Makes a `T` from a value of the kind.
enum Read<T> {
    Text(fn(&str) -> Result<T, Expected>),
    Number(fn(u64) -> Option<T>),
    Switch(fn(bool) -> T),
}

impl<T> Typed<T> {
    /// Reads the text in force; empty where the setting has none.
    pub(super) fn read(&self, text: &str) -> Result<T, Expected> {
        let value = match self.read {
            Read::Text(read) => return read(text),
            Read::Number(read) => self.kind.number(text).and_then(read),
            Read::Switch(read) => text.parse().ok().map(read),
        };
        value.ok_or_else(|| self.kind.to_string().into())
    }
}

/// Text; `word` stands for the value in help texts. An empty default is none.
pub(super) const fn text<T>(
    word: &'static str,
    default: &'static str,
    read: fn(&str) -> Result<T, Expected>,
) -> Typed<T> {
    Typed { kind: Kind::Text(word), preset: text_preset(default), masked: never_shown, read: Read::Text(read) }
}

/// Values separated by commas; otherwise as [`text`].
pub(super) const fn list<T>(
    word: &'static str,
    default: &'static str,
    read: fn(&str) -> Result<T, Expected>,
) -> Typed<T> {
    Typed { kind: Kind::Listed(word), preset: text_preset(default), masked: never_shown, read: Read::Text(read) }
}

/// Text that is shown only as `masked` makes it, or not at all. It has no default.
pub(super) const fn secret<T>(
    word: &'static str,
    read: fn(&str) -> Result<T, Expected>,
    masked: fn(&str) -> Option<String>,
) -> Typed<T> {
    Typed { kind: Kind::Secret(word), preset: Preset::Unset, masked, read: Read::Text(read) }
}

/// One of the type's words.
pub(super) const fn choice<T: Choice>(default: &'static str) -> Typed<T> {
    Typed {
        kind: Kind::Choice(T::WORDS),
        preset: Preset::Text(default),
        masked: never_shown,
        read: Read::Text(read_choice),
    }
}

/// A whole number.
pub(super) const fn count<T: TryFrom<u64>>(min: u64, max: u64, default: u64) -> Typed<T> {
    Typed {
        kind: Kind::Count("N", min, max),
        preset: Preset::Count(default),
        masked: never_shown,
        read: Read::Number(whole),
    }
}

/// A whole number, by default this many for each core.
pub(super) const fn count_per_core<T: TryFrom<u64>>(min: u64, max: u64, each: u64) -> Typed<T> {
    Typed {
        kind: Kind::Count("N", min, max),
        preset: Preset::PerCore(each),
        masked: never_shown,
        read: Read::Number(whole),
    }
}

/// A size in this unit.
pub(super) const fn size<T: TryFrom<u64>>(unit: Unit, min: u64, max: u64, default: u64) -> Typed<T> {
    Typed {
        kind: Kind::Quantity(unit, min, max),
        preset: Preset::Count(default),
        masked: never_shown,
        read: Read::Number(whole),
    }
}

/// A time in seconds.
pub(super) const fn seconds(min: u64, max: u64, default: u64) -> Typed<Duration> {
    let read = Read::Number(|seconds| Some(Duration::from_secs(seconds)));
    Typed { kind: Kind::Quantity(Unit::Seconds, min, max), preset: Preset::Count(default), masked: never_shown, read }
}

/// A time in days.
pub(super) const fn days(min: u64, max: u64, default: u64) -> Typed<Duration> {
    let read = Read::Number(|days| days.checked_mul(24 * 3600).map(Duration::from_secs));
    Typed { kind: Kind::Quantity(Unit::Days, min, max), preset: Preset::Count(default), masked: never_shown, read }
}

/// True or false. Its flag takes no value and sets what is not the default.
pub(super) const fn switch(default: bool) -> Typed<bool> {
    Typed {
        kind: Kind::Switch { flag_means: !default },
        preset: Preset::Switch(default),
        masked: never_shown,
        read: Read::Switch(|is_on| is_on),
    }
}

const fn text_preset(default: &'static str) -> Preset {
    if default.is_empty() { Preset::Unset } else { Preset::Text(default) }
}

fn whole<T: TryFrom<u64>>(number: u64) -> Option<T> {
    T::try_from(number).ok()
}

fn read_choice<T: Choice>(word: &str) -> Result<T, Expected> {
    T::from_word(word).ok_or_else(|| Kind::Choice(T::WORDS).to_string().into())
}

/// A type that a setting chooses a value of by a word.
pub(super) trait Choice: Sized {
    /// All words, as `a|b|c`.
    const WORDS: &'static str;

    /// The value that a word stands for.
    fn from_word(word: &str) -> Option<Self>;
}

/// What a 202 promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The event is on disk, synchronised.
    Fsync,
    /// The event is written to the operating system.
    Os,
    /// The event is in the queue.
    Memory,
}

/// What happens to an event when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// It is refused.
    Reject,
    /// It is accepted into the journal alone and fed to the writers later.
    Spill,
}

/// How connections of trusted proxies begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// With the client's first request.
    Off,
    /// With a PROXY protocol header, version 2.
    V2,
}

macro_rules! choices {
    ($($type:ty { $first_word:literal => $first:expr $(, $word:literal => $value:expr)* })*) => {$(
        impl Choice for $type {
            const WORDS: &'static str = concat!($first_word $(, "|", $word)*);

            fn from_word(word: &str) -> Option<Self> {
                match word {
                    $first_word => Some($first),
                    $($word => Some($value),)*
                    _ => None,
                }
            }
        }
    )*};
}

choices! {
    IoDriver { "auto" => Self::Auto, "uring" => Self::Uring, "epoll" => Self::Epoll }
    ProxyProtocol { "off" => Self::Off, "v2" => Self::V2 }
    ForwardedField { "off" => Self::Off, "forwarded" => Self::Forwarded, "x-forwarded-for" => Self::XForwardedFor }
    Durability { "fsync" => Self::Fsync, "os" => Self::Os, "memory" => Self::Memory }
    Overflow { "reject" => Self::Reject, "spill" => Self::Spill }
    TrustRoots { "webpki" => Self::Webpki, "system" => Self::System }
    LogFormat { "text" => Self::Text, "json" => Self::Json }
}
