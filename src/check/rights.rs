//! The verbs that we use, as the shipped roles grant them, and whether an account has them.

use futures::StreamExt as _;
use futures::stream;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::finding::{Finding, Point};
use crate::cluster::names;

/// What needs a right. Each has its file below `k8s-resources`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What every installation needs: tenants' objects, Events, the Lease, our own pod.
    Base,
    /// Certificates of our own.
    Certificates,
    /// The gate.
    Gate,
    /// The gate, with pull secrets.
    GatePullSecrets,
    /// Look-ups of images, with pull secrets.
    PullSecrets,
    /// Serving, under an account of its own.
    Serving,
    /// The same, where the models are.
    ServingTarget,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Base,
        Self::Certificates,
        Self::Gate,
        Self::GatePullSecrets,
        Self::PullSecrets,
        Self::Serving,
        Self::ServingTarget,
    ];

    /// The file with its roles, below `k8s-resources`.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Base => "base/cluster-role.yaml",
            Self::Certificates => "base/certificates.yaml",
            Self::Gate => "overlays/gate/cluster-role.yaml",
            Self::GatePullSecrets => "overlays/gate-pull-secrets/cluster-role.yaml",
            Self::PullSecrets => "overlays/pull-secrets/role.yaml",
            Self::Serving => "serving/base/rbac.yaml",
            Self::ServingTarget => "serving/target/rbac.yaml",
        }
    }
}

/// Where it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Everywhere, or for what is in no namespace.
    Cluster,
    /// In the namespace of Kubeflow's shared services.
    Kubeflow,
    /// In the namespace that the account is in.
    Own,
    /// In the namespace of the models.
    Models,
}

/// Verbs for one kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// What needs it.
    pub part: Part,
    /// Where.
    pub place: Place,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Plural of the kind.
    pub resource: &'static str,
    /// One object of it, by its name in the shipped roles; empty for all.
    pub name: &'static str,
    /// What is done.
    pub verbs: &'static [&'static str],
}

const LOOK: &[&str] = &["list", "watch"];
const KEEP: &[&str] = &["list", "watch", "create", "patch", "delete"];
const TELL: &[&str] = &["create", "patch"];
const GET: &[&str] = &["get"];
const CREATE: &[&str] = &["create"];
const SERVE: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
const BUNDLE: &[&str] = &["get", "list", "watch", "patch"];
const AUTHORITY: &[&str] = &["get", "list", "watch", "update"];
const LEASE: &[&str] = &["get", "update"];
const WAKES: &[&str] = &["list", "watch", "patch"];

const fn right(
    part: Part,
    place: Place,
    group: &'static str,
    resource: &'static str,
    name: &'static str,
    verbs: &'static [&'static str],
) -> Right {
    Right { part, place, group, resource, name, verbs }
}

