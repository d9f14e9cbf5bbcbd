//! What a container's `image` names, read as the distribution project's reference grammar has it
//! (<https://github.com/distribution/reference>), with Docker's defaults.

use std::fmt;
use std::str::FromStr;

use super::Digest;
use crate::ports;

/// Registry of names that have none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry really is.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// Its old name.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Longest name, registry included, in bytes.
const LONGEST_NAME: usize = 255;
/// Longest tag, in bytes.
const LONGEST_TAG: usize = 128;

/// An image's full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    target: Target,
}

/// Which of the images of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Whatever the tag means just now.
    Tag(String),
    /// Ever the same one.
    Digest(Digest),
}

impl Reference {
    /// Host and port of the registry in lower case, `docker.io` where the name has none.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path below the registry, such as `library/python`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest; the digest where the name has both, `latest` where it has neither.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same repository's image of that digest.
    pub(super) fn at(&self, digest: &Digest) -> Self {
        Self { target: Target::Digest(digest.clone()), ..self.clone() }
    }

    /// Host and port that are asked.
    pub(super) fn authority(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { &self.registry }
    }

    /// Registry and repository, which a pull secret is for.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub(super) fn is_of_default_registry(&self) -> bool {
        self.registry == DEFAULT_REGISTRY
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(out, "{}/{}:{tag}", self.registry, self.repository),
            Target::Digest(digest) => write!(out, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // The colon of a port has a path behind it.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(format!("{tag:?} is no tag"));
        }
        if digest.is_none() && tag.is_none() && is_hexadecimal_digest(name) {
            return Err("64 hexadecimal digits are an image's local ID, not a name".to_owned());
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first.to_ascii_lowercase(), path),
            _ => (DEFAULT_REGISTRY.to_owned(), name),
        };
        if !is_authority(&registry) {
            return Err(format!("{registry:?} is no registry: expected HOST or HOST:PORT"));
        }
        let registry = if registry == OLD_DEFAULT_REGISTRY { DEFAULT_REGISTRY.to_owned() } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !repository.split('/').all(is_path_component) {
            return Err(format!("{path:?} is no image's name"));
        }
        if registry.len() + 1 + repository.len() > LONGEST_NAME {
            return Err(format!("an image's name has at most {LONGEST_NAME} characters"));
        }
        let target = match digest {
            Some(digest) => Target::Digest(digest),
            None => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { registry, repository, target })
    }
}

/// Whether the first part of a name is its registry and not the first part of the repository.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `HOST`, `HOST:PORT` or `[IPv6]:PORT`.
pub(super) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_name = |host: &str| {
        host.split('.').all(|label| {
            let within = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(within)
        })
    };
    let is_address = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    (is_name(host) || is_address(host)) && port.is_none_or(|text| ports::port(text).is_some())
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= LONGEST_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Lower-case words with one of `.`, `_`, `__` or dashes between them.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let words = text.split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit());
    let separated = words
        .filter(|between| !between.is_empty())
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'));
    separated && text.bytes().next().is_some_and(alphanumeric) && text.bytes().last().is_some_and(alphanumeric)
}

fn is_hexadecimal_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let hexadecimal = "a".repeat(64);
        let digest = format!("sha256:{hexadecimal}");
        for (text, expected) in [
            ("python", "docker.io/library/python:latest".to_owned()),
            ("python:3.12", "docker.io/library/python:3.12".to_owned()),
            ("kubeflow/katib", "docker.io/kubeflow/katib:latest".to_owned()),
            ("docker.io/python", "docker.io/library/python:latest".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("ghcr.io/kubeflow/katib/file:v0.19.0", "ghcr.io/kubeflow/katib/file:v0.19.0".to_owned()),
            ("Registry.example.org/a", "registry.example.org/a:latest".to_owned()),
            ("registry:5000/a", "registry:5000/a:latest".to_owned()),
            ("[2001:db8::1]:5000/a:b", "[2001:db8::1]:5000/a:b".to_owned()),
            (&format!("a/b@{digest}"), format!("docker.io/a/b@{digest}")),
            (&format!("a/b:tag@{digest}"), format!("docker.io/a/b@{digest}")),
            ("a--b__c.d_e", "docker.io/library/a--b__c.d_e:latest".to_owned()),
        ] {
            assert_eq!(text.parse::<Reference>().map(|reference| reference.to_string()), Ok(expected), "{text}");
        }
        assert_eq!("python".parse::<Reference>().unwrap().authority(), "registry-1.docker.io");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        let hexadecimal = "0123456789abcdef".repeat(4);
        for text in [
            "",
            " ",
            "a b",
            "Python",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-x",
            "a___b",
            "a..b",
            ".a",
            "a@sha256:abc",
            "a@md5:aaaa",
            "https://ghcr.io/a",
            "user:secret@ghcr.io/a",
            "ghcr.io:99999/a",
            "ghcr.io:/a/b",
            "ghcr.io:+443/a",
            "evil.example?x=/a",
            "evil.example#/a",
            "a.b\r\nHost: c/d",
            "../../etc",
            "ghcr.io/../admin",
            "ghcr.io/%2e%2e/admin",
            "-a.example/b",
            &long,
            &hexadecimal,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was read as {:?}", text.parse::<Reference>());
        }
    }
}
