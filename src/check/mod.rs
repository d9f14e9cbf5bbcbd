//! `tenancy-fixer check`: one look at a cluster, and what is to be done about it. Nothing is written but questions.
//!
//! `finding` is what comes out, and how it is told; pure. One file for each group: `cluster` (version, kinds), `rights` (the table of
//! the verbs that we use), `webhooks` (and our Deployment), `others` (Istio, Katib, KServe), `tracking` (MLflow), `tenants` (and
//! certificates). What may not be looked at is a finding like others.

mod cluster;
mod finding;
mod others;
pub mod rights;
mod tenants;
mod tracking;
mod webhooks;

use anyhow::Context as _;
use kube::Client;

pub use finding::{Finding, Point, Report, State};

use self::rights::{Names, Part, Whose};
use crate::cli::{Capability, Serve};
use crate::cluster::identity::Identity;
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;
use crate::gate::Mode;
use crate::{certs, tenancy};

/// Whose rights are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The accounts of our manifests.
    Shipped,
    /// This one, in our namespace.
    Named(String),
    /// Whoever asks, in our own pod.
    Asking,
}

/// Looks at everything.
///
/// # Errors
/// No API server that answers, or one that does not know us: nothing was seen.
pub async fn look(client: &Client, settings: &Serve, account: &Account) -> anyhow::Result<Report> {
    let (minor, version) = cluster::minor(client).await.context("asking the API server for its version")?;
    let in_cluster = &settings.in_cluster;
    let workloads: Vec<WorkloadKind> = WorkloadKind::all(&in_cluster.mutation.workloads).cloned().collect();
    let tells_tenants = settings.has(Capability::Tenancy);
    let header = tells_tenants && in_cluster.mutation.identity == Identity::Header;
    let wants = cluster::Wants { header, serving: settings.has(Capability::Serving), workloads: &workloads };
    let (served, kinds) = cluster::kinds(client, wants).await;

    let mut findings = vec![cluster::version(minor, &version)];
    findings.extend(kinds);
    findings.extend(rights_of(client, settings, account).await);
    let expected = webhooks::Expected {
        name: &in_cluster.certificates.webhook_configuration,
        service: (&in_cluster.certificates.service, &in_cluster.certificates.service_namespace),
        kubeflow: &in_cluster.mutation.kubeflow_namespace,
        workloads: &workloads,
        may_fail_closed: in_cluster.mutation.owner_only,
        gate: settings.has(Capability::Gate) && settings.gate.gate != Mode::Off,
    };
    findings.extend(webhooks::look(client, &expected).await);
    findings.extend(tenants::certificates(certs::survey(client, &in_cluster.certificates).await));
    let (istio_minor, istio) = others::istio(client, served.has("networking.istio.io", "envoyfilters")).await;
    findings.push(istio);
    findings.push(cluster::native_sidecars(minor, in_cluster.mutation.native_sidecars, istio_minor));
    let katib = served.has(names::KUBEFLOW_GROUP, "trials");
    findings.extend(others::katib(client, katib, &in_cluster.mutation.kubeflow_namespace).await);
    findings.push(others::kserve(client, served.has("serving.kserve.io", "inferenceservices")).await);
    let of_tenants = in_cluster.mutation.tracking.tenant_tracking.as_deref();
    findings.extend(tracking::look(client, &settings.mlflow, of_tenants).await);
    if tells_tenants {
        let defaults =
            tenancy::Defaults { identity: in_cluster.mutation.identity, owner_only: in_cluster.mutation.owner_only };
        findings.extend(tenants::tenants(tenancy::survey(client, &in_cluster.tenancy, defaults).await));
    }
    Ok(Report::of(findings))
}

/// The rights of what these settings switch on.
async fn rights_of(client: &Client, settings: &Serve, account: &Account) -> Vec<Finding> {
    let in_cluster = &settings.in_cluster;
    let own = &in_cluster.certificates.service_namespace;
    let names = Names {
        kubeflow: in_cluster.mutation.kubeflow_namespace.clone(),
        own: own.clone(),
        models: settings.serving.serving_namespace.clone(),
        ca_secret: in_cluster.certificates.ca_secret.clone(),
        webhook_configuration: in_cluster.certificates.webhook_configuration.clone(),
    };
    let gates = settings.has(Capability::Gate) && settings.gate.gate != Mode::Off;
    let switched_on = [
        (settings.has(Capability::Tenancy), Part::Base),
        (settings.tls_cert.is_none() && settings.has(Capability::Admission), Part::Certificates),
        (gates, Part::Gate),
        (gates && settings.gate.gate_pull_secrets, Part::GatePullSecrets),
        (in_cluster.images.image_lookups && in_cluster.images.image_pull_secrets, Part::PullSecrets),
    ];
    let parts: Vec<_> = switched_on.into_iter().filter(|(is_on, _)| *is_on).map(|(_, part)| part).collect();
    let whose = match account {
        Account::Asking => Whose::Own,
        Account::Named(name) => Whose::Account(own.clone(), name.clone()),
        Account::Shipped => Whose::Account(own.clone(), names::PROJECT.to_owned()),
    };
    let mut findings = rights::look(client, &whose, &names, &parts).await;
    // Its account is another one, in the namespace of MLflow.
    if settings.has(Capability::Serving) && *account == Account::Shipped {
        let (namespace, name) = names::SERVING_ACCOUNT;
        let names = Names { own: namespace.to_owned(), ..names };
        let whose = Whose::Account(namespace.to_owned(), name.to_owned());
        findings.extend(rights::look(client, &whose, &names, &[Part::Serving, Part::ServingTarget]).await);
    }
    findings
}
