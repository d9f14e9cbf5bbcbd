//! Values of variables, understood or complained about.

use std::ffi::{OsStr, OsString};

use super::variables::Variable;

/// Reads one variable after the other and keeps what is wrong with them.
pub(super) struct Reader<L> {
    pub(super) lookup: L,
    pub(super) complaints: Vec<String>,
}

impl<L: Fn(&str) -> Option<OsString>> Reader<L> {
    pub(super) fn raw(&self, variable: Variable) -> Option<OsString> {
        (self.lookup)(variable.name)
    }

    /// One value. An empty variable counts as not set, as a pod template that fills it in may leave it.
    pub(super) fn value<T: Default>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let found = self.raw(variable).filter(|value| !value.is_empty());
        let understood = found.and_then(|value| {
            let parsed = utf8(&value).and_then(&parse);
            parsed
                .map_err(|reason| self.complain(variable, &value, &format!("{reason}; using {}", variable.default)))
                .ok()
        });
        understood.or_else(|| parse(variable.default).ok()).unwrap_or_default()
    }

    /// One value or none. Here, and below, an empty variable means: none.
    pub(super) fn optional<T>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.raw(variable).unwrap_or_else(|| OsString::from(variable.default));
        if value.is_empty() {
            return None;
        }
        let parsed = utf8(&value).and_then(parse);
        parsed.map_err(|reason| self.complain(variable, &value, &format!("{reason}; going on without"))).ok()
    }

    /// Values between commas, without those that cannot be understood, and whether there were none of these.
    pub(super) fn list<T>(&mut self, variable: Variable, parse: impl Fn(&str) -> Result<T, String>) -> (Vec<T>, bool) {
        let value = self.raw(variable).unwrap_or_else(|| OsString::from(variable.default));
        let mut all_understood = true;
        let mut values = Vec::new();
        match utf8(&value) {
            Err(reason) => {
                self.complain(variable, &value, &reason);
                all_understood = false;
            }
            Ok(text) => {
                for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    match parse(item) {
                        Ok(parsed) => values.push(parsed),
                        Err(reason) => {
                            self.complain(variable, OsStr::new(item), &format!("{reason}; going on without"));
                            all_understood = false;
                        }
                    }
                }
            }
        }
        (values, all_understood)
    }

    fn complain(&mut self, variable: Variable, value: &OsStr, reason: &str) {
        self.complaints.push(format!("{} is {:?}: {reason}", variable.name, value.to_string_lossy()));
    }
}

fn utf8(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "expected UTF-8".to_owned())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A DNS label, as Kubernetes wants a container's name to be: no path can be made of it.
pub(super) fn container_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err("expected the name of a container".to_owned());
    }
    Ok(text.to_owned())
}
