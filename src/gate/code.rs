//! What the code of a program does with MLflow: its script, and what that imports of its own.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};

use super::files::{Files, Found, IN_A_VOLUME, normal, parent};
use super::python;

/// What is found in the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// It logs: where and with what.
    Logs(String),
    /// All that was found was read, and does not log: what was read.
    Silent(String),
    /// Some of it cannot be read.
    Unknown(String),
}

/// How many files of one program are read.
const MOST_FILES: usize = 100;

/// Where Python looks for a module, first to last.
pub(super) struct Paths<'p> {
    /// `PYTHONPATH`, and folders of packages.
    pub(super) folders: &'p [String],
    /// How much is still read, for all programs together: bytes of sources, and [`LOOKUP`] for each file that is looked for.
    pub(super) budget: &'p Cell<usize>,
}

/// How much is read for one container. Nobody writes more for one job; reading it takes about a second.
pub(super) const BUDGET: usize = 8 << 20;
/// What it costs to look for a file.
const LOOKUP: usize = 100;

impl Paths<'_> {
    /// Whether there is so much left.
    fn spend(&self, units: usize) -> bool {
        let left = self.budget.get().checked_sub(units);
        self.budget.set(left.unwrap_or_default());
        left.is_some()
    }
}

const TOO_MUCH: &str = "there is more code than is looked at";

/// A script at a path.
pub(super) fn script(path: &str, paths: &Paths<'_>, files: &Files) -> Code {
    match files.find(path) {
        // A folder or an archive with a `__main__.py` in it.
        Found::Missing => {
            let main = normal(path, "__main__.py");
            match files.find(&main) {
                Found::Text(text) => follow(&main, text, path, Packages::MayBeItsOwn, paths, files),
                _ => Code::Unknown(format!("{path} is not in the image")),
            }
        }
        Found::Text(text) if is_installed(path) => {
            match follow(path, text, parent(path), Packages::AreLookedAt, paths, files) {
                Code::Silent(read) => packages(text, paths, files).unwrap_or(Code::Silent(read)),
                code => code,
            }
        }
        Found::Text(text) => follow(path, text, parent(path), Packages::MayBeItsOwn, paths, files),
        Found::Other => Code::Unknown(format!("{path} is no text, or too long a one")),
        Found::Unknown(reason) => Code::Unknown(format!("{path}: {reason}")),
    }
}

/// A module by its dotted name.
pub(super) fn module(name: &str, folder: &str, paths: &Paths<'_>, files: &Files) -> Code {
    let mut unknown = None;
    let relative = name.replace('.', "/");
    for base in std::iter::once(folder).chain(paths.folders.iter().map(String::as_str)) {
        for end in ["/__main__.py", ".py"] {
            let path = normal(base, &format!("{relative}{end}"));
            match files.find(&path) {
                Found::Text(text) => {
                    if !is_of_packages(base) {
                        return follow(&path, text, base, Packages::MayBeItsOwn, paths, files);
                    }
                    return match follow(&path, text, base, Packages::AreLookedAt, paths, files) {
                        Code::Silent(read) => {
                            let package = name.split('.').next().unwrap_or(name);
                            package_logs(package, paths, files).unwrap_or(Code::Silent(read))
                        }
                        code => code,
                    };
                }
                Found::Unknown(reason) => unknown = unknown.or(Some(reason)),
                Found::Missing | Found::Other => {}
            }
        }
    }
    Code::Unknown(format!("module {name}: {}", unknown.unwrap_or("it is not in the image")))
}

/// Code from the command line.
pub(super) fn inline(code: &str, folder: &str, paths: &Paths<'_>, files: &Files) -> Code {
    follow("the command line", code, folder, Packages::MayBeItsOwn, paths, files)
}

/// Whether a script was put there by a package manager (`console_scripts`): its work is in a package.
fn is_installed(path: &str) -> bool {
    parent(path).ends_with("/bin")
}

