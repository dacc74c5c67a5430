"""A PostgreSQL server of Debian's package for a test: in a temporary folder, on a free port, gone with the test."""
import glob
import os
import pathlib
import shutil
import subprocess
import tempfile

from harness import servers


class Postgres:
    """A server of its own, or a standby of `primary`, which from then on waits with every commit until the standby has it on disk,
    unless it is not `synchronous`."""

    def __init__(self, primary=None, synchronous=True):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        assert found, "PostgreSQL is not installed (Debian's package postgresql)"
        self.programs = pathlib.Path(found[-1]).parent
        self.folder = tempfile.mkdtemp(prefix="geminga-postgres-")
        self.port = servers.free_port()
        # It refuses to run as root.
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.user:
            shutil.chown(self.folder, "postgres")
        if primary is None:
            self.run("initdb", "-A", "trust", "-U", "geminga", "--no-sync")
        else:
            self.run("pg_basebackup", "-h", "127.0.0.1", "-p", str(primary.port), "-U", "geminga", "-X", "stream", "-c", "fast", "-R", "--no-sync")
        self.start()
        self.databases = 0
        if primary is not None:
            if synchronous:
                primary.query("alter system set synchronous_standby_names = '*'")
                primary.query("select pg_reload_conf()")
            state = "streaming sync" if synchronous else "streaming async"
            servers.wait_for(lambda: primary.query("select state || ' ' || sync_state from pg_stat_replication") == state)

    def new_database(self):
        """The URL of an empty database."""
        self.databases += 1
        name = f"test_{self.databases}"
        subprocess.run([self.programs / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "geminga", name], check=True)
        return f"postgres://geminga@127.0.0.1:{self.port}/{name}"

    def query(self, sql, database="postgres"):
        done = subprocess.run([self.programs / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "geminga", "-Atc", sql, database], check=True,
                              capture_output=True, text=True)
        return done.stdout.strip()

    def fall_behind(self):
        """A standby that is not waited for gets nothing any more of what is committed."""
        self.query("alter system set primary_conninfo = ''")
        self.query("select pg_reload_conf()")
        servers.wait_for(lambda: self.query("select count(*) from pg_stat_wal_receiver") == "0")

    def promote(self):
        """A standby becomes the primary, and waits for nobody."""
        self.run("pg_ctl", "-w", "promote")
        self.query("alter system reset synchronous_standby_names")
        self.query("select pg_reload_conf()")

    def run(self, program, *arguments):
        subprocess.run([*self.user, self.programs / program, "-D", f"{self.folder}/data", *arguments], check=True, cwd="/",
                       stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def start(self):
        # Its shared memory is in the folder, where a kill leaves nothing behind.
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c dynamic_shared_memory_type=mmap"
        self.run("pg_ctl", "-w", "-l", f"{self.folder}/log", "-o", settings, "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-w", "-m", mode, "stop")

    def is_running(self):
        return subprocess.run([*self.user, self.programs / "pg_ctl", "-D", f"{self.folder}/data", "status"], cwd="/", capture_output=True).returncode == 0

    def close(self):
        if self.is_running():
            self.stop("immediate")
        shutil.rmtree(self.folder)
