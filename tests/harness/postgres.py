"""A PostgreSQL server of Debian's package for a test: in a temporary folder, on a free port, gone with the test."""
import glob
import os
import pathlib
import shutil
import subprocess
import tempfile

from harness import servers


class Postgres:
    def __init__(self):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        assert found, "PostgreSQL is not installed (Debian's package postgresql)"
        self.programs = pathlib.Path(found[-1]).parent
        self.folder = tempfile.mkdtemp(prefix="geminga-postgres-")
        self.port = servers.free_port()
        # It refuses to run as root.
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.user:
            shutil.chown(self.folder, "postgres")
        self.run("initdb", "-A", "trust", "-U", "geminga", "--no-sync")
        self.start()
        self.databases = 0

    def new_database(self):
        """The URL of an empty database."""
        self.databases += 1
        name = f"test_{self.databases}"
        subprocess.run([self.programs / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "geminga", name], check=True)
        return f"postgres://geminga@127.0.0.1:{self.port}/{name}"

    def run(self, program, *arguments):
        subprocess.run([*self.user, self.programs / program, "-D", f"{self.folder}/data", *arguments], check=True, cwd="/",
                       stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def start(self):
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-w", "-l", f"{self.folder}/log", "-o", settings, "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-w", "-m", mode, "stop")

    def close(self):
        self.stop("immediate")
        shutil.rmtree(self.folder)
