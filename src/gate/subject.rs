//! Who is judged: the containers of a job's pods, without those that others put there.

use std::collections::BTreeMap;

use super::image::Image;
use crate::admission::json::{Node, Unexpected};

/// A container as its pod template has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image, as it stands there.
    pub image: String,
    /// Its command; empty for the image's.
    pub command: Vec<String>,
    /// Its arguments; empty for the image's, unless it has a command.
    pub args: Vec<String>,
    /// Its folder, if it is not the image's.
    pub working_dir: Option<String>,
    /// Its variables.
    pub environment: BTreeMap<String, Value>,
    /// Whether more of them come from ConfigMaps or Secrets.
    pub has_environment_from: bool,
    /// Folders that volumes are mounted on.
    pub mounts: Vec<String>,
    /// Why nothing can be told of it, whatever its image.
    pub unknown: Option<String>,
}

/// Bytes of all containers of a job that are kept: what Linux lets a single argument have.
pub(super) const LARGEST: usize = 128 << 10;
/// Bytes that variables may add to a container's words. Each of `$(A)$(A)` is as long as what it stands for; Linux has less than that
/// for all arguments of a process.
const MOST_EXPANDED: usize = 1 << 20;
/// Longest name of a container and image that is kept, in bytes.
const LONGEST_NAME: usize = 512;

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// This text.
    Text(String),
    /// Only the cluster knows it.
    Elsewhere,
}

impl Container {
    fn read(container: Node<'_>) -> Result<Self, Unexpected> {
        let container = container.expect("an object", container.is_object())?;
        let words = |name| -> Result<Vec<String>, Unexpected> {
            let items = container.list(name)?.into_iter().flat_map(Node::items);
            items
                .map(|word| {
                    word.expect("a string", word.text().is_some())
                        .map(|word| word.text().unwrap_or_default().to_owned())
                })
                .collect()
        };
        let mut environment = BTreeMap::new();
        for variable in container.list("env")?.into_iter().flat_map(Node::items) {
            let value = match variable.string("value")? {
                // The kubelet puts other variables in.
                Some(text) if !text.contains("$(") => Value::Text(text.to_owned()),
                Some(_) => Value::Elsewhere,
                None if variable.get("valueFrom").is_some() => Value::Elsewhere,
                None => Value::Text(String::new()),
            };
            environment.insert(variable.string("name")?.unwrap_or_default().to_owned(), value);
        }
        let mounts = container.list("volumeMounts")?.into_iter().flat_map(Node::items);
        Ok(Self {
            name: container.string("name")?.unwrap_or_default().to_owned(),
            image: container.string("image")?.unwrap_or_default().to_owned(),
            command: words("command")?,
            args: words("args")?,
            working_dir: container.string("workingDir")?.filter(|folder| !folder.is_empty()).map(str::to_owned),
            environment,
            has_environment_from: container.list("envFrom")?.is_some_and(|list| list.items().next().is_some()),
            mounts: mounts.filter_map(|mount| mount.get("mountPath").and_then(Node::text)).map(str::to_owned).collect(),
            unknown: None,
        })
    }

    /// Bytes that it holds, roughly.
    pub(super) fn size(&self) -> usize {
        let word = |word: &String| size_of::<String>() + word.len();
        let words = self.command.iter().chain(&self.args).chain(&self.mounts).map(word).sum::<usize>();
        let variable = |(name, value): (&String, &Value)| {
            let value = if let Value::Text(text) = value { text.len() } else { 0 };
            2 * size_of::<String>() + name.len() + value
        };
        let variables = self.environment.iter().map(variable).sum::<usize>();
        let folder = self.working_dir.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.name.len() + self.image.len() + folder + words + variables
    }

    /// A trainer whose runtime cannot be read, and why: what it does not say itself cannot be told.
    #[must_use]
    pub fn without_runtime(self, reason: &str) -> Self {
        let says_all = !self.image.is_empty() && !self.command.is_empty();
        Self { unknown: (!says_all).then(|| reason.to_owned()), ..self }
    }

    /// Its names alone: it is too large to be kept while images are looked at.
    pub(super) fn without_content(self) -> Self {
        let unknown = format!("the job's containers have more than {} KiB of commands and variables", LARGEST >> 10);
        let short = |mut name: String| {
            name.truncate(name.floor_char_boundary(LONGEST_NAME));
            name.shrink_to_fit();
            name
        };
        Self { name: short(self.name), image: short(self.image), unknown: Some(unknown), ..Self::default() }
    }

