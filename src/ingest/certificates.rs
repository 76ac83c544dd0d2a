//! The public listener's certificate: read at the start and again at each SIGHUP, without closing a connection.
//!
//! The main thread reads the files before anything starts; later the `certificates` thread reads them, never a shard.
//! A shard finds a newer configuration in its own inbox when it accepts a connection, without a lock. Files that
//! cannot be used change nothing: the old certificate stays, and the log says so.
//!
//! Session tickets make later handshakes short. Their key is made at the start, changed every six hours by rustls, and
//! survives a reload. rustls keeps it behind a read-write lock, which a shard takes in a handshake; rustls holds it for
//! writing only while it swaps the key.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;

use millrace_base::critical_thread;

/// The files of the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain in PEM, the server's own certificate first.
    pub certificates: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Reads both.
    ///
    /// # Errors
    /// Which file cannot be used, why, and how to fix it.
    pub fn load(&self) -> Result<ServerConfig, String> {
        self.load_with(None)
    }

    fn load_with(&self, ticketer: Option<Arc<dyn ProducesTickets>>) -> Result<ServerConfig, String> {
        let chain = self.chain()?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            unusable("tls_key_file", &self.key, &error, "it must be a private key in PEM that this user may read")
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider has cipher suites of TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| {
                unusable(
                    "tls_key_file",
                    &self.key,
                    &error,
                    "it must be the key of the first certificate in tls_cert_file",
                )
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(ticketer) = ticketer {
            config.ticketer = ticketer;
        }
        Ok(config)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let refuse = |why: &dyn Display| {
            let advice = "it must be the certificate chain in PEM, the server's own first";
            unusable("tls_cert_file", &self.certificates, why, advice)
        };
        let found = CertificateDer::pem_file_iter(&self.certificates).and_then(Iterator::collect);
        let chain: Vec<_> = found.map_err(|error| refuse(&error))?;
        if chain.is_empty() { Err(refuse(&"no certificate in it")) } else { Ok(chain) }
    }
}

fn unusable(setting: &str, path: &Path, why: &dyn Display, advice: &str) -> String {
    format!("{setting}, {}, cannot be used: {why}\n  fix: {advice}", path.display())
}

/// The certificate files and the TLS configuration made from them.
pub struct Certificates {
    files: CertificateFiles,
    first: Arc<ServerConfig>,
    ticketer: Arc<dyn ProducesTickets>,
    inboxes: Vec<Inbox>,
}

/// The inbox of one shard; holds the newest configuration that the shard has not seen.
struct Inbox {
    sender: Sender<Arc<ServerConfig>>,
    receiver: Receiver<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads the files, for this many shards.
    ///
    /// # Errors
    /// What is wrong with the files, and how to fix it.
    pub fn load(files: CertificateFiles, shards: usize) -> Result<Self, String> {
        let ticketer = ring::Ticketer::new().map_err(|error| format!("no randomness for session tickets: {error}"))?;
        let first = Arc::new(files.load_with(Some(Arc::clone(&ticketer)))?);
        let inbox = |_| {
            let (sender, receiver) = bounded(1);
            Inbox { sender, receiver }
        };
        Ok(Self { files, first, ticketer, inboxes: (0..shards).map(inbox).collect() })
    }

    /// The configuration that shards start with.
    pub fn first(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.first)
    }

    /// A newer configuration for shard `shard`, if there is one. Never waits.
    pub fn newer(&self, shard: usize) -> Option<Arc<ServerConfig>> {
        self.inboxes[shard].receiver.try_recv().ok()
    }

    /// Reads the files again at each SIGHUP, on a thread of its own.
    ///
    /// # Errors
    /// Where the operating system refuses the signal or the thread.
    pub fn reload_on_hangup(self: &Arc<Self>) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGHUP])?;
        let certificates = Arc::clone(self);
        critical_thread::spawn("certificates", move || {
            for _ in signals.forever() {
                certificates.reload();
            }
        })?;
        Ok(())
    }

    fn reload(&self) {
        match self.files.load_with(Some(Arc::clone(&self.ticketer))) {
            Ok(config) => {
                let config = Arc::new(config);
                self.inboxes.iter().for_each(|inbox| inbox.put(&config));
                tracing::info!("the certificate was read again; new connections get it");
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "THE CERTIFICATE WAS NOT RELOADED: the old one stays in use; fix the files and send SIGHUP again"
                );
            }
        }
    }
}

impl Inbox {
    /// Replaces a configuration that the shard has not taken yet. Only one thread puts.
    fn put(&self, config: &Arc<ServerConfig>) {
        while let Err(TrySendError::Full(_)) = self.sender.try_send(Arc::clone(config)) {
            // The shard may be faster; either way there is room now.
            let _ = self.receiver.try_recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    /// A certificate and its key, and a key of another.
    fn files(dir: &Path) -> (CertificateFiles, PathBuf) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = |name: &str, text: String| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        let certificates = path("cert.pem", cert.pem());
        let key = path("key.pem", signing_key.serialize_pem());
        (CertificateFiles { certificates, key }, path("other.pem", other.signing_key.serialize_pem()))
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (good, other_key) = files(dir.path());
        assert!(good.load().is_ok());
        let (absent, empty) = (dir.path().join("absent.pem"), dir.path().join("empty.pem"));
        std::fs::write(&empty, "not PEM\n").unwrap();
        for (certificates, key, words) in [
            (&absent, &good.key, ["tls_cert_file", "absent.pem", "chain in PEM"]),
            (&empty, &good.key, ["tls_cert_file", "no certificate in it", "chain in PEM"]),
            (&good.key, &good.key, ["tls_cert_file", "no certificate in it", "chain in PEM"]),
            (&good.certificates, &absent, ["tls_key_file", "absent.pem", "private key in PEM"]),
            (&good.certificates, &good.certificates, ["tls_key_file", "cert.pem", "private key in PEM"]),
            (&good.certificates, &other_key, ["tls_key_file", "other.pem", "the key of the first certificate"]),
        ] {
            let files = CertificateFiles { certificates: certificates.clone(), key: key.clone() };
            let why = files.load().unwrap_err();
            for word in words {
                assert!(why.contains(word), "{why:?} lacks {word:?}");
            }
        }
    }

    #[test]
    fn a_shard_gets_the_newest_once_and_bad_files_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (good, _) = files(dir.path());
        let certificates = Certificates::load(good.clone(), 2).unwrap();
        assert!(certificates.newer(0).is_none());
        certificates.reload();
        certificates.reload();
        assert!(certificates.newer(0).is_some() && certificates.newer(0).is_none());
        std::fs::write(&good.key, "nothing").unwrap();
        certificates.reload();
        assert!(certificates.newer(0).is_none() && certificates.newer(1).is_some());
    }
}
