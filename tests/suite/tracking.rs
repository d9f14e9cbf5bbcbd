//! MLflow on the cluster: what kustomize renders is run here, with a real MLflow, a real PostgreSQL and a real S3 server.
//!
//! Of the containers, command, arguments and environment are the manifest's (see `pods`). Addresses and ports come from an overlay,
//! as an installation's own would. PostgreSQL is Debian's and not the image of `components/postgres`, whose entry point needs a container.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::{Value, json};

use crate::cluster::Balancer;
use crate::mlflow::{self, Postgres, free_port};
use crate::pods::{Container, Secrets, rendered};
use crate::registry;
use crate::server::block_on;
use crate::support;

/// A first start makes the database and compiles Python; beside other tests that takes its time.
const PATIENCE: Duration = Duration::from_mins(3);
/// Like PostgreSQL's ([`mlflow::PASSWORD`]): what would mean something in a URL.
const S3_KEY: &str = "k@y:s/%3";
/// A Fernet key: 32 bytes, base64.
const WEBHOOK_KEY: &str = "dGVuYW5jeS1maXhlci10ZXN0LWtleS0zMi1ieXRlcyE=";
const ADMIN_PASSWORD: &str = "adm:n@/%p%40ss";

/// Database, object store, and the manifests that name them.
pub struct Installation {
    postgres: Mutex<Postgres>,
    store: Child,
    bucket: PathBuf,
    pub objects: Vec<Value>,
    pub folder: PathBuf,
}

impl Installation {
    /// Base, S3 and its server, and those components; the database of the component `postgres` is where this machine has one.
    pub fn new(test: &str, components: &[&str]) -> Self {
        let folder = support::folder(&format!("tracking-{test}"));
        let postgres = Postgres::start();
        let port = free_port();
        let literals = [
            "PGHOST=127.0.0.1".to_owned(),
            format!("PGPORT={}", postgres.port),
            format!("MLFLOW_S3_ENDPOINT_URL=http://127.0.0.1:{port}"),
            "TRACKING_DATABASE_PATIENCE=60".to_owned(),
            "MLFLOW_WORKERS=1".to_owned(),
        ];
        let components: Vec<&str> = ["postgres", "s3", "s3-server"].iter().chain(components).copied().collect();
        overlay(&folder, &components, &literals);
        let objects = rendered(&relative(&folder));
        let mut server =
            Container::of(&objects, "StatefulSet", "mlflow-s3", "s3", &secrets(), &own_folder(&folder, "s3"));
        server.replace(":7070", &format!("127.0.0.1:{port}"));
        let store = server.start(&s3_program());
        support::wait_long_for("the S3 server", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let bucket = folder.join("s3/data/buckets/mlflow");
        Self { postgres: Mutex::new(postgres), store, bucket, objects, folder }
    }

    /// A container of the Deployment `mlflow`, for a pod of that name.
    fn container(&self, name: &str, pod: &str) -> Container {
        self.container_of("mlflow", name, pod)
    }

    fn container_of(&self, deployment: &str, name: &str, pod: &str) -> Container {
        let folder = own_folder(&self.folder, &format!("{pod}-{name}"));
        Container::of(&self.objects, "Deployment", deployment, name, &secrets(), &folder)
    }

    fn migrate(&self, pod: &str) -> Output {
        self.container("migrate", pod).run(&python())
    }

    /// A pod: its migration, and the server, once that answers.
    fn start(&self, pod: &str) -> Server {
        self.start_with("mlflow", pod, |_| {})
    }

    /// One of a Deployment, with what its pod would have beside its manifest.
    pub fn start_with(&self, deployment: &str, pod: &str, change: impl Fn(&mut Container)) -> Server {
        let mut migration = self.container_of(deployment, "migrate", pod);
        change(&mut migration);
        let migrated = migration.run(&python());
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
        let mut container = self.container_of(deployment, "mlflow", pod);
        change(&mut container);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        container.replace("--host=0.0.0.0", "--host=127.0.0.1");
        container.replace("--port=5000", &format!("--port={}", address.port()));
        let server = Server { process: container.start(&python()), address, log: container.log() };
        let prefix = container.environment.get("MLFLOW_STATIC_PREFIX").cloned().unwrap_or_default();
        support::wait_long_for(&format!("MLflow; {} says why", server.log.display()), PATIENCE, || {
            server.answers(&format!("{prefix}/health"))
        });
        server
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        end(&mut self.store);
    }
}

/// A running server of the Deployment.
pub struct Server {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    fn answers(&self, path: &str) -> bool {
        let asked = registry::try_send(self.address, Request::get(path), Bytes::new());
        let answer = block_on(async { tokio::time::timeout(Duration::from_secs(5), asked).await });
        matches!(answer, Ok(Ok(answer)) if answer.status() == 200)
    }

