#!/usr/bin/env bash
# Makes the serving certificate of the webhooks: see --help.
set -euo pipefail
umask 077

usage() {
  cat <<'END'
Usage: create-cert.sh [OPTION...]

Makes a CA and a serving certificate for the webhooks with openssl, keeps them in a Secret (tls.crt,
tls.key, ca.crt), and puts the CA into the webhook configurations, so that the API server trusts the
server. (Kubernetes' own CertificateSigningRequests have had no signer for this since 1.22.)

For the overlay k8s-resources/overlays/own-certificate, and for servers outside a cluster. The pods of
k8s-resources/base make their certificates themselves, and would take this CA out again.

To be repeated at will: a certificate that is valid for 30 more days and has all the names is kept, and
only what is missing is put in. Otherwise a new CA and certificate are made: the CA's private key is
never kept, so nobody can sign anything else with it. The CAs before it stay in ca.crt and in the
webhook configurations until they expire, so that servers are trusted until they take up the new one.

  -n, --namespace NAME  namespace of Service and Secret, made if missing (kubeflow-extension)
      --service NAME    Service that the API server calls (tenancy-fixer)
      --secret NAME     Secret to keep the certificate in (tenancy-fixer-tls)
      --webhook-configuration NAME
                        the mutating and the validating webhook configuration (tenancy-fixer)
      --san TYPE:VALUE  one more name of the server, DNS:host or IP:address; may be repeated
      --days DAYS       how long the certificate is valid (365)
      --renew           make a new certificate in any case
      --out DIR         also write tls.crt, tls.key and ca.crt there
      --offline         only write files: no cluster, always a new certificate; needs --out
      --context NAME    as with kubectl
      --kubeconfig FILE
                        as with kubectl; so is the variable KUBECONFIG
      --dry-run         look, but change nothing, and print the commands
  -h, --help            print this

Needs openssl 1.1.1 or later, and kubectl with the rights to get, create and patch the Secret, to get
and patch the webhook configurations, and to create the namespace if it is missing.
END
}

say() { printf 'create-cert%s: %s\n' "${dry_run:+ (dry run)}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

namespace=kubeflow-extension
service=tenancy-fixer
secret=tenancy-fixer-tls
configuration=tenancy-fixer
days=365
out=
renew=
offline=
dry_run=
more_names=()
kubectl=(kubectl)
# A certificate that ends earlier is made anew.
keep_days=30

arguments() {
  while (($#)); do
    local option=$1 value
    shift
    case $option in
      --renew | --offline | --dry-run) printf -v "$(tr - _ <<<"${option#--}")" yes && continue ;;
      -h | --help) usage && exit ;;
      --*=*) value=${option#*=} option=${option%%=*} ;;
      -n | --namespace | --service | --secret | --webhook-configuration | --san | --days | --out | --context | \
        --kubeconfig)
        (($#)) || die "$option: a value is missing; see --help"
        value=$1
        shift
        ;;
      *) die "unknown argument $option; see --help" ;;
    esac
    [[ -n $value ]] || die "$option: a value is missing; see --help"
    case $option in
      -n | --namespace) namespace=$value ;;
      --service) service=$value ;;
      --secret) secret=$value ;;
      --webhook-configuration) configuration=$value ;;
      --san) more_names+=("$value") ;;
      --days) days=$value ;;
      --out) out=$value ;;
      --context | --kubeconfig) kubectl+=("$option" "$value") ;;
      *) die "unknown argument $option; see --help" ;;
    esac
  done
}

