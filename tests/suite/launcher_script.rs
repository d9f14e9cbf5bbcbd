//! The launcher in POSIX shell, as it goes into pods: the same as the program does, in the shells that images have as `sh`.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::launcher::{Ended, Proxy, QUIT, READY, Running, until};
use crate::node::expand;
use crate::rendered::{Collector, Rendered, Sidecar, Strategy, container};
use crate::support;

/// What stands behind `sh -c` in a pod, as the kubelet hands it on.
fn script() -> String {
    let containers = vec![container("work", &["true"], &[])];
    let rendered =
        Rendered { sidecar: Sidecar::Classic, collector: Collector::None, containers, ..Rendered::default() };
    let pod = Strategy::Shell.ours(&rendered.pod());
    let command = &pod["spec"]["containers"][0]["command"];
    assert_eq!((&command[0], &command[1], &command[3]), (&json!("sh"), &json!("-c"), &json!("launcher")));
    expand(command[2].as_str().unwrap(), &std::collections::BTreeMap::new())
}

#[derive(Clone, Copy, Debug)]
enum Shell {
    /// Debian's and Ubuntu's.
    Dash,
    /// That of Red Hat's distributions, where it is called `sh`.
    Bash,
    /// That of Alpine and of busybox's own image, with nothing but busybox's programs.
    Busybox,
}

impl Shell {
    const ALL: [Self; 3] = [Self::Dash, Self::Bash, Self::Busybox];

    fn command(self) -> Command {
        let mut command = Command::new(match self {
            Self::Dash => "/usr/bin/dash",
            Self::Bash => "/usr/bin/bash",
            Self::Busybox => "/usr/bin/busybox",
        });
        command.arg0("sh").arg("-c").arg(script()).arg("launcher").env_clear();
        command.env("PATH", if let Self::Busybox = self { busybox() } else { PathBuf::from("/usr/bin:/bin") });
        command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
        command
    }

    /// Beside a proxy.
    fn beside(self, proxy: &Proxy) -> Command {
        let mut command = self.command();
        command.env("LAUNCHER_READY_URL", proxy.url("/healthz/ready"));
        command.env("LAUNCHER_QUIT_URL", format!("http://127.0.0.1:1/quitquitquit,{}", proxy.url("/quitquitquit")));
        command
    }
}

/// A folder with programs of these names, which lead elsewhere.
fn folder_of(name: &str, programs: &[(&str, &Path)]) -> PathBuf {
    let folder = support::root().join("target/test").join(name);
    fs::create_dir_all(&folder).unwrap();
    for (name, program) in programs {
        assert!(program.exists(), "{} is not there; tests/setup installs it", program.display());
        // Another test may have been here first.
        let _ = symlink(program, folder.join(name));
    }
    folder
}

fn busybox() -> PathBuf {
    let names = ["sh", "cat", "date", "echo", "expr", "kill", "printf", "rm", "sleep", "true", "wget"];
    folder_of("busybox-image", &names.map(|name| (name, Path::new("/usr/bin/busybox"))))
}

fn run(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// In every shell at once: most of it is waiting.
fn everywhere(test: impl Fn(Shell) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        for shell in Shell::ALL {
            thread::Builder::new().name(format!("{shell:?}")).spawn_scoped(scope, move || test(shell)).unwrap();
        }
    });
}

#[test]
fn a_proxy_is_waited_for_and_asked_to_quit() {
    everywhere(|shell| {
        let proxy = Proxy::ready();
        let ended = run(shell.beside(&proxy).args(["--", "echo", "hello"]));
        assert_eq!((ended.code, ended.text().as_str(), ended.err.as_str()), (0, "hello\n", ""), "{shell:?}");
        assert_eq!(proxy.requests(), [READY, QUIT], "{shell:?}");
    });
}

