//! Who may act as a namespace's owner, where only the owner may: the chain of creation, as far as it can be believed.
//!
//! A review says who creates an object, and nobody can forge that. A person is the owner or is not. A controller makes
//! objects of what somebody else has written, and names it in the object's controller reference: that was judged when it
//! was written, if we are called for its kind, and has the label only then.

use super::view::Metadata;
use super::{Settings, Surroundings};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::names;
use crate::cluster::steps::Step;

/// Whether an object's pods may act as the namespace's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// They may.
    Granted,
    /// As it says itself: it is a copy of what was judged before.
    Judged,
    /// They may not.
    Withheld(Reason),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    OwnerUnknown,
    SomebodyElse,
    UnknownNotebook,
    SomebodyElsesNotebook,
    SomebodyElsesExperiment,
    Unjudged,
}

impl Right {
    /// Of an object that is being created.
    pub(super) fn of(
        object: Node<'_>,
        request: &Request<'_>,
        surroundings: &Surroundings<'_>,
        settings: &Settings,
    ) -> Result<Self, Unexpected> {
        let by_user = Self::of_user(request, surroundings, settings);
        if by_user != Self::Withheld(Reason::SomebodyElse) || !contains(&settings.controllers, request.user) {
            return Ok(by_user);
        }
        let Some((group, kind, name)) = controller(object)? else { return Ok(Self::Withheld(Reason::Unjudged)) };
        if (group, kind) == ("apps", "StatefulSet") {
            // The notebook controller gives it the Notebook's name.
            return Ok(match (surroundings.creator_of)(name) {
                Some(creator) if Some(creator.as_str()) == surroundings.owner => Self::Granted,
                Some(_) => Self::Withheld(Reason::SomebodyElsesNotebook),
                None => Self::Withheld(Reason::UnknownNotebook),
            });
        }
        Ok(match settings.endpoint(group, kind) {
            Some(Endpoint::JobMutate | Endpoint::TrialMutate | Endpoint::WorkloadMutate) => Self::Judged,
            // Its Trials have its labels, and their own say nothing else about what they run.
            Some(Endpoint::ExperimentMutate) if is_granted(&object) => Self::Granted,
            Some(Endpoint::ExperimentMutate) => Self::Withheld(Reason::SomebodyElsesExperiment),
            _ => Self::Withheld(Reason::Unjudged),
        })
    }

    /// By the review's user alone.
    pub(super) fn of_user(request: &Request<'_>, surroundings: &Surroundings<'_>, settings: &Settings) -> Self {
        if !surroundings.is_owner_only(settings) {
            return Self::Granted;
        }
        match surroundings.owner {
            None => Self::Withheld(Reason::OwnerUnknown),
            Some(owner) if owner == request.user || contains(&settings.owner_only_trusts, request.user) => {
                Self::Granted
            }
            Some(_) => Self::Withheld(Reason::SomebodyElse),
        }
    }

    /// What the tenant label of something of ours is to be.
    pub(super) fn label(self, metadata: &Metadata<'_>) -> &'static str {
        match self {
            Self::Granted => "true",
            Self::Judged if metadata.label(names::TENANT_LABEL) == Some("true") => "true",
            Self::Judged | Self::Withheld(_) => names::WITHHELD,
        }
    }

    /// The step of setting that label.
    pub(super) fn step(self, metadata: &Metadata<'_>) -> Step {
        if self.label(metadata) == "true" { Step::Label } else { Step::Withheld }
    }

    /// Tells the log, and whoever creates the object.
    pub(super) fn tell(self, outcome: &mut Outcome) {
        let Self::Withheld(reason) = self else { return };
        let (reason, label) = (reason.text(), names::TENANT_LABEL);
        outcome.reason = format!("{}; not as the owner: {reason}", outcome.reason).into();
        outcome.warnings.push(format!(
            "tenancy-fixer: label {label}={}, so that it does not act as the namespace's owner (owner-only): {reason}",
            names::WITHHELD
        ));
    }
}

impl Reason {
    const fn text(self) -> &'static str {
        match self {
            Self::OwnerUnknown => "the owner is not known (yet); the Profile's Events say why",
            Self::SomebodyElse => "who creates it is not the owner",
            Self::UnknownNotebook => {
                "no Notebook of its StatefulSet's name is known whose creator is (annotation kubeflow-extension/creator)"
            }
            Self::SomebodyElsesNotebook => {
                "the owner has not made its Notebook (annotation kubeflow-extension/creator)"
            }
            Self::SomebodyElsesExperiment => "the owner has not made its Experiment (label kubeflow-extension)",
            Self::Unjudged => "what it was made from may be anybody's; see the setting owner-only-trusts",
        }
    }
}

/// Whether a pod or a template has the label that makes it the owner.
pub(super) fn is_granted(object: &Node<'_>) -> bool {
    object.at(&["metadata", "labels", names::TENANT_LABEL]).and_then(Node::text) == Some("true")
}

/// Group, kind and name of what controls an object.
fn controller(object: Node<'_>) -> Result<Option<(&str, &str, &str)>, Unexpected> {
    let Some(owners) = object.object("metadata")?.map_or(Ok(None), |metadata| metadata.list("ownerReferences"))? else {
        return Ok(None);
    };
    for owner in owners.items() {
        if owner.boolean("controller")? {
            let version = owner.string("apiVersion")?.unwrap_or_default();
            let group = version.split_once('/').map_or("", |(group, _)| group);
            let (kind, name) = (owner.string("kind")?, owner.string("name")?);
            return Ok(Some((group, kind.unwrap_or_default(), name.unwrap_or_default())));
        }
    }
    Ok(None)
}

fn contains(users: &[String], user: &str) -> bool {
    users.iter().any(|known| known == user)
}
