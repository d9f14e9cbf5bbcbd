//! What a Python source says about MLflow: read by a real parser, never run.

use std::collections::HashMap;
use std::ops::ControlFlow;

use tree_sitter::Node;

use super::syntax::{each, parse};

/// A source that is longer is not a script that somebody wrote.
pub(super) const LONGEST: usize = 1024 * 1024;

/// What a source does with MLflow, and what else it brings in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// The first thing that logs, with its line, as people write it: `mlflow.log_metric (line 12)`.
    pub(super) logs: Option<String>,
    /// The first thing that starts other Python code, with its line: what that does is not seen here.
    pub(super) starts: Option<String>,
    /// Whether it imports MLflow at all.
    imports_mlflow: bool,
    /// Modules that it imports, relative ones with their dots, in order.
    pub(super) imports: Vec<String>,
}

/// Names of other libraries that log to MLflow for you: the module they are imported from begins with the first, the name is the
/// second. (Lightning, Transformers, Optuna, Ignite, Ray, Keras' own is an autolog.)
const INTEGRATIONS: &[(&str, &str)] = &[
    ("pytorch_lightning", "MLFlowLogger"),
    ("lightning", "MLFlowLogger"),
    ("transformers", "MLflowCallback"),
    ("optuna", "MLflowCallback"),
    ("optuna_integration", "MLflowCallback"),
    ("ignite", "MLflowLogger"),
    ("ray", "MLflowLoggerCallback"),
    ("ray", "setup_mlflow"),
    ("monai", "MLFlowHandler"),
    ("composer", "MLFlowLogger"),
    ("sagemaker_mlflow", "MlflowClient"),
    ("flaml", "autolog"),
    ("catalyst", "MLflowLogger"),
];

/// Libraries that log to MLflow where they are told to, by one of [`INTEGRATIONS`] or an argument: to import one means nothing.
const LIBRARIES: &[&str] = &["accelerate", "peft", "sentence_transformers", "setfit", "trl"];

/// Whether a package is one of these.
pub(super) fn is_library(package: &str) -> bool {
    LIBRARIES.contains(&package) || INTEGRATIONS.iter().any(|(library, _)| *library == package)
}

