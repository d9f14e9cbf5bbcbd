//! The page in Chromium: with and without anything to see, with ten thousand tenants, wide and narrow, by keyboard, and as a screen reader
//! is told of it. What is looked for is in `tests/page/look.mjs`; its pictures are in `target/page/shots`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::layer::Layer;
use crate::page::Viewers;
use crate::registry::{Door, Image, Registry};
use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, Cluster, wait_for, wait_long_for};
use crate::wire;

/// Everything that the page shows something of, in a cluster of its own: what others make would be seen.
struct Scene<'c> {
    cluster: &'c Cluster,
    viewers: Viewers<'c>,
    folder: PathBuf,
    registry: Registry,
    server: Server,
}

impl<'c> Scene<'c> {
    fn new(cluster: &'c Cluster) -> Self {
        let folder = support::folder("page-browser");
        let viewers = Viewers::of(cluster, "browser");
        let registry = Registry::start(&folder, &Door::Open);
        let at = registry.address.to_string();
        let flags =
            ["--page", "true", "--gate", "enforce", "--insecure-registries", &at, "--registry-networks", "127.0.0.1"];
        // MLflow is not there: what is served is what the cluster says.
        let serving = [
            "--mlflow-tracking-uri",
            "http://127.0.0.1:9",
            "--mlflow-retries",
            "0",
            "--serving-mode",
            "poll",
            "--serving-namespace",
            "models",
            "--serving-artifacts-uri",
            "s3://bucket/mlflow",
        ];
        // With every right, so that this is about the page alone; tests of each capability run with the shipped ones.
        let environment = [("KUBECONFIG", cluster.kubeconfig())];
        let capabilities = ["--only", "admission,tenancy,gate,serving"];
        let all = [&flags[..], &serving[..]].concat();
        let server = Server::start_with(&Certificate::make(&folder), &capabilities, &all, &environment);
        wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
        Self { cluster, viewers, folder, registry, server }
    }

    /// Has Chromium look.
    fn look(&self, scenario: &str) {
        let tools = support::root().join("target/page");
        let shots = tools.join("shots");
        std::fs::create_dir_all(&shots).unwrap();
        let mut process = Command::new("node")
            .arg(support::root().join("tests/page/look.mjs"))
            .env("TMPDIR", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node runs; tests/setup installs it");
        let url = format!("http://{}/", self.server.operations);
        let told =
            json!({"scenario": scenario, "url": url, "token": self.viewers.token(), "tools": tools, "shots": shots});
        process.stdin.take().unwrap().write_all(told.to_string().as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{scenario}: {}{}", text(&output.stdout), text(&output.stderr));
        eprint!("{}", text(&output.stdout));
    }

    fn review(&self, path: &str, namespace: &str, object: &Value) {
        let mut review = wire::review(object);
        review["request"]["namespace"] = json!(namespace);
        assert_eq!(server::post(&self.server, path, review.to_string()).status(), 200);
    }

    fn tenant(&self, name: &str, owner: &str, annotation: &str) {
        self.cluster.apply(&profile(name, owner));
        let labels = json!({"app.kubernetes.io/part-of": "kubeflow-profile", "istio-injection": "enabled"});
        let metadata = json!({"name": name, "annotations": {"owner": annotation}, "labels": labels});
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }

    fn model(&self, model: &str, version: &str, status: &Value) {
        let name: String = model.chars().filter(char::is_ascii_alphanumeric).collect();
        let name = format!("{name}-v{version}");
        let object = json!({
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
            "metadata": {
                "name": name, "namespace": "models",
                "labels": {"kubeflow-extension/serving": "mlflow"},
                "annotations": {"mlflow.org/model-name": model, "mlflow.org/model-version": version},
            },
            "spec": {"predictor": {"model": {"modelFormat": {"name": "mlflow"}, "storageUri": "s3://bucket/mlflow/x"}}},
        });
        self.cluster.apply(&object);
        let patch = json!({"status": status}).to_string();
        let arguments = ["patch", "inferenceservice", "-n", "models", &name];
        self.cluster.kubectl(&[&arguments[..], &["--subresource", "status", "--type", "merge", "-p", &patch]].concat());
    }

    /// Whether the page, which nobody looks at in between, has this text.
    fn shows(&self, path: &str, text: &str) -> bool {
        self.viewers.look(&self.server, path).contains(text)
    }
}

fn profile(name: &str, owner: &str) -> Value {
    json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": name}, "spec": {"owner": {"kind": "User", "name": owner}}})
}

fn job(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": {"kubeflow-extension": "true"}},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": image}]}}},
    })
}

#[test]
fn the_page_is_good_to_look_at() {
    let cluster = Cluster::own("page");
    let scene = Scene::new(&cluster);
    scene.look("empty");
    some(&scene);
    scene.look("some");
    scene.look("still");
    live(&scene);
    many(&scene);
    scene.look("many");
}

