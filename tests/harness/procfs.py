"""CPU and memory of processes and of the machine, from /proc."""
import os
import pathlib
import re

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid):
    """CPU seconds that a process and its threads have used, user and system."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def machine_busy_s():
    """CPU seconds that the whole machine has been busy, all cores added up, without what the hypervisor took."""
    user, nice, system, _idle, _iowait, irq, softirq, _steal = machine_ticks()
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def machine_stolen_s():
    """Seconds in which the hypervisor let processors wait that had something to do, all cores added up."""
    return machine_ticks()[7] / TICKS_PER_S


def machine_ticks():
    return [int(t) for t in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def sum_over(pids, figure):
    """The sum of a figure of each process; one that has ended meanwhile counts nothing."""
    total = 0
    for pid in pids:
        try:
            total += figure(pid)
        except (OSError, TypeError):
            pass
    return total


def children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_mib(pid):
    return status_kib(pid, "VmRSS") / 1024


def rss_peak_mib(pid):
    return status_kib(pid, "VmHWM") / 1024


def held_peak_mib(pid):
    """The most that the process held resident, without the pages of the program's own file: some 30 MiB of an unoptimised build,
    half of that of a release, and the kernel takes them back when it needs to."""
    return rss_peak_mib(pid) - status_kib(pid, "RssFile") / 1024


def reset_peak(pid):
    """From here on peaks count anew."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def pss_mib(pid):
    """Resident memory with each page counted once: ZGC maps its heap three times, which RSS counts three times."""
    found = re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(found[1]) / 1024


def status_kib(pid, key):
    found = re.search(rf"^{key}:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(found[1])
