//! From an entry point and what the user gives to a command, quoted as MLflow does (mlflow/projects/_project_spec.py).

use std::path::Path;

use anyhow::{anyhow, bail, ensure};

use super::mlproject::{EntryPoint, Parameter};
use super::shell;

/// A value by name, as `-P name=value` gives it.
pub(super) type Given = (String, String);

/// What an entry point comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// As a shell is to read it, each value quoted: what MLflow calls the command.
    pub(super) line: String,
    /// Its words: a container's command. The program gets each value exactly as it was given.
    pub(super) words: Vec<String>,
    /// The values of all parameters, those beyond the entry point last.
    pub(super) parameters: Vec<Given>,
}

/// Reads the values of `-P`.
///
/// # Errors
/// One that has no `=`, and a name that is given twice.
pub(super) fn given(texts: &[String]) -> anyhow::Result<Vec<Given>> {
    let mut given: Vec<Given> = Vec::new();
    for text in texts {
        let Some((name, value)) = text.split_once('=') else { bail!("-P {text}: expected NAME=VALUE") };
        ensure!(!name.is_empty(), "-P {text}: expected NAME=VALUE");
        ensure!(given.iter().all(|(other, _)| other != name), "-P: the parameter {name:?} is given twice");
        given.push((name.to_owned(), value.to_owned()));
    }
    Ok(given)
}

impl EntryPoint {
    /// The command with these values; those that the entry point does not declare become `--name value` behind it.
    /// `folder` is the project's.
    ///
    /// # Errors
    /// Values that are missing or of the wrong type, by parameter; a command that names what is not declared.
    pub(super) fn command(&self, given: &[Given], folder: &Path) -> anyhow::Result<Command> {
        let value_of = |parameter: &Parameter| {
            let value = given.iter().find(|(name, _)| *name == parameter.name).map(|(_, value)| value.clone());
            value.or_else(|| parameter.default.clone())
        };
        let missing: Vec<_> = self.parameters.iter().filter(|parameter| value_of(parameter).is_none()).collect();
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|parameter| format!("-P {}=...", parameter.name)).collect();
            bail!("entry point {}: no value for {}", self.name, names.join(", "));
        }
        let mut parameters = Vec::new();
        for parameter in &self.parameters {
            let value = value_of(parameter).unwrap_or_default();
            check(parameter, &value, folder)?;
            parameters.push((parameter.name.clone(), value));
        }
        let mut line = format(&self.command, &parameters)
            .map_err(|why| anyhow!("entry point {}: the command {:?}: {why}", self.name, self.command))?;
        for (name, value) in given {
            if self.parameters.iter().all(|parameter| parameter.name != *name) {
                line.push_str(" --");
                line.push_str(&shell::quote(name));
                line.push(' ');
                line.push_str(&shell::quote(value));
                parameters.push((name.clone(), value.clone()));
            }
        }
        let words = shell::split(&line).map_err(|why| anyhow!("entry point {}: {why}", self.name))?;
        ensure!(!words.is_empty(), "entry point {}: the command is empty", self.name);
        Ok(Command { line, words, parameters })
    }
}

/// What MLflow checks, and that a `float` is one: it is cheaper to hear that now than from a pod.
fn check(parameter: &Parameter, value: &str, folder: &Path) -> anyhow::Result<()> {
    let Parameter { name, kind, .. } = parameter;
    match kind.as_str() {
        "float" => ensure!(is_float(value), "parameter {name}: expected a number (float), got {value:?}"),
        "uri" => ensure!(has_scheme(value), "parameter {name}: expected a URI, got {value:?}"),
        // What is absolute or elsewhere is for the pod to find.
        "path" if !has_scheme(value) && !value.starts_with('/') => {
            let is_there = folder.join(value).exists();
            ensure!(
                is_there,
                "parameter {name}: there is no {value:?} in the project, whose folder paths are relative to"
            );
        }
        _ => {}
    }
    Ok(())
}

/// As Python's `float` reads it.
fn is_float(text: &str) -> bool {
    let text = text.trim();
    let has_odd_underscore = text.starts_with('_')
        || text.ends_with('_')
        || text.contains("__")
        || text.contains("._")
        || text.contains("_.");
    !has_odd_underscore && text.replace('_', "").parse::<f64>().is_ok()
}

/// Whether Python's `urlparse` finds a scheme in it.
fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.chars().all(|character| character.is_ascii_alphanumeric() || "+-.".contains(character))
    })
}

