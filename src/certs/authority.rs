//! The certificate authority that signs our own certificates, and the certificates that it signs. Pure over `now`: what
//! there is and the time go in, what should be done comes out; clocks, the Secret and the network are elsewhere.
//!
//! # The life of an authority
//!
//! 1. It is made, and trusted from then on: the bundle has it beside those before it.
//! 2. Once the webhook configurations have been seen with it, that is noted ([`Authority::published`]). API servers learn of
//!    a configuration a moment after it is stored; [`Policy::settle`] is the time that they get.
//! 3. Then it is settled, and every replica has it sign its next certificate. Until then a replica keeps the one it has.
//! 4. When no certificate of those before it can be valid any more, they leave the bundle ([`Due::Drop`]).
//! 5. After two thirds of its life it is followed by another one, whose bundle has both.
//!
//! The key of an authority that is followed is gone with that. So nobody has to hear from every replica: one that could not
//! be reached keeps a certificate that is trusted for as long as it is valid.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::cluster::names;

/// How much earlier than now a certificate begins: API servers whose clock is behind ours by less take it at once.
const SKEW: SignedDuration = SignedDuration::from_hours(1);
/// As many authorities are trusted at the most; who makes more of them within the validity of a certificate loses the oldest.
const MOST_TRUSTED: usize = 16;

/// What an installation decides about its certificates.
#[derive(Clone, Debug)]
pub struct Policy {
    /// DNS names and IP addresses of the server.
    pub names: Vec<String>,
    /// Life of an authority.
    pub authority_validity: SignedDuration,
    /// Life of a server's certificate; no more than a third of the authority's.
    pub leaf_validity: SignedDuration,
    /// Time that API servers get to learn of a changed webhook configuration.
    pub settle: SignedDuration,
}

/// A certificate, and what we have to know of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    /// First second in which it is valid.
    pub not_before: Timestamp,
    /// Last second in which it is valid.
    pub not_after: Timestamp,
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// What is no X.509 certificate.
    pub fn read(der: CertificateDer<'static>) -> anyhow::Result<Self> {
        let (_, parsed) = X509Certificate::from_der(&der).context("it is no X.509 certificate")?;
        let time = |time: &x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
        let validity = parsed.validity();
        let (not_before, not_after) = (time(&validity.not_before)?, time(&validity.not_after)?);
        Ok(Self { der, not_before, not_after })
    }

    /// Reads all of a PEM text.
    ///
    /// # Errors
    /// What is no PEM, and what in it is no certificate.
    pub fn read_all(pem: &[u8]) -> anyhow::Result<Vec<Self>> {
        CertificateDer::pem_slice_iter(pem).map(|der| Self::read(der?)).collect()
    }

    /// Whether it is valid at that time.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Whether it should have been renewed by now: a sixth of its life is left, or two weeks of a long one. The alert
    /// `TenancyFixerCertificateExpires` goes by the same.
    #[must_use]
    pub fn ends_soon(&self, now: Timestamp) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        self.not_after.duration_since(now) < (life / 6).min(SignedDuration::from_hours(14 * 24))
    }

    /// Says why it is not valid, if so.
    #[must_use]
    pub fn why_not_valid(&self, now: Timestamp) -> Option<String> {
        if now < self.not_before {
            Some(format!("it is not valid before {}, and it is {now:.0}", self.not_before))
        } else if now > self.not_after {
            Some(format!("it ended at {}, and it is {now:.0}", self.not_after))
        } else {
            None
        }
    }

    /// Whether it is one that signs others.
    fn is_authority(&self) -> bool {
        X509Certificate::from_der(&self.der).is_ok_and(|(_, parsed)| parsed.is_ca())
    }

    fn pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.der);
        // RFC 7468: lines of 64 characters.
        let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n");
        format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Certificate({} to {})", self.not_before, self.not_after)
    }
}

/// The authority with its key, those that are trusted beside it, and since when it is published: all that the Secret has.
#[derive(Clone)]
pub struct Authority {
    certificate: Certificate,
    key: Arc<KeyPair>,
    before: Vec<Certificate>,
    /// Since when every webhook of ours has it in its bundle.
    pub published: Option<Timestamp>,
}

