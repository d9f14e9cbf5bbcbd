//! The launcher as a program, against a proxy of the test's own: order of start and end, codes, signals, markers.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tenancy_fixer::launch::VARIABLES;

use crate::support;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_launcher");
pub const READY: &str = "GET /healthz/ready";
pub const QUIT: &str = "POST /quitquitquit";
/// Nobody listens there: the port is reserved, and not for anything that runs.
const NOBODY: &str = "http://127.0.0.1:1/quitquitquit";
/// After this long a test has failed, also on a machine that is busy with something else.
pub const LIMIT: Duration = Duration::from_mins(1);

// The proxy

/// What the proxy does with a request.
#[derive(Clone, Copy)]
pub enum Answer {
    Status(u16),
    /// Reads, and says nothing.
    Silence,
    /// Reads, and closes the connection.
    Close,
    /// Something that is no HTTP.
    Garbage,
    /// A status line that never ends, byte by byte.
    Drip,
}

/// A server that stands in for pilot-agent and Envoy: it writes down method and path of each request.
pub struct Proxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn ready() -> Self {
        Self::start(|_| Answer::Status(200))
    }

    pub fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen("127.0.0.1:0", answer)
    }

    fn listen(address: &str, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let proxy = Self { address: listener.local_addr().unwrap(), requests: requests.clone() };
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || serve(stream.unwrap(), &requests, &*answer));
            }
        });
        proxy
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn count(&self, request: &str) -> usize {
        self.requests().iter().filter(|line| *line == request).count()
    }
}

fn serve(mut stream: TcpStream, requests: &Mutex<Vec<String>>, answer: &(dyn Fn(&str) -> Answer + Send + Sync)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    // Others who ask have their own ways.
    let is_ours = head.contains("\r\nUser-Agent: launcher/");
    assert!(!is_ours || head.contains("\r\nHost: ") && head.contains("\r\nContent-Length: 0\r\n"), "{head:?}");
    let line = head.split(" HTTP/1.1\r\n").next().unwrap().to_owned();
    let answer = answer(&line);
    requests.lock().unwrap().push(line);
    // Whoever does not wait for the answer has gone.
    let _ = match answer {
        Answer::Status(status) => write!(stream, "HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n"),
        Answer::Close => Ok(()),
        Answer::Garbage => write!(stream, "SSH-2.0-nothing\r\n"),
        Answer::Silence => stream.read(&mut [0]).map(drop),
        Answer::Drip => (0..).try_for_each(|_| {
            thread::sleep(Duration::from_millis(10));
            stream.write_all(b"H")
        }),
    };
}

// The launcher

/// A launcher with a proxy, and nothing else in its environment that is ours.
fn launcher(proxy: &Proxy) -> Command {
    let mut command = bare_launcher();
    command.env("LAUNCHER_READY_URL", proxy.url("/healthz/ready"));
    command.env("LAUNCHER_QUIT_URL", format!("{},{NOBODY}", proxy.url("/quitquitquit")));
    command
}

/// A launcher that finds nobody unless it is told where.
fn bare_launcher() -> Command {
    let mut command = Command::new(LAUNCHER);
    for variable in VARIABLES {
        command.env_remove(variable.name);
    }
    command.env("LAUNCHER_READY_URL", "").env("LAUNCHER_QUIT_URL", "");
    command
}

/// The same where signals do what they do by default, which a shell that runs us in the background has changed.
fn launcher_with_signals(exec: bool) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", LAUNCHER]).args(exec.then_some("--exec"));
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    command
}

/// What is left of a process.
pub struct Ended {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ended {
    pub fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }
}

/// Runs to the end. Every line of its standard error is our own: the commands of these tests are silent there.
fn run(command: &mut Command) -> Ended {
    let ended = Running::start(command).end();
    for line in ended.err.lines() {
        assert!(line.starts_with("launcher: ") && line.len() > "launcher: ".len(), "{line:?}");
    }
    ended
}

/// A process of ours, which does not outlive its test, and lives for [`LIMIT`] at most.
pub struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    err: Option<thread::JoinHandle<String>>,
    /// Closed when it has ended.
    over: Option<mpsc::Sender<()>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        let err = thread::spawn(move || {
            let mut bytes = Vec::new();
            err.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        });
        let (over, is_over) = mpsc::channel::<()>();
        let pid = child.id();
        thread::spawn(move || {
            if is_over.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                kill_with_children(pid);
            }
        });
        Self { child, out, err: Some(err), over: Some(over) }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The next line of its standard output; empty if there is none.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn end(self) -> Ended {
        let (status, out, err) = self.end_somehow();
        let code = status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {err}", status.signal()));
        Ended { code, out, err }
    }

    /// The same for what may be ended by a signal.
    fn end_somehow(mut self) -> (ExitStatus, Vec<u8>, String) {
        drop(self.child.stdin.take());
        let mut out = Vec::new();
        self.out.read_to_end(&mut out).unwrap();
        let status = self.child.wait().unwrap();
        self.over = None;
        (status, out, self.err.take().unwrap().join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An end that has been seen leaves nothing to kill.
        if self.over.is_some() {
            kill_with_children(self.child.id());
            let _ = self.child.wait();
        }
    }
}

/// A launcher that is killed tells its command nothing.
fn kill_with_children(pid: u32) {
    for pid in children(pid).into_iter().chain([Pid::from_raw(pid.try_into().unwrap())]) {
        // What has ended by itself is as good.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// The children of a process; none once it has ended.
fn children(pid: u32) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|child| Pid::from_raw(child.parse().unwrap())).collect()
}

