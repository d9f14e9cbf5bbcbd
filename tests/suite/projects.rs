//! `tenancy-fixer project`: MLflow projects run in a real API server, against a real MLflow. Pods are processes of a stand-in for
//! kubelet and controllers (`stand_in_node`); plain Jobs have their real controller.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use hyper::Method;
use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::mlflow::{Mlflow, Options};
use crate::stand_in_node::{self, StandIn, example};
use crate::support::{self, Cluster, wait_for};

/// One MLflow for all of these tests: it takes longer to start than most of them. It ends with the test process.
fn mlflow() -> &'static Mlflow {
    static MLFLOW: OnceLock<Mlflow> = OnceLock::new();
    MLFLOW.get_or_init(|| Mlflow::start("projects-mlflow", &Options::default()))
}

/// A namespace, projects, and somebody who runs them there.
pub struct Scene {
    pub namespace: String,
    pub folder: PathBuf,
    cluster: Cluster,
    kubeconfig: PathBuf,
}

impl Scene {
    pub fn new(test: &str) -> Self {
        Self::on(Cluster::shared(), test)
    }

    fn on(cluster: Cluster, test: &str) -> Self {
        let namespace = format!("projects-{test}-{}", std::process::id());
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        wait_for("the default service account", || cluster.get("serviceaccount", &namespace, "default").is_some());
        let folder = support::folder(&format!("projects-{test}"));
        let kubeconfig = cluster.kubeconfig().to_owned();
        Self { namespace, folder, cluster, kubeconfig }
    }

    /// Kubelet and controllers of this namespace.
    fn stand_in(&self, code: &Path, writes_status: bool) -> StandIn {
        StandIn::start(stand_in_node::Options {
            kubeconfig: self.cluster.kubeconfig().to_owned(),
            namespace: self.namespace.clone(),
            code: code.to_owned(),
            writes_status,
            environment: Vec::new(),
        })
    }

    /// A project of shell scripts, with templates; its folder.
    pub fn scripts(&self) -> PathBuf {
        let folder = self.folder.join("scripts");
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write(
            "MLproject",
            "name: scripts\ndocker_env: {image: 'none:1', environment: [[SET, '{{ not }} {project[\"name\"]}'], COPIED]}\nentry_points:\n  \
             main: {command: 'bash wait.sh {until}', parameters: {until: string}}\n  \
             say: {command: 'python say.py {out} {text}', parameters: {out: string, text: string}}\n  \
             fail: {command: 'bash fail.sh'}\n",
        );
        write("wait.sh", "echo waiting; until [ -e \"$1\" ]; do sleep 0.1; done; echo done\n");
        write("fail.sh", "echo bad luck; exit 3\n");
        write("say.py", "import json, os, sys\njson.dump([sys.argv[2:], dict(os.environ)], open(sys.argv[1], 'w'))\n");
        for (name, template) in [("job", "kubernetes_job_template.yaml"), ("custom", "kubernetes_crd_template.yaml")] {
            let text = fs::read_to_string(example().join(template)).unwrap();
            // Its keys are the example's.
            let text = text.lines().filter(|line| !line.contains("mem_") && !line.contains("resources:"));
            let text = text
                .collect::<Vec<_>>()
                .join("\n")
                .replace("annotations:", "annotations:\n    mlflow.org/poll-status-interval: '1'");
            // Whichever entry point runs.
            let text = text.replace("{project['entry_points']['main']['command']}", "{{ command }}");
            write(&format!("{name}.yaml"), &text);
            write(&format!("{name}.json"), &json!({"kube-job-template-path": format!("{name}.yaml")}).to_string());
        }
        folder
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // A run that never ends is to fail the test.
        let mut command = Command::new("timeout");
        command
            .args(["150", env!("CARGO_BIN_EXE_tenancy-fixer"), "project"])
            .args(arguments)
            .env_remove("MLFLOW_RUN_ID")
            .env_remove("MLFLOW_EXPERIMENT_ID");
        command.env("KUBECONFIG", &self.kubeconfig).env("MLFLOW_TRACKING_URI", mlflow().url()).env_remove("COPIED");
        command.stdin(Stdio::null());
        command
    }

    fn project(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// The arguments of a run in this scene's namespace.
    pub fn run<'a>(&'a self, project: &'a Path, config: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["run", project.to_str().unwrap(), "-c", config, "-n", &self.namespace], more].concat()
    }

    /// Submits and detaches; the run's id.
    fn submit(&self, project: &Path, config: &str, more: &[&str]) -> String {
        let ended = self.project(&self.run(project, config, &[&["--detach"], more].concat()));
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout.trim().to_owned()
    }

