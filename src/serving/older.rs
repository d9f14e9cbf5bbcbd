//! The variables of the listener that was here before (`MLFLOW_KSERVE_...`), as values of our flags. Pure.

/// A value of a flag, and the variable that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Older {
    /// Its long name.
    pub flag: &'static str,
    /// As clap reads it.
    pub value: String,
    /// For messages.
    pub variable: String,
}

const PREFIX: &str = "MLFLOW_KSERVE_";

/// How a value is to be read.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Seconds,
    Boolean,
    Level,
    /// One of its values says the mode, the other nothing.
    Disables,
    /// Known, and of no consequence: we find the cluster as kubectl does.
    Checked,
}

/// Variable, flag, form. Those of host, port and certificate are below: they go together.
const VARIABLES: &[(&str, &str, Form)] = &[
    ("MLFLOW_TRACKING_URI", "mlflow-tracking-uri", Form::Text),
    ("MLFLOW_WEBHOOK_SECRET", "mlflow-webhook-secret", Form::Text),
    ("MLFLOW_WEBHOOK_URL", "mlflow-webhook-url", Form::Text),
    ("MLFLOW_WEBHOOK_NAME", "mlflow-webhook-name", Form::Text),
    ("KUBE_NAMESPACE", "serving-namespace", Form::Text),
    ("KUBE_IN_CLUSTER", "", Form::Checked),
    ("INFERENCE_SERVICE_TEMPLATE", "serving-template", Form::Text),
    ("PREDICTOR_CPU_REQUEST", "serving-cpu-request", Form::Text),
    ("PREDICTOR_CPU_LIMIT", "serving-cpu-limit", Form::Text),
    ("PREDICTOR_MEMORY_REQUEST", "serving-memory-request", Form::Text),
    ("PREDICTOR_MEMORY_LIMIT", "serving-memory-limit", Form::Text),
    ("LOG_LEVEL", "log-level", Form::Level),
    ("DISABLE_WEBHOOKS", "serving-mode", Form::Disables),
    ("WEBHOOK_STARTUP_TIMEOUT", "mlflow-webhook-timeout", Form::Seconds),
    ("WEBHOOK_STARTUP_RETRIES", "mlflow-webhook-retries", Form::Text),
    ("ENABLE_POLLING_FALLBACK", "serving-polling-fallback", Form::Boolean),
    ("POLLING_INTERVAL", "serving-polling-interval", Form::Seconds),
];

/// Reads an environment. Names count in any case, others with the prefix are not looked at, as ever: a Service called
/// mlflow-kserve-... makes Kubernetes set some.
///
/// # Errors
/// Values that cannot be read, and variables that contradict each other, by their names.
pub fn older(environment: &[(String, String)]) -> Result<Vec<Older>, String> {
    let get = |suffix: &str| {
        let is_it = |name: &str| {
            name.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
                && name.get(PREFIX.len()..).is_some_and(|rest| rest.eq_ignore_ascii_case(suffix))
        };
        environment.iter().find(|(name, _)| is_it(name)).map(|(_, value)| value.trim().to_owned())
    };
    let mut found = Vec::new();
    for (suffix, flag, form) in VARIABLES {
        let Some(text) = get(suffix).filter(|text| !text.is_empty()) else { continue };
        let variable = format!("{PREFIX}{suffix}");
        let value = read(*form, &text).map_err(|expected| format!("{variable}={text:?}: expected {expected}"))?;
        found.extend(value.map(|value| Older { flag, value, variable }));
    }
    found.extend(artifacts(get("ARTIFACTS_URI"), get("STORAGE_URI_BASE"))?);
    found.extend(port(&get)?);
    let off = |suffix: &str, form| {
        get(suffix).is_some_and(|text| read(form, &text).is_ok_and(|value| value.as_deref() == Some("false")))
    };
    if found.iter().any(|older| older.flag == "serving-mode") && off("ENABLE_POLLING_FALLBACK", Form::Boolean) {
        return Err(format!(
            "{PREFIX}DISABLE_WEBHOOKS=true and {PREFIX}ENABLE_POLLING_FALLBACK=false: neither webhook nor polling would be left; one of them has to go"
        ));
    }
    Ok(found)
}

