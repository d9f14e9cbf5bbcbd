# The launcher in POSIX shell: sh -c SCRIPT launcher [--exec] -- COMMAND [ARGUMENT..]
# It keeps the contract of src/launch.rs, with whole seconds for times. Command and arguments stay a list: nothing is quoted,
# since nothing is parsed again. Lines like these are taken out before it goes into a pod. No $( and no $$ anywhere: the
# kubelet would expand them.
become=
if [ "$1" = --exec ]; then become=1; shift; fi
shift
if [ "${LAUNCHER_DISABLE-}" = true ]; then exec "$@"; fi
say() { printf 'launcher: %s\n' "$*" >&2; }
# What images have for asking by HTTP. 9: nothing.
ask() (
  unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
  if command -v curl; then
    curl -fsS -m 3 -o /dev/null -X "$1" "$2"
  elif command -v wget; then
    if [ "$1" = POST ]; then wget -q -T 3 -O /dev/null --post-data= "$2"; else wget -q -T 3 -O /dev/null "$2"; fi
  elif command -v python3; then
    python3 -c 'import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[2], method=sys.argv[1]), timeout=3)' "$1" "$2"
  else
    exit 9
  fi
) >/dev/null 2>&1
nap() { sleep 0.2 2>/dev/null || sleep 1; }
# seconds TEXT DEFAULT: 60s is 60.
seconds() {
  case ${1%s} in
    '' | *[!0-9]*) echo "$2" ;;
    *) echo "${1%s}" ;;
  esac
}
# within SECONDS WHAT COMMAND..: until the command succeeds; 0 also at the limit, unless that is to be fatal.
within() {
  limit=`date +%s`
  limit=`expr "$limit" + "$1"`
  what=$2
  shift 2
  until "$@"; do
    if [ `date +%s` -ge "$limit" ]; then
      if [ "${LAUNCHER_TIMEOUT_ACTION-}" = fail ]; then
        say "$what is not ready, ending with 69"
        exit 69
      fi
      say "$what is not ready; going on without"
      return 0
    fi
    nap
  done
}
marker() { printf '%s' "${LAUNCHER_MARKERS-}/$1.$2"; }
mark() { if [ -n "${LAUNCHER_MARKERS-}" ] && [ -n "${LAUNCHER_CONTAINER-}" ]; then : >"`marker "$LAUNCHER_CONTAINER" "$1"`"; fi; }
unmark() { if [ -n "${LAUNCHER_MARKERS-}" ] && [ -n "${LAUNCHER_CONTAINER-}" ]; then rm -f "`marker "$LAUNCHER_CONTAINER" "$1"`"; fi; }
is_ready() {
  ask GET "$ready"
  case $? in
    0) ;;
    9) say 'no curl, wget or python3 to ask the proxy, giving it 5 s'; sleep 5 ;;
    *) return 1 ;;
  esac
}
has_run() { [ -e "`marker "$1" started`" ] || [ -e "`marker "$1" finished`" ]; }
# Process 1 of a container is not ended by a signal that it does not handle.
trap 'exit 143' TERM
trap 'exit 130' INT
unmark started
unmark finished
ready=${LAUNCHER_READY_URL-http://localhost:15021/healthz/ready}
if [ -n "$ready" ]; then within "`seconds "${LAUNCHER_READY_TIMEOUT-}" 60`" 'the proxy' is_ready; fi
if [ -n "${LAUNCHER_START_AFTER-}" ]; then
  within "`seconds "${LAUNCHER_START_AFTER_TIMEOUT-}" 300`" "container $LAUNCHER_START_AFTER" has_run "$LAUNCHER_START_AFTER"
  sleep "`seconds "${LAUNCHER_START_AFTER_DELAY-}" 0`"
fi
if [ -n "$become" ]; then
  trap - TERM INT
  mark started
  exec "$@"
fi
signalled=
trap 'signalled=1; kill -TERM "$child" 2>/dev/null' TERM INT HUP
"$@" <&0 &
child=$!
mark started
# A signal ends a wait, not the command.
again=
while :; do
  wait "$child"
  got=$?
  if [ -z "$again" ] || [ "$got" != 127 ]; then code=$got; fi
  if [ -z "$signalled" ]; then break; fi
  signalled=
  again=1
done
case ${LAUNCHER_RESTART_POLICY:-Never} in
  Never) ;;
  OnFailure) if [ "$code" != 0 ]; then unmark started; exit "$code"; fi ;;
  *) unmark started; exit "$code" ;;
esac
mark finished
unmark started
IFS=,
for other in ${LAUNCHER_CONTAINERS-}; do
  if [ "$other" != "${LAUNCHER_CONTAINER-}" ] && ! [ -e "`marker "$other" finished`" ]; then exit "$code"; fi
done
for url in ${LAUNCHER_QUIT_URL-http://localhost:15020/quitquitquit,http://localhost:15000/quitquitquit}; do
  if ask POST "$url"; then exit "$code"; fi
done
say 'the proxy could not be asked to quit'
exit "$code"
