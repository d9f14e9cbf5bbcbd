//! The gate as the API server and `kubectl` see it, and what it costs the process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::layer::{self, Layer};
use crate::registry::{Door, Image, Registry, USER};
use crate::server::{self, Certificate, Server, block_on};
use crate::server_attack::allocator_of_the_deployment;
use crate::support::{self, Cluster, kubectl, kubectl_with, try_kubectl_with, wait_for};
use crate::wire;

const LOGS: &str = "import mlflow\nmlflow.log_metric('a', 1)\n";
const SILENT: &str = "print('accuracy=1')\n";

fn folder(name: &str) -> PathBuf {
    support::folder(&format!("gate-server-{name}"))
}

fn image(text: &str) -> Image {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["python", "train.py"], "WorkingDir": "/app"}});
    let layers = vec![Layer::new().wheel("mlflow_skinny").gzip(), Layer::of(&[("/app/train.py", text)]).gzip()];
    Image { config, layers, ..Image::running("") }
}

/// A `serve` that may ask this registry.
pub fn gate(certificate: &Certificate, registry: &Registry, flags: &[&str], kubeconfig: Option<&PathBuf>) -> Server {
    let at = registry.address.to_string();
    let mut all = vec!["--gate", "enforce", "--insecure-registries", &at, "--registry-networks", "127.0.0.1"];
    all.extend(flags);
    let (allocator, tunables) = allocator_of_the_deployment();
    let mut environment = vec![(allocator.as_str(), Path::new(&tunables))];
    environment.extend(kubeconfig.iter().map(|file| ("KUBECONFIG", file.as_path())));
    Server::start_with(certificate, &["--only", "gate"], &all, &environment)
}

pub fn job(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": image}]}}},
    })
}

/// The API server's answer to a review of that object.
pub fn review(server: &Server, path: &str, object: &Value) -> Value {
    let response = server::post(server, path, wire::review(object).to_string());
    assert_eq!(response.status(), 200);
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    answer["response"].clone()
}

