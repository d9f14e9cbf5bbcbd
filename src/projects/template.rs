//! Templates of objects: the old placeholders, `{project['name']}`, and MiniJinja's.
//!
//! A template is read as YAML first and rendered text by text, so that a value cannot become structure; an old placeholder is
//! turned into MiniJinja's before anything is put in, so that a value is not looked at a second time. MiniJinja reads no
//! files, runs no code, and gets so much fuel.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow, bail, ensure};
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value as Found};
use serde_json::{Map, Value};

use super::shell;

/// Instructions that one text may take; a loop over all of a project's variables takes some hundred.
const FUEL: u64 = 100_000;
/// Longest text that a template may make of one of its own, in bytes: etcd does not take an object of that size.
const LONGEST: usize = 1 << 20;

/// Puts variables into every text of a template that asks for them.
///
/// # Errors
/// Those of a text, with its place in the template.
pub(super) fn render(template: &Value, variables: &Map<String, Value>) -> anyhow::Result<Value> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| {
        let text = in_text(value)?;
        out.write_str(&text).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    filters(&mut environment);
    let renderer = Renderer { environment, variables: Found::from(Serde(variables)) };
    let mut place = String::new();
    renderer.walk(template, &mut place)
}

/// What does not take more than it gives.
fn filters(environment: &mut Environment<'_>) {
    use minijinja::{filters, functions, tests};
    environment.add_filter("default", filters::default);
    environment.add_filter("float", filters::float);
    environment.add_filter("int", filters::int);
    environment.add_filter("join", filters::join);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("upper", filters::upper);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("replace", |text: &str, from: &str, to: &str| text.replace(from, to));
    environment.add_filter("shell", |text: &str| shell::quote(text));
    environment.add_function("dict", functions::dict);
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
}

struct Renderer<'e> {
    environment: Environment<'e>,
    variables: Found,
}

impl Renderer<'_> {
    fn walk(&self, template: &Value, place: &mut String) -> anyhow::Result<Value> {
        let length = place.len();
        Ok(match template {
            Value::String(text) => self.text(text).with_context(|| format!("template, {place}"))?,
            Value::Array(items) => {
                let mut rendered = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    let _ = write!(place, "[{index}]");
                    rendered.push(self.walk(item, place)?);
                    place.truncate(length);
                }
                Value::Array(rendered)
            }
            Value::Object(fields) => {
                let mut rendered = Map::new();
                for (name, field) in fields {
                    if !place.is_empty() {
                        place.push('.');
                    }
                    place.push_str(name);
                    rendered.insert(name.clone(), self.walk(field, place)?);
                    place.truncate(length);
                }
                Value::Object(rendered)
            }
            other => other.clone(),
        })
    }

    fn text(&self, text: &str) -> anyhow::Result<Value> {
        let source = modern(text)?;
        if !source.contains("{{") && !source.contains("{%") {
            return Ok(Value::String(text.to_owned()));
        }
        if let Some(expression) = whole(&source) {
            let compiled =
                self.environment.compile_expression_owned(expression).map_err(|error| explained(text, &error))?;
            let found = compiled.eval(&self.variables).map_err(|error| explained(text, &error))?;
            let mend =
                if text.contains("entry_points") { "; for the entry point that runs, write {{ command }}" } else { "" };
            ensure!(!found.is_undefined(), "{text:?}: there is no such value{mend}");
            return serde_json::to_value(&found).with_context(|| format!("{text:?}"));
        }
        let rendered =
            self.environment.render_str(&source, &self.variables).map_err(|error| explained(text, &error))?;
        ensure!(rendered.len() <= LONGEST, "{text:?}: the result is longer than {LONGEST} bytes");
        Ok(Value::String(rendered))
    }
}

fn explained(text: &str, error: &Error) -> anyhow::Error {
    let mend = match error.kind() {
        ErrorKind::UndefinedError | ErrorKind::SyntaxError | ErrorKind::UnknownFunction => {
            "; braces that are somebody else's go between {% raw %} and {% endraw %}"
        }
        _ => "",
    };
    anyhow!("{text:?}: {error}{mend}")
}

