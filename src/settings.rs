//! Where settings come from: the command line wins over the environment, the environment over the settings file, the file
//! over the defaults. A key of the file is a flag's long name, so that each setting has one name, one type and one text.

use std::ffi::OsString;
use std::fmt;
use std::fs;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::yaml;

/// The flag that names the settings file, and its environment variable.
pub const CONFIG: (&str, &str) = ("config", "TENANCY_FIXER_CONFIG");

/// Parses a command line, with the settings file that it or the environment names. `older` are values of variables that had
/// another name before: flag, value, variable. They win over the file.
///
/// # Errors
/// clap's own, and those of the file: what cannot be read, and keys that are no setting, with their line.
pub fn matches(
    mut command: Command,
    arguments: Vec<OsString>,
    older: &[(&'static str, String, String)],
) -> Result<ArgMatches, clap::Error> {
    let first = command.clone().ignore_errors(true).try_get_matches_from(arguments.clone())?;
    let file = config_file(&first);
    let entries = match &file {
        Some(file) => read(file).map_err(|error| command.clone().error(ErrorKind::Io, format!("{error:#}")))?,
        None => Vec::new(),
    };
    command = apply(command, file.as_deref().unwrap_or_default(), &entries)?;
    for (flag, value, _) in older {
        command = with_default(command, flag, std::slice::from_ref(value));
    }
    command
        .try_get_matches_from(arguments)
        .map_err(|error| locate(error, file.as_deref().unwrap_or_default(), &entries, older))
}

fn config_file(matches: &ArgMatches) -> Option<String> {
    let (_, of_command) = matches.subcommand()?;
    of_command.try_get_one::<String>(CONFIG.0).ok().flatten().cloned()
}

/// One line of the file.
struct Entry {
    key: String,
    line: u64,
    values: Vec<String>,
}

fn read(file: &str) -> anyhow::Result<Vec<Entry>> {
    let text =
        fs::read_to_string(file).map_err(|error| anyhow::anyhow!("reading the settings file {file}: {error}"))?;
    let documents = yaml::documents::<Entries>(file, &text)?;
    anyhow::ensure!(documents.len() <= 1, "{file}: expected one document, found {}", documents.len());
    Ok(documents.into_iter().flat_map(|document| document.content.0).collect())
}

/// Makes the file's values the defaults of the flags of that name, wherever there is one.
fn apply(mut command: Command, file: &str, entries: &[Entry]) -> Result<Command, clap::Error> {
    for Entry { key, line, values } in entries {
        if places(&command, key).is_empty() {
            let known: Vec<_> =
                command.get_subcommands().flat_map(Command::get_arguments).filter_map(setting_name).collect();
            let hint = nearest(key, &known).map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
            return Err(command
                .error(ErrorKind::UnknownArgument, format!("{file}: line {line}: unknown setting {key:?}{hint}")));
        }
        command = with_default(command, key, values);
    }
    Ok(command)
}

/// Commands that have a setting, each with its argument.
fn places(command: &Command, key: &str) -> Vec<(String, clap::Id)> {
    let has_it = |of: &Command| {
        let argument = of.get_arguments().find(|argument| is_setting(argument, key))?;
        Some((of.get_name().to_owned(), argument.get_id().clone()))
    };
    command.get_subcommands().filter_map(has_it).collect()
}

fn with_default(mut command: Command, key: &str, values: &[String]) -> Command {
    for (name, id) in places(&command, key) {
        let values = values.to_vec();
        command = command
            .mut_subcommand(name, |of| of.mut_arg(id, |argument| argument.required(false).default_values(values)));
    }
    command
}

/// Settings are the flags that have an environment variable; others say what to do once.
fn setting_name(argument: &Arg) -> Option<&str> {
    argument.get_long().filter(|long| argument.get_env().is_some() && *long != CONFIG.0)
}

fn is_setting(argument: &Arg, key: &str) -> bool {
    setting_name(argument) == Some(key)
}

fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    // As clap has it for its own suggestions.
    let best =
        known.iter().map(|name| (*name, strsim::jaro(key, name))).max_by(|one, other| one.1.total_cmp(&other.1))?;
    (best.1 > 0.7).then_some(best.0)
}

/// clap names the flag whose value is wrong; where the value stands in the file, its line is more help.
fn locate(
    mut error: clap::Error,
    file: &str,
    entries: &[Entry],
    older: &[(&'static str, String, String)],
) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let long = flag.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default();
    if let Some((_, _, variable)) = older.iter().find(|(flag, ..)| *flag == long) {
        let place = format!("{flag} ({variable}, unless a flag or variable of ours says otherwise)");
        error.insert(ContextKind::InvalidArg, ContextValue::String(place));
        return error;
    }
    if let Some(entry) = entries.iter().find(|entry| entry.key == long) {
        let place = format!("{flag} (line {} of {file}, unless a flag or variable says otherwise)", entry.line);
        error.insert(ContextKind::InvalidArg, ContextValue::String(place));
    }
    error
}

/// The whole file, in its order.
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a mapping of settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let values = match map.next_value::<Value>()? {
                        Value::Array(items) => items.into_iter().map(scalar).collect::<Option<Vec<_>>>(),
                        value => scalar(value).map(|value| vec![value]),
                    };
                    let (key, line) = (key.value, key.referenced.line());
                    let values = values.ok_or_else(|| {
                        A::Error::custom(format!(
                            "setting {key:?} in line {line}: expected a scalar or a list of scalars"
                        ))
                    })?;
                    entries.push(Entry { key, line, values });
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
