//! Pull secrets, and which of their logins are for which image: as the kubelet does it
//! (kubernetes v1.36, `pkg/credentialprovider/{config,keyring}.go`), so that we see what the pod will be able to pull.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;
use serde::Deserialize;

use super::Reference;

/// The key that a secret has for Docker's own registry (the kubelet's `defaultRegistryHost`).
const DEFAULT_REGISTRY_KEY: &str = "index.docker.io";

/// Decodes what Go's decoder decodes, with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What somebody may pull with. Whoever asks for an image brings these, and is told nothing that they do not open.
#[derive(Clone, Debug)]
pub struct Credentials {
    tenant: String,
    /// By registry and path, in the order in which they were added.
    logins: BTreeMap<String, Vec<Login>>,
}

/// A user and a password. Neither is printed.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: SecretString,
}

/// The two forms that a secret of image pulls has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretForm {
    /// Type `kubernetes.io/dockerconfigjson`, key `.dockerconfigjson`.
    DockerConfigJson,
    /// Type `kubernetes.io/dockercfg`, key `.dockercfg`.
    Dockercfg,
}

impl SecretForm {
    const ALL: [Self; 2] = [Self::DockerConfigJson, Self::Dockercfg];

    /// The form of a secret of that `type`, if it is one for image pulls; the kubelet passes over all others.
    #[must_use]
    pub fn of_type(secret_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.secret_type() == secret_type)
    }

    const fn secret_type(self) -> &'static str {
        match self {
            Self::DockerConfigJson => "kubernetes.io/dockerconfigjson",
            Self::Dockercfg => "kubernetes.io/dockercfg",
        }
    }

    /// The key of the secret's `data`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::DockerConfigJson => ".dockerconfigjson",
            Self::Dockercfg => ".dockercfg",
        }
    }
}

impl Credentials {
    /// None yet, for whoever asks for that tenant (its namespace): looks are shared out fairly among tenants.
    #[must_use]
    pub fn of(tenant: &str) -> Self {
        Self { tenant: tenant.to_owned(), logins: BTreeMap::new() }
    }

    /// Adds what is in a pull secret, base64 of the secret's `data` already undone.
    ///
    /// # Errors
    /// What is wrong with it, without anything of what is in it.
    pub fn add(&mut self, form: SecretForm, content: &[u8]) -> Result<(), String> {
        // serde's messages quote what they stumble on.
        let no_json = |error: serde_json::Error| {
            format!("{} is not in the form that docker login writes (line {})", form.key(), error.line())
        };
        let entries: BTreeMap<String, Entry> = match form {
            SecretForm::DockerConfigJson => {
                serde_json::from_slice::<DockerConfig>(content).map_err(no_json)?.auths.unwrap_or_default()
            }
            SecretForm::Dockercfg => serde_json::from_slice(content).map_err(no_json)?,
        };
        // All or nothing.
        let mut read = Vec::with_capacity(entries.len());
        for (location, entry) in entries {
            let login = entry
                .login()
                .ok_or_else(|| format!("{}: auth of {location:?} is no base64 of USER:PASSWORD", form.key()))?;
            read.push((key(&location), login));
        }
        for (key, login) in read {
            self.logins.entry(key).or_default().push(login);
        }
        Ok(())
    }

    pub(super) fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The logins for an image, the most specific first; the kubelet tries one after the other, and pulls as nobody where
    /// there are none.
    pub(super) fn logins(&self, image: &Reference) -> Vec<Login> {
        let name = image.name();
        let matching = self.logins.iter().rev().filter(|(key, _)| is_for(key, &name));
        let found: Vec<Login> = matching.flat_map(|(_, logins)| logins.iter().cloned()).collect();
        if found.is_empty() && image.is_of_default_registry() {
            return self.logins.get(DEFAULT_REGISTRY_KEY).cloned().unwrap_or_default();
        }
        found
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Login(..)")
    }
}