#[test]
fn a_review_is_answered_by_mode_and_counted() {
    let folder = folder("modes");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let at = registry.address;
    block_on(async {
        registry.push("team/job", "good", &image(LOGS)).await;
        registry.push("team/job", "bad", &image(SILENT)).await;
    });
    let (good, bad) = (job("good", &format!("{at}/team/job:good")), job("bad", &format!("{at}/team/job:bad")));
    let enforcing = gate(&certificate, &registry, &[], None);
    let answer = review(&enforcing, "/job/validate", &good);
    assert_eq!((&answer["allowed"], answer.get("status"), answer.get("warnings")), (&json!(true), None, None));
    let answer = review(&enforcing, "/job/validate", &bad);
    assert_eq!((&answer["allowed"], &answer["status"]["code"]), (&json!(false), &json!(403)));
    let message = answer["status"]["message"].as_str().unwrap();
    for part in [
        "container train",
        "team/job:bad",
        "sha256:",
        "/app/train.py",
        "mlflow-skinny 3.17.2",
        "to mend it: call mlflow.autolog()",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let answer = review(&enforcing, "/job/validate/warn", &bad);
    assert_eq!(answer["allowed"], true);
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.contains("nothing logs to MLflow in /app/train.py") && warning.len() < 256, "{warning}");
    // What nobody can tell.
    let none = job("none", &format!("{at}/team/none:v1"));
    let answer = review(&enforcing, "/job/validate", &none);
    assert_eq!(answer["allowed"], true);
    assert!(answer["warnings"][0].as_str().unwrap().contains("let through unseen"), "{answer}");
    // No other endpoint is served.
    assert_eq!(review(&enforcing, "/job/mutate", &bad).get("patch"), None);
    let line = enforcing.wait_for_line("judged", |line| line["message"] == "judged" && line["verdict"] == "no");
    assert!(line["findings"].as_str().unwrap().contains("logging: no"), "{line}");
    assert!(line["digest"].as_str().unwrap().starts_with("sha256:"));
    let (_, metrics) = server::get(&enforcing, "/metrics");
    for line in [
        r#"tenancy_fixer_gate_verdicts_total{verdict="yes",mode="enforce",cache="miss"} 1"#,
        r#"tenancy_fixer_gate_verdicts_total{verdict="no",mode="enforce",cache="miss"} 1"#,
        r#"tenancy_fixer_gate_verdicts_total{verdict="no",mode="warn",cache="hit"} 1"#,
        r#"tenancy_fixer_gate_verdicts_total{verdict="unknown",mode="enforce",cache="miss"} 1"#,
        "tenancy_fixer_gate_duration_seconds_count 4",
        "tenancy_fixer_gate_image_registry_read_bytes_total",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let strict = gate(&certificate, &registry, &["--gate-unknown", "deny"], None);
    assert_eq!(review(&strict, "/job/validate", &none)["status"]["code"], 403);
    assert_eq!(review(&strict, "/job/validate/warn", &none)["allowed"], true);
    let lenient = Server::start_with(&certificate, &["--only", "gate"], &["--gate", "warn"], &[]);
    assert_eq!(review(&lenient, "/job/validate", &none)["allowed"], true);
    let off = Server::start_with(&certificate, &["--only", "gate"], &[], &[]);
    let answer = review(&off, "/job/validate", &bad);
    assert_eq!((&answer["allowed"], answer.get("warnings")), (&json!(true), None));
}

/// The most memory that a process has had, in MiB.
pub fn peak_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

#[test]
fn fifty_jobs_at_once_are_answered_in_time_and_in_little_memory() {
    let folder = folder("fifty");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let at = registry.address;
    let mut size = 0;
    let both = [image(LOGS), image(SILENT)];
    block_on(async {
        for number in 0..50 {
            let mut image = both[number % 2].clone();
            // Every image is another one, down to its lowest layer: by so much padding behind the archive's end.
            let padding = layer::gzip(&vec![0; 512 * (number + 1)]);
            image.layers[0].content = [&*image.layers[0].content, &padding].concat().into();
            size = image.size();
            registry.push("team/job", &format!("v{number}"), &image).await;
        }
    });
    let server = gate(&certificate, &registry, &[], None);
    let before = peak_memory(&server);
    let begin = Instant::now();
    let answers: Vec<(Value, Duration)> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..50)
            .map(|number| {
                let (target, mut object) = (server.target(), job("a", &format!("{at}/team/job:v{number}")));
                object["metadata"]["namespace"] = json!(format!("tenant-{}", number % 10));
                scope.spawn(move || {
                    let mut body = wire::review(&object);
                    body["request"]["namespace"] = object["metadata"]["namespace"].clone();
                    let response = target.post("/job/validate?timeout=10s", body.to_string());
                    let answer: Value = serde_json::from_slice(response.body()).unwrap();
                    (answer["response"].clone(), begin.elapsed())
                })
            })
            .collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    let memory = peak_memory(&server);
    eprintln!(
        "50 jobs, 50 images of {size} bytes: slowest answer {slowest:?}, memory {before} MiB before, at most {memory} MiB"
    );
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // Whoever is told to try again is let through with a warning that says so, and has an answer soon.
    let is_known = |answer: &Value| {
        let known = answer.get("warnings").is_none();
        assert!(known || answer["allowed"] == true && answer.to_string().contains("try again"), "{answer}");
        known
    };
    let mut known = answers.iter().filter(|(answer, _)| is_known(answer)).count();
    eprintln!("{known} of 50 were known within the deadline");
    assert!(known > 5, "{known} of 50");
    for (number, (answer, _)) in answers.iter().enumerate() {
        let mut answer = answer.clone();
        wait_for("every job to be known", || {
            is_known(&answer) || {
                answer = review(&server, "/job/validate", &job("a", &format!("{at}/team/job:v{number}")));
                known += usize::from(is_known(&answer));
                is_known(&answer)
            }
        });
        assert_eq!(answer["allowed"], number % 2 == 0, "{answer}");
    }
    assert_eq!(known, 50);
    let memory = peak_memory(&server).max(memory);
    eprintln!("at most {memory} MiB until all were known");
    assert!(memory < 64, "{memory} MiB");
}

