#!/usr/bin/python3
"""Changes random bytes of sample stores and asks the reader about them: it must never end in a traceback, never hang,
and never restore other bytes than the good store's without saying so.

    fuzz_reader.py [ROUNDS] [SEED]

Half of the rounds seal what they changed with right checksums (by the builder's hooks), so that field checks are met.
"""
import io
import pathlib
import random
import sys
import tempfile
import time
import types
from contextlib import redirect_stdout

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import ckstore  # noqa: E402
import make_golden  # noqa: E402
import reader  # noqa: E402


def scramble(block: bytearray, rng: random.Random, first: int) -> None:
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(first, min(len(block), first + rng.choice((40, 100, 4096))))
        block[at] = rng.choice((0, 1, 255, 128, block[at] ^ 1 << rng.randrange(8), rng.randrange(256)))


def ask(path: str, good, resealed: bool) -> str:
    try:
        store = ckstore.Store(ckstore.Medium(path))
        for command in (reader.info, reader.dump):
            with redirect_stdout(io.StringIO()):
                command(store, types.SimpleNamespace(segment=None))
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


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10 ** 9
    print(f"seed {seed}")
    outcome = {}
    good = make_golden.chain()
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/store"
        for number in range(rounds):
            rng = random.Random(f"{seed}.{number}")
            resealed = rng.random() < 0.6
            if resealed:
                target = rng.choice([note for note in good.blocks if note[1] in ("last", "alpha", make_golden.LAST)] + ["slot"] * 5)

                def on_block(_, block, note):
                    if note == target:
                        scramble(block, rng, 20)

                def on_slot(generation, slot):
                    if target == "slot" and generation == make_golden.LAST:
                        scramble(slot, rng, 24)
                b = make_golden.chain(on_block=on_block, on_slot=on_slot)
            else:
                b = make_golden.chain()
                for _ in range(rng.choice((1, 3))):
                    offset = rng.choice([rng.choice(list(b.blocks.values()))[0], rng.randrange(16) * 4096, b.twin_offset])
                    b.medium.flip(offset + rng.randrange(200), rng.randrange(8))
            b.medium.save(path)
            try:
                started = time.monotonic()
                said = ask(path, good, resealed)
                assert time.monotonic() - started < 20, "too slow"
            except Exception:
                print(f"round {number} of seed {seed}")
                raise
            outcome[said] = outcome.get(said, 0) + 1
    print(outcome)


if __name__ == "__main__":
    main()
