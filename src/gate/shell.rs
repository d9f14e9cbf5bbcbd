//! What commands a shell script has: read by a real parser, never run.
//!
//! Branches and loops are not weighed: whatever the script may run counts as run. What a word stands for is found as far as it
//! stands in the script, the arguments or the environment.

use std::cell::Cell;
use std::collections::HashMap;
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
/// Longest word, in bytes: Linux lets no argument have more (`MAX_ARG_STRLEN`). A variable may be made of itself, twice.
const LONGEST_WORD: usize = 128 << 10;
/// Bytes of all words of a script. Each may be made of what is set elsewhere, however short it looks.
const MOST_BYTES: usize = 1 << 20;
/// What is shown of a word that only a run knows, in bytes.
const LONGEST_OPEN: usize = 200;

/// The steps of a script whose positional parameters are `arguments` (`$1` the first). `lookup` knows variables of the
/// environment; those that the script sets itself are ours to know. `None` where it is too long to be read.
pub(super) fn steps(script: &str, arguments: &[String], lookup: impl Fn(&str) -> Option<String>) -> Option<Vec<Step>> {
    let tree = parse(&tree_sitter_bash::LANGUAGE.into(), script, LONGEST)?;
    let left = Cell::new(Some(MOST_BYTES));
    let mut reader = Reader { script, arguments, lookup, set: HashMap::new(), left: &left };
    let mut steps = Vec::new();
    each(&tree, |node| {
        steps.extend(reader.step(node));
        let is_too_much = steps.len() > MOST_STEPS || left.get().is_none();
        if is_too_much { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (steps.len() <= MOST_STEPS && left.get().is_some()).then_some(steps)
}

struct Reader<'s, L> {
    script: &'s str,
    arguments: &'s [String],
    lookup: L,
    /// What the script has set so far.
    set: HashMap<String, Word>,
    /// Bytes that words may still have; `None` once there were more.
    left: &'s Cell<Option<usize>>,
}

impl<L: Fn(&str) -> Option<String>> Reader<'_, L> {
    fn step(&mut self, node: Node<'_>) -> Option<Step> {
        match node.kind() {
            "command" => Some(Step::Command(self.command(node))),
            "variable_assignment" => {
                let value = node.child_by_field_name("value");
                let value = value.map_or(Word::Known(String::new()), |value| self.word(value));
                let name = self.text(node.child_by_field_name("name")?).to_owned();
                self.set.insert(name.clone(), value.clone());
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
                    words.extend(self.all_arguments());
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
            return self.all_arguments();
        }
        vec![self.word(name)]
    }

    fn all_arguments(&self) -> Vec<Word> {
        if !self.spend(self.arguments.iter().map(|argument| size_of::<Word>() + argument.len()).sum()) {
            return Vec::new();
        }
        self.arguments.iter().cloned().map(Word::Known).collect()
    }

    fn word(&self, node: Node<'_>) -> Word {
        if self.left.get().is_some()
            && let Some(value) = self.value(node, 0)
            && self.spend(value.len())
        {
            return Word::Known(value);
        }
        let text = self.text(node);
        Word::Open(text.get(..text.floor_char_boundary(LONGEST_OPEN)).unwrap_or_default().to_owned())
    }

    /// Whether words may have so many bytes more.
    fn spend(&self, bytes: usize) -> bool {
        let left = self.left.get().and_then(|left| left.checked_sub(bytes));
        self.left.set(left);
        left.is_some()
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
            if whole.len() > LONGEST_WORD {
                return None;
            }
        }
        whole.push_str(self.script.get(at..end).unwrap_or_default());
        Some(whole)
    }

    fn variable(&self, name: &str) -> Option<String> {
        if let Ok(number) = name.parse::<usize>() {
            return self.arguments.get(number.checked_sub(1)?).cloned();
        }
        match self.set.get(name) {
            Some(Word::Known(value)) => Some(value.clone()),
            Some(Word::Open(_)) => None,
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
        let nothing = vec![String::new(); 5_000];
        assert_eq!(steps(&format!("a {}", "\"$@\" ".repeat(20_000)), &nothing, |_| None), None);
    }

    /// How large the words of a script are, all together.
    fn size(script: &str, arguments: &[String], variable: &str) -> usize {
        let steps = steps(script, arguments, |_| Some(variable.to_owned())).unwrap_or_default();
        let word = |word: &Word| match word {
            Word::Known(text) | Word::Open(text) => text.len(),
        };
        let sizes = steps.iter().map(|step| match step {
            Step::Command(words) => words.iter().map(word).sum(),
            Step::Set(name, value) => name.len() + word(value),
        });
        sizes.sum()
    }

    #[test]
    fn words_do_not_grow_without_end() {
        let large = "x".repeat(100_000);
        for script in [
            // Doubled, again and again.
            format!("A={large}\n{}", "A=$A$A\n".repeat(60)),
            "A=x\n".to_owned() + &"A=\"$A$A\"\n".repeat(60),
            "a \"$@\"\n".repeat(1500),
            format!("a {}", "\"$@\" ".repeat(20_000)),
            format!("a {}", "$V ".repeat(50_000)),
            format!("a \"{}\"", "$V".repeat(50_000)),
            "a $V $1\n".repeat(1500),
            "a $V\n".repeat(1500),
            format!("{}{}", "$(a ".repeat(50_000), ")".repeat(50_000)),
            format!("{}{}", "a $(b ".repeat(1000), ")".repeat(1000)) + &" ".repeat(100_000),
        ] {
            let size = size(&script, std::slice::from_ref(&large), &large);
            assert!(size <= 4 * MOST_BYTES, "{size} bytes of {:?}...", &script[script.len() - 20..]);
        }
        let twice = known("A=ab; B=$A$A; c \"$B$B\"", &[]);
        assert_eq!(twice, ["A=ab", "B=abab", "c|abababab"]);
    }
}