/// Reads a source. What does not parse is stepped over, as far as the rest makes sense.
pub(super) fn read(source: &str) -> Findings {
    let mut findings = Findings::default();
    let Some(tree) = parse(&tree_sitter_python::LANGUAGE.into(), source, LONGEST) else { return findings };
    let mut names = Names::default();
    // Imports first: a function may use what is imported below it.
    each(&tree, |node| {
        names.import(node, source, &mut findings);
        ControlFlow::Continue(())
    });
    let imports_mlflow = findings.imports_mlflow;
    each(&tree, |node| {
        let at_line = |what: String| format!("{what} (line {})", node.start_position().row.saturating_add(1));
        match node.kind() {
            "call" => {
                let Some(function) = node.child_by_field_name("function") else { return ControlFlow::Continue(()) };
                let call = Call { node, function, path: names.path(function, source), source };
                findings.logs = call.logging(imports_mlflow).map(at_line);
                if findings.starts.is_none() {
                    findings.starts = call.starting().map(at_line);
                }
            }
            "decorator" => findings.logs = names.decorating(node, source).map(at_line),
            _ => {}
        }
        if findings.logs.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    findings
}

/// What names of a source stand for.
#[derive(Default)]
struct Names {
    /// The dotted path behind a name: `mlf` is `mlflow`, `log_metric` is `mlflow.log_metric`. The last import of a name counts.
    bound: HashMap<String, String>,
}

/// Longest dotted name that is kept, in bytes: each of a statement's names has the module's before it, and all of it is a tenant's.
const LONGEST_IMPORT: usize = 512;
/// Imports of one source that are kept.
const MOST_IMPORTS: usize = 5_000;
/// Names and calls in a row that are looked through, as in `a.b().c`: for each call anew, and all of it is a tenant's.
const LONGEST_CHAIN: usize = 10;

impl Names {
    fn import(&mut self, node: Node<'_>, source: &str, findings: &mut Findings) {
        match node.kind() {
            "import_statement" => {
                for name in named(node, "name") {
                    let (path, alias) = aliased(name, source);
                    if !findings.note(path) {
                        continue;
                    }
                    if let Some(alias) = alias {
                        self.bind(alias, path);
                    } else {
                        // `import a.b` binds `a`.
                        let first = path.split('.').next().unwrap_or_default();
                        self.bind(first, first);
                    }
                }
            }
            "import_from_statement" => {
                let module = node.child_by_field_name("module_name").map(|name| text(name, source)).unwrap_or_default();
                if !findings.note(module) {
                    return;
                }
                for name in named(node, "name") {
                    let (name, alias) = aliased(name, source);
                    // The name may be a module itself: `from . import metrics`.
                    let dot = if module.ends_with('.') { "" } else { "." };
                    if name.len() <= LONGEST_IMPORT && findings.note(&format!("{module}{dot}{name}")) {
                        self.bind(alias.unwrap_or(name), &format!("{module}.{name}"));
                    }
                }
                if node.children(&mut node.walk()).any(|child| child.kind() == "wildcard_import") && is_mlflow(module) {
                    self.bind("*", module);
                }
            }
            "call" => findings.imports_mlflow |= imports_by_name(node, source),
            _ => {}
        }
    }

    fn bind(&mut self, name: &str, path: &str) {
        self.bound.insert(name.to_owned(), path.to_owned());
    }

    /// What a decorator logs with: `@mlflow.trace`. One with arguments is a call.
    fn decorating(&self, decorator: Node<'_>, source: &str) -> Option<String> {
        let path = self.path(decorator.named_child(0)?, source)?;
        let (module, name) = path.rsplit_once('.')?;
        (is_mlflow(&path) && logs(module, name)).then_some(path)
    }

    /// The dotted path of a name or attribute, with what its first name stands for. A call in between is stepped over:
    /// `MlflowClient().log_metric` is `mlflow.MlflowClient.log_metric`.
    fn path(&self, function: Node<'_>, source: &str) -> Option<String> {
        let mut names = Vec::new();
        let mut node = function;
        let mut links = 0..LONGEST_CHAIN;
        while node.kind() != "identifier" {
            links.next()?;
            match node.kind() {
                "attribute" => {
                    names.push(text(node.child_by_field_name("attribute")?, source));
                    node = node.child_by_field_name("object")?;
                }
                "call" => node = node.child_by_field_name("function")?,
                _ => return None,
            }
        }
        let first = text(node, source);
        let bound = self.bound.get(first).cloned();
        let star = || {
            let star = self.bound.get("*").filter(|_| names.is_empty());
            star.map(|module| format!("{module}.{first}"))
        };
        let mut path = bound.or_else(star)?;
        for name in names.iter().rev() {
            path.push('.');
            path.push_str(name);
        }
        Some(path)
    }
}

/// A call, and what it calls.
struct Call<'t, 's> {
    node: Node<'t>,
    function: Node<'t>,
    /// Its dotted path, where that is known.
    path: Option<String>,
    source: &'s str,
}

impl Call<'_, '_> {
    /// What it logs with, if it does.
    fn logging(&self, imports_mlflow: bool) -> Option<String> {
        if let Some(argument) = reports_to_mlflow(self.node, self.source) {
            return Some(argument);
        }
        let Some(path) = &self.path else {
            // `client.log_metric`, `self.tracker.start_run`: what the object is, only a run knows.
            let name = self.function.child_by_field_name("attribute").map(|name| text(name, self.source))?;
            let is_likely = imports_mlflow && (OF_CLIENTS.contains(&name) || name.starts_with("log_"));
            return is_likely.then(|| one_line(beginning(text(self.function, self.source))));
        };
        let (module, name) = path.rsplit_once('.').unwrap_or(("", path));
        if is_mlflow(path) && logs(module, name) {
            return Some(path.clone());
        }
        let integration = INTEGRATIONS.iter().any(|(package, class)| *class == name && begins_with(module, package));
        integration.then(|| path.clone())
    }

    /// What it starts other Python code with, if it does.
    fn starting(&self) -> Option<String> {
        let path = self.path.as_deref().unwrap_or_else(|| text(self.function, self.source));
        let arguments = self.node.child_by_field_name("arguments");
        let arguments = arguments.map(|arguments| beginning(text(arguments, self.source)));
        let speaks_of_python = ["python", ".py", "sys.executable", "mlflow"];
        let speaks_of_python =
            || arguments.is_some_and(|arguments| speaks_of_python.iter().any(|word| arguments.contains(word)));
        let is_process = begins_with(path, "subprocess")
            || path.strip_prefix("os.").is_some_and(|name| {
                ["system", "popen", "exec", "spawn", "posix_spawn"].iter().any(|begin| name.starts_with(begin))
            });
        let starts = matches!(path, "exec" | "runpy.run_path" | "runpy.run_module") || is_process && speaks_of_python();
        starts.then(|| path.to_owned())
    }
}

impl Findings {
    /// Notes an import, and says whether it is one that Python could follow.
    fn note(&mut self, import: &str) -> bool {
        let is_noted = import.len() <= LONGEST_IMPORT && self.imports.len() < MOST_IMPORTS;
        if is_noted {
            self.imports_mlflow |= is_mlflow(import);
            self.imports.push(import.to_owned());
        }
        is_noted
    }
}

/// Methods of MLflow's clients that write to a run, beside `log_*`, by names that hardly anything else has.
const OF_CLIENTS: &[&str] = &["start_run", "create_run"];

/// MLflow's functions that write to a run or trace, or begin one; of modules (`mlflow.sklearn.log_model`) and clients as well.
fn logs(module: &str, name: &str) -> bool {
    let of_any = ["start_run", "autolog", "set_tag", "set_tags", "evaluate", "create_run", "trace", "MlflowCallback"];
    let of_projects = name == "run" && matches!(module, "mlflow" | "mlflow.projects");
    name.starts_with("log_") || name.starts_with("start_span") || of_any.contains(&name) || of_projects
}

/// `importlib.import_module("mlflow")`, `__import__("mlflow")`.
fn imports_by_name(call: Node<'_>, source: &str) -> bool {
    let part = |field| call.child_by_field_name(field).map(|part| text(part, source)).unwrap_or_default();
    let imports = |function: &str| ["import_module", "__import__"].iter().any(|name| function.ends_with(name));
    let argument = part("arguments").trim_start_matches(['(', ' ', '\n', '"', '\'']);
    imports(part("function")) && argument.starts_with("mlflow")
}

/// As it stands in the source, without its line breaks.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `TrainingArguments(report_to="mlflow")` of Transformers and TRL, `init_trackers`/`log_with` of Accelerate.
fn reports_to_mlflow(call: Node<'_>, source: &str) -> Option<String> {
    let arguments = call.child_by_field_name("arguments")?;
    let mut cursor = arguments.walk();
    let mut found = arguments.children(&mut cursor).filter(|argument| argument.kind() == "keyword_argument");
    let argument = found.find(|argument| {
        let part = |field| argument.child_by_field_name(field).map(|part| text(part, source)).unwrap_or_default();
        matches!(part("name"), "report_to" | "log_with") && beginning(part("value")).contains("mlflow")
    })?;
    Some(beginning(text(argument, source)).to_owned())
}

/// As much of an argument as is searched: calls within calls have the same text again and again.
fn beginning(text: &str) -> &str {
    text.get(..text.floor_char_boundary(2048)).unwrap_or_default()
}

fn is_mlflow(path: &str) -> bool {
    begins_with(path, "mlflow")
}

fn begins_with(path: &str, package: &str) -> bool {
    path.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn named<'t>(node: Node<'t>, field: &str) -> Vec<Node<'t>> {
    node.children_by_field_name(field, &mut node.walk()).collect()
}

/// A name, and what it is called here.
fn aliased<'s>(node: Node<'_>, source: &'s str) -> (&'s str, Option<&'s str>) {
    let part = |field| node.child_by_field_name(field).map(|part| text(part, source));
    match node.kind() {
        "aliased_import" => (part("name").unwrap_or_default(), part("alias")),
        _ => (text(node, source), None),
    }
}

