//! The cursor of a page: an opaque string that names the last entry of the page.
//!
//! In the list of events that is the last event's (`received_at`, id); in lists ordered by id it is the last id. The next
//! page starts right after it, however much arrived meanwhile. The string is hexadecimal: a byte for the kind, for events
//! eight bytes of microseconds, and sixteen bytes of id. A cursor carries no rights: the organisation always comes from the
//! key, so a forged cursor finds nothing of another organisation.

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::EventId;

/// The first byte of a cursor in the list of events.
const VERSION: u8 = 1;
/// The first byte of a cursor in a list by id.
const ID_VERSION: u8 = 2;
/// 9999-12-31T23:59:59.999999Z, the latest time that the databases take.
const MICROS_MAX: i64 = 253_402_300_799_999_999;
const BYTES: usize = 1 + 8 + 16;

/// The cursor after this event.
pub(super) fn encode((received_at, id): (Timestamp, EventId)) -> String {
    let text = format!("{VERSION:02x}{:016x}{}", received_at.as_micros(), id.0.simple());
    debug_assert_eq!(text.len(), BYTES * 2);
    text
}

/// Reads a cursor that [`encode`] wrote; `None` for anything else.
pub(super) fn decode(text: &str) -> Option<(Timestamp, EventId)> {
    // Checked first, because `from_str_radix` takes a sign and slicing must not cut a character.
    if text.len() != BYTES * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let version = u8::from_str_radix(&text[..2], 16).ok()?;
    let micros = i64::from_str_radix(&text[2..18], 16).ok()?;
    let id = u128::from_str_radix(&text[18..], 16).ok()?;
    let known = version == VERSION && (0..=MICROS_MAX).contains(&micros);
    known.then(|| (Timestamp::from_micros(micros), EventId(Uuid::from_u128(id))))
}

/// The string of the place after `id`.
pub(super) fn encode_id(id: Uuid) -> String {
    format!("{ID_VERSION:02x}{}", id.simple())
}

/// The place that [`encode_id`] wrote; `None` for anything else.
pub(super) fn decode_id(text: &str) -> Option<Uuid> {
    if text.len() != (1 + 16) * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let version = u8::from_str_radix(&text[..2], 16).ok()?;
    let id = u128::from_str_radix(&text[2..], 16).ok()?;
    (version == ID_VERSION).then(|| Uuid::from_u128(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_as_it_went_in() {
        for micros in [0, 1, 1_780_000_000_000_000, MICROS_MAX] {
            let place = (Timestamp::from_micros(micros), EventId(Uuid::from_u128(u128::MAX - 5)));
            assert_eq!(decode(&encode(place)), Some(place));
        }
    }

    #[test]
    fn an_id_comes_back_as_it_went_in_and_is_no_place_among_events() {
        let id = Uuid::from_u128(u128::MAX - 5);
        let text = encode_id(id);
        assert_eq!(decode_id(&text), Some(id));
        assert_eq!(decode(&text), None);
        let place = encode((Timestamp::from_micros(5), EventId(id)));
        for bad in
            ["", &text[1..], &format!("{text}0"), &text.replacen("02", "01", 1), &text.replacen('f', "g", 1), &place]
        {
            assert_eq!(decode_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let good = encode((Timestamp::from_micros(5), EventId(Uuid::nil())));
        let with = |at: usize, text: &str| format!("{}{text}{}", &good[..at], &good[at + text.len()..]);
        for bad in [
            String::new(),
            good[1..].to_owned(),
            format!("{good}0"),
            with(0, "02"),
            with(2, "ffffffffffffffff"),
            with(2, "7fffffffffffffff"),
            with(2, "+"),
            with(20, "-"),
            with(20, "g"),
            with(20, "é"),
        ] {
            assert_eq!(decode(&bad), None, "{bad}");
        }
    }
}
