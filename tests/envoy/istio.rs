//! What Istio makes of our objects for Envoy, in proto JSON: a rendering of the parts of its pilot that they need.
//!
//! Whatever an object asks for beyond these parts fails the test, so that nothing seems to work that was not looked at.
//! Envoy is stricter than Istio in one thing: Istio drops fields that it does not know (`BuildXDSObjectFromStruct`),
//! Envoy refuses them.

use serde_json::{Value, json};

/// Objects in this namespace are for the pods of every namespace.
const ROOT_NAMESPACE: &str = "istio-system";

/// As much of a pod as Istio looks at.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    pub namespace: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
}

impl Pod<'_> {
    /// Whether an object is for this pod, given its selector's labels: no selector is every pod of the namespace.
    fn is_meant_by(&self, object: &Value, selector: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str().expect("an object as it is applied has a namespace");
        let wanted = selector.as_object().into_iter().flatten();
        (namespace == self.namespace || namespace == ROOT_NAMESPACE)
            && wanted.into_iter().all(|(key, value)| self.labels.iter().any(|label| label.0 == key && value == label.1))
    }
}

/// The outbound route configurations of a pod's sidecar, patched by EnvoyFilters in the order of their creation.
///
/// Before the patches they are as in `pilot/pkg/networking/core/httproute.go`: one for each port of a service, with a
/// virtual host for each service that has it and one for every other host.
pub fn outbound_routes(pod: &Pod<'_>, filters: &[Value]) -> Vec<Value> {
    let ports = [(8888, ["ml-pipeline", "other"]), (80, ["ml-pipeline-ui", "other"])];
    let mut configurations: Vec<Value> =
        ports.into_iter().map(|(port, names)| route_configuration(port, &names)).collect();
    for filter in filters {
        assert_eq!(
            (&filter["apiVersion"], &filter["kind"]),
            (&json!("networking.istio.io/v1alpha3"), &json!("EnvoyFilter"))
        );
        let spec = &filter["spec"];
        only(spec, "spec", &["workloadSelector", "configPatches"]);
        only(&spec["workloadSelector"], "workloadSelector", &["labels"]);
        if pod.is_meant_by(filter, &spec["workloadSelector"]["labels"]) {
            for change in list(&spec["configPatches"]) {
                for configuration in &mut configurations {
                    patch(configuration, change);
                }
            }
        }
    }
    configurations
}

fn route_configuration(port: u16, names: &[&str]) -> Value {
    let virtual_host = |name: &&str| {
        let (host, address) = (format!("{name}.kubeflow.svc.cluster.local"), format!("10.96.{}.1", name.len()));
        json!({
            "name": format!("{host}:{port}"),
            "domains": [host, format!("{name}.kubeflow"), format!("{name}.kubeflow.svc"), address],
            "routes": [{
                "name": "default",
                "match": {"prefix": "/"},
                "decorator": {"operation": format!("{host}:{port}/*")},
                "route": {"cluster": format!("outbound|{port}||{host}"), "timeout": "0s"},
            }],
            "include_request_attempt_count": true,
        })
    };
    let mut virtual_hosts: Vec<Value> = names.iter().map(virtual_host).collect();
    virtual_hosts.push(json!({
        "name": "allow_any",
        "domains": ["*"],
        "routes": [{
            "name": "allow_any",
            "match": {"prefix": "/"},
            "route": {"cluster": "PassthroughCluster", "timeout": "0s"},
        }],
        "include_request_attempt_count": true,
    }));
    json!({
        "name": port.to_string(),
        "virtual_hosts": virtual_hosts,
        "validate_clusters": false,
        "max_direct_response_body_size_bytes": 1_048_576,
        "ignore_port_in_host_matching": true,
    })
}

/// One patch, as in `pilot/pkg/networking/core/envoyfilter/rc_patch.go`. A match on a route's name is allowed, but has
/// no say in whether a virtual host is patched.
fn patch(configuration: &mut Value, change: &Value) {
    let (wanted, change_to) = (&change["match"], &change["patch"]);
    let routes = &wanted["routeConfiguration"];
    only(change, "configPatches", &["applyTo", "match", "patch"]);
    only(wanted, "match", &["context", "routeConfiguration"]);
    only(routes, "routeConfiguration", &["name", "portNumber", "vhost"]);
    only(&routes["vhost"], "vhost", &["name", "route"]);
    only(change_to, "patch", &["operation", "value"]);
    assert_eq!((&change["applyTo"], &change_to["operation"]), (&json!("VIRTUAL_HOST"), &json!("MERGE")));

    let matches = |wanted: &Value, is: &Value| wanted.is_null() || wanted == "" || wanted == 0 || wanted == is;
    let context = &wanted["context"];
    let port: u16 = configuration["name"].as_str().unwrap().parse().unwrap();
    if !(context == "ANY" || matches(context, &json!("SIDECAR_OUTBOUND")))
        || !matches(&routes["name"], &configuration["name"])
        || !matches(&routes["portNumber"], &json!(port))
    {
        return;
    }
    for virtual_host in configuration["virtual_hosts"].as_array_mut().unwrap() {
        if matches(&routes["vhost"]["name"], &virtual_host["name"]) {
            merge(virtual_host, &change_to["value"]);
        }
    }
}

