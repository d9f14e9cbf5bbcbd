//! A control plane of the benchmark's own, and what is created in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tenancy_fixer::cluster::names;
use tenancy_fixer::yaml;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::audit::{self, Request};
use crate::bare::Tenant;
use crate::process::{self, Access};

/// Requests at once of whoever creates Profiles and Namespaces.
const CREATORS: usize = 16;
/// The owner of them all.
const OWNER: &str = "alice@example.com";

/// A control plane; dropping it takes it down.
pub(crate) struct Plane {
    /// What the server and the bare loop run with.
    pub(crate) access: Access,
    client: Client,
    folder: Folder,
}

impl Plane {
    /// Starts an empty one with what the controller needs.
    pub(crate) async fn up() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (folder, files) = (root.join("target/bench-cluster"), root.join("target/bench"));
        std::fs::create_dir_all(&files)?;
        // From here on it is taken down, also if it does not come up.
        let folder = Folder(folder);
        script("down", &folder.0)?;
        script("up", &folder.0)?;
        let client = client(&folder.0.join("kubeconfig")).await?;
        let access = Access { kubeconfig: files.join("kubeconfig"), folder: files };
        let plane = Self { access, client, folder };
        plane.install(root).await?;
        Ok(plane)
    }

    async fn install(&self, root: &Path) -> anyhow::Result<()> {
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": names::KUBEFLOW_NAMESPACE}}))
            .await?;
        for name in ["namespace.yaml", "service-account.yaml", "cluster-role.yaml"] {
            let file = root.join("k8s-resources/base").join(name);
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            for document in yaml::documents(name, &text)? {
                self.apply(document.content).await?;
            }
        }
        let token = self.token().await.context("a token of the ServiceAccount")?;
        let admin = yaml::value(&std::fs::read_to_string(self.folder.0.join("kubeconfig"))?)?;
        let cluster = admin.pointer("/clusters/0/cluster").context("a kubeconfig without a cluster")?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": cluster}],
            "users": [{"name": "bench", "user": {"token": token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        });
        std::fs::write(&self.access.kubeconfig, config.to_string())?;
        Ok(())
    }

    /// What the controller and the bare loop are to the API server.
    pub(crate) fn user() -> String {
        format!("system:serviceaccount:{}:{}", names::NAMESPACE, names::PROJECT)
    }

    async fn token(&self) -> anyhow::Result<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), names::NAMESPACE);
        let spec = TokenRequestSpec { expiration_seconds: Some(7200), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = api.create_token_request(names::PROJECT, &PostParams::default(), &request).await?;
        Ok(answer.status.context("no token")?.token)
    }

    async fn apply(&self, object: Value) -> anyhow::Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let types = object.types.as_ref().context("an object without a kind")?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
        let name = object.metadata.name.as_deref().context("an object without a name")?;
        let api: Api<DynamicObject> = match &object.metadata.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let parameters = PatchParams::apply("bench").force();
        api.patch(name, &parameters, &Patch::Apply(&object)).await.with_context(|| format!("applying {name}"))?;
        Ok(())
    }

    /// Profiles and Namespaces, as fast as the API server takes them; `then` with each.
    pub(crate) async fn create(
        &self,
        prefix: &str,
        count: usize,
        then: impl Fn(&Tenant) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Tenant>> {
        let created = stream::iter(0..count).map(|number| self.tenant(format!("{prefix}-{number}")));
        let mut created = std::pin::pin!(created.buffer_unordered(CREATORS));
        let mut tenants = Vec::with_capacity(count);
        while let Some(tenant) = created.next().await {
            let tenant = tenant?;
            then(&tenant)?;
            tenants.push(tenant);
        }
        Ok(tenants)
    }

    /// The same, one at a time, at a pace.
    pub(crate) async fn create_calmly(
        &self,
        prefix: &str,
        count: usize,
        pace: Duration,
        then: impl Fn(&Tenant) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut ticks = interval(pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0..count {
            ticks.tick().await;
            then(&self.tenant(format!("{prefix}-{number}")).await?)?;
        }
        Ok(())
    }

    /// One Profile and its Namespace, as the profile controller makes it.
    async fn tenant(&self, name: String) -> anyhow::Result<Tenant> {
        let profile = json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": name}, "spec": {"owner": {"kind": "User", "name": OWNER}}});
        let profile = self.post("kubeflow.org", "v1", "Profile", &profile).await?;
        let (label, value) = names::PROFILE_NAMESPACE_LABEL;
        let owner = json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "name": name, "uid": profile.metadata.uid, "controller": true, "blockOwnerDeletion": true});
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": name, "ownerReferences": [owner], "annotations": {names::OWNER_ANNOTATION: OWNER},
                "labels": {label: value, names::ISTIO_INJECTION: "enabled"},
            },
        });
        let uid =
            self.post("", "v1", "Namespace", &namespace).await?.metadata.uid.context("a namespace without uid")?;
        Ok(Tenant { name, uid, owner: OWNER.to_owned() })
    }

    async fn post(&self, group: &str, version: &str, kind: &str, object: &Value) -> anyhow::Result<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let object = serde_json::from_value(object.clone())?;
        api.create(&PostParams::default(), &object).await.with_context(|| format!("creating a {kind}"))
    }

    /// Waits until the cluster's own controllers have put into every namespace what they put there.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let roots = ListParams::default().fields("metadata.name=kube-root-ca.crt");
        let accounts = ListParams::default().fields("metadata.name=default");
        loop {
            let namespaces = self.namespaces().await?;
            if self.count::<ConfigMap>(&roots).await? >= namespaces
                && self.count::<ServiceAccount>(&accounts).await? >= namespaces
            {
                sleep(Duration::from_secs(1)).await;
                return Ok(());
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    pub(crate) async fn namespaces(&self) -> anyhow::Result<usize> {
        self.count::<Namespace>(&ListParams::default()).await
    }

    async fn count<K>(&self, which: &ListParams) -> anyhow::Result<usize>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        Ok(Api::<K>::all(self.client.clone()).list_metadata(which).await?.items.len())
    }

    /// Every request at or after a time.
    pub(crate) fn requests(&self, from: Timestamp) -> anyhow::Result<Vec<Request>> {
        audit::since(&self.folder.0, from)
    }

    /// CPU seconds of API server and etcd so far.
    pub(crate) fn serving_cpu(&self) -> anyhow::Result<f64> {
        let of = |part: &str| {
            let pid = std::fs::read_to_string(self.folder.0.join(format!("{part}.pid")))?;
            process::cpu_seconds(pid.trim().parse()?)
        };
        Ok(of("kube-apiserver")? + of("etcd")?)
    }
}

/// A control plane's.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = script("down", &self.0) {
            eprintln!("{error:#}");
        }
    }
}

fn script(name: &str, folder: &Path) -> anyhow::Result<()> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name);
    let output = Command::new(program).arg(folder).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "tests/cluster/{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
}