fn read(form: Form, text: &str) -> Result<Option<String>, &'static str> {
    let boolean = || match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "y" | "t" => Ok(true),
        "false" | "0" | "no" | "off" | "n" | "f" => Ok(false),
        _ => Err("true or false"),
    };
    match form {
        Form::Text => Ok(Some(text.to_owned())),
        Form::Boolean => boolean().map(|value| Some(value.to_string())),
        Form::Checked => boolean().map(|_| None),
        Form::Disables => boolean().map(|disabled| disabled.then(|| "poll".to_owned())),
        Form::Seconds => {
            let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds > 0.0);
            let seconds = seconds.ok_or("a number of seconds above 0")?;
            Ok(Some(format!("{}ms", (seconds * 1000.0).round().max(1.0))))
        }
        Form::Level => match text.to_ascii_lowercase().as_str() {
            "critical" => Ok(Some("error".to_owned())),
            "warning" => Ok(Some("warn".to_owned())),
            level @ ("error" | "info" | "debug") => Ok(Some(level.to_owned())),
            _ => Err("DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        },
    }
}

/// Documents and overlays of the old listener had the second name, its program the first.
fn artifacts(new: Option<String>, stale: Option<String>) -> Result<Option<Older>, String> {
    let set = |value: Option<String>| value.filter(|value| !value.is_empty());
    let older = |value: String, suffix: &str| Older {
        flag: "serving-artifacts-uri",
        value,
        variable: format!("{PREFIX}{suffix}"),
    };
    match (set(new), set(stale)) {
        (Some(new), Some(stale)) if new.trim_end_matches('/') != stale.trim_end_matches('/') => Err(format!(
            "{PREFIX}ARTIFACTS_URI={new:?} and {PREFIX}STORAGE_URI_BASE={stale:?} are two names of one setting; one of them has to go"
        )),
        (Some(uri), _) => Ok(Some(older(uri, "ARTIFACTS_URI"))),
        (None, Some(uri)) => Ok(Some(older(uri, "STORAGE_URI_BASE"))),
        (None, None) => Ok(None),
    }
}