#[test]
fn arguments_and_input_arrive_as_they_are() {
    let words =
        ["a b", "it's", "\"two\"", "line\nbreak", "$HOME", "$(id)", "`id`", "$$", "*", "", "-n", "--", "\\", "ä€😀"];
    everywhere(|shell| {
        for exec in [None, Some("--exec")] {
            let ended = run(shell.command().args(exec).args(["--", "printf", "<%s>"]).args(words));
            let expected = words.map(|word| format!("<{word}>")).concat();
            assert_eq!((ended.code, ended.text()), (0, expected), "{shell:?}");
        }
        let file = support::root().join("Cargo.toml");
        let mut command = shell.command();
        command.args(["--", "cat"]).stdin(fs::File::open(&file).unwrap());
        assert_eq!(command.output().unwrap().stdout, fs::read(&file).unwrap(), "{shell:?}");
    });
}

#[test]
fn the_code_is_the_commands() {
    everywhere(|shell| {
        for (words, code) in [
            (&["sh", "-c", "exit 0"][..], 0),
            (&["sh", "-c", "exit 3"], 3),
            (&["no-such-program"], 127),
            (&["/proc/version"], 126),
            (&["sh", "-c", "kill -KILL $$"], 137),
        ] {
            let proxy = Proxy::ready();
            assert_eq!(run(shell.beside(&proxy).arg("--").args(words)).code, code, "{shell:?} {words:?}");
            assert_eq!(proxy.count(QUIT), 1, "{shell:?} {words:?}");
        }
        assert_eq!(run(shell.command().args(["--exec", "--", "no-such-program"])).code, 127, "{shell:?}");
    });
}

#[test]
fn the_signal_that_ends_a_container_reaches_the_command() {
    everywhere(|shell| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let proxy = Proxy::ready();
            let text = "trap 'echo told; exit 5' TERM; echo on; while :; do sleep 0.05; done";
            let mut running = Running::start(shell.beside(&proxy).args(["--", "sh", "-c", text]));
            assert_eq!(running.line(), "on");
            running.signal(signal);
            let ended = running.end();
            assert_eq!((ended.code, ended.text().as_str()), (5, "told\n"), "{shell:?}");
            assert_eq!(proxy.count(QUIT), 1);
        }
    });
}

/// Also where the command needs a second one, or ends by it.
#[test]
fn a_signal_does_not_end_the_wait_for_the_command() {
    everywhere(|shell| {
        let text = "trap 'trap - TERM; echo not yet' TERM; echo on; while :; do sleep 0.05; done";
        let mut running = Running::start(shell.command().args(["--", "sh", "-c", text]));
        assert_eq!(running.line(), "on");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.line(), "not yet");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code, 143, "{shell:?}");
    });
}

#[test]
fn a_signal_that_comes_first_starts_nothing_and_lets_the_proxy_go() {
    everywhere(|shell| {
        let proxy = Proxy::start(|line| crate::launcher::Answer::Status(if line == READY { 503 } else { 200 }));
        let running = Running::start(shell.beside(&proxy).args(["--", "echo", "started"]));
        until("the proxy is asked", || proxy.count(READY) > 0);
        running.signal(Signal::SIGTERM);
        let ended = running.end();
        assert_eq!((ended.code, ended.text().as_str()), (143, ""), "{shell:?}");
        assert_eq!(proxy.count(QUIT), 1);
    });
}

#[test]
fn at_the_limit_the_command_starts_all_the_same_or_not_at_all() {
    everywhere(|shell| {
        for (action, code, out, word) in [("start", 0, "on\n", "going on without"), ("fail", 69, "", "ending with 69")]
        {
            let proxy = Proxy::start(|line| crate::launcher::Answer::Status(if line == READY { 503 } else { 200 }));
            let mut command = shell.beside(&proxy);
            command.envs([("LAUNCHER_READY_TIMEOUT", "500ms"), ("LAUNCHER_TIMEOUT_ACTION", action)]);
            let ended = run(command.args(["--", "echo", "on"]));
            assert_eq!((ended.code, ended.text().as_str()), (code, out), "{shell:?} {action}: {}", ended.err);
            assert!(
                ended.err.starts_with("launcher: the proxy is not ready") && ended.err.contains(word),
                "{}",
                ended.err
            );
            assert_eq!(proxy.count(QUIT), 1, "{shell:?} {action}");
        }
    });
}

