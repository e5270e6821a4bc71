//! [`Tls`]: the certificate and the key of a server that speaks HTTPS.
//!
//! The files are read again when they change. New connections then use the new certificate; open
//! ones keep theirs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::error::{Error, Result};

/// A certificate with its key, as of the last reading of their files.
#[derive(Clone, Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<RwLock<Current>>,
}

#[derive(Debug)]
struct Current {
    files: Files,
    config: Arc<ServerConfig>,
}

/// The contents of both files.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays secret.
        f.write_str("Files")
    }
}

impl Tls {
    /// Reads a certificate, followed by the certificates of its authorities if there are some, and its private
    /// key, both in PEM.
    ///
    /// # Errors
    /// If a file cannot be read or is not PEM, or if the key does not belong to the certificate.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let files = Files::read(certificate, key)?;
        let config = files.config(certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: Arc::new(RwLock::new(Current { files, config })),
        })
    }

    /// Reads the files again; true if they have changed. On an error the former certificate stays.
    pub(crate) fn read_again(&self) -> Result<bool> {
        let files = Files::read(&self.certificate, &self.key)?;
        let is_known = |current: &Current| current.files == files;
        if is_known(&self.current.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(false);
        }
        let config = files.config(&self.certificate, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { files, config };
        Ok(true)
    }

    /// The path of the certificate.
    pub(crate) fn path(&self) -> &Path {
        &self.certificate
    }

    /// Accepts connections with the current certificate.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current.config))
    }
}

impl Files {
    fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| {
            let failed = |source| Error::TlsFile {
                path: path.to_owned(),
                source,
            };
            // Check the type before opening: opening a pipe would wait for its writer.
            match std::fs::metadata(path).map_err(failed)?.is_file() {
                true => std::fs::read(path).map_err(failed),
                false => Err(Error::Tls {
                    path: path.to_owned(),
                    problem: "it is not a regular file".to_owned(),
                }),
            }
        };
        Ok(Self {
            certificate: read(certificate)?,
            key: read(key)?,
        })
    }

    fn config(&self, certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
        let failed = |path: &Path, problem: String| Error::Tls {
            path: path.to_owned(),
            problem,
        };
        let chain = CertificateDer::pem_slice_iter(&self.certificate);
        let chain = chain.collect::<std::result::Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| failed(certificate, error.to_string()))?;
        if chain.is_empty() {
            let problem = "there is no certificate in it, in PEM".to_owned();
            return Err(failed(certificate, problem));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key);
        let private = private.map_err(|error| failed(key, error.to_string()))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(chain, private)
            });
        let mut config = config.map_err(|error| failed(certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;

    /// Writes a new certificate with its key; returns the certificate.
    fn write(folder: &Path) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("a certificate");
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).expect("a file");
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("a file");
        made.cert.der().clone()
    }

    /// Whether a client that trusts only this certificate can connect.
    fn connects(tls: &Tls, trusted: &CertificateDer<'static>) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let provider = Arc::new(crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocols")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let address = listener.local_addr().expect("an address");
                let near = TcpStream::connect(address).await.expect("a connection");
                let (far, _) = listener.accept().await.expect("a connection");
                let client = TlsConnector::from(Arc::new(client)).connect(name, near);
                let (client, server) = tokio::join!(client, tls.acceptor().accept(far));
                client.is_ok() && server.is_ok()
            })
    }

    #[test]
    fn a_replaced_certificate_serves_new_connections() {
        let folder = std::env::temp_dir().join(format!("bitnet-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let first = write(&folder);
        let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        let tls = Tls::read(&certificate, &key).expect("TLS");
        assert!(connects(&tls, &first));
        assert!(matches!(tls.read_again(), Ok(false)));
        let old_key = std::fs::read(&key).expect("a file");
        let second = write(&folder);
        // Only the certificate is new so far.
        let new_key = std::fs::read(&key).expect("a file");
        std::fs::write(&key, &old_key).expect("a file");
        assert!(matches!(tls.read_again(), Err(Error::Tls { .. })));
        assert!(connects(&tls, &first));
        std::fs::write(&key, new_key).expect("a file");
        assert!(matches!(tls.read_again(), Ok(true)));
        assert!(connects(&tls, &second) && !connects(&tls, &first));
        for wrong in ["", "no PEM"] {
            std::fs::write(&certificate, wrong).expect("a file");
            assert!(matches!(tls.read_again(), Err(Error::Tls { .. })));
        }
        std::fs::remove_dir_all(&folder).expect("a folder");
        assert!(matches!(tls.read_again(), Err(Error::TlsFile { .. })));
    }
}
