"""What QEMU offers by itself to keep a machine's state, measured as the checkpoints are.

Invariants:
- The guest runs again afterwards, and QEMU's capabilities and parameters are what they were.
- Files are written where the checkpoints' store is, and removed. Nothing is flushed to the medium: that is the peers' advantage.
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import time

from guest_trouble import Trouble, tool

UNLIMITED_BYTES_PER_SECOND = 1 << 40
CONVERGENCE_LIMIT_SECONDS = 40


@dataclasses.dataclass
class Figures:
    """Seconds, but for `bytes`. None: could not be measured."""

    way: str
    stop: float | None
    stall: float | None
    total: float | None
    bytes: int | None


def discarded_snapshot(guest):
    """The background snapshot into a socket whose reader throws everything away: the least that this QEMU can do."""
    monitor = guest.monitor
    ours, theirs = socket.socketpair()
    reader = subprocess.Popen([tool("dd"), "of=/dev/null", "bs=1M"], stdin=ours, stderr=subprocess.DEVNULL)
    ours.close()
    try:
        with theirs, capability(monitor, "background-snapshot"):
            monitor.pass_descriptor(theirs.fileno(), "discard")
            theirs.close()
            return migrated(guest, "snapshot, discarded", "fd:discard", None)
    finally:
        reader.wait(timeout=30)


def snapshot_in_image(guest):
    """savevm: into the qcow2 disk, with the guest stopped."""
    monitor = guest.monitor
    monitor.drain()
    seen, start = len(monitor.events), time.monotonic()
    answer = monitor.execute("human-monitor-command", limit=120, command_line="savevm bench")
    end = time.monotonic()
    if answer.strip():
        raise Trouble(f"savevm: {answer.strip()}")
    stop = monitor.wait_for(lambda event: event["event"] == "STOP", seen)
    resume = monitor.wait_for(lambda event: event["event"] == "RESUME", seen)
    [node] = [node for node in monitor.execute("query-named-block-nodes") if node["node-name"] == "disk0"]
    size = node["image"]["snapshots"][0]["vm-state-size"]
    monitor.execute("human-monitor-command", command_line="delvm bench")
    return Figures("savevm", resume["time"] - stop["time"], guest.ticks.longest_gap(start, end), end - start, size)


def migrated_to_file(guest, folder, program):
    """A live migration into a file, by way of `cat` or a compressor."""
    file = folder / "migrated"
    try:
        with parameter(guest.monitor, "max-bandwidth", UNLIMITED_BYTES_PER_SECOND):
            figures = migrated(guest, f"migrate exec:{program}", f"exec:{program} > '{file}'", file)
    finally:
        # An incoming `cat` that was cancelled may not have made it.
        file.unlink(missing_ok=True)
    return figures


def migrated(guest, way, uri, file):
    """Runs `migrate`, lets the guest run again, and measures both."""
    monitor = guest.monitor
    monitor.drain()
    seen, start = len(monitor.events), time.monotonic()
    monitor.execute("migrate", uri=uri)
    try:
        end_event = monitor.wait_for(has_ended, seen, CONVERGENCE_LIMIT_SECONDS)
    except TimeoutError:
        monitor.execute("migrate_cancel")
        monitor.wait_for(has_ended, seen, 30)
        return Figures(f"{way} (no end in {CONVERGENCE_LIMIT_SECONDS} s)", None, None, None, None)
    end = time.monotonic()
    if end_event["data"]["status"] != "completed":
        raise Trouble(f"{uri}: {monitor.execute('query-migrate')}")
    stop = monitor.wait_for(lambda event: event["event"] == "STOP", seen)
    if not monitor.execute("query-status")["running"]:
        # A migration that is complete leaves its source stopped; the state was saved when it ended.
        monitor.execute("cont")
        resumed = end_event["time"]
    else:
        resumed = monitor.wait_for(lambda event: event["event"] == "RESUME", seen)["time"]
    return Figures(way, resumed - stop["time"], guest.ticks.longest_gap(start, end), end - start, os.stat(file).st_size if file else None)


def has_ended(event):
    return event["event"] == "MIGRATION" and event["data"]["status"] in ["completed", "failed", "cancelled"]


@contextlib.contextmanager
def capability(monitor, name):
    def set_to(state):
        states = {name: state, "events": True}
        monitor.execute("migrate-set-capabilities", capabilities=[{"capability": key, "state": value} for key, value in states.items()])
    set_to(True)
    try:
        yield
    finally:
        set_to(False)


@contextlib.contextmanager
def parameter(monitor, name, value):
    usual = monitor.execute("query-migrate-parameters")[name]
    monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    monitor.execute("migrate-set-parameters", **{name: value})
    try:
        yield
    finally:
        monitor.execute("migrate-set-parameters", **{name: usual})
