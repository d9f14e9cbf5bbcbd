//! The cluster itself: its version, and the kinds that it serves.

use std::collections::BTreeSet;

use kube::Client;

use super::finding::{Finding, Point};
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;

/// The oldest minor version of Kubernetes 1 on which webhooks have match conditions for good (KEP-3716).
const OLDEST: u32 = 30;
/// The first one on which sidecar containers are on (KEP-753).
const NATIVE_SIDECARS: u32 = 29;

/// The minor version of Kubernetes 1.
///
/// # Errors
/// No API server that answers.
pub(super) async fn minor(client: &Client) -> kube::Result<(u32, String)> {
    let version = client.apiserver_version().await?;
    // Some distributions write 30+.
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    Ok((digits.parse().unwrap_or_default(), version.git_version))
}

/// Judges the version.
pub(super) fn version(minor: u32, name: &str) -> Finding {
    if minor < OLDEST {
        let message = format!(
            "Kubernetes {name}: webhooks have no match conditions before 1.{OLDEST}, so that every pod is sent to us"
        );
        return Point::Version.wrong(message, format!("upgrade the cluster to Kubernetes 1.{OLDEST} or later"));
    }
    Point::Version.fine(format!("Kubernetes {name}"))
}

/// Judges what becomes of jobs' sidecars, by the setting and by what is known of Istio: its minor version 1.x, if any.
pub(super) fn native_sidecars(minor: u32, wanted: bool, istio: Option<u32>) -> Finding {
    let point = Point::NativeSidecars;
    match (wanted, istio) {
        (true, _) if minor < NATIVE_SIDECARS => point.wrong(
            format!("jobs ask for native sidecars, which Kubernetes has from 1.{NATIVE_SIDECARS} on"),
            "set native-sidecars: false",
        ),
        (true, Some(istio)) if istio < 24 => point.note(format!(
            "Istio 1.{istio} does not know the annotation sidecar.istio.io/nativeSidecar (1.24): jobs get classic sidecars, which the launcher ends"
        )),
        (true, None) => point.note("jobs ask for native sidecars; whether Istio (1.24 or later) gives them was not seen"),
        (true, Some(_)) => point.fine("jobs get native sidecars, which the kubelet starts first and ends last"),
        (false, _) if minor >= NATIVE_SIDECARS => point.note(
            "native-sidecars is false: jobs get what Istio does by itself (ENABLE_NATIVE_SIDECARS; from 1.27 on native ones), and the launcher ends classic ones",
        ),
        (false, _) => point.fine("jobs get classic sidecars, which the launcher ends"),
    }
}

/// What the cluster serves of what concerns us.
#[derive(Clone, Debug, Default)]
pub(super) struct Served(BTreeSet<(String, String)>);

impl Served {
    /// Whether a kind is served, in whatever version.
    pub(super) fn has(&self, group: &str, plural: &str) -> bool {
        self.0.contains(&(group.to_owned(), plural.to_owned()))
    }
}

/// A kind that somebody needs.
struct Need {
    group: String,
    versions: Vec<String>,
    plural: String,
    /// What does not work without it, and what brings it; `None`: nothing does not.
    without: Option<(&'static str, &'static str)>,
}

/// What is wanted of the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wants<'s> {
    /// Whether Istio's objects give tenants their identity.
    pub(super) header: bool,
    /// Whether models are served.
    pub(super) serving: bool,
    /// The job-like kinds.
    pub(super) workloads: &'s [WorkloadKind],
}

fn needs(wants: Wants<'_>) -> Vec<Need> {
    let need = |group: &str, versions: &[&str], plural: &str, without| Need {
        group: group.to_owned(),
        versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        plural: plural.to_owned(),
        without,
    };
    let kubeflow = names::KUBEFLOW_GROUP;
    let by_header = wants.header.then_some((
        "nothing tells Kubeflow Pipelines whose a pod is (identity header)",
        "install Istio, or set identity: token",
    ));
    let served = wants.serving.then_some(("no model can be served", "install KServe"));
    let mut needs = vec![
        need(
            kubeflow,
            &["v1"],
            "profiles",
            Some(("no namespace is a tenant's", "install Kubeflow's profile controller; the server sees it by itself")),
        ),
        need("networking.istio.io", &["v1alpha3"], "envoyfilters", by_header),
        need("security.istio.io", &["v1beta1"], "authorizationpolicies", by_header),
        need(kubeflow, &["v1"], "notebooks", None),
        need(kubeflow, &["v1beta1", "v1alpha3"], "trials", None),
        need(kubeflow, &["v1beta1", "v1alpha3"], "experiments", None),
        need("serving.kserve.io", &["v1beta1"], "inferenceservices", served),
    ];
    needs.extend(wants.workloads.iter().map(|kind| Need {
        group: kind.group.clone(),
        versions: kind.versions.clone(),
        plural: kind.resource.clone(),
        without: None,
    }));
    needs
}

