//! A region's CA and the leaves that it signs. Owns: keys and their files.
//! Always: Ed25519; files with keys are 0600 and replaced as a whole; a leaf names one region, by URI and DNS name.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{LEAF_BACKDATE, LEAF_LIFE_MAX, region_dns, region_uri};
use crate::types::{FederationName, Millis, RegionName, WallMillis};

/// How long a CA certificate lives. Its end of service is its removal from the trust stores, not this date.
const CA_LIFE: Millis = Millis(20 * 365 * 24 * 3_600_000);

/// Why a certificate or key could not be made, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The names can't stand in a certificate.
    #[error("'{0}' can't be a DNS name; names that start or end with '-', or a federation of digits only, can't dial")]
    DnsName(String),
    /// rcgen failed.
    #[error("making a certificate for {subject}")]
    Make {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// "reading" or "writing".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A text that should be PEM is not, or holds nothing of the kind that is needed.
    #[error("{what} is not usable PEM: {why}")]
    Pem {
        /// What was read.
        what: String,
        /// Why.
        why: String,
    },
    /// The key does not fit the certificate, or TLS does not take it.
    #[error("the leaf of {subject} is not usable")]
    Unusable {
        /// Whose.
        subject: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// A region's CA: its key never leaves the region.
pub struct RegionCa {
    federation: FederationName,
    region: RegionName,
    keys: Keys,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl std::fmt::Debug for RegionCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the key: it must not reach a log.
        write!(f, "RegionCa({} in {})", self.region, self.federation)
    }
}

/// A leaf: what a region shows when it dials or is dialled.
#[derive(Clone)]
pub struct Leaf {
    /// The last moment at which it is valid.
    pub not_after: WallMillis,
    /// When it should be replaced: after two thirds of its life.
    pub renew_at: WallMillis,
    certified: Arc<CertifiedKey>,
    /// Certificate and key as in its file.
    pem: String,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leaf(until {} ms)", self.not_after.0)
    }
}

fn make_error(subject: &RegionName) -> impl Fn(rcgen::Error) -> TrustError {
    move |source| TrustError::Make { subject: subject.to_string(), source }
}

/// Parameters of a certificate valid from `from` to `until`. rcgen's dates come from a crate that we do not name, so
/// they are counted from 1970 with the standard library's duration; certificates know whole seconds only.
fn params(common_name: String, from: WallMillis, until: WallMillis) -> CertificateParams {
    let date = |at: WallMillis| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at.0 / 1000);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date(from);
    params.not_after = date(until);
    params
}

/// Where new keys come from.
enum Keys {
    /// The machine's randomness.
    Random,
    /// A seed, for simulations.
    Determined(Mutex<fastrand::Rng>),
}

/// PKCS #8 of an Ed25519 key (RFC 8410) is this and its 32 bytes.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

impl Keys {
    fn next(&self, region: &RegionName) -> Result<KeyPair, TrustError> {
        let made = match self {
            Keys::Random => KeyPair::generate_for(&PKCS_ED25519),
            Keys::Determined(rng) => {
                let mut der = [0; PKCS8_HEAD.len() + 32];
                let (head, secret) = der.split_at_mut(PKCS8_HEAD.len());
                head.copy_from_slice(&PKCS8_HEAD);
                rng.lock().unwrap_or_else(PoisonError::into_inner).fill(secret);
                KeyPair::try_from(&der[..])
            }
        };
        made.map_err(make_error(region))
    }
}

impl RegionCa {
    /// A new CA with a new key for `region`.
    pub fn create(federation: &FederationName, region: &RegionName, now: WallMillis) -> Result<RegionCa, TrustError> {
        RegionCa::with(Keys::Random, federation, region, now)
    }

