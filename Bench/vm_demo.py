"""The demonstration: checkpoints of a running guest, its end, and every one of them brought back."""

import dataclasses
import sys
import time

import vm_store
from live_guest import LiveGuest, Machine, built_guest
from vm_store import MEGABYTE

CHECKPOINTS = ["monday", "tuesday", "wednesday", "thursday"]
SECONDS_BETWEEN = 1.0
DIRTY_PAGES_PER_SECOND = 5000


@dataclasses.dataclass
class Setup:
    """A way to run the machine, and the engine that captures it."""

    engine: str
    shares_memory: bool
    disk_format: str
    title: str


SETUPS = [
    Setup("background", False, "qcow2", "background engine: private memory, a qcow2 disk"),
    Setup("external", True, "raw", "external engine: shared memory (a memfd), a raw disk"),
]


def run(program, folder, options):
    """Prints a table for each setup; answers all figures. Raises `Trouble` when a restored guest is not as it has to be."""
    guest = built_guest()
    results = []
    for number, setup in enumerate(SETUPS):
        place = folder / f"{number}"
        place.mkdir()
        results.append({"engine": setup.engine, **demonstrate(setup, program, place, guest, options.memory)})
    print("Every restored guest went on from exactly its checkpoint: memory, counters and disk records agreed in all of them.")
    return {"memory_mebibytes": options.memory, "setups": results}


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def demonstrate(setup, program, folder, guest, memory):
    print(f"\n{setup.title}; guest of {memory} MiB", flush=True)
    store = vm_store.Store(program, folder)
    machine = Machine(guest, folder / "guest", memory, setup.shares_memory, setup.disk_format)
    checkpoints, usual_stall = taken(setup, store, machine, memory)
    restores = []
    for mark, checkpoint in enumerate(checkpoints, start=1):
        # All of them whole; the last one lazily too.
        for lazy in [False, True] if checkpoint is checkpoints[-1] else [False]:
            restores.append((checkpoint, lazy, restored(store, checkpoint, machine, mark, folder / f"restored-{mark}-{lazy}", lazy)))
    print_tables(checkpoints, usual_stall, restores)
    return {
        "usual_stall_seconds": usual_stall,
        "checkpoints": [{**checkpoint.report, "longestStallMicroseconds": round(checkpoint.longest_stall * 1e6)} for checkpoint in checkpoints],
        "restores": [{"checkpoint": checkpoint.name, "lazy": lazy, **dataclasses.asdict(restore)} for checkpoint, lazy, restore in restores],
    }


def taken(setup, store, machine, memory):
    """Boots the guest, takes the checkpoints while it works, and kills it."""
    checkpoints = []
    with LiveGuest.boot(machine) as guest:
        say("the guest is up; filling its memory")
        guest.command(f"fill {memory // 2}")
        guest.command(f"dirty {DIRTY_PAGES_PER_SECOND} {memory * 3 // 16}")
        guest.command("disks 3")
        start = time.monotonic()
        time.sleep(SECONDS_BETWEEN)
        usual_stall = guest.ticks.longest_gap(start, time.monotonic())
        for mark, name in enumerate(CHECKPOINTS, start=1):
            guest.command(f"mark {mark}")
            checkpoints.append(store.checkpoint(guest, name, setup.engine, latest=mark > 1))
            say(f"checkpoint {name} taken, the guest runs on")
            time.sleep(SECONDS_BETWEEN)
        answer = guest.command("check")
        if not answer["ok"]:
            raise vm_store.Trouble(f"the guest that was checkpointed has errors: {answer['errors'][:3]}")
    say("guest killed")
    return checkpoints, usual_stall


def restored(store, checkpoint, machine, mark, folder, lazy):
    place = machine.for_restore(folder)
    start = time.monotonic()
    guest, restore = store.restored(checkpoint, place, lazy)
    with guest:
        vm_store.prove(guest, checkpoint, mark)
        restore.complete = time.monotonic() - start
    place.disk.unlink()
    say(f"checkpoint {checkpoint.name} restored{' lazily' if lazy else ''}, checked, killed")
    return restore


def print_tables(checkpoints, usual_stall, restores):
    print(f"\n  {'CHECKPOINT':<12}{'STOP':>9}{'STALL':>10}{'TOTAL':>9}{'NEW PAGES':>11}{'STORED':>11}{'MEMORY':>12}")
    for checkpoint in checkpoints:
        report = checkpoint.report
        memory = f"{report['memoryBytes'] / checkpoint.total / 1e9:.2f} GB/s"
        print(f"  {report['checkpoint']:<12}{checkpoint.stop * 1e3:>6.1f} ms{checkpoint.longest_stall * 1e3:>7.1f} ms"
              f"{checkpoint.total:>7.2f} s{report['newPages']:>11}{report['storedBytes'] / MEGABYTE:>8.1f} MB{memory:>12}")
    print(f"  Stall: the guest's longest time without a tick of its millisecond clock while it was checkpointed; "
          f"{usual_stall * 1e3:.1f} ms without one.")
    print(f"\n  {'RESTORED':<12}{'HOW':<8}{'RUNNING AFTER':>14}{'FIRST TICK':>12}   WORKLOAD")
    for checkpoint, lazy, restore in restores:
        print(f"  {checkpoint.name:<12}{'lazily' if lazy else 'whole':<8}{restore.running * 1e3:>11.0f} ms{restore.first_tick * 1e3:>9.0f} ms"
              f"   goes on, all checks passed", flush=True)