    /// Status and body.
    pub fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = block_on(registry::send(self.address, request, body));
        (answer.status().as_u16(), text(answer.body()))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn kill(&mut self) {
        end(&mut self.process);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// With all that it has started.
fn end(process: &mut Child) {
    drop(process.stdin.take());
    process.wait().unwrap();
}

fn secrets() -> Secrets {
    [
        (("mlflow-database", "username"), "mlflow"),
        (("mlflow-database", "password"), mlflow::PASSWORD),
        (("mlflow-webhooks", "encryption-key"), WEBHOOK_KEY),
        (("mlflow-s3", "access-key-id"), "mlflow"),
        (("mlflow-s3", "secret-access-key"), S3_KEY),
        (("mlflow-auth", "admin-password"), ADMIN_PASSWORD),
        (("mlflow-auth", "flask-secret-key"), "a key for all pods"),
    ]
    .into_iter()
    .map(|(key, value)| (key, value.to_owned()))
    .collect()
}

/// Writes kustomizations as an installation has them: the base with components, and over that its own settings.
fn overlay(folder: &Path, components: &[&str], literals: &[String]) {
    let below = own_folder(folder, "installation");
    let up = "../".repeat(Path::new(&relative(&below)).components().count());
    let mut text = format!("resources: [{up}k8s-resources/mlflow/base]\ncomponents:\n");
    for component in components {
        writeln!(text, "- {up}k8s-resources/mlflow/components/{component}").unwrap();
    }
    fs::write(below.join("kustomization.yaml"), text).unwrap();
    let settings = json!({
        "resources": ["installation"],
        "configMapGenerator": [{"name": "mlflow", "namespace": "mlflow", "behavior": "merge", "literals": literals}],
    });
    fs::write(folder.join("kustomization.yaml"), settings.to_string()).unwrap();
}

fn relative(folder: &Path) -> String {
    folder.strip_prefix(support::root()).unwrap().display().to_string()
}

fn own_folder(folder: &Path, name: &str) -> PathBuf {
    let own = folder.join(name);
    fs::create_dir_all(&own).unwrap();
    own
}

fn python() -> PathBuf {
    let python = support::root().join("target/tracking-venv/bin/python3");
    assert!(python.exists(), "no {}: run `make test`, or tests/setup", python.display());
    python
}

fn s3_program() -> PathBuf {
    let output = Command::new(support::root().join("tests/s3/build")).output().expect("the script runs");
    assert!(output.status.success(), "tests/s3/build: {}", text(&output.stderr));
    PathBuf::from(text(&output.stdout).trim()).join("versitygw")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The variables that a tenant's pod gets, for a server.
pub fn tenants_variables(url: &str, flags: &[&str]) -> Vec<(String, String)> {
    let tracking = format!("--tenant-tracking={url}");
    let flags: Vec<&str> = std::iter::once(tracking.as_str()).chain(flags.iter().copied()).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n", "labels": {"notebook-name": "n"}},
        "spec": {"containers": [{"name": "n", "image": "n"}]},
    });
    let mut review = crate::wire::review(&pod);
    review["request"]["namespace"] = json!("alice");
    let endpoint = tenancy_fixer::admission::Endpoint::PodMutate;
    let answered = crate::wire::answered(endpoint, &review, &support::settings(&flags));
    let variables = answered.object["spec"]["containers"][0]["env"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    variables.iter().map(|variable| (text(&variable["name"]), text(&variable["value"]))).collect()
}

/// Runs Python with MLflow's SDK as a tenant's pod would: with these variables, and no key of database or object store.
fn tenant(folder: &Path, arguments: &[&str], variables: &[(String, String)]) -> Command {
    let mut command = Command::new(mlflow::program("python"));
    run_as_tenant(&mut command, folder, arguments, variables);
    command
}

fn run_as_tenant(command: &mut Command, folder: &Path, arguments: &[&str], variables: &[(String, String)]) {
    command.args(arguments).current_dir(folder).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("HOME", folder).env("GIT_PYTHON_REFRESH", "quiet");
    // The network of the tests ends at this machine.
    command.env("MLFLOW_DISABLE_TELEMETRY", "true");
    command.env("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1").env("PYTHONUNBUFFERED", "1");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
}

/// The same with what the server's image has: the SDK, and the client of Kubernetes that it finds tokens by.
pub fn tenant_of_server(folder: &Path, arguments: &[&str], variables: &[(String, String)]) -> Command {
    let mut command = Command::new(python());
    run_as_tenant(&mut command, folder, arguments, variables);
    command
}

fn succeeded(command: &mut Command) -> String {
    let output = command.output().expect("Python runs");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Where the SDK's requests go that read an artifact: one line for each host.
const HOSTS: &str = "
import sys, urllib.parse, requests
import mlflow
hosts, send = set(), requests.Session.send
def sent(session, request, **more):
    hosts.add(urllib.parse.urlsplit(request.url).netloc)
    return send(session, request, **more)
requests.Session.send = sent
with mlflow.start_run() as run:
    mlflow.log_text('kept', 'note.txt')
assert mlflow.artifacts.load_text(run.info.artifact_uri + '/note.txt') == 'kept'
print('hosts', *sorted(hosts))
";

#[test]
fn what_kustomize_renders_serves_tenants() {
    let installation = Installation::new("serves", &[]);
    let server = installation.start("pod");
    let variables = tenants_variables(&server.url(), &[]);
    let train = support::root().join("k8s-resources/mlflow/test/train.py");
    let said = succeeded(&mut tenant(&installation.folder, &[train.to_str().unwrap(), "first"], &variables));
    assert!(said.lines().last().unwrap().starts_with("ok: run "), "{said}");
    // The database and the bucket have it, and nothing is in the pod.
    let postgres = installation.postgres.lock().unwrap();
    assert_eq!(postgres.psql("mlflow", "SELECT count(*) FROM metrics WHERE key = 'score'").trim(), "3");
    assert_eq!(postgres.psql("mlflow", "SELECT name FROM registered_models").trim(), "smoke-test");
    let kept = Command::new("find").arg(installation.bucket.join("artifacts")).args(["-type", "f"]).output().unwrap();
    assert!(text(&kept.stdout).lines().any(|file| file.ends_with("/notes/note.txt")), "{}", text(&kept.stdout));

    // Artifacts go through the server; without the variables the SDK asks the object store, which tenants cannot reach.
    let hosts = |variables: &[(String, String)]| {
        let said = succeeded(&mut tenant(&installation.folder, &["-c", HOSTS], variables));
        said.lines().find_map(|line| line.strip_prefix("hosts ")).unwrap().split(' ').count()
    };
    assert_eq!(hosts(&variables), 1);
    assert_eq!(hosts(&variables[..1]), 2, "MLflow's clients no longer go past the server: see TRACKING_DIRECT");

    // By its names in the cluster, and by no other.
    let search = "/api/2.0/mlflow/experiments/search?max_results=1";
    let status_by = |host: &str| {
        let head = format!("GET {search} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let mut connection = TcpStream::connect(server.address).unwrap();
        connection.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for (host, wanted) in
        [("mlflow.mlflow.svc.cluster.local:5000", "200"), ("mlflow.mlflow:5000", "200"), ("evil.example.org", "403")]
    {
        assert_eq!(status_by(host), wanted, "{host}");
    }
    let (status, metrics) = server.call(Method::GET, "/metrics", &[], None);
    assert_eq!(status, 200);
    assert!(metrics.contains("mlflow_http_request_total{"), "{metrics}");
    let log = fs::read_to_string(&server.log).unwrap();
    for secret in [mlflow::PASSWORD, S3_KEY, WEBHOOK_KEY] {
        assert!(!log.contains(secret), "{log}");
    }
    drop(postgres);
    back_up_and_restore(&installation, server);
}

/// What docs/mlflow.md says of backups: after the loss of both stores everything is there again.
fn back_up_and_restore(installation: &Installation, mut server: Server) {
    let webhook = json!({
        "name": "w", "url": "http://127.0.0.1:9/", "events": [{"entity": "MODEL_VERSION_TAG", "action": "SET"}], "secret": "s",
    });
    assert_eq!(server.call(Method::POST, "/api/2.0/mlflow/webhooks", &[], Some(&webhook)).0, 200);
    let postgres = installation.postgres.lock().unwrap();
    let run = postgres.psql("mlflow", "SELECT run_uuid FROM metrics WHERE key = 'score' LIMIT 1").trim().to_owned();
    let dump = installation.folder.join("mlflow.dump");
    ran(postgres.client("pg_dump").args(["--format=custom", "--file"]).arg(&dump).arg("mlflow"));
    let data = installation.bucket.parent().unwrap().parent().unwrap();
    let of_bucket = |part: &str| data.join(part).join("mlflow");
    let copy = |part: &str| installation.folder.join(format!("copy-of-{part}"));
    for part in ["buckets", "attributes"] {
        ran(Command::new("cp").arg("--archive").arg(of_bucket(part)).arg(copy(part)));
    }
    server.kill();
    postgres.psql("postgres", "DROP DATABASE mlflow");
    for part in ["buckets", "attributes"] {
        fs::remove_dir_all(of_bucket(part)).unwrap();
        ran(Command::new("cp").arg("--archive").arg(copy(part)).arg(of_bucket(part)));
    }
    postgres.psql("postgres", "CREATE DATABASE mlflow");
    ran(postgres.client("pg_restore").args(["--dbname=mlflow", "--exit-on-error", "--no-owner"]).arg(&dump));
    drop(postgres);
    let server = installation.start("restored");
    let variables = tenants_variables(&server.url(), &[]);
    let read = "
import mlflow, sys
assert mlflow.get_run(sys.argv[1]).data.metrics['score'] > 0.9
print(mlflow.artifacts.load_text(f'runs:/{sys.argv[1]}/notes/note.txt'))
";
    let said = succeeded(&mut tenant(&installation.folder, &["-c", read, &run], &variables));
    assert_eq!(said.lines().last(), Some("kept"));
    let (status, said) = server.call(Method::GET, "/api/2.0/mlflow/webhooks", &[], None);
    assert!(status == 200 && said.contains("127.0.0.1:9"), "{said}");
}

/// Logs steps until it is told to stop, and says each that was acknowledged.
const LOG_STEPS: &str = "
import sys, threading, mlflow
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
client, step = mlflow.MlflowClient(), 0
run = client.create_run(client.create_experiment('steps')).info.run_id
print('run', run)
while not stop.is_set():
    client.log_metric(run, 'step', step, step=step)
    client.log_text(run, str(step), f'step-{step % 5}.txt')
    print('acknowledged', step)
    step += 1
print('end')
";

/// Two pods behind a Service; one is killed, and the database. Whatever the client was told is stored, is.
#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let installation = Installation::new("killed", &[]);
    // Both at once, as a Deployment starts them: one makes the tables.
    let (mut first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| installation.start("first"));
        let second = installation.start("second");
        (first.join().unwrap(), second)
    });
    // A webhook's secret that one has written the other can read.
    let webhook = json!({
        "name": "w", "url": "http://127.0.0.1:9/", "events": [{"entity": "MODEL_VERSION_TAG", "action": "SET"}], "secret": "s",
    });
    let (status, said) = first.call(Method::POST, "/api/2.0/mlflow/webhooks", &[], Some(&webhook));
    assert_eq!(status, 200, "{said}");
    let (status, said) = second.call(Method::GET, "/api/2.0/mlflow/webhooks", &[], None);
    assert_eq!(status, 200, "{said}");

    let balancer = Balancer::start();
    balancer.send_to(vec![first.address, second.address]);
    let mut command = tenant(
        &installation.folder,
        &["-c", LOG_STEPS],
        &tenants_variables(&format!("http://{}", balancer.address), &[]),
    );
    let errors = fs::File::create(installation.folder.join("client.log")).unwrap();
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
    let lines = read_lines(&mut client);
    let acknowledged = || lines.lock().unwrap().iter().filter(|line| line.starts_with("acknowledged")).count();
    let wait_for_more = |what: &str| {
        let wanted = acknowledged() + 10;
        support::wait_long_for(what, PATIENCE, || acknowledged() >= wanted);
    };
    wait_for_more("steps");
    first.kill();
    // Until the kubelet has noticed, half of the connections go nowhere.
    wait_for_more("steps with one of two servers");
    balancer.send_to(vec![second.address]);
    installation.postgres.lock().unwrap().kill();
    let search = "/api/2.0/mlflow/experiments/search?max_results=1";
    support::wait_for("the server to miss its database", || second.call(Method::GET, search, &[], None).0 != 200);
    installation.postgres.lock().unwrap().up();
    wait_for_more("steps after PostgreSQL was killed");
    end(&mut client);
    support::wait_for("the client's end", || lines.lock().unwrap().last().is_some_and(|line| line == "end"));

    let lines = lines.lock().unwrap();
    let of = |word: &str| -> Vec<String> {
        lines.iter().filter_map(|line| line.strip_prefix(word)).map(|rest| rest.trim().to_owned()).collect()
    };
    let (run, steps) = (of("run ").remove(0), of("acknowledged "));
    let query = format!("SELECT DISTINCT step FROM metrics WHERE run_uuid = '{run}' AND key = 'step'");
    let stored = installation.postgres.lock().unwrap().psql("mlflow", &query);
    let missing: Vec<_> = steps.iter().filter(|step| !stored.lines().any(|line| line == *step)).collect();
    assert!(missing.is_empty(), "acknowledged and not stored: {missing:?} of {}", steps.len());
    assert!(steps.len() >= 30);
}

/// Brings an empty database to the schema of some releases ago, by MLflow's own migrations, and prints that and today's.
const OLD_SCHEMA: &str = "
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
engine = utils.create_sqlalchemy_engine('postgresql+psycopg2://')
utils.InitialBase.metadata.create_all(engine)
config = utils._get_alembic_config('postgresql+psycopg2://')
revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
with engine.begin() as connection:
    config.attributes['connection'] = connection
    command.upgrade(config, revisions[4])
print(revisions[4], revisions[0])
";

/// However many pods of a rollout come at once, one of them migrates, and the others wait for it.
#[test]
fn a_rollout_migrates_once() {
    let installation = Installation::new("migrates", &[]);
    let environment: Vec<(String, String)> = installation.container("migrate", "old").environment.into_iter().collect();
    let said = succeeded(&mut tenant_of_server(&installation.folder, &["-c", OLD_SCHEMA], &environment));
    let (old, new) = said.lines().last().unwrap().split_once(' ').unwrap();
    let lines: Vec<String> = thread::scope(|scope| {
        let pods = ["a", "b", "c"].map(|pod| scope.spawn(|| installation.migrate(pod)));
        let outputs = pods.map(|pod| pod.join().unwrap());
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
        outputs.iter().flat_map(|output| text(&output.stderr).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    });
    let count = |what: String| lines.iter().filter(|line| line.contains(&what)).count();
    assert_eq!(count(format!("migrating the database from schema {old} to {new}")), 1, "{lines:#?}");
    assert_eq!(count(format!("the database has schema {new} already")), 2, "{lines:#?}");
    let stored = installation.postgres.lock().unwrap().psql("mlflow", "SELECT version_num FROM alembic_version");
    assert_eq!(stored.trim(), new);
}

/// Variables that are other than they should be (without a value: not there), and what the line has to say.
type Mistake<'m> = (&'m [(&'m str, Option<&'m str>)], &'m [&'m str]);

/// Each a mistake that somebody makes: the first line of the pod's log says what is wrong, and where to mend it.
#[test]
fn the_first_line_says_what_is_wrong() {
    let installation = Installation::new("wrong", &["basic-auth"]);
    let migrated = installation.migrate("pod");
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    let first_line = |name: &str, variables: &[(&str, Option<&str>)]| {
        let mut container = installation.container(name, &format!("wrong-{name}"));
        container.set("TRACKING_DATABASE_PATIENCE", "0");
        // The component's own wish would make the bucket.
        container.environment.remove("TRACKING_CREATE_BUCKET");
        for (variable, value) in variables {
            match value {
                Some(value) => container.set(variable, value),
                None => drop(container.environment.remove(*variable)),
            }
        }
        let output = container.run(&python());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(!said.contains(mlflow::PASSWORD) && !said.contains(S3_KEY), "{said}");
        said.lines().next().unwrap_or_default().to_owned()
    };
    let (store, destination) = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION");
    let key = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY";
    let with_password = "postgresql+psycopg2://mlflow:p%40ss@db/mlflow";
    let cases: [Mistake<'_>; 12] = [
        (&[("PGPASSWORD", Some("p@ss:w/o%r"))], &["refuses the user 'mlflow'", "Secret mlflow-database"]),
        (&[("PGPASSWORD", Some(""))], &["PGPASSWORD is not set", "Secret mlflow-database, key password"]),
        (&[("PGHOST", None)], &["PGHOST is not set", "ConfigMap mlflow"]),
        (&[("PGPORT", Some("1"))], &["PostgreSQL at 127.0.0.1:1", "does not answer", "refused"]),
        (&[("PGDATABASE", Some("other"))], &["has no database 'other'", "PGDATABASE"]),
        (&[(store, Some(with_password))], &["MLFLOW_BACKEND_STORE_URI has a password in it", "PGPASSWORD"]),
        (&[(destination, Some("s3://other/a"))], &["no bucket 'other'", "MLFLOW_ARTIFACTS_DESTINATION"]),
        (&[(destination, Some("gs://BUCKET/a"))], &["is still 'gs://BUCKET/a'", "your bucket"]),
        (&[(destination, Some("/tmp/a"))], &["MLFLOW_ARTIFACTS_DESTINATION", "s3://BUCKET/PATH"]),
        (&[("AWS_SECRET_ACCESS_KEY", Some("wrong"))], &["refuses our key", "(403)", "Secret mlflow-s3"]),
        (&[(key, Some("short"))], &[key, "no Fernet key", "openssl rand"]),
        (
            &[("MLFLOW_AUTH_ADMIN_PASSWORD", None), ("AWS_ACCESS_KEY_ID", None)],
            // All at once.
            &["Secret mlflow-auth, key admin-password", "Secret mlflow-s3, key access-key-id"],
        ),
    ];
    for (variables, parts) in cases {
        let line = first_line("mlflow", variables);
        for part in parts {
            assert!(line.starts_with("tracking: ERROR: ") && line.contains(part), "{part}: {line}");
        }
    }
    // A schema of the future is not touched.
    let postgres = installation.postgres.lock().unwrap();
    postgres.psql("mlflow", "UPDATE alembic_version SET version_num = 'future'");
    let line = first_line("migrate", &[]);
    assert!(line.contains("schema future") && line.contains("a newer one has been here"), "{line}");
    assert_eq!(postgres.psql("mlflow", "SELECT version_num FROM alembic_version").trim(), "future");
}

/// Users with passwords: nobody without one, and the admin's is what the Secret says, whatever is in it.
#[test]
fn users_have_passwords() {
    let installation = Installation::new("users", &["basic-auth"]);
    let server = installation.start("pod");
    let search = "/api/2.0/mlflow/experiments/search?max_results=1";
    assert_eq!(server.call(Method::GET, search, &[], None).0, 401);
    let basic = |user: &str, password: &str| {
        format!("Basic {}", crate::cluster::base64(format!("{user}:{password}").as_bytes()))
    };
    let admin = basic("admin", ADMIN_PASSWORD);
    let user = json!({"username": "alice", "password": "alice's p@ss:/%"});
    let create = "/api/2.0/mlflow/users/create";
    let (status, said) = server.call(Method::POST, create, &[("authorization", &admin)], Some(&user));
    assert_eq!(status, 200, "{said}");
    // The variables of a tenant's pod, the Secret's values in place of its references.
    let mut variables = tenants_variables(&server.url(), &["--tenant-tracking-auth=basic"]);
    for (name, value) in &mut variables {
        match name.as_str() {
            "MLFLOW_TRACKING_USERNAME" => *value = "alice".to_owned(),
            "MLFLOW_TRACKING_PASSWORD" => *value = "alice's p@ss:/%".to_owned(),
            _ => {}
        }
    }
    let log = "import mlflow; mlflow.set_experiment('of-alice'); mlflow.log_metric('a', 1); print('logged')";
    let said = succeeded(&mut tenant(&installation.folder, &["-c", log], &variables));
    assert!(said.contains("logged"), "{said}");
    // A second pod finds the admin, and one of somebody else sees nothing of it.
    let other = json!({"username": "bob", "password": "bob's password"});
    assert_eq!(server.call(Method::POST, create, &[("authorization", &admin)], Some(&other)).0, 200);
    let second = installation.start("second");
    let bob = basic("bob", "bob's password");
    let by_name = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=of-alice";
    assert_eq!(second.call(Method::GET, by_name, &[("authorization", &bob)], None).0, 403);
    assert_eq!(second.call(Method::GET, by_name, &[("authorization", &admin)], None).0, 200);
    we_are_users_too(&installation.folder, &server);
}

/// Our own client: behind an ingress with a certificate of a private authority, as a user whose password is in a file.
fn we_are_users_too(folder: &Path, server: &Server) {
    let certificate = crate::server::Certificate::make(folder);
    let uri = format!("https://{}", certificate.in_front_of(server.address));
    let password = folder.join("password");
    let ask = |user: &str, secret: &str, more: &[&str]| {
        fs::write(&password, format!("{secret}\n")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        command.args(["project", "list", "--experiment-name", "of-alice", "--mlflow-tracking-uri", &uri]);
        command.args(["--mlflow-retries", "0", "--mlflow-username", user, "--mlflow-password-file"]).arg(&password);
        let output = command.args(more).env("HOME", "/nonexistent").output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let authority = certificate.ca.to_str().unwrap();
    let trusting = ["--mlflow-ca-file", authority];
    for (user, secret, more, code, part) in [
        ("alice", "alice's p@ss:/%", &trusting[..], 0, "RUN"),
        ("alice", "alice's p@ss", &trusting, 2, "401"),
        ("bob", "bob's password", &trusting, 2, "403"),
        ("alice", "alice's p@ss:/%", &[], 2, "certificate"),
    ] {
        let (found, said) = ask(user, secret, more);
        assert!(found == Some(code) && said.contains(part), "{user}: {found:?} {said}");
        assert!(!said.contains(secret), "{said}");
    }
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
}

/// What a process prints, line by line, while it runs.
fn read_lines(process: &mut Child) -> std::sync::Arc<Mutex<Vec<String>>> {
    use std::io::BufRead as _;
    let lines = std::sync::Arc::new(Mutex::new(Vec::new()));
    let (shared, output) = (std::sync::Arc::clone(&lines), process.stdout.take().unwrap());
    thread::spawn(move || {
        for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
            shared.lock().unwrap().push(line);
        }
    });
    lines
}
