//! Whose namespace it is. Pure: facts of a Namespace and of the Profile of its name in, a verdict out.
//!
//! The owner's name becomes a header's value and a policy's condition, so that a namespace is nobody's in doubt: what is
//! granted to the wrong one lets a user act as another.

use crate::cluster::identity::Identity;
use crate::cluster::names;

/// What we need to know of a Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its uid, which objects that belong to it carry.
    pub uid: String,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Its annotation `owner`.
    pub owner: Option<String>,
    /// Name and uid of the Profile that controls it, where one does.
    pub controller: Option<(String, String)>,
    /// Whether it is opted out by label.
    pub opted_out: bool,
    /// Its annotation [`names::IDENTITY_ANNOTATION`].
    pub identity: Option<String>,
    /// Its annotation [`names::OWNER_ONLY_ANNOTATION`].
    pub owner_only: Option<String>,
    /// Whether admission is asked about what is made in it: it has the label of a profile's namespace.
    pub reviewed: bool,
    /// How its pods are in the mesh.
    pub mesh: Mesh,
}

impl NamespaceFacts {
    /// What it says itself of whether only its owner acts as the owner; nothing is guessed.
    ///
    /// # Errors
    /// Anything but `true` and `false`.
    pub fn owner_only(&self) -> Result<Option<bool>, String> {
        match self.owner_only.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(format!("{other:?} is none of true, false")),
        }
    }
}

/// What holds for namespaces that do not say otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// How their pods prove who they are.
    pub identity: Identity,
    /// Whether only what their owner has made acts as the owner.
    pub owner_only: bool,
}

/// How Istio treats a namespace's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mesh {
    /// Not at all.
    #[default]
    None,
    /// Each pod has a proxy.
    Sidecars,
    /// The node has one; in ambient mode waypoints work for the destination only, and nothing adds a header at the source.
    Ambient,
}

/// What we need to know of a Profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileFacts {
    /// Its uid.
    pub uid: String,
    /// `spec.owner.kind`.
    pub owner_kind: String,
    /// `spec.owner.name`.
    pub owner_name: String,
}

/// What a namespace is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The user that its pods act as.
    pub owner: String,
    /// Never [`Identity::Auto`].
    pub identity: Identity,
    /// Whether that is for what the owner has made, and for nothing else.
    pub owner_only: bool,
}

/// Whose a namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A tenant's.
    Tenant(Grant),
    /// Nobody's that we know of, or somebody's who wants to be left alone: nothing is granted and nothing wrong.
    None(&'static str),
    /// It should be a tenant's, but something is wrong: nothing is granted, and an admin has to know.
    Refused {
        /// One word for the Event, in `CamelCase`.
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// It is on its way out, with all that is in it.
    Terminating,
}

/// Judges a namespace by its own facts and by the Profile of its name.
#[must_use]
pub fn verdict(
    name: &str,
    namespace: Option<&NamespaceFacts>,
    profile: Option<&ProfileFacts>,
    defaults: Defaults,
) -> Verdict {
    let Some(namespace) = namespace else { return Verdict::None("there is no such namespace") };
    owner(name, namespace, profile).map_or_else(|verdict| verdict, |owner| granted(namespace, owner, defaults))
}

/// Whose a namespace is, or the verdict that it is nobody's.
pub(super) fn owner<'p>(
    name: &str,
    namespace: &NamespaceFacts,
    profile: Option<&'p ProfileFacts>,
) -> Result<&'p str, Verdict> {
    if namespace.terminating {
        return Err(Verdict::Terminating);
    }
    let Some(profile) = profile else { return Err(Verdict::None("there is no Profile of that name")) };
    if namespace.opted_out {
        return Err(Verdict::None("opted out by label kubeflow-extension=false"));
    }
    let refused = |reason, message| Err(Verdict::Refused { reason, message });
    if let Some((controller, uid)) = &namespace.controller
        && (controller != name || *uid != profile.uid)
    {
        let message =
            format!("the namespace is controlled by another Profile ({controller}, uid {uid}); delete one of the two");
        return refused("NamespaceOfAnotherProfile", message);
    }
    if profile.owner_kind != "User" {
        let kind = &profile.owner_kind;
        return refused(
            "OwnerIsNoUser",
            format!("spec.owner.kind is {kind:?}; only a User can be named to Kubeflow Pipelines"),
        );
    }
    if namespace.owner.as_deref() != Some(profile.owner_name.as_str()) {
        let (annotation, spec) = (namespace.owner.as_deref().unwrap_or_default(), &profile.owner_name);
        let message = format!(
            "the namespace's annotation {} is {annotation:?}, but spec.owner.name is {spec:?}; make them agree",
            names::OWNER_ANNOTATION
        );
        return refused("OwnersDisagree", message);
    }
    if let Some(problem) = unfit(&profile.owner_name) {
        return refused("OwnerNameUnfit", format!("spec.owner.name {problem}; choose another name for this user"));
    }
    Ok(&profile.owner_name)
}

