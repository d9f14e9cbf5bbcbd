//! What a user waits for: pods created at a real API server with our webhook, and beside them without; and which pods it does
//! not send to us at all.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tenancy_fixer::cluster::names;
use tenancy_fixer::yaml;
use tokio::time::sleep;

use crate::contestant::{Certificate, Contestant, Who};
use crate::machine::quantile;
use crate::report::Row;
use crate::spread::Spread;

/// Pods of each kind in a round, one of each in turn.
const PODS: usize = 200;
/// What the API server counts of our webhook for pods.
const CALLS: &str = "apiserver_admission_webhook_request_total";
/// Target: what the middle one of the pods may wait for us, in milliseconds.
const WAIT_MS: f64 = 1.5;

pub(crate) fn run(rounds: usize) -> anyhow::Result<Vec<Row>> {
    eprintln!("review: a real API server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let plane = Plane::up()?;
        let client = plane.client().await?;
        let certificate = Certificate::make(&crate::folder()?)?;
        let server = Contestant::start(Who::Ours, &certificate)?;
        measure(&client, &server, &certificate, rounds).await
    })
}

async fn measure(
    client: &Client,
    server: &Contestant,
    certificate: &Certificate,
    rounds: usize,
) -> anyhow::Result<Vec<Row>> {
    for (namespace, is_tenant) in [("tenant", true), ("nobody", false)] {
        make_namespace(client, namespace, is_tenant).await?;
    }
    let configuration: MutatingWebhookConfiguration = serde_json::from_value(configuration(server, certificate)?)?;
    Api::all(client.clone()).create(&PostParams::default(), &configuration).await?;
    wait_until_called(client).await?;

    let of = |values: &mut [f64], percent| quantile(values, percent).context("nothing was measured");
    let (mut with, mut without, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut in_tenant, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..PODS {
            in_tenant.push(create(client, "tenant", &notebook(true), true).await?);
            beside.push(create(client, "nobody", &notebook(true), false).await?);
        }
        added.push(of(&mut in_tenant, 50)? - of(&mut beside, 50)?);
        with.extend(in_tenant);
        without.extend(beside);
    }
    let before = calls(client).await?;
    for _ in 0..PODS {
        create(client, "tenant", &notebook(false), false).await?;
    }
    let others = calls(client).await? - before;
    ensure!(before > 0.0, "the API server has not counted its calls");
    let added =
        Row { ours: Spread::of(added.into_iter()), ..Row::plain("pod create, added by our webhook, p50", "ms", 0.0) };
    Ok(vec![
        Row::plain("pod create with our webhook, p50", "ms", of(&mut with, 50)?),
        Row::plain("pod create without, p50", "ms", of(&mut without, 50)?),
        added.under(WAIT_MS),
        Row::plain("pod create with our webhook, p99", "ms", of(&mut with, 99)?),
        Row::plain("pod create without, p99", "ms", of(&mut without, 99)?),
        Row::plain("calls for 200 pods that are none of our business", "", others).under(1.0),
    ])
}

/// Without storing it, which would be the disk's time; how long it took, in milliseconds.
async fn create(client: &Client, namespace: &str, pod: &Pod, is_changed: bool) -> anyhow::Result<f64> {
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let began = Instant::now();
    let created = Api::<Pod>::namespaced(client.clone(), namespace).create(&parameters, pod).await?;
    let took = began.elapsed();
    ensure!(is_tenants(&created) == is_changed, "{namespace}: a pod was changed, or not, as it should not be");
    Ok(took.as_secs_f64() * 1e3)
}

fn is_tenants(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::TENANT_LABEL))
}

fn notebook(is_notebook: bool) -> Pod {
    let label = if is_notebook { "notebook-name" } else { "app" };
    let pod = json!({
        "metadata": {"generateName": "analysis-", "labels": {label: "analysis"}},
        "spec": {"containers": [{"name": "analysis", "image": "jupyter-scipy:v1.11.0"}]},
    });
    // It is one, by what stands above.
    serde_json::from_value(pod).unwrap_or_default()
}

async fn make_namespace(client: &Client, name: &str, is_tenant: bool) -> anyhow::Result<()> {
    let (label, value) = names::PROFILE_NAMESPACE_LABEL;
    let labels = if is_tenant { json!({label: value}) } else { json!({}) };
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    let deadline = Instant::now() + Duration::from_mins(1);
    while accounts.get_opt("default").await?.is_none() {
        ensure!(Instant::now() < deadline, "{name} gets no service account");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn wait_until_called(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), "tenant");
    while !is_tenants(&pods.create(&parameters, &notebook(true)).await?) {
        ensure!(Instant::now() < deadline, "the API server does not call us");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// As installed, but called by its address.
fn configuration(server: &Contestant, certificate: &Certificate) -> anyhow::Result<Value> {
    let rendered = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
        .args(["manifests", "--url", &format!("https://{}", server.target.address), "--ca-bundle"])
        .arg(&certificate.chain)
        .output()
        .context("rendering the configuration")?;
    yaml::value(&String::from_utf8(rendered.stdout)?)
}

/// Calls of our webhooks, as the API server counts them.
async fn calls(client: &Client) -> anyhow::Result<f64> {
    let metrics = client.request_text(http_get("/metrics")?).await?;
    let ours = metrics.lines().filter(|line| line.starts_with(CALLS) && line.contains("tenancy-fixer"));
    Ok(ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn http_get(path: &str) -> anyhow::Result<hyper::Request<Vec<u8>>> {
    Ok(hyper::Request::get(path).body(Vec::new())?)
}

/// A control plane of this benchmark's own; dropping it takes it down.
struct Plane(PathBuf);

impl Plane {
    fn up() -> anyhow::Result<Self> {
        let plane = Self(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-review-cluster"));
        plane.script("down")?;
        plane.script("up")?;
        Ok(plane)
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.0.join("kubeconfig"))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    fn script(&self, name: &str) -> anyhow::Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name);
        let status = Command::new(&script).arg(&self.0).stdout(Stdio::null()).status();
        let status = status.with_context(|| format!("running {}", script.display()))?;
        ensure!(status.success(), "{} failed", script.display());
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // What stays says so itself.
        let _ = self.script("down");
    }
}