/// Python's `str.format` with nothing but names; each value is quoted for a shell. Values are not looked at again.
fn format(text: &str, values: &[Given]) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, behind) = rest.split_at(at);
        out.push_str(before);
        if let Some(behind) = behind.strip_prefix("{{") {
            out.push('{');
            rest = behind;
        } else if let Some(behind) = behind.strip_prefix("}}") {
            out.push('}');
            rest = behind;
        } else if let Some(behind) = behind.strip_prefix('{') {
            let (name, behind) = behind.split_once('}').ok_or("a { has no }; write {{ for the brace itself")?;
            let value = values.iter().find(|(other, _)| other == name);
            let (_, value) =
                value.ok_or_else(|| format!("{{{name}}} is no parameter of it; write {{{{ for the brace itself"))?;
            out.push_str(&shell::quote(value));
            rest = behind;
        } else {
            return Err("a } has no {; write }} for the brace itself".to_owned());
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::mlproject::Project;
    use super::*;

    fn main(yaml: &str) -> EntryPoint {
        Project::read(yaml).unwrap().entry_point("main").unwrap()
    }

    fn command(entry_point: &EntryPoint, given: &[(&str, &str)]) -> anyhow::Result<Command> {
        let given: Vec<Given> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        entry_point.command(&given, Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    const TRAIN: &str = "entry_points: {main: {command: 'python train.py --alpha {alpha} --l1-ratio {l1_ratio}',
        parameters: {alpha: float, l1_ratio: {type: float, default: 0.1}}}}";

    #[test]
    fn defaults_and_parameters_beyond_the_entry_point() {
        let found = command(&main(TRAIN), &[("alpha", "0.5"), ("note", "foo bar"), ("n", "1")]).unwrap();
        assert_eq!(found.line, "python train.py --alpha 0.5 --l1-ratio 0.1 --note 'foo bar' --n 1");
        assert_eq!(
            found.words,
            ["python", "train.py", "--alpha", "0.5", "--l1-ratio", "0.1", "--note", "foo bar", "--n", "1"]
        );
        let names: Vec<_> = found.parameters.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["alpha", "l1_ratio", "note", "n"]);
    }

    #[test]
    fn hostile_values_are_one_word_each() {
        for value in ["; rm -rf /", "$(id)", "`id`", "a' b", "{l1_ratio}", "{{x}}", "{0}", "a\nb", "", "--flag", "%s"] {
            let entry = main("entry_points: {main: {command: 'train {a}', parameters: {a: string}}}");
            let found = command(&entry, &[("a", value), (value, value)]).unwrap();
            assert_eq!(found.words, ["train", value, &format!("--{value}"), value]);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (given, says) in [
            (&[][..], "no value for -P alpha=..."),
            (&[("alpha", "much")], "parameter alpha: expected a number (float), got \"much\""),
            (&[("alpha", "1_")], "parameter alpha"),
        ] {
            let error = command(&main(TRAIN), given).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        for number in ["1", "-0.5", " 1e-3 ", "inf", "nan", "1_000.5"] {
            command(&main(TRAIN), &[("alpha", number)]).unwrap();
        }
        for (text, says) in [
            ("train {b}", "{b} is no parameter"),
            ("train {a!r}", "{a!r} is no parameter"),
            ("train {a.__class__}", "is no parameter"),
            ("train {a", "has no }"),
            ("train a}", "has no {"),
            ("train 'a", "no closing '"),
            ("", "is empty"),
        ] {
            let entry = EntryPoint {
                command: text.to_owned(),
                ..main("entry_points: {main: {command: c, parameters: {a: string}}}")
            };
            let error = command(&entry, &[("a", "1")]).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn paths_and_uris() {
        let entry = main(
            "entry_points: {main: {command: '{p} {u}', parameters: {p: path, u: {type: uri, default: 's3://b/k'}}}}",
        );
        for path in ["Cargo.toml", "src", "/data/in.csv", "s3://bucket/key"] {
            command(&entry, &[("p", path)]).unwrap();
        }
        assert!(command(&entry, &[("p", "no.csv")]).unwrap_err().to_string().contains("there is no \"no.csv\""));
        assert!(command(&entry, &[("p", "src"), ("u", "/a")]).unwrap_err().to_string().contains("expected a URI"));
    }

    #[test]
    fn values_of_the_command_line() {
        let texts = |texts: &[&str]| given(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            texts(&["a=b=c", "d="]).unwrap(),
            [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())]
        );
        for wrong in [&["a"][..], &["=b"], &["a=1", "a=2"]] {
            assert!(texts(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_arrives_as_it_is(value in any::<String>(), beyond in any::<String>()) {
            let entry = main("entry_points: {main: {command: 'train {a}', parameters: {a: string}}}");
            let found = command(&entry, &[("a", &value), ("b", &beyond)]).unwrap();
            prop_assert_eq!(found.words, ["train", value.as_str(), "--b", beyond.as_str()]);
        }
    }
}
