//! Containers that leave their command to the image: a real registry says what they run, and the pod is changed accordingly.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tenancy_fixer::admission::Endpoint;

use crate::registry::{Door, Image, Registry, USER};
use crate::server::{Certificate, Server, block_on, post};
use crate::support::{self, Cluster, LAUNCHER_IMAGE};
use crate::wire;

/// A server that may ask a registry on loopback.
fn serve(name: &str, registry: &str, flags: &[&str], environment: &[(&str, &Path)]) -> Server {
    let certificate = Certificate::make(&support::folder(&format!("entrypoints-{name}")));
    let own =
        ["--launcher-image", LAUNCHER_IMAGE, "--registry-networks", "127.0.0.1", "--insecure-registries", registry];
    Server::start_with(&certificate, &["--only", "admission"], &[&own, flags].concat(), environment)
}

/// A job's pod beside a classic sidecar, whose only container has no command.
fn pod(namespace: &str, image: &str, args: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "work", "namespace": namespace, "labels": {"kubeflow-extension": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"name": "work", "image": image, "args": args}, {"name": "istio-proxy", "image": "proxyv2"}],
        },
    })
}

/// Command and arguments of the container as it is stored, and what its owner is told.
fn reviewed(server: &Server, pod: &Value) -> (Value, Value, Vec<String>) {
    let mut review = wire::review(pod);
    review["request"]["namespace"] = pod["metadata"]["namespace"].clone();
    let answer: Value =
        serde_json::from_slice(post(server, Endpoint::PodMutate.path(), review.to_string()).body()).unwrap();
    let mut stored = pod.clone();
    if let Some(patch) = answer["response"]["patch"].as_str() {
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        json_patch::patch(&mut stored, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    }
    let warnings = serde_json::from_value(answer["response"]["warnings"].clone()).unwrap_or_default();
    let container = &stored["spec"]["containers"][0];
    (container["command"].clone(), container["args"].clone(), warnings)
}

const PREFIX: [&str; 2] = ["/kubeflow-extension/launcher/launcher", "--"];

#[test]
fn the_images_own_command_goes_behind_the_launcher() {
    let registry = Registry::start(&support::folder("entrypoints-images"), &Door::Open);
    let at = registry.address.to_string();
    let mut image = Image::running("/bin/train");
    image.config["config"]["Entrypoint"] = json!(["/bin/train", "--pay=$$5 $(HOME)"]);
    block_on(registry.push("team/job", "v1", &image));
    image.config["config"]["Entrypoint"] = json!([]);
    image.config["config"]["Cmd"] = json!([]);
    block_on(registry.push("team/empty", "v1", &image));
    let server = serve("known", &at, &[], &[]);

    // The kubelet would expand what it leaves alone in an image.
    let command = json!([PREFIX[0], PREFIX[1], "/bin/train", "--pay=$$$$5 $$(HOME)"]);
    let job = format!("{at}/team/job:v1");
    let (found, args, warnings) = reviewed(&server, &pod("alice", &job, &Value::Null));
    assert_eq!((found, args, warnings), (command.clone(), json!(["--an", "argument"]), Vec::new()));
    let (found, args, _) = reviewed(&server, &pod("alice", &job, &json!(["own $(HOME)"])));
    assert_eq!((found, args), (command, json!(["own $(HOME)"])));

    let (found, _, warnings) = reviewed(&server, &pod("alice", &format!("{at}/team/empty:v1"), &Value::Null));
    assert_eq!(found, Value::Null);
    assert!(warnings.concat().contains("container work has no command (its image has none)"), "{warnings:?}");
    let (found, args, _) = reviewed(&server, &pod("alice", &format!("{at}/team/empty:v1"), &json!(["/bin/sh"])));
    assert_eq!((found, args), (json!(PREFIX), json!(["/bin/sh"])), "arguments alone are a command");

    let (found, _, warnings) = reviewed(&server, &pod("alice", &format!("{at}/team/none:v1"), &Value::Null));
    assert_eq!(found, Value::Null);
    assert!(warnings.concat().contains("work has no command (") && warnings.iter().all(|text| text.len() < 256));
    let (_, _, warnings) = reviewed(&server, &pod("alice", "Not an image", &Value::Null));
    assert!(warnings.concat().contains("container work has no command"), "{warnings:?}");

    let never = serve("never", &at, &["--image-lookups", "false"], &[]);
    let (found, _, warnings) = reviewed(&never, &pod("alice", &job, &Value::Null));
    assert_eq!(found, Value::Null);
    assert!(warnings.concat().contains("its image was not asked"), "{warnings:?}");
}

/// The API server waits for three seconds.
#[test]
fn a_registry_that_does_not_answer_costs_no_review() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap().to_string();
    let server = serve("silent", &at, &[], &[]);
    let begin = Instant::now();
    let (found, _, warnings) = reviewed(&server, &pod("alice", &format!("{at}/team/job:v1"), &Value::Null));
    let took = begin.elapsed();
    assert_eq!(found, Value::Null);
    assert!(warnings.concat().contains("still being asked"), "{warnings:?}");
    assert!(took < Duration::from_millis(2900), "{took:?}");
}

/// The pod's own pull secrets are used where the overlay lets us read them, and for nobody else.
#[test]
fn a_private_image_is_asked_with_the_pods_own_pull_secrets() {
    let cluster = Cluster::shared();
    cluster.apply_shipped_account();
    let folder = support::folder("entrypoints-private");
    // Pushed where the door is open, and asked for where it is not.
    block_on(Registry::start(&folder, &Door::Open).push("team/private", "v1", &Image::running("/bin/private")));
    let registry = Registry::start(&folder, &Door::Basic);
    let at = registry.address.to_string();
    let image = format!("{at}/team/private:v1");
    let (mine, other) = (format!("pulls-{}", std::process::id()), format!("pulls-not-{}", std::process::id()));
    let login = json!({"auths": {&at: {"username": USER.0, "password": USER.1}}}).to_string();
    for namespace in [&mine, &other] {
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
    }
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "registry", "namespace": mine}, "stringData": {".dockerconfigjson": login},
    }));
    let kubeconfig = cluster.kubeconfig_of_shipped_account(&folder);
    let start = |name| serve(name, &at, &["--image-pull-secrets", "true"], &[("KUBECONFIG", &kubeconfig)]);
    let known =
        |server: &Server, namespace: &str| reviewed(server, &pod(namespace, &image, &Value::Null)).0 != Value::Null;

    assert!(!known(&start("without-rights"), &mine), "the base lets nobody read Secrets");
    cluster.kubectl(&["apply", "-f", "k8s-resources/overlays/pull-secrets/role.yaml"]);
    let server = start("with-rights");
    assert!(known(&server, &mine));
    assert!(!known(&server, &other), "what one tenant may see is not told to another");
    let lines = server.lines().iter().map(Value::to_string).collect::<String>();
    assert!(!lines.contains(USER.1), "no password in the log");
    cluster.kubectl(&["delete", "-f", "k8s-resources/overlays/pull-secrets/role.yaml"]);
    cluster.kubectl(&["delete", "namespace", &mine, &other, "--wait=false"]);
}
