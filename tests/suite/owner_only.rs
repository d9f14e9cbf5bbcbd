//! Namespaces that are for their owner only, on a real API server with its real controllers: who gets the label that makes
//! a pod the owner's, and who does not. Users are impersonated, with the rights that Kubeflow gives a contributor.

use std::process::Output;

use serde_json::{Value, json};

use crate::cluster::configuration;
use crate::server::Server;
use crate::support::{Cluster, wait_for};
use crate::tenancy::Scene;

const OWNER: &str = "alice@example.com";
const CONTRIBUTOR: &str = "bob@example.com";
const WEB_APP: &str = "system:serviceaccount:kubeflow:jupyter-web-app-service-account";
const NOTEBOOK_CONTROLLER: &str = "system:serviceaccount:kubeflow:notebook-controller-service-account";
const KATIB: &str = "system:serviceaccount:kubeflow:katib-controller";

/// A tenant's namespace, a server that the API server asks about it, and users.
struct Tenant<'s, 'c> {
    scene: &'s Scene<'c>,
    name: String,
    server: Server,
}

impl<'s, 'c> Tenant<'s, 'c> {
    fn new(scene: &'s Scene<'c>, name: &str, flags: &[&str]) -> Self {
        let name = scene.tenant(name);
        let server = scene.lead(flags);
        scene.profile(&name, OWNER);
        scene.namespace(&name, OWNER);
        scene.cluster.kubectl(&["label", "namespace", &name, &format!("tenancy-fixer-test={name}")]);
        scene.cluster.kubectl(&["create", "serviceaccount", "default-editor", "-n", &name]);
        // As kubeflow-edit has it (kubeflow/manifests, common/kubeflow-roles), and a status that it does not have.
        scene.cluster.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "edit", "namespace": name},
            "rules": [{
                "apiGroups": ["", "apps", "batch", "kubeflow.org"],
                "resources": ["pods", "pods/status", "statefulsets", "replicasets", "jobs", "notebooks", "experiments", "trials", "pytorchjobs"],
                "verbs": ["*"],
            }],
        }));
        let users = [OWNER, CONTRIBUTOR, WEB_APP, NOTEBOOK_CONTROLLER, KATIB];
        let users = users.map(|name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}));
        scene.cluster.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "edit", "namespace": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "edit"}, "subjects": users,
        }));
        wait_for("its filters", || scene.granted(&name));
        let tenant = Self { scene, name, server };
        scene.cluster.apply(&configuration(&tenant.name, tenant.server.address, &scene.certificate));
        wait_for("the webhooks to be called", || {
            tenant.create_dry(OWNER, &pod("probe", json!({"notebook-name": "probe"})))["metadata"]["labels"]["kubeflow-extension"]
                == "true"
        });
        tenant
    }

    /// What is stored, and what the user is told.
    fn create(&self, user: &str, object: &Value) -> (Value, String) {
        let arguments = ["create", "-n", &self.name, "--as", user, "-o", "json", "-f", "-"];
        let (stored, said) = self.scene.cluster.kubectl_with(&arguments, &object.to_string());
        (serde_json::from_str(&stored).unwrap(), said)
    }

    fn create_dry(&self, user: &str, object: &Value) -> Value {
        let arguments = ["create", "-n", &self.name, "--as", user, "--dry-run=server", "-o", "json", "-f", "-"];
        serde_json::from_str(&self.scene.cluster.kubectl_with(&arguments, &object.to_string()).0).unwrap()
    }

    /// Runs kubectl as somebody, in the namespace.
    fn kubectl(&self, user: &str, arguments: &[&str]) -> Output {
        let mut all = vec!["-n", &self.name, "--as", user];
        all.extend(arguments);
        let output = self.scene.cluster.try_kubectl(&all);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    fn label_of(&self, pod: &str) -> Value {
        self.scene.get("pod", &self.name, pod).unwrap()["metadata"]["labels"]["kubeflow-extension"].clone()
    }

    /// The label of the pod that a controller makes, once it has.
    fn label_of_pod_of(&self, selector: &str) -> Value {
        let mut label = Value::Null;
        wait_for(&format!("the pod of {selector}"), || {
            let list = self.scene.cluster.kubectl(&["get", "pods", "-n", &self.name, "-l", selector, "-o", "json"]);
            let list: Value = serde_json::from_str(&list).unwrap();
            label = list["items"][0]["metadata"]["labels"]["kubeflow-extension"].clone();
            list["items"].as_array().is_some_and(|pods| !pods.is_empty())
        });
        label
    }

    /// What the notebook controller makes of a Notebook (kubeflow/notebooks, notebook_controller.go).
    fn stateful_set_of(&self, notebook: &Value) {
        let name = notebook["metadata"]["name"].as_str().unwrap();
        let labels = json!({"statefulset": name, "notebook-name": name});
        let owner = json!({
            "apiVersion": "kubeflow.org/v1", "kind": "Notebook", "name": name, "uid": notebook["metadata"]["uid"], "controller": true,
        });
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"statefulset": name}},
                "template": {"metadata": {"labels": labels}, "spec": notebook["spec"]["template"]["spec"]},
            },
        });
        self.create(NOTEBOOK_CONTROLLER, &set);
    }
}

