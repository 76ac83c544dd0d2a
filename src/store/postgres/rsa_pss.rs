//! Verifies servers whose certificate has an RSA-PSS key, which OpenSSL makes and accepts, and `rustls` alone does not.
//!
//! Such a key is an RSA key with another name for its algorithm (RFC 4055). TLS 1.3 has signature schemes of its own for it
//! (`rsa_pss_pss_*`). `ring` verifies it as any RSA key. Only the signature of the handshake is covered: an authority signs
//! with an ordinary key, or with a salt as long as the hash.

use std::sync::Arc;

use ring::signature::{
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, ServerName, SignatureVerificationAlgorithm, UnixTime, alg_id,
};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

const PSS_PSS_SHA256: SignatureScheme = SignatureScheme::Unknown(0x0809);
const PSS_PSS_SHA384: SignatureScheme = SignatureScheme::Unknown(0x080a);
const PSS_PSS_SHA512: SignatureScheme = SignatureScheme::Unknown(0x080b);
const SCHEMES: [SignatureScheme; 3] = [PSS_PSS_SHA256, PSS_PSS_SHA384, PSS_PSS_SHA512];

/// `id-RSASSA-PSS` without parameters: the key may sign with any hash.
const ANY_HASH: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]);

/// Keys for any hash.
static ANY: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[],
    mapping: &[
        (PSS_PSS_SHA256, &[&PssKey { key: ANY_HASH, ..SHA256 }]),
        (PSS_PSS_SHA384, &[&PssKey { key: ANY_HASH, ..SHA384 }]),
        (PSS_PSS_SHA512, &[&PssKey { key: ANY_HASH, ..SHA512 }]),
    ],
};
/// Keys for one hash.
static ONE: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[],
    mapping: &[(PSS_PSS_SHA256, &[&SHA256]), (PSS_PSS_SHA384, &[&SHA384]), (PSS_PSS_SHA512, &[&SHA512])],
};

const SHA256: PssKey = PssKey::new(alg_id::RSA_PSS_SHA256, &RSA_PSS_2048_8192_SHA256);
const SHA384: PssKey = PssKey::new(alg_id::RSA_PSS_SHA384, &RSA_PSS_2048_8192_SHA384);
const SHA512: PssKey = PssKey::new(alg_id::RSA_PSS_SHA512, &RSA_PSS_2048_8192_SHA512);

/// Verifies signatures of such a key.
#[derive(Debug)]
struct PssKey {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    parameters: &'static RsaParameters,
}

impl PssKey {
    const fn new(signature: AlgorithmIdentifier, parameters: &'static RsaParameters) -> Self {
        Self { key: signature, signature, parameters }
    }
}

impl SignatureVerificationAlgorithm for PssKey {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        UnparsedPublicKey::new(self.parameters, key).verify(message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

/// A verifier that also knows these keys and leaves everything else to another.
#[derive(Debug)]
pub(super) struct WithPssKeys(pub(super) Arc<dyn ServerCertVerifier>);

impl ServerCertVerifier for WithPssKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !SCHEMES.contains(&signature.scheme) {
            return self.0.verify_tls13_signature(message, certificate, signature);
        }
        verify_tls13_signature(message, certificate, signature, &ANY)
            .or_else(|_| verify_tls13_signature(message, certificate, signature, &ONE))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        [self.0.supported_verify_schemes(), SCHEMES.to_vec()].concat()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.0.root_hint_subjects()
    }
}
