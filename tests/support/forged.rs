//! Keys that look right and are not.

use millrace_base::key::{API_KEY_LEN, ApiKey};

/// A well-formed key of nobody's.
pub fn unknown_key() -> String {
    ApiKey::generate().expect("randomness").reveal().to_owned()
}

/// A well-formed key with the id of `key` and another secret.
pub fn with_wrong_secret(key: &str) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (id_end, checksum_at) = ("mr_".len() + 12, API_KEY_LEN - 6);
    let mut forged = format!("{}{}", &key[..id_end], &unknown_key()[id_end..checksum_at]);
    let mut rest = crc32fast::hash(forged.as_bytes());
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    forged.push_str(std::str::from_utf8(&digits).expect("base62"));
    forged
}