/// What the packages that such a script imports do.
fn packages(script: &str, paths: &Paths<'_>, files: &Files) -> Option<Code> {
    if !paths.spend(script.len()) {
        return Some(Code::Unknown(TOO_MUCH.to_owned()));
    }
    let imports = python::read(script).imports;
    let packages = imports.iter().filter_map(|import| import.split('.').next());
    packages.filter(|package| !python::is_library(package)).find_map(|package| package_logs(package, paths, files))
}

/// Whether any file of an installed package logs: it is the job's own, and which of its files run is not looked into. Only
/// those that speak of MLflow are kept when an image is read.
fn package_logs(package: &str, paths: &Paths<'_>, files: &Files) -> Option<Code> {
    if package.is_empty() || package == "mlflow" {
        return None;
    }
    let folders = paths.folders.iter().filter(|folder| is_of_packages(folder));
    folders.flat_map(|folder| files.texts_below(format!("{folder}/{package}/"))).take(MOST_FILES).find_map(
        |(path, text)| {
            if !paths.spend(text.len()) {
                return Some(Code::Unknown(format!("{path}: {TOO_MUCH}")));
            }
            let what = python::read(text).logs?;
            Some(Code::Logs(format!("{path}: {what}")))
        },
    )
}

/// What installed packages are to the code that imports them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packages {
    /// The job's own code, or a library that logs when it is told to: nobody can tell.
    MayBeItsOwn,
    /// Whoever asks knows which of them are the job's own.
    AreLookedAt,
}

/// Reads a source, and what it imports from beside it, until something logs.
fn follow(path: &str, text: &str, base: &str, installed: Packages, paths: &Paths<'_>, files: &Files) -> Code {
    let mut seen = BTreeSet::from([path.to_owned()]);
    let mut packages = BTreeSet::new();
    let mut waiting = VecDeque::from([(path.to_owned(), text.to_owned())]);
    let mut unknown = None;
    while let Some((path, text)) = waiting.pop_front() {
        if text.len() > python::LONGEST {
            unknown = unknown.or(Some(format!("{path} is too long to be read")));
            continue;
        }
        if !paths.spend(text.len()) {
            return Code::Unknown(format!("{path}: {TOO_MUCH}"));
        }
        let findings = python::read(&text);
        if let Some(what) = findings.logs {
            return Code::Logs(format!("{path}: {what}"));
        }
        if let Some(what) = findings.starts {
            unknown = unknown.or(Some(format!("{path} starts other code: {what}")));
        }
        for import in &findings.imports {
            for candidate in candidates(import, &path, base, paths) {
                if !paths.spend(LOOKUP) {
                    return Code::Unknown(format!("{path}: {TOO_MUCH}"));
                }
                match files.find(&candidate) {
                    Found::Text(_) if seen.contains(&candidate) => {}
                    Found::Text(_) if seen.len() >= MOST_FILES => unknown = unknown.or(Some(TOO_MUCH.to_owned())),
                    Found::Text(text) => {
                        seen.insert(candidate.clone());
                        waiting.push_back((candidate, text.to_owned()));
                    }
                    Found::Unknown(reason)
                        if reason == IN_A_VOLUME || is_beside(&candidate, base) && is_own(import) =>
                    {
                        unknown = unknown.or(Some(format!("{candidate}: {reason}")));
                    }
                    _ => {}
                }
            }
            let package = import.split('.').next().unwrap_or_default();
            let mut is_new = || !python::is_library(package) && packages.insert(package.to_owned());
            if installed == Packages::MayBeItsOwn && is_new() {
                match package_logs(package, paths, files) {
                    Some(Code::Logs(what)) => {
                        unknown = unknown.or(Some(format!("{path} imports {package}, which can log ({what})")));
                    }
                    Some(Code::Unknown(reason)) => unknown = unknown.or(Some(reason)),
                    Some(Code::Silent(_)) | None => {}
                }
            }
        }
    }
    match unknown {
        Some(reason) => Code::Unknown(reason),
        None => Code::Silent(seen.into_iter().take(3).collect::<Vec<_>>().join(", ")),
    }
}

