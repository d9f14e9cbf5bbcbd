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

/// When we look again whether they are gone: one list of one namespace's labelled pods. The longer it has taken the later, up to
/// [`LONGEST_INTERVAL`]: a notebook may run for weeks, and all of a cluster's namespaces may move at once.
const INTERVAL: Duration = Duration::from_secs(5);
/// See [`INTERVAL`].
const LONGEST_INTERVAL: Duration = Duration::from_mins(5);
/// Pods that come so much later may still have been reviewed by a replica that did not know of the move, or by another clock.
const LAG: Duration = Duration::from_mins(1);
/// As many are named to people, and no more are looked for.
const NAMED: usize = 5;
/// Pods of one answer to a list. A tenant may have any number of them, and make each as large as the API server takes.
const PAGE: u32 = 20;

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
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), tenant);
        let mut waiting = some_that_lack_tokens(&pods, since).await.map_err(|error| Trouble::of_pods(&error))?;
        if waiting.is_empty() {
            info!(tenant, "no pod needs the header any more");
            return Ok(false);
        }
        let more = if waiting.len() > NAMED { " and others" } else { "" };
        waiting.truncate(NAMED);
        let message = format!(
            "pods without a token still run ({}{more}): the header stays until they have ended or are made anew",
            waiting.join(", ")
        );
        self.say(tenant, "MovingToToken", &message).await;
        self.schedule(tenant, Instant::now() + interval(since, Timestamp::now()));
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

/// The first that need the header, by name; one more than are named if there are so many.
async fn some_that_lack_tokens(pods: &Api<Pod>, since: Timestamp) -> kube::Result<Vec<String>> {
    let mut labelled = ListParams::default().labels(&format!("{}=true", names::TENANT_LABEL)).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = pods.list(&labelled).await?;
        found.extend(page.iter().filter(|pod| lacks_token(pod, since)).map(kube::ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty() && found.len() <= NAMED) {
            Some(token) => labelled = labelled.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// As long again as it has taken so far.
fn interval(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default().clamp(INTERVAL, LONGEST_INTERVAL)
}

/// One that was there before, still runs, and has no token for Pipelines. Those that come later are as their mode has them.
fn lacks_token(pod: &Pod, since: Timestamp) -> bool {
    let later = since.saturating_add(LAG).unwrap_or(Timestamp::MAX);
    let created = pod.creation_timestamp().is_none_or(|created| created.0 <= later);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let mut sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref()).flatten();
    let has_token = sources.any(|source| {
        source.service_account_token.as_ref().and_then(|token| token.audience.as_deref())
            == Some(names::PIPELINES_TOKEN_AUDIENCE)
    });
    created && !matches!(phase, Some("Succeeded" | "Failed")) && !has_token
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn looks_become_rare() {
        let since: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let after = |seconds: u64| interval(since, since.saturating_add(Duration::from_secs(seconds)).unwrap());
        assert_eq!([0, 3, 60, 86_400].map(after).map(|interval| interval.as_secs()), [5, 5, 60, 300]);
        assert_eq!(interval(since, since - LAG), INTERVAL, "a clock that was set back");
    }

    #[test]
    fn a_pod_keeps_the_header_if_it_may_have_been_made_for_it_and_has_no_token() {
        let since: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let pod = |created: &str, phase: &str, audience: &str| -> Pod {
            let token = json!({"serviceAccountToken": {"path": "token", "audience": audience}});
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": created},
                "spec": {"containers": [], "volumes": [{"name": "a", "projected": {"sources": [token]}}]},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        let (other, ours) = ("https://kubernetes.default.svc", names::PIPELINES_TOKEN_AUDIENCE);
        let (before, at_once, later) = ("2026-11-28T11:00:00Z", "2026-11-28T12:00:59Z", "2026-11-28T12:01:01Z");
        assert!(lacks_token(&pod(before, "Running", other), since));
        assert!(lacks_token(&pod(before, "Pending", other), since));
        assert!(!lacks_token(&pod(before, "Running", ours), since));
        for ended in ["Succeeded", "Failed"] {
            assert!(!lacks_token(&pod(before, ended, other), since));
        }
        // Its review may have been answered by a replica that did not know yet.
        assert!(lacks_token(&pod(at_once, "Running", other), since));
        assert!(!lacks_token(&pod(later, "Running", other), since), "nobody has to wait for those for ever");
    }
}
