//! API keys: `mr_<key id>_<secret><checksum>`, base62.
//!
//! The id (12 characters) is public and names the row. The secret (43 characters, 256 random bits) is shown once. The checksum
//! (6 characters, CRC-32 of everything before it) lets a typo be refused without a lookup.
//!
//! The database has an Argon2id PHC string and a SHA-256 digest of the whole key. The digest is compared first, in constant
//! time. Its 256 random bits cannot be guessed, and no forged secret reaches Argon2, so a flood of forged keys costs a lookup
//! each and no memory-hard work.
//!
//! Nothing here prints a secret: `Debug` shows the id.

use std::fmt;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "mr_";
const ID_LEN: usize = 12;
const SECRET_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;
/// Length of every API key, in bytes.
pub const API_KEY_LEN: usize = PREFIX.len() + ID_LEN + 1 + SECRET_LEN + CHECKSUM_LEN;

/// The public name of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; ID_LEN]);

impl KeyId {
    /// Parses the 12 characters of a key id; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; ID_LEN] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes))
    }

    /// The 12 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a key id is ASCII by construction")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the database stores to verify a key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyVerifier {
    /// SHA-256 of the whole key.
    pub digest: [u8; 32],
    /// Argon2id PHC string of the whole key, parameters included.
    pub phc: String,
}

impl fmt::Debug for KeyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyVerifier(..)")
    }
}

/// Cost of hashing a new key. Verification reads its cost from the PHC string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub iterations: u32,
}

impl Default for Argon2Cost {
    /// 4 MiB, one pass: 1-2 ms. Argon2 makes guessing expensive, but nobody can guess a random 256-bit key, so a cost meant
    /// for passwords would only slow down the first request of each key.
    fn default() -> Self {
        Self { memory_kib: 4096, iterations: 1 }
    }
}

impl Argon2Cost {
    /// Checks the cost against what Argon2 allows and what this server may spend (64 MiB, 10 passes).
    pub fn validate(self) -> Result<Self, String> {
        if !(8..=65_536).contains(&self.memory_kib) {
            return Err(format!("argon2 memory is {} KiB; it must be 8 to 65536", self.memory_kib));
        }
        if !(1..=10).contains(&self.iterations) {
            return Err(format!("argon2 iterations is {}; it must be 1 to 10", self.iterations));
        }
        Ok(self)
    }
}

/// A new key in plain text, to be shown to its owner once. Wiped when dropped.
pub struct ApiKey {
    text: Zeroizing<String>,
    id: KeyId,
}

impl ApiKey {
    /// Makes a key from the operating system's random source.
    ///
    /// # Errors
    /// The operating system has no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut text = Zeroizing::new(String::with_capacity(API_KEY_LEN));
        text.push_str(PREFIX);
        push_random(&mut text, ID_LEN)?;
        text.push('_');
        push_random(&mut text, SECRET_LEN)?;
        let checksum = checksum(text.as_bytes());
        text.push_str(std::str::from_utf8(&checksum).expect("base62 is ASCII"));
        let id = parse(text.as_bytes()).expect("a generated key has the shape of a key");
        Ok(Self { text, id })
    }

    /// The public part.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The whole key, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What the database stores.
    ///
    /// # Panics
    /// `cost` was not validated.
    pub fn verifier(&self, cost: Argon2Cost) -> KeyVerifier {
        let params = Params::new(cost.memory_kib, cost.iterations, 1, None).expect("the cost was validated");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let phc = argon2.hash_password(self.text.as_bytes()).expect("valid parameters and a random salt").to_string();
        KeyVerifier { digest: digest(self.text.as_bytes()), phc }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, ..)", self.id)
    }
}

/// Reads the id out of a presented key; `None` if form or checksum is wrong, so that junk costs no lookup.
pub fn parse(presented: &[u8]) -> Option<KeyId> {
    let presented: &[u8; API_KEY_LEN] = presented.try_into().ok()?;
    let rest = presented.strip_prefix(PREFIX.as_bytes())?;
    let (id, rest) = rest.split_at(ID_LEN);
    let (&separator, secret) = rest.split_first()?;
    let (body, sum) = presented.split_at(API_KEY_LEN - CHECKSUM_LEN);
    let well_formed = separator == b'_'
        && id.iter().all(u8::is_ascii_alphanumeric)
        && secret.iter().all(u8::is_ascii_alphanumeric)
        && checksum(body) == sum;
    well_formed.then(|| KeyId(id.try_into().expect("split at the length of an id")))
}

/// Whether `presented` is the key behind `verifier`: digest first, then Argon2id.
pub fn verify(presented: &[u8], verifier: &KeyVerifier) -> bool {
    if !has_digest(&digest(presented), verifier) {
        return false;
    }
    PasswordHash::new(&verifier.phc).is_ok_and(|hash| Argon2::default().verify_password(presented, &hash).is_ok())
}

/// Whether `digest` is that of the key behind `verifier`. Takes constant time.
pub fn has_digest(digest: &[u8; 32], verifier: &KeyVerifier) -> bool {
    digest.ct_eq(&verifier.digest).into()
}

/// SHA-256 of a whole key.
pub fn digest(presented: &[u8]) -> [u8; 32] {
    Sha256::digest(presented).into()
}

fn push_random(text: &mut String, count: usize) -> Result<(), getrandom::Error> {
    let mut pool = Zeroizing::new([0u8; 64]);
    let mut left = count;
    while left > 0 {
        getrandom::fill(pool.as_mut())?;
        // Bytes from 248 up are discarded: 248 is the largest multiple of 62 in a byte.
        for byte in pool.iter().filter(|byte| **byte < 248).take(left) {
            text.push(char::from(ALPHABET[usize::from(byte % 62)]));
            left -= 1;
        }
    }
    Ok(())
}

fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(text);
    let mut out = [b'0'; CHECKSUM_LEN];
    for digit in out.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_parses_and_verifies() {
        let key = ApiKey::generate().unwrap();
        assert_eq!(key.reveal().len(), API_KEY_LEN);
        assert_eq!(parse(key.reveal().as_bytes()), Some(key.id()));
        let verifier = key.verifier(Argon2Cost { memory_kib: 8, iterations: 1 });
        assert!(verifier.phc.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{}", verifier.phc);
        assert!(verify(key.reveal().as_bytes(), &verifier));
        let other = ApiKey::generate().unwrap();
        assert!(!verify(other.reveal().as_bytes(), &verifier));
    }

    #[test]
    fn the_digest_alone_is_not_enough() {
        let (key, other) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
        let mut verifier = key.verifier(Argon2Cost { memory_kib: 8, iterations: 1 });
        verifier.digest = digest(other.reveal().as_bytes());
        assert!(!verify(other.reveal().as_bytes(), &verifier));
    }

    #[test]
    fn every_single_character_change_is_refused() {
        let key = ApiKey::generate().unwrap();
        for at in 0..API_KEY_LEN {
            let mut bytes = key.reveal().as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(parse(&bytes), None, "changed at {at}");
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&key.reveal().as_bytes()[1..]), None);
        assert_eq!(parse(&[0xff; API_KEY_LEN]), None);
    }

    #[test]
    fn debug_never_shows_the_secret() {
        let key = ApiKey::generate().unwrap();
        let shown = format!("{key:?} {:?}", key.verifier(Argon2Cost { memory_kib: 8, iterations: 1 }));
        assert!(!shown.contains(&key.reveal()[16..]), "{shown}");
    }
}
