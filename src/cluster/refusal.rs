//! Writes of ours that the API server does not take: what stands behind it, and who can mend that.

use kube::Error;

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// RBAC does not let us.
    Forbidden,
    /// A `ResourceQuota` is used up.
    Quota,
    /// A `ValidatingAdmissionPolicy` or somebody's webhook does not want it.
    Policy,
    /// It is not what the cluster's definition of its kind wants.
    Invalid,
    /// Its namespace is on its way out.
    Terminating,
}

impl Reason {
    /// One word for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Quota => "quota",
            Self::Policy => "policy",
            Self::Invalid => "invalid",
            Self::Terminating => "terminating",
        }
    }

    /// What to do.
    #[must_use]
    pub const fn mend(self) -> &'static str {
        match self {
            Self::Forbidden => "give our service account its roles again: kubectl apply -k k8s-resources/base",
            Self::Quota => "raise that ResourceQuota, or take this kind of object out of it",
            Self::Policy => "have that policy leave out our service account",
            Self::Invalid => {
                "the cluster's definition of this kind is another one than we know; see tenancy-fixer check"
            }
            Self::Terminating => "it ends with its namespace",
        }
    }
}

/// Why the API server refused a write, if it is that; and its own words.
#[must_use]
pub fn refusal(error: &Error) -> Option<(Reason, &str)> {
    let Error::Api(status) = error else { return None };
    let says = |part: &str| status.message.contains(part);
    let reason = match status.code {
        403 if says("exceeded quota") => Reason::Quota,
        403 if says("because it is being terminated") => Reason::Terminating,
        // A policy may answer with any code (ValidatingAdmissionPolicy, `validations.reason`), and so may a webhook.
        400..=499 if says("denied the request") || says("denied request") => Reason::Policy,
        403 => Reason::Forbidden,
        422 => Reason::Invalid,
        _ => return None,
    };
    Some((reason, &status.message))
}

/// What is said of a write that failed: for people, with the mend where there is one.
#[must_use]
pub fn told(doing: &str, error: &Error) -> (Option<Reason>, String) {
    match refusal(error) {
        Some((reason, message)) => (Some(reason), format!("{doing}: {message}; {}", reason.mend())),
        None => (None, format!("{doing}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn refusals_are_told_apart_by_what_the_api_server_says() {
        for (code, message, expected) in [
            (403, "envoyfilters is forbidden: User \"a\" cannot patch resource", Some(Reason::Forbidden)),
            (403, "\"add-header\" is forbidden: exceeded quota: q, requested: count/x=1", Some(Reason::Quota)),
            (
                403,
                "unable to create new content in namespace a because it is being terminated",
                Some(Reason::Terminating),
            ),
            (422, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", Some(Reason::Policy)),
            (403, "admission webhook \"w\" denied the request: no", Some(Reason::Policy)),
            (422, "EnvoyFilter \"a\" is invalid: spec.x: Required value", Some(Reason::Invalid)),
            (409, "Operation cannot be fulfilled: the object has been modified", None),
            (500, "oops", None),
        ] {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            let error = Error::Api(Box::new(status));
            assert_eq!(refusal(&error).map(|(reason, _)| reason), expected, "{message}");
            let (reason, text) = told("writing", &error);
            assert_eq!(reason, expected);
            assert!(text.starts_with("writing: ") && text.contains(message), "{text}");
            assert_eq!(expected.is_none_or(|reason| text.ends_with(reason.mend())), true, "{text}");
        }
    }
}
