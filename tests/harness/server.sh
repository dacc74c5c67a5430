# Bash functions to run one `geminga standalone` for a test suite. Source it; nothing here runs by itself.
#
# start_server BINARY [ARG...]   on an empty folder below $WORK; sets SERVER_PID and exports PULSAR_URL and ADMIN_URL
# stop_server                    ends it (SIGTERM, SIGKILL after 10 s); a server that had gone before counts as a failure
#
# $WORK must name a folder that the caller removes. Ports are free ones unless PULSAR_ADDR and HTTP_ADDR say otherwise.

SERVER_PID=

start_server() {
  local binary=$1 run ready waited=0; shift
  run=$(mktemp -d "$WORK/server.XXXXXX")
  ready=$run/ready.json SERVER_LOG=$run/server.log
  "$binary" standalone --data-dir "$run/data" --ready-file "$ready" \
    --pulsar-addr "${PULSAR_ADDR:-127.0.0.1:0}" --http-addr "${HTTP_ADDR:-127.0.0.1:0}" "$@" \
    > "$SERVER_LOG" 2>&1 < /dev/null &
  SERVER_PID=$!
  until [ -s "$ready" ]; do
    if ! kill -0 "$SERVER_PID" 2> /dev/null || [ $waited -ge 300 ]; then
      echo "geminga did not become ready; its log:" >&2
      tail -n 30 "$SERVER_LOG" >&2
      return 1
    fi
    sleep 0.1; waited=$((waited + 1))
  done
  PULSAR_URL=pulsar://$(json_field "$ready" pulsar)
  ADMIN_URL=http://$(json_field "$ready" http)
  export PULSAR_URL ADMIN_URL SERVER_PID SERVER_LOG
}

stop_server() {
  local pid=$SERVER_PID status=0 waited=0
  [ -n "$pid" ] || return 0
  SERVER_PID=
  if ! kill -TERM "$pid" 2> /dev/null; then
    echo "geminga (pid $pid) had ended by itself; the end of its log:" >&2
    tail -n 30 "$SERVER_LOG" >&2
    status=1
  fi
  while kill -0 "$pid" 2> /dev/null && [ $waited -lt 100 ]; do sleep 0.1; waited=$((waited + 1)); done
  if kill -KILL "$pid" 2> /dev/null; then
    echo "geminga (pid $pid) did not end within 10 s of SIGTERM" >&2
    status=1
  fi
  wait "$pid" 2> /dev/null || true
  unset PULSAR_URL ADMIN_URL
  return $status
}

json_field() { # FILE KEY: the string value of a key in a flat JSON object
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"
}
