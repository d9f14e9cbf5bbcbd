# shellcheck shell=bash
# Sourced by up and down: where things are, and how the control plane is built.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
bin=$root/target/cluster-bin

say() { printf 'cluster: %s\n' "$*" >&2; }

# What the build was made from: when it changes, the build is made again.
stamp() {
  (
    cd "$here" || exit
    sha256sum build.sh go.mod go.sum ./*.go crds/go.mod crds/go.sum crds/*.yaml
  ) | sha256sum
}

# Builds the program and collects the CRDs into target/cluster-bin, unless that was done from the same sources.
build() {
  mkdir -p "$bin"
  local want
  want=$(stamp)
  (
    flock 9 # one build at a time
    if [[ -x $bin/cluster && -f $bin/stamp && $(<"$bin/stamp") == "$want" ]]; then
      exit 0
    fi
    if ! command -v go >/dev/null; then
      say "needs Go ($(sed -n 's/^go //p' "$here/go.mod") or later) to build the control plane"
      exit 1
    fi
    rm -f "$bin/stamp"
    version=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
    IFS=. read -r major minor _ <<<"${version#v}"
    say "building Kubernetes $version (minutes the first time)"
    x=k8s.io/component-base/version
    (cd "$here" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$bin/cluster.new" \
      -ldflags "-s -w -X $x.gitVersion=$version -X $x.gitMajor=$major -X $x.gitMinor=$minor" .)
    say "collecting the CRDs"
    "$bin/cluster.new" collect-crds "$here/crds" "$bin/crds"
    mv "$bin/cluster.new" "$bin/cluster"
    printf '%s\n' "$want" >"$bin/stamp"
    say "built in ${SECONDS} s"
  ) 9>"$bin/lock"
}