fn granted(namespace: &NamespaceFacts, owner: &str, defaults: Defaults) -> Verdict {
    let refused = |reason, message| Verdict::Refused { reason, message };
    let identity = match identity(namespace, defaults.identity) {
        Ok(identity) => identity,
        Err(problem) => {
            return refused("IdentityUnknown", format!("annotation {}: {problem}", names::IDENTITY_ANNOTATION));
        }
    };
    let owner_only = match namespace.owner_only() {
        Ok(owner_only) => owner_only.unwrap_or(defaults.owner_only),
        Err(problem) => {
            return refused("OwnerOnlyUnknown", format!("annotation {}: {problem}", names::OWNER_ONLY_ANNOTATION));
        }
    };
    if owner_only && identity == Identity::Header && !namespace.reviewed {
        let (label, value) = names::PROFILE_NAMESPACE_LABEL;
        let message = format!(
            "it is for its owner only, but nobody judges its pods: the webhooks go by the namespace's label {label}={value}; add it"
        );
        return refused("OwnerOnlyNotReviewed", message);
    }
    Verdict::Tenant(Grant { owner: owner.to_owned(), identity, owner_only })
}

/// What keeps a name from standing in a header and in a policy as itself.
fn unfit(owner: &str) -> Option<&'static str> {
    if owner.is_empty() {
        Some("is empty")
    } else if owner.len() > LONGEST_OWNER {
        Some("is longer than 512 bytes")
    } else if owner.contains('*') {
        // In an AuthorizationPolicy a star at either end matches anything (Istio, pilot/pkg/security/authz/matcher).
        Some("contains a star, which Istio reads as a pattern")
    } else if owner.trim() != owner {
        // Proxies take white space off the ends of a header's value (RFC 9110, section 5.5).
        Some("begins or ends with white space")
    } else if owner.chars().any(char::is_control) {
        // Envoy refuses the whole configuration for some of them and every request for others.
        Some("contains control characters")
    } else if owner.chars().any(is_invisible) {
        Some("contains characters that cannot be seen, by which it looks like another one")
    } else {
        None
    }
}

/// White space other than the common one, characters that join, direct or hide others (Unicode's category Cf), variation selectors,
/// and Hangul's fillers.
fn is_invisible(character: char) -> bool {
    let formats = ['\u{ad}', '\u{61c}', '\u{115f}', '\u{1160}', '\u{180e}', '\u{3164}', '\u{feff}', '\u{ffa0}'];
    let ranges = [
        '\u{200b}'..='\u{200f}',
        '\u{202a}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{fe00}'..='\u{fe0f}',
        '\u{fff9}'..='\u{fffb}',
        '\u{e0000}'..='\u{e01ef}',
    ];
    (character.is_whitespace() && character != ' ')
        || formats.contains(&character)
        || ranges.iter().any(|range| range.contains(&character))
}

/// Well below what proxies accept as one header; RFC 5321 allows 254 for a mail address.
pub(super) const LONGEST_OWNER: usize = 512;