#[test]
fn the_last_container_to_finish_asks_the_proxy_to_quit() {
    everywhere(|shell| {
        let proxy = Proxy::ready();
        let markers = support::folder(&format!("script-markers-{shell:?}"));
        let container = |name: &str, policy: &str| {
            let mut command = shell.beside(&proxy);
            command.env("LAUNCHER_MARKERS", &markers).env("LAUNCHER_CONTAINER", name);
            command.envs([("LAUNCHER_CONTAINERS", "a,b"), ("LAUNCHER_RESTART_POLICY", policy)]);
            command
        };
        let is_there = |file: &str| markers.join(file).exists();
        let mut long = Running::start(container("a", "OnFailure").args(["--", "sh", "-c", "echo on; read end"]));
        assert_eq!(long.line(), "on");
        until("the others are told", || is_there("a.started"));
        // One that fails under this policy starts again.
        assert_eq!(run(container("b", "OnFailure").args(["--", "sh", "-c", "exit 3"])).code, 3);
        assert!(!is_there("b.finished") && !is_there("b.started"), "{shell:?}");
        assert_eq!(run(container("b", "OnFailure").args(["--", "true"])).code, 0);
        assert!(is_there("b.finished"), "{shell:?}");
        assert_eq!(proxy.count(QUIT), 0, "{shell:?}");
        // The end of its input ends it: `read` finds none, and gives 1, so it would start again.
        assert_eq!(long.end().code, 1);
        assert!(!is_there("a.finished"), "{shell:?}");
        assert_eq!(proxy.count(QUIT), 0, "{shell:?}");
        assert_eq!(run(container("a", "OnFailure").args(["--", "true"])).code, 0);
        assert_eq!(proxy.count(QUIT), 1, "{shell:?}");
        assert_eq!(run(container("a", "Always").args(["--", "true"])).code, 0);
        assert_eq!(proxy.count(QUIT), 1, "{shell:?}: with Always nothing is the end");
    });
}

#[test]
fn a_container_starts_after_another_one() {
    everywhere(|shell| {
        let markers = support::folder(&format!("script-after-{shell:?}"));
        let container = |name: &str| {
            let mut command = shell.command();
            command.env("LAUNCHER_MARKERS", &markers).env("LAUNCHER_CONTAINER", name);
            command
        };
        let mut second = container("train");
        second.envs([("LAUNCHER_START_AFTER", "collector"), ("LAUNCHER_START_AFTER_DELAY", "1s")]);
        let mut second = Running::start(second.args(["--exec", "--", "sh", "-c", "echo started"]));
        thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        let first = Running::start(container("collector").args(["--exec", "--", "cat"]));
        assert_eq!(second.line(), "started", "{shell:?}");
        assert!(begin.elapsed() >= Duration::from_secs(1), "{shell:?}: {:?}", begin.elapsed());
        assert_eq!((second.end().code, first.end().code), (0, 0));
    });
}

/// Whoever cannot write there runs all the same.
#[test]
fn a_folder_that_cannot_be_written_to_ends_nothing() {
    everywhere(|shell| {
        for exec in [None, Some("--exec")] {
            let mut command = shell.command();
            command.envs([("LAUNCHER_MARKERS", "/proc/nowhere"), ("LAUNCHER_CONTAINER", "a")]);
            let ended = run(command.args(exec).args(["--", "echo", "ran"]));
            assert_eq!((ended.code, ended.text().as_str()), (0, "ran\n"), "{shell:?}: {}", ended.err);
            assert!(ended.err.contains("launcher: the other containers are not told"), "{shell:?}: {}", ended.err);
        }
    });
}

#[test]
fn with_exec_the_command_is_the_process_that_was_started() {
    everywhere(|shell| {
        let proxy = Proxy::ready();
        let mut running = Running::start(shell.beside(&proxy).args(["--exec", "--", "sh", "-c", "echo $$"]));
        let pid = running.pid().to_string();
        assert_eq!(running.line(), pid, "{shell:?}");
        assert_eq!(running.end().code, 0);
        assert_eq!(proxy.requests(), [READY], "{shell:?}: somebody else asks it to quit");
    });
}

