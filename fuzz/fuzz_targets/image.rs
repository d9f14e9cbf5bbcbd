//! Whatever a tenant may write about images: names and pull secrets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenancy_fixer::images::{Credentials, Reference, SecretForm};

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, content)) = bytes.split_first() else { return };
    let form = if choice & 1 == 0 { SecretForm::DockerConfigJson } else { SecretForm::Dockercfg };
    let mut credentials = Credentials::of("tenant");
    if let Err(reason) = credentials.add(form, content) {
        assert!(!reason.is_empty());
    }
    let Ok(text) = std::str::from_utf8(content) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        // Whom we would ask is a host, with a port or without: no path, no user, nothing that a URL would read otherwise.
        let registry = reference.registry();
        let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        assert!(!registry.is_empty() && registry.bytes().all(is_of_host), "{text:?}: {registry:?}");
        assert!(!reference.repository().is_empty() && !reference.repository().contains(".."), "{text:?}");
    }
});
