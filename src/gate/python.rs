//! What a Python source says about MLflow: read by a real parser, never run.

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
    /// Whether it imports MLflow at all.
    pub(super) imports_mlflow: bool,
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
    each(&tree, |node| {
        if node.kind() == "call" {
            findings.logs = names.logging(node, source).map(|what| {
                let line = node.start_position().row.saturating_add(1);
                format!("{what} (line {line})")
            });
        }
        if findings.logs.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    findings
}

/// What names of a source stand for.
#[derive(Default)]
struct Names {
    /// Name, and the dotted path behind it: `mlf` is `mlflow`, `log_metric` is `mlflow.log_metric`.
    bound: Vec<(String, String)>,
}

impl Names {
    fn import(&mut self, node: Node<'_>, source: &str, findings: &mut Findings) {
        match node.kind() {
            "import_statement" => {
                for name in named(node, "name") {
                    let (path, alias) = aliased(name, source);
                    findings.note(&path);
                    if let Some(alias) = alias {
                        self.bound.push((alias, path));
                    } else {
                        // `import a.b` binds `a`.
                        let first = path.split('.').next().unwrap_or_default().to_owned();
                        self.bound.push((first.clone(), first));
                    }
                }
            }
            "import_from_statement" => {
                let module = node.child_by_field_name("module_name").map(|name| text(name, source)).unwrap_or_default();
                findings.note(module);
                for name in named(node, "name") {
                    let (name, alias) = aliased(name, source);
                    let path = format!("{module}.{name}");
                    // The name may be a module itself: `from . import metrics`.
                    findings.imports.push(if module.ends_with('.') { format!("{module}{name}") } else { path.clone() });
                    self.bound.push((alias.unwrap_or(name), path));
                }
                if node.children(&mut node.walk()).any(|child| child.kind() == "wildcard_import") && is_mlflow(module) {
                    self.bound.push(("*".to_owned(), module.to_owned()));
                }
            }
            _ => {}
        }
    }

    /// What a call logs with, if it does.
    fn logging(&self, call: Node<'_>, source: &str) -> Option<String> {
        let function = call.child_by_field_name("function")?;
        if let Some(argument) = reports_to_mlflow(call, source) {
            return Some(argument);
        }
        let path = self.path(function, source)?;
        let (module, name) = path.rsplit_once('.').unwrap_or(("", &path));
        if is_mlflow(&path) && logs(name) {
            return Some(path);
        }
        let integration = INTEGRATIONS.iter().any(|(package, class)| *class == name && begins_with(module, package));
        integration.then_some(path)
    }

    /// The dotted path of a name or attribute, with what its first name stands for. A call in between is stepped over:
    /// `MlflowClient().log_metric` is `mlflow.MlflowClient.log_metric`.
    fn path(&self, function: Node<'_>, source: &str) -> Option<String> {
        let mut names = Vec::new();
        let mut node = function;
        loop {
            match node.kind() {
                "identifier" => break,
                "attribute" => {
                    names.push(text(node.child_by_field_name("attribute")?, source));
                    node = node.child_by_field_name("object")?;
                }
                "call" => node = node.child_by_field_name("function")?,
                _ => return None,
            }
        }
        let first = text(node, source);
        let bound = self.bound.iter().rev().find(|(name, _)| name == first).map(|(_, path)| path.clone());
        let star = || {
            let star = self.bound.iter().find(|(name, _)| name == "*");
            star.filter(|_| names.is_empty()).map(|(_, module)| format!("{module}.{first}"))
        };
        let mut path = bound.or_else(star)?;
        for name in names.iter().rev() {
            path.push('.');
            path.push_str(name);
        }
        Some(path)
    }
}

impl Findings {
    fn note(&mut self, module: &str) {
        self.imports_mlflow |= is_mlflow(module);
        self.imports.push(module.to_owned());
    }
}

/// MLflow's functions that write to a run, or begin one; of modules (`mlflow.sklearn.log_model`) and clients as well.
fn logs(name: &str) -> bool {
    name.starts_with("log_")
        || matches!(name, "start_run" | "autolog" | "set_tag" | "set_tags" | "evaluate" | "create_run")
}

/// `TrainingArguments(report_to="mlflow")` of Transformers and TRL, `init_trackers`/`log_with` of Accelerate.
fn reports_to_mlflow(call: Node<'_>, source: &str) -> Option<String> {
    let arguments = call.child_by_field_name("arguments")?;
    let mut cursor = arguments.walk();
    let mut found = arguments.children(&mut cursor).filter(|argument| argument.kind() == "keyword_argument");
    let argument = found.find(|argument| {
        let part = |field| argument.child_by_field_name(field).map(|part| text(part, source)).unwrap_or_default();
        matches!(part("name"), "report_to" | "log_with") && part("value").contains("mlflow")
    })?;
    Some(text(argument, source).to_owned())
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
fn aliased(node: Node<'_>, source: &str) -> (String, Option<String>) {
    let part = |field| node.child_by_field_name(field).map(|part| text(part, source).to_owned());
    match node.kind() {
        "aliased_import" => (part("name").unwrap_or_default(), part("alias")),
        _ => (text(node, source).to_owned(), None),
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
        ] {
            assert_eq!(logs_with(source), None, "{source}");
        }
        assert!(read("import mlflow").imports_mlflow);
        assert!(!read("import mlflower").imports_mlflow);
    }

    #[test]
    fn imports_are_listed() {
        let findings = read("import a.b, c as d\nfrom . import e\nfrom ..f.g import h\nfrom i import j");
        assert_eq!(findings.imports, ["a.b", "c", ".", ".e", "..f.g", "..f.g.h", "i", "i.j"]);
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
            " ".repeat(LONGEST + 1),
        ] {
            assert_eq!(logs_with(&source), None);
        }
    }
}
