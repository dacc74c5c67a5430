"""What a disk allows a log that syncs every message before it answers."""
import os
import pathlib
import tempfile
import time

APPEND_BYTES = 4096
FILE_BYTES = 64 << 20


def appends(folder, seconds):
    """Appends of 4 KiB, each with an fdatasync, one after the other in a file that is written already; when each began, and when it was durable, in s."""
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        file = os.open(pathlib.Path(inside, "appends"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            for _ in range(FILE_BYTES // (1 << 20)):
                os.write(file, bytes(1 << 20))
            os.fsync(file)
            data, offset = os.urandom(APPEND_BYTES), 0
            end = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < end:
                os.pwrite(file, data, offset)
                os.fdatasync(file)
                found.append((begun, time.perf_counter()))
                offset = (offset + APPEND_BYTES) % FILE_BYTES
        finally:
            os.close(file)
    return found


def waits_at(rate, appends):
    """How long messages that come `rate` times a second wait, in s, sorted, if each goes with the first append that begins after it came and
    nothing else takes time: no log that syncs can be faster. A pause of the disk counts here for every message that came in it, and only
    once in the percentiles of appends."""
    waits, due = [], appends[0][0]
    for begun, durable in appends:
        while due <= begun:
            waits.append(durable - due)
            due += 1 / rate
    return sorted(waits)


def percentile(ordered, part):
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