#[test]
fn disabled_it_is_not_there() {
    everywhere(|shell| {
        let proxy = Proxy::ready();
        let mut command = shell.beside(&proxy);
        let mut running =
            Running::start(command.env("LAUNCHER_DISABLE", "true").args(["--", "sh", "-c", "echo $$; exit 3"]));
        let pid = running.pid().to_string();
        assert_eq!(running.line(), pid, "{shell:?}");
        assert_eq!((running.end().code, proxy.requests().len()), (3, 0), "{shell:?}");
    });
}

/// Any one of these is enough: a proxy that is not ready is told from one that is, and POST from GET.
#[test]
fn whatever_an_image_has_to_ask_with_is_used() {
    let tools = ["sh", "date", "echo", "expr", "rm", "sleep", "true"];
    thread::scope(|scope| {
        for client in ["curl", "wget", "python3"] {
            scope.spawn(move || {
                let ready = Instant::now() + Duration::from_millis(1500);
                let proxy = Proxy::start(move |line| {
                    let is_ready = line != READY || Instant::now() >= ready;
                    crate::launcher::Answer::Status(if is_ready { 200 } else { 503 })
                });
                let usual = |name| PathBuf::from(format!("/usr/bin/{name}"));
                let programs: Vec<_> = tools.iter().chain([&client]).map(|name| (*name, usual(name))).collect();
                let programs: Vec<_> = programs.iter().map(|(name, path)| (*name, path.as_path())).collect();
                let mut command = Shell::Dash.beside(&proxy);
                command.env("PATH", folder_of(&format!("image-with-{client}"), &programs));
                let ended = run(command.args(["--", "echo", "on"]));
                assert_eq!((ended.code, ended.text().as_str(), ended.err.as_str()), (0, "on\n", ""), "{client}");
                assert!(Instant::now() >= ready, "{client}: it has waited");
                assert!(proxy.count(READY) > 1, "{client}");
                assert_eq!(proxy.count(QUIT), 1, "{client}");
            });
        }
    });
}

/// Nothing to ask with: then the predecessor's five seconds, and the proxy is nobody's to end.
#[test]
fn without_anything_to_ask_with_time_has_to_do() {
    let proxy = Proxy::ready();
    let tools = ["sh", "date", "echo", "expr", "rm", "sleep", "true"]
        .map(|name| (name, PathBuf::from(format!("/usr/bin/{name}"))));
    let tools: Vec<_> = tools.iter().map(|(name, path)| (*name, path.as_path())).collect();
    let mut command = Shell::Dash.beside(&proxy);
    command.env("PATH", folder_of("image-with-nothing", &tools));
    let begin = Instant::now();
    let ended = run(command.args(["--", "echo", "on"]));
    assert_eq!((ended.code, ended.text().as_str()), (0, "on\n"));
    assert!(begin.elapsed() >= Duration::from_secs(5));
    let said: Vec<_> = ended.err.lines().collect();
    assert_eq!(
        said,
        [
            "launcher: no curl, wget or python3 to ask the proxy, giving it 5 s",
            "launcher: the proxy could not be asked to quit"
        ]
    );
}

/// As the launcher reads them, to the second.
#[test]
fn durations_are_understood() {
    let functions = script();
    let seconds = functions.split("within() {").next().unwrap();
    let seconds = &seconds[seconds.find("seconds() {").unwrap()..];
    for shell in Shell::ALL {
        for (text, expected) in [
            ("60s", "60"),
            ("0s", "0"),
            ("1m30s", "90"),
            ("2m", "120"),
            ("500ms", "1"),
            ("", "7"),
            ("soon", "7"),
            ("s", "7"),
            ("1h", "7"),
        ] {
            let mut command = shell.command();
            let program = command.get_program().to_owned();
            command = Command::new(program);
            command.arg0("sh").arg("-c").arg(format!("{seconds} seconds \"$1\" 7")).args(["sh", text]);
            assert_eq!(run(&mut command).text().trim(), expected, "{shell:?} {text:?}");
        }
    }
}
