#!/usr/bin/env bash
# Runs the tests that pulsar-client-go brings, against a server on localhost:6650 and localhost:8080, which they have fixed:
# so all of it happens in a network namespace of its own.
#
# Usage: upstream.sh --server 'COMMAND' [--record] [--only REGEX] [--jobs N] [--logs DIR]
#   COMMAND starts the server, stays in the foreground, and is ended by SIGTERM;
#   --record writes upstream-passing.txt anew (run it against Apache Pulsar) instead of checking against it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
version=v0.19.0
server='' args=()
while [ $# -gt 0 ]; do
  case $1 in
    --server) server=$2; shift 2;;
    --record) args+=(--record); shift;;
    --only|--jobs|--logs|--limit) args+=("$1" "$2"); shift 2;;
    *) echo "unknown option $1" >&2; exit 2;;
  esac
done
[ -n "$server" ] || { echo "--server is missing" >&2; exit 2; }

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cache=${XDG_CACHE_HOME:-$HOME/.cache}/geminga/go-upstream/$version
if [ ! -e "$cache/complete" ]; then
  source=$(cd "$work" && go mod download -json "github.com/apache/pulsar-client-go@$version" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
  rm -rf "$cache"; mkdir -p "$cache"
  cp -R "$source/." "$cache/"; chmod -R u+w "$cache"
  for package in pulsar pulsaradmin/pkg/admin; do
    (cd "$cache/$package" && go test -c -o package.test .)
  done
  touch "$cache/complete"
fi
cp -R "$cache" "$work/source"    # tests write beside their sources

namespace=(unshare -n); [ "$(id -u)" = 0 ] || namespace=(unshare -rn)
export UPSTREAM_SERVER=$server
"${namespace[@]}" bash -c '
  set -euo pipefail
  ip link set lo up
  setsid bash -c "exec $UPSTREAM_SERVER" > "$1/server.log" 2>&1 < /dev/null & server=$!
  trap "kill -TERM $server 2> /dev/null || true; wait $server 2> /dev/null || true" EXIT
  for i in $(seq 1200); do
    if curl -sf -m 2 http://localhost:8080/admin/v2/clusters > /dev/null && curl -sf -m 2 http://localhost:8080/admin/v2/namespaces/public > /dev/null; then break; fi
    if ! kill -0 $server 2> /dev/null || [ $i = 1200 ]; then echo "no server came up:" >&2; tail -n 30 "$1/server.log" >&2; exit 1; fi
    sleep 0.1
  done
  status=0
  python3 "$2/upstream_run.py" --source "$1/source" --list "$2/upstream-passing.txt" "${@:3}" || status=$?
  if ! kill -0 $server 2> /dev/null; then echo "the server ended during the tests:" >&2; tail -n 30 "$1/server.log" >&2; status=1; fi
  exit $status
' upstream "$work" "$here" "${args[@]}"
