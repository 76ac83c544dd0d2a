//! Webhook signing secrets: generated or supplied, encrypted ("sealed") in the database, decrypted ("opened") for signing.
//! Control threads and the command line seal; the endpoint cache opens. Pure, except for the key file.
//!
//! A sealed secret is `version ‖ key fingerprint ‖ nonce ‖ AES-256-GCM(secret) ‖ tag`. Version and endpoint id are
//! authenticated with it, so a value copied to another endpoint does not open. The fingerprint (eight bytes of a hash of the
//! key) names the key that opens it, so a missing key and damaged data give different errors.
//!
//! Nonces are random. With 2^32 seals under one key the probability of a repeated nonce stays under 2^-32 (NIST SP 800-38D);
//! each endpoint and each rotation uses one.
//!
//! Plain secrets are wiped when dropped and `Debug` never shows them. The expanded keys of the cipher live as long as the
//! process.
//!
//! Limits: secrets of [`limits::WEBHOOK_SECRET_BYTES_MIN`] to [`limits::WEBHOOK_SECRET_BYTES_MAX`] bytes;
//! [`limits::WEBHOOK_SECRET_KEYS_MAX`] keys.

mod key_file;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use millrace_base::event::EndpointId;
use millrace_base::limits;
use millrace_store::webhooks::{Endpoint, KeyFingerprint, SealedSecret};

const PREFIX: &str = "whsec_";
const GENERATED_LEN: usize = 32;
/// The base64 length of the longest secret.
const ENCODED_LEN_MAX: usize = limits::WEBHOOK_SECRET_BYTES_MAX.div_ceil(3) * 4;

/// The key that signs requests and with which a receiver verifies them: 24 to 64 bytes, written as `whsec_` and base64.
#[derive(Clone)]
pub struct WebhookSecret(Zeroizing<Vec<u8>>);

impl WebhookSecret {
    /// A new secret of 32 random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut key = Zeroizing::new(vec![0; GENERATED_LEN]);
        getrandom::fill(&mut key)?;
        Ok(Self(key))
    }

    /// Parses `whsec_…` with canonical, padded base64, because some receivers' libraries accept nothing else.
    ///
    /// # Errors
    /// The rule that the text breaks; never quotes the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be `whsec_` and 24 to 64 bytes in base64 (A-Z a-z 0-9 + /, padded with =)";
        let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() <= ENCODED_LEN_MAX).ok_or(RULE)?;
        let key = decode(encoded).ok_or(RULE)?;
        is_length(key.len()).then_some(Self(key)).ok_or(RULE)
    }

    /// The secret as text, `whsec_…`.
    pub fn reveal(&self) -> Zeroizing<String> {
        // Allocated in full: a growing string leaves unwiped copies behind.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + ENCODED_LEN_MAX));
        text.push_str(PREFIX);
        STANDARD.encode_string(&*self.0, &mut text);
        text
    }

    /// The raw key.
    pub fn key(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(..)")
    }
}

fn is_length(bytes: usize) -> bool {
    (limits::WEBHOOK_SECRET_BYTES_MIN..=limits::WEBHOOK_SECRET_BYTES_MAX).contains(&bytes)
}

/// Decodes canonical base64.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let len = STANDARD.decode_slice(text, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

const VERSION: u8 = 1;
const KEY_LEN: usize = 32;
const FINGERPRINT_LEN: usize = 8;
const FINGERPRINT_AT: usize = 1;
const NONCE_AT: usize = FINGERPRINT_AT + FINGERPRINT_LEN;
const SECRET_AT: usize = NONCE_AT + NONCE_LEN;

/// The keys that seal and open secrets. A sealed secret is bound to its endpoint. Clones share the keys.
#[derive(Clone)]
pub struct SecretBox(Arc<[SealingKey]>);

struct SealingKey {
    fingerprint: KeyFingerprint,
    cipher: LessSafeKey,
}

impl SecretBox {
    /// Parses the setting: keys of 32 bytes in base64, separated by commas. The first one seals; all of them open.
    ///
    /// # Errors
    /// The rule that the text breaks; never quotes the text.
    pub fn from_config(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be 1 to 8 keys, separated by commas, each of 32 random bytes in base64 (`openssl rand \
                            -base64 32` makes one)";
        if text.split(',').count() > limits::WEBHOOK_SECRET_KEYS_MAX {
            return Err(RULE);
        }
        let keys = text.split(',').map(|entry| decode(entry.trim()).and_then(|key| SealingKey::new(&key)));
        keys.collect::<Option<Arc<_>>>().map(Self).ok_or(RULE)
    }

