//! The Secret of the authority. It has the keys of every TLS Secret, as cert-manager writes them for a CA: `tls.crt` and
//! `tls.key` are the authority that signs, `ca.crt` is the bundle of all that are trusted.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::authority::Authority;
use crate::cluster::names;

/// What is stored.
///
/// # Errors
/// A Secret that is not ours or cannot sign, with the mend.
pub(super) fn read(secret: &Secret) -> anyhow::Result<Authority> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let (label, value) = names::MANAGED_BY_LABEL;
    let labels = secret.metadata.labels.as_ref();
    ensure!(
        labels.and_then(|labels| labels.get(label)).is_some_and(|found| found == value),
        "Secret {name} is there without the label {label}={value} and is left alone; delete or rename it, or name another one (--ca-secret)"
    );
    let field = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|data| data.0.as_slice()).unwrap_or_default()
    };
    let annotations = secret.metadata.annotations.as_ref();
    let published = annotations.and_then(|annotations| annotations.get(names::CA_PUBLISHED_ANNOTATION));
    // One that cannot be read is not there, and is written anew.
    let published = published.and_then(|time| time.parse::<Timestamp>().ok());
    Authority::read(field("tls.crt"), field("tls.key"), field("ca.crt"), published)
        .with_context(|| format!("Secret {name} has no certificate authority; delete it, and another one is made"))
}

/// As it is to be stored: what else the Secret has stays.
pub(super) fn written(authority: &Authority, name: &str, before: Option<&Secret>) -> Secret {
    let mut secret = before.cloned().unwrap_or_else(|| Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        ..Secret::default()
    });
    let labels = secret.metadata.labels.get_or_insert_default();
    for (label, value) in [names::MANAGED_BY_LABEL, (names::NAME_LABEL, names::PROJECT)] {
        labels.insert(label.to_owned(), value.to_owned());
    }
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.remove(names::CA_PUBLISHED_ANNOTATION);
    if let Some(published) = authority.published {
        annotations.insert(names::CA_PUBLISHED_ANNOTATION.to_owned(), published.to_string());
    }
    let data: &mut BTreeMap<_, _> = secret.data.get_or_insert_default();
    for (key, text) in
        [("tls.crt", authority.certificate_pem()), ("tls.key", authority.key_pem()), ("ca.crt", authority.bundle())]
    {
        data.insert(key.to_owned(), ByteString(text.into_bytes()));
    }
    secret
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::super::authority::Policy;
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_other_fields_stay() {
        let hours = SignedDuration::from_hours;
        let policy = Policy { names: vec![], authority_validity: hours(9), leaf_validity: hours(3), settle: hours(1) };
        let now = Timestamp::now();
        let authority = Authority::create(now, &policy, &[]).unwrap().published_since(now);
        let mut secret = written(&authority, "ca", None);
        secret.metadata.resource_version = Some("7".to_owned());
        secret.data.as_mut().unwrap().insert("note".to_owned(), ByteString(b"theirs".to_vec()));
        let again = read(&secret).unwrap();
        assert_eq!((again.bundle(), again.published), (authority.bundle(), Some(now)));

        let followed = written(&again.followed(now, &policy).unwrap(), "ca", Some(&secret));
        assert_eq!(followed.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(followed.data.as_ref().unwrap()["note"].0, b"theirs");
        assert_eq!(read(&followed).unwrap().published, None, "the new one is still to be published");

        secret.metadata.labels = None;
        assert!(format!("{:#}", read(&secret).err().unwrap()).contains("left alone; delete or rename it"));
    }
}
