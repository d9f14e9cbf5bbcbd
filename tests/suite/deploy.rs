//! What is applied to a cluster: accepted by a real API server, understood by the binary, and hardened.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tenancy_fixer::cluster::names;
use tenancy_fixer::yaml;

use crate::server::{self, Certificate, Server};
use crate::support::{self, Cluster, kubectl, wait_for};

/// Base and overlays.
const INSTALLATIONS: [&str; 3] = ["base", "overlays/own-certificate", "overlays/cert-manager"];

/// Every object of one of them.
fn installation(folder: &str) -> Vec<Value> {
    let rendered = kubectl(&["kustomize", &format!("k8s-resources/{folder}")]);
    yaml::documents(folder, &rendered).unwrap().into_iter().map(|document| document.content).collect()
}

fn base() -> Vec<Value> {
    installation("base")
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in the base"))
}

#[test]
fn the_api_server_accepts_every_object() {
    let cluster = Cluster::shared();
    for namespace in ["kubeflow", "kubeflow-extension"] {
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
    }
    let overlays = fs::read_dir(support::root().join("k8s-resources/overlays")).unwrap();
    let overlays = overlays.map(|entry| format!("overlays/{}", entry.unwrap().file_name().display()));
    // Whatever overlays there are; the one of another namespace is applied for real by its own test.
    let overlays = overlays.filter(|folder| folder != "overlays/other-namespace");
    let folders: Vec<String> = std::iter::once("base".to_owned()).chain(overlays).collect();
    assert!(INSTALLATIONS.iter().all(|folder| folders.iter().any(|found| found == folder)));
    let mut seen = Vec::new();
    for object in folders.iter().flat_map(|folder| installation(folder)) {
        if seen.contains(&object) {
            continue;
        }
        seen.push(object.clone());
        // Strictly: a field that the API server does not know is a mistake.
        let arguments =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
        let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
        assert!(!said.contains("Warning"), "{}: {said}", object["kind"]);
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "tenancy-fixer", "{}", object["kind"]);
    }
}

/// Applied for real, so that an object whose namespace is missed lands where nobody made one.
#[test]
fn another_namespace_has_everything_but_the_rights_in_kubeflow() {
    let cluster = Cluster::shared();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}}));
    let objects = installation("overlays/other-namespace");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!(of_kind(&objects, "Namespace")["metadata"]["name"], "platform-tenancy");
    let mut places: Vec<String> = objects.iter().map(|object| text(&object["metadata"]["namespace"])).collect();
    places.sort();
    places.dedup();
    assert_eq!(places, ["", "kubeflow", "platform-tenancy"]);
    for object in objects.iter().filter(|object| text(&object["kind"]).ends_with("Binding")) {
        assert_eq!(object["subjects"][0]["namespace"], "platform-tenancy", "{object}");
    }
    let in_kubeflow: Vec<String> = objects
        .iter()
        .filter(|object| object["metadata"]["namespace"] == "kubeflow")
        .map(|object| text(&object["kind"]))
        .collect();
    assert_eq!(in_kubeflow, ["Role", "RoleBinding"]);
    let webhooks = of_kind(&objects, "MutatingWebhookConfiguration")["webhooks"].as_array().unwrap();
    for webhook in webhooks {
        assert_eq!(webhook["clientConfig"]["service"]["namespace"], "platform-tenancy", "{}", webhook["name"]);
    }
    let config_map = &of_kind(&objects, "ConfigMap")["metadata"]["name"];
    let volumes = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["configMap"]["name"], *config_map, "with its hash");

    cluster.apply(of_kind(&objects, "Namespace"));
    let arguments = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
    for object in &objects {
        cluster.kubectl_with(&arguments, &object.to_string());
    }
    cluster.kubectl(&["delete", "namespace", "platform-tenancy", "--wait=false"]);
}

#[test]
fn what_cannot_be_judged_is_not_made_where_only_the_owner_is_the_owner() {
    let objects = installation("overlays/owner-only");
    let webhooks = of_kind(&objects, "MutatingWebhookConfiguration")["webhooks"].as_array().unwrap();
    assert!(webhooks.iter().all(|webhook| webhook["failurePolicy"] == "Fail"));
    let container = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let variable = json!({"name": "TENANCY_FIXER_OWNER_ONLY", "value": "true"});
    assert!(container["env"].as_array().unwrap().contains(&variable));
}

