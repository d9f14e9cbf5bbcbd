# shellcheck shell=sh disable=SC2003,SC2006,SC2329
# The launcher in POSIX shell: sh -c SCRIPT launcher [--exec] -- COMMAND [ARGUMENT..]
# It keeps the contract of src/launch/, with whole seconds for times. The command ignores SIGINT and SIGQUIT, as whatever a shell
# runs in the background; for every signal that ends a container it gets SIGTERM. Command and arguments stay a list: nothing is quoted,
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
    curl -q -fsS -m 3 -o /dev/null -X "$1" "$2"
  elif command -v wget; then
    post=
    if [ "$1" = POST ]; then post=--post-data=; fi
    wget -q -t 1 -T 3 -O /dev/null ${post:+"$post"} "$2"
    code=$?
    # Of busybox 1.35, which dies of -T.
    if [ "$code" -gt 128 ]; then
      wget -q -O /dev/null ${post:+"$post"} "$2"
      code=$?
    fi
    exit "$code"
  elif command -v python3; then
    python3 -c 'import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[2], method=sys.argv[1]), timeout=3)' "$1" "$2"
  else
    exit 9
  fi
) >/dev/null 2>&1
nap() { sleep 0.2 2>/dev/null || sleep 1; }
# seconds TEXT DEFAULT: 1m30s is 90, and 500ms is 1.
seconds() {
  minutes=0
  rest=$1
  case $rest in
    *ms) rest=1 ;;
    *m*)
      minutes=${rest%%m*}
      rest=${rest#*m}
      rest=${rest:-0}
      ;;
  esac
  rest=${rest%s}
  case $minutes,$rest in
    , | ,* | *, | *[!0-9,]*) echo "$2" ;;
    *) expr "$minutes" '*' 60 + "$rest" ;;
  esac
}
# within SECONDS WHAT COMMAND..: until the command succeeds; 0 also at the limit, unless that is to be fatal.
within() {
  limit=`date +%s`
  limit=`expr "$limit" + "$1"`
  what=$2
  shift 2
  until "$@"; do
    if [ "`date +%s`" -ge "$limit" ]; then
      if [ "${LAUNCHER_TIMEOUT_ACTION-}" = fail ]; then
        say "$what is not ready, ending with 69"
        leave 69
      fi
      say "$what is not ready; going on without"
      return 0
    fi
    nap
  done
}
marker() { printf '%s' "${LAUNCHER_MARKERS-}/$1.$2"; }
agrees() { [ -n "${LAUNCHER_MARKERS-}" ] && [ -n "${LAUNCHER_CONTAINER-}" ]; }
# Not by `:`, whose failure would end the shell.
mark() {
  if agrees && ! { true >"`marker "$LAUNCHER_CONTAINER" "$1"`"; } 2>/dev/null; then
    say "the other containers are not told (writing `marker "$LAUNCHER_CONTAINER" "$1"`)"
  fi
}
unmark() { if agrees; then rm -f "`marker "$LAUNCHER_CONTAINER" "$1"`" 2>/dev/null; fi; }
is_ready() {
  ask GET "$ready"
  case $? in
    0) ;;
    9) say 'no curl, wget or python3 to ask the proxy, giving it 5 s'; sleep 5 ;;
    *) return 1 ;;
  esac
}
has_run() { [ -e "`marker "$1" started`" ] || [ -e "`marker "$1" finished`" ]; }
# leave CODE: lets the proxy go if this was the last container to finish, and ends.
leave() {
  trap '' TERM INT HUP
  if [ -n "$become" ]; then exit "$1"; fi
  case ${LAUNCHER_RESTART_POLICY:-Never},$1 in
    Never,* | OnFailure,0) mark finished ;;
    *)
      unmark started
      exit "$1"
      ;;
  esac
  unmark started
  IFS=,
  set -f
  for other in ${LAUNCHER_CONTAINERS-}; do
    if [ "$other" != "${LAUNCHER_CONTAINER-}" ] && ! [ -e "`marker "$other" finished`" ]; then exit "$1"; fi
  done
  urls=${LAUNCHER_QUIT_URL-http://localhost:15020/quitquitquit,http://localhost:15000/quitquitquit}
  for url in $urls; do
    if ask POST "$url"; then exit "$1"; fi
  done
  if [ -n "$urls" ]; then say 'the proxy could not be asked to quit'; fi
  exit "$1"
}
# Process 1 of a container is not ended by a signal that it does not handle.
trap 'leave 143' TERM
trap 'leave 130' INT
unmark started
unmark finished
ready=${LAUNCHER_READY_URL-http://localhost:15021/healthz/ready}
if [ -n "$ready" ]; then within "`seconds "${LAUNCHER_READY_TIMEOUT-}" 60`" 'the proxy' is_ready; fi
if [ -n "${LAUNCHER_START_AFTER-}" ] && [ -n "${LAUNCHER_MARKERS-}" ]; then
  within "`seconds "${LAUNCHER_START_AFTER_TIMEOUT-}" 300`" "container $LAUNCHER_START_AFTER" has_run "$LAUNCHER_START_AFTER"
  sleep "`seconds "${LAUNCHER_START_AFTER_DELAY-}" 0`"
fi
if [ -n "$become" ]; then
  trap - TERM INT
  mark started
  exec "$@"
fi
signalled=
child=
trap 'signalled=1; if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi' TERM INT HUP
# A shell takes the standard input away from what it runs in the background.
exec 3<&0
"$@" <&3 3<&- &
child=$!
exec 3<&-
if [ -n "$signalled" ]; then kill -TERM "$child" 2>/dev/null; fi
mark started
# A signal ends a wait, not the command.
signalled=
again=
while :; do
  wait "$child"
  got=$?
  if [ -z "$again" ] || [ "$got" != 127 ]; then code=$got; fi
  if [ -z "$signalled" ]; then break; fi
  signalled=
  again=1
done
leave "$code"
