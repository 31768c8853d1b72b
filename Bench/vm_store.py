"""Live checkpoints as their users make them: `ckstore vm checkpoint` and `ckstore vm restore` with a guest that checks itself.

Invariants:
- Every process that is started here is waited for, and killed first when something goes wrong.
- A time starts before the process is started and ends with QEMU's own event, or with the guest's first tick.
"""

import dataclasses
import json
import subprocess
import time

from guest_process import die_with_parent
from guest_trouble import Trouble
from live_guest import LiveGuest

COMMAND_LIMIT_SECONDS = 300
MEGABYTE = 1_000_000


@dataclasses.dataclass
class Checkpoint:
    """A checkpoint that was taken, and what the guest said just before and after."""

    report: dict
    longest_stall: float
    before: dict
    after: dict

    @property
    def name(self):
        return self.report["checkpoint"]

    @property
    def stop(self):
        return self.report["stopMicroseconds"] / 1e6

    @property
    def total(self):
        return self.report["totalMicroseconds"] / 1e6


@dataclasses.dataclass
class Restore:
    """What a restore came to. `running`: seconds from the process's start until the guest ran; `complete`: it was checked whole."""

    running: float
    first_tick: float
    complete: float


class Store:
    """A store, used through the command."""

    def __init__(self, program, folder):
        self.program = program
        self.path = folder / "vm.ck"
        self.run("create", self.path, "--size", "16G")

    def run(self, *arguments):
        command = [self.program, *map(str, arguments)]
        try:
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_LIMIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Trouble(f"{' '.join(command)} did not end in {COMMAND_LIMIT_SECONDS} s") from error
        if result.returncode != 0:
            raise Trouble(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def checkpoint(self, guest, name, engine, latest):
        """Takes a checkpoint of a running guest."""
        before = guest.command("status")
        start = time.monotonic()
        arguments = ["vm", "checkpoint", self.path, name, "--qmp", guest.machine.path("qmp"), "--engine", engine, "--json"]
        report = json.loads(self.run(*arguments, *(["--latest"] if latest else [])))
        end = time.monotonic()
        return Checkpoint(report, guest.ticks.longest_gap(start, end), before, guest.command("status"))

    def start_restore(self, checkpoint, machine, lazy):
        """Starts QEMU with the checkpoint; the command ends with it."""
        disks = [word for disk in checkpoint.report["disks"] for word in ["--disk", f"{disk['name']}={machine.disk}"]]
        command = [self.program, "vm", "restore", self.path, checkpoint.name, *(["--lazy"] if lazy else []), *disks, "--",
                   *machine.arguments()]
        with open(machine.path("restore-log"), "wb") as log:
            return subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                    preexec_fn=die_with_parent)

    def restored(self, checkpoint, machine, lazy):
        """A guest brought back from the checkpoint, and how long that took until it ran."""
        start, start_monotonic = time.time(), time.monotonic()
        process = self.start_restore(checkpoint, machine, lazy)
        try:
            guest = LiveGuest(machine, process)
        except Trouble as trouble:
            raise Trouble(f"{trouble}\n{machine.path('restore-log').read_text(errors='replace')}") from trouble
        guest.monitor.drain()
        resumed = [event["time"] for event in guest.monitor.events if event["event"] == "RESUME"]
        first_tick = guest.ticks.first() - start_monotonic
        return guest, Restore(resumed[0] - start if resumed else first_tick, first_tick, 0)


def prove(guest, checkpoint, mark):
    """Checks that a restored guest goes on from exactly the checkpoint's state; raises `Trouble` if it doesn't.

    The workload checks itself: memory that mixes two moments, or a disk of another moment than the memory's, is an error to
    it. That it is this checkpoint and none of the others shows in the mark and the counters.
    """
    first, before = guest.first_status, checkpoint.before
    if first["mark"] != mark:
        raise Trouble(f"{checkpoint.name}: the guest is that of mark {first['mark']}, not {mark}")
    counters = [("ticks", first["ticks"], before["ticks"]), ("writes", first["dirty_written"], before["dirty_written"]),
                *((f"records of disk {number}", now["completed"], then["completed"])
                  for number, (now, then) in enumerate(zip(first["disks"], before["disks"], strict=True)))]
    for name, now, then in counters:
        if now < then:
            raise Trouble(f"{checkpoint.name}: the guest's {name} are {now}, and were {then} before the checkpoint")
    for _ in range(2):
        # The second time it has gone on for a while from where it was.
        answer = guest.command("check")
        if not answer["ok"]:
            raise Trouble(f"{checkpoint.name}: {answer['error_count']} errors, first {answer['errors'][:3]}")
        time.sleep(0.3)
    last = guest.command("status")
    if last["ticks"] <= first["ticks"] or last["dirty_written"] <= first["dirty_written"]:
        raise Trouble(f"{checkpoint.name}: the restored guest stands still")
