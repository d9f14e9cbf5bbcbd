# shellcheck shell=bash
# Sourced by up and down after build.sh: KUBERNETES=1.35 takes that minor version in place of go.mod's, the same program with the
# modules of kubernetes/1.35.mod.

[[ -n ${KUBERNETES:-} ]] || return 0

modules=$here/kubernetes/$KUBERNETES
if [[ ! -f $modules.mod ]]; then
  say "there is no kubernetes/$KUBERNETES.mod; besides go.mod's version there are: $(cd "$here/kubernetes" && echo *.mod)"
  exit 1
fi
bin=$bin-$KUBERNETES

go() { command go "$1" -modfile="$modules.mod" "${@:2}"; }

stamp() {
  (
    cd "$here" || exit
    sha256sum build.sh versions.sh "$modules.mod" "$modules.sum" ./*.go crds/go.mod crds/go.sum crds/*.yaml
  ) | sha256sum
}