/// Something that should be done to the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Another authority is to follow this one, for this reason.
    Rotate(String),
    /// It has been seen in every webhook of ours: note that.
    Publish,
    /// No certificate of the ones before it can be valid any more.
    Drop,
}

impl Authority {
    /// A new one. Those that are trusted so far stay trusted for a while.
    ///
    /// # Errors
    /// Those of the generator of random numbers, and times out of any calendar.
    pub fn create(now: Timestamp, policy: &Policy, trusted: &[Certificate]) -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::OrganizationName, names::PROJECT);
        // With the time, to the nanosecond, so that two of them can be told apart.
        parameters.distinguished_name.push(DnType::CommonName, format!("webhook CA of {now}"));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.not_before = SystemTime::from(now.checked_sub(SKEW)?).into();
        parameters.not_after = SystemTime::from(now.checked_add(policy.authority_validity)?).into();
        let key = KeyPair::generate().context("making the key of a certificate authority")?;
        let certificate = parameters.self_signed(&key).context("signing a certificate authority")?;
        let mut before: Vec<Certificate> = Vec::new();
        for certificate in trusted.iter().filter(|certificate| certificate.not_after >= now) {
            if before.len() + 1 < MOST_TRUSTED && !before.contains(certificate) {
                before.push(certificate.clone());
            }
        }
        let certificate = Certificate::read(certificate.der().clone())?;
        Ok(Self { certificate, key: Arc::new(key), before, published: None })
    }

    /// From what is stored: certificate and key, and the bundle.
    ///
    /// # Errors
    /// What cannot sign, by name.
    pub fn read(certificate: &[u8], key: &[u8], bundle: &[u8], published: Option<Timestamp>) -> anyhow::Result<Self> {
        let certificate = Certificate::read_all(certificate).context("tls.crt")?;
        let Some(certificate) = certificate.into_iter().next() else { anyhow::bail!("tls.crt has no certificate") };
        ensure!(certificate.is_authority(), "tls.crt is no certificate authority");
        let key = std::str::from_utf8(key).context("tls.key")?;
        let key = KeyPair::from_pem(key).context("tls.key is no private key that can sign")?;
        let (_, parsed) = X509Certificate::from_der(&certificate.der).context("tls.crt")?;
        ensure!(
            *parsed.public_key().subject_public_key.data == *rcgen::PublicKeyData::der_bytes(&key),
            "tls.key does not belong to tls.crt"
        );
        let mut before = Certificate::read_all(bundle).context("ca.crt")?;
        before.retain(|other| *other != certificate);
        Ok(Self { certificate, key: Arc::new(key), before, published })
    }

    /// What is to be done to it. `is_published`: every webhook of ours has been seen with it.
    #[must_use]
    pub fn due(&self, now: Timestamp, policy: &Policy, is_published: bool) -> Option<Due> {
        if let Some(why) = self.certificate.why_not_valid(now) {
            return Some(Due::Rotate(why));
        }
        if is_due(&self.certificate, now, policy.authority_validity) {
            return Some(Due::Rotate(format!("it ends at {}", self.certificate.not_after)));
        }
        if self.before.iter().any(|before| self.is_unused(before, now, policy)) {
            return Some(Due::Drop);
        }
        (self.published.is_none() && is_published).then_some(Due::Publish)
    }

    /// Whether one of those before it has ended, or can have signed nothing that is still valid: replicas have this one sign
    /// once it is settled.
    fn is_unused(&self, before: &Certificate, now: Timestamp, policy: &Policy) -> bool {
        let last_one_ends = self
            .published
            .and_then(|published| published.saturating_add(policy.settle.saturating_add(policy.leaf_validity)).ok());
        now > before.not_after || last_one_ends.is_some_and(|end| now > end)
    }

    /// The one that follows it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn followed(&self, now: Timestamp, policy: &Policy) -> anyhow::Result<Self> {
        Self::create(now, policy, &self.trusted().cloned().collect::<Vec<_>>())
    }

    /// The same without those before it that are of no more use.
    #[must_use]
    pub fn without_unused(&self, now: Timestamp, policy: &Policy) -> Self {
        let before = self.before.iter().filter(|before| !self.is_unused(before, now, policy)).cloned().collect();
        Self { before, ..self.clone() }
    }

    /// The same, published.
    #[must_use]
    pub fn published_since(&self, now: Timestamp) -> Self {
        Self { published: Some(now), ..self.clone() }
    }

    /// Whether API servers have had the time to learn of it; `seen_for` is how long this process has seen it published, for
    /// clocks that have been set back since.
    #[must_use]
    pub fn is_settled(&self, now: Timestamp, seen_for: SignedDuration, policy: &Policy) -> bool {
        // Nobody serves with anything else.
        self.before.is_empty()
            || seen_for >= policy.settle
            || self.published.is_some_and(|published| now.duration_since(published) >= policy.settle)
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Everybody who is trusted, itself first.
    pub fn trusted(&self) -> impl Iterator<Item = &Certificate> {
        std::iter::once(&self.certificate).chain(&self.before)
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The key, PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The bundle that the webhook configurations should have, PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.trusted().map(Certificate::pem).collect()
    }

    /// Signs a certificate for this server.
    ///
    /// # Errors
    /// Those of the generator of random numbers, and names that are none.
    pub fn sign(&self, now: Timestamp, policy: &Policy) -> anyhow::Result<Leaf> {
        let mut parameters = CertificateParams::new(policy.names.clone())
            .with_context(|| format!("making a certificate for {}", policy.names.join(", ")))?;
        parameters.distinguished_name.push(DnType::OrganizationName, names::PROJECT);
        parameters.distinguished_name.push(DnType::CommonName, "webhook server");
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let not_after = now.checked_add(policy.leaf_validity)?.min(self.certificate.not_after);
        parameters.not_before = SystemTime::from(now.checked_sub(SKEW)?).into();
        parameters.not_after = SystemTime::from(not_after).into();
        let key = KeyPair::generate().context("making a key")?;
        let issuer =
            Issuer::from_ca_cert_der(&self.certificate.der, &*self.key).context("signing with the authority")?;
        let certificate = parameters.signed_by(&key, &issuer).context("signing a certificate")?;
        let served = CertifiedKey::from_der(
            vec![certificate.der().clone()],
            PrivateKeyDer::from(key),
            &ring::default_provider(),
        )
        .context("using a certificate that was just signed")?;
        Ok(Leaf {
            certificate: Certificate::read(certificate.der().clone())?,
            served: Arc::new(served),
            issuer: self.certificate.clone(),
        })
    }
}

