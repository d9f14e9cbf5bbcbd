//! Commands by their names: what runs another one, what launches Python, what runs nothing.

/// Commands that run the command behind their options: their name, how many arguments of their own come before it, and the
/// letters of those options that have a value behind them.
pub(super) const WRAPPERS: &[(&str, usize, &str)] = &[
    ("exec", 0, "a"),
    ("command", 0, ""),
    ("nohup", 0, ""),
    ("time", 0, "fo"),
    ("nice", 0, "n"),
    ("ionice", 0, "cnp"),
    ("setsid", 0, ""),
    ("stdbuf", 0, "ioe"),
    ("env", 0, "uCS"),
    ("tini", 0, "ep"),
    ("dumb-init", 0, "r"),
    ("catatonit", 0, ""),
    ("docker-init", 0, "ep"),
    ("xvfb-run", 0, "efnpsw"),
    ("sudo", 0, "ugpC"),
    ("gosu", 1, ""),
    ("su-exec", 1, ""),
    ("timeout", 1, "ks"),
    ("launcher", 0, ""),
    ("strace", 0, "aeoOpPsSuUX"),
    ("xargs", 0, "aEILnPsd"),
];

/// Options of these that have a value behind them, by their long names.
pub(super) const VALUED: &[&str] = &[
    "--adjustment",
    "--auth-file",
    "--chdir",
    "--class",
    "--classdata",
    "--error",
    "--error-file",
    "--format",
    "--group",
    "--input",
    "--kill-after",
    "--output",
    "--rewrite",
    "--server-args",
    "--server-num",
    "--signal",
    "--unset",
    "--user",
    "--xauth-protocol",
];

/// Commands whose arguments have a Python script or module among them, or that run what a file of their own says: where none is among
/// them, what they run cannot be told.
pub(super) const LAUNCHERS: &[&str] = &[
    "ipython",
    "ipython3",
    "jupyter",
    "papermill",
    "streamlit",
    "nsys",
    "ncu",
    "py-spy",
    "perf",
    "parallel",
    "flock",
    "su",
    "runuser",
    "chroot",
    "make",
    "just",
    "task",
    "invoke",
    "tox",
    "nox",
    "dvc",
    "snakemake",
    "kedro",
    "supervisord",
    "pixi",
    "rye",
    "torchx",
    "bazel",
    "torchrun",
    "accelerate",
    "horovodrun",
    "mpirun",
    "mpiexec",
    "deepspeed",
    "uv",
    "poetry",
    "pipenv",
    "pdm",
    "hatch",
    "conda",
    "micromamba",
    "mamba",
    "coverage",
    "spark-submit",
    "composer",
    "ray",
    "srun",
    "numactl",
    "ts-node",
];

/// Modules of Python that do the same.
pub(super) const LAUNCHING_MODULES: &[&str] = &[
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
    "coverage",
    "cProfile",
    "pdb",
    "horovod.runner",
];

pub(super) const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "zsh", "ksh"];

/// Commands of a shell that run nothing.
pub(super) const HARMLESS: &[&str] = &[
    "alias", "declare", "false", "hash", "kill", "let", "popd", "pushd", "shopt", "type", "typeset", "cd", "set",
    "export", "echo", "printf", "test", "[", "true", ":", "mkdir", "exit", "trap", "wait", "sleep", "umask", "ulimit",
    "unset", "return", "shift", "read", "local", "cat", "cp", "mv", "rm", "ls", "chmod", "chown", "touch", "date",
    "tee", "grep", "sed", "tail", "head",
];