/// The files that an import may mean: beside the script, relative to the file, or on the path.
fn candidates(import: &str, file: &str, base: &str, paths: &Paths<'_>) -> Vec<String> {
    let dots = import.len() - import.trim_start_matches('.').len();
    let relative = import.trim_start_matches('.').replace('.', "/");
    let folders: Vec<String> = if dots > 0 {
        let up = "../".repeat(dots.saturating_sub(1));
        vec![normal(parent(file), &up)]
    } else {
        std::iter::once(base.to_owned())
            .chain(paths.folders.iter().filter(|folder| !is_of_packages(folder)).cloned())
            .collect()
    };
    let ends: &[&str] = if relative.is_empty() { &["__init__.py"] } else { &[".py", "/__init__.py"] };
    folders
        .iter()
        .flat_map(|folder| ends.iter().map(move |end| (folder, end)))
        .map(|(folder, end)| normal(folder, &format!("{relative}{end}")))
        .collect()
}

/// Whether a folder is one that package managers fill: what is there is not the job's own code.
pub(super) fn is_of_packages(folder: &str) -> bool {
    folder.ends_with("/site-packages") || folder.ends_with("/dist-packages")
}

fn is_beside(candidate: &str, base: &str) -> bool {
    candidate.strip_prefix(base).is_some()
}