/// Waits for a condition, which has to become true.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

// The start

#[test]
fn a_proxy_that_is_ready_is_asked_once_at_the_start_and_once_at_the_end() {
    let proxy = Proxy::ready();
    let ended = run(launcher(&proxy).args(["--", "echo", "hello"]));
    assert_eq!((ended.code, ended.text().as_str()), (0, "hello\n"));
    assert_eq!(proxy.requests(), [READY, QUIT]);
    let lines: Vec<_> = ended.err.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("launcher: the proxy is ready after "), "{lines:?}");
    assert_eq!(lines[1], format!("launcher: asked the proxy to quit ({} answers 200)", proxy.url("/quitquitquit")));
}

/// Milliseconds from a moment to the start of the command, which prints its own time.
fn milliseconds_after(ready: SystemTime, printed: &str) -> f64 {
    let started = UNIX_EPOCH + Duration::from_nanos(printed.trim().parse().unwrap());
    started.duration_since(ready).expect("not before the proxy is ready").as_secs_f64() * 1e3
}

#[test]
fn the_command_starts_as_soon_as_a_listening_proxy_is_ready() {
    let ready = SystemTime::now() + Duration::from_millis(300);
    let proxy = Proxy::start(move |_| Answer::Status(if SystemTime::now() < ready { 503 } else { 200 }));
    let ended = run(launcher(&proxy).args(["--", "date", "+%s%N"]));
    let late = milliseconds_after(ready, &ended.text());
    eprintln!("started {late:.1} ms after the proxy was ready");
    assert!(late < 500.0, "{late} ms after the proxy was ready");
    assert!(proxy.count(READY) > 3, "it is asked again and again");
    assert_eq!(proxy.count(QUIT), 1);
}

#[test]
fn the_command_starts_as_soon_as_a_proxy_listens_and_is_ready() {
    // An address of this process's own, where nobody else listens in the meantime.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = format!("127.{}.{middle}.{low}:2021", 64 | high);
    let mut command = bare_launcher();
    command.env("LAUNCHER_READY_URL", format!("http://{address}/healthz/ready"));
    let mut running = Running::start(command.args(["--", "date", "+%s%N"]));
    thread::sleep(Duration::from_millis(300));
    let ready = SystemTime::now();
    let _proxy = Proxy::listen(&address, |_| Answer::Status(200));
    let late = milliseconds_after(ready, &running.line());
    eprintln!("started {late:.1} ms after the proxy listened");
    assert!(late < 500.0, "{late} ms after the proxy listened");
    assert_eq!(running.end().code, 0);
}

#[test]
fn at_the_limit_the_command_starts_all_the_same_or_not_at_all() {
    let answers =
        [Answer::Status(503), Answer::Status(302), Answer::Silence, Answer::Close, Answer::Garbage, Answer::Drip];
    let cases = answers.into_iter().map(|answer| Proxy::start(move |_| answer).url("/healthz/ready"));
    for url in cases.chain([NOBODY.to_owned()]) {
        for (action, code, out, word) in
            [("start", 0, "on\n", "; going on without"), ("fail", 69, "", "), ending with 69")]
        {
            let mut command = bare_launcher();
            command.envs([("LAUNCHER_READY_URL", url.as_str()), ("LAUNCHER_READY_TIMEOUT", "150ms")]);
            command.env("LAUNCHER_TIMEOUT_ACTION", action);
            let begin = Instant::now();
            let ended = run(command.args(["--", "echo", "on"]));
            assert!(begin.elapsed() >= Duration::from_millis(150));
            assert_eq!((ended.code, ended.text().as_str()), (code, out), "{url} {action}: {}", ended.err);
            let said = ended.err.lines().next().unwrap();
            assert!(said.contains("the proxy is not ready after ") && said.ends_with(word), "{said:?}");
        }
    }
}

#[test]
fn a_limit_of_nothing_allows_for_one_look() {
    let proxy = Proxy::ready();
    let ended = run(launcher(&proxy)
        .envs([("LAUNCHER_READY_TIMEOUT", "0s"), ("LAUNCHER_TIMEOUT_ACTION", "fail")])
        .args(["--", "true"]));
    assert_eq!(ended.code, 0, "{}", ended.err);
}

#[test]
fn the_limit_ends_the_proxy_too_where_it_was_the_last_chance() {
    let proxy = Proxy::start(|line| Answer::Status(if line == READY { 503 } else { 200 }));
    let ended = run(launcher(&proxy)
        .envs([("LAUNCHER_READY_TIMEOUT", "50ms"), ("LAUNCHER_TIMEOUT_ACTION", "fail")])
        .args(["--", "true"]));
    assert_eq!(ended.code, 69);
    assert_eq!(proxy.count(QUIT), 1);
}

#[test]
fn localhost_is_found_on_either_loopback_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        // A machine without IPv6 has no second one.
        return;
    }
    // Not a port that another test can be given on the other address.
    let port = 20_000 + std::process::id() % 10_000;
    let proxy = Proxy::listen(&format!("[::1]:{port}"), |_| Answer::Status(200));
    let url = |path| format!("http://localhost:{port}{path}");
    let mut command = bare_launcher();
    command.envs([("LAUNCHER_READY_URL", url("/healthz/ready")), ("LAUNCHER_QUIT_URL", url("/quitquitquit"))]);
    assert_eq!(run(command.args(["--", "true"])).code, 0);
    assert_eq!(proxy.requests(), [READY, QUIT]);
}