/// All of them. A test compares them with the roles.
pub const RIGHTS: &[Right] = &[
    right(Part::Base, Place::Cluster, "", "namespaces", "", LOOK),
    right(Part::Base, Place::Cluster, "kubeflow.org", "profiles", "", LOOK),
    right(Part::Base, Place::Cluster, "kubeflow.org", "notebooks", "", LOOK),
    right(Part::Base, Place::Cluster, "networking.istio.io", "envoyfilters", "", KEEP),
    right(Part::Base, Place::Cluster, "", "pods", "", &["list"]),
    right(Part::Base, Place::Cluster, "events.k8s.io", "events", "", TELL),
    right(Part::Base, Place::Kubeflow, "security.istio.io", "authorizationpolicies", "", KEEP),
    right(Part::Base, Place::Kubeflow, "rbac.istio.io", "servicerolebindings", "", KEEP),
    right(Part::Base, Place::Own, "coordination.k8s.io", "leases", "", CREATE),
    right(Part::Base, Place::Own, "coordination.k8s.io", "leases", names::LEASE, LEASE),
    right(Part::Base, Place::Own, "", "pods", "", GET),
    right(Part::Certificates, Place::Cluster, WEBHOOKS, "mutatingwebhookconfigurations", names::PROJECT, BUNDLE),
    right(Part::Certificates, Place::Cluster, WEBHOOKS, "validatingwebhookconfigurations", names::PROJECT, BUNDLE),
    right(Part::Certificates, Place::Own, "", "secrets", "", CREATE),
    right(Part::Certificates, Place::Own, "", "secrets", names::CA_SECRET, AUTHORITY),
    right(Part::Gate, Place::Cluster, "trainer.kubeflow.org", "trainingruntimes", "", GET),
    right(Part::Gate, Place::Cluster, "trainer.kubeflow.org", "clustertrainingruntimes", "", GET),
    right(Part::GatePullSecrets, Place::Cluster, "", "secrets", "", GET),
    right(Part::GatePullSecrets, Place::Cluster, "", "serviceaccounts", "", GET),
    right(Part::PullSecrets, Place::Cluster, "", "secrets", "", GET),
    right(Part::Serving, Place::Own, "coordination.k8s.io", "leases", "", CREATE),
    right(Part::Serving, Place::Own, "coordination.k8s.io", "leases", names::SERVING_LEASE, LEASE),
    right(Part::Serving, Place::Own, "coordination.k8s.io", "leases", names::SERVING_WAKES, WAKES),
    right(Part::ServingTarget, Place::Models, "serving.kserve.io", "inferenceservices", "", SERVE),
    right(Part::ServingTarget, Place::Models, "events.k8s.io", "events", "", TELL),
];

const WEBHOOKS: &str = "admissionregistration.k8s.io";

/// Whose rights are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Whoever asks: in our own pod.
    Own,
    /// This ServiceAccount's, by namespace and name.
    Account(String, String),
}

/// What the names in the table are in this installation.
#[derive(Clone, Debug)]
pub struct Names {
    /// Namespace of Kubeflow's shared services.
    pub kubeflow: String,
    /// Our own namespace.
    pub own: String,
    /// Namespace of the models.
    pub models: String,
    /// Secret of our certificate authority.
    pub ca_secret: String,
    /// The webhook configurations.
    pub webhook_configuration: String,
}

impl Names {
    fn attributes(&self, right: &Right, verb: &str) -> ResourceAttributes {
        let namespace = match right.place {
            Place::Cluster => None,
            Place::Kubeflow => Some(&self.kubeflow),
            Place::Own => Some(&self.own),
            Place::Models => Some(&self.models),
        };
        let name = match right.name {
            names::CA_SECRET => &self.ca_secret,
            names::PROJECT if right.group == WEBHOOKS => &self.webhook_configuration,
            name => name,
        };
        ResourceAttributes {
            group: Some(right.group.to_owned()),
            resource: Some(right.resource.to_owned()),
            verb: Some(verb.to_owned()),
            namespace: namespace.cloned(),
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            ..ResourceAttributes::default()
        }
    }
}

/// Requests that are under way at once.
const AT_ONCE: usize = 8;

/// Asks for each verb of these parts.
pub async fn look(client: &Client, whose: &Whose, names: &Names, parts: &[Part]) -> Vec<Finding> {
    let rows = RIGHTS.iter().filter(|right| parts.contains(&right.part));
    let asked = rows.flat_map(|right| right.verbs.iter().map(move |verb| (right, *verb)));
    let asked = asked.map(|(right, verb)| async move {
        (right, verb, is_allowed(client, whose, names.attributes(right, verb)).await)
    });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    judge(whose, &answers)
}

async fn is_allowed(client: &Client, whose: &Whose, attributes: ResourceAttributes) -> kube::Result<bool> {
    let resource_attributes = Some(attributes);
    let status = match whose {
        Whose::Own => {
            let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            Api::all(client.clone()).create(&PostParams::default(), &review).await?.status
        }
        Whose::Account(namespace, name) => {
            let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
            let of_namespace = format!("system:serviceaccounts:{namespace}");
            let spec = SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{namespace}:{name}")),
                groups: Some(groups.into_iter().chain([of_namespace]).collect()),
                resource_attributes,
                ..Default::default()
            };
            let review = SubjectAccessReview { spec, ..Default::default() };
            Api::all(client.clone()).create(&PostParams::default(), &review).await?.status
        }
    };
    Ok(status.is_some_and(|status| status.allowed))
}

