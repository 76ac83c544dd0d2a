//! Standard Webhooks signatures: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`. Pure; computed by the sender for
//! every attempt.
//!
//! Id and body are the same for every attempt. The timestamp is that of the attempt, because receivers refuse requests older
//! than five minutes, so a signature is never reused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::endpoint::secret::WebhookSecret;

/// `v1,` and 44 characters of base64.
const SIGNATURE_LEN: usize = 47;

/// The value of `webhook-signature`: one signature for each secret, separated by spaces. `timestamp` is in seconds since
/// 1970.
pub fn sign<'a>(
    secrets: impl Iterator<Item = &'a WebhookSecret>,
    webhook_id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    // With a dot in the id, two different contents could have the same signature.
    debug_assert!(!webhook_id.contains('.'), "the separator of what is signed");
    let mut digits = itoa::Buffer::new();
    let timestamp = digits.format(timestamp);
    // During a rotation there are two secrets.
    let mut value = String::with_capacity(2 * SIGNATURE_LEN + 1);
    for secret in secrets {
        let mut content = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.key()));
        for part in [webhook_id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            content.update(part);
        }
        if !value.is_empty() {
            value.push(' ');
        }
        value.push_str("v1,");
        STANDARD.encode_string(content.sign(), &mut value);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: [(&str, &str, i64, &str, &str); 2] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];

    #[test]
    fn signatures_are_those_of_the_specification() {
        for (secret, id, timestamp, body, expected) in VECTORS {
            let secret = WebhookSecret::parse(secret).unwrap();
            let signed = sign(std::iter::once(&secret), id, timestamp, body.as_bytes());
            assert_eq!(signed, expected);
            assert_eq!(signed.len(), SIGNATURE_LEN);
        }
    }

    #[test]
    fn every_part_is_signed() {
        let (secret, id, timestamp, body, expected) = VECTORS[0];
        let secret = WebhookSecret::parse(secret).unwrap();
        let signed = |id, timestamp, body: &str| sign(std::iter::once(&secret), id, timestamp, body.as_bytes());
        assert_ne!(signed("msg_other", timestamp, body), expected);
        assert_ne!(signed(id, timestamp + 1, body), expected);
        assert_ne!(signed(id, timestamp, ""), expected);
    }

    #[test]
    fn each_secret_signs_in_its_turn() {
        let (first, id, timestamp, body, expected) = VECTORS[0];
        let secrets = [WebhookSecret::parse(VECTORS[1].0).unwrap(), WebhookSecret::parse(first).unwrap()];
        let both = sign(secrets.iter(), id, timestamp, body.as_bytes());
        let (new, old) = both.split_once(' ').unwrap();
        assert_eq!(old, expected);
        assert_eq!(new, sign(secrets[..1].iter(), id, timestamp, body.as_bytes()));
        assert_eq!(sign(std::iter::empty(), id, timestamp, b""), "");
    }
}