#[test]
fn the_binary_understands_the_shipped_settings() {
    for folder in INSTALLATIONS {
        let objects = installation(folder);
        let settings = of_kind(&objects, "ConfigMap")["data"]["settings.yaml"].as_str().unwrap();
        let file = support::folder(&format!("deploy-{}", folder.replace('/', "-"))).join("settings.yaml");
        // What they need is in the pod only; an unknown key or value would be told before it is missed.
        fs::write(&file, settings).unwrap();
        let deployment = of_kind(&objects, "Deployment");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
        let arguments = arguments.into_iter().map(|argument| {
            if argument == "/etc/tenancy-fixer/settings.yaml" { file.display().to_string() } else { argument }
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        command.args(arguments).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        for variable in container["env"].as_array().into_iter().flatten() {
            // What the pod's own fields say, the pod knows.
            command.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap_or("here"));
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let missed = if folder == "base" {
            "certificates of our own need a cluster"
        } else {
            "reading the certificate /etc/tenancy-fixer-tls/tls.crt"
        };
        assert!(said.contains(missed), "{folder}: {said}");
    }
}

/// The Secret that the pods mount is the one that cert-manager writes, or create-cert.sh, in either case for the Service's name.
#[test]
fn a_certificate_of_somebody_else_is_where_the_pods_look_for_it() {
    let objects = installation("overlays/cert-manager");
    let pod = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"];
    let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "tls").unwrap();
    let certificate = objects
        .iter()
        .find(|object| object["kind"] == "Certificate" && object["metadata"]["name"] == "tenancy-fixer")
        .unwrap();
    assert_eq!(volume["secret"]["secretName"], certificate["spec"]["secretName"]);
    assert_eq!(certificate["spec"]["dnsNames"][0], "tenancy-fixer.kubeflow-extension.svc");
    let configuration = of_kind(&objects, "MutatingWebhookConfiguration");
    let injected = &configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
    assert_eq!(injected, "kubeflow-extension/tenancy-fixer");
    let script = fs::read_to_string(support::root().join("create-cert.sh")).unwrap();
    assert!(script.contains(&format!("secret={}\n", volume["secret"]["secretName"].as_str().unwrap())));
}

#[test]
fn the_pods_may_do_no_more_than_they_need() {
    let objects = base();
    let spec = &of_kind(&objects, "Deployment")["spec"];
    assert!(spec["replicas"].as_u64().unwrap() >= 2);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod.get("hostNetwork"), None);
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
        for field in ["readinessProbe", "livenessProbe"] {
            assert!(container[field].is_object(), "{field}");
        }
        for field in ["requests", "limits"] {
            assert!(container["resources"][field]["memory"].is_string(), "{field}");
        }
    }
    assert_eq!(spec["template"]["metadata"]["labels"]["sidecar.istio.io/inject"], "false");
    assert_eq!(
        of_kind(&objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"],
        "restricted"
    );
    assert!(of_kind(&objects, "PodDisruptionBudget").is_object() && of_kind(&objects, "NetworkPolicy").is_object());
}

/// What keeps one replica at work whatever happens to the other.
#[test]
fn replicas_are_spread_and_go_one_after_the_other() {
    let objects = base();
    let spec = &of_kind(&objects, "Deployment")["spec"];
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    let pod = &spec["template"]["spec"];
    let spread = pod["topologySpreadConstraints"].as_array().unwrap();
    let keys: Vec<_> = spread.iter().map(|constraint| constraint["topologyKey"].as_str().unwrap()).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    for constraint in spread {
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway", "one node has to do");
        assert_eq!(constraint["labelSelector"]["matchLabels"], spec["selector"]["matchLabels"]);
    }
    let class = of_kind(&objects, "PriorityClass");
    assert_eq!(pod["priorityClassName"], class["metadata"]["name"]);
    assert!(class["value"].as_i64().unwrap() < 1_000_000_000, "more is Kubernetes' own");
    assert_eq!((&class["preemptionPolicy"], &class["globalDefault"]), (&json!("Never"), &json!(false)));
    let budget = &of_kind(&objects, "PodDisruptionBudget")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["selector"]["matchLabels"], spec["selector"]["matchLabels"]);
}

