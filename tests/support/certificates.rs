//! A private certificate authority, and what servers show of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        Self::named("private test authority")
    }

    pub fn named(name: &str) -> Self {
        let params = authority_params(name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate as a PEM file in `dir`.
    pub fn file(&self, dir: &Path) -> PathBuf {
        let path = dir.join("ca.pem");
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// Whom clients trust that know only this authority.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// A certificate for `names` and its key, in PEM.
    pub fn pem(&self, names: &[&str]) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        [params(names).signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem()]
    }

    /// What a server needs to be `names`: host names, or addresses.
    pub fn server(&self, names: &[&str]) -> ServerConfig {
        self.signed(&params(names))
    }

    /// The same, too late.
    pub fn expired(&self, names: &[&str]) -> ServerConfig {
        let mut params = params(names);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.signed(&params)
    }

    /// The same, too early.
    pub fn not_yet_valid(&self, names: &[&str]) -> ServerConfig {
        let mut params = params(names);
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
        self.signed(&params)
    }

    /// The same, for those who call.
    pub fn for_clients(&self, names: &[&str]) -> ServerConfig {
        let mut params = params(names);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(&params)
    }

    /// The same, signed by an authority in between: with its certificate, and without.
    pub fn behind_an_intermediate(&self, names: &[&str]) -> (ServerConfig, ServerConfig) {
        let mut between = authority_params("intermediate test authority");
        between.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let between = CertifiedIssuer::signed_by(between, KeyPair::generate().unwrap(), &self.0).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params(names).signed_by(&key, &between).unwrap();
        let chain = vec![certificate.der().clone(), between.der().clone()];
        (chain_config(chain, &key), server_config(certificate.der().clone(), &key))
    }

    fn signed(&self, params: &CertificateParams) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        server_config(certificate.der().clone(), &key)
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

/// Signed by itself, so by nobody.
pub fn self_signed(names: &[&str]) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    server_config(params(names).self_signed(&key).unwrap().der().clone(), &key)
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn server_config(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    chain_config(vec![certificate], key)
}

fn chain_config(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}
