//! What is applied to a cluster: accepted by a real API server, understood by the binary, and hardened.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::support::{self, Cluster, kubectl};

/// Every object of the base.
fn base() -> Vec<Value> {
    let rendered = kubectl(&["kustomize", "k8s-resources/base"]);
    yaml::documents("base", &rendered).unwrap().into_iter().map(|document| document.content).collect()
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
    let objects = base();
    assert!(objects.len() >= 12, "{}", objects.len());
    for object in objects {
        // Strictly: a field that the API server does not know is a mistake.
        let arguments =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
        let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
        assert!(!said.contains("Warning"), "{}: {said}", object["kind"]);
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "tenancy-fixer", "{}", object["kind"]);
    }
}

#[test]
fn the_binary_understands_the_shipped_settings() {
    let objects = base();
    let settings = of_kind(&objects, "ConfigMap")["data"]["settings.yaml"].as_str().unwrap();
    let file = support::folder("deploy").join("settings.yaml");
    // The files that they name are in the pod only; an unknown key or value would be told before these are missed.
    fs::write(&file, settings).unwrap();
    let deployment = of_kind(&objects, "Deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let arguments = arguments.into_iter().map(|argument| {
        if argument == "/etc/tenancy-fixer/settings.yaml" { file.display().to_string() } else { argument }
    });
    let output = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("reading the certificate /etc/tenancy-fixer/tls/tls.crt"), "{said}");
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
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= 5, "all webhooks of a request share 30 seconds");
    }
}

#[test]
fn the_network_lets_in_the_two_ports_and_lets_out_to_the_api_server_alone() {
    let objects = base();
    let policy = &of_kind(&objects, "NetworkPolicy")["spec"];
    let ports = |rules: &Value| -> Vec<u64> {
        let rules = rules.as_array().unwrap().iter();
        rules.flat_map(|rule| rule["ports"].as_array().unwrap()).map(|port| port["port"].as_u64().unwrap()).collect()
    };
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(ports(&policy["ingress"]), [8443, 8080]);
    assert_eq!(ports(&policy["egress"]), [443, 6443]);
    let container = &of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let offered: Vec<_> = container["ports"].as_array().unwrap().iter().map(|port| &port["containerPort"]).collect();
    assert_eq!(offered, [8443, 8080], "as the policy has them");
}

/// Not the Deployment, which the API server takes in any case: its pods, under the rules of their namespace.
#[test]
fn the_namespace_lets_the_pods_in_and_nothing_worse() {
    let objects = base();
    let cluster = Cluster::shared();
    let name = format!("deploy-pods-{}", std::process::id());
    let template = &of_kind(&objects, "Deployment")["spec"]["template"];
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = json!("pod");
    let mut namespace = of_kind(&objects, "Namespace").clone();
    namespace["metadata"]["name"] = json!(name);
    cluster.apply(&namespace);
    cluster.apply(of_kind(&objects, "PriorityClass"));
    let mut account = of_kind(&objects, "ServiceAccount").clone();
    account["metadata"]["namespace"] = json!(name);
    cluster.apply(&account);

    let create = ["create", "--namespace", &name, "--dry-run=server", "-f", "-"];
    let (_, said) = cluster.kubectl_with(&create, &pod.to_string());
    assert!(!said.contains("Warning"), "{said}");
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    let refused = support::try_kubectl_with(&create, &pod.to_string());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("violates PodSecurity"), "{refused:?}");
    cluster.kubectl(&["delete", "namespace", &name, "--wait=false"]);
}

#[test]
fn the_roles_have_no_wildcards_and_nothing_that_grants_more() {
    for object in base().iter().filter(|object| ["ClusterRole", "Role"].contains(&object["kind"].as_str().unwrap())) {
        for rule in object["rules"].as_array().unwrap() {
            let rule = rule.to_string();
            for word in [
                "*",
                "secrets",
                "escalate",
                "impersonate",
                "\"bind\"",
                "\"rolebindings",
                "pods",
                "webhookconfigurations",
            ] {
                assert!(!rule.contains(word), "{word} in {rule}");
            }
        }
    }
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