    /// What is run: the job's own command and arguments, or the image's.
    pub(super) fn words(&self, image: &Image) -> Vec<String> {
        let (command, args) = match (self.command.is_empty(), self.args.is_empty()) {
            (true, true) => (&image.entrypoint, &image.cmd),
            (true, false) => (&image.entrypoint, &self.args),
            (false, _) => (&self.command, &self.args),
        };
        let mut left = MOST_EXPANDED;
        command.iter().chain(args).map(|word| self.expanded(word, &mut left)).collect()
    }

    /// The kubelet puts variables in for `$(NAME)`, and `$` for `$$`. What is more than may be `left` is not put in.
    fn expanded(&self, word: &str, left: &mut usize) -> String {
        let mut expanded = String::new();
        let mut rest = word;
        while let Some((before, behind)) = rest.split_once('$') {
            expanded.push_str(before);
            let reference = behind.strip_prefix('(').and_then(|behind| behind.split_once(')'));
            if let Some((name, behind)) = reference {
                match self.environment.get(name) {
                    Some(Value::Text(text)) if text.len() <= *left => {
                        *left -= text.len();
                        expanded.push_str(text);
                    }
                    _ => expanded.extend(["$(", name, ")"]),
                }
                rest = behind;
            } else {
                expanded.push('$');
                rest = behind.strip_prefix('$').unwrap_or(behind);
            }
        }
        expanded.push_str(rest);
        expanded
    }
}

/// The containers of a pod template that do its work: not its init containers, and not the `helpers` by name.
pub(super) fn containers<'d>(
    template: Node<'d>,
    helpers: &[String],
) -> Result<impl Iterator<Item = Result<Container, Unexpected>> + use<'d>, Unexpected> {
    let list = template.object("spec")?.map_or(Ok(None), |spec| spec.list("containers"))?;
    let all = || list.into_iter().flat_map(Node::items);
    let is_helper = |container: &Node<'d>| {
        let name = container.get("name").and_then(Node::text).unwrap_or_default();
        helpers.iter().any(|helper| helper == name)
    };
    // A helper has somebody to help: its name alone lets nobody through.
    let are_all_helpers = all().all(|container| is_helper(&container));
    let own: Vec<Node<'d>> = all().filter(|container| are_all_helpers || !is_helper(container)).collect();
    Ok(own.into_iter().map(Container::read))
}

/// What a TrainJob's `spec.trainer` says of its container; the rest is in the runtime that it names.
pub(super) fn trainer(trainer: Option<Node<'_>>) -> Result<Container, Unexpected> {
    let said = trainer.map_or_else(|| Ok(Container::default()), Container::read)?;
    Ok(Container { name: "trainer".to_owned(), ..said })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::json::Document;

    fn read(template: &serde_json::Value) -> Vec<Container> {
        let text = template.to_string();
        let document: Document<'_> = serde_json::from_str(&text).unwrap();
        containers(document.root(), &["wait".to_owned()]).unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_jobs_own_words_count_before_the_images() {
        let image =
            Image { entrypoint: vec!["python".to_owned()], cmd: vec!["image.py".to_owned()], ..Image::default() };
        let words = |container: serde_json::Value| {
            let template = serde_json::json!({"spec": {"containers": [container, {"name": "wait"}]}});
            let found = read(&template);
            assert_eq!(found.len(), 1);
            found[0].words(&image).join(" ")
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(words(json(r#"{"name": "a"}"#)), "python image.py");
        assert_eq!(words(json(r#"{"name": "a", "args": ["own.py"]}"#)), "python own.py");
        assert_eq!(words(json(r#"{"name": "a", "command": ["sh", "x"]}"#)), "sh x");
        let expanded = r#"{"name": "a", "command": ["$(A)", "$(B)", "$$(A)", "$x", "$(C)"], "env": [{"name": "A", "value": "a"}, {"name": "C", "valueFrom": {}}]}"#;
        assert_eq!(words(json(expanded)), "a $(B) $(A) $x $(C)");
    }

    #[test]
    fn a_word_does_not_grow_without_end() {
        let container = Container {
            args: vec!["$(A)".repeat(1000); 16],
            environment: [("A".to_owned(), Value::Text("x".repeat(64 << 10)))].into(),
            ..Container::default()
        };
        assert!(container.size() < LARGEST + (16 << 10), "one of a size that is kept");
        let words = container.words(&Image::default());
        assert!(words.iter().map(String::len).sum::<usize>() <= MOST_EXPANDED + 16 * 4000);
    }
}