#[test]
fn a_url_that_leads_elsewhere_is_refused_and_the_command_runs() {
    let mut command = bare_launcher();
    command.envs([("LAUNCHER_READY_URL", "http://192.0.2.1/ready"), ("LAUNCHER_QUIT_URL", "http://192.0.2.1/quit")]);
    let ended = run(command.args(["--", "echo", "ran"]));
    assert_eq!((ended.code, ended.text().as_str()), (0, "ran\n"));
    let refused = |name| {
        format!(
            "launcher: {name} is \"http://192.0.2.1/{}\": only this pod may be asked: expected localhost, 127.0.0.1 or [::1]; going on without",
            if name == "LAUNCHER_READY_URL" { "ready" } else { "quit" }
        )
    };
    let nobody = "launcher: not asking the proxy to quit (nobody to ask)".to_owned();
    assert_eq!(
        ended.err.lines().collect::<Vec<_>>(),
        [refused("LAUNCHER_READY_URL"), refused("LAUNCHER_QUIT_URL"), nobody]
    );
}

// The command

/// Files that cannot be run, and one that can, in a folder of the test's own.
fn programs(name: &str) -> PathBuf {
    let folder = support::folder(name);
    for (file, mode, text) in [
        ("plain", 0o644, "#!/bin/sh\n"),
        ("formless", 0o755, "echo run by a shell that nobody asked for\n"),
        ("uninterpreted", 0o755, "#!/no/such/interpreter\n"),
        // The header of a program for a machine that there never was.
        ("foreign", 0o755, "\u{7f}ELF\u{2}\u{1}\u{1}\0\0\0\0\0\0\0\0\0\u{2}\0\u{7e}\u{7e}\u{1}\0\0\0"),
        ("three", 0o755, "#!/bin/sh\nexit 3\n"),
    ] {
        fs::write(folder.join(file), text).unwrap();
        fs::set_permissions(folder.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    folder
}

#[test]
fn the_code_is_the_commands_or_what_a_shell_would_say() {
    let folder = programs("launcher-codes");
    let at = |name: &str| folder.join(name).display().to_string();
    let sh = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    for (command, code) in [
        (sh("exit 0"), 0),
        (sh("exit 3"), 3),
        (sh("exit 255"), 255),
        (sh("kill -KILL $$"), 137),
        (sh("kill -TERM $$"), 143),
        (sh("kill -SEGV $$"), 139),
        // A real-time signal.
        (sh("kill -37 $$"), 165),
        (vec![at("three")], 3),
        (vec!["three".to_owned()], 3),
        (vec![at("plain")], 126),
        (vec!["plain".to_owned()], 126),
        (vec![at("formless")], 126),
        (vec!["formless".to_owned()], 126),
        (vec![at("foreign")], 126),
        (vec![at("uninterpreted")], 126),
        (vec![folder.display().to_string()], 126),
        (vec![at("three/three")], 127),
        (vec![at("none")], 127),
        (vec!["no-such-command".to_owned()], 127),
        (vec![String::new()], 127),
    ] {
        for exec in [false, true] {
            if exec && code > 128 && code < 255 {
                // Then the launcher itself is what the signal ends.
                continue;
            }
            let mut path = folder.clone().into_os_string();
            path.push(":/usr/bin:/bin");
            let mut launcher = bare_launcher();
            launcher.env("PATH", path).args(exec.then_some("--exec")).arg("--").args(&command);
            let ended = run(&mut launcher);
            assert_eq!(ended.code, code, "{command:?}, exec {exec}: {}", ended.err);
            assert_eq!(ended.out, b"", "{command:?}");
            assert_eq!(ended.err.contains("cannot run"), [126, 127].contains(&code), "{command:?}: {}", ended.err);
        }
    }
}

#[test]
fn arguments_and_input_arrive_byte_by_byte() {
    let hostile: &[&[u8]] = &[
        b"plain",
        b"",
        b" ",
        b"it's",
        b"\"quoted\"",
        b"a\nb",
        b"-m",
        b"acc;loss",
        b"$(exit 9)",
        b"`exit 9`",
        b"\\",
        b"*",
        b"--",
        b"--exec",
        b"\xff\xfe",
        "\u{1f980}".as_bytes(),
        b"1>/var/log/katib/metrics.log 2>&1",
    ];
    for exec in [false, true] {
        let mut launcher = bare_launcher();
        launcher.args(exec.then_some("--exec")).args(["--", "printf", "%s\\0"]);
        let ended = run(launcher.args(hostile.iter().map(|argument| OsStr::from_bytes(argument))));
        let arrived: Vec<_> = ended.out.split(|byte| *byte == 0).collect();
        assert_eq!(arrived[..arrived.len() - 1], *hostile);
        let mut running = Running::start(bare_launcher().args(exec.then_some("--exec")).args(["--", "cat"]));
        running.child.stdin.as_mut().unwrap().write_all(b"in\xffput\n").unwrap();
        assert_eq!(running.end().out, b"in\xffput\n");
    }
}

/// What a command can see of how it was started: environment, signals, open files, folder.
fn circumstances(launcher: Option<&[&str]>) -> String {
    // The last by exec, since a shell holds signals back while it starts something.
    let script = r#"env -0 | tr '\0' '\n' | grep -v '^\(_\|LAUNCHER_.*\)=' | sort; ls "/proc/$$/fd"; pwd; umask; ulimit -a
        exec grep -E '^(Sig(Blk|Ign|Cgt)|ShdPnd)' /proc/self/status"#;
    let mut command = match launcher {
        None => Command::new("sh"),
        Some(flags) => {
            let mut command = bare_launcher();
            command.args(flags).args(["--", "sh"]);
            command
        }
    };
    command.env("INVALID", OsStr::from_bytes(b"\xff\n=")).env("EMPTY", "");
    let ended = Running::start(command.args(["-c", script])).end();
    format!("{}\n{}", ended.code, String::from_utf8_lossy(&ended.out))
}

#[test]
fn the_command_finds_everything_as_it_would_without_us() {
    let without = circumstances(None);
    assert_eq!(circumstances(Some(&[])), without);
    assert_eq!(circumstances(Some(&["--exec"])), without);
}

/// A program of a few lines, built into one file that needs no other.
pub fn static_program(folder: &Path, source: &str) -> PathBuf {
    let (file, program) = (folder.join("main.rs"), folder.join("program"));
    fs::write(&file, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let built = Command::new(rustc)
        .args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
        .args([&program, &file])
        .output()
        .expect("rustc runs, as it has for this test");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn no_shell_is_needed() {
    let folder = support::folder("launcher-static");
    let program = static_program(&folder, "fn main() { std::process::exit(7) }");
    for exec in [false, true] {
        let mut launcher = bare_launcher();
        launcher.env_clear().env("PATH", "").env("LAUNCHER_READY_URL", "");
        assert_eq!(run(launcher.args(exec.then_some("--exec")).arg("--").arg(&program)).code, 7);
        let mut launcher = bare_launcher();
        launcher.env("PATH", &folder).args(exec.then_some("--exec")).args(["--", "program"]);
        assert_eq!(run(&mut launcher).code, 7);
    }
}

#[test]
fn with_exec_the_command_is_the_process_that_was_started() {
    let proxy = Proxy::ready();
    let script = "echo $$ $PPID; tr '\\0' ' ' < /proc/$$/cmdline";
    let running = Running::start(launcher(&proxy).args(["--exec", "--", "sh", "-c", script, "name"]));
    let (own, ours) = (running.child.id(), std::process::id());
    let ended = running.end();
    assert_eq!((ended.code, ended.text()), (0, format!("{own} {ours}\nsh -c {script} name ")));
    assert_eq!(proxy.requests(), [READY], "who has become the command asks nobody to quit");

    let running = Running::start(launcher(&proxy).args(["--", "sh", "-c", "echo $PPID"]));
    let own = running.child.id();
    assert_eq!(running.end().text(), format!("{own}\n"), "without it the launcher is the parent");
}

#[test]
fn disabled_it_is_not_there() {
    for value in ["true", "1", "True"] {
        let proxy = Proxy::ready();
        let markers = support::folder("launcher-disabled");
        let mut command = launcher(&proxy);
        command.envs([("LAUNCHER_DISABLE", value), ("LAUNCHER_CONTAINER", "a"), ("LAUNCHER_READY_TIMEOUT", "wrong")]);
        command.env("LAUNCHER_MARKERS", &markers);
        let running = Running::start(command.args(["--", "sh", "-c", "echo $$; exit 3"]));
        let own = running.child.id();
        let ended = running.end();
        assert_eq!((ended.code, ended.text(), ended.err.as_str()), (3, format!("{own}\n"), ""));
        assert_eq!(proxy.requests(), [""; 0]);
        assert_eq!(fs::read_dir(&markers).unwrap().count(), 0);
    }
}

// Signals

#[test]
fn signals_reach_the_command() {
    let names = ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "CONT", "WINCH", "IO"];
    let script =
        "for name; do trap \"echo $name\" $name; done; trap 'exit 21' TERM; echo up; while :; do sleep 0.01; done";
    for exec in [false, true] {
        let mut launcher = launcher_with_signals(exec);
        let mut running = Running::start(launcher.args(["--", "sh", "-c", script, "sh"]).args(names));
        assert_eq!(running.line(), "up");
        for name in names {
            running.signal(format!("SIG{name}").parse().unwrap());
            assert_eq!(running.line(), name);
        }
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code, 21, "what the command makes of a signal is its own affair");
    }
}

#[test]
fn a_signal_that_ends_the_command_is_in_the_code() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGUSR1, 138), (Signal::SIGHUP, 129)]
    {
        let proxy = Proxy::ready();
        let mut launcher = launcher_with_signals(false);
        launcher.env("LAUNCHER_QUIT_URL", proxy.url("/quitquitquit"));
        let mut running = Running::start(launcher.args(["--", "sh", "-c", "echo up; exec sleep 1000"]));
        assert_eq!(running.line(), "up");
        running.signal(signal);
        assert_eq!(running.end().code, code);
        assert_eq!(proxy.count(QUIT), 1, "the proxy is to go also then");
    }
}