    /// The same CA each time, and the same leaves in the same order: its keys come from `seed`, so whoever knows that
    /// knows them. For simulations.
    pub fn create_determined(
        federation: &FederationName,
        region: &RegionName,
        now: WallMillis,
        seed: u64,
    ) -> Result<RegionCa, TrustError> {
        // Of one seed each region has its own keys.
        let rng = fastrand::Rng::with_seed(xxh3_64_with_seed(region.as_str().as_bytes(), seed));
        RegionCa::with(Keys::Determined(Mutex::new(rng)), federation, region, now)
    }

    fn with(
        keys: Keys,
        federation: &FederationName,
        region: &RegionName,
        now: WallMillis,
    ) -> Result<RegionCa, TrustError> {
        let dns = region_dns(federation, region);
        if ServerName::try_from(dns.as_str()).is_err() {
            return Err(TrustError::DnsName(dns));
        }
        let key = keys.next(region)?;
        let from = WallMillis(now.0.saturating_sub(LEAF_BACKDATE.0));
        let mut params = params(format!("novafed {federation} {region} CA"), from, WallMillis(now.0 + CA_LIFE.0));
        // One intermediate below it: the next CA, cross-signed by this one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params.self_signed(&key).map_err(make_error(region))?;
        let (certificate, certificate_pem) = (made.der().clone(), made.pem());
        Ok(RegionCa { federation: federation.clone(), region: region.clone(), keys, key, certificate, certificate_pem })
    }

    /// The certificate that peers put into their trust stores, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a leaf with a new key, valid from a little before `now` for `life`, at most [`LEAF_LIFE_MAX`] in all.
    pub fn issue_leaf(&self, now: WallMillis, life: Millis) -> Result<Leaf, TrustError> {
        // Less for short lives, or a leaf of a minute would be due for renewal when it is born.
        let from = WallMillis(now.0.saturating_sub(LEAF_BACKDATE.0.min(life.0 / 10)));
        let until = WallMillis(now.0.saturating_add(life.0).min(from.0 + LEAF_LIFE_MAX.0));
        let key = self.keys.next(&self.region)?;
        let (dns, uri) = (region_dns(&self.federation, &self.region), region_uri(&self.federation, &self.region));
        let mut params = params(dns.clone(), from, until);
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into().map_err(make_error(&self.region))?),
            SanType::DnsName(dns.try_into().map_err(make_error(&self.region))?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(make_error(&self.region))?;
        let certificate = params.signed_by(&key, &issuer).map_err(make_error(&self.region))?;
        Leaf::from_pem(&format!("{}{}", certificate.pem(), key.serialize_pem()))
    }

    /// Writes `ca.pem` (the certificate, for everybody) and `ca.key` (0600) into `dir`.
    pub fn save(&self, dir: &Path) -> Result<(), TrustError> {
        write_whole(&dir.join("ca.key"), self.key.serialize_pem().as_bytes(), 0o600)?;
        write_whole(&dir.join("ca.pem"), self.certificate_pem.as_bytes(), 0o644)
    }

    /// Reads what [`RegionCa::save`] wrote.
    pub fn load(dir: &Path, federation: &FederationName, region: &RegionName) -> Result<RegionCa, TrustError> {
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|e| TrustError::Pem { what: key_path.display().to_string(), why: e.to_string() })?;
        let certificate_pem = read(&certificate_path)?;
        let certificate = certificates(&certificate_path.display().to_string(), &certificate_pem)?.remove(0);
        let (federation, region) = (federation.clone(), region.clone());
        Ok(RegionCa { federation, region, keys: Keys::Random, key, certificate, certificate_pem })
    }
}

