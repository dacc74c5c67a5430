"""What the Python suites share: starting servers (servers), reading processes (procfs), Pulsar's frames by hand (frames)."""