/// The expression of a text that is nothing but one, whose value keeps its type: a list stays a list.
fn whole(source: &str) -> Option<&str> {
    let inside = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let is_one = ["{{", "}}", "{%", "%}"].iter().all(|other| !inside.contains(other));
    is_one.then(|| inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

/// How a value stands inside a text: a command as a shell reads it; other lists and mappings not at all.
fn in_text(value: &Found) -> Result<String, Error> {
    let wrong = |what: &str| {
        let message = format!("{what} stands for a whole value only, with no other text around it");
        Err(Error::new(ErrorKind::InvalidOperation, message))
    };
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Err(Error::new(ErrorKind::InvalidOperation, "there is no value in it")),
        ValueKind::Map => wrong("a mapping"),
        ValueKind::Seq | ValueKind::Iterable => {
            let words: Option<Vec<String>> = value.try_iter()?.map(|word| word.as_str().map(str::to_owned)).collect();
            match words {
                Some(words) => Ok(shell::join(words.iter().map(String::as_str))),
                None => wrong("a list of mappings"),
            }
        }
        _ => Ok(value.to_string()),
    }
}

/// The text with each `{project['a']['b']}` as `{{ project['a']['b'] }}`; what is MiniJinja's already, and every other brace,
/// stays as it is.
fn modern(text: &str) -> anyhow::Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, behind) = rest.split_at(at);
        out.push_str(before);
        let theirs =
            [("{{", "}}"), ("{%", "%}"), ("{#", "#}")].into_iter().find(|(begin, _)| behind.starts_with(begin));
        if let Some((begin, end)) = theirs {
            let length = behind.get(begin.len()..).and_then(|inside| inside.find(end)).map_or(begin.len(), |at| at + 4);
            let (taken, left) = behind.split_at_checked(length).unwrap_or((behind, ""));
            out.push_str(taken);
            rest = left;
        } else if let Some((expression, left)) = old_placeholder(behind)? {
            out.push_str("{{ ");
            out.push_str(expression);
            out.push_str(" }}");
            rest = left;
        } else {
            out.push('{');
            rest = behind.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// An old placeholder at the beginning of a text: what stands between its braces, and what stands behind it.
fn old_placeholder(text: &str) -> anyhow::Result<Option<(&str, &str)>> {
    let inside = text.trim_start_matches('{').trim_start();
    let Some(mut behind) = inside.strip_prefix("project") else { return Ok(None) };
    if behind.starts_with(|next: char| next.is_alphanumeric() || next == '_') {
        return Ok(None);
    }
    loop {
        behind = behind.trim_start();
        if let Some(left) = behind.strip_prefix('}') {
            let expression = inside.strip_suffix(behind).unwrap_or(inside).trim_end();
            return Ok(Some((expression, left)));
        }
        if let Some(left) = key(behind) {
            behind = left;
        } else {
            let placeholder = text.split_inclusive('}').next().unwrap_or(text);
            bail!(
                "{placeholder}: a placeholder has keys alone, such as {{project['docker_env']['image']}}; for more, write {{{{ ... }}}}"
            )
        }
    }
}

/// What stands behind `['key']`.
fn key(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('[')?.trim_start();
    let quote = inside.chars().next().filter(|first| ['\'', '"'].contains(first))?;
    let (name, behind) = inside.get(1..)?.split_once(quote)?;
    // MiniJinja would read an escape.
    (!name.contains('\\')).then_some(())?;
    behind.trim_start().strip_prefix(']')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variables() -> Map<String, Value> {
        let Value::Object(variables) = json!({
            "project": {
                "name": "wine-1",
                "docker_env": {"image": "r/wine@sha256:0", "mem_limit": "512Mi", "environment": [{"name": "A", "value": "b c"}]},
                "entry_points": {"main": {"command": ["python", "train.py", "--note", "a 'b'"], "line": "python train.py"}},
            },
            "parameters": {"workers": "4", "evil": "{{ project.name }}{project['name']}'; rm -rf / #"},
            "namespace": "alice",
        }) else {
            panic!()
        };
        variables
    }

    fn rendered(text: &str) -> Value {
        render(&json!({"a": [text]}), &variables()).unwrap()["a"][0].clone()
    }

    fn error(text: &str) -> String {
        format!("{:#}", render(&json!({"spec": {"a": [1, text]}}), &variables()).unwrap_err())
    }

    #[test]
    fn old_placeholders_keep_the_type_of_a_whole_value() {
        assert_eq!(rendered("{project['name']}"), "wine-1");
        assert_eq!(rendered(" { project[\"name\"] } "), "wine-1");
        assert_eq!(rendered("{project['docker_env']['environment']}"), json!([{"name": "A", "value": "b c"}]));
        assert_eq!(rendered("{project['entry_points']['main']['command']}")[3], "a 'b'");
        assert_eq!(rendered("{project['docker_env']}")["mem_limit"], "512Mi");
    }

    #[test]
    fn old_placeholders_stand_inside_text() {
        assert_eq!(rendered("pre-{project['name']}-{project['docker_env']['mem_limit']}"), "pre-wine-1-512Mi");
        assert_eq!(
            rendered("cd /app && {project['entry_points']['main']['command']}"),
            r#"cd /app && python train.py --note 'a '"'"'b'"'"''"#
        );
    }

    #[test]
    fn minijinja_stands_beside_them() {
        assert_eq!(rendered("{{ project.name }}"), "wine-1");
        assert_eq!(rendered("{{ parameters.workers | int }}"), 4);
        assert_eq!(rendered("{project['name']} in {{ namespace | upper }}"), "wine-1 in ALICE");
        assert_eq!(rendered("{% if namespace == 'alice' %}{project['name']}{% endif %}"), "wine-1");
        assert_eq!(rendered("{% for item in project.docker_env.environment %}{{ item.name }}{% endfor %}"), "A");
        assert_eq!(rendered("{{ parameters.none | default('x') }}"), "x");
        assert_eq!(rendered("run {{ parameters.evil | shell }}"), format!("run {}", shell::quote(parameters_evil())));
        assert_eq!(rendered("{% raw %}{{workflow.name}}{% endraw %}"), "{{workflow.name}}");
    }

    fn parameters_evil() -> &'static str {
        "{{ project.name }}{project['name']}'; rm -rf / #"
    }

    #[test]
    fn values_are_not_looked_at_again() {
        assert_eq!(rendered("{{ parameters.evil }}"), parameters_evil());
        assert_eq!(rendered("x {{ parameters.evil }}{project['name']}"), format!("x {}wine-1", parameters_evil()));
    }

    #[test]
    fn other_braces_stay() {
        for text in [
            "{\"a\": {\"b\": 1}}",
            "${VAR}",
            "{}",
            "{projects['name']}",
            "{replaced with MLflow Project name}",
            "}",
            "{",
            "{#",
            "a {# b",
            "$(VAR)",
        ] {
            assert_eq!(rendered(text), text);
        }
    }

    #[test]
    fn errors_name_place_and_mend() {
        for (text, says) in [
            ("{project['nam']}", "template, spec.a[1]: \"{project['nam']}\""),
            ("x{project['nam']}", "spec.a[1]"),
            ("{project['name'].upper()}", "a placeholder has keys alone"),
            ("{project.__class__}", "a placeholder has keys alone"),
            ("{project['name']; import os}", "a placeholder has keys alone"),
            ("{__import__('os').system('id')} {{ 1", "syntax error"),
            ("{{workflow.name}}", "{% raw %}"),
            ("x{{ project }}", "a mapping stands for a whole value only"),
            ("x{project['docker_env']['environment']}", "a list of mappings stands for a whole value only"),
            ("{{ open('/etc/passwd') }}", "unknown function"),
            ("{% include '/etc/passwd' %}", "include"),
            ("{% for a in project.name * 1000000000 %}x{% endfor %}", "spec.a[1]"),
        ] {
            let error = error(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_template_without_an_end_has_an_end() {
        let nested = "{% for a in l %}".repeat(8) + "x" + &"{% endfor %}".repeat(8);
        let mut variables = variables();
        variables.insert("l".to_owned(), json!((0..100).collect::<Vec<_>>()));
        let error = render(&json!(nested), &variables).unwrap_err();
        assert!(format!("{error:#}").contains("fuel"), "{error:#}");
    }

    proptest! {
        #[test]
        fn any_value_is_data(value in any::<String>()) {
            let Value::Object(variables) = json!({"project": {"name": value}}) else { panic!() };
            for template in ["{project['name']}", "{{ project.name }}"] {
                prop_assert_eq!(render(&json!({"a": template}), &variables).unwrap(), json!({"a": value}));
            }
            prop_assert_eq!(render(&json!("<{project['name']}>"), &variables).unwrap(), json!(format!("<{value}>")));
        }

        #[test]
        fn any_template_has_an_answer(template in "[{}%#a-z'\\[\\] ]{0,40}|(\\{project)?[{}\\['\\]a-z. ]{0,20}") {
            let _ = render(&json!(template), &variables());
        }
    }
}