impl Drop for Tenant<'_, '_> {
    fn drop(&mut self) {
        let configuration = format!("tenancy-fixer-{}", self.name);
        self.scene.cluster.try_kubectl(&[
            "delete",
            "mutatingwebhookconfiguration",
            &configuration,
            "--ignore-not-found",
        ]);
    }
}

fn pod(name: &str, labels: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec()});
    pod["metadata"]["labels"] = labels;
    pod
}

fn spec() -> Value {
    json!({"serviceAccountName": "default-editor", "containers": [{"name": "main", "image": "train:1"}]})
}

fn job(name: &str, labels: &Value, template: &Value) -> Value {
    let mut spec = spec();
    spec["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels},
        "spec": {"template": {"metadata": {"labels": template}, "spec": spec}},
    })
}

fn notebook(name: &str, creator: &str) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1", "kind": "Notebook",
        "metadata": {"name": name, "annotations": {"notebooks.kubeflow.org/creator": creator}},
        "spec": {"template": {"spec": spec()}},
    })
}

fn granted() -> Value {
    json!({"kubeflow-extension": "true"})
}

#[test]
fn a_pod_is_the_owners_only_if_the_owner_has_made_it() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-pods");
    let tenant = Tenant::new(&scene, "owner-only-pods", &["--owner-only", "true"]);

    let (stored, said) = tenant.create(OWNER, &pod("owners", granted()));
    assert_eq!((&stored["metadata"]["labels"]["kubeflow-extension"], said.as_str()), (&json!("true"), ""));
    let (stored, said) = tenant.create(CONTRIBUTOR, &pod("theirs", granted()));
    assert_eq!(stored["metadata"]["labels"]["kubeflow-extension"], "withheld");
    assert!(
        said.contains("does not act as the namespace's owner (owner-only): who creates it is not the owner"),
        "{said}"
    );
    // By their notebook's service account, which everybody in the namespace has.
    let editor = format!("system:serviceaccount:{}:default-editor", tenant.name);
    scene.cluster.kubectl(&[
        "create",
        "rolebinding",
        "editor",
        "-n",
        &tenant.name,
        "--role=edit",
        &format!("--user={editor}"),
    ]);
    tenant.create(&editor, &pod("from-inside", granted()));
    assert_eq!(tenant.label_of("from-inside"), "withheld");
    // Kinds of pods that we never look at otherwise.
    let mut kserve = granted();
    kserve["serving.kserve.io/inferenceservice"] = json!("model");
    tenant.create(CONTRIBUTOR, &pod("kserve", kserve));
    assert_eq!(tenant.label_of("kserve"), "withheld");
    let mut host_network = pod("host-network", granted());
    host_network["spec"]["hostNetwork"] = json!(true);
    tenant.create(CONTRIBUTOR, &host_network);
    assert_eq!(tenant.label_of("host-network"), "withheld");
}

#[test]
fn a_label_that_is_added_later_counts_for_the_owner_only() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-later");
    let tenant = Tenant::new(&scene, "owner-only-later", &["--owner-only", "true"]);
    tenant.create(CONTRIBUTOR, &pod("plain", json!({"app": "x"})));
    let calls = tenant.server.reviews().len();
    tenant.kubectl(CONTRIBUTOR, &["label", "pod", "plain", "color=red"]);
    assert_eq!(tenant.server.reviews().len(), calls, "an update of something else is not for us");

    let output = tenant.kubectl(CONTRIBUTOR, &["label", "pod", "plain", "kubeflow-extension=true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not act as the namespace's owner"), "{output:?}");
    assert_eq!(tenant.label_of("plain"), "withheld");
    tenant.kubectl(CONTRIBUTOR, &["label", "--overwrite", "pod", "plain", "kubeflow-extension=true"]);
    assert_eq!(tenant.label_of("plain"), "withheld");
    let labels = r#"{"metadata": {"labels": {"kubeflow-extension": "true"}}}"#;
    tenant.kubectl(CONTRIBUTOR, &["patch", "pod", "plain", "--subresource=status", "--type=merge", "-p", labels]);
    assert_eq!(tenant.label_of("plain"), "withheld");
    tenant.kubectl(OWNER, &["label", "--overwrite", "pod", "plain", "kubeflow-extension=true"]);
    assert_eq!(tenant.label_of("plain"), "true");
}