    fn start(&self, arguments: &[&str]) -> Started {
        Started::new(self.command(arguments))
    }

    /// The object of a run.
    pub fn object(&self, kind: &str, run: &str) -> Option<Value> {
        let label = format!("mlflow.org/run-id={run}");
        let list = self.cluster.kubectl(&["get", kind, "-n", &self.namespace, "-l", &label, "-o", "json"]);
        serde_json::from_str::<Value>(&list).unwrap()["items"].get(0).cloned()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.cluster.try_kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ended =
            Self { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        ended
    }
}

impl Ended {
    /// The id of the run that it was about.
    pub fn run(&self) -> &str {
        let (_, behind) = self.stderr.split_once("run ").unwrap_or_else(|| panic!("{self:?}"));
        &behind[..32]
    }
}

/// A command that goes on beside the test, until it ends or the test does.
struct Started {
    process: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Started {
    fn new(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        Self { process, stderr, said: String::new() }
    }

    /// Reads until it says that.
    fn until(&mut self, text: &str) {
        while !self.said.contains(text) {
            let length = self.stderr.read_line(&mut self.said).unwrap();
            assert!(length > 0, "it ended without saying {text:?}: {}", self.said);
        }
    }

    fn end(mut self) -> Ended {
        let mut said = std::mem::take(&mut self.said);
        std::io::Read::read_to_string(&mut self.stderr, &mut said).unwrap();
        let mut stdout = String::new();
        std::io::Read::read_to_string(&mut self.process.stdout.take().unwrap(), &mut stdout).unwrap();
        let code = self.process.wait().unwrap().code().unwrap();
        let ended = Ended { code, stdout, stderr: said };
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        ended
    }

    fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A run as MLflow has it.
pub struct Tracked {
    pub status: String,
    params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    metrics: BTreeMap<String, f64>,
    info: Value,
    outputs: Value,
}

pub fn tracked(run: &str) -> Tracked {
    let (code, found) = mlflow().call(Method::GET, &format!("/api/2.0/mlflow/runs/get?run_id={run}"), None);
    assert_eq!(code, 200, "{found}");
    let data = &found["run"]["data"];
    let pairs = |list: &str| data[list].as_array().cloned().unwrap_or_default().into_iter();
    let texts = |list: &str| {
        pairs(list)
            .map(|pair| {
                (pair["key"].as_str().unwrap().to_owned(), pair["value"].as_str().unwrap_or_default().to_owned())
            })
            .collect()
    };
    Tracked {
        status: found["run"]["info"]["status"].as_str().unwrap().to_owned(),
        params: texts("params"),
        tags: texts("tags"),
        metrics: pairs("metrics")
            .map(|pair| (pair["key"].as_str().unwrap().to_owned(), pair["value"].as_f64().unwrap()))
            .collect(),
        info: found["run"]["info"].clone(),
        outputs: found["run"]["outputs"].clone(),
    }
}

#[test]
fn the_wine_example_trains_as_custom_job_job_and_pytorch_job() {
    let scene = Scene::new("wine");
    let _stand_in = scene.stand_in(example(), true);
    let kinds = [
        ("customjobs.mlflow.org", "kubernetes_config.json"),
        ("jobs", "kubernetes_config_job.json"),
        ("pytorchjobs.kubeflow.org", "kubernetes_config_pytorchjob.json"),
    ];
    let started = kinds.map(|(_, config)| {
        let more =
            ["-P", "alpha=0.25", "-P", "note=a 'quoted' word", "--experiment-name", "wine", "--run-name", config];
        scene.start(&scene.run(example(), config, &more))
    });
    for ((kind, config), started) in kinds.into_iter().zip(started) {
        let ended = started.end();
        assert_eq!(ended.code, 0, "{kind}: {ended:?}");
        // What the pod printed is here, by way of the API server.
        assert!(ended.stdout.contains("alpha=0.25 l1_ratio=0.1: rmse=0."), "{kind}: {ended:?}");
        assert!(ended.stdout.contains(r#"not for me: ['--note', "a 'quoted' word"]"#), "{kind}: {ended:?}");
        let run = tracked(ended.run());
        assert_eq!(run.status, "FINISHED", "{kind}");
        let shown = |name: &str| run.params.get(name).map(String::as_str);
        assert_eq!(
            [shown("alpha"), shown("l1_ratio"), shown("note")],
            [Some("0.25"), Some("0.1"), Some("a 'quoted' word")]
        );
        assert!((0.0..1.0).contains(&run.metrics["rmse"]) && run.metrics["r2"] > 0.3, "{kind}: {:?}", run.metrics);
        assert_eq!(run.outputs["model_outputs"].as_array().map(Vec::len), Some(1), "{kind}: {}", run.outputs);
        assert_eq!((run.info["run_name"].as_str(), run.tags["mlflow.runName"].as_str()), (Some(config), config));
        // The two lead to each other.
        let object = scene.object(kind, ended.run()).unwrap();
        assert_eq!(object["metadata"]["annotations"]["mlflow.org/experiment-id"], run.info["experiment_id"]);
        for (tag, value) in [
            ("kubernetes.apiVersion", object["apiVersion"].as_str().unwrap()),
            ("kubernetes.kind", object["kind"].as_str().unwrap()),
            ("kubernetes.namespace", &scene.namespace),
            ("kubernetes.name", object["metadata"]["name"].as_str().unwrap()),
            ("mlflow.project.backend", "kubernetes"),
            ("mlflow.project.entryPoint", "main"),
            ("mlflow.source.type", "PROJECT"),
            ("mlflow.source.name", example().to_str().unwrap()),
        ] {
            assert_eq!(run.tags[tag], value, "{kind}: {tag}");
        }
        assert_eq!(run.tags["mlflow.source.git.commit"].len(), 40);
    }
    // Of one namespace, by one command.
    let listed = scene.project(&["list", "-n", &scene.namespace, "--experiment-name", "wine"]).stdout;
    assert_eq!(listed.matches("FINISHED").count(), 3, "{listed}");
    // A finished run needs no object any more.
    let id = listed.lines().nth(1).unwrap().split(' ').next().unwrap();
    scene.cluster.kubectl(&["delete", "customjobs,jobs,pytorchjobs.kubeflow.org", "--all", "-n", &scene.namespace]);
    let attached = scene.project(&["attach", id]);
    assert!(attached.code == 0 && attached.stderr.contains("FINISHED"), "{attached:?}");
    assert_eq!(scene.project(&["cancel", id]).code, 0);
    assert_eq!(tracked(id).status, "FINISHED", "what has ended is not cancelled");
}

#[test]
fn a_failure_is_one_in_the_cluster_in_mlflow_and_for_whoever_called() {
    let scene = Scene::new("failure");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    for (config, message) in [("job.json", "backoff limit"), ("custom.json", "the pod has failed")] {
        let ended = scene.project(&scene.run(&scripts, config, &["-e", "fail"]));
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stdout.contains("bad luck") && ended.stderr.contains(message), "{ended:?}");
        let run = tracked(ended.run());
        assert_eq!(run.status, "FAILED");
        assert!(run.tags["kubernetes.message"].contains(message));
        assert!(run.info["end_time"].as_i64().unwrap() > run.info["start_time"].as_i64().unwrap());
    }
}

#[test]
fn a_run_is_detached_from_attached_to_listed_and_cancelled() {
    let scene = Scene::new("cancel");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let marker = scene.folder.join("marker");
    let until = format!("until={}", marker.display());

    let kept = scene.submit(&scripts, "custom.json", &["-P", &until]);
    let cancelled = scene.submit(&scripts, "job.json", &["-P", &until]);
    let deleted = scene.submit(&scripts, "custom.json", &["-P", &until]);
    let [mut keeping, mut cancelling, mut deleting] =
        [&kept, &cancelled, &deleted].map(|run| scene.start(&["attach", run]));
    for attached in [&mut keeping, &mut cancelling, &mut deleting] {
        attached.until(": running");
    }
    // A script that knows nothing of MLflow is running all the same.
    wait_for("the runs to be running", || {
        [&kept, &cancelled, &deleted].iter().all(|run| tracked(run).status == "RUNNING")
    });
    let listed = scene.project(&["list", "-n", &scene.namespace, "--active"]).stdout;
    for (run, kind) in [(&kept, "CustomJob"), (&cancelled, "Job"), (&deleted, "CustomJob")] {
        let line = listed.lines().find(|line| line.starts_with(run.as_str())).unwrap();
        assert!(
            line.contains("RUNNING") && line.contains(&format!(" {kind}/{}/scripts-", scene.namespace)),
            "{listed}"
        );
    }

    let ended = scene.project(&["cancel", &cancelled]);
    assert!(ended.code == 0 && ended.stderr.contains("deleted") && ended.stderr.contains("KILLED"), "{ended:?}");
    assert_eq!(tracked(&cancelled).status, "KILLED");
    let ended = cancelling.end();
    assert_eq!(ended.code, 1, "{ended:?}");
    wait_for("the job to go", || scene.object("jobs", &cancelled).is_none());

    // Somebody else's kubectl.
    let name = scene.object("customjobs", &deleted).unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    scene.cluster.kubectl(&["delete", "customjob", &name, "-n", &scene.namespace]);
    let ended = deleting.end();
    assert!(ended.code == 1 && ended.stderr.contains("somebody has deleted it"), "{ended:?}");
    assert_eq!(tracked(&deleted).status, "KILLED");

    fs::write(&marker, "").unwrap();
    let ended = keeping.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("waiting\ndone\n"), "{ended:?}");
    assert_eq!(tracked(&kept).status, "FINISHED");

    // Nobody attached, nobody cancelled: it is simply not there. That is no reason to call a run killed.
    let lost = scene.submit(&scripts, "custom.json", &["-P", "until=never"]);
    scene.cluster.kubectl(&["delete", "customjobs", "--all", "-n", &scene.namespace]);
    let ended = scene.project(&["attach", &lost]);
    assert!(ended.code == 2 && ended.stderr.contains("is not in this cluster"), "{ended:?}");
    assert_eq!(tracked(&lost).status, "SCHEDULED");
    assert_eq!(scene.project(&["cancel", &lost]).code, 0);
    assert_eq!(tracked(&lost).status, "KILLED");
    let ended = scene.project(&["attach", &"0".repeat(32)]);
    assert!(ended.code == 2 && ended.stderr.contains("RESOURCE_DOES_NOT_EXIST"), "{ended:?}");
}

#[test]
fn where_no_controller_writes_a_status_the_pods_have_the_word() {
    let scene = Scene::new("silent");
    let scripts = scene.scripts();
    let until = format!("until={}", scripts.join("MLproject").display());
    // Nobody at all: following ends, the run does not.
    let ended = scene.project(&scene.run(&scripts, "custom.json", &["-P", &until, "--timeout", "3s"]));
    assert!(ended.code == 0 && ended.stderr.contains("the run goes on"), "{ended:?}");
    assert_eq!(tracked(ended.run()).status, "SCHEDULED");
    // Now there is a controller that runs pods and says nothing.
    let _stand_in = scene.stand_in(&scripts, false);
    let ended = scene.project(&["attach", ended.run()]);
    assert!(ended.code == 0 && ended.stderr.contains("all of its pods have ended"), "{ended:?}");
    let failed = scene.project(&scene.run(&scripts, "custom.json", &["-e", "fail"]));
    assert_eq!((failed.code, tracked(failed.run()).status.as_str()), (1, "FAILED"), "{failed:?}");
    for run in [ended.run(), failed.run()] {
        assert!(scene.object("customjobs", run).unwrap().get("status").is_none());
    }
}

#[test]
fn an_api_server_that_goes_away_is_waited_for() {
    let scene = Scene::on(Cluster::own("projects"), "restart");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let marker = scene.folder.join("marker");
    let mut started = scene.start(&scene.run(&scripts, "custom.json", &["-P", &format!("until={}", marker.display())]));
    started.until(": running");
    scene.cluster.kill_api_server();
    started.until("asking again");
    // The pod ends while nobody can say so.
    fs::write(&marker, "").unwrap();
    let run = Ended { code: 0, stdout: String::new(), stderr: started.said.clone() }.run().to_owned();
    assert_eq!(tracked(&run).status, "RUNNING", "it is not called dead");
    scene.cluster.up();
    let ended = started.end();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("done"), "{ended:?}");
    assert_eq!(tracked(&run).status, "FINISHED");
    // Nobody is waited for longer than was said.
    scene.cluster.kill_api_server();
    let ended = scene.project(&["attach", &run]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert_eq!(tracked(&run).status, "FINISHED");
}

#[test]
fn hostile_values_stay_data() {
    let scene = Scene::new("hostile");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let bad = scene.folder.join("bad");
    let values = [
        format!("; touch {}", bad.display()),
        format!("$(touch {})`touch {}`", bad.display(), bad.display()),
        "{{ project.name }}{% for a in [1] %}{project['name']}{text}".to_owned(),
        "it's \"quoted\"\nand\tmore\\n #".to_owned(),
        String::new(),
    ];
    let started: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let out = scene.folder.join(format!("out-{index}.json"));
            let config = ["job.json", "custom.json"][index % 2];
            let (out, text, beyond) =
                (format!("out={}", out.display()), format!("text={value}"), format!("b {value}={value}"));
            let more = ["-e", "say", "-P", &out, "-P", &text, "-P", &beyond];
            scene.start(&scene.run(&scripts, config, &more))
        })
        .collect();
    for (index, (value, started)) in values.iter().zip(started).enumerate() {
        let ended = started.end();
        let name_is_fit_for_mlflow = ended.code == 0;
        if !name_is_fit_for_mlflow {
            // MLflow refuses names of parameters that are no names; then nothing is created, and the run has failed.
            assert!(ended.code == 2 && ended.stderr.contains("INVALID_PARAMETER_VALUE"), "{ended:?}");
            assert_eq!(tracked(ended.run()).status, "FAILED");
            let out = format!("out={}", scene.folder.join(format!("out-{index}.json")).display());
            let text = format!("text={value}");
            let config = ["job.json", "custom.json"][index % 2];
            let ended = scene.project(&scene.run(
                &scripts,
                config,
                &["-e", "say", "-P", &out, "-P", &text, "-P", &format!("b={value}")],
            ));
            assert_eq!(ended.code, 0, "{ended:?}");
            assert_eq!(tracked(ended.run()).params["text"], *value);
        }
        let out = fs::read_to_string(scene.folder.join(format!("out-{index}.json"))).unwrap();
        let out: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(out[0][0], **value);
        assert_eq!(out[0][2], **value);
        assert_eq!(out[1]["SET"], "{{ not }} {project[\"name\"]}");
        assert_eq!(out[1]["COPIED"], "");
    }
    assert!(!bad.exists());

