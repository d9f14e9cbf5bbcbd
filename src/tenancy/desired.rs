//! What a tenant should have. Pure: a grant, what the cluster offers and settings in, objects out.

use serde_json::{Value, json};

use super::{Grant, NamespaceFacts, Settings};
use crate::cluster::identity::Identity;
use crate::cluster::names;

/// The kinds that a tenant has objects of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChildKind {
    /// Lets a tenant's requests through, in the namespace of Kubeflow, by principal and header.
    AuthorizationPolicy,
    /// The same for Istio before 1.6, by principal alone: it knows no more.
    ServiceRoleBinding,
    /// Adds the owner's name to a tenant's requests, in its own namespace.
    EnvoyFilter,
    /// Takes that header off all other requests of the namespace, where only its owner acts as the owner.
    RemovingEnvoyFilter,
}

impl ChildKind {
    /// All of them. What forbids comes before what allows, and what lets requests through before what makes them, so that
    /// none is let through that should not be, and none refused in between.
    pub const ALL: [Self; 4] =
        [Self::RemovingEnvoyFilter, Self::AuthorizationPolicy, Self::ServiceRoleBinding, Self::EnvoyFilter];

    /// The same by what is listed and watched together.
    pub(super) const BY_RESOURCE: [&[Self]; 3] =
        [&[Self::EnvoyFilter, Self::RemovingEnvoyFilter], &[Self::AuthorizationPolicy], &[Self::ServiceRoleBinding]];

    /// Its name.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::ServiceRoleBinding => "ServiceRoleBinding",
            Self::EnvoyFilter | Self::RemovingEnvoyFilter => "EnvoyFilter",
        }
    }

    /// Group and version that we write. `v1beta1` of security.istio.io is served by every Istio since 1.5.
    #[must_use]
    pub const fn api(self) -> (&'static str, &'static str) {
        match self {
            Self::AuthorizationPolicy => ("security.istio.io", "v1beta1"),
            Self::ServiceRoleBinding => ("rbac.istio.io", "v1alpha1"),
            Self::EnvoyFilter | Self::RemovingEnvoyFilter => ("networking.istio.io", "v1alpha3"),
        }
    }

    /// Plural, as in the API's path.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::ServiceRoleBinding => "servicerolebindings",
            Self::EnvoyFilter | Self::RemovingEnvoyFilter => "envoyfilters",
        }
    }

    /// Namespace and name of a tenant's object.
    #[must_use]
    pub fn place(self, tenant: &str) -> (String, String) {
        match self {
            Self::EnvoyFilter => (tenant.to_owned(), names::ENVOY_FILTER.to_owned()),
            Self::RemovingEnvoyFilter => (tenant.to_owned(), names::REMOVE_HEADER_FILTER.to_owned()),
            Self::AuthorizationPolicy | Self::ServiceRoleBinding => {
                (names::KUBEFLOW_NAMESPACE.to_owned(), format!("{}{tenant}", names::BINDING_PREFIX))
            }
        }
    }

    /// The tenant that an object of this kind at this place is for; the reverse of [`place`](Self::place).
    #[must_use]
    pub fn tenant<'n>(self, namespace: &'n str, name: &'n str) -> Option<&'n str> {
        match self {
            Self::EnvoyFilter => (name == names::ENVOY_FILTER).then_some(namespace),
            Self::RemovingEnvoyFilter => (name == names::REMOVE_HEADER_FILTER).then_some(namespace),
            Self::AuthorizationPolicy | Self::ServiceRoleBinding => {
                name.strip_prefix(names::BINDING_PREFIX).filter(|_| namespace == names::KUBEFLOW_NAMESPACE)
            }
        }
    }
}

/// Which of the kinds the cluster serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// networking.istio.io
    pub envoy_filter: bool,
    /// security.istio.io
    pub authorization_policy: bool,
    /// rbac.istio.io, which no Istio since 1.6 has
    pub service_role_binding: bool,
}

impl Offered {
    /// Whether objects of a kind can be made.
    #[must_use]
    pub const fn has(self, kind: ChildKind) -> bool {
        match kind {
            ChildKind::AuthorizationPolicy => self.authorization_policy,
            ChildKind::ServiceRoleBinding => self.service_role_binding,
            ChildKind::EnvoyFilter | ChildKind::RemovingEnvoyFilter => self.envoy_filter,
        }
    }
}

/// An object that a tenant should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Its kind.
    pub kind: ChildKind,
    /// All of it, as it is to be applied.
    pub object: Value,
}