#[test]
fn a_signal_that_comes_first_ends_the_launcher_and_nothing_starts() {
    for (answer, policy, exec, quits) in [
        (Answer::Status(503), "Never", false, 1),
        (Answer::Status(503), "OnFailure", false, 0),
        (Answer::Status(503), "Never", true, 0),
        // It does not wait for an answer either.
        (Answer::Silence, "Never", false, 1),
    ] {
        let proxy = Proxy::start(move |line| if line == READY { answer } else { Answer::Status(200) });
        let file = support::folder("launcher-signal-first").join("started");
        let mut command = launcher(&proxy);
        command.env("LAUNCHER_RESTART_POLICY", policy).args(exec.then_some("--exec")).args(["--", "touch"]).arg(&file);
        let running = Running::start(&mut command);
        until("the proxy is asked", || proxy.count(READY) > 0);
        if matches!(answer, Answer::Status(_)) {
            for harmless in [Signal::SIGCONT, Signal::SIGWINCH, Signal::SIGURG, Signal::SIGCHLD, Signal::SIGTSTP] {
                running.signal(harmless);
            }
            let asked = proxy.count(READY);
            until("the proxy is asked after these", || proxy.count(READY) > asked + 1);
        }
        running.signal(Signal::SIGTERM);
        let begin = Instant::now();
        let ended = running.end();
        assert!(begin.elapsed() < Duration::from_millis(2500), "after {:?}", begin.elapsed());
        assert_eq!(ended.code, 143, "{}", ended.err);
        assert!(
            ended.err.contains("not starting the command (signal 15 came first), ending with 143"),
            "{}",
            ended.err
        );
        assert!(!file.exists());
        assert_eq!(proxy.count(QUIT), quits, "{policy}, exec {exec}");
    }
}

