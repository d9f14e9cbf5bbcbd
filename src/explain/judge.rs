//! What was done to an object, what the rules as they stand now would do, and which condition failed. Pure: what was read in,
//! an explanation out. The note on the object is shown, and nothing is concluded from it.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::conditions::{Condition, Failed};
use super::facts::{Around, Happened, Subject};
use crate::admission::json::Document;
use crate::admission::{Endpoint, Outcome, Request};
use crate::cli::InCluster;
use crate::cluster::identity::Identity;
use crate::cluster::names;
use crate::cluster::steps::Steps;
use crate::mutate::{self, ImageCommands, Surroundings};
use crate::tenancy::{Mesh, Verdict};

/// Everything there is to say of one object.
#[derive(Debug)]
pub struct Explanation {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// What the note says: a version and steps.
    pub(super) note: Option<(String, Steps)>,
    /// How it stands with the namespace, as one line.
    pub(super) tenant: String,
    /// What the rules say now; nothing of a namespace.
    pub(super) rules: Option<Outcome>,
    pub(super) failed: Vec<Failed>,
    pub(super) events: Vec<Happened>,
}

/// Explains one object.
///
/// # Errors
/// None that objects of an API server can cause.
pub(super) fn explain(subject: &Subject, around: &Around, settings: &InCluster) -> anyhow::Result<Explanation> {
    let text = |pointer: &str| subject.object.pointer(pointer).and_then(Value::as_str);
    let note = subject.object.pointer("/metadata/annotations").and_then(|found| found.get(names::APPLIED));
    let note = note.and_then(Value::as_str).and_then(|note| {
        let steps = Steps::read(note);
        (!steps.is_empty()).then(|| (note.split(": ").next().unwrap_or_default().to_owned(), steps))
    });
    let endpoint = settings.mutation.endpoint(&subject.kind.group, &subject.kind.name);
    let judge = Judge { subject, around, settings, label: label(&subject.object) };
    let mut failed = judge.namespace();
    let mut rules = None;
    if let Some(endpoint) = endpoint {
        let outcome = judge.rules(endpoint)?;
        failed.extend(judge.object(endpoint, &outcome));
        rules = Some(outcome);
    }
    failed.extend(judge.tenant());
    Ok(Explanation {
        kind: subject.kind.name.clone(),
        namespace: subject.namespace().to_owned(),
        name: text("/metadata/name").unwrap_or_default().to_owned(),
        note,
        tenant: judge.standing(),
        rules,
        failed,
        events: around.events.clone(),
    })
}

/// The tenant label of what has metadata.
fn label(object: &Value) -> Option<&str> {
    object.pointer("/metadata/labels").and_then(|labels| labels.get(names::TENANT_LABEL)).and_then(Value::as_str)
}

/// Namespaces that the webhooks never look at, beside ours and Kubeflow's.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

struct Judge<'j> {
    subject: &'j Subject,
    around: &'j Around,
    settings: &'j InCluster,
    label: Option<&'j str>,
}