/// Merges messages as `proto.Merge` does, which is what `pkg/proto/merge` does for virtual hosts: fields that are
/// repeated grow, messages merge, everything else is replaced. Maps look like messages in JSON, but would not merge.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(patch)) => {
            for (field, value) in patch {
                assert_ne!(field, "typed_per_filter_config", "a map is not rendered here");
                merge(into.entry(original_name(field)).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(patch)) => into.extend(patch.iter().cloned()),
        (into, patch) => *into = patch.clone(),
    }
}

/// Proto JSON takes `requestHeadersToAdd` and `request_headers_to_add` for the same field.
fn original_name(field: &str) -> String {
    field.chars().fold(String::new(), |mut name, letter| {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
        name
    })
}

/// The HTTP filters in front of a pod that AuthorizationPolicies make, as in `pilot/pkg/security/authz/builder` and
/// `model`: none if no policy is for the pod, otherwise one that lets through what any rule matches.
///
/// A principal is compared with the URI in the client's certificate. Istio does so by way of a filter state that its
/// own build of Envoy fills from it; `authenticated`, which is used here, is what it rendered before it had that.
pub fn authorization_filters(pod: &Pod<'_>, policies: &[Value]) -> Vec<Value> {
    let mut rendered = serde_json::Map::new();
    let mut is_any_for_pod = false;
    for policy in policies {
        let (metadata, spec) = (&policy["metadata"], &policy["spec"]);
        assert!(policy["apiVersion"].as_str().is_some_and(|version| version.starts_with("security.istio.io/")));
        assert_eq!(policy["kind"], "AuthorizationPolicy");
        only(spec, "spec", &["selector", "action", "rules"]);
        only(&spec["selector"], "selector", &["matchLabels"]);
        assert!(spec["action"].is_null() || spec["action"] == "ALLOW", "only ALLOW is rendered here: {policy}");
        if !pod.is_meant_by(policy, &spec["selector"]["matchLabels"]) {
            continue;
        }
        is_any_for_pod = true;
        for (index, rule) in list(&spec["rules"]).iter().enumerate() {
            let (namespace, name) = (metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
            rendered.insert(format!("ns[{namespace}]-policy[{name}]-rule[{index}]"), authorization_rule(rule));
        }
    }
    let filter = json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": rendered},
        },
    });
    is_any_for_pod.then_some(filter).into_iter().collect()
}

fn authorization_rule(rule: &Value) -> Value {
    only(rule, "rules", &["from", "when"]);
    let conditions: Vec<Value> = list(&rule["when"]).iter().flat_map(condition).collect();
    let every = |mut all: Vec<Value>| {
        if all.is_empty() {
            all.push(json!({"any": true}));
        }
        json!({"and_ids": {"ids": all}})
    };
    let mut principals: Vec<Value> = list(&rule["from"])
        .iter()
        .map(|from| {
            only(from, "from", &["source"]);
            only(&from["source"], "source", &["principals"]);
            let named = |name: &Value| json!({"authenticated": {"principal_name": string_matcher(name, "spiffe://")}});
            let sources = any_of(&from["source"]["principals"], named);
            every(sources.into_iter().chain(conditions.clone()).collect())
        })
        .collect();
    if principals.is_empty() {
        principals.push(every(conditions));
    }
    json!({"permissions": [{"and_rules": {"rules": [{"any": true}]}}], "principals": principals})
}

fn condition(when: &Value) -> Vec<Value> {
    only(when, "when", &["key", "values", "notValues"]);
    let header = when["key"].as_str().and_then(|key| key.strip_prefix("request.headers[")?.strip_suffix(']'));
    let header = header.unwrap_or_else(|| panic!("only conditions on headers are rendered here: {when}"));
    let has_value = |value: &Value| match value.as_str() {
        Some("*") => json!({"header": {"name": header, "present_match": true}}),
        _ => json!({"header": {"name": header, "string_match": string_matcher(value, "")}}),
    };
    let unwanted = any_of(&when["notValues"], has_value).map(|any| json!({"not_id": any}));
    any_of(&when["values"], has_value).into_iter().chain(unwanted).collect()
}

fn any_of(values: &Value, render: impl Fn(&Value) -> Value) -> Option<Value> {
    let any: Vec<Value> = list(values).iter().map(render).collect();
    (!any.is_empty()).then(|| json!({"or_ids": {"ids": any}}))
}

/// `pilot/pkg/security/authz/matcher/string.go`: a star at either end stands for anything, and nothing escapes it.
fn string_matcher(value: &Value, prefix: &str) -> Value {
    let value = value.as_str().unwrap();
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => json!({"safe_regex": {"regex": ".+"}}),
        (Some(end), _) if prefix.is_empty() => json!({"suffix": end}),
        (Some(end), _) => json!({"safe_regex": {"regex": format!("{prefix}.*{end}")}}),
        (None, Some(start)) => json!({"prefix": format!("{prefix}{start}")}),
        (None, None) => json!({"exact": format!("{prefix}{value}")}),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Fails where an object has a field that this rendering would overlook.
fn only(object: &Value, place: &str, fields: &[&str]) {
    for (field, _) in object.as_object().into_iter().flatten() {
        assert!(fields.contains(&field.as_str()), "{place}.{field} is not rendered here: {object}");
    }
}
