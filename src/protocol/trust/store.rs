//! Which CA speaks for which region. Owns: the verdict on a peer's certificate chain.
//! Always: the chain is verified against the CA set of the region it claims and against that alone; removing a region
//! is its revocation, and watchers learn of it at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::ca::{TrustError, certificates};
use super::{LEAF_LIFE_MAX, region_dns, region_uri};
use crate::types::{FederationName, RegionName, WallMillis};

/// Which end of a connection a chain was shown by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that dialled.
    Dialler,
    /// The one that was dialled.
    Dialled,
}

/// A peer whose chain is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Its region.
    pub region: RegionName,
    /// The end of its leaf's life.
    pub not_after: WallMillis,
}

/// Why a peer's chain is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    /// Not a certificate, or not one of ours: it must name exactly one region, by URI and by DNS name.
    #[error("the certificate does not name exactly one region by URI and DNS name")]
    Malformed,
    /// It names a region of another federation.
    #[error("the certificate is of another federation: '{0}'")]
    WrongFederation(String),
    /// No CA speaks for the region that it names: it was never admitted, or it was revoked.
    #[error("no CA is trusted for region {0}; put its ca.pem into the configuration if it belongs here")]
    UnknownRegion(RegionName),
    /// Another region answered than was dialled.
    #[error("region {dialled} was dialled and {claimed} answered")]
    WrongRegion {
        /// Who was dialled.
        dialled: RegionName,
        /// Who answered.
        claimed: RegionName,
    },
    /// A region signed for another's name.
    #[error("the certificate claims region {claimed} and was signed by region {signer}")]
    Impostor {
        /// Whose name it bears.
        claimed: RegionName,
        /// Whose CA signed it.
        signer: RegionName,
    },
    /// Signed by a CA that is not trusted for the region that it names.
    #[error("the certificate claims region {0} and was signed by a CA that does not speak for it")]
    ForeignCa(RegionName),
    /// Its life is over.
    #[error("the certificate of region {region} expired at {not_after} ms; the local clock says {now} ms")]
    Expired {
        /// Whose.
        region: RegionName,
        /// Its end.
        not_after: u64,
        /// The local clock.
        now: u64,
    },
    /// Its life has not begun: one of the two clocks is wrong.
    #[error("the certificate of region {region} is not valid before {not_before} ms; the local clock says {now} ms")]
    NotYetValid {
        /// Whose.
        region: RegionName,
        /// Its beginning.
        not_before: u64,
        /// The local clock.
        now: u64,
    },
    /// It lives longer than a leaf may.
    #[error("the certificate of region {0} lives longer than a day")]
    LivesTooLong(RegionName),
    /// Anything else that webpki finds.
    #[error("the certificate of region {region} is not valid: {why}")]
    Invalid {
        /// Whose.
        region: RegionName,
        /// What webpki says.
        why: String,
    },
}

impl CertificateRefusal {
    /// Its name, for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "certificate-malformed",
            Self::WrongFederation(_) => "wrong-federation",
            Self::UnknownRegion(_) => "unknown-region",
            Self::WrongRegion { .. } => "wrong-region",
            Self::Impostor { .. } => "impostor",
            Self::ForeignCa(_) => "foreign-ca",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::LivesTooLong(_) => "lives-too-long",
            Self::Invalid { .. } => "certificate-invalid",
        }
    }
    /// What TLS tells the other end.
    pub fn tls_error(&self) -> rustls::Error {
        let error = match self {
            Self::Expired { .. } => CertificateError::Expired,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::UnknownRegion(_) | Self::Impostor { .. } | Self::ForeignCa(_) => CertificateError::UnknownIssuer,
            Self::WrongRegion { .. } | Self::WrongFederation(_) => CertificateError::NotValidForName,
            Self::Malformed => CertificateError::BadEncoding,
            Self::LivesTooLong(_) | Self::Invalid { .. } => CertificateError::ApplicationVerificationFailure,
        };
        rustls::Error::InvalidCertificate(error)
    }
}

/// What verifies one region's leaves.
struct Anchors {
    roots: Arc<RootCertStore>,
    diallers: Arc<dyn ClientCertVerifier>,
}

/// The CA sets by region; may be changed at any time.
pub struct TrustStore {
    federation: FederationName,
    provider: Arc<CryptoProvider>,
    regions: RwLock<BTreeMap<RegionName, Arc<Anchors>>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustStore({} of {:?})", self.federation, self.regions())
    }
}

impl TrustStore {
    /// A store that trusts nobody yet.
    pub fn new(federation: FederationName) -> TrustStore {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        TrustStore { federation, provider, regions: RwLock::default(), changes: watch::Sender::new(0) }
    }
    /// The federation whose regions it knows.
    pub fn federation(&self) -> &FederationName {
        &self.federation
    }