    /// Reads the keys from a file. If it does not exist it is created with a random key (mode 0600, synced); processes that do
    /// so concurrently all get the same key.
    ///
    /// # Errors
    /// The operating system's error, or what is wrong with the file. The caller adds the file's name.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let text = key_file::read_or_create(path)?;
        Self::from_config(&text).map_err(|rule| io::Error::new(io::ErrorKind::InvalidData, format!("it {rule}")))
    }

    /// The fingerprints of the keys: first the one that seals, then those that only open.
    pub fn fingerprints(&self) -> Vec<KeyFingerprint> {
        self.0.iter().map(|key| key.fingerprint).collect()
    }

    /// The secrets of the endpoint that cannot be opened.
    pub fn unusable(&self, endpoint: &Endpoint) -> Vec<SealedSecret> {
        let previous = endpoint.previous_secret.iter().map(|(secret, _)| secret);
        let all = std::iter::once(&endpoint.secret).chain(previous);
        all.filter(|secret| self.open(endpoint.id, secret).is_err()).cloned().collect()
    }

    /// Encrypts a secret for `endpoint`.
    pub fn seal(&self, endpoint: EndpointId, secret: &WebhookSecret) -> Result<SealedSecret, getrandom::Error> {
        let sealing = self.0.first().expect("a box has a key");
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        let mut sealed = Vec::with_capacity(SECRET_AT + secret.key().len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&sealing.fingerprint.0);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(secret.key());
        let tag = sealing
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                bound_to(VERSION, endpoint),
                &mut sealed[SECRET_AT..],
            )
            .expect("a secret is shorter than the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        Ok(SealedSecret(sealed))
    }

    /// Decrypts a secret sealed by [`Self::seal`].
    ///
    /// # Errors
    /// Why it does not open and how to fix it: sealed with a missing key, damaged, or belongs to another endpoint.
    pub fn open(&self, endpoint: EndpointId, sealed: &SealedSecret) -> Result<WebhookSecret, &'static str> {
        const DAMAGED: &str = "the secret is damaged, or another endpoint's: rotate the endpoint's secret";
        let (&version, _) = sealed.0.split_first().ok_or(DAMAGED)?;
        if version != VERSION {
            return Err(
                "the secret was sealed by another version of the server: use that, or rotate the endpoint's secret",
            );
        }
        let fingerprint = sealed.0.get(FINGERPRINT_AT..NONCE_AT).ok_or(DAMAGED)?;
        let nonce = sealed.0.get(NONCE_AT..SECRET_AT).ok_or(DAMAGED)?;
        let opening = self.0.iter().find(|key| key.fingerprint.0 == fingerprint).ok_or(
            "the secret was sealed with another key: set webhook_secret_key to the same value on every server, keys of \
             before behind it",
        )?;
        let mut secret = Zeroizing::new(sealed.0[SECRET_AT..].to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("cut to a nonce's length");
        let opened = opening.cipher.open_in_place(nonce, bound_to(version, endpoint), &mut secret);
        let len = opened.map_err(|_| DAMAGED)?.len();
        secret.truncate(len);
        is_length(len).then_some(WebhookSecret(secret)).ok_or(DAMAGED)
    }
}

impl fmt::Debug for SecretBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBox({} keys)", self.0.len())
    }
}

impl SealingKey {
    fn new(key: &[u8]) -> Option<Self> {
        let digest = Sha256::new().chain_update(b"millrace webhook secret key v1").chain_update(key).finalize();
        let mut fingerprint = KeyFingerprint([0; FINGERPRINT_LEN]);
        fingerprint.0.copy_from_slice(&digest[..FINGERPRINT_LEN]);
        // Fails if the key has the wrong length.
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        Some(Self { fingerprint, cipher })
    }
}

/// The data authenticated with the secret.
fn bound_to(version: u8, endpoint: EndpointId) -> Aad<[u8; 17]> {
    let mut bound = [version; 17];
    bound[1..].copy_from_slice(endpoint.0.as_bytes());
    Aad::from(bound)
}