/// A tenant's few bytes that stand for many: nothing that they are made of is kept longer than it is looked at.
#[test]
fn commands_that_grow_when_they_are_read_do_not_fill_memory() {
    let folder = folder("growing");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let at = registry.address;
    let scripts = [
        ("/app/train.py", format!("from {} import {}b", "m".repeat(250_000), "a,".repeat(60_000))),
        ("/app/chain.py", format!("import mlflow\nx{}", "()".repeat(200_000))),
        ("/app/double.sh", "A=xxxxxxxx\n".to_owned() + &"A=$A$A\n".repeat(64) + "python $A\n"),
        ("/app/all.sh", "python \"$@\"\n".repeat(1900)),
    ];
    let scripts: Vec<(&str, &str)> = scripts.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let image = Image { layers: vec![Layer::of(&scripts).gzip()], ..image("") };
    block_on(async { registry.push("team/growing", "v1", &image).await });
    let server = gate(&certificate, &registry, &[], None);
    let large = "x".repeat(60_000);
    let with = |command: &[&str], args: &[String]| {
        let mut object = job("growing", &format!("{at}/team/growing:v1"));
        let container = &mut object["spec"]["template"]["spec"]["containers"][0];
        container["command"] = json!(command);
        container["args"] = json!(args);
        container["env"] = json!([{"name": "A", "value": large}]);
        object
    };
    let references = vec!["$(A)".repeat(1000); 12];
    for object in [
        with(&["python", "train.py"], &[]),
        with(&["python", "chain.py"], &[]),
        with(&["sh", "/app/double.sh"], &[]),
        with(&["sh", "/app/all.sh"], std::slice::from_ref(&large)),
        with(&["sh", "/app/all.sh"], &references),
        with(&["python", "-c"], &references),
        with(&["sh", "-c", &"A=$A$A; ".repeat(60)], &[]),
        with(&["pip", "install"], &vec!["t".to_owned(); 1000]),
    ] {
        wait_for("an answer that is one", || {
            let begin = Instant::now();
            let text = review(&server, "/job/validate", &object).to_string();
            eprintln!("{:?}: {text:.300}", begin.elapsed());
            assert!(begin.elapsed() < Duration::from_secs(10), "{text}");
            !text.contains("try again")
        });
    }
    let memory = peak_memory(&server);
    eprintln!("one after the other: at most {memory} MiB");
    // The densest sources, of many tenants at once; each is another job, so that none is known.
    std::thread::scope(|scope| {
        for number in 0..24 {
            let (target, mut object) = (server.target(), with(&["python", "chain.py"], &[]));
            object["spec"]["template"]["spec"]["containers"][0]["name"] = json!(format!("c{number}"));
            scope.spawn(move || {
                let mut body = wire::review(&object);
                body["request"]["namespace"] = json!(format!("tenant-{}", number % 8));
                let begin = Instant::now();
                assert_eq!(target.post("/job/validate?timeout=10s", body.to_string()).status(), 200);
                assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
            });
        }
    });
    let memory = peak_memory(&server);
    eprintln!("24 at once: at most {memory} MiB");
    // The overlay's limit.
    assert!(memory < 128, "{memory} MiB");
}

/// Images that take as much of us as the limits let them: the largest windows, and more scripts than are kept.
#[test]
fn images_made_to_fill_memory_do_not() {
    let folder = folder("greedy");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let at = registry.address;
    let mut noise = vec![0; 12 << 20];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut noise).unwrap();
    // A little less than what is kept, in files of the largest size that is.
    let script = format!("x = '{}'\n", "y".repeat(511 << 10));
    let scripts =
        (0..7).fold(Layer::new(), |layer, number| layer.file(&format!("/app/a{number}.py"), script.as_bytes()));
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(23).unwrap();
    std::io::Write::write_all(&mut encoder, &scripts.file("/data/noise", &noise).archive()).unwrap();
    let content = encoder.finish().unwrap();
    block_on(async {
        for number in 0..24 {
            let mut image = image(SILENT);
            let padding = zstd::encode_all(&*vec![0; 512 * (number + 1)], 1).unwrap();
            let greedy =
                layer::Packed { packing: layer::Packing::Zstd, content: [&*content, &padding].concat().into() };
            image.layers = vec![greedy];
            registry.push("team/greedy", &format!("v{number}"), &image).await;
        }
    });
    let server = gate(&certificate, &registry, &[], None);
    std::thread::scope(|scope| {
        for number in 0..24 {
            let (target, object) = (server.target(), job("a", &format!("{at}/team/greedy:v{number}")));
            scope.spawn(move || {
                let mut body = wire::review(&object);
                body["request"]["namespace"] = json!(format!("tenant-{}", number % 8));
                assert_eq!(target.post("/job/validate?timeout=10s", body.to_string()).status(), 200);
            });
        }
    });
    let memory = peak_memory(&server);
    eprintln!("24 greedy images: at most {memory} MiB");
    // The overlay's limit.
    assert!(memory < 128, "{memory} MiB");
}

