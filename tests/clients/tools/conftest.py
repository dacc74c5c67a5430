"""Runs the tools of Apache Pulsar's distribution ($PULSAR_HOME) against the server that PULSAR_URL and ADMIN_URL name."""
import os
import pathlib
import re
import subprocess
import uuid

import pytest

PULSAR_URL = os.environ.get("PULSAR_URL", "pulsar://127.0.0.1:6650")
ADMIN_URL = os.environ.get("ADMIN_URL", "http://127.0.0.1:8080")
BIN = pathlib.Path(os.environ["PULSAR_HOME"]) / "bin"
LIMIT_S = 240


class Tools:
    def __init__(self, folder):
        self.folder = folder
        configuration = folder / "client.conf"
        configuration.write_text(f"webServiceUrl={ADMIN_URL}/\nbrokerServiceUrl={PULSAR_URL}/\n")
        self.environment = {**os.environ, "PULSAR_CLIENT_CONF": str(configuration), "PULSAR_LOG_DIR": str(folder / "logs"),
                            "PULSAR_EXTRA_OPTS": f"-Xmx512m -Duser.home={folder}"}
        self.configuration = configuration

    def run(self, *command, check=True, limit_s=LIMIT_S):
        done = subprocess.run([str(BIN / command[0]), *map(str, command[1:])], env=self.environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s)
        assert not check or done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout[-3000:]}"
        return done

    def shell(self, *commands):
        """Commands in one pulsar-shell, as each start of pulsar-admin costs a JVM; what each printed, errors included."""
        script = self.folder / f"script-{uuid.uuid4().hex[:8]}"
        script.write_text("\n".join(commands) + "\n")
        text = self.run("pulsar-shell", "-c", self.configuration, "-np", "-f", script).stdout
        text = re.sub(r"\s*Goodbye!\s*$", "\n", text)
        parts = re.split(r"^\[\d+/\d+\] Executing .*$", text, flags=re.M)[1:]
        assert len(parts) == len(commands), text
        return [p.strip() for p in parts]


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    return Tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def name():
    return uuid.uuid4().hex[:8]