#[test]
fn a_notebooks_pod_is_the_owners_if_the_owner_has_made_the_notebook() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-notebooks");
    let tenant = Tenant::new(&scene, "owner-only-notebooks", &["--owner-only", "true"]);
    let creator = |name: &str| {
        scene.get("notebook", &tenant.name, name).unwrap()["metadata"]["annotations"]["kubeflow-extension/creator"]
            .clone()
    };
    let (owners, _) = tenant.create(WEB_APP, &notebook("owners", OWNER));
    let (theirs, _) = tenant.create(WEB_APP, &notebook("theirs", CONTRIBUTOR));
    let (forged, _) = tenant.create(CONTRIBUTOR, &notebook("forged", OWNER));
    assert_eq!(
        [creator("owners"), creator("theirs"), creator("forged")],
        [OWNER, CONTRIBUTOR, CONTRIBUTOR].map(Value::from)
    );
    let forgery = format!("kubeflow-extension/creator={OWNER}");
    let output = tenant.kubectl(CONTRIBUTOR, &["annotate", "--overwrite", "notebook", "theirs", &forgery]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("names nobody but whoever writes it"), "{output:?}");
    assert_eq!(creator("theirs"), CONTRIBUTOR);
    tenant.kubectl(CONTRIBUTOR, &["annotate", "notebook", "owners", "kubeflow-extension/creator-"]);
    assert_eq!(creator("owners"), OWNER);

    for notebook in [&owners, &theirs, &forged] {
        tenant.stateful_set_of(notebook);
    }
    assert_eq!(tenant.label_of_pod_of("notebook-name=owners"), "true");
    assert_eq!(tenant.label_of_pod_of("notebook-name=theirs"), "withheld");
    assert_eq!(tenant.label_of_pod_of("notebook-name=forged"), "withheld");
    // A set of their own, whose pods only look like the owner's notebook.
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "fake"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"set": "fake"}},
            "template": {"metadata": {"labels": {"set": "fake", "notebook-name": "owners", "kubeflow-extension": "true"}}, "spec": spec()},
        },
    });
    tenant.create(CONTRIBUTOR, &set);
    assert_eq!(tenant.label_of_pod_of("set=fake"), "withheld");

    // The owner takes one over, and its next pod is the owner's.
    tenant.kubectl(OWNER, &["annotate", "--overwrite", "notebook", "theirs", &forgery]);
    assert_eq!(creator("theirs"), OWNER);
    tenant.kubectl(OWNER, &["delete", "pod", "theirs-0", "--force"]);
    wait_for("another pod", || {
        let pod = scene.get("pod", &tenant.name, "theirs-0");
        pod.is_some_and(|pod| pod["metadata"]["labels"]["kubeflow-extension"] == "true")
    });
}

/// What Katib makes of an Experiment: its Trials have its labels (katib, pkg/controller.v1beta1/util/labels.go).
#[test]
fn an_experiments_trials_are_the_owners_if_the_owner_has_made_the_experiment() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-experiments");
    let tenant = Tenant::new(&scene, "owner-only-experiments", &["--owner-only", "true"]);
    let experiment = |name: &str, labels: Value| {
        json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "Experiment", "metadata": {"name": name, "labels": labels},
            "spec": {"maxTrialCount": 1},
        })
    };
    let label_of_trials_template = |experiment: &Value| {
        let metadata = &experiment["metadata"];
        let owner = json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "Experiment", "name": metadata["name"], "uid": metadata["uid"], "controller": true,
        });
        let trial = json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "Trial",
            "metadata": {"generateName": "trial-", "labels": metadata["labels"], "ownerReferences": [owner]},
            "spec": {
                "objective": {"type": "maximize", "objectiveMetricName": "accuracy"},
                "runSpec": job("any", &json!({"a": "b"}), &json!({"a": "b"})),
            },
        });
        let (trial, _) = tenant.create(KATIB, &trial);
        trial["spec"]["runSpec"]["spec"]["template"]["metadata"]["labels"]["kubeflow-extension"].clone()
    };
    let (owners, said) = tenant.create(OWNER, &experiment("owners", json!({"a": "b"})));
    assert_eq!((&owners["metadata"]["labels"]["kubeflow-extension"], said.as_str()), (&json!("true"), ""));
    assert_eq!(label_of_trials_template(&owners), "true");
    let (theirs, _) = tenant.create(CONTRIBUTOR, &experiment("theirs", granted()));
    assert_eq!(label_of_trials_template(&theirs), "withheld");
    tenant.kubectl(CONTRIBUTOR, &["label", "--overwrite", "experiment", "theirs", "kubeflow-extension=true"]);
    let theirs = scene.get("experiment", &tenant.name, "theirs").unwrap();
    assert_eq!(theirs["metadata"]["labels"]["kubeflow-extension"], "withheld");
}