check_arguments() {
  local name
  for name in "$namespace" "$service" "$secret" "$configuration"; do
    # They end up in openssl's configuration and in manifests.
    [[ $name =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] || die "$name: expected a name as Kubernetes has them"
  done
  if [[ ! $days =~ ^[1-9][0-9]{0,4}$ ]] || ((days <= keep_days)); then
    # It would be made anew by every run.
    die "--days: expected a number over $keep_days, found $days"
  fi
  names=("DNS:$service" "DNS:$service.$namespace" "DNS:$service.$namespace.svc"
    "DNS:$service.$namespace.svc.cluster.local")
  for name in ${more_names[@]+"${more_names[@]}"}; do
    [[ $name =~ ^DNS:[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$ || $name =~ ^IP:[0-9a-fA-F.:]+$ ]] ||
      die "--san: expected DNS:host or IP:address, found $name"
    names+=("$name")
  done
  [[ -z $offline || -n $out ]] || die "--offline: needs --out DIR, there is no other place for the certificate"
  command -v openssl >/dev/null || die "openssl is not installed"
  [[ -n $offline ]] || command -v kubectl >/dev/null || die "kubectl is not installed; --offline does without"
}

# Runs a command that changes something, or prints it in a dry run. Key material goes through files: it is never
# printed, nor is it an argument that other users of this machine could see.
change() {
  if [[ -n $dry_run ]]; then
    print_command "$@"
  else
    "$@" >/dev/null
  fi
}

print_command() {
  printf '%q' "$1"
  printf ' %q' "${@:2}"
  printf '\n'
}

# Asks before anything is changed, so that nothing is left half done.
check_rights() {
  local right answer
  "${kubectl[@]}" version >/dev/null 2>"$work/error" || die "the cluster cannot be reached: $(tail -n 1 "$work/error")"
  for right in "get secrets/$secret" "create secrets" "patch secrets/$secret" \
    "get mutatingwebhookconfigurations/$configuration" "patch mutatingwebhookconfigurations/$configuration" \
    "get validatingwebhookconfigurations/$configuration" "patch validatingwebhookconfigurations/$configuration"; do
    # shellcheck disable=SC2086 # two words
    answer=$("${kubectl[@]}" --namespace "$namespace" auth can-i $right 2>/dev/null) || true
    [[ $answer == yes* ]] || die "no permission to $right (namespace $namespace): ask who administers the cluster"
  done
}

ensure_namespace() {
  [[ -z $("${kubectl[@]}" get namespace "$namespace" --ignore-not-found --output name) ]] || return 0
  say "making the namespace $namespace"
  # --save-config: as if it had been applied, since the manifests will be.
  change "${kubectl[@]}" create namespace "$namespace" --save-config
}

# What is in the Secret, if there is one, into the folder $work/old.
read_secret() {
  local key
  mkdir "$work/old"
  [[ -n $("${kubectl[@]}" --namespace "$namespace" get secret "$secret" --ignore-not-found --output name) ]] || return 0
  touch "$work/old/exists"
  for key in tls.crt tls.key ca.crt; do
    "${kubectl[@]}" --namespace "$namespace" get secret "$secret" \
      --output "go-template={{with .data}}{{with index . \"$key\"}}{{. | base64decode}}{{end}}{{end}}" >"$work/old/$key"
    [[ -s $work/old/$key ]] || rm "$work/old/$key"
  done
}

# Whether the certificate in a folder was signed by a CA in ca.crt.
is_signed() { openssl verify -purpose sslserver -CAfile "$1/ca.crt" "$1/tls.crt" >/dev/null 2>&1; }

# Says what is wrong with the certificate in $work/old; nothing if it can be kept.
why_not_keep() {
  local file name value
  for file in tls.crt tls.key ca.crt; do
    [[ -f $work/old/$file ]] || { echo "there is no $file in it" && return; }
  done
  openssl x509 -in "$work/old/tls.crt" -noout -checkend $((keep_days * 86400)) >/dev/null 2>&1 ||
    { echo "its certificate ends within $keep_days days" && return; }
  is_signed "$work/old" || { echo "its ca.crt did not sign its certificate" && return; }
  cmp -s <(openssl pkey -in "$work/old/tls.key" -pubout 2>/dev/null) \
    <(openssl x509 -in "$work/old/tls.crt" -noout -pubkey) || { echo "its key is not the certificate's" && return; }
  for name in "${names[@]}"; do
    value=${name#*:}
    case $name in
      DNS:*) openssl x509 -in "$work/old/tls.crt" -noout -checkhost "$value" ;;
      IP:*) openssl x509 -in "$work/old/tls.crt" -noout -checkip "$value" ;;
    esac | grep 'does match' >/dev/null || { echo "its certificate is not for $value" && return; }
  done
  [[ -z $renew ]] || echo "--renew says so"
}

# Makes a CA and a certificate in $work/new.
make_certificate() {
  local san
  mkdir "$work/new"
  san=$(
    IFS=,
    echo "${names[*]}"
  )
  # The CA's name has the time, so that two of them can be told apart. The server's has the Service alone: more than 64
  # characters are not allowed, and nobody looks at it beside the alternative names.
  cat >"$work/openssl.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
O = tenancy-fixer
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $san
END
  openssl_quietly genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/ca.key"
  openssl_quietly req -x509 -new -sha256 -key "$work/ca.key" -days "$days" -config "$work/openssl.cnf" -extensions ca \
    -subj "/O=tenancy-fixer/CN=webhook CA of $(date -u +%Y-%m-%dT%H:%M:%SZ)" -out "$work/new/ca.crt"
  openssl_quietly genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/new/tls.key"
  openssl_quietly req -new -sha256 -key "$work/new/tls.key" -config "$work/openssl.cnf" \
    -subj "/O=tenancy-fixer/CN=$service" -out "$work/server.csr"
  openssl_quietly x509 -req -sha256 -in "$work/server.csr" -CA "$work/new/ca.crt" -CAkey "$work/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/openssl.cnf" -extensions server \
    -out "$work/new/tls.crt"
  rm "$work/ca.key"
  is_signed "$work/new" || die "openssl made a certificate that it does not accept itself"
  keep_old_cas
}

# openssl tells a lot when all is well, and what matters when it is not.
openssl_quietly() {
  [[ -z $dry_run ]] || print_command openssl "$@"
  openssl "$@" >/dev/null 2>"$work/error" || die "openssl $1 failed: $(cat "$work/error")"
}

# Adds the CAs of the old ca.crt that have not expired to the new one. All of them: servers that have not taken up the last
# but one may still be there.
keep_old_cas() {
  local count=0 line
  [[ -f $work/old/ca.crt ]] || return 0
  while IFS= read -r line; do
    [[ $line != *BEGIN\ CERTIFICATE* ]] || count=$((count + 1))
    printf '%s\n' "$line" >>"$work/old/ca.$count"
  done <"$work/old/ca.crt"
  local number
  for ((number = 1; number <= count; number++)); do
    ! openssl x509 -in "$work/old/ca.$number" -noout -checkend 0 >/dev/null 2>&1 ||
      openssl x509 -in "$work/old/ca.$number" >>"$work/new/ca.crt"
  done
}

base64_of() { openssl base64 -A -in "$1"; }

# Calls $1 with the command that writes the Secret. It is applied by the server, since kubectl's own way of applying
# keeps a second copy of the key in an annotation; and without --force-conflicts, so that a Secret that somebody else
# looks after (cert-manager, say) stays theirs.
write_secret() {
  "$1" "${kubectl[@]}" apply --server-side --field-manager create-cert -f "$work/secret.yaml" "${@:2}" \
    2>"$work/error" ||
    # The rest is advice on conflicts in general.
    die "secret $secret cannot be written: $(sed '/^Please review/,$d' "$work/error")"
}

write_secret_file() {
  cat >"$work/secret.yaml" <<END
apiVersion: v1
kind: Secret
metadata:
  name: $secret
  namespace: $namespace
  labels:
    app.kubernetes.io/name: tenancy-fixer
type: kubernetes.io/tls
data:
  ca.crt: $(base64_of "$work/new/ca.crt")
  tls.crt: $(base64_of "$work/new/tls.crt")
  tls.key: $(base64_of "$work/new/tls.key")
END
}

# Puts a ca.crt into every webhook of a configuration that has another one, or none.
write_ca_bundle() {
  local kind=$1 bundle have index=0 webhook operations=()
  bundle=$(base64_of "$2")
  have=$("${kubectl[@]}" get "$kind" "$configuration" --ignore-not-found \
    --output 'go-template={{range .webhooks}}{{.name}} {{with .clientConfig.caBundle}}{{.}}{{end}}{{"\n"}}{{end}}')
  if [[ -z $have ]]; then
    say "$kind $configuration: there is none (yet), so no CA is put in; repeat this once there is"
    return
  fi
  while read -r webhook have; do
    # By index, as JSON Patch has it; the test keeps it from hitting another webhook that has come in between.
    [[ $have == "$bundle" ]] || operations+=(
      "{\"op\": \"test\", \"path\": \"/webhooks/$index/name\", \"value\": \"$webhook\"}"
      "{\"op\": \"add\", \"path\": \"/webhooks/$index/clientConfig/caBundle\", \"value\": \"$bundle\"}"
    )
    index=$((index + 1))
  done <<<"$have"
  if ((${#operations[@]} == 0)); then
    say "$kind $configuration: all $index webhooks have the CA"
    return
  fi
  (
    IFS=,
    echo "[${operations[*]}]"
  ) >"$work/$kind.json"
  change "${kubectl[@]}" patch "$kind" "$configuration" --field-manager create-cert --type json \
    --patch-file "$work/$kind.json"
  say "$kind $configuration: put the CA into $((${#operations[@]} / 2)) of $index webhooks"
}

write_ca_bundles() {
  write_ca_bundle mutatingwebhookconfiguration "$1"
  # Not every installation validates.
  [[ -z $("${kubectl[@]}" get validatingwebhookconfiguration "$configuration" --ignore-not-found --output name) ]] ||
    write_ca_bundle validatingwebhookconfiguration "$1"
}

write_files() {
  local file
  [[ -n $out ]] || return 0
  change mkdir -p "$out"
  for file in tls.crt tls.key ca.crt; do
    # A new file, not the old one's permissions.
    change rm -f "$out/$file"
    change cp "$1/$file" "$out/$file"
  done
  say "wrote $out/tls.crt, $out/tls.key, $out/ca.crt"
}

expiry() { openssl x509 -in "$1/tls.crt" -noout -enddate | sed 's/notAfter=//'; }

main() {
  arguments "$@"
  check_arguments
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  [[ -z $dry_run ]] || say "nothing outside $work is changed"

  if [[ -n $offline ]]; then
    make_certificate
    say "made a certificate, valid until $(expiry "$work/new")"
    write_files "$work/new"
    return
  fi

  local reason
  check_rights
  ensure_namespace
  read_secret
  reason=$(why_not_keep)
  if [[ -z $reason ]]; then
    say "secret $secret: kept, valid until $(expiry "$work/old")"
    write_ca_bundles "$work/old/ca.crt"
    write_files "$work/old"
    return
  fi
  make_certificate
  write_secret_file
  # Before anything is changed: whether the Secret will be taken.
  [[ ! -f $work/old/exists ]] || write_secret command --dry-run=server >/dev/null
  # First the CAs, then the certificate: whichever of the two a server shows in between, it is trusted.
  write_ca_bundles "$work/new/ca.crt"
  write_secret change
  if [[ -f $work/old/tls.crt ]]; then
    say "secret $secret: made anew ($reason), valid until $(expiry "$work/new")"
    say "servers take it up by themselves, a minute or two from now; see /readyz and the log line \"certificate exchanged\""
  else
    say "secret $secret: made, valid until $(expiry "$work/new")"
  fi
  write_files "$work/new"
}

main "$@"