#[test]
fn a_signal_that_was_there_before_us_is_the_first() {
    for exec in [None, Some("--exec")] {
        let mut command = Command::new("env");
        command.args(["--block-signal=TERM", "sh", "-c", "kill -TERM $$; exec \"$@\"", "sh", LAUNCHER]).args(exec);
        command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
        let ended = run(command.args(["--", "echo", "ran"]));
        assert_eq!((ended.code, ended.out.len()), (143, 0), "{}", ended.err);
    }
}

#[test]
fn a_signal_is_not_lost_at_the_moment_of_the_start() {
    // Whenever it comes, it ends the launcher or the command; the limit of the test finds the one that it did not end.
    for round in 0..60 {
        let mut command = bare_launcher();
        command.args((round % 2 == 1).then_some("--exec")).args(["--", "sleep", "1000"]);
        let running = Running::start(&mut command);
        let begin = Instant::now();
        // From before the launcher's first step to after the command's.
        while begin.elapsed() < Duration::from_micros(50) * round {
            std::hint::spin_loop();
        }
        running.signal(Signal::SIGTERM);
        let (status, ..) = running.end_somehow();
        assert!(status.code() == Some(143) || status.signal() == Some(15), "round {round}: {status}");
    }
}

#[test]
fn as_process_1_it_reaps_orphans_and_passes_signals_on() {
    assert!(is_root(), "this test makes a PID namespace, for which it has to be root");
    // The inner shell's child is an orphan at once. When it has ended, process 1 has to take it, or its entry stays.
    let script = "[ $PPID = 1 ] || exit 8
        orphan=$(sh -c 'sleep 1000 >/dev/null & echo $!')
        [ -e /proc/$orphan ] || exit 9
        kill $orphan
        while [ -e /proc/$orphan ]; do sleep 0.01; done
        trap 'exit 21' TERM; echo up; while :; do sleep 0.01; done";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", LAUNCHER, "--", "sh", "-c", script]);
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let mut running = Running::start(&mut command);
    let line = running.line();
    assert_eq!(line, "up", "unshare, or the command: {:?}", running.end().err);
    kill(children(running.child.id())[0], Signal::SIGTERM).unwrap();
    assert_eq!(running.end().code, 21);
}

#[test]
fn what_the_terminal_sends_arrives_once() {
    // The terminal sends it to the whole group, and so to the command: passing it on would make two of one.
    let script = r#"n=0; trap 'n=$((n+1)); echo "INT $n"' INT; sleep 1000 & trap 'kill $!; echo "TERM $n"; exit 21' TERM; echo up
        while :; do wait; done"#;
    let quoted = format!("exec env --default-signal '{LAUNCHER}' -- sh -c '{}'", script.replace('\'', "'\\''"));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command", &quoted, "/dev/null"]);
    command.env("SHELL", "/bin/sh").envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let mut running = Running::start(&mut command);
    assert_eq!(running.line(), "up");
    // Often, since two that come at once can look like one.
    for count in 1..=50 {
        running.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        assert_eq!(running.line().trim_start_matches("^C"), format!("INT {count}"));
    }
    kill(children(running.child.id())[0], Signal::SIGTERM).unwrap();
    assert_eq!(running.line(), "TERM 50");
    assert_eq!(running.end().code, 21);
}