fn text<'s>(node: Node<'_>, source: &'s str) -> &'s str {
    source.get(node.byte_range()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs_with(source: &str) -> Option<String> {
        read(source).logs
    }

    #[test]
    fn what_logs_is_found_by_any_name() {
        for (source, what) in [
            ("import mlflow\nmlflow.log_metric('a', 1)", "mlflow.log_metric (line 2)"),
            ("import mlflow as m\nwith m.start_run():\n    pass", "mlflow.start_run (line 2)"),
            ("from mlflow import log_params as note\nnote({})", "mlflow.log_params (line 2)"),
            ("import mlflow.sklearn\nmlflow.sklearn.autolog()", "mlflow.sklearn.autolog (line 2)"),
            (
                "from mlflow.tracking import MlflowClient\nMlflowClient().log_metric('r', 'a', 1)",
                "mlflow.tracking.MlflowClient.log_metric (line 2)",
            ),
            ("def f():\n    mlflow.log_text('a', 'b')\nimport mlflow", "mlflow.log_text (line 2)"),
            ("from mlflow import *\nstart_run()", "mlflow.start_run (line 2)"),
            (
                "from lightning.pytorch.loggers import MLFlowLogger\nlogger = MLFlowLogger('a')",
                "lightning.pytorch.loggers.MLFlowLogger (line 2)",
            ),
            (
                "from transformers import TrainingArguments\nTrainingArguments(report_to=['mlflow'])",
                "report_to=['mlflow'] (line 2)",
            ),
            ("if True\n    broken(\nimport mlflow\nmlflow.autolog()", "mlflow.autolog (line 4)"),
            (
                "from mlflow import MlflowClient\nclient = MlflowClient()\nclient.log_metric('r', 'a', 1)",
                "client.log_metric (line 3)",
            ),
            (
                "import mlflow\nclass T:\n  def f(self):\n    self.client.create_run('1')",
                "self.client.create_run (line 4)",
            ),
            ("import importlib\nm = importlib.import_module('mlflow')\nm.log_params({})", "m.log_params (line 3)"),
            ("import mlflow\n@mlflow.trace\ndef f(): pass", "mlflow.trace (line 2)"),
            ("import mlflow\n@mlflow.trace(name='a')\ndef f(): pass", "mlflow.trace (line 2)"),
            ("import mlflow\nwith mlflow.start_span() as s: pass", "mlflow.start_span (line 2)"),
            (
                "import mlflow.keras\nmodel.fit(callbacks=[mlflow.keras.MlflowCallback()])",
                "mlflow.keras.MlflowCallback (line 2)",
            ),
            ("import mlflow\nmlflow.projects.run('.')", "mlflow.projects.run (line 2)"),
        ] {
            assert_eq!(logs_with(source).as_deref(), Some(what), "{source}");
        }
    }

    #[test]
    fn what_only_looks_like_it_is_not() {
        for source in [
            "# import mlflow\n# mlflow.log_metric('a', 1)",
            "text = '''\nimport mlflow\nmlflow.start_run()\n'''",
            "import mlflow",
            "import mlflow\nmlflow.set_tracking_uri('http://a')",
            "import mlflower as mlflow\nmlflow.log_metric('a', 1)",
            "from other import log_metric\nlog_metric('a', 1)",
            "self.mlflow.log_metric('a', 1)",
            "import mlflow, wandb\nwandb.log_artifact('a')",
            "import mlflow\nmlflow.search_runs()\nmodel.run()\nself.log('a', 1)",
            "import mlflow\n@property\ndef f(self): pass",
        ] {
            assert_eq!(logs_with(source), None, "{source}");
        }
    }

    #[test]
    fn what_starts_other_python_code_is_noticed() {
        for (source, what) in [
            ("import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'a'])", Some("subprocess.run (line 2)")),
            ("from subprocess import check_call as go\ngo(['python', 'a.py'])", Some("subprocess.check_call (line 2)")),
            ("import os\nos.system(\"python3 train.py\")", Some("os.system (line 2)")),
            ("import os\nos.execvp('python', ['python', 'a.py'])", Some("os.execvp (line 2)")),
            ("import runpy\nrunpy.run_path(path)", Some("runpy.run_path (line 2)")),
            ("exec(open('a').read())", Some("exec (line 1)")),
            ("import subprocess\nsubprocess.run(['git', 'rev-parse', 'HEAD'])", None),
            ("cursor.exec('x.py')\nos_system('python')", None),
        ] {
            assert_eq!(read(source).starts.as_deref(), what, "{source}");
        }
    }

    #[test]
    fn imports_are_listed() {
        let findings = read("import a.b, c as d\nfrom . import e\nfrom ..f.g import h\nfrom i import j");
        assert_eq!(findings.imports, ["a.b", "c", ".", ".e", "..f.g", "..f.g.h", "i", "i.j"]);
    }

    #[test]
    fn a_statement_does_not_become_larger_than_it_is() {
        let names = "a,".repeat(60_000);
        for source in [
            format!("from {} import {names} b", "m".repeat(200_000)),
            format!("from {} import {names} b", ".".repeat(200_000)),
            format!("from m import {} as b", "a".repeat(200_000)),
            format!("import {}b", "m.n,".repeat(100_000)),
        ] {
            let imports = read(&source).imports;
            assert!(imports.iter().map(String::len).sum::<usize>() < source.len(), "{} imports", imports.len());
        }
    }

    #[test]
    fn neither_depth_nor_length_nor_nonsense_ends_us() {
        for source in [
            "(".repeat(200_000),
            "[".repeat(100_000) + &"]".repeat(100_000),
            "if a:\n".repeat(20_000),
            "f(".repeat(50_000),
            "\0\u{fffd}\t".repeat(1000),
            "x.".repeat(100_000),
            format!("import mlflow\nx{}", "()".repeat(200_000)),
            format!("import mlflow\nx{}", ".y()".repeat(100_000)),
            "import aa\nzz()\n".repeat(30_000),
            "import os\n".to_owned() + &"os.system(".repeat(50_000),
            "f(log_with=".repeat(40_000),
            " ".repeat(LONGEST + 1),
        ] {
            assert_eq!(logs_with(&source), None);
        }
    }
}
