# shellcheck shell=bash
# Sourced by create-infra.sh and deploy.sh: what both have to agree on, and how Secrets are made.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
namespace=mlflow
# Both in the cluster and in Google Cloud.
account=mlflow
database=mlflow
user=mlflow
tag=3.17.2-1

# Of Google Cloud; flags and variables of the same names win.
project=${PROJECT:-}
region=${REGION:-europe-west3}
bucket=${BUCKET:-}
instance=${INSTANCE:-mlflow}
repository=${REPOSITORY:-mlflow}
kubectl=(kubectl)

# Takes one of the flags that both scripts have; the number of words that it was.
name_flag() { # FLAG [VALUE]
  (($# > 1)) || die "$1 needs a value"
  case $1 in
    --project) project=$2 ;;
    --region) region=$2 ;;
    --bucket) bucket=$2 ;;
    --instance) instance=$2 ;;
    --repository) repository=$2 ;;
    --context) kubectl+=(--context "$2") ;;
    *) die "unknown: $1; see --help" ;;
  esac
}

# After the flags.
check_names() {
  [[ -n $project ]] || die "whose Google Cloud? --project PROJECT (or the variable PROJECT)"
  bucket=${bucket:-$project-mlflow}
  image=$region-docker.pkg.dev/$project/$repository/mlflow:$tag
  email=$account@$project.iam.gserviceaccount.com
}

# A password that nobody has to type: 256 bits in letters, digits, - and _.
random() { openssl rand -base64 32 | tr '+/' '-_' | tr -d '=\n'; }
# A Fernet key, which has its padding.
fernet_key() { openssl rand -base64 32 | tr '+/' '-_' | tr -d '\n'; }

# A value of a Secret, if it is there.
secret_value() { # SECRET KEY
  "${kubectl[@]}" get secret "$1" --namespace "$namespace" --ignore-not-found --output "jsonpath={.data.$2}" | base64 --decode
}

# Makes a Secret that is not there, of values that go over standard input: no other process ever sees them on a command line.
keep_secret() { # SECRET KEY VALUE [KEY VALUE...]
  local secret=$1 data=
  shift
  if [[ -n $("${kubectl[@]}" get secret "$secret" --namespace "$namespace" --ignore-not-found --output name) ]]; then
    say "Secret $secret is there, and stays as it is"
    return
  fi
  while (($#)); do
    data+="  $1: \"$2\""$'\n'
    shift 2
  done
  say "making Secret $secret"
  "${kubectl[@]}" create --filename - >&2 <<END
apiVersion: v1
kind: Secret
metadata:
  name: $secret
  namespace: $namespace
  labels: {app.kubernetes.io/name: mlflow, app.kubernetes.io/part-of: tenancy-fixer}
stringData:
$data
END
}

keep_namespace() {
  "${kubectl[@]}" apply --server-side --filename "$here/base/namespace.yaml" >&2
}
