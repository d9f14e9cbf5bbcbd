//! `tenancy-fixer project run --build`: by the real buildah into a real registry; the other builders' command lines.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use hyper::Request;
use hyper::body::Bytes;
use serde_json::json;

use crate::projects::{Ended, Scene, tracked};
use crate::registry::{Door, Registry, send};
use crate::server::block_on;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
    let output = Command::new("git").arg("-C").arg(folder).args(identity).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A project in a repository, whose backend configuration names where images go; the configuration's name, and the commit.
fn project(folder: &Path, repository: &str) -> (&'static str, String) {
    let config = json!({"kube-job-template-path": "job.yaml", "repository-uri": repository});
    fs::write(folder.join("build.json"), config.to_string()).unwrap();
    git(folder, &["init", "--quiet"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "-m", "first"]);
    ("build.json", git(folder, &["rev-parse", "HEAD"]))
}

#[test]
fn the_code_is_built_into_an_image_pushed_and_pinned() {
    let scene = Scene::new("build");
    let scripts = scene.scripts();
    let registry = Registry::start(&scene.folder, &Door::Open);
    let (config, commit) = project(&scripts, &format!("{}/team/scripts", registry.address));
    // buildah without containers, with a storage of this test's own.
    let storage = scene.folder.join("storage.conf");
    let at = |name: &str| scene.folder.join(name).display().to_string();
    fs::write(
        &storage,
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n", at("graph"), at("run")),
    )
    .unwrap();
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        let output = command
            .args(arguments)
            .env("CONTAINERS_STORAGE_CONF", &storage)
            .env("BUILDAH_ISOLATION", "chroot")
            .output();
        let output = output.expect("buildah runs; tests/setup installs it");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let base = buildah(&["from", "scratch"]);
    buildah(&["commit", &base, "localhost/none:1"]);
    fs::write(
        scripts.join("MLproject"),
        fs::read_to_string(scripts.join("MLproject")).unwrap().replace("none:1", "localhost/none:1"),
    )
    .unwrap();

    let arguments = scene.run(
        &scripts,
        config,
        &["-e", "fail", "--build", "--builder", "buildah", "--insecure-registry", "--detach"],
    );
    let mut command = scene.command(&arguments);
    let ended = Ended::from(
        command.env("CONTAINERS_STORAGE_CONF", &storage).env("BUILDAH_ISOLATION", "chroot").output().unwrap(),
    );
    assert_eq!(ended.code, 0, "{ended:?}");
    let tag = format!("{}/team/scripts:{}", registry.address, &commit[..7]);
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let request = Request::get(format!("/v2/team/scripts/manifests/{}", &commit[..7])).header("accept", accept);
    let manifest = block_on(send(registry.address, request, Bytes::new()));
    assert_eq!(manifest.status(), 200);
    let digest = manifest.headers()["docker-content-digest"].to_str().unwrap().to_owned();
    let job = scene.object("jobs", ended.run()).unwrap();
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["image"], format!("{tag}@{digest}"));
    let tags = tracked(ended.run()).tags;
    assert_eq!(tags["mlflow.docker.image.uri"], format!("{tag}@{digest}"));
    assert_eq!((&tags["mlflow.docker.image.id"], &tags["mlflow.source.git.commit"]), (&digest, &commit));

    // What is in it, as somebody else reads it.
    let pulled = buildah(&["pull", "--quiet", "--tls-verify=false", &format!("docker://{tag}")]);
    let container = buildah(&["from", &pulled]);
    let mounted = buildah(&["mount", &container]);
    let code = Path::new(&mounted).join("mlflow/projects/code");
    assert_eq!(fs::read(code.join("say.py")).unwrap(), fs::read(scripts.join("say.py")).unwrap());
    let workdir = buildah(&["inspect", "--type", "image", "--format", "{{.OCIv1.Config.WorkingDir}}", &tag]);
    assert_eq!(workdir, "/mlflow/projects/code/");
    buildah(&["umount", &container]);

    // A push that fails is heard of before there is a run.
    drop(registry);
    let mut command = scene.command(&arguments);
    let ended = Ended::from(
        command.env("CONTAINERS_STORAGE_CONF", &storage).env("BUILDAH_ISOLATION", "chroot").output().unwrap(),
    );
    assert!(ended.code == 2 && ended.stderr.contains("\"push\"") && !ended.stderr.contains("\nrun "), "{ended:?}");
}

/// Programs that record how they were called stand in for docker (which needs its engine) and podman: what they would build and
/// push is not shown by this, but what they are told is.
#[test]
fn docker_and_podman_are_told_the_same() {
    let scene = Scene::new("builders");
    let scripts = scene.scripts();
    let (config, commit) = project(&scripts, "registry.example:5000/team/scripts");
    let tag = format!("registry.example:5000/team/scripts:{}", &commit[..7]);
    let digest = format!("sha256:{}", "a".repeat(64));
    for name in ["docker", "podman"] {
        let bin = scene.folder.join(name);
        fs::create_dir(&bin).unwrap();
        let calls = bin.join("calls");
        let program = format!(
            "#!/bin/bash\necho \"$@\" >>{calls}\ncase $1 in\n  build) cat \"$3\" >>{calls} ;;\n  push) [[ $2 != --digestfile ]] || echo {digest} >\"$3\" ;;\n  \
             inspect) echo other.example/x@sha256:0; echo registry.example:5000/team/scripts@{digest} ;;\nesac\n",
            calls = calls.display()
        );
        fs::write(bin.join(name), program).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = scene.command(&scene.run(&scripts, config, &["-e", "fail", "--build", "--detach"]));
        // Neither of the others, wherever this runs.
        for tool in ["git", "timeout", "cat", "bash"] {
            let real = String::from_utf8(Command::new("which").arg(tool).output().unwrap().stdout).unwrap();
            std::os::unix::fs::symlink(real.trim(), bin.join(tool)).unwrap();
        }
        let ended = Ended::from(command.env("PATH", &bin).output().unwrap());
        assert_eq!(ended.code, 0, "{ended:?}");
        let job = scene.object("jobs", ended.run()).unwrap();
        assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["image"], format!("{tag}@{digest}"), "{name}");
        let calls = fs::read_to_string(&calls).unwrap();
        let folder = scripts.display();
        for part in [
            format!(
                "--tag {tag} {folder}\nFROM none:1\nCOPY . /mlflow/projects/code/\nWORKDIR /mlflow/projects/code/\npush "
            ),
            format!(" {tag}\n").trim_start_matches(' ').to_owned(),
        ] {
            assert!(calls.contains(&part), "{name}: {calls}");
        }
    }
}