/// Every object that a tenant should have, in the order in which they should come.
#[must_use]
pub fn desired(
    tenant: &str,
    namespace: &NamespaceFacts,
    grant: &Grant,
    offered: Offered,
    settings: &Settings,
) -> Vec<Child> {
    if grant.identity != Identity::Header {
        return Vec::new();
    }
    let of_kind = |kind: ChildKind| {
        let spec = match kind {
            ChildKind::AuthorizationPolicy => authorization_policy(tenant, grant, settings),
            ChildKind::ServiceRoleBinding => service_role_binding(tenant, settings),
            ChildKind::EnvoyFilter => envoy_filter(grant, offered, settings),
            ChildKind::RemovingEnvoyFilter => removing_envoy_filter(settings),
        };
        Child { kind, object: object(kind, tenant, namespace, &spec) }
    };
    let is_wanted = |kind: &ChildKind| *kind != ChildKind::RemovingEnvoyFilter || grant.owner_only;
    ChildKind::ALL.into_iter().filter(|kind| offered.has(*kind)).filter(is_wanted).map(of_kind).collect()
}

/// Owned by the Namespace, so that the cluster removes it with it even while we are down; a cluster-scoped owner may own
/// objects of any namespace.
fn object(kind: ChildKind, tenant: &str, owner: &NamespaceFacts, spec: &Value) -> Value {
    let (namespace, name) = kind.place(tenant);
    let (group, version) = kind.api();
    json!({
        "apiVersion": format!("{group}/{version}"),
        "kind": kind.kind(),
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {names::TENANT_LABEL: "true", "app.kubernetes.io/managed-by": names::PROJECT},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": tenant, "uid": owner.uid}],
        },
        "spec": spec,
    })
}

/// Principal and header's value: with the principal alone any tenant could be any user (kubeflow/pipelines#4440).
fn authorization_policy(tenant: &str, grant: &Grant, settings: &Settings) -> Value {
    json!({
        "action": "ALLOW",
        "selector": {"matchLabels": {"app": names::PIPELINES_APP}},
        "rules": [{
            "from": [{"source": {"principals": [principal(tenant, settings)]}}],
            "when": [{"key": format!("request.headers[{}]", settings.userid_header), "values": [user(grant, settings)]}],
        }],
    })
}

fn service_role_binding(tenant: &str, settings: &Settings) -> Value {
    json!({
        "roleRef": {"kind": "ServiceRole", "name": names::PIPELINES_ROLE},
        "subjects": [{"properties": {"source.principal": principal(tenant, settings)}}],
    })
}

