//! A namespace that moves from header to token: pods that were made before have no token, and what gives them their
//! identity stays until they are gone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use tracing::info;

use super::act::Trouble;
use super::controller::Worker;
use super::progress::lock;
use super::{ChildKind, Grant, Observed};
use crate::cluster::identity::Identity;
use crate::cluster::names;

/// How often we look whether they are gone: one list of one namespace's labelled pods.
const INTERVAL: Duration = Duration::from_secs(5);
/// As many are named to people.
const NAMED: usize = 5;

impl Worker {
    /// Whether a tenant that has the header is to have tokens, and pods still run that need the header; if so, another
    /// look is due.
    pub(super) async fn needs_header(
        &self,
        tenant: &str,
        grant: &Grant,
        found: &HashMap<ChildKind, Observed>,
    ) -> Result<bool, Trouble> {
        let is_moving = grant.identity == Identity::Token && found.values().any(|found| found.ours);
        let since = {
            let mut all = lock(&self.progress);
            let moving_since = &mut all.entry(tenant.to_owned()).or_default().moving_since;
            if !is_moving {
                *moving_since = None;
                return Ok(false);
            }
            *moving_since.get_or_insert_with(Timestamp::now)
        };
        let labelled = ListParams::default().labels(&format!("{}=true", names::TENANT_LABEL));
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), tenant);
        let pods = pods.list(&labelled).await.map_err(|error| Trouble::of_pods(&error))?;
        let mut waiting: Vec<String> =
            pods.iter().filter(|pod| lacks_token(pod, since)).map(kube::ResourceExt::name_any).collect();
        if waiting.is_empty() {
            info!(tenant, "no pod needs the header any more");
            return Ok(false);
        }
        let count = waiting.len();
        waiting.sort();
        waiting.truncate(NAMED);
        let message = format!(
            "pods without a token still run ({count}, among them {}): the header stays until they have ended or are made anew",
            waiting.join(", ")
        );
        self.say(tenant, "MovingToToken", &message).await;
        self.schedule(tenant, Instant::now() + INTERVAL);
        Ok(true)
    }

    /// An Event and a log line, once as long as it stays the same.
    async fn say(&self, tenant: &str, reason: &str, message: &str) {
        {
            let mut all = lock(&self.progress);
            let said = &mut all.entry(tenant.to_owned()).or_default().said;
            if said.as_deref() == Some(message) {
                return;
            }
            *said = Some(message.to_owned());
        }
        info!(tenant, reason, detail = message, "the namespace moves to tokens");
        self.publish(tenant, EventType::Normal, reason, message).await;
    }
}

/// One that was there before, still runs, and has no token for Pipelines. Those that come later are as their mode has them.
fn lacks_token(pod: &Pod, since: Timestamp) -> bool {
    let created = pod.creation_timestamp().is_none_or(|created| created.0 <= since);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let mut sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref()).flatten();
    let has_token = sources.any(|source| {
        source.service_account_token.as_ref().and_then(|token| token.audience.as_deref())
            == Some(names::PIPELINES_TOKEN_AUDIENCE)
    });
    created && !matches!(phase, Some("Succeeded" | "Failed")) && !has_token
}