/// The pod's grace has room for the drain's limit and the last answers; nothing else waits at the end.
#[test]
fn the_drain_fits_into_the_grace_period() {
    let objects = base();
    let pod = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"];
    let help = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let default = |flag: &str| -> u64 {
        let of_flag = &help[help.find(&format!("--{flag} ")).unwrap()..];
        let text = of_flag.split("[default: ").nth(1).unwrap().split('s').next().unwrap();
        text.parse().unwrap()
    };
    let (quiet, limit) = (default("drain-quiet"), default("drain-limit"));
    let last_answers = 3;
    assert!(quiet < limit && limit + last_answers < pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let container = &pod["containers"][0];
    assert_eq!(container.get("lifecycle"), None, "SIGTERM is enough");
    let probe = &container["readinessProbe"];
    let heard = probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
    assert!(quiet >= heard, "whoever goes by readiness alone has heard by then");
    let settings = of_kind(&objects, "ConfigMap")["data"]["settings.yaml"].as_str().unwrap();
    assert!(!settings.contains("drain-"), "the defaults are what was compared here");
}

/// A webhook that is called for its own pods, or for the cluster's, can keep both from coming back.
#[test]
fn our_own_namespace_and_the_clusters_are_never_intercepted() {
    let objects = base();
    let own = of_kind(&objects, "Namespace")["metadata"]["name"].as_str().unwrap();
    let webhooks = objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("WebhookConfiguration"));
    for webhook in webhooks.flat_map(|object| object["webhooks"].as_array().unwrap()) {
        let left_out = webhook["namespaceSelector"]["matchExpressions"].as_array().unwrap().iter().any(|expression| {
            let values = expression["values"].as_array().unwrap();
            expression["key"] == "kubernetes.io/metadata.name"
                && expression["operator"] == "NotIn"
                && [own, "kube-system", "kube-node-lease"].iter().all(|name| values.contains(&json!(name)))
        });
        assert!(left_out, "{}", webhook["name"]);
        // A request comes to one that changes and one that judges, and all webhooks share 30 seconds.
        let longest = if webhook["name"].as_str().unwrap().starts_with("gate") { 10 } else { 5 };
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= longest, "{}", webhook["name"]);
    }
}

#[test]
fn the_network_lets_in_two_ports_and_lets_out_to_the_api_server_and_registries() {
    let objects = base();
    let policy = &of_kind(&objects, "NetworkPolicy")["spec"];
    let ports = |rules: &Value| -> Vec<u64> {
        let rules = rules.as_array().unwrap().iter();
        rules.flat_map(|rule| rule["ports"].as_array().unwrap()).map(|port| port["port"].as_u64().unwrap()).collect()
    };
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(ports(&policy["ingress"]), [8443, 8080]);
    // The API server, registries, and the names of the latter.
    assert_eq!(ports(&policy["egress"]), [443, 6443, 53, 53]);
    let container = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let offered: Vec<_> = container["ports"].as_array().unwrap().iter().map(|port| &port["containerPort"]).collect();
    assert_eq!(offered, [8443, 8080], "as the policy has them");
}

/// Not the Deployment, which the API server takes in any case: its pods, under the rules of their namespace.
#[test]
fn the_namespace_lets_the_pods_in_and_nothing_worse() {
    let cluster = Cluster::shared();
    for folder in INSTALLATIONS {
        let objects = installation(folder);
        cluster.apply(of_kind(&objects, "PriorityClass"));
        let name = format!("deploy-pods-{}-{}", folder.replace('/', "-"), std::process::id());
        let template = &of_kind(&objects, "Deployment")["spec"]["template"];
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["name"] = json!("pod");
        let mut namespace = of_kind(&objects, "Namespace").clone();
        namespace["metadata"]["name"] = json!(name);
        cluster.apply(&namespace);
        let mut account = of_kind(&objects, "ServiceAccount").clone();
        account["metadata"]["namespace"] = json!(name);
        cluster.apply(&account);

        let create = ["create", "--namespace", &name, "--dry-run=server", "-f", "-"];
        let (_, said) = cluster.kubectl_with(&create, &pod.to_string());
        assert!(!said.contains("Warning"), "{folder}: {said}");
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        let refused = support::try_kubectl_with(&create, &pod.to_string());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("violates PodSecurity"), "{folder}: {refused:?}");
        cluster.kubectl(&["delete", "namespace", &name, "--wait=false"]);
    }
}

