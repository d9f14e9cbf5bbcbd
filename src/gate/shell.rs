//! What commands a shell script has: read by a real parser, never run.
//!
//! Branches and loops are not weighed: whatever the script may run counts as run. What a word stands for is found as far as it
//! stands in the script, the arguments or the environment.

use std::ops::ControlFlow;

use tree_sitter::Node;

use super::syntax::{each, parse};

/// One word of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// What it is.
    Known(String),
    /// It depends on something that only a run knows: as it stands in the script.
    Open(String),
}

/// One step of a script, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A command with its arguments.
    Command(Vec<Word>),
    /// A variable gets a value.
    Set(String, Word),
}

/// A script that is longer is not one that somebody wrote.
const LONGEST: usize = 256 * 1024;
/// Steps that we follow.
const MOST_STEPS: usize = 2000;

/// The steps of a script whose positional parameters are `arguments` (`$1` the first). `lookup` knows variables of the
/// environment; those that the script sets itself are ours to know. `None` where it is too long to be read.
pub(super) fn steps(script: &str, arguments: &[String], lookup: impl Fn(&str) -> Option<String>) -> Option<Vec<Step>> {
    let tree = parse(&tree_sitter_bash::LANGUAGE.into(), script, LONGEST)?;
    let mut reader = Reader { script, arguments, lookup, set: Vec::new() };
    let mut steps = Vec::new();
    each(&tree, |node| {
        steps.extend(reader.step(node));
        if steps.len() > MOST_STEPS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (steps.len() <= MOST_STEPS).then_some(steps)
}

struct Reader<'s, L> {
    script: &'s str,
    arguments: &'s [String],
    lookup: L,
    /// What the script has set so far, the latest last.
    set: Vec<(String, Word)>,
}

impl<L: Fn(&str) -> Option<String>> Reader<'_, L> {
    fn step(&mut self, node: Node<'_>) -> Option<Step> {
        match node.kind() {
            "command" => Some(Step::Command(self.command(node))),
            "variable_assignment" => {
                let value = node.child_by_field_name("value");
                let value = value.map_or(Word::Known(String::new()), |value| self.word(value));
                let name = self.text(node.child_by_field_name("name")?).to_owned();
                self.set.push((name.clone(), value.clone()));
                Some(Step::Set(name, value))
            }
            _ => None,
        }
    }

    fn command(&self, command: Node<'_>) -> Vec<Word> {
        let mut words = Vec::new();
        for part in command.children(&mut command.walk()) {
            match part.kind() {
                "variable_assignment" | "file_redirect" | "heredoc_redirect" | "herestring_redirect" => {}
                _ if ["\"$@\"", "$@", "$*", "\"$*\"", "\"${@}\"", "${@}", "${@:1}", "\"${@:1}\""]
                    .contains(&self.text(part)) =>
                {
                    words.extend(self.arguments.iter().cloned().map(Word::Known));
                }
                "command_name" => words.extend(part.child(0).map(|name| self.all(name)).unwrap_or_default()),
                _ => words.push(self.word(part)),
            }
        }
        words
    }

    /// A command's name, which may be all of our arguments.
    fn all(&self, name: Node<'_>) -> Vec<Word> {
        if ["\"$@\"", "$@", "${@}", "\"${@}\"", "$*"].contains(&self.text(name)) {
            return self.arguments.iter().cloned().map(Word::Known).collect();
        }
        vec![self.word(name)]
    }

    fn word(&self, node: Node<'_>) -> Word {
        self.value(node, 0).map_or_else(|| Word::Open(self.text(node).to_owned()), Word::Known)
    }

    /// The text that a node stands for. Depth is bounded: a stranger wrote it.
    fn value(&self, node: Node<'_>, depth: usize) -> Option<String> {
        if depth > 8 {
            return None;
        }
        let text = self.text(node);
        match node.kind() {
            "word" | "number" => Some(unescaped(text)),
            "raw_string" => Some(text.strip_prefix('\'')?.strip_suffix('\'')?.to_owned()),
            "ansi_c_string" => {
                Some(text.strip_prefix("$'")?.strip_suffix('\'')?.replace("\\n", "\n").replace("\\'", "'"))
            }
            "string_content" => Some(in_quotes(text)),
            "string" | "concatenation" => self.parts(node, depth),
            "simple_expansion" => self.variable(text.strip_prefix('$')?),
            "expansion" => self.expansion(text.strip_prefix("${")?.strip_suffix('}')?),
            _ => None,
        }
    }

    /// Parts beside one another, with what stands between them (the parser leaves white space out of strings).
    fn parts(&self, node: Node<'_>, depth: usize) -> Option<String> {
        let is_string = node.kind() == "string";
        let (mut whole, mut at) = (String::new(), node.start_byte().saturating_add(usize::from(is_string)));
        let end = node.end_byte().saturating_sub(usize::from(is_string));
        for part in node.named_children(&mut node.walk()) {
            whole.push_str(self.script.get(at..part.start_byte()).unwrap_or_default());
            whole.push_str(&self.value(part, depth.saturating_add(1))?);
            at = part.end_byte();
        }
        whole.push_str(self.script.get(at..end).unwrap_or_default());
        Some(whole)
    }

    fn variable(&self, name: &str) -> Option<String> {
        if let Ok(number) = name.parse::<usize>() {
            return self.arguments.get(number.checked_sub(1)?).cloned();
        }
        match self.set.iter().rev().find(|(set, _)| set == name) {
            Some((_, Word::Known(value))) => Some(value.clone()),
            Some((_, Word::Open(_))) => None,
            None => (self.lookup)(name),
        }
    }

    /// `NAME`, or `NAME:-default` where the default counts if nobody has set it.
    fn expansion(&self, inner: &str) -> Option<String> {
        let (name, default) = inner.split_once(":-").or_else(|| inner.split_once('-')).unwrap_or((inner, ""));
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        let has_default = name.len() < inner.len();
        self.variable(name).or_else(|| (has_default && !default.contains('$')).then(|| default.to_owned()))
    }

    fn text(&self, node: Node<'_>) -> &str {
        self.script.get(node.byte_range()).unwrap_or_default()
    }
}

