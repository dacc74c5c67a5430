"""Load generators around one server, and the meter of what the server used meanwhile."""
import json
import os
import re
import resource
import subprocess
import tempfile
import threading
import time
import uuid

import disk
from harness import procfs, servers

# What the Java client allows by itself to be in flight; without a bound pulsar-perf only measures its own queue.
PERF_IN_FLIGHT = ["-ml", "64M"]


class Meter:
    """CPU and memory of a server's processes and the share of other work between `with` and its end, in `result`. Messages are added
    later. A process that ends meanwhile counts until it was last seen."""

    def __init__(self, server):
        self.server, self.result, self.peak_pss_mib, self.running = server, {}, 0, True

    def __enter__(self):
        for pid in self.server.pids:
            procfs.reset_peak(pid)
        self.cpu_s_before = {pid: procfs.cpu_s(pid) for pid in self.server.pids}
        self.cpu_s_seen = dict(self.cpu_s_before)
        self.before = self.now()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def now(self):
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime, procfs.machine_busy_s(), procfs.machine_stolen_s(), time.monotonic()

    def look(self):
        self.peak_pss_mib = max(self.peak_pss_mib, procfs.sum_over(self.server.pids, procfs.pss_mib))
        for pid in self.server.pids:
            self.cpu_s_seen[pid] = procfs.sum_over([pid], procfs.cpu_s) or self.cpu_s_seen.get(pid, 0)

    def sample(self):
        while self.running:
            self.look()
            time.sleep(2)

    def __exit__(self, *_):
        drivers, busy, stolen, wall = (after - before for before, after in zip(self.before, self.now()))
        self.running = False
        self.thread.join()
        self.look()
        server = sum(seen - self.cpu_s_before.get(pid, 0) for pid, seen in self.cpu_s_seen.items())
        self.result = {
            "server_cpu_s": round(server, 2),
            "driver_cpu_s": round(drivers, 2),
            "other_cpu": round(max(0.0, busy - server - drivers) / wall / os.cpu_count(), 3),
            "stolen_cpu": round(stolen / wall / os.cpu_count(), 3),
            "rss_peak_mib": round(procfs.sum_over(self.server.pids, procfs.rss_peak_mib), 1),
            "pss_peak_mib": round(self.peak_pss_mib, 1),
        }

    def of(self, messages):
        """The result, with messages per second of server CPU."""
        return {**self.result, "messages": messages, "msg_per_server_cpu_s": round(messages / max(self.result["server_cpu_s"], 0.01))}


class Bench:
    """One server with its generators."""

    def __init__(self, options, server):
        self.options, self.server = options, server
        self.warmed = False

    def topic(self, name):
        return f"persistent://public/default/{name}-{uuid.uuid4().hex[:8]}"

    def admin(self, method, path, body=None):
        return servers.admin(self.server.admin_url, method, path, body)

    def subscribe(self, topic, name):
        self.admin("PUT", f"{topic}/subscription/{name}")

    def fdatasync_p99_ms(self):
        """What a small durable append costs this disk now: fio appends 4 KiB with an fdatasync each, for 8 s."""
        with tempfile.TemporaryDirectory(dir=self.options.work) as folder:
            done = subprocess.run(["fio", "--name=appends", f"--directory={folder}", "--output-format=json", "--rw=write", "--bs=4k", "--size=1g",
                                   "--ioengine=psync", "--fdatasync=1", "--runtime=8", "--time_based"],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout)["jobs"][0]["sync"]["lat_ns"]["percentile"]["99.000000"] / 1e6

    def floor_p99_ms(self, rate):
        """What no log that syncs could go below now, at `rate` messages a second: publish p99 if only the disk took time."""
        return disk.percentile(disk.waits_at(rate, disk.appends(self.options.work, 8)), 0.99) * 1e3

    def backlog(self, topic):
        """Entries (or messages, as the server counts) that the subscriptions have not acknowledged."""
        return sum(s["msgBacklog"] for s in self.admin("GET", f"{topic}/stats")["subscriptions"].values())

    def consumers(self, topic):
        return sum(len(s["consumers"]) for s in self.admin("GET", f"{topic}/stats")["subscriptions"].values())

    def drop(self, topic):
        try:
            self.admin("DELETE", f"{topic}?force=true")
        except OSError:
            pass

    def warm_up(self):
        """A JVM needs load before it is as fast as it gets; Geminga gets the same."""
        if not self.warmed:
            topic = self.topic("warm-up")
            self.pulsar_perf(["produce", "-s", "1024", "-r", "1000000", "-time", "20", *PERF_IN_FLIGHT, topic], 60)
            self.drop(topic)
            self.warmed = True

    def pulsar_perf(self, arguments, limit_s):
        """Runs pulsar-perf to its end; messages and what it printed."""
        with tempfile.TemporaryDirectory(dir=self.options.work) as logs:
            environment = {**os.environ, "PULSAR_LOG_DIR": logs, "PULSAR_LOG_IMMEDIATE_FLUSH": "true",
                           "PULSAR_EXTRA_OPTS": "-Xms1g -Xmx1g -XX:MaxDirectMemorySize=2g -Dio.netty.leakDetection.level=disabled"}
            done = subprocess.run([f"{self.options.pulsar}/bin/pulsar-perf", arguments[0], "-u", self.server.pulsar_url, *arguments[1:]],
                                  env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=limit_s)
        found = re.findall(r"Aggregated throughput stats --- ([\d,.]+) records", done.stdout)
        if not found:
            raise RuntimeError(f"pulsar-perf printed no result:\n{done.stdout[-1500:]}")
        return int(float(found[-1].replace(",", ""))), done.stdout

    def perf(self, *arguments):
        """Starts `geminga perf`; result() of it waits for its end."""
        command = [self.options.geminga, "perf", arguments[0], "--url", self.server.pulsar_url, "--json", *map(str, arguments[1:])]
        return Perf(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def wait_consumers(self, topic, count, limit_s=30):
        end = time.monotonic() + limit_s
        while self.consumers(topic) < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{count} consumers did not connect")
            time.sleep(0.1)


class Perf:
    def __init__(self, process):
        self.process = process

    def result(self, limit_s):
        try:
            out, errors = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, errors = self.process.communicate()
            raise RuntimeError(f"geminga perf did not end within {limit_s} s:\n{errors[-1500:]}") from None
        if self.process.returncode != 0:
            raise RuntimeError(f"geminga perf failed:\n{errors[-1500:]}")
        return json.loads(out.strip().splitlines()[-1])
