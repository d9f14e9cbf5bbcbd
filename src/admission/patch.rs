//! JSON Patch (RFC 6902), written operation by operation: what is meant, parents included, and nothing else.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::Node;

/// So many operations are looked through; of more, the paths are known. A hostile object has tens of thousands.
const FEW: usize = 64;

/// The operations that make one object right, in order. Each is written when it is said, as it is sent: a tree of values for each
/// would cost more than the decision that led to it.
#[derive(Debug, Default)]
pub struct Patch {
    operations: Vec<Operation>,
    /// All of them in JSON, one behind another.
    text: Vec<u8>,
    /// All paths, once there are more than a [`FEW`].
    paths: HashSet<String>,
    /// A value that cannot be written as JSON; of ours none can be.
    unwritable: Option<serde_json::Error>,
}

/// One change at one place.
#[derive(Debug)]
struct Operation {
    verb: Verb,
    path: String,
    /// Where it stands in [`Patch::text`].
    text: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Add,
    Replace,
    Remove,
}

impl Patch {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Adds a value at a JSON pointer, or puts it in place of the one that stands there.
    pub fn add(&mut self, path: impl Into<String>, value: impl Serialize) {
        self.push(Verb::Add, path.into(), Some(value));
    }

    /// Puts a value in place of the one that stands at a JSON pointer; the same one twice is one operation.
    pub fn replace(&mut self, path: impl Into<String>, value: impl Serialize) {
        let path = path.into();
        let is_at = self.is_at(&path);
        self.push(Verb::Replace, path, Some(value));
        if let Some((last, before)) = self.operations.split_last()
            && is_at
            && before.iter().any(|operation| self.text.get(operation.text.clone()) == self.text.get(last.text.clone()))
        {
            self.text.truncate(last.text.start);
            self.operations.pop();
        }
    }

    /// Takes away what stands at a JSON pointer. Items of a list move up: the last one goes first.
    pub fn remove(&mut self, path: impl Into<String>) {
        self.push(Verb::Remove, path.into(), None::<()>);
    }

    fn push(&mut self, verb: Verb, path: String, value: Option<impl Serialize>) {
        #[derive(Serialize)]
        struct Written<'o, V> {
            op: Verb,
            path: &'o str,
            #[serde(skip_serializing_if = "Option::is_none")]
            value: Option<V>,
        }

        if self.operations.len() == FEW {
            self.paths = self.operations.iter().map(|operation| operation.path.clone()).collect();
        }
        if self.operations.len() >= FEW {
            self.paths.insert(path.clone());
        }
        let start = self.text.len();
        if let Err(error) = serde_json::to_writer(&mut self.text, &Written { op: verb, path: &path, value }) {
            self.unwritable = Some(error);
        }
        self.operations.push(Operation { verb, path, text: start..self.text.len() });
    }

    /// Whether an operation is about this very place.
    fn is_at(&self, path: &str) -> bool {
        if self.paths.is_empty() {
            self.operations.iter().any(|operation| operation.path == path)
        } else {
            self.paths.contains(path)
        }
    }

    /// Makes each entry stand in the map at `path`, which is `existing`; entries that are right stay as they are.
    pub fn entries(
        &mut self,
        path: &str,
        existing: Option<Node<'_>>,
        entries: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let Some(map) = existing else {
            let map: BTreeMap<&str, String> = entries.into_iter().collect();
            if !map.is_empty() {
                self.add(path, map);
            }
            return;
        };
        for (key, value) in entries {
            let place = format!("{path}/{}", escape(key));
            match map.get(key).and_then(Node::text) {
                Some(found) if found == value => {}
                Some(_) => self.replace(place, value),
                None => self.add(place, value),
            }
        }
    }

    /// Adds an item at the end of the list at `path`, and the list with it where there is none, in the object or by now.
    pub fn append(&mut self, path: &str, list_exists: bool, item: impl Serialize) {
        if list_exists || self.is_at(path) {
            self.add(format!("{path}/-"), item);
        } else {
            self.add(path, [item]);
        }
    }

    /// The whole of it in JSON, as it is sent.
    ///
    /// # Errors
    /// None that plain values can cause.
    pub fn json(&self) -> Result<Vec<u8>, serde_json::Error> {
        if let Some(error) = &self.unwritable {
            return Err(serde_json::Error::custom(error));
        }
        let mut json = Vec::with_capacity(self.text.len() + self.operations.len() + 2);
        json.push(b'[');
        for (index, operation) in self.operations.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            json.extend_from_slice(self.text.get(operation.text.clone()).unwrap_or_default());
        }
        json.push(b']');
        Ok(json)
    }
}