/// Looks at the kinds.
pub(super) async fn kinds(client: &Client, wants: Wants<'_>) -> (Served, Vec<Finding>) {
    let needs = needs(wants);
    let groups = match client.list_api_groups().await {
        Ok(groups) => groups,
        Err(error) => return (Served::default(), vec![Point::Kinds.unseen("what the cluster serves", &error)]),
    };
    let (mut served, mut findings) = (Served::default(), Vec::new());
    let wanted: BTreeSet<_> = needs
        .iter()
        .flat_map(|need| need.versions.iter().map(|version| (need.group.as_str(), version.as_str())))
        .filter(|(group, version)| {
            let mut found = groups.groups.iter().filter(|found| found.name == *group).flat_map(|found| &found.versions);
            found.any(|found| found.version == *version)
        })
        .collect();
    for (group, version) in wanted {
        match client.list_api_group_resources(&format!("{group}/{version}")).await {
            Ok(list) => served.0.extend(list.resources.into_iter().map(|found| (group.to_owned(), found.name))),
            Err(error) => findings.push(Point::Kinds.unseen(&format!("the kinds of {group}/{version}"), &error)),
        }
    }
    findings.extend(judge(&needs, &served));
    (served, findings)
}

fn judge(needs: &[Need], served: &Served) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (there, absent): (Vec<_>, Vec<_>) = needs.iter().partition(|need| served.has(&need.group, &need.plural));
    let plurals = |needs: &[&Need]| needs.iter().map(|need| need.plural.as_str()).collect::<Vec<_>>().join(", ");
    if !there.is_empty() {
        findings.push(Point::Kinds.fine(format!("served: {}", plurals(&there))));
    }
    let (needed, optional): (Vec<_>, Vec<_>) = absent.into_iter().partition(|need| need.without.is_some());
    for need in needed {
        let Some((without, mend)) = need.without else { continue };
        let (group, version) = (&need.group, need.versions.join(" or "));
        findings
            .push(Point::Kinds.wrong(format!("{}.{group} ({version}) are not served: {without}", need.plural), mend));
    }
    if !optional.is_empty() {
        findings.push(Point::Kinds.note(format!("not served, and not missed: {}", plurals(&optional))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn old_clusters_are_told_apart() {
        assert_eq!(version(29, "v1.29.4").state, State::Wrong);
        assert_eq!(version(30, "v1.30.0").state, State::Fine);
    }

    #[test]
    fn native_sidecars_want_both_halves() {
        let state = |minor, wanted, istio| native_sidecars(minor, wanted, istio).state;
        assert_eq!(state(28, true, Some(27)), State::Wrong);
        assert_eq!(state(28, false, Some(27)), State::Fine);
        assert_eq!(state(33, true, Some(23)), State::Note);
        assert_eq!(state(33, true, Some(24)), State::Fine);
        assert_eq!(state(33, true, None), State::Note);
        assert_eq!(state(33, false, Some(27)), State::Note);
    }

    #[test]
    fn only_what_is_needed_is_missed() {
        let wants = Wants { header: true, serving: false, workloads: &[] };
        let states = |wants, served: &[(&str, &str)]| -> Vec<State> {
            let served = served.iter().map(|(group, plural)| ((*group).to_owned(), (*plural).to_owned())).collect();
            judge(&needs(wants), &Served(served)).iter().map(|finding| finding.state).collect()
        };
        assert_eq!(states(wants, &[]), [State::Wrong, State::Wrong, State::Wrong, State::Note]);
        let by_token = Wants { header: false, ..wants };
        assert_eq!(states(by_token, &[("kubeflow.org", "profiles")]), [State::Fine, State::Note]);
        let serving = Wants { serving: true, ..by_token };
        assert_eq!(states(serving, &[("kubeflow.org", "profiles")]), [State::Fine, State::Wrong, State::Note]);
    }
}
