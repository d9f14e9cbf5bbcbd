//! The service account of a job's pods: `default-editor` in place of those that may do nothing in a tenant's namespace.

use super::Settings;
use super::view::PodSpec;

/// What the two fields of a pod's spec should say, for those that are to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change<'s> {
    pub(super) service_account_name: Option<&'s str>,
    pub(super) service_account: Option<&'s str>,
}

/// Compares what is with what should be. A service account that is not to be replaced was somebody's choice.
pub(super) fn change<'s>(spec: &PodSpec<'_>, settings: &'s Settings) -> Change<'s> {
    // The API server takes the alias where the name is empty (k8s.io/kubernetes, pkg/apis/core/v1/conversion.go).
    let current = spec.service_account_name.or(spec.service_account);
    let replaceable =
        current.is_none_or(|current| settings.replaced_service_accounts.iter().any(|name| name == current));
    if !replaceable {
        return Change::default();
    }
    let wanted = settings.service_account.as_str();
    Change {
        service_account_name: (spec.service_account_name != Some(wanted)).then_some(wanted),
        service_account: spec.service_account.filter(|alias| *alias != wanted).map(|_| wanted),
    }
}
