#!/usr/bin/env bash
# Installs MLflow into a cluster: see --help.
set -euo pipefail
umask 077

usage() {
  cat <<'END'
Usage: deploy.sh local|gcloud [OPTION...]

local    everything in the cluster: PostgreSQL, an S3 server, MLflow (overlays/local); for kind, k3d,
         minikube, Docker Desktop
gcloud   with Cloud SQL and Cloud Storage (overlays/gcloud), after create-infra.sh with the same options

Makes the Secrets that are missing, of random values; those that are there stay as they are, so that
this can be repeated at will. No password is on a command line or in a log.

      --image NAME      image of MLflow (local: mlflow:TAG; gcloud: the one of create-infra.sh)
      --build           local: build it with docker, and load it into kind, k3d or minikube
      --context NAME    as with kubectl; local wants one that is local, or this
      --timeout TIME    wait so long until it answers (10m); 0 does not wait
      --dry-run         print the manifests, and change nothing
      --project NAME, --region NAME, --bucket NAME, --instance NAME, --repository NAME
                        gcloud: as with create-infra.sh
  -h, --help            print this

Needs kubectl with the rights of an admin, and openssl.
END
}

say() { printf 'deploy: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# shellcheck source-path=SCRIPTDIR source=names.sh
source "$(dirname "${BASH_SOURCE[0]}")/names.sh"

where=
chosen=
build=
timeout=10m
dry_run=
context=
while (($#)); do
  case $1 in
    local | gcloud) where=$1 ;;
    --build) build=1 ;;
    --dry-run) dry_run=1 ;;
    --image)
      chosen=${2:?--image needs a value}
      shift
      ;;
    --timeout)
      timeout=${2:?--timeout needs a value}
      shift
      ;;
    -h | --help)
      usage
      exit
      ;;
    *)
      [[ $1 != --context ]] || context=${2:-}
      name_flag "$@"
      shift
      ;;
  esac
  shift
done
[[ -n $where ]] || die "where? local or gcloud; see --help"

# The settings that are this installation's own.
settings=()
if [[ $where == local ]]; then
  image=mlflow:$tag
else
  check_names
  settings=("MLFLOW_ARTIFACTS_DESTINATION=gs://$bucket/artifacts" "CSQL_PROXY_INSTANCE_CONNECTION_NAME=$project:$region:$instance")
fi
image=${chosen:-$image}

is_local() { [[ $1 =~ ^(kind-.*|k3d-.*|minikube|docker-desktop|docker-for-desktop|rancher-desktop|colima.*|orbstack)$ ]]; }

check_context() {
  local current=${context:-$("${kubectl[@]}" config current-context)}
  [[ $where != local || -n $context ]] || is_local "$current" ||
    die "the current context is $current, which does not look local: name it with --context $current if you mean it"
  say "context $current"
}

build_image() {
  say "building $image"
  docker build --tag "$image" "$here" >&2
  local current=${context:-$("${kubectl[@]}" config current-context)}
  case $current in
    kind-*) kind load docker-image "$image" --name "${current#kind-}" >&2 ;;
    k3d-*) k3d image import "$image" --cluster "${current#k3d-}" >&2 ;;
    minikube) minikube image load "$image" >&2 ;;
    # It has what docker has.
    *) ;;
  esac
}

# A kustomization over the overlay, in $overlay.
render() {
  printf 'resources: [../%s]\n' "$where"
  printf 'images: [{name: mlflow, newName: "%s", newTag: "%s"}]\n' "${image%:*}" "${image##*:}"
  [[ $where == gcloud ]] || return 0
  printf 'configMapGenerator: [{name: mlflow, namespace: mlflow, behavior: merge, literals: ['
  printf '"%s",' "${settings[@]}"
  printf ']}]\n'
  cat <<END
patches:
  - patch: |
      apiVersion: v1
      kind: ServiceAccount
      metadata:
        name: mlflow
        namespace: mlflow
        annotations:
          iam.gke.io/gcp-service-account: $email
END
}

make_secrets() {
  keep_namespace
  if [[ $where == local ]]; then
    keep_secret mlflow-database username "$user" password "$(random)"
    keep_secret mlflow-s3 access-key-id mlflow secret-access-key "$(random)"
  elif [[ -z $(secret_value mlflow-database password) ]]; then
    die "there is no Secret mlflow-database: create-infra.sh makes it, and sets its password in Cloud SQL"
  fi
  keep_secret mlflow-webhooks encryption-key "$(fernet_key)"
  # For the components basic-auth and workspaces.
  keep_secret mlflow-auth admin-password "$(random)" flask-secret-key "$(random)"
}

# Beside the overlays, since kustomize knows no absolute paths.
overlay=$(mktemp -d "$here/overlays/.deploy-XXXXXX")
trap 'rm -r "$overlay"' EXIT
render >"$overlay/kustomization.yaml"
manifests=$(kubectl kustomize "$overlay")
if [[ -n $dry_run ]]; then
  printf '%s\n' "$manifests"
  exit
fi
check_context
[[ -z $build ]] || build_image
make_secrets
"${kubectl[@]}" apply --server-side --filename - <<<"$manifests" >&2
if [[ $timeout != 0 ]]; then
  "${kubectl[@]}" rollout status deployment/mlflow --namespace "$namespace" --timeout "$timeout" >&2 ||
    die "it does not answer; kubectl logs --namespace $namespace deployment/mlflow --all-containers says why in its first line"
fi
say "done; to try it: kubectl port-forward --namespace $namespace service/mlflow 5000, and"
say "  MLFLOW_TRACKING_URI=http://localhost:5000 python3 $here/test/train.py"