fn identity(namespace: &NamespaceFacts, default: Identity) -> Result<Identity, String> {
    Ok(match namespace.identity.as_deref().map_or(Ok(default), str::parse)? {
        Identity::Auto if namespace.mesh == Mesh::Sidecars => Identity::Header,
        Identity::Auto => Identity::Token,
        chosen => chosen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> NamespaceFacts {
        NamespaceFacts {
            uid: "namespace".into(),
            owner: Some("alice@example.com".into()),
            controller: Some(("alice".into(), "profile".into())),
            reviewed: true,
            mesh: Mesh::Sidecars,
            ..NamespaceFacts::default()
        }
    }

    fn profile() -> ProfileFacts {
        ProfileFacts { uid: "profile".into(), owner_kind: "User".into(), owner_name: "alice@example.com".into() }
    }

    fn judged(namespace: &NamespaceFacts, profile: &ProfileFacts) -> Verdict {
        verdict("alice", Some(namespace), Some(profile), DEFAULTS)
    }

    const DEFAULTS: Defaults = Defaults { identity: Identity::Header, owner_only: false };

    fn granted(identity: Identity) -> Verdict {
        Verdict::Tenant(Grant { owner: "alice@example.com".into(), identity, owner_only: false })
    }

    fn refusal(verdict: &Verdict) -> &'static str {
        let Verdict::Refused { reason, .. } = verdict else { panic!("not refused: {verdict:?}") };
        reason
    }

    #[test]
    fn a_namespace_is_its_profiles_owners() {
        assert_eq!(judged(&namespace(), &profile()), granted(Identity::Header));
        let older_than_owner_references = NamespaceFacts { controller: None, ..namespace() };
        assert_eq!(judged(&older_than_owner_references, &profile()), granted(Identity::Header));
    }

    #[test]
    fn a_namespace_without_its_counterpart_is_nobodys() {
        assert!(matches!(verdict("alice", None, Some(&profile()), DEFAULTS), Verdict::None(_)));
        assert!(matches!(verdict("alice", Some(&namespace()), None, DEFAULTS), Verdict::None(_)));
        let opted_out = NamespaceFacts { opted_out: true, ..namespace() };
        assert!(matches!(judged(&opted_out, &profile()), Verdict::None(_)));
        let terminating = NamespaceFacts { terminating: true, ..namespace() };
        assert_eq!(judged(&terminating, &profile()), Verdict::Terminating);
    }

    #[test]
    fn nothing_is_granted_in_doubt() {
        let stolen = NamespaceFacts { controller: Some(("alice".into(), "an older profile".into())), ..namespace() };
        assert_eq!(refusal(&judged(&stolen, &profile())), "NamespaceOfAnotherProfile");
        let others = NamespaceFacts { controller: Some(("bob".into(), "profile".into())), ..namespace() };
        assert_eq!(refusal(&judged(&others, &profile())), "NamespaceOfAnotherProfile");
        let disagreeing = NamespaceFacts { owner: Some("bob@example.com".into()), ..namespace() };
        assert_eq!(refusal(&judged(&disagreeing, &profile())), "OwnersDisagree");
        let silent = NamespaceFacts { owner: None, ..namespace() };
        assert_eq!(refusal(&judged(&silent, &profile())), "OwnersDisagree");
        for kind in ["Group", "ServiceAccount", "", "user"] {
            let profile = ProfileFacts { owner_kind: kind.into(), ..profile() };
            assert_eq!(refusal(&judged(&namespace(), &profile)), "OwnerIsNoUser");
        }
    }

    #[test]
    fn an_owner_whose_name_means_something_to_istio_or_envoy_is_refused() {
        let long = "a".repeat(LONGEST_OWNER + 1);
        for name in [
            "",
            "*",
            "*@example.com",
            "alice*",
            "a*b",
            " alice",
            "alice ",
            "a\nb",
            "a\r",
            "a\0b",
            "a\tb",
            "\u{7f}",
            "\u{85}",
            "a\u{a0}b",
            "a\u{2028}b",
            "\u{200b}alice",
            "alice\u{2060}",
            "a\u{ad}b",
            "a\u{202e}b",
            "a\u{fe0f}b",
            "a\u{3164}b",
            "a\u{e0001}b",
            &long,
        ] {
            let namespace = NamespaceFacts { owner: Some(name.into()), ..namespace() };
            let profile = ProfileFacts { owner_name: name.into(), ..profile() };
            assert_eq!(refusal(&judged(&namespace, &profile)), "OwnerNameUnfit", "{name:?}");
        }
        for name in ["50%@example.com", "O'Neill \"Al\"", "zoë", "山田 太郎", "a:b/c\\d"] {
            let namespace = NamespaceFacts { owner: Some(name.into()), ..namespace() };
            let profile = ProfileFacts { owner_name: name.into(), ..profile() };
            assert!(matches!(judged(&namespace, &profile), Verdict::Tenant(_)), "{name:?}");
        }
    }

    #[test]
    fn the_identity_is_the_namespaces_own_or_the_installations() {
        let with = |identity: &str| NamespaceFacts { identity: Some(identity.into()), ..namespace() };
        assert_eq!(judged(&with("token"), &profile()), granted(Identity::Token));
        assert_eq!(judged(&with("auto"), &profile()), granted(Identity::Header));
        let ambient = NamespaceFacts { mesh: Mesh::Ambient, ..with("auto") };
        assert_eq!(judged(&ambient, &profile()), granted(Identity::Token));
        let without_sidecars = NamespaceFacts { mesh: Mesh::None, ..with("auto") };
        assert_eq!(judged(&without_sidecars, &profile()), granted(Identity::Token));
        assert_eq!(refusal(&judged(&with("Token"), &profile())), "IdentityUnknown");
    }

    #[test]
    fn a_namespace_is_for_its_owner_only_where_that_can_be_judged() {
        let says = |text: &str| NamespaceFacts { owner_only: Some(text.into()), ..namespace() };
        let owner_only = |namespace: &NamespaceFacts, default: bool| {
            let defaults = Defaults { owner_only: default, ..DEFAULTS };
            match verdict("alice", Some(namespace), Some(&profile()), defaults) {
                Verdict::Tenant(grant) => grant.owner_only,
                other => panic!("{other:?}"),
            }
        };
        assert!(owner_only(&says("true"), false));
        assert!(!owner_only(&says("false"), true));
        assert!(owner_only(&namespace(), true));
        for typo in ["True", "yes", ""] {
            assert_eq!(refusal(&judged(&says(typo), &profile())), "OwnerOnlyUnknown");
        }
        let not_reviewed = NamespaceFacts { reviewed: false, ..says("true") };
        assert_eq!(refusal(&judged(&not_reviewed, &profile())), "OwnerOnlyNotReviewed");
        let by_token = NamespaceFacts { identity: Some("token".into()), ..not_reviewed };
        assert!(matches!(judged(&by_token, &profile()), Verdict::Tenant(_)), "no label is of any use there");
    }
}
