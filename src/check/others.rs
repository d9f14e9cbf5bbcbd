//! What others have installed: Istio, Katib, KServe, as far as it can be seen, and MLflow's own answer.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::finding::{Finding, Point};
use crate::yaml;

/// A control plane that was found.
struct Plane {
    namespace: String,
    version: Option<String>,
}

/// Deployments with a label, wherever they are, and the version of each by the image of its container.
async fn planes(client: &Client, label: &str, container: &str) -> kube::Result<Vec<Plane>> {
    let found: Api<Deployment> = Api::all(client.clone());
    let found = found.list(&ListParams::default().labels(label)).await?;
    let read = |deployment: Deployment| {
        let namespace = deployment.namespace().unwrap_or_default();
        let pod = deployment.spec.and_then(|spec| spec.template.spec);
        let containers = pod.map(|pod| pod.containers).unwrap_or_default();
        let image = containers.iter().find(|found| found.name == container).or(containers.first());
        Plane { namespace, version: image.and_then(|found| tag(found.image.as_deref()?)) }
    };
    Ok(found.items.into_iter().map(read).collect())
}

/// The tag of an image, where it looks like a version: `istio/pilot:1.27.1-distroless@sha256:...` has 1.27.1-distroless.
fn tag(image: &str) -> Option<String> {
    let image = image.split('@').next()?;
    let (_, tag) = image.rsplit('/').next()?.split_once(':')?;
    let digits = tag.strip_prefix('v').unwrap_or(tag);
    digits.starts_with(|first: char| first.is_ascii_digit()).then(|| digits.to_owned())
}