/// The old listener had one port, with TLS if there was a certificate; of our two, that is one or the other.
fn port(get: &impl Fn(&str) -> Option<String>) -> Result<Vec<Older>, String> {
    let set = |suffix: &str| get(suffix).filter(|value| !value.is_empty());
    let older = |flag, value, suffix: &str| Older { flag, value, variable: format!("{PREFIX}{suffix}") };
    let mut found = Vec::new();
    let is_tls = match (set("SSL_CERTFILE"), set("SSL_KEYFILE")) {
        (Some(certificate), Some(key)) => {
            found.push(older("tls-cert", certificate, "SSL_CERTFILE"));
            found.push(older("tls-key", key, "SSL_KEYFILE"));
            true
        }
        (None, None) => false,
        (Some(_), None) => {
            return Err(format!("{PREFIX}SSL_CERTFILE is set and {PREFIX}SSL_KEYFILE is not; both or neither"));
        }
        (None, Some(_)) => {
            return Err(format!("{PREFIX}SSL_KEYFILE is set and {PREFIX}SSL_CERTFILE is not; both or neither"));
        }
    };
    let (host, number) = (set("APP_HOST"), set("APP_PORT"));
    if host.is_some() || number.is_some() {
        let host = host.unwrap_or_else(|| "0.0.0.0".to_owned());
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
        let number = number.unwrap_or_else(|| "8000".to_owned());
        let flag = if is_tls { "listen" } else { "ops-listen" };
        found.push(older(flag, format!("{host}:{number}"), "APP_HOST:APP_PORT"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(variables: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let environment: Vec<_> =
            variables.iter().map(|(name, value)| (format!("MLFLOW_KSERVE_{name}"), (*value).to_owned())).collect();
        older(&environment).map(|found| found.into_iter().map(|older| (older.flag.to_owned(), older.value)).collect())
    }

    #[test]
    fn every_variable_of_the_old_listener_is_one_of_our_flags() {
        for (name, value, flag, expected) in [
            ("MLFLOW_TRACKING_URI", "http://mlflow:5000", "mlflow-tracking-uri", "http://mlflow:5000"),
            ("KUBE_NAMESPACE", "models", "serving-namespace", "models"),
            ("STORAGE_URI_BASE", "gs://b/p", "serving-artifacts-uri", "gs://b/p"),
            ("ARTIFACTS_URI", "gs://b/p", "serving-artifacts-uri", "gs://b/p"),
            ("LOG_LEVEL", "WARNING", "log-level", "warn"),
            ("PREDICTOR_CPU_REQUEST", "100m", "serving-cpu-request", "100m"),
            ("PREDICTOR_MEMORY_REQUEST", "512Mi", "serving-memory-request", "512Mi"),
            ("DISABLE_WEBHOOKS", "True", "serving-mode", "poll"),
            ("WEBHOOK_STARTUP_TIMEOUT", "30", "mlflow-webhook-timeout", "30000ms"),
            ("WEBHOOK_STARTUP_RETRIES", "2", "mlflow-webhook-retries", "2"),
            ("ENABLE_POLLING_FALLBACK", "0", "serving-polling-fallback", "false"),
            ("POLLING_INTERVAL", "1.5", "serving-polling-interval", "1500ms"),
            ("APP_PORT", "9000", "ops-listen", "0.0.0.0:9000"),
            ("APP_HOST", "::", "ops-listen", "[::]:8000"),
        ] {
            assert_eq!(read_all(&[(name, value)]), Ok(vec![(flag.into(), expected.into())]), "{name}");
        }
        assert_eq!(
            read_all(&[
                ("DISABLE_WEBHOOKS", "false"),
                ("KUBE_IN_CLUSTER", "true"),
                ("WEBHOOK_LISTENER_SERVICE_HOST", "10.0.0.1")
            ]),
            Ok(vec![])
        );
        let names = [("mlflow_kserve_kube_namespace".to_owned(), "models".to_owned())];
        assert_eq!(older(&names).unwrap().len(), 1, "names counted in any case");
    }

    #[test]
    fn with_a_certificate_the_port_is_the_one_with_tls() {
        let found = read_all(&[("SSL_CERTFILE", "c"), ("SSL_KEYFILE", "k"), ("APP_PORT", "8443")]).unwrap();
        assert_eq!(
            found,
            [("tls-cert".into(), "c".into()), ("tls-key".into(), "k".into()), ("listen".into(), "0.0.0.0:8443".into())]
        );
    }

    #[test]
    fn contradictions_name_the_variables() {
        for (variables, parts) in [
            (
                &[("ARTIFACTS_URI", "s3://a"), ("STORAGE_URI_BASE", "s3://b")][..],
                ["MLFLOW_KSERVE_ARTIFACTS_URI", "MLFLOW_KSERVE_STORAGE_URI_BASE"],
            ),
            (&[("SSL_CERTFILE", "c")], ["MLFLOW_KSERVE_SSL_CERTFILE", "MLFLOW_KSERVE_SSL_KEYFILE"]),
            (
                &[("DISABLE_WEBHOOKS", "true"), ("ENABLE_POLLING_FALLBACK", "no")],
                ["MLFLOW_KSERVE_DISABLE_WEBHOOKS", "MLFLOW_KSERVE_ENABLE_POLLING_FALLBACK"],
            ),
            (&[("DISABLE_WEBHOOKS", "maybe")], ["MLFLOW_KSERVE_DISABLE_WEBHOOKS", "true or false"]),
            (&[("POLLING_INTERVAL", "soon")], ["MLFLOW_KSERVE_POLLING_INTERVAL", "seconds"]),
        ] {
            let error = read_all(variables).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
