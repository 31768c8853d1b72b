#!/usr/bin/python3
"""Changes random bytes of sample stores and asks the reader about them: it must never end in a traceback, never hang,
and never restore other bytes than the good store's without saying so.

    fuzz_reader.py [ROUNDS] [SEED]

Half of the rounds seal what they changed with right checksums (by the builder's hooks), so that field checks are met.
The stores are the chain, the one with branches and tombstones, and the ones with moved blocks.
"""
import io
import pathlib
import random
import sys
import tempfile
import time
import types
from contextlib import redirect_stderr, redirect_stdout

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import ckstore  # noqa: E402
import reader  # noqa: E402
from golden_good import GOOD  # noqa: E402

STORES = ("chain", "lineage", "forwarding", "forwarding-shrunk", "draft-chain")


def scramble(block: bytearray, rng: random.Random, first: int) -> None:
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(first, min(len(block), first + rng.choice((40, 100, 4096))))
        block[at] = rng.choice((0, 1, 255, 128, block[at] ^ 1 << rng.randrange(8), rng.randrange(256)))


def ask(path: str, good, resealed: bool) -> str:
    try:
        store = ckstore.Store(ckstore.Medium(path))
        for command in (reader.info, reader.dump, reader.list_checkpoints):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                command(store, types.SimpleNamespace(segment=None, tree=True, json=False))
        verifier = reader.Verifier(store)
        verifier.verify()
        for name, checkpoint in good.checkpoints.items():
            for region_name, region in checkpoint.regions.items():
                try:
                    found = store.find_checkpoint(name)
                    its = next((r for r in found.regions if r.name == region_name), None)
                    if its is None:
                        continue
                    pages = dict(store.read_pages(its))
                except ckstore.StoreError:
                    continue
                if not resealed:
                    assert pages == region.content, f"wrong pages of {name}, {region_name}"
        return "damaged" if verifier.damages or verifier.problems else "ok"
    except ckstore.StoreError as error:
        return error.word


def targets(good) -> list:
    """The blocks to change: the newest of each kind and tree, and what the oldest and the newest checkpoints wrote."""
    notes = [note for note in good.blocks if note[0] in ("moved", "forwarding") or note[1] in (good.generation, "last", "alpha")]
    trees = {}
    for note in good.blocks:
        if note[0] == "catalog":
            trees[note[2]] = note
    return notes + list(trees.values()) * 3 + ["slot"] * 5


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10 ** 9
    print(f"seed {seed}")
    outcome, stores = {}, {name: GOOD[name]() for name in STORES}
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/store"
        for number in range(rounds):
            rng = random.Random(f"{seed}.{number}")
            name = rng.choice(STORES)
            good, resealed = stores[name], rng.random() < 0.6
            if resealed:
                target = rng.choice(targets(good))

                def on_block(_, block, note):
                    if note == target:
                        scramble(block, rng, 20)

                def on_slot(generation, slot):
                    if target == "slot" and generation == good.generation:
                        scramble(slot, rng, 24)
                b = GOOD[name](on_block=on_block, on_slot=on_slot)
            else:
                b = GOOD[name]()
                for _ in range(rng.choice((1, 3))):
                    offset = rng.choice([rng.choice(list(b.blocks.values()))[0], rng.randrange(16) * 4096, b.twin_offset])
                    b.medium.flip(offset + rng.randrange(200), rng.randrange(8))
            b.medium.save(path)
            try:
                started = time.monotonic()
                said = ask(path, good, resealed)
                assert time.monotonic() - started < 20, "too slow"
            except Exception:
                print(f"round {number} of seed {seed}: {name}")
                raise
            outcome[said] = outcome.get(said, 0) + 1
    print(outcome)


if __name__ == "__main__":
    main()