/// Something of everything.
fn some(scene: &Scene<'_>) {
    for (name, owner, annotation) in [
        ("alice", "alice@example.org", "alice@example.org"),
        ("bob", "bob@example.org", "somebody-else@example.org"),
        ("carol", "carol@example.org", "carol@example.org"),
        (
            "with-a-name-that-is-as-long-as-kubernetes-lets-a-namespaces-be",
            "somebody.with.a.long.name.too@department.example.org",
            "",
        ),
    ] {
        scene.tenant(name, owner, annotation);
    }
    scene.cluster.apply(&profile("dave", "dave@example.org"));
    scene.cluster.kubectl(&["label", "namespace", "carol", "kubeflow-extension=false"]);
    let at = scene.registry.address;
    block_on(async {
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["python", "train.py"], "WorkingDir": "/app"}});
        for (tag, text) in [("good", "import mlflow\nmlflow.log_metric('a', 1)\n"), ("bad", "print('accuracy=1')\n")] {
            let layers = vec![Layer::new().wheel("mlflow_skinny").gzip(), Layer::of(&[("/app/train.py", text)]).gzip()];
            let image = Image { config: config.clone(), layers, ..Image::running("") };
            scene.registry.push("team/job", tag, &image).await;
        }
    });
    for (name, tag) in [("fraud-training", "good"), ("churn-training", "bad"), ("lost-training", "gone")] {
        let image = match tag {
            "gone" => format!("{at}/team/nothing:v1"),
            tag => format!("{at}/team/job:{tag}"),
        };
        scene.review("/job/mutate", "alice", &job(name, &image));
        scene.review("/job/validate", "alice", &job(name, &image));
    }
    for number in 0..30 {
        let labels = json!({"notebook-name": format!("notebook-{number}")});
        let metadata = json!({"name": format!("notebook-{number}-0"), "labels": labels});
        let spec = json!({"containers": [{"name": "notebook", "image": "jupyter"}]});
        scene.review(
            "/pod/mutate",
            "alice",
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        );
    }
    scene.review(
        "/pod/mutate",
        "bob",
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "<script>alert(1)</script>"}}),
    );
    let labels = json!({"notebook-name": "x", "kubeflow-extension": "perhaps"});
    scene.review(
        "/pod/mutate",
        "bob",
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "unsure-", "labels": labels}}),
    );
    scene.cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "models"}}));
    scene.model(
        "fraud",
        "3",
        &json!({"url": "http://fraud-v3.models.example.org", "conditions": [{"type": "Ready", "status": "True"}]}),
    );
    let message = "container kserve-container is waiting: CrashLoopBackOff";
    scene.model("churn", "12", &json!({"conditions": [{"type": "Ready", "status": "False", "message": message}]}));
    scene.model(
        "javascript:alert(1)",
        "1",
        &json!({"url": "javascript:alert(1)", "conditions": [{"type": "Ready", "status": "True"}]}),
    );
    for text in ["nothing granted", "make them agree", "CrashLoopBackOff", "alice@example.org"] {
        wait_for(text, || scene.shows("/", text));
    }
    wait_for("alice's objects", || !scene.shows("/?q=alice", "is missing"));
}

/// Reviews come all the time while somebody looks.
fn live(scene: &Scene<'_>) {
    let ended = Arc::new(AtomicBool::new(false));
    let (target, over) = (scene.server.target(), Arc::clone(&ended));
    let reviews = std::thread::spawn(move || {
        for number in 0.. {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("live-{number}")}});
            target.post("/pod/mutate", wire::review(&pod).to_string());
            if over.load(Ordering::Relaxed) {
                return;
            }
            // As fast as people can follow.
            std::thread::sleep(Duration::from_millis(400));
        }
    });
    scene.look("live");
    ended.store(true, Ordering::Relaxed);
    reviews.join().unwrap();
}

/// Ten thousand tenants. They have a Profile and no namespace, which would take the API server minutes; judged they are all the same.
fn many(scene: &Scene<'_>) {
    let began = Instant::now();
    let kubeconfig = kube::config::Kubeconfig::read_from(scene.cluster.kubeconfig()).unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let options = kube::config::KubeConfigOptions::default();
        let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap();
        let kind = kube::core::GroupVersionKind::gvk("kubeflow.org", "v1", "Profile");
        let profiles: Api<DynamicObject> = Api::all_with(client, &ApiResource::from_gvk_with_plural(&kind, "profiles"));
        stream::iter(0..10_000)
            .for_each_concurrent(64, |number| {
                let profiles = &profiles;
                async move {
                    let object = profile(&format!("crowd-{number:05}"), &format!("user-{number}@example.org"));
                    let object: DynamicObject = serde_json::from_value(object).unwrap();
                    profiles.create(&PostParams::default(), &object).await.unwrap();
                }
            })
            .await;
    });
    eprintln!("10,000 Profiles in {:.0?}", began.elapsed());
    wait_long_for("all of them", Duration::from_mins(2), || scene.shows("/?q=crowd-", "10,000 of 10,00"));
    eprintln!("memory: {} KiB, at most {} KiB", scene.server.memory("VmRSS"), scene.server.memory("VmHWM"));
}
