//! Names of InferenceServices and values of labels, from names that somebody has chosen freely. Pure.

use ring::digest::{SHA256, digest};

use super::Key;

/// Longest name in any case: with KServe's `-predictor` and what Knative and the ReplicaSet put behind it, it stays a label.
const LONGEST: usize = 40;
/// As short as a name may have to be where the namespace's is long.
const SHORTEST: usize = 24;
/// KServe's host is NAME-predictor-NAMESPACE in one label of DNS.
const HOST_LABEL: usize = 63 - "-predictor-".len();
/// Hex digits that tell names apart which look alike once cut or cleaned.
const HASH: usize = 10;
/// Longest value of a label (Kubernetes).
const LONGEST_LABEL: usize = 63;

/// The name of a version's InferenceService: `MODEL-vVERSION` where nothing is lost by that, and otherwise with a hash at the end. One of
/// the first kind ends in `-v` and digits, one of the other kind cannot, and so no two versions have the same.
#[must_use]
pub(super) fn service_name(key: &Key, namespace: &str) -> String {
    let longest = HOST_LABEL.saturating_sub(namespace.len()).clamp(SHORTEST, LONGEST);
    let readable = sanitized(&format!("{}-v{}", key.name, key.version));
    let in_own_workspace = key.workspace.as_deref().is_none_or(|workspace| workspace == namespace);
    let is_number = !key.version.is_empty() && key.version.bytes().all(|byte| byte.is_ascii_digit());
    if in_own_workspace
        && is_number
        && readable == format!("{}-v{}", key.name, key.version)
        && readable.len() <= longest
        && readable.starts_with(|first: char| first.is_ascii_lowercase())
    {
        return readable;
    }
    let workspace = key.workspace.as_deref().unwrap_or_default();
    let hash = hash(&[workspace, &key.name, &key.version]);
    // KServe wants a letter first.
    let readable =
        if readable.starts_with(|first: char| first.is_ascii_lowercase()) { readable } else { format!("m-{readable}") };
    let kept = readable.get(..longest - HASH - 1).unwrap_or(&readable).trim_matches('-');
    format!("{kept}-{hash}")
}

/// As the listener that was here before: lower case, anything else a dash, no two in a row, none at the ends.
fn sanitized(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars().flat_map(char::to_lowercase) {
        if character.is_ascii_lowercase() || character.is_ascii_digit() {
            clean.push(character);
        } else if !clean.ends_with('-') {
            clean.push('-');
        }
    }
    clean.trim_matches('-').to_owned()
}

/// A legal value of a label; with a hash at its end where something was lost. The whole is in an annotation.
#[must_use]
pub(super) fn label_value(text: &str) -> String {
    let is_inner = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let clean: String = text.chars().map(|character| if is_inner(character) { character } else { '-' }).collect();
    let ends = |character: char| !character.is_ascii_alphanumeric();
    let trimmed = clean.trim_matches(ends);
    if trimmed == text && text.len() <= LONGEST_LABEL {
        return clean;
    }
    let kept = trimmed.get(..LONGEST_LABEL - HASH - 1).unwrap_or(trimmed).trim_matches(ends);
    let hash = hash(&[text]);
    if kept.is_empty() { hash } else { format!("{kept}-{hash}") }
}

/// Of parts that are not confused with one another.
pub(super) fn hash(parts: &[&str]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let digest = digest(&SHA256, &bytes);
    let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).take(HASH).collect()
}

/// A name that a namespace can have.
#[must_use]
pub(super) fn is_namespace(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (1..=63).contains(&text.len())
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str, version: &str) -> Key {
        Key { workspace: None, name: name.into(), version: version.into() }
    }

    #[test]
    fn a_plain_name_stays_as_it_was() {
        assert_eq!(service_name(&key("fraud", "3"), "models"), "fraud-v3");
        assert_eq!(service_name(&key("a-v1", "2"), "models"), "a-v1-v2");
    }

    #[test]
    fn names_that_look_alike_are_told_apart() {
        let names: Vec<_> = ["my-model", "my_model", "My-Model", "my--model", "-my-model", "my model", "my-model-"]
            .map(|name| service_name(&key(name, "1"), "models"))
            .into();
        assert_eq!(names[0], "my-model-v1");
        assert!(names[1].starts_with("my-model-v1-"), "{names:?}");
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        let long = "m".repeat(200);
        assert_ne!(service_name(&key(&long, "1"), "models"), service_name(&key(&long, "2"), "models"));
        let in_workspace = |workspace: &str| Key { workspace: Some(workspace.into()), ..key("m", "1") };
        assert_ne!(service_name(&in_workspace("a"), "models"), service_name(&in_workspace("b"), "models"));
        assert_eq!(service_name(&in_workspace("a"), "a"), "m-v1");
    }

    #[test]
    fn values_of_labels_are_told_apart() {
        assert_eq!(label_value("fraud_2.0"), "fraud_2.0");
        assert_eq!(label_value(""), "");
        assert_ne!(label_value("a/b"), label_value("a-b"));
        assert_ne!(label_value("\u{e9}"), label_value("\u{e8}"));
    }

    #[test]
    fn a_namespace_is_a_label_of_dns() {
        for good in ["a", "alice", "team-1", "0"] {
            assert!(is_namespace(good), "{good}");
        }
        for wrong in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "..", "\u{e9}", &"a".repeat(64)] {
            assert!(!is_namespace(wrong), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_name_gives_a_name_that_kserve_takes(model in ".{0,300}", version in "[0-9]{1,9}|.{0,5}", namespace in "[a-z]{1,63}") {
            let name = service_name(&key(&model, &version), &namespace);
            let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            prop_assert!(name.bytes().all(is_inner), "{name}");
            prop_assert!(name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.ends_with('-'), "{name}");
            prop_assert!(name.len() <= LONGEST, "{name}");
            let value = label_value(&model);
            prop_assert!(value.len() <= LONGEST_LABEL);
            prop_assert!(value.is_empty() || value.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()));
            prop_assert!(value.is_empty() || value.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric()));
        }
    }
}
