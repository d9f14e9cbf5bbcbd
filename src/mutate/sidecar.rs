//! The labels and annotations by which Istio injects a sidecar that starts first and ends last.

use serde_json::{Map, Value};

use super::Settings;
use super::view::Metadata;
use crate::cluster::names;
use crate::yaml;

/// The annotations of a pod template that are to be set, or a warning where one of them cannot be understood.
pub(super) fn annotations(
    metadata: &Metadata<'_>,
    settings: &Settings,
) -> (Vec<(&'static str, String)>, Option<String>) {
    let mut annotations = vec![(names::ISTIO_INJECT, "true".to_owned())];
    if settings.native_sidecars && metadata.annotation(names::ISTIO_NATIVE_SIDECAR).is_none() {
        annotations.push((names::ISTIO_NATIVE_SIDECAR, "true".to_owned()));
    }
    match proxy_config(metadata.annotation(names::ISTIO_PROXY_CONFIG)) {
        Ok(None) => (annotations, None),
        Ok(Some(config)) => {
            annotations.push((names::ISTIO_PROXY_CONFIG, config));
            (annotations, None)
        }
        Err(reason) => {
            let warning = format!(
                "tenancy-fixer: annotation {} is {reason}; add {}: true to it yourself, or containers may start before the proxy",
                names::ISTIO_PROXY_CONFIG,
                names::ISTIO_HOLD_APPLICATION
            );
            (annotations, Some(warning))
        }
    }
}

/// The proxy's own configuration with the start order in it; `None` where it already says something about that.
/// JSON is written where YAML was read: it is YAML too, and has no comments to lose that Istio would see.
fn proxy_config(existing: Option<&str>) -> Result<Option<String>, String> {
    let existing = existing.filter(|text| !text.trim().is_empty());
    let config: Value =
        existing.map_or(Ok(Value::Null), |text| yaml::value(text).map_err(|_| "not YAML".to_owned()))?;
    let mut config = match config {
        Value::Null => Map::new(),
        Value::Object(map) => map,
        _ => return Err("not a mapping".to_owned()),
    };
    if config.contains_key(names::ISTIO_HOLD_APPLICATION) {
        return Ok(None);
    }
    config.insert(names::ISTIO_HOLD_APPLICATION.to_owned(), Value::Bool(true));
    Ok(Some(Value::Object(config).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_order_is_merged_into_what_is_there() {
        let merged = |text| {
            proxy_config(Some(text)).map(|config| config.map(|config| serde_json::from_str::<Value>(&config).unwrap()))
        };
        let hold = serde_json::json!({"holdApplicationUntilProxyStarts": true});
        assert_eq!(merged(""), Ok(Some(hold.clone())));
        assert_eq!(merged("# only a comment"), Ok(Some(hold)));
        let with_concurrency = serde_json::json!({"concurrency": 2, "terminationDrainDuration": "30s", "holdApplicationUntilProxyStarts": true});
        assert_eq!(merged("concurrency: 2\nterminationDrainDuration: 30s\n"), Ok(Some(with_concurrency.clone())));
        assert_eq!(merged(r#"{"concurrency":2,"terminationDrainDuration":"30s"}"#), Ok(Some(with_concurrency)));
        assert_eq!(merged("holdApplicationUntilProxyStarts: false"), Ok(None));
    }

    #[test]
    fn what_is_no_mapping_is_left_alone() {
        assert_eq!(proxy_config(Some("just words")), Err("not a mapping".to_owned()));
        assert_eq!(proxy_config(Some("{")), Err("not YAML".to_owned()));
    }
}
