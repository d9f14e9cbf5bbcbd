//! A workspace for each tenant: MLflow as `components/workspaces` renders it asks a real API server who may do what.

use hyper::Method;
use serde_json::{Value, json};

use crate::mlflow::free_port;
use crate::pods::rendered;
use crate::support::{Cluster, wait_for};
use crate::tracking::{Installation, Server, tenant_of_server, tenants_variables};

/// Writes to each workspace, and prints what came of it.
const LOG: &str = "
import sys, mlflow
for workspace in sys.argv[2:]:
    mlflow.set_workspace(workspace)
    try:
        mlflow.set_experiment(sys.argv[1])
        with mlflow.start_run() as run:
            mlflow.log_metric('a', 1)
            mlflow.log_text('kept', 'note.txt')
        assert mlflow.artifacts.load_text(run.info.artifact_uri + '/note.txt') == 'kept'
        print('wrote to', workspace)
    except Exception as error:
        print('refused', workspace, str(error).replace(chr(10), ' ')[:200])
    try:
        print('sees in', workspace, *sorted(experiment.name for experiment in mlflow.search_experiments()))
    except Exception as error:
        print('blind in', workspace)
";

const OWNER: &str = "alice@example.com";

#[test]
fn a_tenant_has_its_workspace_and_no_other() {
    let cluster = Cluster::shared();
    let name = |of: &str| format!("workspace-{of}-{}", std::process::id());
    let (alice, bob, outside) = (name("alice"), name("bob"), name("outside"));
    let installation = Installation::new("workspaces", &["kubeflow", "workspaces", "people"]);
    for object in &installation.objects {
        let kind = object["kind"].as_str().unwrap();
        // Its namespace, its accounts and the roles, as they are shipped.
        if kind == "Namespace" || kind == "ServiceAccount" || kind.starts_with("ClusterRole") {
            cluster.apply(object);
        }
    }
    for (namespace, of) in [(&alice, "kubeflow-profile"), (&bob, "kubeflow-profile"), (&outside, "something-else")] {
        let labels = json!({"app.kubernetes.io/part-of": of});
        cluster.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
        );
        cluster.apply(
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default-editor", "namespace": namespace}}),
        );
        // Kubeflow adds the role to kubeflow-edit, and the profile controller binds that.
        cluster.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "default-editor", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kubeflow-mlflow-edit"},
            "subjects": [{"kind": "ServiceAccount", "name": "default-editor", "namespace": namespace}],
        }));
    }
    // Kubeflow's owner of one, who comes by browser.
    cluster.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "namespaceAdmin", "namespace": alice},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kubeflow-mlflow-edit"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OWNER}],
    }));
    let start = |deployment: &str| {
        let folder = installation.folder.join(format!("account-of-{deployment}"));
        std::fs::create_dir_all(&folder).unwrap();
        let account = cluster.kubeconfig_of(deployment, "mlflow", &folder);
        installation.start_with(deployment, deployment, |container| {
            // In a pod the token and the address of the API server are where the client looks for them.
            container.set("KUBECONFIG", account.to_str().unwrap());
            // Every answer is the API server's, as it is now.
            container.set("MLFLOW_K8S_AUTH_CACHE_TTL_SECONDS", "1");
        })
    };
    let (server, people) = std::thread::scope(|scope| {
        let people = scope.spawn(|| start("mlflow-people"));
        (start("mlflow"), people.join().unwrap())
    });
    let url = format!("{}/mlflow", server.url());
    let flags = ["--tenant-tracking-workspaces=true", "--tenant-tracking-auth=kubernetes"];
    // With the account of one, in the workspaces of those.
    let run = |of: &str, workspaces: &[&str]| {
        let folder = installation.folder.join(of);
        std::fs::create_dir_all(&folder).unwrap();
        let mut variables = tenants_variables(&url, &flags);
        let config = cluster.kubeconfig_of("default-editor", of, &folder);
        variables.push(("KUBECONFIG".to_owned(), config.display().to_string()));
        let experiment = format!("of-{of}");
        let arguments: Vec<&str> = ["-c", LOG, &experiment].into_iter().chain(workspaces.iter().copied()).collect();
        let output = tenant_of_server(&folder, &arguments, &variables).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        said
    };
    // Each in its own and in no other's; neither in one that is nobody's, nor by an account from there.
    let everywhere = [alice.as_str(), &bob, &outside];
    for of in [&alice, &bob, &outside] {
        let said = run(of, &everywhere);
        for workspace in everywhere {
            let (wrote, sees) = (format!("wrote to {workspace}\n"), format!("sees in {workspace} of-{of}\n"));
            let is_its_own = workspace == of && of != &outside;
            assert_eq!(said.contains(&wrote), is_its_own, "{of} in {workspace}: {said}");
            assert_eq!(said.contains(&sees), is_its_own, "{of} in {workspace}: {said}");
            let others = said.lines().filter(|line| line.starts_with(&format!("sees in {workspace}")));
            assert!(is_its_own || others.clone().all(|line| !line.contains("of-")), "{of} in {workspace}: {said}");
        }
    }
    let search = "/mlflow/api/2.0/mlflow/experiments/search?max_results=1";
    let (status, said) = server.call(Method::GET, search, &[("x-mlflow-workspace", &alice)], None);
    assert_eq!(status, 401, "{said}");

    // People, by what the gateway says of them: their own, and nobody else's; and the tenants' servers believe no such word.
    let seen_by = |server: &Server, user: &str, workspace: &str| {
        let by_name = format!("/mlflow/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=of-{workspace}");
        let headers = [("x-mlflow-workspace", workspace), ("kubeflow-userid", user)];
        server.call(Method::GET, &by_name, &headers, None).0
    };
    assert_eq!(seen_by(&people, OWNER, &alice), 200);
    assert_eq!(seen_by(&people, OWNER, &bob), 403);
    assert_eq!(seen_by(&people, "mallory@example.com", &alice), 403);
    assert_eq!(seen_by(&people, "", &alice), 401);
    assert_eq!(seen_by(&server, OWNER, &alice), 401);

    serves(&cluster, &installation, &server, [&alice, &bob]);

    // Rights that are taken away are gone here, too.
    let token = format!("Bearer {}", cluster.kubectl(&["create", "token", "default-editor", "-n", &bob]).trim());
    let status = || {
        let headers = [("x-mlflow-workspace", bob.as_str()), ("authorization", &token)];
        let by_name = format!("/mlflow/api/2.0/mlflow/experiments/get-by-name?experiment_name=of-{bob}");
        server.call(Method::GET, &by_name, &headers, None).0
    };
    assert_eq!(status(), 200);
    cluster.kubectl(&["delete", "rolebinding", "default-editor", "-n", &bob]);
    wait_for("bob's rights to be gone", || status() == 403);
    for namespace in [&alice, &bob, &outside] {
        cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
    }
}