/// The minor version of a version 1.
fn minor(version: &str) -> Option<u32> {
    let digits: String = version.strip_prefix("1.")?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn told(name: &str, planes: &[Plane]) -> String {
    let version =
        |plane: &Plane| plane.version.clone().unwrap_or_else(|| "of a version that its image does not say".to_owned());
    let each = planes.iter().map(|plane| format!("{name} {} in {}", version(plane), plane.namespace));
    each.collect::<Vec<_>>().join(", ")
}

/// Istio's control plane; and its minor version, if that is seen and one.
pub(super) async fn istio(client: &Client, is_served: bool) -> (Option<u32>, Finding) {
    match planes(client, "app=istiod", "discovery").await {
        Err(error) => (None, Point::Istio.unseen("Istio's Deployment istiod", &error)),
        Ok(planes) if planes.is_empty() && is_served => (
            None,
            Point::Istio
                .note("Istio's kinds are served, but no istiod runs here: its control plane is elsewhere, or gone"),
        ),
        Ok(planes) if planes.is_empty() => (None, Point::Istio.note("Istio is not here")),
        Ok(planes) => {
            // With several revisions the oldest one counts.
            let oldest = planes.iter().filter_map(|plane| minor(plane.version.as_deref()?)).min();
            (oldest, Point::Istio.fine(told("istiod", &planes)))
        }
    }
}

/// KServe's controller.
pub(super) async fn kserve(client: &Client, is_served: bool) -> Finding {
    if !is_served {
        return Point::KServe.note("KServe is not here");
    }
    match planes(client, "control-plane=kserve-controller-manager", "manager").await {
        Err(error) => Point::KServe.unseen("KServe's Deployment", &error),
        Ok(planes) if planes.is_empty() => {
            Point::KServe.note("KServe's kinds are served; its controller was not found by its label")
        }
        Ok(planes) => Point::KServe.fine(told("KServe", &planes)),
    }
}

/// Katib's ConfigMap, in the namespace of Kubeflow.
const KATIB_CONFIG: &str = "katib-config";

/// Katib's controller and its settings.
pub(super) async fn katib(client: &Client, is_served: bool, namespace: &str) -> Vec<Finding> {
    if !is_served {
        return vec![Point::Katib.note("Katib is not here")];
    }
    let controller = match planes(client, "katib.kubeflow.org/component=controller", "katib-controller").await {
        Err(error) => Point::Katib.unseen("Katib's Deployment", &error),
        Ok(planes) if planes.is_empty() => {
            Point::Katib.note("Katib's kinds are served; its controller was not found by its label")
        }
        Ok(planes) => Point::Katib.fine(told("Katib", &planes)),
    };
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let place = format!("ConfigMap {namespace}/{KATIB_CONFIG}");
    let waiting = match config_maps.get_opt(KATIB_CONFIG).await {
        Err(error) => Point::WaitAllProcesses.unseen(&place, &error),
        Ok(None) => Point::WaitAllProcesses.note(format!("{place} is not there: collectors wait as Katib has it")),
        Ok(Some(found)) => waiting(&place, namespace, &found.data.unwrap_or_default()),
    };
    vec![controller, waiting]
}

/// Judges what Katib's collectors are told to wait for (katib v0.19, `pkg/apis/config/v1beta1/types.go`; before v0.16 a JSON
/// text by kind). Nothing is said by default, and admission says `-w false`; what is said, stays.
fn waiting(place: &str, namespace: &str, data: &std::collections::BTreeMap<String, String>) -> Finding {
    let point = Point::WaitAllProcesses;
    let mut waits = Vec::new();
    for (key, list) in [("katib-config.yaml", "/runtime/metricsCollectors"), ("metrics-collector-sidecar", "")] {
        let Some(text) = data.get(key) else { continue };
        let Ok(config) = yaml::value(text) else {
            return point.wrong(
                format!("{place}: {key} is not YAML"),
                format!("kubectl edit configmap {KATIB_CONFIG} -n {namespace}"),
            );
        };
        let says_true = |collector: &Value| {
            let said = collector.get("waitAllProcesses");
            said.is_some_and(|said| said == &Value::Bool(true) || said == "true")
        };
        match config.pointer(list) {
            Some(Value::Array(collectors)) => waits.extend(
                collectors
                    .iter()
                    .filter(|one| says_true(one))
                    .map(|one| one.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned()),
            ),
            Some(Value::Object(collectors)) => {
                waits.extend(collectors.iter().filter(|(_, one)| says_true(one)).map(|(kind, _)| kind.clone()));
            }
            _ => {}
        }
    }
    if waits.is_empty() {
        return point
            .fine("Katib's collectors wait for the training alone: admission tells them, and nothing says otherwise");
    }
    let message = format!(
        "{place} says waitAllProcesses: true for {}: beside a sidecar their trials never end (katib#2614)",
        waits.join(", ")
    );
    point.wrong(
        message,
        format!("kubectl edit configmap {KATIB_CONFIG} -n {namespace}, and set waitAllProcesses: false there"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_version_is_read_off_an_image() {
        for (image, expected) in [
            ("docker.io/istio/pilot:1.27.1", Some("1.27.1")),
            ("registry:5000/istio/pilot:1.27.1-distroless@sha256:ab", Some("1.27.1-distroless")),
            ("ghcr.io/kubeflow/katib/katib-controller:v0.19.0", Some("0.19.0")),
            ("registry:5000/istio/pilot", None),
            ("istio/pilot@sha256:ab", None),
            ("istio/pilot:latest", None),
        ] {
            assert_eq!(tag(image).as_deref(), expected, "{image}");
        }
        assert_eq!(minor("1.27.1-distroless"), Some(27));
        assert_eq!(minor("0.19.0"), None);
    }

    #[test]
    fn collectors_that_wait_for_everything_are_found() {
        let state = |key: &str, text: &str| waiting("it", "kubeflow", &[(key.to_owned(), text.to_owned())].into());
        let config = |said: &str| {
            format!(
                "runtime:\n  metricsCollectors:\n    - {{kind: StdOut, image: a{said}}}\n    - {{kind: File, image: b}}\n"
            )
        };
        for (said, expected) in
            [("", State::Fine), (", waitAllProcesses: false", State::Fine), (", waitAllProcesses: true", State::Wrong)]
        {
            assert_eq!(state("katib-config.yaml", &config(said)).state, expected, "{said}");
        }
        let older = state("metrics-collector-sidecar", r#"{"File": {"image": "a", "waitAllProcesses": true}}"#);
        assert!(older.message.contains("true for File"), "{}", older.message);
        assert_eq!(state("katib-config.yaml", "{").state, State::Wrong);
        assert_eq!(state("other", "{").state, State::Fine);
    }
}