#[test]
fn a_standard_error_that_nobody_reads_does_no_harm() {
    let mut command = bare_launcher();
    command.envs([("LAUNCHER_READY_URL", NOBODY), ("LAUNCHER_READY_TIMEOUT", "10ms")]);
    command.args(["--", "sh", "-c", "exit 3"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn an_end_that_the_kernel_keeps_to_itself_is_noticed() {
    // Whoever ignores SIGCHLD hands that on, and then there is neither a signal nor a code.
    let mut command = Command::new("env");
    command.args(["--ignore-signal=CHLD", LAUNCHER, "--", "true"]);
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let ended = run(&mut command);
    assert_eq!(ended.code, 255);
    assert!(ended.err.contains("SIGCHLD is ignored"), "{}", ended.err);
}

// The end

#[test]
fn who_does_not_agree_to_quit_is_followed_by_the_next() {
    for first in [Answer::Status(403), Answer::Status(500), Answer::Close, Answer::Garbage, Answer::Silence] {
        let (agent, envoy) = (Proxy::start(move |_| first), Proxy::ready());
        let mut command = bare_launcher();
        command.env("LAUNCHER_QUIT_URL", format!("{},{}", agent.url("/quitquitquit"), envoy.url("/quitquitquit")));
        let ended = run(command.args(["--", "true"]));
        assert_eq!(ended.code, 0);
        assert_eq!((agent.requests(), envoy.requests()), (vec![QUIT.to_owned()], vec![QUIT.to_owned()]));
        assert!(ended.err.contains("asked the proxy to quit"), "{}", ended.err);
    }
    let envoy = Proxy::ready();
    let mut command = bare_launcher();
    command.env("LAUNCHER_QUIT_URL", format!("{NOBODY},{}", envoy.url("/quitquitquit")));
    assert_eq!(run(command.args(["--", "true"])).code, 0);
    assert_eq!(envoy.requests(), [QUIT]);
}

#[test]
fn a_proxy_that_is_gone_or_does_not_quit_changes_no_code() {
    let refusing = Proxy::start(|_| Answer::Status(403));
    let refused = format!("launcher: the proxy does not quit ({} answers 403)\n", refusing.url("/quitquitquit"));
    for code in [0, 3] {
        for (url, said_when_well, said_when_failed) in [
            (NOBODY.to_owned(), "launcher: not asking the proxy to quit (it is gone)\n", ""),
            (refusing.url("/quitquitquit"), refused.as_str(), refused.as_str()),
        ] {
            let mut command = bare_launcher();
            let ended = run(command.env("LAUNCHER_QUIT_URL", url).args(["--", "sh", "-c", &format!("exit {code}")]));
            assert_eq!(ended.code, code);
            assert_eq!(ended.err, if code == 0 { said_when_well } else { said_when_failed });
        }
    }
}

#[test]
fn the_last_words_of_a_failed_command_stay_the_last() {
    // With terminationMessagePolicy: FallbackToLogsOnError the end of the log is the termination message.
    let proxy = Proxy::ready();
    let ended =
        Running::start(launcher(&proxy).args(["--", "sh", "-c", "echo 'ValueError: loss is NaN' >&2; exit 1"])).end();
    assert_eq!(ended.code, 1);
    assert!(ended.err.ends_with("ValueError: loss is NaN\n"), "{}", ended.err);
    assert_eq!(proxy.count(QUIT), 1);
    // And the file of terminationMessagePath is the command's alone: we do not even know its name.
    let binary = fs::read(LAUNCHER).unwrap();
    assert!(!binary.windows(15).any(|bytes| bytes == b"termination-log"));
}

#[test]
fn whatever_stands_in_a_message_it_stays_one_line() {
    let mut command = bare_launcher();
    command.env("LAUNCHER_QUIT_URL", "http://localhost/\u{1b}[31m\nlauncher: forged");
    let ended = run(command.args(["--", "no\nsuch\u{1b}[31m\u{85}command"]));
    assert_eq!(ended.code, 127);
    assert_eq!(ended.err.lines().count(), 2, "{:?}", ended.err);
    assert!(!ended.err.contains('\u{1b}') && !ended.err.contains('\u{85}'), "{:?}", ended.err);
    let mut command = bare_launcher();
    command.envs([("LAUNCHER_CONTAINER", "a"), ("LAUNCHER_MARKERS", "/no\n\u{1b}[31mwhere")]);
    let ended = run(command.args(["--", "sh", "-c", "exit 3"]));
    assert!(ended.err.contains("(writing /no\\n\\u{1b}[31mwhere/a.finished: "), "{:?}", ended.err);
}

// Several containers

/// The containers of a pod, in a folder of the test's own.
struct Pod<'p> {
    proxy: &'p Proxy,
    markers: PathBuf,
    containers: &'static str,
    policy: &'static str,
}

impl<'p> Pod<'p> {
    fn new(proxy: &'p Proxy, name: &str, containers: &'static str, policy: &'static str) -> Self {
        Self { proxy, markers: support::folder(name), containers, policy }
    }

    fn container(&self, name: &str) -> Command {
        let mut command = launcher(self.proxy);
        command.envs([
            ("LAUNCHER_CONTAINER", name),
            ("LAUNCHER_CONTAINERS", self.containers),
            ("LAUNCHER_RESTART_POLICY", self.policy),
        ]);
        command.env("LAUNCHER_MARKERS", &self.markers);
        command
    }

    fn marker(&self, container: &str, state: &str) -> PathBuf {
        self.markers.join(format!("{container}.{state}"))
    }

    fn quits(&self) -> usize {
        self.proxy.count(QUIT)
    }
}

#[test]
fn the_last_container_to_finish_asks_the_proxy_to_quit() {
    // One life of a container after the other: who, its code, and how often the proxy has been asked to quit by then.
    type Lives = &'static [(&'static str, u8, usize)];
    let pods: &[(&str, &str, Lives)] = &[
        ("a", "Never", &[("a", 0, 1)]),
        ("a", "Never", &[("a", 3, 1)]),
        ("a", "OnFailure", &[("a", 3, 0), ("a", 3, 0), ("a", 0, 1)]),
        ("a", "Always", &[("a", 0, 0), ("a", 3, 0), ("a", 0, 0)]),
        ("a,b", "Never", &[("a", 0, 0), ("b", 0, 1)]),
        ("a,b", "Never", &[("b", 3, 0), ("a", 1, 1)]),
        ("a,b", "Never", &[("a", 127, 0), ("b", 0, 1)]),
        ("a,b", "OnFailure", &[("a", 0, 0), ("b", 0, 1)]),
        ("a,b", "OnFailure", &[("a", 3, 0), ("b", 0, 0), ("a", 3, 0), ("a", 0, 1)]),
        ("a,b", "OnFailure", &[("a", 3, 0), ("b", 3, 0), ("b", 0, 0), ("a", 0, 1)]),
        ("a,b", "Always", &[("a", 0, 0), ("b", 0, 0), ("a", 0, 0), ("b", 3, 0)]),
        ("a,b,c", "Never", &[("c", 0, 0), ("a", 0, 0), ("b", 0, 1)]),
        // A finished container that lives again has not finished; the kubelet does that after its sandbox was lost.
        ("a,b", "OnFailure", &[("a", 0, 0), ("a", 3, 0), ("b", 0, 0), ("a", 0, 1)]),
        // One that is named and has no launcher is waited for, for ever.
        ("a,unwrapped", "Never", &[("a", 0, 0)]),
    ];
    for (containers, policy, lives) in pods {
        let proxy = Proxy::ready();
        let pod = Pod::new(&proxy, "launcher-lives", containers, policy);
        for (index, (name, code, quits)) in lives.iter().enumerate() {
            let what = format!("{containers} {policy}: life {index}");
            let script = if *code == 127 { "no-such-command".to_owned() } else { format!("sh -c 'exit {code}'") };
            let words: Vec<_> = script.splitn(3, ' ').map(|word| word.trim_matches('\'')).collect();
            let ended = run(pod.container(name).arg("--").args(words));
            assert_eq!(ended.code, i32::from(*code), "{what}");
            assert_eq!(pod.quits(), *quits, "{what}: {}", ended.err);
            let is_final = *policy == "Never" || (*policy == "OnFailure" && *code == 0);
            assert_eq!(pod.marker(name, "finished").exists(), is_final, "{what}");
            assert!(!pod.marker(name, "started").exists(), "{what}");
        }
    }
}

