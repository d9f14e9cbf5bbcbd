//! A real MLflow server, a real PostgreSQL behind it where a test wants one, and Python with MLflow's own SDK; all of `tests/setup`.
//!
//! ```ignore
//! let postgres = Postgres::start();
//! let mlflow = Mlflow::start("folder", &Options { store: Some(postgres.url()), ..Options::default() });
//! let printed = mlflow.python("import mlflow; print(mlflow.search_experiments())", &[]);
//! ```

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::Value;

use crate::registry;
use crate::server::block_on;
use crate::support;

/// A first start makes the database and compiles Python; beside other tests that takes its time.
const PATIENCE: Duration = Duration::from_mins(3);

/// A program of the virtual environment with MLflow in it.
pub fn program(name: &str) -> PathBuf {
    let path = support::root().join("target/mlflow-venv/bin").join(name);
    assert!(path.exists(), "no {}: run `make test`, or tests/setup", path.display());
    path
}

/// What differs from one server to the next.
#[derive(Default)]
pub struct Options {
    /// The backend store; without one it is SQLite in the server's folder.
    pub store: Option<String>,
    /// Where artifacts are kept; without one it is the server's folder.
    pub artifacts: Option<String>,
    /// Processes; 0 means one.
    pub workers: usize,
    /// Further arguments of `mlflow server`.
    pub arguments: Vec<String>,
    /// Further variables of its environment.
    pub environment: BTreeMap<String, String>,
    /// Its port, to come again where it was; without one any that is free.
    pub port: Option<u16>,
}

/// A running MLflow server. It ends, with all of its processes, when it is dropped or the test process ends.
pub struct Mlflow {
    process: Child,
    pub address: SocketAddr,
    /// Its database, its artifacts and `log`, what it printed.
    pub folder: PathBuf,
}

impl Mlflow {
    /// Starts one with a folder below `target/test` of that name, and waits until it answers.
    ///
    /// Webhooks may go to loopback addresses by plain HTTP: a test has no other.
    pub fn start(name: &str, options: &Options) -> Self {
        Self::start_in(support::folder(name), options)
    }

    /// The same on a folder that is there, with what an earlier server has left in it.
    pub fn start_in(folder: PathBuf, options: &Options) -> Self {
        let port = options.port.unwrap_or_else(free_port);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let in_folder = |file: &str| folder.join(file).display().to_string();
        let store = options.store.clone().unwrap_or_else(|| format!("sqlite:///{}", in_folder("mlflow.db")));
        let artifacts = options.artifacts.clone().unwrap_or_else(|| in_folder("artifacts"));
        let mut command = with_parent(&program("mlflow"));
        command.args(["server", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--workers", &options.workers.max(1).to_string()]);
        command.args(["--backend-store-uri", &store, "--artifacts-destination", &artifacts]).args(&options.arguments);
        command.current_dir(&folder).envs(settings()).envs(&options.environment);
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::piped());
        let mlflow = Self { process: command.spawn().expect("bash runs"), address, folder };
        support::wait_long_for(&format!("MLflow; {} says why", mlflow.folder.join("log").display()), PATIENCE, || {
            mlflow.is_healthy()
        });
        mlflow
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn is_healthy(&self) -> bool {
        let asked = registry::try_send(self.address, Request::get("/health"), Bytes::new());
        // Somebody may listen who does not answer.
        let answer = block_on(async { tokio::time::timeout(Duration::from_secs(5), asked).await });
        matches!(answer, Ok(Ok(answer)) if answer.status() == 200)
    }

    /// Calls its REST API (`/api/2.0/mlflow/...`): status and JSON.
    pub fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = block_on(registry::send(self.address, request, body));
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or(Value::Null))
    }