impl Judge<'_> {
    fn text(&self, pointer: &str) -> &str {
        self.subject.object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn has_label(&self, key: &str) -> bool {
        self.subject.object.pointer("/metadata/labels").is_some_and(|labels| labels.get(key).is_some())
    }

    /// How it stands with the namespace.
    fn standing(&self) -> String {
        match &self.around.tenant.verdict {
            Verdict::Tenant(grant) => {
                let identity = if grant.identity == Identity::Token { "token" } else { "header" };
                let whoever = if grant.owner_only { ", where its owner has made it" } else { "" };
                format!("acts as {} by {identity}{whoever}", grant.owner)
            }
            Verdict::None(reason) => format!("nothing is granted: {reason}"),
            Verdict::Refused { message, .. } => format!("REFUSED: {message}"),
            Verdict::Terminating => "on its way out".to_owned(),
        }
    }

    /// Whether its namespace is one whose objects are sent to us.
    fn namespace(&self) -> Vec<Failed> {
        let name = self.subject.namespace();
        let mutation = &self.settings.mutation;
        let own = &self.settings.certificates.service_namespace;
        let mut failed = Vec::new();
        if NEVER.contains(&name) || *name == *own || *name == *mutation.kubeflow_namespace {
            failed.push(Condition::NamespaceNeverLookedAt.failed(
                format!("namespace {name} is the cluster's, Kubeflow's or ours, and nothing in it is a tenant's"),
                "create it in a tenant's namespace",
            ));
        }
        let Some(namespace) = &self.around.namespace else {
            failed.push(Condition::NamespaceNotOfProfile.failed(
                format!("there is no namespace {name}"),
                "create a Profile of that name; Kubeflow makes the namespace",
            ));
            return failed;
        };
        let (key, value) = names::PROFILE_NAMESPACE_LABEL;
        let labels = namespace.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        if label(key) != Some(value) {
            failed.push(Condition::NamespaceNotOfProfile.failed(
                format!("namespace {name} has no label {key}={value}, by which the webhooks know a Profile's"),
                format!("create a Profile of that name, or kubectl label namespace {name} {key}={value}"),
            ));
        }
        if label(names::TENANT_LABEL) == Some("false") {
            failed.push(Condition::NamespaceOptedOut.failed(
                format!("namespace {name} has the label {}=false", names::TENANT_LABEL),
                format!("kubectl label namespace {name} {}-", names::TENANT_LABEL),
            ));
        }
        failed
    }

    /// What admission would say if the object were created as it is now.
    fn rules(&self, endpoint: Endpoint) -> anyhow::Result<Outcome> {
        let known = &self.around.tenant.known;
        let kind = &self.subject.kind;
        let version = self.text("/apiVersion").rsplit('/').next().unwrap_or_default();
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "explain",
                "kind": {"group": kind.group, "version": version, "kind": kind.name},
                "operation": "CREATE",
                "namespace": self.subject.namespace(),
                "userInfo": {"username": self.user()},
                "object": self.subject.object,
            },
        });
        let review = review.to_string();
        let document: Document<'_> = serde_json::from_str(&review).context("writing the review")?;
        let request = Request::read(&document).map_err(anyhow::Error::msg)?;
        let images = ImageCommands::new();
        let surroundings = Surroundings {
            identity: known.identity,
            owner_only: known.owner_only,
            owner: known.owner.as_deref(),
            creator_of: &|_| self.around.creator.clone(),
            // Whichever it is: what is there already is not compared.
            launcher_image: Some(names::PROJECT),
            images: &images,
        };
        Ok(mutate::decide(endpoint, &request, &surroundings, &self.settings.mutation))
    }

    /// Who is taken to have created it: no object says so. What has the label has been judged; what a controller has made is
    /// judged by what it was made from.
    fn user(&self) -> String {
        let owner = || self.around.tenant.known.owner.clone().unwrap_or_default();
        let is_granted = self.label == Some("true") && self.subject.kind.name != names::NOTEBOOK;
        match self.subject.controller() {
            _ if is_granted => owner(),
            Some(_) => self.settings.mutation.controllers.first().cloned().unwrap_or_default(),
            None => String::new(),
        }
    }

    /// What may be said of the object itself.
    fn object(&self, endpoint: Endpoint, outcome: &Outcome) -> Vec<Failed> {
        let mut failed: Vec<Failed> = self.left_alone(endpoint).into_iter().collect();
        if !failed.is_empty() || self.is_elsewhere() {
            return failed;
        }
        failed.extend(self.opted_out_inside(endpoint));
        let is_withheld = self.label == Some(names::WITHHELD);
        if is_withheld {
            let reason = outcome.reason.split_once("; not as the owner: ").map(|(_, reason)| reason);
            let reason = reason.unwrap_or("whoever has created it was not the owner");
            failed.push(Condition::Withheld.failed(
                format!("label {}={}: {reason}", names::TENANT_LABEL, names::WITHHELD),
                "have the namespace's owner create it; docs/security.md has who counts as the owner",
            ));
        }
        // A Notebook of somebody whom we do not know has its creator already.
        let is_to_be_changed = !outcome.patch.is_empty() && endpoint != Endpoint::NotebookMutate && !is_withheld;
        if is_to_be_changed {
            failed.push(self.why_not_done(endpoint, outcome));
        } else if !is_withheld && !outcome.warnings.is_empty() {
            let message = outcome.warnings.join("; ");
            failed.push(Condition::NotPossible.failed(message, "change what this says, and create it again"));
        }
        if endpoint == Endpoint::PodMutate {
            failed.extend(self.pod());
        }
        failed
    }

    /// Whether something about its namespace has been said by which all else is explained.
    fn is_elsewhere(&self) -> bool {
        !self.namespace().is_empty()
    }

    /// Why it is none of ours, if it is.
    fn left_alone(&self, endpoint: Endpoint) -> Option<Failed> {
        let (kind, name) = (&self.subject.kind.plural, self.subject.name());
        let key = names::TENANT_LABEL;
        if self.label == Some("false") && endpoint != Endpoint::NotebookMutate {
            let mend = format!(
                "take the label off where it comes from, and create the object again (label {key} of {kind} {name})"
            );
            return Some(Condition::OptedOut.failed(format!("it has the label {key}=false"), mend));
        }
        let asks = matches!(self.label, Some("true" | names::WITHHELD));
        match endpoint {
            Endpoint::PodMutate => {
                let annotations = self.subject.object.pointer("/metadata/annotations");
                let is_mirror = annotations.is_some_and(|found| found.get(names::MIRROR_ANNOTATION).is_some());
                if is_mirror {
                    return Some(
                        Condition::MirrorPod
                            .failed("it is the mirror of a static pod, which nobody may change", "none"),
                    );
                }
                if self.subject.object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
                    let message = "it is in the host's network, where it has no sidecar and no tenant's identity";
                    return Some(Condition::HostNetwork.failed(message, "take hostNetwork off its spec"));
                }
                if self.has_label(names::INFERENCE_SERVICE_LABEL) {
                    return Some(Condition::KServePod.failed("KServe looks after its own pods", "none"));
                }
                let is_notebook = [names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL].iter().any(|key| self.has_label(key));
                (!is_notebook && !asks).then(|| {
                    let labels = format!("{}, {} or {key}", names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL);
                    Condition::NotANotebook.failed(
                        format!("it has none of the labels {labels}: neither a notebook's nor a tenant's job's"),
                        format!(
                            "a pod of a job gets {key}=true from its template: tenancy-fixer explain job says why not"
                        ),
                    )
                })
            }
            Endpoint::JobMutate | Endpoint::WorkloadMutate => (!asks && !self.is_of_trial()).then(|| {
                let at = if self.label.is_some() { "a label that means nothing" } else { "no label" };
                Condition::NotOfATrial.failed(
                    format!("no Trial owns it, and it does not ask: {at} {key}"),
                    format!("create it with the label {key}: \"true\""),
                )
            }),
            _ => None,
        }
    }

    fn is_of_trial(&self) -> bool {
        let owners = self.subject.object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.into_iter().flatten().any(|owner| {
            let text = |field| owner.get(field).and_then(Value::as_str).unwrap_or_default();
            text("kind") == names::TRIAL && text("apiVersion").starts_with(&format!("{}/", names::KUBEFLOW_GROUP))
        })
    }

    /// Pod templates that want to be left alone.
    fn opted_out_inside(&self, endpoint: Endpoint) -> Vec<Failed> {
        let has_templates = matches!(endpoint, Endpoint::JobMutate | Endpoint::WorkloadMutate | Endpoint::TrialMutate);
        let mut found = Vec::new();
        if let Some(spec) = self.subject.object.get("spec").filter(|_| has_templates) {
            opted_out(spec, "/spec", &mut found);
        }
        let said = |pointer: String| {
            let message = format!("{pointer} has the label {}=false", names::TENANT_LABEL);
            Condition::OptedOut.failed(message, "take it off there, and create the object again")
        };
        found.into_iter().map(said).collect()
    }

    /// Why something was not done that should have been.
    fn why_not_done(&self, endpoint: Endpoint, outcome: &Outcome) -> Failed {
        let steps = outcome.steps.iter().map(crate::cluster::steps::Step::name).collect::<Vec<_>>().join(",");
        let again = if endpoint == Endpoint::PodMutate {
            "have it created again: restart the notebook, or create the job again"
        } else {
            "delete it, and create it again"
        };
        let lacks = format!("what the rules would do now was not done ({steps})");
        let name = &self.settings.certificates.webhook_configuration;
        let webhooks = match &self.around.webhooks {
            Err(error) => {
                let message = format!("{lacks}; whether the webhooks are there was not seen: {error}");
                return Condition::NotCalled.failed(message, "have somebody look who may, such as a cluster admin");
            }
            Ok(None) => {
                let message = format!("{lacks}: there is no MutatingWebhookConfiguration {name}");
                return Condition::NoWebhooks
                    .failed(message, "kubectl apply -k k8s-resources/base, then create the object again");
            }
            Ok(Some(found)) => found,
        };
        let ours = webhooks.pointer("/webhooks").and_then(Value::as_array).into_iter().flatten().find(|webhook| {
            let calls = |pointer: &str| {
                webhook.pointer(pointer).and_then(Value::as_str).unwrap_or_default().ends_with(endpoint.path())
            };
            calls("/clientConfig/service/path") || calls("/clientConfig/url")
        });
        let conditions: Vec<Value> = endpoint
            .match_conditions()
            .into_iter()
            .map(|condition| json!({"name": condition.name, "expression": condition.expression}))
            .collect();
        let found =
            ours.map(|webhook| webhook.get("matchConditions").and_then(Value::as_array).cloned().unwrap_or_default());
        if found != Some(conditions) {
            let what =
                if ours.is_some() { "has other matchConditions than this version" } else { "has no webhook for it" };
            let message = format!("{lacks}: MutatingWebhookConfiguration {name} {what}");
            return Condition::MatchConditions
                .failed(message, "tenancy-fixer check; kubectl apply -k k8s-resources/base");
        }
        // Texts of one form and one zone.
        let created =
            |object: &Value| object.pointer("/metadata/creationTimestamp").and_then(Value::as_str).map(str::to_owned);
        let (object, webhooks) = (created(&self.subject.object), created(webhooks));
        match (object, webhooks) {
            (None, _) => Condition::NotCalled.failed(format!("{lacks}: it is not created yet"), "kubectl create it"),
            (Some(object), Some(webhooks)) if object < webhooks => Condition::BeforeWebhooks.failed(
                format!("{lacks}: it was created at {object}, before MutatingWebhookConfiguration {name} ({webhooks})"),
                again,
            ),
            _ => Condition::NotCalled.failed(
                format!("{lacks}: nobody answered when it was created, or other rules held, or somebody has changed it since"),
                again,
            ),
        }
    }

    /// What a pod of ours needs besides.
    fn pod(&self) -> Vec<Failed> {
        let mut failed = Vec::new();
        let Verdict::Tenant(grant) = &self.around.tenant.verdict else { return failed };
        let account = self.text("/spec/serviceAccountName");
        let wanted = &self.settings.tenancy.tenant_service_account;
        if account != wanted {
            failed.push(Condition::ServiceAccount.failed(
                format!("it runs under {account:?}; Kubeflow Pipelines lets in {wanted} of its namespace"),
                format!("take serviceAccountName out of its template, or set it to {wanted}"),
            ));
        }
        let containers =
            ["/spec/containers", "/spec/initContainers"].map(|pointer| self.subject.object.pointer(pointer));
        let mut containers = containers.into_iter().flatten().filter_map(Value::as_array).flatten();
        let has_proxy =
            containers.any(|container| container.get("name").and_then(Value::as_str) == Some(names::ISTIO_PROXY));
        if grant.identity == Identity::Header && !has_proxy {
            let mend = match self.around.tenant.mesh {
                Mesh::Sidecars => {
                    "look why Istio has not injected it: its own labels and annotations, and istiod's log".to_owned()
                }
                Mesh::Ambient | Mesh::None => {
                    format!(
                        "kubectl annotate namespace {} {}=token",
                        self.subject.namespace(),
                        names::IDENTITY_ANNOTATION
                    )
                }
            };
            failed.push(
                Condition::NoSidecar
                    .failed("it has no sidecar, so that nothing adds the header that gives it its identity", mend),
            );
        }
        failed
    }

    /// Whether its namespace has what it should.
    fn tenant(&self) -> Vec<Failed> {
        let tenant = &self.around.tenant;
        let mut failed = Vec::new();
        match &tenant.verdict {
            Verdict::Tenant(_) => {}
            Verdict::Refused { message, .. } => {
                let mend = format!("kubectl describe profile {}", tenant.name);
                failed.push(Condition::NothingGranted.failed(message.clone(), mend));
            }
            Verdict::None(reason) => {
                let mend = "its pods get no identity towards Kubeflow Pipelines; mend what this says if they should";
                failed.push(Condition::NothingGranted.failed(format!("namespace {}: {reason}", tenant.name), mend));
            }
            Verdict::Terminating => {
                let message = format!("namespace {} is on its way out", tenant.name);
                failed.push(Condition::NothingGranted.failed(message, "none"));
            }
        }
        let log = format!(
            "kubectl logs -n {} -l app={} says why",
            self.settings.certificates.service_namespace,
            names::PROJECT
        );
        failed.extend(tenant.missing.iter().map(|missing| Condition::TenantLacks.failed(missing.clone(), log.clone())));
        failed
    }
}

/// Pointers to everything that has our label with `false`.
fn opted_out(value: &Value, pointer: &str, found: &mut Vec<String>) {
    if label(value) == Some("false") {
        found.push(pointer.to_owned());
    }
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                opted_out(member, &format!("{pointer}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                opted_out(item, &format!("{pointer}/{index}"), found);
            }
        }
        _ => {}
    }
}
