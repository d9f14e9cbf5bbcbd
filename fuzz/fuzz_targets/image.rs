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
        // What we have understood is what we say, and says the same again.
        let said = reference.to_string();
        assert_eq!(said.parse::<Reference>().map(|again| again.to_string()), Ok(said));
    }
});