#[test]
fn a_jobs_pods_are_the_owners_if_the_owner_has_made_the_job() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-jobs");
    let tenant = Tenant::new(&scene, "owner-only-jobs", &["--owner-only", "true"]);
    tenant.create(OWNER, &job("owners", &granted(), &json!({})));
    assert_eq!(tenant.label_of_pod_of("job-name=owners"), "true");
    let (_, said) = tenant.create(CONTRIBUTOR, &job("theirs", &granted(), &granted()));
    assert!(said.contains("not act as the namespace's owner"), "{said}");
    tenant.create(CONTRIBUTOR, &job("template-alone", &json!({"a": "b"}), &granted()));
    tenant.create(CONTRIBUTOR, &job("opted-out", &json!({"kubeflow-extension": "false"}), &granted()));
    for name in ["theirs", "template-alone", "opted-out"] {
        assert_eq!(tenant.label_of_pod_of(&format!("job-name={name}")), "withheld", "{name}");
    }
    // The template of a suspended Job may still be changed.
    let mut suspended = job("suspended", &json!({"a": "b"}), &json!({"a": "b"}));
    suspended["spec"]["suspend"] = json!(true);
    tenant.create(CONTRIBUTOR, &suspended);
    let label = r#"{"spec": {"template": {"metadata": {"labels": {"kubeflow-extension": "true"}}}}}"#;
    tenant.kubectl(CONTRIBUTOR, &["patch", "job", "suspended", "--type=merge", "-p", label]);
    tenant
        .kubectl(CONTRIBUTOR, &["patch", "job", "suspended", "--type=merge", "-p", r#"{"spec": {"suspend": false}}"#]);
    assert_eq!(tenant.label_of_pod_of("job-name=suspended"), "withheld");
    // Replicas of a kind that takes any change.
    let replicas = |labels: Value| {
        json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "torch"},
            "spec": {"pytorchReplicaSpecs": {"Master": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "pytorch"}]}}}}},
        })
    };
    tenant.create(CONTRIBUTOR, &replicas(json!({"a": "b"})));
    let change = json!({"spec": replicas(granted())["spec"]}).to_string();
    tenant.kubectl(CONTRIBUTOR, &["patch", "pytorchjob", "torch", "--type=merge", "-p", &change]);
    let stored = scene.get("pytorchjob", &tenant.name, "torch").unwrap();
    let template = &stored["spec"]["pytorchReplicaSpecs"]["Master"]["template"];
    assert_eq!(template["metadata"]["labels"]["kubeflow-extension"], "withheld");
}

/// The overlay `owner-only` has `failurePolicy: Fail`; this is what it does when nobody answers.
#[test]
fn while_nobody_answers_nothing_is_made_that_could_be_the_owners() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-closed");
    let tenant = Tenant::new(&scene, "owner-only-closed", &["--owner-only", "true"]);
    let mut closed = configuration(&tenant.name, "127.0.0.1:1".parse().unwrap(), &scene.certificate);
    let open = closed.clone();
    for webhook in closed["webhooks"].as_array_mut().unwrap() {
        webhook["failurePolicy"] = json!("Fail");
    }
    let create = |object: &Value| {
        let arguments =
            ["create", "-n", &tenant.name, "--as", CONTRIBUTOR, "--dry-run=server", "-o", "json", "-f", "-"];
        scene.cluster.try_kubectl_with(&arguments, &object.to_string())
    };
    scene.cluster.apply(&closed);
    wait_for("the refusal", || !create(&pod("theirs", granted())).status.success());
    let refused = create(&job("theirs", &json!({"a": "b"}), &granted()));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("failed calling webhook"), "{refused:?}");
    assert!(create(&pod("plain", json!({"app": "x"}))).status.success(), "others start");
    // By default it fails open, and what is made meanwhile has what it brings.
    scene.cluster.apply(&open);
    wait_for("the label", || {
        String::from_utf8_lossy(&create(&pod("theirs", granted())).stdout).contains(r#""kubeflow-extension": "true""#)
    });
}

