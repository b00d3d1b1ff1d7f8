//! TLS for QUIC: 1.3 only, mutual, no tickets and no early data, because a resumed session would skip the trust store.
//! Owns: how rustls asks [`TrustStore`] and [`Identity`]; that every refusal is counted where its reason is known.

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Class;
use crate::protocol::refusals::Refusals;
use crate::protocol::trust::{CertificateClock, Identity, Role, TrustStore, region_dns};
use crate::types::RegionName;

/// What both directions need.
#[derive(Clone)]
pub(super) struct Tls {
    pub trust: Arc<TrustStore>,
    pub identity: Arc<Identity>,
    pub wall: Arc<dyn CertificateClock>,
    pub refusals: Arc<Refusals>,
    /// The DNS name by which we are dialled.
    pub own_dns: String,
    pub provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.own_dns)
    }
}

impl Tls {
    /// What `region` needs, with the cryptography of `provider`.
    pub fn new(
        provider: CryptoProvider,
        region: &RegionName,
        identity: Arc<Identity>,
        trust: Arc<TrustStore>,
        wall: Arc<dyn CertificateClock>,
    ) -> Tls {
        let own_dns = region_dns(trust.federation(), region);
        Tls { trust, identity, wall, refusals: Arc::default(), own_dns, provider: Arc::new(provider) }
    }

    /// The configuration with which we are dialled, for both classes.
    pub fn server(&self) -> Result<QuicServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Diallers(self.clone())))
            .with_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = vec![Class::Control.alpn().to_vec(), Class::Bulk.alpn().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(QuicServerConfig::try_from(config)?)
    }

    /// The configuration with which we dial `region`.
    pub fn client(&self, region: &RegionName, class: Class) -> Result<QuicClientConfig, TlsError> {
        let verifier = Dialled { tls: self.clone(), region: region.clone() };
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = vec![class.alpn().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(QuicClientConfig::try_from(config)?)
    }

    /// The DNS name of `region`.
    pub fn dns(&self, region: &RegionName) -> String {
        region_dns(self.trust.federation(), region)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        dialled: Option<&RegionName>,
    ) -> Result<(), rustls::Error> {
        match self.trust.verify(leaf, intermediates, role, dialled, self.wall.wall()) {
            Ok(_) => Ok(()),
            Err(refusal) => {
                let who = dialled.map_or("a dialler", RegionName::as_str);
                self.refusals.count(refusal.reason(), &who, &refusal);
                Err(refusal.tls_error())
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS could not be configured: a bug or a build without TLS 1.3.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused.
    #[error("configuring TLS 1.3")]
    Rustls(#[from] rustls::Error),
    /// The provider lacks the suite of QUIC's first packets.
    #[error("configuring TLS for QUIC")]
    Quic(#[from] NoInitialCipherSuite),
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
}

/// Verifies who dials us.
#[derive(Debug)]
struct Diallers(Tls);

impl ClientCertVerifier for Diallers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: who is trusted here is nobody's business before they have shown who they are.
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify(leaf, intermediates, Role::Dialler, None).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.signature(message, leaf, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }
}

/// Verifies whom we dialled.
#[derive(Debug)]
struct Dialled {
    tls: Tls,
    region: RegionName,
}

impl ServerCertVerifier for Dialled {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.tls.verify(leaf, intermediates, Role::Dialled, Some(&self.region));
        verified.map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls.signature(message, leaf, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.tls.schemes()
    }
}

/// Shows our current leaf, and only to who meant us.
#[derive(Debug)]
struct Own(Tls);

impl ResolvesServerCert for Own {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) if name == self.0.own_dns => Some(self.0.identity.certified()),
            other => {
                let meant: String = other.unwrap_or("nobody").chars().take(80).collect();
                let detail = format!("'{meant}' was dialled, this is '{}'", self.0.own_dns);
                self.0.refusals.count("wrong-name-dialled", &"a dialler", &detail);
                None
            }
        }
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.identity.certified())
    }
    fn has_certs(&self) -> bool {
        true
    }
}
