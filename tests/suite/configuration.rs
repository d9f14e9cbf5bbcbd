//! What is written down of the settings is what the code has: `docs/configuration.md` and the schema of the Helm chart's values
//! are rendered from clap's own definitions. `EXPECT=overwrite` writes both (`make configuration`).

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tenancy_fixer::cli::Cli;
use tenancy_fixer::settings::CONFIG;

use crate::support;

const PAGE: &str = "docs/configuration.md";
pub const SCHEMA: &str = "k8s-resources/chart/values.schema.json";

const INTRODUCTION: &str = "\
<!-- Rendered by `make configuration` from the definitions in src/; not to be edited. -->
# Configuration

Every setting is a flag (`--KEY`), an environment variable and a key of the settings file, in this order of precedence; then comes the default. The file is YAML, named by
`--config` or `TENANCY_FIXER_CONFIG`; in a cluster it is the ConfigMap `tenancy-fixer-settings-...` (with kustomize [`settings.yaml`](../k8s-resources/base/settings.yaml), with Helm the value `settings`).
A key that does not exist is an error that names its line, and so is a value that makes no sense. A list is a YAML list in the file, and one value with commas (`workload`: spaces) elsewhere.
Times are written `500ms`, `5s`, `1m30s` or `8760h`.

The server reads its settings when it starts: a changed ConfigMap has another name with kustomize and Helm, and so rolls the pods. Its first line of log has what it goes by, without secrets.
Commands other than `serve` read the same file, and take from it what they know: the last column names them.
";

/// Flags that are settings: those that have an environment variable.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|argument| argument.get_env().is_some() && argument.get_long().is_some_and(|long| long != CONFIG.0))
}

fn reads_the_file(command: &Command) -> bool {
    command.get_arguments().any(|argument| argument.get_long() == Some(CONFIG.0))
}

/// Every command that does something, by its full name.
fn commands() -> Vec<(String, Command)> {
    fn gather(prefix: &str, command: &Command, all: &mut Vec<(String, Command)>) {
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = format!("{prefix}{}", command.get_name());
            if command.has_subcommands() {
                gather(&format!("{name} "), command, all);
            } else {
                all.push((name, command.clone()));
            }
        }
    }
    let mut program = Cli::command();
    program.build();
    let mut all = Vec::new();
    gather("", &program, &mut all);
    all
}

fn serve() -> Command {
    commands().into_iter().find(|(name, _)| name == "serve").unwrap().1
}

/// Names of all keys of the settings file that the server knows.
pub fn keys() -> Vec<String> {
    settings(&serve()).map(|argument| argument.get_long().unwrap().to_owned()).collect()
}

fn page() -> String {
    let commands = commands();
    let mut readers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, command) in commands.iter().filter(|(name, command)| name != "serve" && reads_the_file(command)) {
        for setting in settings(command) {
            readers.entry(setting.get_long().unwrap()).or_default().push(name);
        }
    }
    let serve = &commands.iter().find(|(name, _)| name == "serve").unwrap().1;
    // In the order of --help: headings as they come, what has none first.
    let mut sections: Vec<(&str, Vec<&Arg>)> = vec![("General", Vec::new())];
    for setting in settings(serve) {
        let heading = setting.get_help_heading().unwrap_or("General");
        match sections.iter_mut().find(|(name, _)| *name == heading) {
            Some((_, members)) => members.push(setting),
            None => sections.push((heading, vec![setting])),
        }
    }
    let mut page = INTRODUCTION.to_owned();
    for (heading, members) in sections {
        write!(page, "\n## {heading}\n\n| key | default | | also of |\n|---|---|---|---|\n").unwrap();
        for setting in members {
            let also = readers.get(setting.get_long().unwrap()).map(|names| names.join(", ")).unwrap_or_default();
            writeln!(page, "{} {also} |", row(setting)).unwrap();
        }
    }
    page.push_str(
        "\n## Flags and variables of other commands\n\nThese say what to do once, and are no keys of the file. `project` reads no file; its flags and variables of MLflow (`--mlflow-...`) are as above.\n",
    );
    for (name, command) in commands.iter().filter(|(name, _)| name != "serve") {
        let own = command.get_arguments().filter(|argument| {
            let is_shared = settings(serve).any(|setting| setting.get_long() == argument.get_long());
            !is_shared && !["help", "version", CONFIG.0].contains(&argument.get_id().as_str())
        });
        let rows: Vec<String> = own.map(|argument| format!("{}\n", row(argument))).collect();
        if !rows.is_empty() {
            write!(page, "\n### `{name}`\n\n| flag | default | |\n|---|---|---|\n{}", rows.concat()).unwrap();
        }
    }
    page
}

