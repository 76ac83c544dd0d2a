//! Webhook secrets: generated or given, sealed while they rest, opened to sign.

use std::path::Path;

use zeroize::Zeroizing;

use crate::event::EndpointId;
use crate::store::webhooks::SealedSecret;

/// What a receiver verifies requests with: 24 to 64 bytes, written `whsec_` and base64.
#[derive(Clone)]
pub struct WebhookSecret(Zeroizing<Vec<u8>>);

impl WebhookSecret {
    /// A new one, of 32 random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        todo!()
    }

    /// Reads `whsec_…`.
    ///
    /// # Errors
    /// What would be right; never quotes the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let _ = text;
        todo!()
    }

    /// `whsec_…`.
    pub fn reveal(&self) -> Zeroizing<String> {
        todo!()
    }

    /// The key itself.
    pub fn key(&self) -> &[u8] {
        &self.0
    }
}

/// Seals and opens secrets. Each is bound to its endpoint.
pub struct SecretBox;

impl SecretBox {
    /// From configuration: keys of 32 bytes in base64, separated by commas. The first seals; all of them open.
    ///
    /// # Errors
    /// What would be right; never quotes the text.
    pub fn from_config(text: &str) -> Result<Self, &'static str> {
        let _ = text;
        todo!()
    }

    /// From a file with such keys, made with a random one (mode 0600, synced) where there is none.
    pub fn load_or_create(path: &Path) -> std::io::Result<Self> {
        let _ = path;
        todo!()
    }

    /// Encrypts a secret for `endpoint`.
    pub fn seal(&self, endpoint: EndpointId, secret: &WebhookSecret) -> Result<SealedSecret, getrandom::Error> {
        let _ = (endpoint, secret);
        todo!()
    }

    /// Decrypts what [`Self::seal`] made.
    ///
    /// # Errors
    /// Why not, and what mends it: sealed with a key that is not here, damaged, or another endpoint's.
    pub fn open(&self, endpoint: EndpointId, sealed: &SealedSecret) -> Result<WebhookSecret, &'static str> {
        let _ = (endpoint, sealed);
        todo!()
    }
}