/// A ReplicaSet stands for all that no webhook of ours is asked about.
#[test]
fn what_nobody_has_judged_makes_no_owner_unless_its_maker_is_trusted() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-unjudged");
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"set": "a"}},
            "template": {"metadata": {"labels": {"set": "a", "kubeflow-extension": "true"}}, "spec": spec()},
        },
    });
    // Whom the API server of the tests takes its controllers for.
    let trusts = ["--owner-only-trusts", "system:kube-controller-manager"];
    for (name, more, expected) in
        [("owner-only-unjudged", [].as_slice(), "withheld"), ("owner-only-trusts", trusts.as_slice(), "true")]
    {
        let tenant = Tenant::new(&scene, name, &[["--owner-only", "true"].as_slice(), more].concat());
        // Even the owner's own: nobody knows that, once it is there.
        tenant.create(OWNER, &set);
        assert_eq!(tenant.label_of_pod_of("set=a"), expected, "{name}");
    }
}

#[test]
fn a_namespace_says_itself_whether_it_is_for_its_owner_only() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owner-only-namespace");
    let tenant = Tenant::new(&scene, "owner-only-namespace", &[]);
    let label = |name: &str| {
        tenant.create_dry(CONTRIBUTOR, &pod(name, granted()))["metadata"]["labels"]["kubeflow-extension"].clone()
    };
    assert_eq!((label("any"), scene.removing_filter(&tenant.name)), (json!("true"), None));
    tenant.create(CONTRIBUTOR, &pod("early", granted()));

    scene.annotate(&tenant.name, "kubeflow-extension/owner-only=true");
    wait_for("the filter that takes the header off", || scene.removing_filter(&tenant.name).is_some());
    assert_eq!(label("any"), "withheld");
    assert_eq!(tenant.label_of("early"), "true", "what was there before stays what it is");
    let filter = scene.removing_filter(&tenant.name).unwrap();
    assert_eq!(filter["spec"].get("workloadSelector"), None, "it is for every pod");
    assert_eq!(
        filter["spec"]["configPatches"][0]["patch"]["value"],
        json!({"request_headers_to_remove": ["kubeflow-userid"]})
    );
    scene.cluster.kubectl(&["delete", "envoyfilter", "remove-header", "-n", &tenant.name]);
    wait_for("the filter again", || scene.removing_filter(&tenant.name).is_some());

    // In doubt about whose it is nobody is the owner.
    scene.annotate(&tenant.name, "owner=eve@example.com");
    wait_for("the withdrawal", || scene.filter(&tenant.name).is_none());
    let (stored, said) = tenant.create(OWNER, &pod("doubtful", granted()));
    assert_eq!(stored["metadata"]["labels"]["kubeflow-extension"], "withheld");
    assert!(said.contains("the owner is not known (yet); the Profile's Events say why"), "{said}");
    scene.annotate(&tenant.name, &format!("owner={OWNER}"));
    wait_for("the grant", || scene.granted(&tenant.name));

    scene.annotate(&tenant.name, "kubeflow-extension/owner-only=yes");
    wait_for("a warning", || {
        scene
            .warnings("Namespace", &tenant.name)
            .iter()
            .any(|(reason, text)| reason == "OwnerOnlyUnknown" && text.contains("\"yes\" is none of true, false"))
    });
    assert_eq!(label("any"), "withheld", "what is not understood is a yes");
    scene.annotate(&tenant.name, "kubeflow-extension/owner-only=false");
    wait_for("its end", || scene.removing_filter(&tenant.name).is_none() && scene.granted(&tenant.name));
    assert_eq!(label("any"), "true");
    // Without the label of a profile's namespace the API server asks nobody about its pods.
    scene.annotate(&tenant.name, "kubeflow-extension/owner-only=true");
    scene.cluster.kubectl(&["label", "namespace", &tenant.name, "app.kubernetes.io/part-of-"]);
    wait_for("the withdrawal where nobody judges", || scene.filter(&tenant.name).is_none());
    wait_for("a warning", || {
        scene.warnings("Profile", &tenant.name).iter().any(|(reason, _)| reason == "OwnerOnlyNotReviewed")
    });
}