fn judge(whose: &Whose, answers: &[(&Right, &str, kube::Result<bool>)]) -> Vec<Finding> {
    let who = match whose {
        Whose::Own => "this account".to_owned(),
        Whose::Account(namespace, name) => format!("ServiceAccount {namespace}/{name}"),
    };
    if let Some(error) = answers.iter().find_map(|(_, _, answer)| answer.as_ref().err()) {
        return vec![Point::Rights.unseen(&format!("what {who} may do"), error)];
    }
    let lacking: Vec<_> = answers.iter().filter(|(_, _, answer)| !matches!(answer, Ok(true))).collect();
    if lacking.is_empty() {
        return vec![Point::Rights.fine(format!("{who} has each of the {} rights that we use", answers.len()))];
    }
    let mend = |part: Part| {
        let folder = part.file().rsplit_once('/').map_or("base", |(folder, _)| folder);
        format!("kubectl apply -k k8s-resources/{folder}, or give them by roles of your own")
    };
    let mut findings = Vec::new();
    for part in Part::ALL {
        let of_part = answers.iter().filter(|(right, ..)| right.part == part).count();
        let lacking: Vec<_> = lacking.iter().filter(|(right, ..)| right.part == part).collect();
        if lacking.len() == of_part && of_part > 1 {
            let message = format!("{who} has none of the {of_part} rights of k8s-resources/{}", part.file());
            findings.push(Point::Rights.wrong(message, mend(part)));
            continue;
        }
        for right in RIGHTS.iter().filter(|right| right.part == part) {
            let verbs: Vec<_> = lacking.iter().filter(|(of, ..)| *of == right).map(|(_, verb, _)| *verb).collect();
            if !verbs.is_empty() {
                let message = format!("{who} may not {} {}", verbs.join(", "), right.object());
                findings.push(Point::Rights.wrong(message, mend(part)));
            }
        }
    }
    findings
}

impl Right {
    /// The kind, or the object of it.
    fn object(&self) -> String {
        let Self { group, resource, name, .. } = self;
        let kind = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
        let of = match self.place {
            Place::Cluster => "",
            Place::Kubeflow => " in the namespace of Kubeflow",
            Place::Own => " in its own namespace",
            Place::Models => " in the namespace of the models",
        };
        if name.is_empty() { format!("{kind}{of}") } else { format!("{kind} {name}{of}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(allowed: impl Fn(&Right, &str) -> bool) -> Vec<String> {
        let rows = RIGHTS.iter().filter(|right| right.part == Part::Base);
        let answers: Vec<_> = rows
            .flat_map(|right| right.verbs.iter().map(move |verb| (right, *verb)))
            .map(|(right, verb)| (right, verb, Ok(allowed(right, verb))))
            .collect();
        let whose = Whose::Account("kubeflow-extension".to_owned(), "tenancy-fixer".to_owned());
        judge(&whose, &answers).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn what_is_lacking_is_told_by_kind_and_verb() {
        assert_eq!(told(|_, _| true).len(), 1);
        let some = told(|right, verb| !(right.resource == "envoyfilters" && ["patch", "delete"].contains(&verb)));
        let who = "ServiceAccount kubeflow-extension/tenancy-fixer";
        assert_eq!(some, [format!("{who} may not patch, delete envoyfilters.networking.istio.io")]);
        let lease = told(|right, verb| !(right.name == names::LEASE && verb == "update"));
        assert_eq!(
            lease,
            [format!("{who} may not update leases.coordination.k8s.io tenancy-fixer in its own namespace")]
        );
        let none = told(|_, _| false);
        assert_eq!(none.len(), 1);
        assert!(none[0].contains("has none of the"), "{none:?}");
    }
}