#[test]
fn the_roles_have_no_wildcards_and_nothing_that_grants_more() {
    for folder in INSTALLATIONS {
        let objects = installation(folder);
        let roles = objects.iter().filter(|object| ["ClusterRole", "Role"].contains(&object["kind"].as_str().unwrap()));
        for (role, rule) in
            roles.flat_map(|role| role["rules"].as_array().unwrap().iter().map(move |rule| (role, rule)))
        {
            let text = rule.to_string();
            if text.contains("pods") {
                // Our own, by name, and those of a tenant that changes its mode of identity.
                let verb = if role["kind"] == "Role" { "get" } else { "list" };
                assert_eq!((&rule["resources"], &rule["verbs"]), (&json!(["pods"]), &json!([verb])));
            }
            for word in ["*", "escalate", "impersonate", "\"bind\"", "\"rolebindings"] {
                assert!(!text.contains(word), "{folder}: {word} in {rule}");
            }
            // Secrets and webhooks by name, for certificates of our own alone; a Secret that is to be created has no name yet.
            let (secrets, webhooks) = (text.contains("secrets"), text.contains("webhookconfigurations"));
            if secrets || webhooks {
                assert_eq!(folder, "base", "{rule}");
                let creates = secrets && rule["verbs"] == json!(["create"]);
                assert!(creates || rule["resourceNames"].as_array().is_some_and(|names| names.len() == 1), "{rule}");
                assert!(!secrets || role["kind"] == "Role", "Secrets of every namespace: {rule}");
                assert!(!text.contains("delete"), "{rule}");
            }
        }
    }
}

/// kustomize renames what it takes for a reference to something that it has given another name, in roles too.
#[test]
fn the_rendered_roles_are_those_that_are_written() {
    let mut compared = 0;
    for folder in ["base", "overlays/other-namespace", "serving/base", "serving/target", "serving/tenants"] {
        let from = if folder.starts_with("overlays") { "base" } else { folder };
        let rendered = installation(folder);
        let mut written = Vec::new();
        for file in fs::read_dir(support::root().join("k8s-resources").join(from)).unwrap() {
            let path = file.unwrap().path();
            let is_object = path.extension().is_some_and(|end| end == "yaml") && !path.ends_with("kustomization.yaml");
            if is_object {
                let text = fs::read_to_string(&path).unwrap();
                written.extend(yaml::documents::<Value>(&path.display().to_string(), &text).unwrap());
            }
        }
        for role in written.iter().map(|document| &document.content).filter(|object| object.get("rules").is_some()) {
            let is_it = |object: &&Value| {
                object["kind"] == role["kind"] && object["metadata"]["name"] == role["metadata"]["name"] && {
                    let namespaces = [&object["metadata"]["namespace"], &role["metadata"]["namespace"]];
                    (namespaces[0] == "kubeflow") == (namespaces[1] == "kubeflow")
                }
            };
            let found = rendered.iter().find(is_it).unwrap_or_else(|| panic!("{folder}: {}", role["metadata"]));
            assert_eq!(found["rules"], role["rules"], "{folder}: {} {}", role["kind"], role["metadata"]["name"]);
            compared += 1;
        }
    }
    assert!(compared >= 12, "{compared}");
}