    // A template is no program either.
    for (text, says) in [
        ("{__import__('os').system('id')}", None),
        ("{project['name'].__class__}", Some("a placeholder has keys alone")),
        ("{{ ''.__class__.__mro__ }}", Some("spec.template.spec.containers[0].command")),
        ("{% include '/etc/passwd' %}", Some("spec.template")),
        ("{% for a in range(1000000000) %}x{% endfor %}", Some("spec.template")),
    ] {
        let template = json!({"apiVersion": "mlflow.org/v1", "kind": "CustomJob",
            "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "b", "command": [text]}]}}}});
        let file = scripts.join("hostile.yaml");
        fs::write(&file, template.to_string()).unwrap();
        fs::write(scripts.join("hostile.json"), r#"{"kube-job-template-path": "hostile.yaml"}"#).unwrap();
        let ended = scene.project(&scene.run(&scripts, "hostile.json", &["-e", "fail", "--dry-run"]));
        match says {
            None => {
                let printed = yaml::value(&ended.stdout).unwrap();
                assert_eq!(printed["spec"]["template"]["spec"]["containers"][0]["command"][0], text, "{ended:?}");
            }
            Some(says) => assert!(ended.code == 2 && ended.stderr.contains(says), "{ended:?}"),
        }
    }
}

/// What is fetched is gone before the run ends; the run says what it was.
#[test]
fn a_project_may_be_in_a_repository() {
    let scene = Scene::new("repository");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let repository = scene.folder.join("repository");
    let git = |arguments: &[&str]| {
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        let output = Command::new("git").arg("-C").arg(&repository).args(author).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    fs::create_dir(&repository).unwrap();
    assert!(Command::new("cp").arg("-r").arg(&scripts).arg(repository.join("inner")).status().unwrap().success());
    git(&["init", "--quiet", "--initial-branch", "trunk"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "first"]);
    git(&["tag", "v1"]);
    let commit = git(&["rev-parse", "HEAD"]);
    // The newest one does not even have the file.
    git(&["rm", "--quiet", "-r", "inner"]);
    git(&["commit", "--quiet", "-m", "second"]);

    let url = format!("file://{}#inner", repository.display());
    let out = format!("out={}", scene.folder.join("out.json").display());
    let more = ["--version", "v1", "-n", &scene.namespace, "-e", "say", "-P", &out, "-P", "text=x"];
    let ended = scene.project(&[&["run", &url, "-c", "job.json"][..], &more].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    let run = tracked(ended.run());
    assert_eq!((run.status.as_str(), run.tags["mlflow.source.git.commit"].as_str()), ("FINISHED", commit.as_str()));
    assert_eq!(
        (run.tags["mlflow.source.name"].as_str(), run.tags["mlflow.source.git.branch"].as_str()),
        (url.as_str(), "v1")
    );
    let ended = scene.project(&["run", &url, "-c", "job.json", "-n", &scene.namespace]);
    assert!(ended.code == 2 && ended.stderr.contains("no folder inner"), "{ended:?}");
}

/// The shell of a terminal, as `script` gives it to a program.
#[test]
fn ctrl_c_asks_what_is_to_become_of_the_run() {
    let scene = Scene::new("ctrl-c");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    for (answer, code, status) in [("c\n", 1, "KILLED"), ("d\n", 0, "RUNNING"), ("\u{3}", 0, "RUNNING")] {
        let run = scene.submit(&scripts, "custom.json", &["-P", "until=never"]);
        // A shell that stays would tell of Ctrl-C in place of what our exit code is; `script` takes $SHELL, or another one.
        let inner = format!("exec {} project attach {run}", env!("CARGO_BIN_EXE_tenancy-fixer"));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &inner, "/dev/null"]);
        command.env("KUBECONFIG", &scene.kubeconfig).env("MLFLOW_TRACKING_URI", mlflow().url());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs");
        let (mut keys, mut screen) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut seen = String::new();
        for (text, key) in [(": running", "\u{3}"), ("or [w]ait?", answer)] {
            let mut byte = [0];
            while !seen.contains(text) {
                std::io::Read::read_exact(&mut screen, &mut byte).unwrap_or_else(|_| panic!("no {text:?}: {seen}"));
                seen.push(byte[0].into());
            }
            keys.write_all(key.as_bytes()).unwrap();
        }
        std::io::Read::read_to_string(&mut screen, &mut seen).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(code), "{seen}");
        assert_eq!(tracked(&run).status, status, "{seen}");
        assert_eq!(scene.object("customjobs", &run).is_none(), status == "KILLED");
    }
    // Where nobody can be asked, the run goes on.
    let mut started = scene.start(&scene.run(&scripts, "custom.json", &["-P", "until=never"]));
    started.until(": running");
    started.interrupt();
    let ended = started.end();
    assert!(ended.code == 0 && ended.stderr.contains(&format!("project attach {}", ended.run())), "{ended:?}");
}

/// In a pod there is no kubeconfig, and what it says of contexts is nothing: the cluster is the one around it.
#[test]
fn in_a_pod_the_cluster_is_the_one_around_it() {
    let is_root = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0;
    assert!(is_root, "this test makes a mount namespace, for which it has to be root");
    let scene = Scene::new("pod");
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let account = format!("--serviceaccount={}:default", scene.namespace);
    scene.cluster.kubectl(&["create", "rolebinding", "runs", "--clusterrole=admin", &account, "-n", &scene.namespace]);
    // What the kubelet puts into a pod.
    let config = yaml::value(&fs::read_to_string(scene.cluster.kubeconfig()).unwrap()).unwrap();
    let cluster = &config["clusters"][0]["cluster"];
    let (host, port) = cluster["server"]
        .as_str()
        .unwrap()
        .strip_prefix("https://")
        .unwrap()
        .trim_end_matches('/')
        .split_once(':')
        .unwrap();
    let authority = cluster["certificate-authority-data"].as_str().unwrap();
    let authority = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, authority).unwrap();
    let files = scene.folder.join("serviceaccount");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("ca.crt"), authority).unwrap();
    fs::write(files.join("namespace"), &scene.namespace).unwrap();
    let token = scene.cluster.kubectl(&["create", "token", "default", "-n", &scene.namespace]);
    fs::write(files.join("token"), token.trim()).unwrap();
    // In a mount namespace of its own, which root alone may make.
    let place = "set -e; mount -t tmpfs none /run; to=/run/secrets/kubernetes.io/serviceaccount; mkdir -p $to; cp \"$0\"/* $to; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", place]).arg(&files).args([
        "timeout",
        "150",
        env!("CARGO_BIN_EXE_tenancy-fixer"),
    ]);
    command.args(["project", "run", scripts.to_str().unwrap(), "-c", "job.json", "-e", "say", "-P", "text=x"]);
    command.arg("-P").arg(format!("out={}", scene.folder.join("out.json").display())).args(["--context", "of-nobody"]);
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent").env("MLFLOW_TRACKING_URI", mlflow().url());
    command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT", port).stdin(Stdio::null());
    let ended = Ended::from(command.output().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    let run = tracked(ended.run());
    assert_eq!(
        (run.status.as_str(), run.tags["kubernetes.namespace"].as_str()),
        ("FINISHED", scene.namespace.as_str())
    );
}

