//! What a container runs in the end, behind entrypoint scripts, `exec "$@"`, launchers of training and package managers.

use std::collections::BTreeMap;

use super::commands::{HARMLESS, LAUNCHERS, LAUNCHING_MODULES, SHELLS, VALUED, WRAPPERS};
use super::files::{Files, Found, has_extension, normal};
use super::shell::{self, Step, Word};

/// Something that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// Python code at this path.
    Script(String),
    /// A Python module by its dotted name, looked for from this folder.
    Module { name: String, folder: String },
    /// Python code as an argument.
    Inline { code: String, folder: String },
    /// `mlflow run`, which logs by itself.
    MlflowRun,
    /// It installs these packages, or those of a file, before it goes on.
    Install(Vec<String>),
    /// Something that is no Python.
    Other(String),
    /// It cannot be known what, and why.
    Unknown(String),
}

/// Where a command runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) folder: String,
    /// Variables with a value; `None` for those whose value only the cluster knows.
    pub(super) environment: BTreeMap<String, Option<String>>,
}

/// How many scripts may call one another.
const DEEPEST: usize = 8;
/// How many programs we look at.
const MOST: usize = 200;
/// How many commands we look at on the way there, and how many bytes of scripts: a script that calls itself twice does so without
/// end, and all of it is a tenant's.
const MOST_COMMANDS: usize = 2_000;
const MOST_BYTES: usize = 2 << 20;
/// Folders of a `PATH` that are looked into.
const MOST_FOLDERS: usize = 32;
/// Files that are looked for, which takes a step for each folder of their paths.
const MOST_LOOKS: usize = 10_000;

/// Everything that a command may run.
pub(super) fn of(command: &[String], place: &Place, files: &Files) -> Vec<Program> {
    let mut search = Search {
        files,
        place: place.clone(),
        found: Vec::new(),
        commands: MOST_COMMANDS,
        bytes: MOST_BYTES,
        looks: MOST_LOOKS,
    };
    search.run(&command.iter().cloned().map(Word::Known).collect::<Vec<_>>(), 0);
    search.found
}

struct Search<'f> {
    files: &'f Files,
    place: Place,
    found: Vec<Program>,
    /// How many more commands, bytes of scripts, and files are looked at.
    commands: usize,
    bytes: usize,
    looks: usize,
}

impl<'f> Search<'f> {
    fn add(&mut self, program: Program) {
        if self.found.len() < MOST && !self.found.contains(&program) {
            self.found.push(program);
        }
    }

    fn unknown(&mut self, reason: impl Into<String>) {
        self.add(Program::Unknown(reason.into()));
    }

    fn run(&mut self, command: &[Word], depth: usize) {
        if depth > DEEPEST {
            return self.unknown("its scripts call one another without end");
        }
        let Some(left) = self.commands.checked_sub(1) else {
            return self.unknown("it runs more commands than are looked at");
        };
        self.commands = left;
        let Some((first, arguments)) = command.split_first() else { return };
        let first = match first {
            Word::Known(first) if first.is_empty() => return,
            Word::Known(first) => first,
            Word::Open(text) => return self.unknown(format!("only a run knows what {text} is")),
        };
        let name = first.rsplit('/').next().unwrap_or(first);
        if name == "env" && arguments.iter().filter_map(known).any(|word| word.starts_with("-S")) {
            return self.unknown("env makes a command of a text");
        }
        if let Some((_, own, valued)) = WRAPPERS.iter().find(|(wrapper, ..)| *wrapper == name) {
            return self.run(behind_options(arguments, *own, valued, name == "env"), depth.saturating_add(1));
        }
        if SHELLS.contains(&name) {
            return self.shell(arguments, depth);
        }
        if is_python(name) {
            return self.python(arguments, depth);
        }
        if let Some(packages) = installs(name, arguments) {
            return self.add(Program::Install(packages));
        }
        match name {
            "mlflow" if is_word(arguments.first(), "run") => self.add(Program::MlflowRun),
            "source" | "." => self.file(arguments.first(), arguments.get(1..).unwrap_or_default(), depth),
            "eval" => self.unknown("it evaluates a text that only a run knows"),
            _ if LAUNCHERS.contains(&name) => self.launcher(name, arguments, depth),
            _ if HARMLESS.contains(&name) => {}
            _ => self.named(first, arguments, depth),
        }
    }

