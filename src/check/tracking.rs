//! Whether MLflow answers, where one is configured.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use tokio::time::timeout;

use super::finding::{Finding, Point};
use crate::mlflow::{self, tracking_uri};

/// Somebody waits at a terminal.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the MLflow that models are served from, and the one that tenants log to.
pub(super) async fn look(client: &Client, settings: &mlflow::Settings, tenants: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.mlflow_tracking_uri.is_some() {
        findings.push(ask(client, "mlflow-tracking-uri", settings).await);
    }
    let own = settings.mlflow_tracking_uri.as_ref().map(ToString::to_string);
    if let Some(uri) = tenants.filter(|uri| own.as_deref().map(|own| own.trim_end_matches('/')) != Some(uri)) {
        let mut of_tenants = settings.clone();
        // Tenants have credentials of their own; health and version need none.
        (of_tenants.mlflow_username, of_tenants.mlflow_password, of_tenants.mlflow_password_file) = (None, None, None);
        (of_tenants.mlflow_token, of_tenants.mlflow_token_file, of_tenants.mlflow_auth) = (None, None, None);
        of_tenants.mlflow_tracking_uri = tracking_uri(uri).ok();
        findings.push(ask(client, "tenant-tracking", &of_tenants).await);
    }
    if findings.is_empty() {
        findings.push(Point::Mlflow.note("no MLflow is configured (mlflow-tracking-uri, tenant-tracking)"));
    }
    findings
}

async fn ask(client: &Client, setting: &str, settings: &mlflow::Settings) -> Finding {
    let asked = match mlflow::Client::new(settings) {
        Ok(asked) => asked,
        Err(error) => {
            return Point::Mlflow.wrong(format!("{setting}: {error:#}"), format!("mend the setting {setting}"));
        }
    };
    let answers = async { Ok::<_, mlflow::Error>((asked.plain("/health").await?, asked.plain("/version").await?)) };
    let answers = timeout(PATIENCE, answers).await;
    let base = asked.base();
    let why = match answers {
        Ok(Ok((health, version))) if health.trim() == "OK" => {
            return Point::Mlflow.fine(format!("{setting}: MLflow {} answers at {base}", version.trim()));
        }
        Ok(Ok((health, _))) => {
            let beginning: String = health.trim().chars().take(40).collect();
            let message = format!("{setting}: {base}/health answers {beginning:?}: this is no MLflow");
            return Point::Mlflow.wrong(message, format!("set {setting} to where MLflow is"));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    let host = settings.mlflow_tracking_uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default();
    let Some((name, namespace)) = service(host) else {
        let mend = format!("curl {base}/health, and look at the network policies and the log of MLflow");
        return Point::Mlflow.wrong(format!("{setting}: {why}"), mend);
    };
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    match services.get_opt(name).await {
        Err(error) => Point::Mlflow.unseen(&format!("Service {namespace}/{name}"), &error),
        Ok(Some(_)) => Point::Mlflow.note(format!(
            "{setting}: Service {namespace}/{name} is there; it is not reached from here ({why}), which is as it should be outside the cluster"
        )),
        Ok(None) => Point::Mlflow.wrong(
            format!("{setting}: {why}, and there is no Service {namespace}/{name}"),
            "kubectl apply -k k8s-resources/mlflow/overlays/..., or set it to where MLflow is",
        ),
    }
}

/// The Service that a host's name in a cluster is of: `mlflow.mlflow`, `mlflow.mlflow.svc`, `mlflow.mlflow.svc.cluster.local`.
fn service(host: &str) -> Option<(&str, &str)> {
    let mut parts = host.split('.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let is_name = |part: &str| !part.is_empty() && !part.starts_with(|first: char| first.is_ascii_digit());
    let is_of_cluster = parts.next().is_none_or(|third| third == "svc");
    (is_name(name) && is_name(namespace) && is_of_cluster).then_some((name, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_hosts_name() {
        let mlflow = Some(("mlflow", "tracking"));
        for (host, expected) in [
            ("mlflow.tracking", mlflow),
            ("mlflow.tracking.svc", mlflow),
            ("mlflow.tracking.svc.cluster.local", mlflow),
            ("mlflow", None),
            ("mlflow.example.org", None),
            ("127.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(service(host), expected, "{host}");
        }
    }
}
