//! What the capabilities say of themselves: certificates, and tenants with what each lacks.

use clap::ValueEnum as _;

use super::finding::{Finding, Point};
use crate::certs::{self, Seen};
use crate::cluster::identity::Identity;
use crate::cluster::names;
use crate::tenancy::{Mesh, Tenant, Verdict};

/// Certificates and trust.
pub(super) fn certificates(survey: kube::Result<certs::Survey>) -> Vec<Finding> {
    let survey = match survey {
        Ok(survey) => survey,
        Err(error) => return vec![Point::Certificate.unseen("the webhook configurations", &error)],
    };
    let finding = |line: certs::Line| {
        let mend = || line.mend.clone().unwrap_or_default();
        match line.seen {
            Seen::Fine => Point::Certificate.fine(line.text),
            Seen::Wrong => Point::Certificate.wrong(line.text.clone(), mend()),
            Seen::Not(error) => Point::Certificate.unseen(&line.text, &error),
        }
    };
    survey.into_lines().map(finding).collect()
}

/// Every tenant.
pub(super) fn tenants(survey: kube::Result<Vec<Tenant>>) -> Vec<Finding> {
    let tenants = match survey {
        Ok(tenants) => tenants,
        Err(error) => return vec![Point::Tenant.unseen("namespaces, profiles and what tenants have", &error)],
    };
    if tenants.is_empty() {
        return vec![Point::Tenant.note("there are no tenants: no Profile, and nothing of ours")];
    }
    tenants.iter().flat_map(|tenant| [Some(standing(tenant)), mesh(tenant)]).flatten().collect()
}

/// How it stands with one tenant.
pub(super) fn standing(tenant: &Tenant) -> Finding {
    let Tenant { name, verdict, missing, .. } = tenant;
    let message = match verdict {
        Verdict::Tenant(grant) => {
            let identity =
                grant.identity.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let whoever = if grant.owner_only { ", where its owner has made it" } else { "" };
            format!("tenant {name}: acts as {} by {identity}{whoever}", grant.owner)
        }
        Verdict::None(reason) => format!("tenant {name}: nothing is granted: {reason}"),
        Verdict::Refused { message, .. } => {
            let mend = format!("kubectl describe profile {name}, and make it so that its Event no longer says this");
            return Point::Tenant.wrong(format!("tenant {name}: REFUSED: {message}"), mend);
        }
        Verdict::Terminating => format!("tenant {name}: on its way out"),
    };
    if missing.is_empty() {
        Point::Tenant.fine(message)
    } else {
        let mend = format!(
            "the replica that holds the lease mends it, or says why not: kubectl logs -n {} -l app={}",
            names::NAMESPACE,
            names::PROJECT
        );
        Point::Tenant.wrong(format!("{message}; {}", missing.join("; ")), mend)
    }
}

/// How its pods are in the mesh, where that does not go with its identity.
pub(super) fn mesh(tenant: &Tenant) -> Option<Finding> {
    let Verdict::Tenant(grant) = &tenant.verdict else { return None };
    let name = &tenant.name;
    let token = format!("kubectl annotate namespace {name} {}=token", names::IDENTITY_ANNOTATION);
    match (tenant.mesh, grant.identity) {
        (Mesh::Ambient, Identity::Header) => Some(Point::Mesh.wrong(
            format!("tenant {name}: its namespace is in ambient mode, where nothing adds the header that gives its pods their identity"),
            token,
        )),
        (Mesh::None, Identity::Header) => Some(Point::Mesh.wrong(
            format!("tenant {name}: its namespace gets no sidecars, so that nothing gives its notebooks their identity"),
            format!("kubectl label namespace {name} {}=enabled, or {token}", names::ISTIO_INJECTION),
        )),
        (Mesh::Sidecars, _) => Some(Point::Mesh.fine(format!("tenant {name}: sidecars"))),
        (Mesh::Ambient, _) => Some(Point::Mesh.fine(format!("tenant {name}: ambient mode"))),
        (Mesh::None, _) => Some(Point::Mesh.fine(format!("tenant {name}: no mesh"))),
    }
}