/// After two thirds of its life.
fn is_due(certificate: &Certificate, now: Timestamp, validity: SignedDuration) -> bool {
    now.duration_since(certificate.not_after) > -(validity / 3)
}

/// The certificate of this server, in memory only.
#[derive(Clone)]
pub struct Leaf {
    /// What is known of it.
    pub certificate: Certificate,
    /// What TLS serves with.
    pub served: Arc<CertifiedKey>,
    /// Who signed it.
    pub issuer: Certificate,
}

impl Leaf {
    /// Why another one is to take its place, if so.
    #[must_use]
    pub fn why_renew(&self, authority: &Authority, now: Timestamp, settled: bool, policy: &Policy) -> Option<String> {
        if self.issuer != authority.certificate {
            // API servers that have not heard of the new authority trust this one, so it goes on for the moment; even one that
            // is not valid by our clock, which may be wrong if nobody could be asked.
            return settled.then(|| "another authority has followed the one that signed it".to_owned());
        }
        if let Some(why) = self.certificate.why_not_valid(now) {
            return Some(why);
        }
        // One that ends with its authority would have no longer-lived successor.
        let due = is_due(&self.certificate, now, policy.leaf_validity)
            && self.certificate.not_after < authority.certificate.not_after;
        due.then(|| format!("it ends at {}", self.certificate.not_after))
    }
}