fn unescaped(word: &str) -> String {
    let mut plain = String::with_capacity(word.len());
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next().filter(|next| *next != '\n')),
            other => plain.push(other),
        }
    }
    plain
}

/// Between double quotes a backslash stands for itself but before these (POSIX, 2.2.3).
fn in_quotes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\\', Some('\n')) => drop(characters.next()),
            ('\\', Some('"' | '$' | '`' | '\\')) => plain.extend(characters.next()),
            (other, _) => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(script: &str, arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let lookup = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let word = |word: Word| match word {
            Word::Known(text) => text,
            Word::Open(text) => format!("?{text}"),
        };
        let step = |step| match step {
            Step::Command(words) => words.into_iter().map(word).collect::<Vec<_>>().join("|"),
            Step::Set(name, value) => format!("{name}={}", word(value)),
        };
        steps(script, &arguments, lookup).unwrap().into_iter().map(step).collect()
    }

    #[test]
    fn commands_are_found_wherever_they_stand() {
        assert_eq!(
            known("cd /app && python train.py --lr 0.1 1>/log 2>&1 || exit 1", &[]),
            ["cd|/app", "python|train.py|--lr|0.1", "exit|1"]
        );
        assert_eq!(known("if [ -f a ]; then\n  python 'a b.py' &\nfi; wait", &[]), ["python|a b.py", "wait"]);
        assert_eq!(known("for i in 1 2; do python t.py; done | tee log", &[]), ["python|t.py", "tee|log"]);
        assert_eq!(known("# python a.py\necho \"python b.py\"", &[]), ["echo|python b.py"]);
        assert_eq!(known("LR=0.1 python t.py", &[]), ["python|t.py", "LR=0.1"]);
    }

    #[test]
    fn words_are_what_they_stand_for() {
        assert_eq!(known("exec \"$@\"", &["python", "a b.py"]), ["exec|python|a b.py"]);
        assert_eq!(known("\"$@\"", &["python", "t.py"]), ["python|t.py"]);
        assert_eq!(
            known("S=train.py; python \"$HOME/$S\" $1 ${2:-x}", &["one"]),
            ["S=train.py", "python|/root/train.py|one|x"]
        );
        assert_eq!(known("python $SCRIPT \"`cat f`\"", &[]), ["python|?$SCRIPT|?\"`cat f`\"", "cat|f"]);
        assert_eq!(known(r#"python -c "import a; print(\"x y\")""#, &[]), [r#"python|-c|import a; print("x y")"#]);
        assert_eq!(known("python -c '\nimport a\n'", &[]), ["python|-c|\nimport a\n"]);
    }

    #[test]
    fn neither_depth_nor_length_nor_nonsense_ends_us() {
        for script in [
            "(".repeat(100_000),
            "$(".repeat(50_000),
            "\"$(\"".repeat(20_000),
            "{ ".repeat(50_000),
            "\0'\"".repeat(1000),
            "${a".repeat(30_000),
        ] {
            steps(&script, &[], |_| None);
        }
        assert_eq!(steps(&" ".repeat(LONGEST + 1), &[], |_| None), None);
        assert_eq!(steps(&"a\n".repeat(MOST_STEPS + 1), &[], |_| None), None);
    }
}
