//! `tenancy-fixer gate`: the same judgement from the command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tenancy_fixer::images::Digest;

use crate::layer::{Layer, Packed};
use crate::registry::{Door, Image, Registry};
use crate::server::block_on;
use crate::support;

const LOGS: &str = "import mlflow\nmlflow.autolog()\n";

/// The exit code, and what is printed.
fn gate(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
    let output = command.arg("gate").args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn config() -> Value {
    json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["python", "train.py"], "WorkingDir": "/app"}})
}

fn layers(text: &str) -> Vec<Packed> {
    vec![Layer::new().wheel("mlflow_skinny").gzip(), Layer::of(&[("/app/train.py", text)]).zstd()]
}

/// Writes an image as `skopeo copy ... oci:FOLDER` does.
fn layout(folder: &Path, layers: &[Packed]) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8]| {
        let digest = Digest::of(content);
        std::fs::write(blobs.join(digest.as_str().trim_start_matches("sha256:")), content).unwrap();
        digest.as_str().to_owned()
    };
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": put(&layer.content), "size": layer.content.len()}))
        .collect();
    let config = put(config().to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 1}});
    let manifest = put(manifest.to_string().as_bytes());
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": 1});
    std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes an image as `docker save` before version 25 does, a layer being a link to another one's.
fn saved(file: &Path, layers: Vec<Packed>) {
    let mut archive = tar::Builder::new(std::fs::File::create(file).unwrap());
    let mut put = |name: &str, content: &[u8]| {
        let mut header = crate::layer::header(tar::EntryType::Regular, content.len());
        archive.append_data(&mut header, name, content).unwrap();
    };
    put("config.json", config().to_string().as_bytes());
    let mut names = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        names.push(format!("{number}/layer.tar"));
        put(&names[number], &layer.content);
    }
    names.push("link/layer.tar".to_owned());
    put(
        "manifest.json",
        json!([{"Config": "config.json", "RepoTags": ["a:b"], "Layers": names}]).to_string().as_bytes(),
    );
    let mut header = crate::layer::header(tar::EntryType::Symlink, 0);
    archive.append_link(&mut header, "link/layer.tar", "../1/layer.tar").unwrap();
    archive.finish().unwrap();
}

fn folder(name: &str) -> PathBuf {
    support::folder(&format!("gate-command-{name}"))
}

#[test]
fn images_on_this_machine_are_judged() {
    let folder = folder("local");
    for (name, text, code, says) in [
        ("good", LOGS, 0, "mlflow.autolog (line 2)"),
        ("bad", "import numpy", 1, "nothing logs to MLflow in /app/train.py"),
    ] {
        let oci = folder.join(name);
        layout(&oci, &layers(text));
        let (found, text_of_folder) = gate(&[&format!("oci:{}", oci.display())]);
        assert_eq!(found, code, "{text_of_folder}");
        assert!(text_of_folder.contains(says) && text_of_folder.contains("mlflow-skinny 3.17.2"), "{text_of_folder}");
        let archive = folder.join(format!("{name}.tar"));
        saved(&archive, layers(text));
        let (found, text) = gate(&[archive.to_str().unwrap()]);
        assert_eq!(found, code, "{text}");
        // The whole layout as one archive.
        let archive = folder.join(format!("{name}-oci.tar"));
        let mut builder = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        builder.append_dir_all(".", &oci).unwrap();
        builder.finish().unwrap();
        assert_eq!(gate(&[archive.to_str().unwrap()]).0, code);
    }
    let job = folder.join("job.yaml");
    let manifest = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"template": {"spec": {
        "containers": [{"name": "train", "image": "elsewhere", "command": ["sleep", "1"]}]}}}});
    std::fs::write(&job, manifest.to_string()).unwrap();
    let image = format!("oci:{}", folder.join("good").display());
    let (code, text) = gate(&[&image, "-f", job.to_str().unwrap()]);
    assert!(code == 1 && text.contains("container train") && text.contains("it runs nothing that could log"), "{text}");
    let (code, text) = gate(&[&image, "-f", job.to_str().unwrap(), "--gate-require", "package"]);
    assert_eq!(code, 0, "{text}");
}

/// On a terminal a bar shows the layers, and is gone when the answer is there; elsewhere there is none.
#[test]
fn a_terminal_sees_how_far_it_has_come() {
    let folder = folder("bar");
    let image = format!("oci:{}", folder.join("image").display());
    layout(&folder.join("image"), &layers("import numpy"));
    let program = env!("CARGO_BIN_EXE_tenancy-fixer");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &format!("'{program}' gate '{image}'"), "/dev/null"])
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("script runs; Debian has it in bsdutils");
    let seen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{seen}");
    let bar = seen.find("layer 1 of 2").unwrap_or_else(|| panic!("no bar: {seen:?}"));
    let answer = seen.find(": no").unwrap_or_else(|| panic!("no answer: {seen:?}"));
    assert!(bar < answer && !seen[answer..].contains("layer "), "{seen:?}");
    let (code, text) = gate(&[&image]);
    assert!(code == 1 && !text.contains("layer 1 of") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn what_cannot_be_read_is_neither_yes_nor_no() {
    let folder = folder("wrong");
    let broken = folder.join("broken");
    layout(&broken, &layers(LOGS));
    for entry in std::fs::read_dir(broken.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::metadata(&path).unwrap().len() > 100_000 {
            let mut content = std::fs::read(&path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 1;
            std::fs::write(&path, content).unwrap();
        }
    }
    let text = folder.join("text.tar");
    std::fs::write(&text, "no archive").unwrap();
    for image in [
        format!("oci:{}", broken.display()),
        format!("oci:{}", folder.join("nothing").display()),
        text.display().to_string(),
        "127.0.0.1:1/a".to_owned(),
        "no image's name".to_owned(),
    ] {
        let (code, text) = gate(&[&image]);
        assert_eq!(code, 2, "{image}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    let (code, text) = gate(&["-f", "/nonexistent.yaml"]);
    assert!(code == 2 && text.contains("reading /nonexistent.yaml"), "{text}");
}

#[test]
fn images_of_a_registry_are_judged_with_a_login() {
    let folder = folder("registry");
    let open = Registry::start(&folder, &Door::Open);
    let registry = Registry::start(&folder, &Door::Basic);
    let image = Image { config: config(), layers: layers(LOGS), ..Image::running("") };
    block_on(open.push("team/job", "v1", &image));
    let at = registry.address.to_string();
    let name = format!("{at}/team/job:v1");
    let (user, password) = crate::registry::USER;
    let login = folder.join("config.json");
    std::fs::write(&login, json!({"auths": {&at: {"username": user, "password": password}}}).to_string()).unwrap();
    let flags = ["--insecure-registries", &at, "--registry-networks", "127.0.0.1", &name];
    assert_eq!(gate(&flags).0, 2);
    let with_login = [&["--docker-config", login.to_str().unwrap()], &flags[..]].concat();
    let (code, text) = gate(&with_login);
    assert!(code == 0 && text.contains("sha256:"), "{text}");
}