#[cfg(test)]
mod tests {
    use super::super::verify::why_distrusted;
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);
    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn policy() -> Policy {
        Policy {
            names: vec!["tenancy-fixer.kubeflow-extension.svc".to_owned(), "127.0.0.1".to_owned()],
            authority_validity: DAY * 360,
            leaf_validity: DAY * 6,
            settle: SignedDuration::from_mins(1),
        }
    }

    fn start() -> Timestamp {
        "2026-11-21T00:00:00Z".parse().unwrap()
    }

    fn at(days: i32) -> Timestamp {
        start() + DAY * days
    }

    fn stored(authority: &Authority) -> Authority {
        Authority::read(
            authority.certificate_pem().as_bytes(),
            authority.key_pem().as_bytes(),
            authority.bundle().as_bytes(),
            authority.published,
        )
        .unwrap()
    }

    fn is_trusted(leaf: &Leaf, bundle: &str, name: &str, now: Timestamp) -> bool {
        why_distrusted(&leaf.served.cert, bundle.as_bytes(), name, now).is_none()
    }

    #[test]
    fn what_is_signed_is_trusted_by_those_who_have_the_bundle_and_by_nobody_else() {
        let authority = stored(&Authority::create(start(), &policy(), &[]).unwrap());
        let leaf = authority.sign(start(), &policy()).unwrap();
        for name in policy().names {
            assert!(is_trusted(&leaf, &authority.bundle(), &name, start()), "{name}");
        }
        assert!(!is_trusted(&leaf, &authority.bundle(), "other.kubeflow-extension.svc", start()));
        assert!(!is_trusted(&leaf, &authority.bundle(), "127.0.0.1", at(7)));
        let other = Authority::create(start(), &policy(), &[]).unwrap();
        assert!(!is_trusted(&leaf, &other.bundle(), "127.0.0.1", start()));
        assert_eq!(leaf.certificate.not_after, at(6));
        assert_eq!(leaf.certificate.not_before, start() - HOUR);
    }

    #[test]
    fn a_rotation_trusts_both_then_signs_with_the_new_one_then_drops_the_old_one() {
        let policy = policy();
        let first = Authority::create(start(), &policy, &[]).unwrap();
        assert_eq!(first.due(start(), &policy, false), None);
        assert_eq!(first.due(start(), &policy, true), Some(Due::Publish));
        let first = stored(&first.published_since(start()));
        assert_eq!(first.due(at(239), &policy, true), None);
        assert!(matches!(first.due(at(241), &policy, true), Some(Due::Rotate(why)) if why.contains("ends at")));
        let leaf = first.sign(at(241), &policy).unwrap();

        let now = at(241);
        let second = stored(&first.followed(now, &policy).unwrap());
        assert_eq!(second.trusted().count(), 2);
        assert!(is_trusted(&leaf, &second.bundle(), "127.0.0.1", now));
        assert!(!second.is_settled(now, SignedDuration::ZERO, &policy), "nobody knows it yet");
        assert_eq!(leaf.why_renew(&second, now, false, &policy), None);
        assert_eq!(second.due(now, &policy, false), None, "not published yet");
        let second = stored(&second.published_since(now));
        let settled = now + policy.settle;
        assert!(!second.is_settled(settled - SignedDuration::from_secs(1), SignedDuration::ZERO, &policy));
        assert!(second.is_settled(settled, SignedDuration::ZERO, &policy));
        assert!(leaf.why_renew(&second, settled, true, &policy).unwrap().contains("followed"));
        let leaf = second.sign(settled, &policy).unwrap();
        assert!(is_trusted(&leaf, &second.bundle(), "127.0.0.1", settled));
        assert!(!is_trusted(&leaf, &first.bundle(), "127.0.0.1", settled));

        assert_eq!(second.due(settled + DAY * 6, &policy, true), None, "the first one's last certificate is valid");
        let late = settled + DAY * 6 + SignedDuration::from_secs(1);
        assert_eq!(second.due(late, &policy, true), Some(Due::Drop));
        let alone = stored(&second.without_unused(late, &policy));
        assert_eq!(alone.trusted().count(), 1);
        assert_eq!(alone.due(late, &policy, true), None);
        assert!(is_trusted(&leaf, &alone.bundle(), "127.0.0.1", settled));
    }

    #[test]
    fn a_leaf_is_renewed_after_two_thirds_of_its_life_by_the_wall_clock() {
        let policy = policy();
        let authority = Authority::create(start(), &policy, &[]).unwrap();
        let leaf = authority.sign(start(), &policy).unwrap();
        assert_eq!(leaf.why_renew(&authority, at(4), true, &policy), None);
        assert!(leaf.why_renew(&authority, at(4) + HOUR, true, &policy).unwrap().contains("it ends at"));
        // The clock jumps: over its end, and before its beginning.
        assert!(leaf.why_renew(&authority, at(40), true, &policy).unwrap().contains("it ended at"));
        assert!(leaf.why_renew(&authority, start() - HOUR * 2, true, &policy).unwrap().contains("not valid before"));
        assert_eq!(leaf.why_renew(&authority, start() - HOUR, true, &policy), None);
        for jumped in [at(40), start() - HOUR] {
            let leaf = authority.sign(jumped, &policy).unwrap();
            assert_eq!(leaf.why_renew(&authority, jumped, true, &policy), None);
        }
    }

    #[test]
    fn an_authority_that_the_clock_has_left_behind_is_followed_and_a_clock_set_back_stops_nothing() {
        let policy = policy();
        let authority = Authority::create(start(), &policy, &[]).unwrap();
        assert!(matches!(authority.due(at(400), &policy, true), Some(Due::Rotate(why)) if why.contains("ended")));
        assert!(
            matches!(authority.due(at(-1), &policy, true), Some(Due::Rotate(why)) if why.contains("not valid before"))
        );
        let followed = authority.followed(at(400), &policy).unwrap();
        assert_eq!(followed.trusted().count(), 1, "who has expired is not trusted any more");
        // Published in what has become the future: this process has seen it for long enough all the same.
        let second = authority.followed(at(-1), &policy).unwrap().published_since(at(30));
        assert!(!second.is_settled(at(0), SignedDuration::ZERO, &policy));
        assert!(second.is_settled(at(0), policy.settle, &policy));
    }

    #[test]
    fn a_leaf_ends_with_its_authority_at_the_latest() {
        let policy = policy();
        let authority = Authority::create(start(), &policy, &[]).unwrap();
        let leaf = authority.sign(at(359), &policy).unwrap();
        assert_eq!(leaf.certificate.not_after, at(360));
        assert_eq!(leaf.why_renew(&authority, at(359), true, &policy), None, "another one would end then, too");
    }

    #[test]
    fn what_cannot_sign_is_named() {
        let authority = Authority::create(start(), &policy(), &[]).unwrap();
        let other = Authority::create(start(), &policy(), &[]).unwrap();
        let leaf = authority.sign(start(), &policy()).unwrap().certificate.pem();
        let (certificate, key) = (authority.certificate_pem(), authority.key_pem());
        let bundle = authority.bundle();
        for (certificate, key, bundle, expected) in [
            ("", &key, &bundle, "tls.crt has no certificate"),
            (&leaf, &key, &bundle, "tls.crt is no certificate authority"),
            (&certificate, &String::new(), &bundle, "tls.key is no private key"),
            (&certificate, &other.key_pem(), &bundle, "tls.key does not belong to tls.crt"),
            (
                &certificate,
                &key,
                &"-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n".to_owned(),
                "ca.crt",
            ),
        ] {
            let error = Authority::read(certificate.as_bytes(), key.as_bytes(), bundle.as_bytes(), None);
            let error = format!("{:#}", error.err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_bundle_does_not_grow_without_end() {
        let policy = policy();
        let mut authority = Authority::create(start(), &policy, &[]).unwrap();
        for _ in 0..20 {
            authority = authority.followed(start(), &policy).unwrap();
        }
        assert_eq!(authority.trusted().count(), MOST_TRUSTED);
    }
}
