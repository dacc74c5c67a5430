# Bash functions that install what the suites need, each once, below $CACHE. Source it; needs $CACHE.
#
# install_python   $VENV: a virtual environment with the packages of tests/clients/python/requirements.txt
# install_go       a Go toolchain (its modules go to Go's own cache)
# install_java     a JDK and Maven
# install_pulsar   $PULSAR_HOME: the published distribution of Apache Pulsar (the real pulsar-admin and pulsar-perf)
# install_openssl  the openssl command, for certificates of tests
# install_netns    unshare, ip and curl
# install_postgres the server of PostgreSQL, for tests that start their own
# install_all      everything

VENV=$CACHE/venv
PULSAR_VERSION=4.0.8
export PULSAR_HOME=${PULSAR_HOME:-$CACHE/pulsar-$PULSAR_VERSION}
export GOFLAGS=${GOFLAGS:--mod=mod}

debian() { # PROGRAM PACKAGE: installs the package when the program is missing
  if command -v "$1" > /dev/null; then return; fi
  debian_package "$2"
  command -v "$1" > /dev/null || { echo "package $2 does not bring $1" >&2; return 1; }
}

debian_package() { # PACKAGE
  local sudo=() lock; [ "$(id -u)" = 0 ] || sudo=(sudo)
  exec {lock}> "$CACHE/debian.lock"; flock "$lock"    # apt gives up where two run at once
  if [ -z "${APT_UPDATED:-}" ]; then "${sudo[@]}" apt-get update -qq; APT_UPDATED=1; fi
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$1" > /dev/null
  exec {lock}>&-
}

install_python() {
  local wanted=tests/clients/python/requirements.txt
  debian python3 python3
  if ! cmp -s "$wanted" "$VENV/requirements.txt"; then
    python3 -c 'import ensurepip' 2> /dev/null || debian_package python3-venv || true
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    "$VENV/bin/pip" install -q --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$VENV/requirements.txt"
  fi
  export PYTHONPATH=$PWD/tests PYTHONDONTWRITEBYTECODE=1
}

install_go() { debian go golang-go; }

install_java() { debian javac openjdk-17-jdk-headless; debian mvn maven; }

install_openssl() { debian openssl openssl; }

install_netns() { debian unshare util-linux; debian ip iproute2; debian curl curl; debian python3 python3; }

# Debian keeps the server out of the path. The tests look in the same places.
install_postgres() {
  if command -v postgres > /dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null; then return; fi
  debian_package postgresql
  compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null || { echo "package postgresql does not bring postgres" >&2; return 1; }
}

install_pulsar() {
  if [ -e "$PULSAR_HOME/bin/pulsar" ]; then return; fi
  local artifact=org.apache.pulsar:pulsar-server-distribution:$PULSAR_VERSION:tar.gz:bin unpack=$CACHE/pulsar-unpack
  mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:2.8:get -Dtransitive=false -Dartifact=$artifact
  rm -rf "$unpack"; mkdir -p "$unpack/dist"
  mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:2.8:copy -Dartifact=$artifact -DoutputDirectory="$unpack"
  tar -xzf "$unpack/pulsar-server-distribution-$PULSAR_VERSION-bin.tar.gz" -C "$unpack/dist" --strip-components=1
  mv "$unpack/dist" "$PULSAR_HOME"
  rm -rf "$unpack"
}

install_all() { install_postgres; install_netns; install_go; install_java; install_openssl; install_python; install_pulsar; }