impl Leaf {
    /// A leaf from a PEM text with its certificates (its own first) and its key.
    pub fn from_pem(text: &str) -> Result<Leaf, TrustError> {
        let chain = certificates("a leaf", text)?;
        let subject = || "a leaf".to_owned();
        let pem_error = |why: String| TrustError::Pem { what: subject(), why };
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|e| pem_error(e.to_string()))?;
        let (from, until) = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|e| pem_error(e.to_string()))?;
            let validity = parsed.validity();
            let at = |t: x509_parser::time::ASN1Time| WallMillis(u64::try_from(t.timestamp()).unwrap_or(0) * 1000);
            (at(validity.not_before), at(validity.not_after))
        };
        let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .map_err(|source| TrustError::Unusable { subject: subject(), source })?;
        let life = until.0.saturating_sub(from.0);
        Ok(Leaf {
            not_after: until,
            renew_at: WallMillis(from.0 + life / 3 * 2),
            certified: Arc::new(certified),
            pem: text.to_owned(),
        })
    }
    /// Certificate and key as TLS wants them.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
    /// Writes it to `path` (0600).
    pub fn save(&self, path: &Path) -> Result<(), TrustError> {
        write_whole(path, self.pem.as_bytes(), 0o600)
    }
    /// Reads what [`Leaf::save`] wrote.
    pub fn load(path: &Path) -> Result<Leaf, TrustError> {
        Leaf::from_pem(&read(path)?)
    }
}

/// The certificates in a PEM text, at least one.
pub(super) fn certificates(what: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let error = |why: String| TrustError::Pem { what: what.to_owned(), why };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|e| error(e.to_string()))?;
    if found.is_empty() { Err(error("it holds no certificate".to_owned())) } else { Ok(found) }
}

fn read(path: &Path) -> Result<String, TrustError> {
    fs::read_to_string(path).map_err(|source| TrustError::File { action: "reading", path: path.to_owned(), source })
}

/// Replaces `path` as a whole: a crash leaves the old file or the new one, and a key is never readable by others.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TrustError> {
    let write = || -> io::Result<()> {
        let temporary = path.with_extension("new");
        // Without truncation of what is there: an existing file could have a wider mode.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| TrustError::File { action: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (FederationName, RegionName) {
        ("acme".parse().unwrap(), "eu".parse().unwrap())
    }

    #[test]
    fn a_ca_and_its_leaf_survive_their_files_and_keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let (federation, region) = names();
        let dir = tempfile::tempdir().unwrap();
        let now = WallMillis(1_800_000_000_000);
        let ca = RegionCa::create(&federation, &region, now).unwrap();
        ca.save(dir.path()).unwrap();
        let again = RegionCa::load(dir.path(), &federation, &region).unwrap();
        assert_eq!(ca.certificate_pem(), again.certificate_pem());
        let leaf = again.issue_leaf(now, Millis(60_000)).unwrap();
        leaf.save(&dir.path().join("leaf.pem")).unwrap();
        assert_eq!(Leaf::load(&dir.path().join("leaf.pem")).unwrap().not_after, WallMillis(now.0 + 60_000));
        for (file, mode) in [("ca.key", 0o600), ("leaf.pem", 0o600), ("ca.pem", 0o644)] {
            let found = fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found & !mode, 0, "{file} has mode {found:o}");
        }
    }

    #[test]
    fn a_determined_ca_is_the_same_each_time_and_another_one_for_each_region_and_seed() {
        let (federation, region) = names();
        let now = WallMillis(1_800_000_000_000);
        let made = |region: &RegionName, seed| {
            let ca = RegionCa::create_determined(&federation, region, now, seed).unwrap();
            let leaves = [(); 2].map(|()| ca.issue_leaf(now, Millis(60_000)).unwrap().pem);
            assert_ne!(leaves[0], leaves[1]);
            (ca.certificate_pem, leaves)
        };
        assert_eq!(made(&region, 1), made(&region, 1));
        assert_ne!(made(&region, 1), made(&region, 2));
        assert_ne!(made(&region, 1).1, made(&"us".parse().unwrap(), 1).1);
    }

    #[test]
    fn a_leaf_lives_at_most_a_day() {
        let (federation, region) = names();
        let now = WallMillis(1_800_000_000_000);
        let leaf = RegionCa::create(&federation, &region, now).unwrap().issue_leaf(now, Millis(u64::MAX)).unwrap();
        assert_eq!(leaf.not_after.0 - (now.0 - LEAF_BACKDATE.0), LEAF_LIFE_MAX.0);
    }
}