// The error texts above contain these limits.
const _: () = assert!(limits::WEBHOOK_SECRET_BYTES_MIN == 24 && limits::WEBHOOK_SECRET_BYTES_MAX == 64);
const _: () = assert!(limits::WEBHOOK_SECRET_KEYS_MAX == 8);

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(byte: u8) -> String {
        STANDARD.encode([byte; KEY_LEN])
    }

    fn secret_box(keys: &[u8]) -> SecretBox {
        SecretBox::from_config(&keys.iter().map(|byte| key(*byte)).collect::<Vec<_>>().join(", ")).unwrap()
    }

    fn endpoint(n: u128) -> EndpointId {
        EndpointId(Uuid::from_u128(n))
    }

    #[test]
    fn a_secret_is_what_the_specification_says() {
        for (len, ok) in [(0, false), (23, false), (24, true), (25, true), (26, true), (64, true), (65, false)] {
            let text = format!("whsec_{}", STANDARD.encode(vec![7; len]));
            let parsed = WebhookSecret::parse(&text);
            assert_eq!(parsed.is_ok(), ok, "{len}");
            if let Ok(secret) = parsed {
                assert_eq!(secret.key(), vec![7; len]);
                assert_eq!(*secret.reveal(), text);
            }
        }
        let good = format!("whsec_{}", STANDARD.encode([0xfb; 32]));
        assert!(good.contains('+') && good.ends_with('='));
        assert!(WebhookSecret::parse(&good).is_ok());
        for bad in [
            "",
            "whsec_",
            &good[6..],
            good.trim_end_matches('='),
            &good.replace('+', "-"),
            &good.replace("whsec", "WHSEC"),
            &format!(" {good}"),
            &format!("{good}\n"),
            &good.replace("s=", "t="),
            &format!("whsec_{}", "A".repeat(100_000)),
        ] {
            let refused = WebhookSecret::parse(bad).unwrap_err();
            assert!(refused.contains("24 to 64 bytes"), "{bad:?}");
        }
    }

    #[test]
    fn generated_secrets_differ_and_are_not_shown() {
        let (one, other) = (WebhookSecret::generate().unwrap(), WebhookSecret::generate().unwrap());
        assert_ne!(one.key(), other.key());
        assert_eq!(WebhookSecret::parse(&one.reveal()).unwrap().key(), one.key());
        assert_eq!(format!("{one:?} {:?}", secret_box(&[1, 2])), "WebhookSecret(..) SecretBox(2 keys)");
    }

    #[test]
    fn what_is_sealed_opens_for_its_endpoint_only() {
        let (keys, secret) = (secret_box(&[1]), WebhookSecret::generate().unwrap());
        let sealed = keys.seal(endpoint(1), &secret).unwrap();
        assert_eq!(sealed.0.len(), 1 + 8 + 12 + 32 + 16);
        assert_eq!(keys.open(endpoint(1), &sealed).unwrap().key(), secret.key());
        assert!(keys.open(endpoint(2), &sealed).unwrap_err().contains("another endpoint's"));
        assert_ne!(keys.seal(endpoint(1), &secret).unwrap(), sealed, "every seal has a nonce of its own");
        assert!(!sealed.0.windows(8).any(|window| window == &secret.key()[..8]));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let keys = secret_box(&[1]);
        let sealed = keys.seal(endpoint(1), &WebhookSecret::generate().unwrap()).unwrap();
        for bit in 0..sealed.0.len() * 8 {
            let mut damaged = sealed.clone();
            damaged.0[bit / 8] ^= 1 << (bit % 8);
            let refused = keys.open(endpoint(1), &damaged).unwrap_err();
            let expected = match bit / 8 {
                0 => "another version",
                1..9 => "another key",
                _ => "damaged",
            };
            assert!(refused.contains(expected), "bit {bit}: {refused}");
        }
        for len in 0..sealed.0.len() {
            let refused = keys.open(endpoint(1), &SealedSecret(sealed.0[..len].to_vec())).unwrap_err();
            assert!(refused.contains("damaged"), "{len}: {refused}");
        }
    }

    #[test]
    fn keys_take_over_from_one_another() {
        let secret = WebhookSecret::generate().unwrap();
        let old = secret_box(&[1]).seal(endpoint(1), &secret).unwrap();
        let both = secret_box(&[2, 1]);
        assert_eq!(both.open(endpoint(1), &old).unwrap().key(), secret.key());
        let new = both.seal(endpoint(1), &secret).unwrap();
        assert!(secret_box(&[2]).open(endpoint(1), &new).is_ok());
        assert!(secret_box(&[1]).open(endpoint(1), &new).unwrap_err().contains("same value on every server"));
    }

    #[test]
    fn configured_keys_are_refused_without_being_quoted() {
        let hex = "ab".repeat(32);
        for bad in ["", ",", "hunter2", &hex, &key(1)[1..], &format!("{},", key(1)), &[key(1).as_str(); 9].join(",")] {
            let refused = SecretBox::from_config(bad).unwrap_err();
            assert!(refused.contains("32 random bytes"), "{bad}");
        }
        assert!(SecretBox::from_config(&format!("  {} ,\n{}\n", key(1), key(2))).is_ok());
    }
}