fn envoy_filter(grant: &Grant, offered: Offered, settings: &Settings) -> Value {
    // In a header's value Envoy reads a percent sign as the beginning of a command.
    let header = json!({"key": settings.userid_header, "value": user(grant, settings).replace('%', "%%")});
    let header = if offered.service_role_binding {
        // An Envoy of those days knows no append_action, and a later one refuses both at once.
        json!({"append": false, "header": header})
    } else {
        json!({"append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "header": header})
    };
    // Envoys before 1.24 overlook append_action and would append. Removing comes first in all of them (envoy#5052).
    let value = json!({"request_headers_to_remove": [settings.userid_header], "request_headers_to_add": [header]});
    json!({
        "workloadSelector": {"labels": {names::TENANT_LABEL: "true"}},
        "configPatches": patches(&value, settings),
    })
}

/// For every pod of the namespace: without it one that is not the owner's could send the owner's name by itself, since
/// the policy knows it by its service account, which all of them have. Labelled pods have both filters, and removing
/// comes before adding.
fn removing_envoy_filter(settings: &Settings) -> Value {
    json!({"configPatches": patches(&json!({"request_headers_to_remove": [settings.userid_header]}), settings)})
}

/// One for each target.
fn patches(value: &Value, settings: &Settings) -> Vec<Value> {
    let patch = |target: &String| {
        json!({
            "applyTo": "VIRTUAL_HOST",
            "match": {
                "context": "SIDECAR_OUTBOUND",
                "routeConfiguration": {"vhost": {"name": virtual_host(target, settings), "route": {"name": "default"}}},
            },
            "patch": {"operation": "MERGE", "value": value},
        })
    };
    settings.targets.iter().map(patch).collect()
}

/// As Istio names it: `ml-pipeline.kubeflow.svc.cluster.local:8888` for `ml-pipeline.kubeflow:8888`.
fn virtual_host(target: &str, settings: &Settings) -> String {
    let (service, port) = target.split_once(':').unwrap_or((target, "80"));
    format!("{service}.svc.{}:{port}", settings.cluster_domain)
}

/// The trust domain is not the cluster's domain: `cluster.local` stands for whatever Istio's own one is
/// (istio, `pilot/pkg/security/trustdomain/bundle.go`).
fn principal(tenant: &str, settings: &Settings) -> String {
    format!("{}/ns/{tenant}/sa/{}", settings.trust_domain, settings.tenant_service_account)
}

fn user(grant: &Grant, settings: &Settings) -> String {
    format!("{}{}", settings.userid_prefix, grant.owner)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    const ALL: Offered = Offered { envoy_filter: true, authorization_policy: true, service_role_binding: true };

    fn of(flags: &[&str], offered: Offered, owner_only: bool, identity: Identity) -> Vec<Child> {
        let settings = Flags::try_parse_from(["test"].iter().chain(flags)).unwrap().settings;
        let namespace = NamespaceFacts { uid: "uid".into(), ..NamespaceFacts::default() };
        let grant = Grant { owner: "50%@example.com".into(), identity, owner_only };
        desired("alice", &namespace, &grant, offered, &settings)
    }

    fn spec(children: &[Child], kind: ChildKind) -> &Value {
        &children.iter().find(|child| child.kind == kind).unwrap().object["spec"]
    }

    #[test]
    fn every_setting_is_where_it_belongs() {
        let flags = [
            "--userid-header=x-user",
            "--userid-prefix=corp:",
            "--targets=ml-pipeline.kubeflow:8888,other.tools",
            "--cluster-domain=corp.example",
            "--trust-domain=mesh.example",
            "--tenant-service-account=editor",
        ];
        let children = of(&flags, ALL, true, Identity::Header);
        let principal = "mesh.example/ns/alice/sa/editor";
        let policy = spec(&children, ChildKind::AuthorizationPolicy);
        let rule = json!({
            "from": [{"source": {"principals": [principal]}}],
            "when": [{"key": "request.headers[x-user]", "values": ["corp:50%@example.com"]}],
        });
        assert_eq!(policy["rules"], json!([rule]));
        let binding = spec(&children, ChildKind::ServiceRoleBinding);
        assert_eq!(binding["subjects"], json!([{"properties": {"source.principal": principal}}]));
        for (kind, value) in [
            (
                ChildKind::EnvoyFilter,
                json!({
                    "request_headers_to_remove": ["x-user"],
                    "request_headers_to_add": [{"append": false, "header": {"key": "x-user", "value": "corp:50%%@example.com"}}],
                }),
            ),
            (ChildKind::RemovingEnvoyFilter, json!({"request_headers_to_remove": ["x-user"]})),
        ] {
            let patches = spec(&children, kind)["configPatches"].as_array().unwrap();
            let hosts: Vec<_> =
                patches.iter().map(|patch| &patch["match"]["routeConfiguration"]["vhost"]["name"]).collect();
            assert_eq!(hosts, ["ml-pipeline.kubeflow.svc.corp.example:8888", "other.tools.svc.corp.example:80"]);
            assert!(patches.iter().all(|patch| patch["patch"]["value"] == value), "{patches:?}");
        }
    }

    #[test]
    fn what_comes_depends_on_identity_and_on_what_is_served() {
        let kinds = |offered, owner_only, identity| -> Vec<ChildKind> {
            of(&[], offered, owner_only, identity).iter().map(|child| child.kind).collect()
        };
        let (policy, filter) = (ChildKind::AuthorizationPolicy, ChildKind::EnvoyFilter);
        let binding = ChildKind::ServiceRoleBinding;
        assert_eq!(kinds(ALL, false, Identity::Header), [policy, binding, filter], "the server's side first");
        assert_eq!(kinds(ALL, true, Identity::Header), [ChildKind::RemovingEnvoyFilter, policy, binding, filter]);
        assert_eq!(kinds(ALL, true, Identity::Token), []);
        let living = Offered { service_role_binding: false, ..ALL };
        assert_eq!(kinds(living, false, Identity::Header), [policy, filter]);
        let header = &spec(&of(&[], living, false, Identity::Header), filter)["configPatches"][0]["patch"]["value"]
            ["request_headers_to_add"][0]
            .clone();
        assert_eq!(header["append_action"], "OVERWRITE_IF_EXISTS_OR_ADD");
        assert_eq!(kinds(Offered::default(), true, Identity::Header), []);
    }

    #[test]
    fn settings_that_cannot_be_meant_are_named() {
        for flag in [
            "--userid-prefix=*",
            "--userid-prefix= a",
            "--userid-prefix=a\nb",
            "--userid-header=Kubeflow-Userid",
            "--userid-header=",
            "--targets=ml-pipeline",
            "--targets=ml-pipeline.kubeflow:http",
            "--targets=ml-pipeline.kubeflow:0",
            "--targets=ml-pipeline.kubeflow:+8888",
            "--targets=ml-pipeline.kubeflow.svc.cluster.local:8888",
            "--targets=*.kubeflow:8888",
            "--targets=",
        ] {
            let error = Flags::try_parse_from(["test", flag]).unwrap_err().to_string();
            assert!(error.contains(flag.split('=').next().unwrap()), "{flag}: {error}");
        }
    }
}