/// Whoever goes before the object is there leaves neither an object nor a run that seems to go on.
#[test]
fn ctrl_c_while_the_object_is_created_takes_the_run_back() {
    let scene = Scene::new("hurry");
    let scripts = scene.scripts();
    // A webhook that takes the API server's question and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("silent-{}", scene.namespace);
    let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [{
            "name": "silent.example.org", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "timeoutSeconds": 30,
            "clientConfig": {"url": format!("https://{}/", silent.local_addr().unwrap())},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}},
            "rules": [{"apiGroups": ["mlflow.org"], "apiVersions": ["*"], "resources": ["customjobs"], "operations": ["CREATE"]}]}]});
    scene.cluster.apply(&webhook);
    let started = scene.start(&scene.run(&scripts, "custom.json", &["-P", "until=never"]));
    silent.set_nonblocking(true).unwrap();
    let mut asked = None;
    wait_for("the API server's question while it creates the object", || {
        asked = silent.accept().ok();
        asked.is_some()
    });
    started.interrupt();
    let ended = started.end();
    scene.cluster.kubectl(&["delete", "validatingwebhookconfiguration", &name]);
    drop(asked);
    assert!(ended.code == 2 && ended.stderr.contains("interrupted"), "{ended:?}");
    assert_eq!(tracked(ended.run()).status, "KILLED");
    assert!(scene.object("customjobs", ended.run()).is_none());
}