/// Whether an import that cannot be looked for is one of the job's own: relative ones are, others may be a library's.
fn is_own(import: &str) -> bool {
    import.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::super::files::File;
    use super::*;

    fn code(texts: &[(&str, &str)], complete: bool, run: impl Fn(&Paths<'_>, &Files) -> Code) -> Code {
        code_within(BUDGET, texts, complete, run)
    }

    fn code_within(
        budget: usize,
        texts: &[(&str, &str)],
        complete: bool,
        run: impl Fn(&Paths<'_>, &Files) -> Code,
    ) -> Code {
        let of_image = texts.iter().map(|(path, text)| ((*path).to_owned(), File::Text((*text).to_owned()))).collect();
        let files = Files {
            of_image: std::sync::Arc::new(of_image),
            complete,
            mounts: vec!["/mnt".to_owned(), "/app/volume".to_owned()],
        };
        let folders = ["/usr/lib/python3/site-packages".to_owned(), "/lib/own".to_owned()];
        run(&Paths { folders: &folders, budget: &Cell::new(budget) }, &files)
    }

    const LOGS: &str = "import mlflow\nmlflow.autolog()";

    #[test]
    fn what_a_script_imports_of_its_own_is_read() {
        for (texts, file) in [
            (&[("/app/train.py", LOGS)][..], "/app/train.py"),
            (&[("/app/train.py", "import tools"), ("/app/tools.py", LOGS)], "/app/tools.py"),
            (
                &[
                    ("/app/train.py", "from pkg import tracking"),
                    ("/app/pkg/__init__.py", ""),
                    ("/app/pkg/tracking.py", LOGS),
                ],
                "/app/pkg/tracking.py",
            ),
            (
                &[("/app/train.py", "import pkg.a"), ("/app/pkg/a.py", "from . import b"), ("/app/pkg/b.py", LOGS)],
                "/app/pkg/b.py",
            ),
            (
                &[
                    ("/app/train.py", "import pkg.a"),
                    ("/app/pkg/a.py", "from ..tools import c"),
                    ("/app/tools.py", LOGS),
                ],
                "/app/tools.py",
            ),
            (&[("/app/train.py", "import shared"), ("/lib/own/shared.py", LOGS)], "/lib/own/shared.py"),
            (&[("/app/train.py", "import train"), ("/app/other.py", LOGS)], ""),
            (
                &[
                    ("/app/train.py", "import transformers"),
                    ("/usr/lib/python3/site-packages/transformers/integrations.py", LOGS),
                ],
                "",
            ),
        ] {
            let found = code(texts, true, |paths, files| script("/app/train.py", paths, files));
            let expected = if file.is_empty() {
                Code::Silent("/app/train.py".to_owned())
            } else {
                Code::Logs(format!("{file}: mlflow.autolog (line 2)"))
            };
            assert_eq!(found, expected, "{texts:?}");
        }
    }

    #[test]
    fn modules_are_found_where_python_finds_them() {
        for path in ["/app/pkg/train.py", "/app/pkg/train/__main__.py", "/usr/lib/python3/site-packages/pkg/train.py"] {
            let found = code(&[(path, LOGS)], true, |paths, files| module("pkg.train", "/app", paths, files));
            assert_eq!(found, Code::Logs(format!("{path}: mlflow.autolog (line 2)")));
        }
        assert!(matches!(code(&[], true, |paths, files| module("a", "/", paths, files)), Code::Unknown(_)));
    }

    #[test]
    fn an_installed_script_is_its_package() {
        let package = ("/usr/lib/python3/site-packages/own/train.py", LOGS);
        let run = |texts: &[(&str, &str)], path: &str| code(texts, true, |paths, files| script(path, paths, files));
        let texts = [("/usr/local/bin/train", "from own.cli import main"), package];
        assert!(matches!(run(&texts, "/usr/local/bin/train"), Code::Logs(_)));
        let texts = [("/app/train", "import numpy\nfrom own.cli import main"), package];
        let found = run(&texts, "/app/train");
        let why = "/app/train imports own, which can log (/usr/lib/python3/site-packages/own/train.py: mlflow.autolog (line 2))";
        assert_eq!(found, Code::Unknown(why.to_owned()), "the job's own, or a library that is told to log or not");
        let cli = ("/usr/lib/python3/site-packages/own/__main__.py", "import own.train");
        let found = code(&[package, cli], true, |paths, files| module("own", "/", paths, files));
        assert!(matches!(found, Code::Logs(_)));
    }

    #[test]
    fn more_code_than_anybody_writes_is_not_read() {
        let texts = [("/app/train.py", "import a, b, c"), ("/app/a.py", "import numpy"), ("/app/b.py", LOGS)];
        let within = |budget| code_within(budget, &texts, true, |paths, files| script("/app/train.py", paths, files));
        assert!(matches!(within(BUDGET), Code::Logs(_)));
        for budget in [0, 20, 500] {
            assert!(matches!(within(budget), Code::Unknown(why) if why.contains(TOO_MUCH)), "{budget}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_absent() {
        let unknown = |found: Code| assert!(matches!(found, Code::Unknown(_)), "{found:?}");
        unknown(code(&[], true, |paths, files| script("/mnt/train.py", paths, files)));
        unknown(code(&[], true, |paths, files| script("/app/train.py", paths, files)));
        unknown(code(&[], false, |paths, files| script("/app/train.py", paths, files)));
        for source in ["import subprocess\nsubprocess.run(['python', 'b.py'])", "import volume.b"] {
            let texts = [("/app/train.py", source)];
            unknown(code(&texts, true, |paths, files| script("/app/train.py", paths, files)));
        }
        let many: Vec<_> =
            (0..150).map(|number| (format!("/app/m{number}.py"), format!("import m{}", number + 1))).collect();
        let many: Vec<_> = many.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        unknown(code(&many, true, |paths, files| script("/app/m0.py", paths, files)));
        unknown(code(&[("/app/train.py", "from . import b")], false, |paths, files| {
            script("/app/train.py", paths, files)
        }));
        let known =
            code(&[("/app/train.py", "import numpy")], false, |paths, files| script("/app/train.py", paths, files));
        assert_eq!(known, Code::Silent("/app/train.py".to_owned()));
    }
}