impl Login {
    /// `docker login` with a credential helper leaves an empty entry, which is nobody's.
    pub(super) fn is_nobody(&self) -> bool {
        use secrecy::ExposeSecret as _;
        self.user.is_empty() && self.password.expose_secret().is_empty()
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl Entry {
    /// `auth` wins over the other two.
    fn login(self) -> Option<Login> {
        if self.auth.is_empty() {
            return Some(Login { user: self.username, password: self.password.into() });
        }
        let field: String = self.auth.chars().filter(|character| !character.is_ascii_whitespace()).collect();
        let decoded = String::from_utf8(BASE64.decode(field).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some(Login { user: user.to_owned(), password: password.into() })
    }
}

/// `https://index.docker.io/v1/` and the like, as registry and path: without scheme, user, query and API version.
fn key(location: &str) -> String {
    let bare = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://")).unwrap_or(location);
    let bare = bare.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = bare.find('/').map_or((bare, ""), |index| bare.split_at(index));
    let host = host.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let versioned = path.strip_prefix("/v2/").or_else(|| path.strip_prefix("/v1/"));
    let path = versioned.map_or_else(|| path.to_owned(), |rest| format!("/{rest}"));
    if path == "/" { host } else { host + &path }
}

/// Whether a key is for an image: same port, `*` within each label of the host, and the path as a prefix.
fn is_for(key: &str, image: &str) -> bool {
    let (key_host, key_path) = split(key);
    let (host, path) = split(image);
    let (key_name, key_port) = port(key_host);
    let (name, port) = port(host);
    let (key_labels, labels): (Vec<_>, Vec<_>) = (key_name.split('.').collect(), name.split('.').collect());
    key_port == port
        && key_labels.len() == labels.len()
        && path.starts_with(key_path)
        && key_labels.iter().zip(&labels).all(|(pattern, label)| is_like(pattern, label))
}

fn split(text: &str) -> (&str, &str) {
    text.find('/').map_or((text, ""), |index| text.split_at(index))
}

fn port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether a text is like a pattern in which `*` stands for anything. Takes each piece where it first comes, so that the
/// time does not grow with the number of stars: patterns are tenants' text.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(text) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else { return false };
    let within = |text: &str, piece| text.split_once(piece).map(|(_, behind)| behind.to_owned());
    middle
        .split('*')
        .filter(|piece| !piece.is_empty())
        .try_fold(text.to_owned(), |text, piece| within(&text, piece))
        .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(secrets: &[(SecretForm, &str)], image: &str) -> Vec<String> {
        let mut credentials = Credentials::of("alice");
        for (form, content) in secrets {
            credentials.add(*form, content.as_bytes()).unwrap();
        }
        credentials.logins(&image.parse().unwrap()).into_iter().map(|login| login.user).collect()
    }

    fn keys_for(keys: &[&str], image: &str) -> Vec<String> {
        let entries: BTreeMap<_, _> =
            keys.iter().map(|key| (key, serde_json::json!({"username": key, "password": "p"}))).collect();
        users(&[(SecretForm::Dockercfg, &serde_json::to_string(&entries).unwrap())], image)
    }

    #[test]
    fn keys_are_for_images_as_the_kubelet_has_it() {
        for (key, image, is_for) in [
            ("https://index.docker.io/v1/", "python", true),
            ("index.docker.io", "kubeflow/katib", true),
            ("docker.io", "python", true),
            ("docker.io/library", "python", true),
            ("registry-1.docker.io", "python", false),
            ("https://index.docker.io/v1/", "ghcr.io/a", false),
            ("ghcr.io", "ghcr.io/a/b", true),
            ("https://ghcr.io/v2/", "ghcr.io/a/b", true),
            ("http://ghcr.io", "ghcr.io/a/b", true),
            ("GHCR.io", "ghcr.io/a/b", true),
            ("ghcr.io/a", "ghcr.io/a/b", true),
            ("ghcr.io/b", "ghcr.io/a/b", false),
            ("ghcr.io:443", "ghcr.io/a", false),
            ("localhost:5000", "localhost:5000/a", true),
            ("localhost", "localhost:5000/a", false),
            ("*.example.org", "registry.example.org/a", true),
            ("*.example.org", "a.b.example.org/a", false),
            ("*.*.example.org", "a.b.example.org/a", true),
            ("reg*y.example.org", "registry.example.org/a", true),
            ("*.org", "evil.example.org/a", false),
            ("*", "ghcr.io/a", false),
            ("example.org.evil.example", "example.org/a", false),
            ("ghcr.io@evil.example", "ghcr.io/a", false),
            ("", "python", false),
        ] {
            assert_eq!(!keys_for(&[key], image).is_empty(), is_for, "{key} for {image}");
        }
    }

    #[test]
    fn the_most_specific_login_comes_first() {
        let keys = ["quay.io", "quay.io/coreos/etcd", "quay.io/coreos"];
        assert_eq!(keys_for(&keys, "quay.io/coreos/etcd"), ["quay.io/coreos/etcd", "quay.io/coreos", "quay.io"]);
    }

    #[test]
    fn a_star_is_anything_and_costs_nothing() {
        for (pattern, text, like) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*a*", "bab", true),
            ("**", "x", true),
        ] {
            assert_eq!(is_like(pattern, text), like, "{pattern} {text}");
        }
        assert!(!is_like(&"*a".repeat(30).repeat(30), &"a".repeat(63)));
        assert!(!is_like(&format!("{}b", "*a".repeat(30)), &"a".repeat(63)));
    }

    #[test]
    fn both_forms_are_read_and_add_up() {
        let config = r#"{"auths":{"ghcr.io":{"auth":"YTpiOmM="},"empty.example":{}},"credsStore":"x"}"#;
        let legacy = r#"{"ghcr.io":{"username":"b","password":"p","email":"e"}}"#;
        let secrets = [(SecretForm::DockerConfigJson, config), (SecretForm::Dockercfg, legacy)];
        assert_eq!(users(&secrets, "ghcr.io/x"), ["a", "b"]);
        let mut credentials = Credentials::of("alice");
        credentials.add(SecretForm::DockerConfigJson, config.as_bytes()).unwrap();
        let login = credentials.logins(&"ghcr.io/x".parse().unwrap()).remove(0);
        assert_eq!(secrecy::ExposeSecret::expose_secret(&login.password), "b:c", "a password may have colons");
        assert!(credentials.logins(&"empty.example/x".parse().unwrap()).iter().all(Login::is_nobody));
        assert_eq!(SecretForm::of_type("kubernetes.io/dockercfg"), Some(SecretForm::Dockercfg));
        assert_eq!(SecretForm::of_type("Opaque"), None);
    }

    #[test]
    fn nothing_of_a_secret_is_printed() {
        let mut credentials = Credentials::of("alice");
        for wrong in [
            r#"{"auths":"hunter2"}"#,
            r#"{"auths":{"ghcr.io":{"auth":"aHVudGVyMg=="}}}"#,
            r#"{"auths":{"ghcr.io":{"password":["hunter2"]}}}"#,
            "hunter2",
        ] {
            let error = credentials.add(SecretForm::DockerConfigJson, wrong.as_bytes()).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains("aHVudGVyMg"), "{error}");
        }
        let good = r#"{"auths":{"ghcr.io":{"username":"mary","password":"hunter2"}}}"#;
        credentials.add(SecretForm::DockerConfigJson, good.as_bytes()).unwrap();
        let printed = format!("{credentials:?}");
        assert!(!printed.contains("hunter2") && !printed.contains("mary"), "{printed}");
    }
}