#[test]
fn of_containers_that_finish_at_once_one_asks_and_none_too_early() {
    for round in 0..100 {
        let folder = support::folder("launcher-at-once");
        let (early, markers) = (Arc::new(Mutex::new(0)), folder.clone());
        let too_early = early.clone();
        let proxy = Proxy::start(move |line| {
            let finished = |name: &&str| markers.join(format!("{name}.finished")).exists();
            if line == QUIT && !["a", "b", "c"].iter().all(finished) {
                *too_early.lock().unwrap() += 1;
            }
            Answer::Status(200)
        });
        let pod = Pod { proxy: &proxy, markers: folder, containers: "a,b,c", policy: "Never" };
        // They wait for a line, so that they end together.
        let mut running: Vec<_> = ["a", "b", "c"]
            .map(|name| Running::start(pod.container(name).args(["--", "sh", "-c", "echo up; read -r line; exit 0"])))
            .into();
        for one in &mut running {
            assert_eq!(one.line(), "up");
        }
        for one in &mut running {
            one.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        for one in running {
            assert_eq!(one.end().code, 0);
        }
        let quits = pod.quits();
        assert!((1..=3).contains(&quits), "round {round}: {quits} of three have asked");
        assert_eq!(*early.lock().unwrap(), 0, "round {round}");
    }
}

#[test]
fn who_cannot_leave_word_says_so() {
    let proxy = Proxy::ready();
    let mut pod = Pod::new(&proxy, "launcher-nowhere", "a,b", "Never");
    pod.markers = pod.markers.join("none");
    let ended = run(pod.container("a").args(["--", "sh", "-c", "exit 3"]));
    assert_eq!((ended.code, pod.quits()), (3, 0));
    assert!(ended.err.contains("the other containers are not told (writing "), "{}", ended.err);
}

#[test]
fn a_container_starts_after_the_one_that_it_is_told_to_wait_for() {
    for exec in [false, true] {
        let proxy = Proxy::ready();
        let pod = Pod::new(&proxy, "launcher-gate", "collector", "Never");
        let mut train = pod.container("train");
        train.env("LAUNCHER_START_AFTER", "collector").args(exec.then_some("--exec"));
        let mut train = Running::start(train.args(["--", "echo", "training"]));
        until("the first wait is over", || proxy.count(READY) == 1);
        assert!(!pod.marker("train", "started").exists());
        let mut collector =
            Running::start(pod.container("collector").args(["--", "sh", "-c", "echo up; read -r line"]));
        assert_eq!(train.line(), "training");
        assert!(pod.marker("collector", "started").exists());
        assert_eq!(collector.line(), "up");
        assert_eq!(train.end().code, 0);
        // The proxy is the collector's as long as it runs.
        assert_eq!(pod.quits(), 0);
        assert_eq!(collector.end().code, 1, "read finds the end of its input");
        assert_eq!(pod.quits(), 1);
        assert!(!pod.marker("collector", "started").exists());

        // Who has come and gone need not be waited for.
        let mut late = pod.container("train");
        late.env("LAUNCHER_START_AFTER", "collector").args(exec.then_some("--exec"));
        assert_eq!(run(late.args(["--", "true"])).code, 0);
    }
}

#[test]
fn a_container_that_never_comes_is_waited_for_up_to_the_limit() {
    for (action, code, out) in [("start", 0, "on\n"), ("fail", 69, "")] {
        let proxy = Proxy::ready();
        let pod = Pod::new(&proxy, "launcher-gate-limit", "train", "Never");
        let mut command = pod.container("train");
        command.envs([
            ("LAUNCHER_START_AFTER", "collector"),
            ("LAUNCHER_START_AFTER_TIMEOUT", "50ms"),
            ("LAUNCHER_TIMEOUT_ACTION", action),
        ]);
        let ended = run(command.args(["--", "echo", "on"]));
        assert_eq!((ended.code, ended.text().as_str()), (code, out), "{}", ended.err);
        assert!(ended.err.contains("container collector is not ready after "), "{}", ended.err);
    }
}

#[test]
fn a_command_that_does_not_start_has_not_started() {
    for exec in [false, true] {
        let proxy = Proxy::ready();
        let pod = Pod::new(&proxy, "launcher-not-started", "a", "OnFailure");
        let ended = run(pod.container("a").args(exec.then_some("--exec")).args(["--", "no-such-command"]));
        assert_eq!(ended.code, 127);
        assert_eq!(fs::read_dir(&pod.markers).unwrap().count(), 0);
    }
}

// Installing

#[test]
fn it_copies_itself_for_everyone_and_as_often_as_asked() {
    let folder = support::folder("launcher-copy");
    let copy = folder.join("launcher");
    let install = || run(bare_launcher().arg("--copy-to").arg(&folder));
    let ended = install();
    assert_eq!((ended.code, ended.err), (0, format!("launcher: copied to {}\n", copy.display())));
    let same = |path: &Path| fs::read(path).unwrap() == fs::read(LAUNCHER).unwrap();
    assert!(same(&copy));
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);

    // Again, while it runs; the running one keeps its file.
    let inode = fs::metadata(&copy).unwrap().ino();
    let mut command = Command::new(&copy);
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let mut running = Running::start(command.args(["--", "sh", "-c", "echo up; read -r line; exit 3"]));
    assert_eq!(running.line(), "up");
    assert_eq!(install().code, 0);
    assert!(same(&copy) && fs::metadata(&copy).unwrap().ino() != inode);
    assert_eq!(running.end().code, 3);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left there");

    // From the copy, under a umask that would leave it to its owner.
    let script = format!("umask 077; exec '{0}' --copy-to '{1}'", copy.display(), folder.display());
    assert_eq!(run(Command::new("sh").args(["-c", &script])).code, 0);
    assert!(same(&copy));
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let folder = support::folder("launcher-copy-fails");
    let none = folder.join("none");
    let ended = run(bare_launcher().arg("--copy-to").arg(&none));
    assert_eq!(ended.code, 73);
    assert!(ended.err.contains("cannot copy to") && ended.err.contains("No such file"), "{}", ended.err);
    assert!(!none.exists());
    // A folder stands where the file is to go.
    fs::create_dir(folder.join("launcher")).unwrap();
    assert_eq!(run(bare_launcher().arg("--copy-to").arg(&folder)).code, 73);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn it_copies_itself_from_a_read_only_root() {
    assert!(is_root(), "this test mounts, for which it has to be root");
    let folder = support::folder("launcher-copy-read-only");
    let script = r#"mount -t tmpfs tmpfs "$2" && mount -o remount,ro,bind / || exit 90
        ! touch /launcher-test 2>/dev/null || exit 91
        "$1" --copy-to "$2" && "$2/launcher" -- sh -c 'exit 3'"#;
    let mut command = Command::new("unshare");
    // A root of its own first, so that it can be made read-only whatever it is.
    command
        .args(["--mount", "sh", "-c", &format!("mount --rbind / / && cd / && {script}"), "sh", LAUNCHER])
        .arg(&folder);
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let ended = Running::start(&mut command).end();
    assert_eq!(ended.code, 3, "unshare, or the launcher: {}", ended.err);
}

// The command line, and the code

#[test]
fn it_knows_nothing_of_the_library_but_its_contract() {
    // What it names ends up in a binary that is copied into every pod.
    for entry in fs::read_dir(support::root().join("src/bin/launcher")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut used = text.split("tenancy_fixer::").skip(1);
        assert!(used.all(|behind| behind.starts_with("launch::") || behind.starts_with("launch`")));
    }
}

#[test]
fn the_help_is_the_contract() {
    let ended = run(bare_launcher().arg("--help"));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    for variable in VARIABLES {
        assert!(ended.text().contains(&format!("  {}\n", variable.name)), "{} is not there", variable.name);
        assert!(ended.text().contains(variable.default) && ended.text().contains(variable.meaning));
    }
    assert!(ended.text().lines().all(|line| line.len() <= 125));
    let version = run(bare_launcher().arg("--version"));
    assert_eq!((version.code, version.text()), (0, format!("launcher {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn other_arguments_are_answered_by_64_and_start_nothing() {
    for arguments in [
        &[][..],
        &["--"],
        &["--exec"],
        &["--exec", "--"],
        &["echo", "no"],
        &["--exec", "echo", "no"],
        &["--wait", "--", "echo", "no"],
        &["--copy-to"],
        &["--copy-to", "/tmp", "/tmp"],
    ] {
        let ended = run(bare_launcher().args(arguments));
        assert_eq!((ended.code, ended.out.len()), (64, 0), "{arguments:?}");
        assert!(ended.err.ends_with("; launcher --help says more\n"), "{}", ended.err);
    }
}

#[test]
fn the_documentation_has_every_variable_with_its_default() {
    let page = fs::read_to_string(support::root().join("docs/sidecars.md")).unwrap();
    for variable in VARIABLES {
        let default = if variable.default.is_empty() { "none".to_owned() } else { format!("`{}`", variable.default) };
        let row = format!("| `{}` | {default} | ", variable.name);
        assert!(page.contains(&row), "docs/sidecars.md has no row that begins with {row}");
    }
    assert_eq!(page.matches("| `LAUNCHER_").count(), VARIABLES.len());
}