    /// `-c TEXT`, or a script's file.
    fn shell(&mut self, arguments: &[Word], depth: usize) {
        let Some(at) = arguments.iter().position(|word| !is_option(word)) else {
            return self.unknown("a shell reads its commands from standard input");
        };
        let has_text =
            |word: &Word| matches!(word, Word::Known(option) if !option.starts_with("--") && option.ends_with('c'));
        let (before, behind) = arguments.split_at(at);
        if before.iter().any(has_text) {
            match behind.split_first() {
                // The first argument behind the text is `$0`.
                Some((Word::Known(text), rest)) => self.script(text, rest.get(1..).unwrap_or_default(), depth),
                Some((Word::Open(text), _)) => self.unknown(format!("only a run knows what {text} is")),
                None => self.unknown("a shell without its text"),
            }
        } else {
            self.file(behind.first(), behind.get(1..).unwrap_or_default(), depth);
        }
    }

    /// The commands of a shell's text, in their order: folders and variables change on the way.
    fn script(&mut self, text: &str, arguments: &[Word], depth: usize) {
        let Some(left) = self.bytes.checked_sub(text.len()) else {
            return self.unknown("its scripts are longer than what is looked at");
        };
        self.bytes = left;
        let arguments: Option<Vec<String>> = arguments.iter().map(known).map(|word| word.map(str::to_owned)).collect();
        let before = self.place.clone();
        let lookup = |name: &str| before.environment.get(name).cloned().flatten();
        let Some(steps) = shell::steps(text, &arguments.unwrap_or_default(), lookup) else {
            return self.unknown("a shell script is too long to be read");
        };
        for step in steps {
            match step {
                Step::Set(name, value) => {
                    self.place.environment.insert(name, known(&value).map(str::to_owned));
                }
                Step::Command(words) => match words.split_first() {
                    Some((Word::Known(name), rest)) if name == "cd" => match rest.first() {
                        Some(Word::Known(folder)) => self.place.folder = normal(&self.place.folder, folder),
                        _ => self.unknown("only a run knows the folder that it changes to"),
                    },
                    _ => self.run(&words, depth.saturating_add(1)),
                },
            }
        }
        self.place = before;
    }