/// A registry that takes connections and says nothing; and how many have come.
fn silent_registry() -> (std::net::SocketAddr, impl Fn() -> usize) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&connections);
    // It ends with the test's process.
    std::thread::spawn(move || listener.incoming().for_each(|stream| kept.lock().unwrap().push(stream)));
    (address, move || connections.lock().unwrap().len())
}

/// While the gate looks, which takes seconds where a registry is slow, nothing is kept of a job but what it is judged by: neither its
/// bytes, which would take what there is for everybody's, nor the document read from them.
#[test]
fn large_jobs_that_wait_for_slow_registries_keep_no_memory_from_others() {
    let folder = folder("bodies");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let (slow, came) = silent_registry();
    let at = registry.address;
    block_on(async { registry.push("team/job", "good", &image(LOGS)).await });
    let insecure = format!("{at},{slow}");
    let flags = ["--gate", "enforce", "--insecure-registries", &insecure, "--registry-networks", "127.0.0.1"];
    let server = Server::start_with(&certificate, &["--only", "gate"], &flags, &[]);
    let before = peak_memory(&server);
    let large = |number: usize| {
        let mut object = job("large", &format!("{slow}/a/b:t{number}"));
        // What is kept of it is a little less than may be; the rest has so many tokens as a document may, each of which takes a
        // dozen times its bytes, and once so many bytes as a body may have.
        let words = vec!["x".repeat(1000); 110];
        object["spec"]["template"]["spec"]["containers"][0]["args"] = json!(words);
        object["metadata"]["ignored"] = json!(vec![1; 240_000]);
        if number == 0 {
            object["metadata"]["annotations"] = json!({"large": "x".repeat(5 << 20)});
        }
        let mut body = wire::review(&object);
        body["request"]["namespace"] = json!(format!("tenant-{}", number % 8));
        body.to_string()
    };
    let bodies: Vec<String> = (0..24).map(large).collect();
    let total: usize = bodies.iter().map(String::len).sum();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let mut asked = Vec::new();
        for (number, body) in bodies.iter().enumerate() {
            let target = server.target();
            asked.push(scope.spawn(move || target.post("/job/validate?timeout=10s", body.clone())));
            let held = || server.metric("tenancy_fixer_server_body_bytes");
            wait_for("it to be looked for, and its bytes to be given back", || came() > number && held() == 0);
        }
        let answer = review(&server, "/job/validate", &job("good", &format!("{at}/team/job:good")));
        assert_eq!((&answer["allowed"], answer.get("warnings")), (&json!(true), None), "{answer}");
        eprintln!("24 jobs of {total} bytes wait after {:?}, an honest one is answered", begin.elapsed());
        for asked in asked {
            let answer = asked.join().unwrap();
            let text = String::from_utf8_lossy(answer.body()).into_owned();
            assert!(answer.status() == 200 && text.contains("still being asked; try again"), "{text}");
        }
    });
    let memory = peak_memory(&server);
    eprintln!("{before} MiB before, at most {memory} MiB");
    assert!(memory < 64, "{memory} MiB");
}

