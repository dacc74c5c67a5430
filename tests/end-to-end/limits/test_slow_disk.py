"""A stop finishes what is in flight, though the disk takes its time."""
import contextlib
import signal
import subprocess
import time

import raw
from harness import frames
from harness.small_disk import small_disk

TOPIC = "persistent://public/default/in-flight"
MESSAGES = 200


@contextlib.contextmanager
def frozen(disk):
    """Nothing is written to the disk meanwhile."""
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


def test_a_stop_waits_for_the_disk(start):
    with small_disk(256, "ext4") as disk:
        server = start(memory_mib=128, data_dir=f"{disk}/data")
        try:
            with raw.Client(server.port, timeout_s=30) as c:
                name = c.produce_on(TOPIC)
                c.write(frames.send_frame(1, 0, name, b"first"))
                c.expect(frames.SEND_RECEIPT)
                with frozen(disk):
                    for i in range(1, MESSAGES):
                        c.write(frames.send_frame(1, i, name, bytes(1000)))
                    c.ping()        # all that came before it is taken
                    server.process.send_signal(signal.SIGTERM)
                    time.sleep(7)
                answered = [c.expect(frames.SEND_RECEIPT)[2] for _ in range(1, MESSAGES)]
            assert answered == list(range(1, MESSAGES))
            assert server.process.wait(30) == 0
            server.start()
            stats = server.admin("GET", TOPIC.replace("://", "/") + "/internalStats")
            assert stats["numberOfEntries"] == MESSAGES
        finally:
            server.kill()       # before its disk goes