#[test]
fn kinds_are_found_by_discovery_namespaced_or_not() {
    let mut scene = Scene::new("kinds");
    let scripts = scene.scripts();
    let group = format!("k{}.example.org", std::process::id());
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("sweeps.{group}")},
        "spec": {"group": group, "scope": "Cluster", "names": {"kind": "Sweep", "plural": "sweeps"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    scene.cluster.apply(&crd);
    wait_for("the kind to be served", || {
        scene.cluster.try_kubectl(&["get", &format!("sweeps.{group}")]).status.success()
    });
    let template = |change: &dyn Fn(&mut Value)| {
        let mut template = json!({"apiVersion": format!("{group}/v1alpha1"), "kind": "Sweep",
            "metadata": {"name": "{project['name']}", "namespace": "ignored",
                "annotations": {"mlflow.org/status-path": "{.status.state}", "mlflow.org/status-finished": "Done", "mlflow.org/status-failed": "Lost"}},
            "spec": {"command": "{project['entry_points']['main']['command']}"}});
        change(&mut template);
        fs::write(scripts.join("sweep.yaml"), template.to_string()).unwrap();
        fs::write(scripts.join("sweep.json"), r#"{"kube-job-template-path": "sweep.yaml"}"#).unwrap();
    };
    let run = ["run", scripts.to_str().unwrap(), "-c", "sweep.json", "-P", "until=x"];
    for (state, code, status) in [("Done", 0, "FINISHED"), ("Lost", 1, "FAILED")] {
        template(&|_| {});
        let mut started = scene.start(&run);
        started.until(": created");
        let id = Ended { code: 0, stdout: String::new(), stderr: started.said.clone() }.run().to_owned();
        let list = scene.cluster.kubectl(&[
            "get",
            &format!("sweeps.{group}"),
            "-l",
            &format!("mlflow.org/run-id={id}"),
            "-o",
            "name",
        ]);
        assert_eq!(list.lines().count(), 1);
        let patch = json!({"status": {"state": state, "message": "by hand"}}).to_string();
        scene.cluster.kubectl(&["patch", list.trim(), "--subresource", "status", "--type", "merge", "-p", &patch]);
        let ended = started.end();
        assert!(ended.code == code && ended.stderr.contains("by hand"), "{ended:?}");
        assert_eq!(tracked(&id).status, status);
        assert!(!tracked(&id).tags.contains_key("kubernetes.namespace"));
    }
    // What is not served, with what would be.
    template(&|template| template["apiVersion"] = json!("batch/v1"));
    let ended = scene.project(&run);
    assert!(ended.code == 2 && ended.stderr.contains(&format!("could be {group}/v1alpha1")), "{ended:?}");
    template(&|template| template["metadata"]["annotations"]["mlflow.org/crd-name"] = json!("sweeps.mlflow.org"));
    let ended = scene.project(&run);
    assert!(ended.code == 2 && ended.stderr.contains(&format!("are called: sweeps.{group}")), "{ended:?}");
    template(&|template| template["kind"] = json!("Sweeep"));
    let ended = scene.project(&run);
    assert!(ended.code == 2 && ended.stderr.contains("is its CustomResourceDefinition installed?"), "{ended:?}");
    // A context that is not there; a kubeconfig that is none, outside of a pod.
    for (flags, kubeconfig) in
        [(&["--context", "none"][..], scene.kubeconfig.clone()), (&[], PathBuf::from("/nonexistent"))]
    {
        scene.kubeconfig = kubeconfig;
        template(&|_| {});
        let ended = scene.project(&[&run[..], flags].concat());
        assert!(ended.code == 2 && !ended.stderr.contains("run "), "{ended:?}");
    }
    scene.cluster.kubectl(&["delete", "crd", &format!("sweeps.{group}"), "--wait=false"]);
}

#[test]
fn the_example_is_what_the_api_server_takes() {
    let scene = Scene::new("example");
    let read = |path: &Path| yaml::value(&fs::read_to_string(path).unwrap()).unwrap();
    let crd = read(&example().join("customjob-crd.yaml"));
    assert_eq!(
        crd,
        read(&support::root().join("tests/cluster/crds/mlflow.org_customjobs.yaml")),
        "the tests' own is the example's"
    );
    for config in ["kubernetes_config.json", "kubernetes_config_job.json", "kubernetes_config_pytorchjob.json"] {
        let dry = scene.project(&scene.run(
            example(),
            config,
            &["-P", "alpha=0.5", "--dry-run", "--image", "r/wine@sha256:0"],
        ));
        assert_eq!(dry.code, 0, "{dry:?}");
        assert!(dry.stdout.contains("r/wine@sha256:0") && dry.stdout.contains("- --l1-ratio"), "{dry:?}");
        scene.cluster.kubectl_with(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &dry.stdout);
    }
    let list = scene.cluster.kubectl(&[
        "get",
        "customjobs,jobs,pytorchjobs.kubeflow.org",
        "-n",
        &scene.namespace,
        "-o",
        "name",
    ]);
    assert_eq!(list, "", "nothing is created");
    // Nothing is asked, either.
    let mut command = scene.command(&scene.run(example(), "kubernetes_config.json", &["-P", "alpha=0.5", "--dry-run"]));
    command.env("KUBECONFIG", "/nonexistent").env("MLFLOW_TRACKING_URI", "http://127.0.0.1:1");
    let ended = Ended::from(command.output().unwrap());
    assert!(ended.code == 0 && ended.stdout.contains("http://127.0.0.1:1"), "{ended:?}");
    let ended = scene.project(&scene.run(example(), "kubernetes_config.json", &["--dry-run"]));
    assert!(ended.code == 2 && ended.stderr.contains("no value for -P alpha=..."), "{ended:?}");
}

/// A tenant has no right to watch and none beyond its namespace; admission makes its pods a tenant's.
#[test]
fn a_tenants_project_gets_what_a_tenants_job_gets() {
    let tenants = crate::cluster::Scene::new("project");
    let server = crate::server::Server::start(&tenants.certificate, &[]);
    tenants.point_webhooks_at(server.address);
    let cluster = Cluster::shared();
    let folder = support::folder("projects-tenant");
    let namespace = tenants.tenant.clone();
    let rights = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "runs-projects", "namespace": namespace}, "rules": [
            {"apiGroups": ["mlflow.org"], "resources": ["customjobs"], "verbs": ["get", "create", "delete"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "runs-projects", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "runs-projects"},
        "subjects": [{"kind": "ServiceAccount", "name": "default-editor", "namespace": namespace}]});
    cluster.apply(&rights);
    cluster.apply(&binding);
    let kubeconfig = cluster.kubeconfig_of("default-editor", &namespace, &folder);
    let scene = Scene { namespace, folder, cluster, kubeconfig };
    let scripts = scene.scripts();
    let _stand_in = scene.stand_in(&scripts, true);
    let out = format!("out={}", scene.folder.join("out.json").display());
    let ended = scene.project(&scene.run(&scripts, "custom.json", &["-e", "say", "-P", &out, "-P", "text=x"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(tracked(ended.run()).status, "FINISHED");
    let object = scene.object("customjobs", ended.run()).unwrap();
    let template = &object["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["kubeflow-extension"], "true");
    assert_eq!(template["metadata"]["labels"]["sidecar.istio.io/inject"], "true");
    assert_eq!(template["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"], "true");
    assert_eq!(template["spec"]["serviceAccountName"], "default-editor");
    // Where the run belongs was in the pod's environment.
    let out: Value = serde_json::from_str(&fs::read_to_string(scene.folder.join("out.json")).unwrap()).unwrap();
    assert_eq!(out[1]["MLFLOW_RUN_ID"], ended.run());
    assert_eq!(out[1]["MLFLOW_TRACKING_URI"], mlflow().url());
    // It was not told of changes, so it has looked.
    let user = format!("system:serviceaccount:{}:default-editor", scene.namespace);
    let log = fs::read_to_string(scene.cluster.audit_log()).unwrap();
    let requests: Vec<Value> = log
        .lines()
        .filter(|line| line.contains(&user) && line.contains("customjobs"))
        .map(|line| serde_json::from_str(line).unwrap())
        // A watch has two lines, one for its beginning.
        .filter(|request: &Value| request["stage"] == "ResponseComplete")
        .collect();
    let count = |verb: &str, code: u64| {
        requests.iter().filter(|request| request["verb"] == verb && request["responseStatus"]["code"] == code).count()
    };
    assert_eq!((count("create", 201), count("watch", 200), count("watch", 403)), (1, 0, 1), "{requests:#?}");
    assert!(count("get", 200) >= 2, "{requests:#?}");
    // What it may not do is said, and no run is left behind that goes on.
    let ended = scene.project(&scene.run(&scripts, "job.json", &["-e", "fail"]));
    assert!(ended.code == 2 && ended.stderr.contains("forbidden"), "{ended:?}");
    assert_eq!(tracked(ended.run()).status, "FAILED");
}
