#!/usr/bin/env bash
# Makes in Google Cloud what MLflow needs there: see --help.
set -euo pipefail
umask 077

usage() {
  cat <<'END'
Usage: create-infra.sh [create|delete] [OPTION...]

create (the default): the bucket for artifacts, PostgreSQL in Cloud SQL with its database and user, a
repository with the image, and a service account that MLflow's pods are by Workload Identity: there are
no key files. To be repeated at will: what is there stays, what is missing is made.

The database's password is made here, kept in the Secret mlflow-database of the cluster's namespace
mlflow, and set in Cloud SQL each time this runs. It is on no command line and in no log.

delete: the service account, its bindings, and the repository. The bucket and the database are
everybody's results: they go with --with-data alone, and not to come back.

      --project NAME    project in Google Cloud; or the variable PROJECT, and so with the others
      --region NAME     (europe-west3)
      --bucket NAME     (PROJECT-mlflow)
      --instance NAME   of Cloud SQL (mlflow)
      --repository NAME of Artifact Registry (mlflow)
      --tier NAME       of the Cloud SQL instance (db-custom-1-3840)
      --with-data       delete the bucket and the Cloud SQL instance as well
      --context NAME    as with kubectl
      --dry-run         print every command, and run none
  -h, --help            print this

Needs gcloud, openssl, and kubectl with the rights to make the namespace mlflow and a Secret in it. The
cluster has to have Workload Identity.
END
}

say() { printf 'create-infra%s: %s\n' "${dry_run:+ (dry run)}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# shellcheck source-path=SCRIPTDIR source=names.sh
source "$(dirname "${BASH_SOURCE[0]}")/names.sh"

verb=create
tier=${TIER:-db-custom-1-3840}
with_data=
dry_run=
while (($#)); do
  case $1 in
    create | delete) verb=$1 ;;
    --with-data) with_data=1 ;;
    --dry-run) dry_run=1 ;;
    --tier)
      tier=${2:?--tier needs a value}
      shift
      ;;
    -h | --help)
      usage
      exit
      ;;
    *)
      name_flag "$@"
      shift
      ;;
  esac
  shift
done
check_names

gcloud() { command gcloud --quiet --project "$project" "$@"; }

# Runs a command that changes something, or prints it.
run() {
  if [[ -n $dry_run ]]; then
    printf '%s' "$1"
    [[ $1 != gcloud ]] || printf ' --quiet --project %q' "$project"
    shift
    (($# == 0)) || printf ' %q' "$@"
    printf '\n'
  else
    "$@" >&2
  fi
}

# Whether something is there. A dry run asks nobody: it prints what would be run where nothing is.
is_there() { [[ -z $dry_run ]] && gcloud "$@" >/dev/null 2>&1; }

create() {
  run gcloud services enable artifactregistry.googleapis.com cloudbuild.googleapis.com iam.googleapis.com \
    iamcredentials.googleapis.com sqladmin.googleapis.com storage.googleapis.com
  create_bucket
  create_database
  create_account
  create_image
  say "done; now: deploy.sh gcloud --project $project"
}

create_bucket() {
  is_there storage buckets describe "gs://$bucket" ||
    run gcloud storage buckets create "gs://$bucket" --location "$region" --uniform-bucket-level-access --public-access-prevention
  # What is overwritten or deleted by mistake stays for a while (docs/mlflow.md, backups).
  run gcloud storage buckets update "gs://$bucket" --soft-delete-duration 30d
}

create_database() {
  is_there sql instances describe "$instance" ||
    run gcloud sql instances create "$instance" --database-version POSTGRES_17 --edition enterprise --tier "$tier" --region "$region" \
      --storage-auto-increase --backup-start-time 02:00 --enable-point-in-time-recovery --ssl-mode ENCRYPTED_ONLY --deletion-protection
  is_there sql databases describe "$database" --instance "$instance" ||
    run gcloud sql databases create "$database" --instance "$instance"
  set_password
}

# The Secret is the truth: made first, so that nothing is lost when what follows fails.
set_password() {
  if [[ -n $dry_run ]]; then
    # The password is on the standard input of the one, and in the file of the other.
    run kubectl create --filename -
    run gcloud sql users create "$user" --instance "$instance" --flags-file FILE
    return
  fi
  keep_namespace
  keep_secret mlflow-database username "$user" password "$(random)"
  # gcloud reads flags from a file, so that the password is on no command line.
  flags=$(mktemp)
  trap 'rm -f "$flags"' EXIT
  printf -- '--password: "%s"\n' "$(secret_value mlflow-database password)" >"$flags"
  local verb=create
  [[ $(gcloud sql users list --instance "$instance" --format 'value(name)') != *"$user"* ]] || verb=set-password
  run gcloud sql users "$verb" "$user" --instance "$instance" --flags-file "$flags"
  rm -f "$flags"
}

create_account() {
  is_there iam service-accounts describe "$email" ||
    run gcloud iam service-accounts create "$account" --display-name "MLflow in Kubernetes"
  # Objects of this bucket, this project's Cloud SQL through its proxy, and nothing else.
  run gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member "serviceAccount:$email" --role roles/storage.objectUser
  run gcloud projects add-iam-policy-binding "$project" --member "serviceAccount:$email" --role roles/cloudsql.client --condition None
  # It is who the pods of that service account are, and nobody else.
  run gcloud iam service-accounts add-iam-policy-binding "$email" --role roles/iam.workloadIdentityUser \
    --member "serviceAccount:$project.svc.id.goog[$namespace/$account]"
}

create_image() {
  is_there artifacts repositories describe "$repository" --location "$region" ||
    run gcloud artifacts repositories create "$repository" --repository-format docker --location "$region"
  is_there artifacts docker images describe "$image" ||
    run gcloud builds submit "$here" --tag "$image"
}

delete() {
  run_if_there "iam service-accounts describe $email" gcloud projects remove-iam-policy-binding "$project" \
    --member "serviceAccount:$email" --role roles/cloudsql.client --condition None
  run_if_there "iam service-accounts describe $email" gcloud iam service-accounts delete "$email"
  run_if_there "artifacts repositories describe $repository --location $region" \
    gcloud artifacts repositories delete "$repository" --location "$region"
  if [[ -z $with_data ]]; then
    say "the bucket gs://$bucket and the Cloud SQL instance $instance stay; --with-data deletes them"
    return
  fi
  run_if_there "sql instances describe $instance" gcloud sql instances patch "$instance" --no-deletion-protection
  run_if_there "sql instances describe $instance" gcloud sql instances delete "$instance"
  run_if_there "storage buckets describe gs://$bucket" gcloud storage rm --recursive "gs://$bucket"
}

run_if_there() { # QUESTION COMMAND...
  local question
  read -ra question <<<"$1"
  shift
  if [[ -n $dry_run ]] || is_there "${question[@]}"; then
    run "$@"
  fi
}

"$verb"