/// What is in a tenant's workspace is served in its namespace, by the listener as `overlays/examples/kubeflow` has it, with its rights.
fn serves(cluster: &Cluster, installation: &Installation, server: &Server, workspaces: [&String; 2]) {
    let objects = rendered("k8s-resources/serving/overlays/examples/kubeflow");
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        if kind == "ServiceAccount" || kind.contains("Role") {
            cluster.apply(object);
        }
    }
    let account = "mlflow-kserve-webhook-listener";
    let folder = installation.folder.join("listener");
    std::fs::create_dir_all(&folder).unwrap();
    let kubeconfig = cluster.kubeconfig_of(account, "mlflow", &folder);
    // What is at a place of its own in a pod.
    let token = folder.join("token");
    std::fs::write(&token, cluster.kubectl(&["create", "token", account, "-n", "mlflow"])).unwrap();
    let [alice, bob] = workspaces;
    for workspace in workspaces {
        cluster.kubectl(&["label", "namespace", workspace, "kubeflow-extension/serving=true"]);
    }
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let shipped = |name: &str| {
        let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let found = variables.iter().find(|variable| variable["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        found["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(shipped("TENANCY_FIXER_MLFLOW_AUTH"), "kubernetes");
    let artifacts = shipped("MLFLOW_KSERVE_ARTIFACTS_URI");

    // Each tenant registers a model, with the token of its pods.
    for workspace in workspaces {
        let token = cluster.kubectl(&["create", "token", "default-editor", "-n", workspace]);
        let bearer = format!("Bearer {}", token.trim());
        let headers = [("x-mlflow-workspace", workspace.as_str()), ("authorization", &bearer)];
        let call = |path: &str, body: Value| {
            let (status, said) =
                server.call(Method::POST, &format!("/mlflow/api/2.0/mlflow/{path}"), &headers, Some(&body));
            assert_eq!(status, 200, "{path}: {said}");
        };
        call("registered-models/create", json!({"name": "wine"}));
        let source = format!("{artifacts}/workspaces/{workspace}/1/model");
        let tags = json!([{"key": "deploy", "value": "true"}]);
        call("model-versions/create", json!({"name": "wine", "source": source, "tags": tags}));
    }
    let port = free_port();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
    command.args([
        "serve",
        "--only",
        "serving",
        "--serving-lease-namespace",
        "mlflow",
        "--serving-polling-interval",
        "1s",
    ]);
    command.args(["--listen", "127.0.0.1:0", "--ops-listen", &format!("127.0.0.1:{port}"), "--drain-quiet", "0s"]);
    command.args(["--mlflow-tracking-uri", &format!("{}/mlflow", server.url())]).arg("--mlflow-token-file").arg(token);
    // Other tests have tenants, too.
    command.args(["--mlflow-workspaces", &format!("{alice},{bob}"), "--serving-instance", alice]);
    command.args(["--serving-target", &shipped("TENANCY_FIXER_SERVING_TARGET"), "--serving-artifacts-uri", &artifacts]);
    command.args(["--serving-mode", &shipped("TENANCY_FIXER_SERVING_MODE"), "--mlflow-webhook-secret", "a secret"]);
    command.args(["--mlflow-webhook-url", &format!("http://127.0.0.1:{port}/mlflow/webhook")]);
    command.env("KUBECONFIG", kubeconfig).env("HOME", "/nonexistent");
    let listener = crate::server::Server::started(command, std::path::PathBuf::new());
    listener.wait_for_line("the webhooks", |line| line["message"] == "MLflow has our webhook");
    for workspace in workspaces {
        wait_for("the model to be served", || cluster.get("inferenceservice", workspace, "wine-v1").is_some());
        let object = cluster.get("inferenceservice", workspace, "wine-v1").unwrap();
        let uri = &object["spec"]["predictor"]["model"]["storageUri"];
        assert_eq!(*uri, format!("{artifacts}/workspaces/{workspace}/1/model"));
    }
    // Its status could be written, too.
    wait_for("every tag", || listener.metric("tenancy_fixer_serving_writes_total{action=\"tag\"}") >= 2);
    let refused: Vec<_> = listener.lines().into_iter().filter(|line| line["level"] == "WARN").collect();
    assert!(refused.is_empty(), "{refused:?}");
}