#[test]
fn a_job_that_is_too_large_to_be_kept_is_one_of_which_nobody_can_tell() {
    let folder = folder("too-large");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let server = gate(&certificate, &registry, &["--gate-unknown", "deny"], None);
    let mut object = job("large", &format!("{}/team/job:v1", registry.address));
    object["spec"]["template"]["spec"]["containers"][0]["args"] = json!(vec!["a"; 10_000]);
    let message = |object: &Value| {
        let answer = review(&server, "/job/validate", object);
        assert_eq!(answer["status"]["code"], 403, "{answer}");
        answer["status"]["message"].as_str().unwrap().to_owned()
    };
    let said = message(&object);
    assert!(said.contains("more than 128 KiB of commands and variables"), "{said}");
    // So many containers that comparing each with each would take minutes.
    let container = |number: usize| json!({"name": format!("c{number}")});
    object["spec"]["template"]["spec"]["containers"] = (0..60_000).map(container).collect();
    let begin = Instant::now();
    let said = message(&object);
    assert!(said.contains("and more containers than the 16 that are looked at"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// As many as wait for slow registries, others are still answered.
#[test]
fn jobs_that_wait_do_not_take_every_request() {
    let folder = folder("waiting");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let (slow, _) = silent_registry();
    let at = registry.address;
    block_on(async { registry.push("team/job", "good", &image(LOGS)).await });
    let insecure = format!("{at},{slow}");
    let flags = ["--gate", "enforce", "--insecure-registries", &insecure, "--registry-networks", "127.0.0.1"];
    let server = Server::start_with(&certificate, &["--only", "gate"], &flags, &[]);
    std::thread::scope(|scope| {
        // A few less than one address may have of connections.
        let asked: Vec<_> = (0..150)
            .map(|number| {
                let (target, object) = (server.target(), job("slow", &format!("{slow}/a/b:t{number}")));
                scope.spawn(move || {
                    let mut body = wire::review(&object);
                    body["request"]["namespace"] = json!(format!("eve-{}", number % 3));
                    target.post("/job/validate?timeout=10s", body.to_string())
                })
            })
            .collect();
        wait_for("those that are too many to be told so", || {
            server
                .lines()
                .iter()
                .any(|line| line["message"] == "judged" && line.to_string().contains("too many images"))
        });
        let answer = review(&server, "/job/validate", &job("good", &format!("{at}/team/job:good")));
        assert_eq!((&answer["allowed"], answer.get("warnings")), (&json!(true), None), "{answer}");
        for asked in asked {
            assert_eq!(asked.join().unwrap().status(), 200);
        }
    });
}

/// A namespace whose jobs the gate looks at, by a webhook configuration of the test's own.
struct Scene {
    name: String,
    server: Server,
    registry: Registry,
}

impl Scene {
    fn new(test: &str, label: &str, flags: &[&str]) -> Self {
        Self::behind(&Door::Open, test, label, flags, &support::kubeconfig())
    }

    /// With a registry that has that door, and a server that acts as whom that kubeconfig says.
    fn behind(door: &Door<'_>, test: &str, label: &str, flags: &[&str], kubeconfig: &PathBuf) -> Self {
        let name = format!("gate-{test}-{}", std::process::id());
        let folder = folder(test);
        let (certificate, registry) = (Certificate::make(&folder), Registry::start(&folder, door));
        block_on(async {
            let open = Registry::start(&folder, &Door::Open);
            open.push("team/job", "good", &image(LOGS)).await;
            open.push("team/job", "bad", &image(SILENT)).await;
        });
        let server = gate(&certificate, &registry, flags, Some(kubeconfig));
        let labels = json!({"kubeflow-extension/gate": label, "tenancy-fixer-test": name});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        kubectl_with(&["create", "-f", "-"], &namespace.to_string());
        let rendered = std::process::Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
            .args(["manifests", "validating", "--url", &format!("https://{}", server.address), "--ca-bundle"])
            .arg(&certificate.ca)
            .output()
            .unwrap();
        let mut configuration = yaml::value(&String::from_utf8(rendered.stdout).unwrap()).unwrap();
        configuration["metadata"]["name"] = json!(name);
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["namespaceSelector"]["matchLabels"]["tenancy-fixer-test"] = json!(name);
        }
        kubectl_with(&["apply", "--server-side", "-f", "-"], &configuration.to_string());
        let scene = Self { name, server, registry };
        wait_for("the webhook to be called", || {
            scene.try_create(&scene.job("probe", "bad"), &["--dry-run=server"]);
            !scene.server.reviews().is_empty()
        });
        scene
    }

    fn job(&self, name: &str, tag: &str) -> Value {
        job(name, &format!("{}/team/job:{tag}", self.registry.address))
    }

    /// Whether it is created, and what kubectl says.
    fn try_create(&self, object: &Value, flags: &[&str]) -> (bool, String) {
        let arguments = [&["create", "-n", &self.name, "-f", "-"], flags].concat();
        let output = try_kubectl_with(&arguments, &object.to_string());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn events(&self) -> Vec<Value> {
        let events = kubectl(&["get", "events", "-n", &self.name, "-o", "json"]);
        let events: Value = serde_json::from_str(&events).unwrap();
        let of_gate = |event: &&Value| event["reason"].as_str().unwrap_or_default().starts_with("Gate");
        events["items"].as_array().unwrap().iter().filter(of_gate).cloned().collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        support::try_kubectl(&["delete", "validatingwebhookconfiguration", &self.name, "--ignore-not-found"]);
        support::try_kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
    }
}

#[test]
fn a_bad_job_is_refused_by_the_api_server_and_a_good_one_created() {
    let scene = Scene::new("enforce", "enforce", &[]);
    assert!(scene.events().is_empty(), "a dry run tells nobody: {:?}", scene.events());
    let (created, said) = scene.try_create(&scene.job("good", "good"), &[]);
    assert!(created && said.is_empty(), "{said}");
    let (created, said) = scene.try_create(&scene.job("bad", "bad"), &[]);
    assert!(!created);
    for part in
        ["denied the request", "this job does not log to MLflow", "container train", "/app/train.py", "to mend it"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    wait_for("the Event", || !scene.events().is_empty());
    let event = &scene.events()[0];
    assert_eq!((&event["reason"], &event["involvedObject"]["kind"]), (&json!("GateRefused"), &json!("Namespace")));
    assert!(event["message"].as_str().unwrap().starts_with("Job bad: this job does not log"), "{event}");
    let (created, _) = scene.try_create(&scene.job("bad", "bad"), &[]);
    assert!(!created);
    assert_eq!(scene.events().len(), 1, "one is enough for a while");
    // A CronJob, and what it would become.
    let mut cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cron"},
        "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": scene.job("x", "bad")["spec"]}}});
    assert!(!scene.try_create(&cron, &[]).0);
    cron["spec"]["jobTemplate"]["spec"] = scene.job("x", "good")["spec"].clone();
    assert!(scene.try_create(&cron, &[]).0);
    let reviews = scene.server.reviews().len();
    kubectl(&["label", "cronjob", "-n", &scene.name, "cron", "a=b"]);
    assert_eq!(scene.server.reviews().len(), reviews, "a label is none of the gate's business");
    let patch = |patch: &str| {
        let arguments = ["patch", "cronjob", "-n", &scene.name, "cron", "--type=merge", "-p", patch];
        let output = support::try_kubectl(&arguments);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let judged = || scene.server.lines().iter().filter(|line| line["message"] == "judged").count();
    let before = judged();
    assert!(patch(r#"{"spec": {"suspend": true}}"#).0);
    let last = scene.server.reviews().pop().unwrap();
    assert_eq!(last["reason"], "its containers stay as they were");
    assert_eq!(judged(), before);
    let containers = scene.job("x", "bad")["spec"]["template"]["spec"]["containers"].clone();
    let (changed, said) = patch(
        &json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": containers}}}}}}).to_string(),
    );
    assert!(!changed && said.contains("does not log to MLflow"), "{said}");
}

#[test]
fn where_it_warns_a_bad_job_is_created() {
    let scene = Scene::new("warn", "warn", &[]);
    let (created, said) = scene.try_create(&scene.job("bad", "bad"), &[]);
    assert!(created, "{said}");
    assert!(
        said.contains("Warning: tenancy-fixer gate: refused where the gate is enforced: container train"),
        "{said}"
    );
}

#[test]
fn a_registry_that_is_down_stops_nobody_unless_somebody_wants_it_to() {
    for (test, flags, created) in [("stopped", &[][..], true), ("stopped-deny", &["--gate-unknown", "deny"], false)] {
        let mut scene = Scene::new(test, "enforce", flags);
        scene.registry.stop();
        let (was_created, said) = scene.try_create(&scene.job("a", "good"), &[]);
        assert_eq!(was_created, created, "{said}");
        assert!(said.contains("127.0.0.1 cannot be asked"), "{said}");
        // What was seen before it went is known.
        assert!(!scene.try_create(&scene.job("b", "bad"), &[]).0);
    }
}

#[test]
fn a_private_image_is_read_with_the_jobs_secrets_where_that_is_granted() {
    let cluster = Cluster::shared();
    cluster.apply_shipped_account();
    let kubeconfig = cluster.kubeconfig_of_shipped_account(&folder("account"));
    let flags = ["--gate-pull-secrets", "true", "--image-failure-ttl", "0s"];
    let scene = Scene::behind(&Door::Basic, "private", "enforce", &flags, &kubeconfig);
    let at = scene.registry.address.to_string();
    let login = json!({"auths": {&at: {"username": USER.0, "password": USER.1}}}).to_string();
    let secret = |namespace: &str| {
        let arguments = ["create", "secret", "docker-registry", "pull", "-n", namespace];
        let (user, password) = (format!("--docker-username={}", USER.0), format!("--docker-password={}", USER.1));
        kubectl(&[&arguments[..], &[&format!("--docker-server={at}"), &user, &password]].concat());
    };
    secret(&scene.name);
    let mut job = scene.job("private", "bad");
    job["spec"]["template"]["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    // Nobody has granted it.
    let (created, said) = scene.try_create(&job, &["--dry-run=server"]);
    assert!(created && said.contains("let through unseen"), "{said}");
    scene.server.wait_for_line("the refusal", |line| line["message"] == "reading pull secrets");
    kubectl(&["apply", "--server-side", "-f", "k8s-resources/overlays/gate-pull-secrets/cluster-role.yaml"]);
    wait_for("the grant", || !scene.try_create(&job, &["--dry-run=server"]).0);
    // The same by the service account.
    let mut by_account = scene.job("by-account", "bad");
    by_account["spec"]["template"]["spec"]["serviceAccountName"] = json!("runner");
    kubectl(&["create", "serviceaccount", "runner", "-n", &scene.name]);
    assert!(scene.try_create(&by_account, &["--dry-run=server"]).0);
    kubectl(&[
        "patch",
        "serviceaccount",
        "runner",
        "-n",
        &scene.name,
        "-p",
        r#"{"imagePullSecrets": [{"name": "pull"}]}"#,
    ]);
    wait_for("the account's secret", || !scene.try_create(&by_account, &["--dry-run=server"]).0);
    // A job without them is told nothing, although the image is known by now; nor is another namespace.
    let (created, said) = scene.try_create(&scene.job("plain", "bad"), &["--dry-run=server"]);
    assert!(created && said.contains("without a pull secret"), "{said}");
    let mut elsewhere = wire::review(&job);
    elsewhere["request"]["namespace"] = json!("default");
    let answer = server::post(&scene.server, "/job/validate", elsewhere.to_string());
    assert!(String::from_utf8_lossy(answer.body()).contains("without a pull secret"), "{answer:?}");
    let lines = format!("{:?}", scene.server.lines());
    assert!(!lines.contains(USER.1) && !lines.contains(&login), "a password is in the log");
    kubectl(&["delete", "-f", "k8s-resources/overlays/gate-pull-secrets/cluster-role.yaml"]);
}

/// What a TrainJob runs stands in its runtime, which is read with the right that the overlay grants.
#[test]
fn a_train_job_is_judged_by_its_runtime() {
    let cluster = Cluster::shared();
    cluster.apply_shipped_account();
    let grant = "k8s-resources/overlays/gate/cluster-role.yaml";
    let kubeconfig = cluster.kubeconfig_of_shipped_account(&folder("trainer-account"));
    let scene = Scene::behind(&Door::Open, "trainer", "enforce", &["--image-failure-ttl", "0s"], &kubeconfig);
    let image = |tag: &str| format!("{}/team/job:{tag}", scene.registry.address);
    let runtime = |kind: &str, name: &str, image: &str, command: &[&str]| {
        let mut container = json!({"name": "node", "image": image});
        if !command.is_empty() {
            container["command"] = json!(command);
        }
        let job = json!({"name": "node", "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }});
        let mut object = json!({"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": kind,
            "metadata": {"name": name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
            "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [job]}}}});
        if kind == "TrainingRuntime" {
            object["metadata"]["namespace"] = json!(scene.name);
        }
        object
    };
    let of_cluster = format!("good-{}", scene.name);
    let both = ["TrainingRuntime", "ClusterTrainingRuntime"];
    cluster.apply(&runtime(both[1], &of_cluster, &image("good"), &[]));
    cluster.apply(&runtime(both[0], "bad", &image("bad"), &[]));
    cluster.apply(&runtime(both[0], "other-command", &image("good"), &["sleep", "1"]));
    let train_job = |name: &str, kind: &str, runtime: &str, trainer: &Value| {
        json!({"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": name},
            "spec": {"runtimeRef": {"name": runtime, "kind": kind}, "trainer": trainer}})
    };
    let ask = |kind: &str, runtime: &str, trainer: Value| {
        scene.try_create(&train_job("a", kind, runtime, &trainer), &["--dry-run=server"])
    };
    // Nobody has granted it; what a run that failed has left is taken away.
    kubectl(&["delete", "--ignore-not-found", "-f", grant]);
    wait_for("the answer without the grant", || {
        let (created, said) = ask(both[0], "bad", json!({}));
        created && said.contains("TrainingRuntime bad cannot be read: we may not")
    });
    kubectl(&["apply", "--server-side", "-f", grant]);
    wait_for("the grant", || !ask(both[0], "bad", json!({})).0);
    let (_, said) = ask(both[0], "bad", json!({}));
    assert!(
        said.contains("container node") && said.contains("/app/train.py") && said.contains("team/job:bad"),
        "{said}"
    );
    let (created, said) = ask(both[1], &of_cluster, json!({}));
    assert!(created && said.is_empty(), "{said}");
    // What the TrainJob says itself counts before its runtime.
    let (created, said) = ask(both[0], "bad", json!({"image": image("good")}));
    assert!(created && said.is_empty(), "{said}");
    assert!(!ask(both[1], &of_cluster, json!({"command": ["sleep", "1"]})).0);
    let (created, said) = ask(both[0], "other-command", json!({}));
    assert!(!created && said.contains("it runs nothing that could log"), "{said}");
    let (created, said) = ask(both[0], "other-command", json!({"command": ["python", "/app/train.py"]}));
    assert!(created && said.is_empty(), "{said}");
    let (created, said) = ask(both[0], "none", json!({}));
    assert!(created && said.contains("there is none of that name"), "{said}");
    cluster.kubectl(&["delete", "clustertrainingruntime", &of_cluster]);
    kubectl(&["delete", "-f", grant]);
}

#[test]
fn every_overlay_is_one_that_the_api_server_takes() {
    for (overlay, says) in [
        ("gate", "clustertrainingruntimes"),
        ("gate-pull-secrets", "tenancy-fixer-pull-secrets"),
        ("gate-fail-closed", "failurePolicy: Fail"),
    ] {
        let rendered = kubectl(&["kustomize", &format!("k8s-resources/overlays/{overlay}")]);
        assert!(rendered.contains(says), "{overlay}");
        assert_eq!(rendered.matches("failurePolicy: Fail").count(), usize::from(overlay == "gate-fail-closed"));
        let objects = yaml::documents::<Value>(overlay, &rendered).unwrap();
        let webhooks =
            objects.iter().find(|object| object.content["kind"] == "ValidatingWebhookConfiguration").unwrap();
        let dry_run = ["create", "--dry-run=server", "-f", "-"];
        let mut webhooks = webhooks.content.clone();
        webhooks["metadata"]["name"] = json!(format!("overlay-{overlay}"));
        kubectl_with(&dry_run, &webhooks.to_string());
        let policy = objects.iter().find(|object| object.content["kind"] == "NetworkPolicy").unwrap();
        let mut policy = policy.content.clone();
        policy["metadata"]["namespace"] = json!("default");
        kubectl_with(&dry_run, &policy.to_string());
    }
}

/// The samples mean what the predecessor's did.
#[test]
fn the_samples_are_good_and_bad() {
    let folder = folder("samples");
    let registry = Registry::start(&folder, &Door::Open);
    let certificate = Certificate::make(&folder);
    let read = |file: &str| std::fs::read_to_string(support::root().join("k8s-resources/examples").join(file)).unwrap();
    let good = image(&read("mlflow-training/train.py"));
    let python = Image { layers: vec![Layer::new().wheel("scikit_learn").gzip()], ..image("") };
    block_on(async {
        registry.push("mlflow-training", "latest", &good).await;
        registry.push("python", "3.11-slim", &python).await;
    });
    let server = gate(&certificate, &registry, &[], None);
    for (file, allowed) in [("job-good.yaml", true), ("job-bad.yaml", false)] {
        let text = read(file).replace("image: ", &format!("image: {}/", registry.address));
        let answer = review(&server, "/job/validate", &yaml::value(&text).unwrap());
        assert_eq!((&answer["allowed"], answer.get("warnings")), (&json!(allowed), None), "{answer}");
    }
}