    /// From now on `ca_pem` (one or more CA certificates; two while a CA is replaced) speaks for `region`.
    pub fn set(&self, region: RegionName, ca_pem: &str) -> Result<(), TrustError> {
        let error = |why: String| TrustError::Pem { what: format!("the CA of region {region}"), why };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&format!("the CA of region {region}"), ca_pem)? {
            roots.add(certificate).map_err(|e| error(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let diallers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| error(e.to_string()))?;
        let anchors = Arc::new(Anchors { roots, diallers });
        self.regions.write().unwrap_or_else(PoisonError::into_inner).insert(region, anchors);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Revokes `region`: new connections are refused and open ones closed at once.
    pub fn remove(&self, region: &RegionName) {
        self.regions.write().unwrap_or_else(PoisonError::into_inner).remove(region);
        self.changes.send_modify(|n| *n += 1);
    }

    /// The regions that some CA speaks for.
    pub fn regions(&self) -> Vec<RegionName> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Changes whenever the store does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Judges the chain that a peer showed in `role`. `dialled` is the region that was meant, if we dialled.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        dialled: Option<&RegionName>,
        now: WallMillis,
    ) -> Result<VerifiedPeer, CertificateRefusal> {
        let claim = self.claim(leaf)?;
        if let Some(dialled) = dialled.filter(|dialled| **dialled != claim.region) {
            return Err(CertificateRefusal::WrongRegion { dialled: dialled.clone(), claimed: claim.region });
        }
        let anchors = self.regions.read().unwrap_or_else(PoisonError::into_inner).get(&claim.region).cloned();
        let Some(anchors) = anchors else { return Err(CertificateRefusal::UnknownRegion(claim.region)) };
        if let Err(error) = self.chain_holds(&anchors, leaf, intermediates, role, now) {
            return Err(self.explain(error, claim, leaf, intermediates, role, now));
        }
        if claim.not_after.0.saturating_sub(claim.not_before.0) > LEAF_LIFE_MAX.0 {
            return Err(CertificateRefusal::LivesTooLong(claim.region));
        }
        Ok(VerifiedPeer { region: claim.region, not_after: claim.not_after })
    }

    /// Whom the leaf says it belongs to. Nothing of it is proven here.
    fn claim(&self, leaf: &CertificateDer<'_>) -> Result<Claim, CertificateRefusal> {
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateRefusal::Malformed)?;
        let names = parsed.subject_alternative_name().ok().flatten().ok_or(CertificateRefusal::Malformed)?;
        // Exactly these two: a leaf with a second name could be meant for something that reads the other one.
        let (uri, dns) = match names.value.general_names.as_slice() {
            [GeneralName::URI(uri), GeneralName::DNSName(dns)] | [GeneralName::DNSName(dns), GeneralName::URI(uri)] => {
                (*uri, *dns)
            }
            _ => return Err(CertificateRefusal::Malformed),
        };
        let path = uri.strip_prefix("spiffe://").ok_or(CertificateRefusal::Malformed)?;
        let (federation, region) = path.split_once("/region/").ok_or(CertificateRefusal::Malformed)?;
        if federation != self.federation.as_str() {
            return Err(CertificateRefusal::WrongFederation(federation.chars().take(80).collect()));
        }
        let region: RegionName = region.parse().map_err(|_| CertificateRefusal::Malformed)?;
        if uri != region_uri(&self.federation, &region) || dns != region_dns(&self.federation, &region) {
            return Err(CertificateRefusal::Malformed);
        }
        let at = |t: x509_parser::time::ASN1Time| WallMillis(u64::try_from(t.timestamp()).unwrap_or(0) * 1000);
        let validity = parsed.validity();
        Ok(Claim { region, not_before: at(validity.not_before), not_after: at(validity.not_after) })
    }

    fn chain_holds(
        &self,
        anchors: &Anchors,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: WallMillis,
    ) -> Result<(), rustls::Error> {
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        match role {
            Role::Dialler => anchors.diallers.verify_client_cert(leaf, intermediates, now).map(|_| ()),
            Role::Dialled => {
                let parsed = ParsedCertificate::try_from(leaf)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, &anchors.roots, intermediates, now, algorithms)
            }
        }
    }

    /// Names what was wrong with a chain that does not hold. Only for the log: the refusal stands already.
    fn explain(
        &self,
        error: rustls::Error,
        claim: Claim,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: WallMillis,
    ) -> CertificateRefusal {
        let Claim { region, not_before, not_after } = claim;
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                CertificateRefusal::Expired { region, not_after: not_after.0, now: now.0 }
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => CertificateRefusal::NotYetValid { region, not_before: not_before.0, now: now.0 },
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                let others = self.regions.read().unwrap_or_else(PoisonError::into_inner).clone();
                let signer = others
                    .into_iter()
                    .find(|(_, anchors)| self.chain_holds(anchors, leaf, intermediates, role, now).is_ok());
                match signer {
                    Some((signer, _)) => CertificateRefusal::Impostor { claimed: region, signer },
                    None => CertificateRefusal::ForeignCa(region),
                }
            }
            other => CertificateRefusal::Invalid { region, why: other.to_string() },
        }
    }
}

struct Claim {
    region: RegionName,
    not_before: WallMillis,
    not_after: WallMillis,
}
