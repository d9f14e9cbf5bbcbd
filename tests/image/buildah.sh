# shellcheck shell=bash
# Sourced: buildah without a daemon, runc, cgroups or a network namespace. With stand_in set, images are kept under
# target/image, so that a stand-in is never taken for the image whose name it has.

export BUILDAH_ISOLATION=chroot
buildah_arguments=()
if [[ -n ${stand_in:-} ]]; then
  buildah_arguments=(--root "$PWD/target/image/storage" --runroot "$PWD/target/image/run")
fi

buildah() { command buildah ${buildah_arguments[@]+"${buildah_arguments[@]}"} "$@"; }