/// The server may ask about those who look, and look at nothing more than before; nobody is let in by installing it.
#[test]
fn the_page_asks_who_may_look_and_lets_in_nobody() {
    let (objects, base) = (installation("overlays/page"), base());
    let container = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    assert!(container["env"].as_array().unwrap().contains(&json!({"name": "TENANCY_FIXER_PAGE", "value": "true"})));
    let of = |kind: &str, name: &str| {
        objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).cloned()
    };
    let rights = of("ClusterRole", "tenancy-fixer-page").unwrap()["rules"].clone();
    let create =
        |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["create"]});
    let questions =
        [create("authentication.k8s.io", "tokenreviews"), create("authorization.k8s.io", "subjectaccessreviews")];
    assert_eq!(rights, json!(questions));
    let looking = of("ClusterRole", "tenancy-fixer-page-viewer").unwrap()["rules"].clone();
    assert_eq!(looking, json!([{"nonResourceURLs": [names::PAGE_URL], "verbs": ["get"]}]));
    let bindings = objects.iter().filter(|object| object["kind"] == "ClusterRoleBinding");
    assert!(bindings.clone().all(|binding| binding["roleRef"]["name"] != "tenancy-fixer-page-viewer"));
    let new = objects.iter().filter(|object| object["kind"] != "Deployment" && !base.contains(object)).count();
    assert_eq!(new, 3, "the rest is the base");
}

/// The launcher comes from the image that this pod runs, whatever an overlay has made of its name.
#[test]
fn tenants_pods_get_the_launcher_from_our_own_image() {
    let cluster = Cluster::shared();
    cluster.apply_shipped_account();
    let folder = support::folder("deploy-own-image");
    let kubeconfig = cluster.kubeconfig_of_shipped_account(&folder);
    let objects = base();
    cluster.apply(of_kind(&objects, "PriorityClass"));
    let mut pod = of_kind(&objects, "Deployment")["spec"]["template"].clone();
    let name = format!("tenancy-fixer-{}", std::process::id());
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"] = json!({"name": name, "namespace": "kubeflow-extension"});
    pod["spec"]["containers"][0]["image"] = json!("registry.example/mirror/tenancy-fixer@sha256:1234");
    cluster.apply(&pod);
    let environment =
        [("KUBECONFIG", &*kubeconfig), ("POD_NAME", name.as_ref()), ("POD_NAMESPACE", "kubeflow-extension".as_ref())];
    let start = |flags: &[&str], environment: &[(&str, &Path)]| {
        let server = Server::start_with(&Certificate::make(&folder), &["--only", "admission"], flags, environment);
        wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
        let said = |word: &str| server.lines().iter().any(|line| line.to_string().contains(word));
        (said("registry.example/mirror/tenancy-fixer@sha256:1234"), said("the launcher's image is not known"))
    };
    assert_eq!(start(&[], &environment), (true, false));
    assert_eq!(start(&["--launcher-image", "other"], &environment), (false, false));
    assert_eq!(start(&["--sidecar-lifecycle", "shell"], &environment), (false, false));
    assert_eq!(start(&[], &[]), (false, true));
    let wrong = [environment[0], ("POD_NAME", Path::new("nobody")), environment[2]];
    assert_eq!(start(&[], &wrong), (false, true));
    cluster.kubectl(&["delete", "pod", "-n", "kubeflow-extension", &name, "--wait=false"]);
}

/// What selects the pods, what the webhooks call and what the Service offers are the same thing in three places.
#[test]
fn the_webhooks_reach_the_pods() {
    let objects = base();
    let service = of_kind(&objects, "Service");
    let template = &of_kind(&objects, "Deployment")["spec"]["template"];
    for (label, value) in service["spec"]["selector"].as_object().unwrap() {
        assert_eq!(template["metadata"]["labels"][label], *value);
    }
    let port = service["spec"]["ports"].as_array().unwrap().iter().find(|port| port["port"] == 443).unwrap();
    let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
    assert!(
        ports
            .iter()
            .any(|offered| offered["name"] == port["targetPort"] || offered["containerPort"] == port["targetPort"])
    );
    let configuration = of_kind(&objects, "MutatingWebhookConfiguration");
    for webhook in configuration["webhooks"].as_array().unwrap() {
        let called = &webhook["clientConfig"]["service"];
        assert_eq!(
            (&called["name"], &called["namespace"], &called["port"]),
            (&service["metadata"]["name"], &service["metadata"]["namespace"], &json!(443))
        );
    }
}