/// A list of operations, for whoever shows it or applies it.
impl Serialize for Patch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = self.json().map_err(S::Error::custom)?;
        let operations: Vec<&RawValue> = serde_json::from_slice(&json).map_err(S::Error::custom)?;
        operations.serialize(serializer)
    }
}

/// For the log: `add /metadata/labels/kubeflow-extension, replace /spec/serviceAccountName`; no values, they may be secret.
impl fmt::Display for Patch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Operation { verb, path, .. }) in self.operations.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let verb = match verb {
                Verb::Add => "add",
                Verb::Replace => "replace",
                Verb::Remove => "remove",
            };
            write!(out, "{comma}{verb} {path}")?;
        }
        Ok(())
    }
}

/// A key as one step of a JSON pointer (RFC 6901, section 3).
#[must_use]
pub fn escape(key: &str) -> Cow<'_, str> {
    if key.contains(['~', '/']) { Cow::Owned(key.replace('~', "~0").replace('/', "~1")) } else { Cow::Borrowed(key) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::admission::json::Document;

    fn applied(patch: &Patch, object: &Value) -> Value {
        let mut object = object.clone();
        let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch).unwrap()).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
        object
    }

    #[test]
    fn entries_are_added_replaced_or_left() {
        let text = r#"{"labels":{"same":"1","other":"2"}}"#;
        let document: Document<'_> = serde_json::from_str(text).unwrap();
        let mut patch = Patch::default();
        let entries = [("same", "1"), ("other", "3"), ("a/b", "4")].map(|(key, value)| (key, value.to_owned()));
        patch.entries("/labels", document.root().get("labels"), entries);
        assert_eq!(patch.to_string(), "replace /labels/other, add /labels/a~1b");
        let expected = serde_json::json!({"labels": {"same": "1", "other": "3", "a/b": "4"}});
        assert_eq!(applied(&patch, &serde_json::from_str(text).unwrap()), expected);
    }

    #[test]
    fn what_is_removed_has_no_value() {
        let mut patch = Patch::default();
        patch.remove("/list/1");
        assert_eq!(serde_json::to_string(&patch).unwrap(), r#"[{"op":"remove","path":"/list/1"}]"#);
        assert_eq!(applied(&patch, &serde_json::json!({"list": [1, 2]})), serde_json::json!({"list": [1]}));
    }

    #[test]
    fn a_missing_map_comes_with_its_entries_in_one_operation() {
        let mut patch = Patch::default();
        patch.entries("/labels", None, [("a", "1".to_owned()), ("b", "2".to_owned())]);
        assert_eq!(applied(&patch, &serde_json::json!({})), serde_json::json!({"labels": {"a": "1", "b": "2"}}));
    }

    #[test]
    fn many_operations_are_as_few() {
        let mut patch = Patch::default();
        for number in 0..2 * FEW {
            let place = format!("/lists/{number}");
            patch.append(&place, false, Value::from("first"));
            patch.append(&place, false, Value::from("second"));
            patch.replace("/label", "same");
        }
        let lists: Map<String, Value> =
            (0..2 * FEW).map(|number| (number.to_string(), vec!["first", "second"].into())).collect();
        let object = serde_json::json!({"lists": {}, "label": "other"});
        assert_eq!(applied(&patch, &object), serde_json::json!({"lists": lists, "label": "same"}));
        assert_eq!(patch.operations.len(), 4 * FEW + 1);
    }

    #[test]
    fn a_missing_list_comes_with_its_first_item() {
        let mut patch = Patch::default();
        patch.append("/volumes", false, Value::from("first"));
        patch.append("/volumes", true, Value::from("second"));
        assert_eq!(applied(&patch, &serde_json::json!({})), serde_json::json!({"volumes": ["first", "second"]}));
    }
}
