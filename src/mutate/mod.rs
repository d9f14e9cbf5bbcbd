//! What admission makes of an object. Pure: a request and settings in, an [`Outcome`] out; no client, no clock, no state.
//!
//! One file for each kind of object (`pod`, `job`, `trial`, `train_job`, `notebook`, `experiment`), `template` for what they
//! share, and one file or folder for each change (`identity`, `service_account`, `sidecar`, `katib`, `kale`, `lifecycle`, `tracking`).
//! `right` says whether an object may act as the namespace's owner, `update` keeps later changes from saying otherwise, and
//! `applied` notes on an object what was done to it.
//! Everything is idempotent: the API server may call again when another webhook has changed the object.

mod applied;
mod experiment;
mod identity;
mod job;
mod kale;
mod katib;
mod lifecycle;
mod notebook;
mod pod;
mod right;
mod service_account;
mod settings;
mod sidecar;
mod template;
mod tracking;
mod train_job;
mod trial;
mod update;
mod view;

pub use lifecycle::{ImageCommand, ImageCommands, Lifecycle};
pub use settings::{Settings, TrainJobPatches};
pub use tracking::{Auth as TrackingAuth, Settings as TrackingSettings};

use self::right::Right;
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::identity::Identity;
use crate::cluster::names;

/// What is known of the object's surroundings: nothing of it is in the review.
#[derive(Clone, Copy)]
pub struct Surroundings<'s> {
    /// The namespace's own mode of identity, where it has one.
    pub identity: Option<Identity>,
    /// Whether only what its owner has made acts as the owner, where the namespace says so itself.
    pub owner_only: Option<bool>,
    /// Its owner, where one is known beyond doubt.
    pub owner: Option<&'s str>,
    /// Who has made the Notebook of that name in it, where that is known.
    pub creator_of: &'s (dyn Fn(&str) -> Option<String> + Sync),
    /// The image that brings the launcher, where the settings do not name it.
    pub launcher_image: Option<&'s str>,
    /// What images run that an earlier outcome asked for ([`Outcome::wanted`]).
    pub images: &'s ImageCommands,
}

static NO_IMAGES: ImageCommands = ImageCommands::new();

impl Surroundings<'_> {
    /// Of an object that nothing else is known of.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            identity: None,
            owner_only: None,
            owner: None,
            creator_of: &|_| None,
            launcher_image: None,
            images: &NO_IMAGES,
        }
    }

    fn is_owner_only(&self, settings: &Settings) -> bool {
        self.owner_only.unwrap_or(settings.owner_only)
    }
}

/// Decides on one request at one endpoint.
#[must_use]
pub fn decide(
    endpoint: Endpoint,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Outcome {
    if !endpoint.operations().contains(&request.operation) {
        let operations = endpoint.operations().join(" or ");
        return Outcome::unchanged(format!("operation {} is not {operations}", request.operation));
    }
    if settings.endpoint(request.group, request.kind) != Some(endpoint) {
        let (kind, group, path) = (request.kind, request.group, endpoint.path());
        let warning =
            format!("tenancy-fixer: {path} is not for kind {kind:?} of group {group:?}; check the webhook's rules");
        return Outcome::puzzled("the endpoint is not for this kind", warning);
    }
    let Some(object) = request.object else {
        return Outcome::puzzled("the review has no object", "tenancy-fixer: request.object is missing".to_owned());
    };
    let decided = object.expect("an object", object.is_object()).and_then(|object| match endpoint {
        Endpoint::NotebookMutate => notebook::decide(object, request, settings),
        _ if request.operation == "UPDATE" => update::decide(endpoint, object, request, surroundings, settings),
        Endpoint::PodMutate => pod::decide(object, request, surroundings, settings),
        Endpoint::JobMutate | Endpoint::WorkloadMutate => job::decide(object, request, surroundings, settings),
        Endpoint::TrialMutate => trial::decide(object, request, surroundings, settings),
        Endpoint::ExperimentMutate => experiment::decide(object, request, surroundings, settings),
        // No kind goes to these.
        Endpoint::JobValidate | Endpoint::JobValidateWarn => {
            Ok(Outcome::unchanged("not an endpoint that changes objects"))
        }
    });
    let mut outcome = decided.unwrap_or_else(|unexpected| {
        let mut outcome = malformed(&unexpected);
        // What we cannot read somebody else may: a mistake in one place must not let the label pass in another.
        let right = Right::of(object, request, surroundings, settings);
        if !matches!(right, Ok(Right::Granted | Right::Judged)) {
            update::withhold_all(endpoint, object, &mut outcome);
        }
        outcome
    });
    if request.operation == "CREATE" {
        applied::note(object, &mut outcome);
    }
    outcome
}

/// The API server will refuse such an object for its own reasons, or its schema knows better than we do: not ours to judge.
fn malformed(unexpected: &Unexpected) -> Outcome {
    let text = unexpected.to_string();
    let field = text.strip_prefix("request.object.").unwrap_or(&text);
    Outcome::puzzled("the object is malformed", format!("tenancy-fixer left the object as it is: {field}"))
}

/// What the object's own tenant label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// `true`, or `withheld` where we have been: it asks for our changes.
    In,
    /// `false`: it wants to be left alone, which wins over everything.
    Out,
    /// Nothing that we understand.
    None,
}

impl Wish {
    fn of(metadata: &view::Metadata<'_>) -> Self {
        match metadata.label(names::TENANT_LABEL) {
            Some("true" | names::WITHHELD) => Self::In,
            Some("false") => Self::Out,
            _ => Self::None,
        }
    }

    fn opted_out() -> Outcome {
        Outcome::unchanged("opted out by label kubeflow-extension=false")
    }
}

/// A label that is neither `true` nor `false` is a typing error that should not go unseen.
fn warn_of_odd_wish(metadata: &view::Metadata<'_>, outcome: &mut Outcome) {
    if let Some(odd) =
        metadata.label(names::TENANT_LABEL).filter(|value| !matches!(*value, "true" | "false" | names::WITHHELD))
    {
        let label = names::TENANT_LABEL;
        outcome.warnings.push(format!(
            "tenancy-fixer: label {label} has the value {odd:?}; only \"true\" and \"false\" mean something"
        ));
    }
}

/// Whether an object belongs to a Katib Trial of any version.
fn owned_by_trial(object: Node<'_>) -> Result<bool, Unexpected> {
    let Some(owners) = object.object("metadata")?.map_or(Ok(None), |metadata| metadata.list("ownerReferences"))? else {
        return Ok(false);
    };
    for owner in owners.items() {
        let group = owner.string("apiVersion")?.and_then(|version| version.split_once('/')).map(|(group, _)| group);
        if group == Some(names::KUBEFLOW_GROUP) && owner.string("kind")? == Some(names::TRIAL) {
            return Ok(true);
        }
    }
    Ok(false)
}
