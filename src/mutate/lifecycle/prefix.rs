//! What stands before a container's own command.

use std::sync::LazyLock;

use super::Lifecycle;
use crate::cluster::names;
use crate::launch::{EXEC_FLAG, SEPARATOR};

/// The launcher in POSIX shell, for images that have one. The kubelet expands `$(NAME)` and `$$` in a command: it has neither.
static SCRIPT: LazyLock<String> = LazyLock::new(|| {
    let lines = include_str!("launcher.sh").lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
});

/// Katib keeps a command that begins with one of these, and puts the first before any other (`wrapWorkerContainer`).
const SHELLS: [[&str; 2]; 2] = [["sh", "-c"], ["bash", "-c"]];

/// The words of one strategy.
pub(super) struct Prefix {
    words: Vec<&'static str>,
}

impl Prefix {
    pub(super) fn of(lifecycle: Lifecycle) -> Self {
        let words = match lifecycle {
            Lifecycle::Shell => vec!["sh", "-c", SCRIPT.as_str(), "launcher"],
            Lifecycle::Launcher | Lifecycle::Off => vec![names::LAUNCHER_PATH],
        };
        Self { words }
    }

    /// Whether it has to be brought into the pod.
    pub(super) fn is_a_file(&self) -> bool {
        self.words == [names::LAUNCHER_PATH]
    }

    /// All words before the command.
    pub(super) fn words(&self, exec: bool) -> Vec<&'static str> {
        self.words.iter().copied().chain(exec.then_some(EXEC_FLAG)).chain([SEPARATOR]).collect()
    }

    /// The command behind it, or the command as it is where we have not been.
    pub(super) fn strip<'c, 'w>(&self, command: &'c [&'w str]) -> &'c [&'w str] {
        let found = [true, false].into_iter().find_map(|exec| command.strip_prefix(&*self.words(exec)));
        found.unwrap_or(command)
    }

    /// What Katib would have made of the command had we not been before it. It makes one text of command and arguments by
    /// joining them with spaces, and so of our words too. `None` where it has not.
    pub(super) fn strip_joined(&self, command: &[&str], text: &str) -> Option<(Vec<String>, String)> {
        let shell = SHELLS.into_iter().find(|shell| command == shell)?;
        let words = self.words(false);
        // A prefix that begins with a shell has lent it to Katib.
        let joined = words.strip_prefix(&shell[..]).unwrap_or(&words).join(" ");
        let own = text.strip_prefix(&*joined)?.strip_prefix(' ')?;
        let owned = |shell: [&str; 2]| shell.map(str::to_owned).to_vec();
        let with_shell =
            SHELLS.into_iter().find_map(|shell| Some((shell, own.strip_prefix(&*shell.join(" "))?.strip_prefix(' ')?)));
        Some(match with_shell {
            Some((shell, rest)) => (owned(shell), rest.to_owned()),
            None => (owned(SHELLS[0]), own.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_comes_off_again() {
        for lifecycle in [Lifecycle::Launcher, Lifecycle::Shell] {
            let prefix = Prefix::of(lifecycle);
            for exec in [true, false] {
                let command = [prefix.words(exec), vec!["--", "train"]].concat();
                assert_eq!(prefix.strip(&command), ["--", "train"]);
            }
            assert_eq!(prefix.strip(&["sh", "-c", "train"]), ["sh", "-c", "train"]);
        }
    }

    /// As katib v0.19 joins what it finds.
    fn katib(command: &[&str]) -> (Vec<String>, String) {
        let (shell, rest) =
            if matches!(command, ["sh" | "bash", "-c", ..]) { command.split_at(2) } else { (&SHELLS[0][..], command) };
        (shell.iter().map(|word| (*word).to_owned()).collect(), format!("{} && echo completed", rest.join(" ")))
    }

    #[test]
    fn a_command_that_katib_has_joined_after_us_is_the_one_without_us() {
        for lifecycle in [Lifecycle::Launcher, Lifecycle::Shell] {
            let prefix = Prefix::of(lifecycle);
            for own in [
                &["python", "train.py"][..],
                &["sh", "-c", "train; test"],
                &["bash", "-c", "train"],
                &["/bin/sh", "-c", "a"],
            ] {
                let (command, text) = katib(&[prefix.words(false), own.to_vec()].concat());
                let words: Vec<_> = command.iter().map(String::as_str).collect();
                assert_eq!(prefix.strip_joined(&words, &text), Some(katib(own)), "{lifecycle} {own:?}");
                let (command, text) = katib(own);
                let words: Vec<_> = command.iter().map(String::as_str).collect();
                assert_eq!(prefix.strip_joined(&words, &text), None);
            }
        }
    }

    #[test]
    fn the_kubelet_leaves_the_script_as_it_is() {
        assert!(!SCRIPT.contains("$(") && !SCRIPT.contains("$$"));
    }
}