    fn python(&mut self, arguments: &[Word], depth: usize) {
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            let Some(word) = known(word) else { return self.unknown("only a run knows what Python is given") };
            match word {
                "-m" => return self.module(rest.as_slice(), depth),
                "-c" => {
                    return match rest.next() {
                        Some(Word::Known(code)) => {
                            let folder = self.place.folder.clone();
                            self.add(Program::Inline { code: code.clone(), folder });
                        }
                        _ => self.unknown("only a run knows what Python is given"),
                    };
                }
                "-W" | "-X" | "--check-hash-based-pycs" => drop(rest.next()),
                "-" => return self.unknown("Python reads its code from standard input"),
                "-V" | "--version" | "-h" | "--help" => return self.add(Program::Other(format!("python {word}"))),
                // Behind others, as in -um.
                option if option.starts_with('-') && !option.starts_with("--") && option.ends_with('m') => {
                    return self.module(rest.as_slice(), depth);
                }
                option if option.starts_with('-') => {}
                file => return self.add(Program::Script(normal(&self.place.folder, file))),
            }
        }
        self.unknown("Python reads its code from standard input");
    }

    fn module(&mut self, arguments: &[Word], depth: usize) {
        let Some(Word::Known(name)) = arguments.first() else {
            return self.unknown("only a run knows which module Python runs");
        };
        let rest = arguments.get(1..).unwrap_or_default();
        if name == "mlflow" && is_word(rest.first(), "run") {
            return self.add(Program::MlflowRun);
        }
        if let Some(packages) = installs(name, rest) {
            return self.add(Program::Install(packages));
        }
        if LAUNCHING_MODULES.contains(&name.as_str()) {
            return self.launcher(name, rest, depth);
        }
        let folder = self.place.folder.clone();
        self.add(Program::Module { name: name.clone(), folder });
    }

    /// What a launcher launches is the first of its arguments that is a script, a module or Python itself.
    fn launcher(&mut self, name: &str, arguments: &[Word], depth: usize) {
        for (at, word) in arguments.iter().enumerate() {
            let Some(word) = known(word) else { continue };
            let rest = arguments.get(at..).unwrap_or_default();
            let last = word.rsplit('/').next().unwrap_or(word);
            if is_python(last) || SHELLS.contains(&last) || LAUNCHERS.contains(&last) {
                return self.run(rest, depth.saturating_add(1));
            }
            if word == "-m" || word == "--module" {
                return self.module(rest.get(1..).unwrap_or_default(), depth);
            }
            if has_extension(word, "py") {
                return self.add(Program::Script(normal(&self.place.folder, word)));
            }
            if let Some(packages) = installs(word, rest.get(1..).unwrap_or_default()) {
                return self.add(Program::Install(packages));
            }
        }
        self.unknown(format!("what {name} runs is not among its arguments"));
    }

    fn find(&mut self, path: &str) -> Found<'f> {
        match self.looks.checked_sub(1) {
            Some(left) => {
                self.looks = left;
                self.files.find(path)
            }
            None => Found::Unknown("more files are looked for than anybody has"),
        }
    }

    /// A program by its name, as the system finds it.
    fn named(&mut self, name: &str, arguments: &[Word], depth: usize) {
        if name.contains('/') {
            return self.file(Some(&Word::Known(name.to_owned())), arguments, depth);
        }
        let path = self.place.environment.get("PATH").cloned().flatten();
        let path = path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let mut unknown = None;
        for folder in path.split(':').take(MOST_FOLDERS) {
            let file = normal(folder, name);
            match self.find(&file) {
                Found::Missing => {}
                Found::Unknown(reason) => unknown = unknown.or(Some(reason)),
                Found::Text(_) | Found::Other => return self.file(Some(&Word::Known(file)), arguments, depth),
            }
        }
        match unknown {
            Some(reason) => self.unknown(format!("{name}: {reason}")),
            None => self.add(Program::Other(name.to_owned())),
        }
    }

    /// A file that is run: a script by its first line, or by its name.
    fn file(&mut self, file: Option<&Word>, arguments: &[Word], depth: usize) {
        let Some(file) = file else { return };
        let Some(file) = known(file) else { return self.unknown("only a run knows which file it runs") };
        let path = normal(&self.place.folder, file);
        let text = match self.find(&path) {
            Found::Text(text) => text,
            Found::Other | Found::Missing => return self.add(Program::Other(path)),
            Found::Unknown(reason) => return self.unknown(format!("{path}: {reason}")),
        };
        let first = text.lines().next().unwrap_or_default();
        let interpreter = first.strip_prefix("#!").unwrap_or_default();
        let by_python = interpreter.split_whitespace().any(|word| is_python(word.rsplit('/').next().unwrap_or(word)));
        let is_python_file = has_extension(&path, "py");
        if by_python || is_python_file {
            return self.add(Program::Script(path));
        }
        let by_shell =
            interpreter.split_whitespace().any(|word| SHELLS.contains(&word.rsplit('/').next().unwrap_or(word)));
        if by_shell || interpreter.is_empty() {
            return self.script(text, arguments, depth);
        }
        self.add(Program::Other(path));
    }
}

fn known(word: &Word) -> Option<&str> {
    match word {
        Word::Known(text) => Some(text),
        Word::Open(_) => None,
    }
}

fn is_word(word: Option<&Word>, text: &str) -> bool {
    word.and_then(known) == Some(text)
}

