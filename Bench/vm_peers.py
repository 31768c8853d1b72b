"""The figures: checkpoints of running guests, beside what the same QEMU offers by itself, in the same run.

Guests of 512 MiB and of 2 GiB, half of whose memory is filled with content that LZ4 packs about 1.7 : 1; idle, with 20 MB/s
written into a region of 3/16 of the memory, and with that region written as fast as the guest can.

How it is measured:
- A stop is what QEMU's own STOP and RESUME events say. A stall is the longest time without a tick of the guest's
  millisecond clock, as the host sees it, from before the command until after it: it has waits for memory in it, too.
- Peers alternate with checkpoints in the same QEMU. Peers write beside the store and flush nothing; checkpoints count until they are durable.
- A lazy restore counts from the start of the command until QEMU says that the guest runs.
"""

import dataclasses
import statistics
import sys
import time

import vm_qemu
import vm_store
import vm_targets
from guest_trouble import Trouble
from live_guest import LiveGuest, Machine, built_guest
from vm_qemu import Figures

LOADS = {"idle": 0, "20 MB/s": 5000, "hard": -1}
STEADY = "20 MB/s"


@dataclasses.dataclass
class Repetitions:
    """How often what is measured."""

    background: int
    external: int
    steady: int
    lazy: int


THOROUGH = Repetitions(background=4, external=6, steady=20, lazy=10)
QUICK = Repetitions(background=2, external=3, steady=8, lazy=5)


@dataclasses.dataclass
class Row:
    """All runs of one way to keep a guest's state, the median of which counts."""

    memory: int
    load: str
    runs: list[Figures]

    @property
    def way(self):
        return self.runs[0].way

    def median(self, name):
        values = self.values(name)
        return statistics.median(values) if values else None

    def values(self, name):
        return [value for run in self.runs if (value := getattr(run, name)) is not None]


def run(program, folder, options):
    guest = built_guest()
    repetitions = QUICK if options.quick else THOROUGH
    rows, lazy = [], {}
    for memory in [512] if options.quick else [512, 2048]:
        rows += private_memory(program, made(folder / f"private-{memory}"), guest, memory, repetitions)
        more, lazy[memory] = shared_memory(program, made(folder / f"shared-{memory}"), guest, memory, repetitions)
        rows += more
    vm_targets.print_rows(rows)
    verdicts = vm_targets.verdicts(rows, lazy)
    vm_targets.print_verdicts(verdicts)
    return {
        "rows": [dataclasses.asdict(row) for row in rows], "lazyRestoreSeconds": lazy,
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def made(folder):
    folder.mkdir()
    return folder


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def put_to_work(guest, load, memory):
    guest.command(f"dirty {LOADS[load]} {memory * 3 // 16}")
    time.sleep(0.5)


def private_memory(program, folder, guest_image, memory, repetitions):
    """The background engine and all peers."""
    rows = []
    machine = Machine(guest_image, folder / "guest", memory, shares_memory=False, disk_format="qcow2")
    store = vm_store.Store(program, folder)
    with LiveGuest.boot(machine) as guest:
        guest.command(f"fill {memory // 2}")
        for load in LOADS:
            say(f"{memory} MiB, private memory, {load}")
            put_to_work(guest, load, memory)
            # The first snapshot of a QEMU splits its huge pages, which no later one has to do.
            vm_qemu.discarded_snapshot(guest)
            discarded, full, later = [], [], []
            for number in range(repetitions.background):
                discarded.append(vm_qemu.discarded_snapshot(guest))
                name = f"{load} {number}"
                figures = checkpointed(store, guest, name, "background", latest=number > 0)
                (later if number else full).append(figures)
            rows += [Row(memory, load, runs) for runs in [discarded, full, later]]
            rows.append(Row(memory, load, [vm_qemu.snapshot_in_image(guest)]))
            for program_name in ["cat", "lz4 -1"]:
                rows.append(Row(memory, load, [vm_qemu.migrated_to_file(guest, folder, program_name)]))
        check(guest)
    return rows


def shared_memory(program, folder, guest_image, memory, repetitions):
    """The external engine, and lazy restores of what it took."""
    rows = []
    machine = Machine(guest_image, folder / "guest", memory, shares_memory=True, disk_format="raw")
    store = vm_store.Store(program, folder)
    with LiveGuest.boot(machine) as guest:
        guest.command(f"fill {memory // 2}")
        for load in LOADS:
            say(f"{memory} MiB, shared memory, {load}")
            put_to_work(guest, load, memory)
            full = [checkpointed(store, guest, f"{load} full {number}", "external", latest=False) for number in range(2)]
            count = repetitions.steady if load == STEADY else repetitions.external
            later = []
            for number in range(count):
                time.sleep(0.3)
                later.append(checkpointed(store, guest, f"{load} {number}", "external", latest=True))
            rows += [Row(memory, load, full), Row(memory, load, later)]
        put_to_work(guest, STEADY, memory)
        last = store.checkpoint(guest, "last", "external", latest=True)
        check(guest)
    say(f"{memory} MiB, lazy restores")
    lazy = []
    for number in range(repetitions.lazy):
        place = machine.for_restore(folder / f"restored-{number}")
        restored, times = store.restored(last, place, lazy=True)
        restored.close()
        place.disk.unlink()
        lazy.append(times.running)
    return rows, lazy


def checkpointed(store, guest, name, engine, latest):
    checkpoint = store.checkpoint(guest, name.replace(" ", "-").replace("/", "-per-"), engine, latest)
    kind = "incremental" if latest else "full"
    return Figures(f"ckstore {engine}, {kind}", checkpoint.stop, checkpoint.longest_stall, checkpoint.total, checkpoint.report["storedBytes"])


def check(guest):
    answer = guest.command("check")
    if not answer["ok"]:
        raise Trouble(f"the guest has errors: {answer['errors'][:3]}")
