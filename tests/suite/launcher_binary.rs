//! The launcher as it is in the image: built as the Dockerfile builds it, of its own sources and the contract's alone. It goes into every
//! tenant's pod, beside images that have nothing else.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::launcher::static_program;
use crate::support;

/// What the image's own check holds it to (tests/image/build).
const LARGEST: u64 = 1_500_000;
/// What makes a binary static, as the Dockerfile has it.
const STATIC: &str = "-C target-feature=+crt-static";

/// A section of our Cargo.toml, with its name.
fn section(name: &str) -> String {
    let manifest = fs::read_to_string(support::root().join("Cargo.toml")).unwrap();
    let begin = manifest.find(&format!("\n[{name}]\n")).unwrap_or_else(|| panic!("Cargo.toml has no [{name}]"));
    let section = &manifest[begin + 1..];
    section[..section.find("\n\n").unwrap_or(section.len())].to_owned()
}

/// Builds it in a package of its own, where there is nothing else to be linked in.
fn build() -> PathBuf {
    let (root, folder) = (support::root(), support::root().join("target/launcher-alone"));
    fs::create_dir_all(&folder).unwrap();
    let nix = section("dependencies");
    let nix = nix.lines().find(|line| line.starts_with("nix = ")).expect("its one crate");
    let mut manifest = format!(
        "[workspace]\n\n[package]\nname = \"tenancy-fixer\"\nversion = \"{}\"\nedition = \"2024\"\n",
        env!("CARGO_PKG_VERSION")
    );
    write!(manifest, "\n[lib]\nname = \"tenancy_fixer\"\npath = \"lib.rs\"\n\n[[bin]]\nname = \"launcher\"\n").unwrap();
    write!(manifest, "path = \"{}/src/bin/launcher/main.rs\"\n\n", root.display()).unwrap();
    write!(manifest, "[dependencies]\n{nix}\n\n{}\n", section("profile.release")).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let library = format!("#[path = \"{}/src/launch/mod.rs\"]\npub mod launch;\n", root.display());
    fs::write(folder.join("lib.rs"), library).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let host =
        Command::new(rustc).args(["--print", "host-tuple"]).output().expect("rustc runs, as it has for this test");
    let host = String::from_utf8(host.stdout).unwrap().trim().to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--offline", "--target", &host, "--target-dir", "target"])
        .current_dir(&folder)
        .env("RUSTFLAGS", STATIC)
        .output()
        .expect("cargo runs, as it has for this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("target").join(host).join("release/launcher")
}

/// Whether a program of 64 bits names another one that has to load it (`PT_INTERP` among the program headers of ELF).
fn has_loader(program: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        program[at..at + length].iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte))
    };
    assert_eq!(&program[..5], b"\x7fELF\x02", "a program of 64 bits");
    let (begin, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|header| number(begin + header * size, 4) == 3)
}

#[test]
fn it_is_small_and_needs_nothing_beside_it() {
    let read = |file: &str| fs::read_to_string(support::root().join(file)).unwrap();
    assert!(read("Dockerfile").contains(&format!("RUSTFLAGS=\"{STATIC} ")), "the image's is built otherwise");
    assert!(read("tests/image/build").contains(&format!("\nmax_launcher_bytes={LARGEST}\n")));
    let launcher = build();
    let size = fs::metadata(&launcher).unwrap().len();
    eprintln!("the launcher has {size} bytes");
    assert!(size < LARGEST, "{size} bytes");
    assert!(!has_loader(&fs::read(&launcher).unwrap()));
    assert!(has_loader(&fs::read(std::env::current_exe().unwrap()).unwrap()), "this test's own program has one");

    // A root with nothing in it but two programs, as root.
    let folder = support::folder("launcher-alone");
    let program = static_program(&folder, "fn main() { std::process::exit(7) }");
    let root = folder.join("root");
    fs::create_dir_all(&root).unwrap();
    fs::copy(&launcher, root.join("launcher")).unwrap();
    fs::copy(&program, root.join("program")).unwrap();
    symlink("/nowhere", root.join("broken")).unwrap();
    let run = |arguments: &[&str]| run_in(&root, &[&["/launcher"], arguments].concat());
    for command in [&["--", "/program"][..], &["--exec", "--", "/program"], &["--", "program"]] {
        assert_eq!(run(command), 7, "{command:?}");
    }
    assert_eq!(run(&["--", "/broken"]), 127);
}

fn run_in(root: &Path, arguments: &[&str]) -> i32 {
    let mut command = Command::new("chroot");
    command.arg(root).args(arguments).env_clear().env("PATH", "/:/usr/sbin:/usr/bin");
    command.envs([("LAUNCHER_READY_URL", ""), ("LAUNCHER_QUIT_URL", "")]);
    let output = command.output().expect("chroot runs");
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.code().unwrap_or_else(|| panic!("{arguments:?} is ended by a signal: {said}"))
}