fn is_option(word: &Word) -> bool {
    known(word).is_some_and(|text| text.starts_with('-') || text.starts_with('+'))
}

/// `python`, `python3`, `python3.11`, `pypy3`.
fn is_python(name: &str) -> bool {
    let rest = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    rest.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// The command behind a wrapper's options and its `own` arguments; `env` has assignments among them.
fn behind_options<'w>(arguments: &'w [Word], own: usize, valued: &str, has_assignments: bool) -> &'w [Word] {
    let mut rest = arguments;
    while let Some((first, behind)) = rest.split_first() {
        let text = known(first).unwrap_or_default();
        if text == "--" {
            rest = behind;
            break;
        }
        if !(is_option(first) || has_assignments && text.contains('=')) {
            break;
        }
        // `-n 5`; in `-n5` and `--adjustment=5` the value is there already.
        let letter = text.strip_prefix('-').filter(|letter| letter.len() == 1);
        let has_value = letter.is_some_and(|letter| valued.contains(letter)) || VALUED.contains(&text);
        rest = if has_value { behind.get(1..).unwrap_or_default() } else { behind };
    }
    rest.get(own..).unwrap_or_default()
}

/// The packages that a command installs, or the files that list them (`-r FILE` as `FILE`).
fn installs(name: &str, arguments: &[Word]) -> Option<Vec<String>> {
    let is_pip = name
        .strip_prefix("pip")
        .is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    let is_manager = matches!(name, "conda" | "mamba" | "micromamba" | "uv" | "poetry");
    if !is_pip && !is_manager {
        return None;
    }
    let words: Vec<&str> = arguments.iter().filter_map(known).collect();
    let behind = words.iter().position(|word| matches!(*word, "install" | "add" | "sync"))?;
    // `uv run pip install` is found when pip is reached; `uv run x install` installs nothing.
    if words.iter().take(behind).any(|word| *word == "run") {
        return None;
    }
    let packages = words.get(behind.saturating_add(1)..).unwrap_or_default();
    Some(packages.iter().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::files::File;
    use super::*;

    fn files(texts: &[(&str, &str)]) -> Files {
        let mut of_image: BTreeMap<_, _> =
            texts.iter().map(|(path, text)| ((*path).to_owned(), File::Text((*text).to_owned()))).collect();
        of_image.insert("/usr/bin/sort".to_owned(), File::Other);
        Files { of_image: std::sync::Arc::new(of_image), complete: true, mounts: vec!["/mnt/code".to_owned()] }
    }

    fn programs(command: &[&str], texts: &[(&str, &str)]) -> Vec<Program> {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        let environment = BTreeMap::from([("MODE".to_owned(), Some("train".to_owned())), ("SECRET".to_owned(), None)]);
        of(&command, &Place { folder: "/app".to_owned(), environment }, &files(texts))
    }

    fn script(path: &str) -> Program {
        Program::Script(path.to_owned())
    }

    #[test]
    fn scripts_that_call_themselves_are_left_at_some_point() {
        let text = "#!/bin/sh\n".to_owned() + &"sh /own.sh\nsh -c 'sh /own.sh; sh /own.sh'\n".repeat(1000);
        let of_image = BTreeMap::from([("/own.sh".to_owned(), File::Text(text))]);
        let files = Files { of_image: std::sync::Arc::new(of_image), complete: true, mounts: Vec::new() };
        let found = of(&["sh".to_owned(), "/own.sh".to_owned()], &Place::default(), &files);
        assert!(found.iter().all(|program| matches!(program, Program::Unknown(_))) && !found.is_empty(), "{found:?}");
    }

    #[test]
    fn python_is_found_behind_whatever_stands_before_it() {
        for command in [
            &["python", "train.py", "--lr", "0.1"][..],
            &["/usr/bin/python3.11", "-u", "-W", "ignore", "train.py"],
            &["sh", "-c", "python train.py > /log"],
            &["bash", "-euxc", "cd / && exec env A=B nice -n 5 python app/train.py"],
            &["tini", "-g", "--", "python", "train.py"],
            &["torchrun", "--nproc_per_node=2", "train.py"],
            &["python", "-m", "torch.distributed.run", "--nnodes", "2", "train.py"],
            &["mpirun", "-np", "2", "-x", "PATH", "python", "train.py"],
            &["conda", "run", "-n", "base", "python", "train.py"],
            &["uv", "run", "train.py"],
            &["sh", "-c", "\"$@\"", "sh", "python", "train.py"],
            &["sh", "-c", "python $MODE.py"],
            &["/entry.sh", "python", "train.py"],
            &["timeout", "--signal", "TERM", "-k", "5", "1h", "python", "train.py"],
            &["nice", "--adjustment=5", "python", "train.py"],
            &["strace", "-o", "log", "python", "train.py"],
            &["sh", "-c", "ls | xargs -n 1 python train.py"],
            &["ipython", "train.py"],
            &["nsys", "profile", "-o", "report", "python", "train.py"],
            &["./start.bash"],
            &["./run"],
            &["run"],
            &["/kubeflow-extension/launcher/launcher", "--exec", "--", "python", "train.py"],
        ] {
            let texts = [
                ("/entry.sh", "#!/bin/sh\nset -e\nexec \"$@\"\n"),
                ("/app/run", "#!/usr/bin/env bash\ncd /app\n./inner \"$@\""),
                ("/app/inner", "python train.py"),
                ("/app/start.bash", "python train.py"),
                ("/usr/bin/run", "#!/bin/sh\npython /app/train.py"),
            ];
            assert_eq!(programs(command, &texts), [script("/app/train.py")], "{command:?}");
        }
    }

    #[test]
    fn what_is_run_otherwise_is_said() {
        let folder = || "/app".to_owned();
        assert_eq!(
            programs(&["python", "-m", "pkg.train"], &[]),
            [Program::Module { name: "pkg.train".to_owned(), folder: folder() }]
        );
        assert_eq!(
            programs(&["python3", "-c", "import mlflow"], &[]),
            [Program::Inline { code: "import mlflow".to_owned(), folder: folder() }]
        );
        assert_eq!(programs(&["mlflow", "run", "."], &[]), [Program::MlflowRun]);
        assert_eq!(
            programs(&["sh", "-c", "pip install -q mlflow==3 && python a.py"], &[]),
            [Program::Install(vec!["mlflow==3".to_owned()]), script("/app/a.py")]
        );
        assert_eq!(programs(&["sort"], &[]), [Program::Other("/usr/bin/sort".to_owned())]);
        assert_eq!(programs(&["nothing"], &[]), [Program::Other("nothing".to_owned())]);
        assert_eq!(
            programs(&["tool"], &[("/usr/local/bin/tool", "#!/usr/bin/python3\nimport a")]),
            [script("/usr/local/bin/tool")]
        );
        assert_eq!(programs(&["sh", "-c", "sleep 10; ls | xargs -r rm"], &[]), []);
    }

    #[test]
    fn what_only_a_run_knows_is_unknown() {
        for command in [
            &["sh", "-c", "python"][..],
            &["python", "-"],
            &["sh", "-c", "$SECRET"],
            &["sh", "-c", "python $SECRET"],
            &["sh", "-c", "eval \"$X\""],
            &["/mnt/code/run.sh"],
            &["sh", "/loop.sh"],
            &["torchrun"],
            &["make", "train"],
            &["env", "-S", "python train.py"],
            &["papermill", "train.ipynb", "out.ipynb"],
            &["/usr/lib/own/start"],
            &["./start.csh"],
        ] {
            let found = programs(command, &[("/loop.sh", "sh /loop.sh")]);
            assert!(matches!(found[..], [Program::Unknown(_)]), "{command:?}: {found:?}");
        }
        assert_eq!(programs(&["python", "/mnt/code/train.py"], &[]), [script("/mnt/code/train.py")]);
    }
}