    /// Runs a Python text with MLflow's SDK, which is told of this server; what it prints. A failure fails the test.
    pub fn python(&self, text: &str, arguments: &[&str]) -> String {
        let output = python(&self.folder, text, arguments, &[("MLFLOW_TRACKING_URI", &self.url())]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Kills all of its processes at once.
    pub fn kill(&mut self) {
        // The end of its parent's standard input is the signal.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a Python text in the environment with MLflow, with those variables beside it, in that folder.
pub fn python(folder: &Path, text: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program("python"));
    command.args(["-c", text]).args(arguments).current_dir(folder).envs(settings()).envs(environment.iter().copied());
    command.output().expect("Python runs")
}

/// What every MLflow of the tests is told: to be quiet, and to allow webhooks to the tests' own listeners.
fn settings() -> [(&'static str, &'static str); 9] {
    [
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
        ("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https"),
        ("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true"),
        ("MLFLOW_WEBHOOK_CACHE_TTL", "1"),
        // A Fernet key: 32 bytes, base64.
        ("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", "dGVuYW5jeS1maXhlci10ZXN0LWtleS0zMi1ieXRlcyE="),
        ("MLFLOW_DEFAULT_ARTIFACT_ROOT", "mlflow-artifacts:/"),
        ("GIT_PYTHON_REFRESH", "quiet"),
        ("PYTHONUNBUFFERED", "1"),
    ]
}

/// That program below a shell which kills it, and all that it starts, when its own standard input ends: at the latest when the
/// test process does, however that ends.
pub fn with_parent(program: &Path) -> Command {
    let mut command = Command::new("bash");
    // Job control gives the program a process group of its own.
    command.args(["-c", r#"set -m; "$@" </dev/null & cat >/dev/null; kill -KILL -- "-$!" 2>/dev/null; wait"#, "bash"]);
    command.arg(program);
    command
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A PostgreSQL server of the test's own. It ends when it is dropped or the test process ends.
pub struct Postgres {
    process: Option<Child>,
    pub port: u16,
    folder: PathBuf,
}

/// Its only user's.
pub const PASSWORD: &str = "p@ss:w/o%rd";

impl Postgres {
    /// A new one with an empty database `mlflow`, once it answers.
    pub fn start() -> Self {
        let port = free_port();
        // Where its user may go: a checkout can be in somebody's home.
        let folder = std::env::temp_dir().join(format!("tenancy-fixer-postgres-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(folder.join("password"), PASSWORD).unwrap();
        if let Some((user, group)) = account() {
            for path in [&folder, &folder.join("password")] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
            }
        }
        let mut postgres = Self { process: None, port, folder };
        let password = postgres.folder.join("password").display().to_string();
        postgres.run("initdb", &["--username=mlflow", "--auth=scram-sha-256", "--no-sync", "--pwfile", &password]);
        postgres.up();
        postgres.psql("postgres", "CREATE DATABASE mlflow");
        postgres
    }

    /// Starts it, where it was, and waits until it answers.
    pub fn up(&mut self) {
        let port = self.port.to_string();
        let mut command = with_parent(Path::new("env"));
        as_its_user(&mut command);
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        command.arg(installed("postgres")).args(["-D", &self.data(), "-p", &port, "-k", "", "-h", "127.0.0.1"]);
        // It is a test's: what it has written need not outlive the machine.
        command.args(["-c", "fsync=off"]).current_dir(&self.folder);
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().expect("bash runs"));
        support::wait_long_for("PostgreSQL", PATIENCE, || self.try_psql("postgres", "SELECT 1").status.success());
    }

    /// Kills all of its processes at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            process.wait().unwrap();
        }
    }

    /// As SQLAlchemy wants it, the password escaped.
    pub fn url(&self) -> String {
        format!("postgresql+psycopg2://mlflow:p%40ss%3Aw%2Fo%25rd@127.0.0.1:{}/mlflow", self.port)
    }

    /// Runs a statement; what it prints, without ornaments.
    pub fn psql(&self, database: &str, statement: &str) -> String {
        let output = self.try_psql(database, statement);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_psql(&self, database: &str, statement: &str) -> Output {
        let mut command = self.client("psql");
        command.args(["-d", database, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        command.output().expect("psql runs")
    }

    /// A client's program of PostgreSQL, such as `pg_dump`, as its only user.
    pub fn client(&self, name: &str) -> Command {
        let mut command = Command::new(installed(name));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "mlflow"]).env("PGPASSWORD", PASSWORD);
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let mut command = Command::new("env");
        as_its_user(&mut command);
        let output = command.arg(installed(name)).args(["-D", &self.data()]).args(arguments).current_dir(&self.folder);
        let output = output.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        // What is left is in the machine's temporary folder.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// PostgreSQL refuses to be run by root: the user and group that Debian's package has made for it, where we are root.
fn account() -> Option<(u32, u32)> {
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("postgres:"));
    is_root.then(|| {
        let mut ids =
            line.expect("a user named postgres: Debian's package makes it").split(':').skip(2).map(str::parse);
        (ids.next().unwrap().unwrap(), ids.next().unwrap().unwrap())
    })
}

fn as_its_user(command: &mut Command) {
    if let Some((user, group)) = account() {
        command.uid(user).gid(group);
    }
}

/// A program of the newest PostgreSQL that is installed.
fn installed(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: tests/setup");
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.unwrap().path().join("bin")).collect();
    versions.sort();
    versions.pop().expect("a version of it").join(name)
}

/// The rig holds what it promises: the SDK reaches a server on PostgreSQL, which finds its runs again after both were killed.
#[test]
fn a_run_outlives_its_servers() {
    let mut postgres = Postgres::start();
    let options = Options { store: Some(postgres.url()), port: Some(free_port()), ..Options::default() };
    let mut mlflow = Mlflow::start("mlflow-rig", &options);
    let script = "
import mlflow
with mlflow.start_run() as run:
    mlflow.log_metric('loss', 0.5)
    mlflow.log_text('kept', 'note.txt')
print(run.info.run_id)
";
    let run = mlflow.python(script, &[]).trim().to_owned();
    mlflow.kill();
    postgres.kill();
    assert!(!mlflow.is_healthy());
    postgres.up();
    let mlflow = Mlflow::start_in(mlflow.folder.clone(), &options);
    let path = format!("/api/2.0/mlflow/runs/get?run_id={}", run.lines().last().unwrap());
    let (status, found) = mlflow.call(Method::GET, &path, None);
    assert_eq!(status, 200, "{found}");
    assert_eq!(found["run"]["data"]["metrics"][0]["value"], 0.5);
    assert_eq!(found["run"]["info"]["status"], "FINISHED");
    let read = mlflow.python(
        "import mlflow, sys; print(mlflow.artifacts.load_text(f'runs:/{sys.argv[1]}/note.txt'))",
        &[run.lines().last().unwrap()],
    );
    assert_eq!(read.lines().last(), Some("kept"));
    let rows = postgres.psql("mlflow", "SELECT value FROM metrics");
    assert_eq!(rows.trim(), "0.5");
}
