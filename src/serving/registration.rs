//! Our webhook in MLflow: there, up to date, and able to deliver; and polling as long as it is not. Only the replica that works does so,
//! and it only ever touches the webhook that leads to our URL. Where MLflow has workspaces, it keeps webhooks for each by itself, so there
//! is one in each that is served.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use secrecy::ExposeSecret as _;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::controller::{Wake, Worker};
use super::settings::WebhookPlan;
use crate::mlflow::{self, Event, Webhook, WebhookRequest};

/// Between two attempts at the start, as the listener that was here before had it.
const PAUSE: Duration = Duration::from_secs(2);
/// How often we look whether it is still there.
const CHECK: Duration = Duration::from_mins(1);
/// How often the file with the secret is read.
const SECRET_CHECK: Duration = Duration::from_secs(5);
/// MLflow's workers know a new webhook after 60 s (`MLFLOW_WEBHOOK_CACHE_TTL`): what happens until then is not delivered.
const CACHE: Duration = Duration::from_secs(65);
const DESCRIPTION: &str = "Automatically deploy MLflow models to KServe based on tags";

/// Ids of our webhooks, by workspace.
pub(super) type Registered = HashMap<Option<String>, String>;

/// For ever.
pub(super) async fn keep(worker: &Arc<Worker>) {
    let Some(webhook) = &worker.context.plan.webhook else { return };
    let mut secret = worker.secret.subscribe();
    let mut said = None;
    loop {
        let known = worker.registered.borrow().clone();
        let mut found = Registered::new();
        let done = everywhere(worker, webhook, &known, &mut found).await;
        let is_new = known.is_empty();
        worker.registered.send_replace(found);
        match done {
            Ok(()) if webhook.remove => return,
            Ok(()) => {
                said = None;
                succeeded(worker, is_new);
                tokio::select! {
                    () = sleep(CHECK) => {}
                    Ok(()) = secret.changed() => drop(worker.registered.send_replace(Registered::new())),
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                failed(worker, &error, said.as_ref() == Some(&error));
                said = Some(error);
                sleep(worker.context.plan.interval.min(CHECK)).await;
            }
        }
    }
}

/// In each workspace that is served; one that refuses keeps nobody else from theirs.
async fn everywhere(
    worker: &Worker,
    webhook: &WebhookPlan,
    known: &Registered,
    found: &mut Registered,
) -> anyhow::Result<()> {
    let listing = async || worker.workspaces().await.context("listing MLflow's workspaces");
    let workspaces = attempts(webhook, listing).await?;
    let mut first = None;
    for workspace in workspaces {
        let before = known.get(&workspace).map(String::as_str);
        let client = worker.mlflow_of(workspace.as_deref())?;
        let done = attempts(webhook, async || ensure(worker, &client, webhook, before).await).await;
        match (done, workspace) {
            (Ok(Some(id)), workspace) => drop(found.insert(workspace, id)),
            (Ok(None), _) => {}
            (Err(error), Some(name)) => {
                first.get_or_insert(error.context(format!("workspace {name}")));
            }
            (Err(error), None) => return Err(error),
        }
    }
    first.map_or(Ok(()), Err)
}

/// Reads the file with the secret again and again.
pub(super) async fn follow_secret(worker: &Worker) {
    let mut said = None;
    loop {
        sleep(SECRET_CHECK).await;
        match worker.context.plan.secrets.read_again() {
            Ok(false) => said = None,
            Ok(true) => {
                info!("the secret has changed; the one before counts for some minutes more");
                worker.secret.send_replace(());
            }
            Err(error) => {
                let error = format!("{error:#}");
                if said.as_ref() != Some(&error) {
                    warn!(error, "the secret stays as it was");
                }
                said = Some(error);
            }
        }
    }
}

fn succeeded(worker: &Worker, is_new: bool) {
    worker.context.metrics.registered(true);
    let polls = worker.context.plan.polls;
    let polled = worker.polls.send_replace(polls);
    if is_new {
        info!(polls, "MLflow has our webhook");
        worker.schedule(Wake::All, Instant::now() + CACHE);
    } else if polled && !polls {
        info!("MLflow has our webhook again: no more polling");
    }
}

/// Said once as long as it stays the same.
fn failed(worker: &Worker, cause: &str, is_said: bool) {
    worker.context.metrics.registered(false);
    if worker.context.plan.fallback {
        worker.polls.send_replace(true);
    }
    if is_said {
        return;
    }
    if worker.context.plan.polls {
        warn!(error = cause, "MLflow's webhook is not registered; we poll in any case");
    } else if worker.context.plan.fallback {
        warn!(error = cause, "MLflow's webhook is not registered: polling until it is");
    } else {
        error!(
            error = cause,
            "MLflow's webhook is not registered, and polling is off (serving-polling-fallback): nothing is served"
        );
    }
}

/// As often and for as long as the settings say.
async fn attempts<T>(webhook: &WebhookPlan, once: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut attempt = 0;
    loop {
        let result = timeout(webhook.timeout, once()).await;
        let result = result
            .unwrap_or_else(|_| Err(anyhow!("it took longer than {:?} (--mlflow-webhook-timeout)", webhook.timeout)));
        match result {
            Err(error) if attempt < webhook.retries => {
                attempt += 1;
                info!(error = format!("{error:#}"), attempt, "registering MLflow's webhook again");
                sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Makes it so; the webhook's id, unless it is removed.
async fn ensure(
    worker: &Worker,
    client: &mlflow::Client,
    webhook: &WebhookPlan,
    known: Option<&str>,
) -> anyhow::Result<Option<String>> {
    let all = client.webhooks().await.context("listing MLflow's webhooks")?;
    let ours: Vec<&Webhook> = all.iter().filter(|found| found.url == webhook.url).collect();
    if webhook.remove {
        for found in ours.iter().filter(|found| found.name == webhook.name) {
            client.delete_webhook(&found.webhook_id).await.context("removing our webhook")?;
            info!(name = found.name, url = found.url, "our webhook is removed from MLflow");
        }
        return Ok(None);
    }
    if ours.len() > 1 {
        warn!(
            url = webhook.url,
            count = ours.len(),
            "MLflow has several webhooks that lead to us; the first is kept up to date, the others are somebody's"
        );
    }
    let secret = worker.context.plan.secrets.now().context("there is no secret")?;
    let events = ["SET", "DELETED"].map(|action| Event { entity: "MODEL_VERSION_TAG".into(), action: action.into() });
    let request = WebhookRequest {
        name: &webhook.name,
        description: DESCRIPTION,
        url: &webhook.url,
        events: &events,
        secret: secret.expose_secret(),
        status: "ACTIVE",
    };
    let id = match ours.iter().min_by_key(|found| &found.webhook_id) {
        Some(found) if known == Some(&found.webhook_id) && is_like(found, &request) => found.webhook_id.clone(),
        // Its secret cannot be read, so it is written once.
        Some(found) => {
            client.update_webhook(&found.webhook_id, &request).await.context("updating our webhook")?;
            info!(id = found.webhook_id, url = webhook.url, "our webhook in MLflow is brought up to date");
            found.webhook_id.clone()
        }
        None => {
            let made = client.create_webhook(&request).await.context("making our webhook")?;
            info!(id = made.webhook_id, url = webhook.url, "MLflow gets our webhook");
            made.webhook_id
        }
    };
    if known == Some(&id) {
        return Ok(Some(id));
    }
    let result = client.test_webhook(&id).await.context("asking MLflow for a delivery")?;
    if result.success {
        return Ok(Some(id));
    }
    let why = result.error_message.or_else(|| result.response_status.map(|status| format!("it was answered {status}")));
    Err(anyhow!("MLflow cannot deliver to {}: {}", webhook.url, why.unwrap_or_default()))
}

fn is_like(found: &Webhook, wanted: &WebhookRequest<'_>) -> bool {
    let sorted = |events: &[Event]| {
        let mut events = events.to_vec();
        events.sort();
        events
    };
    found.name == wanted.name && found.status == wanted.status && sorted(&found.events) == sorted(wanted.events)
}