/// Key with its variable, default, and text with the values that there are.
fn row(argument: &Arg) -> String {
    let mut key = match argument.get_long() {
        Some(long) => format!("`{long}`"),
        None => format!(
            "`{}`",
            argument.get_value_names().map_or("", |names| names.first().map_or("", |name| name.as_str()))
        ),
    };
    if let Some(variable) = argument.get_env() {
        write!(key, "<br>`{}`", variable.display()).unwrap();
    }
    let default = argument.get_default_values().iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    let default = match default[..] {
        [] => String::new(),
        _ if matches!(argument.get_action(), ArgAction::SetTrue) => String::new(),
        [""] => "`\"\"`".to_owned(),
        _ if argument.get_value_delimiter() == Some(',') => format!("`{}`", default.join(",").replace(',', ", ")),
        _ => format!("`{}`", default.join(", ")),
    };
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !["true", "false"].contains(&value.get_name()))
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), help.to_string().trim_end_matches('.')),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        write!(text, "<br>{}", values.join("<br>")).unwrap();
    }
    format!("| {key} | {} | {} |", default, text.replace('|', "\\|"))
}

/// What the chart's values may be. A setting's own rules are the server's to check; its name and kind are checked before.
fn schema() -> Value {
    let serve = serve();
    // What is a secret does not belong into a ConfigMap: there is a setting with a file for each.
    let properties: serde_json::Map<String, Value> = settings(&serve)
        .filter(|setting| !setting.is_hide_env_values_set())
        .map(|setting| (setting.get_long().unwrap().to_owned(), setting_schema(setting)))
        .collect();
    let text = fs::read_to_string(support::root().join(SCHEMA)).unwrap_or_else(|_| "{}".to_owned());
    // The chart's own values stand in the file itself; what is rendered is `settings` in it.
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    schema["properties"]["settings"] = json!({
        "description": "Settings of the server: keys of docs/configuration.md",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    schema
}

fn setting_schema(setting: &Arg) -> Value {
    let kind = setting.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|one| kind == *one);
    let names: Vec<String> = setting.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let one = if is(&[TypeId::of::<bool>()]) {
        json!({"type": "boolean"})
    } else if !names.is_empty() {
        json!({"enum": names})
    } else if is(&[TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()]) {
        json!({"type": "integer", "minimum": 0})
    } else if is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
        json!({"type": "number"})
    } else if is(&[TypeId::of::<Duration>(), TypeId::of::<SignedDuration>()]) {
        json!({"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(h|m|s|ms|us|ns) ?)+$"})
    } else {
        json!({"type": ["string", "number"]})
    };
    let is_list = setting.get_value_delimiter().is_some() || matches!(setting.get_action(), ArgAction::Append);
    let mut schema = if is_list { json!({"type": "array", "items": one}) } else { one };
    schema["description"] = json!(setting.get_help().map(ToString::to_string).unwrap_or_default());
    schema
}

/// Compares with the file, or writes it.
fn hold(file: &str, want: &str) {
    let path = support::root().join(file);
    if std::env::var("EXPECT").is_ok_and(|value| value == "overwrite") {
        fs::write(&path, want).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == want,
        "{file} is not what the code has: run `make configuration`\n{}",
        diffy::create_patch(&found, want)
    );
}

#[test]
fn the_page_has_every_setting_as_the_code_has_it() {
    let page = page();
    for key in ["identity", "tls-cert", "gate-unknown", "serving-mode", "log-format", "registry-networks"] {
        assert!(page.contains(&format!("| `{key}`<br>`TENANCY_FIXER_")), "{key}");
    }
    hold(PAGE, &page);
}

#[test]
fn the_charts_schema_has_every_setting_as_the_code_has_it() {
    let schema = schema();
    let setting = |key: &str| schema["properties"]["settings"]["properties"][key].clone();
    assert_eq!(setting("identity")["enum"], json!(["header", "token", "auto"]));
    assert_eq!(setting("owner-only")["type"], "boolean");
    assert_eq!(setting("max-connections")["type"], "integer");
    assert_eq!(setting("idle-timeout")["type"], "string");
    assert_eq!(setting("replaced-service-accounts")["type"], "array");
    hold(SCHEMA, &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
}
