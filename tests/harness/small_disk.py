"""A disk that is small enough to fill: a tmpfs, or where that does not do, a file with ext4 on a loop device."""
import contextlib
import subprocess
import tempfile


@contextlib.contextmanager
def small_disk(mib, kind):
    """The folder that a disk of that size is mounted at, gone afterwards. `kind`: "tmpfs" or "ext4"."""
    with tempfile.TemporaryDirectory(prefix="geminga-disk-") as folder, tempfile.NamedTemporaryFile(prefix="geminga-disk-") as image:
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", folder)
        else:
            image.truncate(mib << 20)
            run("mkfs.ext4", "-q", "-m", "0", "-F", image.name)
            run("mount", "-o", "loop", image.name, folder)
        try:
            yield folder
        finally:
            run("umount", folder)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"a small disk needs root and {command[0]}: {' '.join(command)}: {done.stderr.strip()}"
