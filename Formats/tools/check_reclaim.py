#!/usr/bin/python3
"""Holds sections 6.3, 7.3, 7.4 and 8.1 of FORMAT.md to random histories: what a deletion finds dead by walking the
neighbours' trees, as 8.1 says it, in the bytes of the store, is what no other checkpoint names by the writer's model.

    check_reclaim.py [HISTORIES] [SEED]

The histories branch, grow and shrink regions, delete, compact, move single blocks, and use freed segments again. After each
the reader must find every page of every checkpoint, no problem, and `live` exact.
"""
import pathlib
import random
import struct
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import ckstore  # noqa: E402
import reader  # noqa: E402
from build_store import Builder, noise_page, text_page  # noqa: E402

PAGE = 4096


# ---------------------------------------------------------------- 8.1, from the bytes

def neighbours(lineage, number: int) -> list:
    """Step 1: living checkpoints, reached over edges through tombstones only."""
    found, pending, visited = [], [number], {number}
    while pending:
        at = pending.pop()
        around = [child for child, (parent, _) in lineage.nodes.items() if parent == at] + [lineage.nodes[at][0]]
        for other in around:
            if other and other not in visited:
                visited.add(other)
                (found if lineage.nodes[other][1] else pending).append(other)
    return found


def node_at(store, region, level: int, first: int):
    """The pointer that stands at a place of a region's tree, or None."""
    pointer, at, its_level = region.root, 0, region.depth
    if level > its_level:
        return None
    while pointer is not None and its_level > level:
        step = 512 * 128 ** (its_level - 1)
        at, nodes = at + (first - at) // step * step, dict(store.inner_node(pointer, region, its_level, at))
        pointer, its_level = nodes.get(at), its_level - 1
    return pointer if at == first else None


def leaf_set(store, region, pointer, span: int) -> set:
    """What a leaf names: itself, its base, pages of runs."""
    found, places = set(), []
    listed = store.leaf(pointer, region, span, lambda each: found.add((each, None)), places.append)
    return found | {(place.run, place.index) for place in [*listed.values(), *places]}


def dying(store, name: str) -> set:
    """Step 2: {(pointer, page of the run, or None)}."""
    checkpoint, lineage = store.find_checkpoint(name), store.lineage()
    around = [store.checkpoint(*store.catalog_value(key, store.find(1, key)))
              for key in (other.to_bytes(8, "big") for other in neighbours(lineage, checkpoint.id))]
    _, record = store.catalog_value(checkpoint.id.to_bytes(8, "big"), store.find(1, checkpoint.id.to_bytes(8, "big")))
    dead = {(record, None)}

    def walk(region, others, level, first, pointer):
        theirs = [(other, node_at(store, other, level, first)) for other in others]
        if any(its == pointer for _, its in theirs):
            return
        if level:
            dead.add((pointer, None))
            for child_first, child in store.inner_node(pointer, region, level, first):
                walk(region, others, level - 1, child_first, child)
        else:
            mine = leaf_set(store, region, pointer, first)
            for other, its in theirs:
                if its is not None:
                    mine -= leaf_set(store, other, its, first)
            dead.update(mine)
    for region in checkpoint.regions:
        others = [r for other in around for r in other.regions if r.key == region.key]
        if region.root is not None:
            walk(region, others, region.depth, 0, region.root)
    return dead


# ---------------------------------------------------------------- the model's word

def named(b: Builder) -> set:
    return {(pointer, page) for pointer, pages in b.named().items() for page in ([None] if pages is None else pages)}


def as_written(dead: set) -> set:
    return {(struct.pack("<IIIBBHQ16s", *pointer), page) for pointer, page in dead}


# ---------------------------------------------------------------- histories

class History:
    def __init__(self, rng: random.Random, path: str):
        self.rng, self.path, self.number = rng, path, 0
        self.b = Builder(segment_count=64, twin_offset=65536, catalog_fanout=rng.choice((3, 12)), seed=rng.getrandbits(32),
                         forwarding_fanout=rng.choice((2, 5, 512)))

    def open(self):
        self.b.medium.save(self.path)
        return ckstore.Store(ckstore.Medium(self.path))

    def pages(self, length: int) -> dict:
        rng, low = self.rng, self.rng.randrange(length)
        found = {}
        for _ in range(rng.choice((1, 3, 20, 60))):
            page = min(length - 1, low + rng.choice((0, 1, 7, 40, 600)) + len(found))
            self.number += 1
            found[page] = rng.choice((None, noise_page(self.number), text_page(str(self.number)), text_page(str(self.number))))
        return found

    def save(self) -> None:
        rng, b = self.rng, self.b
        parent = rng.choice([None, *b.checkpoints, *b.checkpoints, *b.checkpoints])
        had = b.checkpoints[parent].regions if parent else {}
        regions = {}
        for name in ("ram", "disk"):
            if rng.random() < 0.7 or not had:
                length = had[name].length // PAGE if name in had and rng.random() < 0.8 else rng.choice((40, 700, 1300))
                regions[name] = ("memory", length * PAGE, self.pages(length))
            elif rng.random() < 0.1:
                regions[name] = (None, 0, {})
        self.number += 1
        b.commit(b.checkpoint(f"c{self.number}", regions, parent=parent, patch=rng.random() < 0.7, run_pages=rng.choice((3, 16)),
                              own_segments=rng.random() < 0.3))

    def delete(self) -> None:
        b, name = self.b, self.rng.choice(list(self.b.checkpoints))
        found, before = as_written(dying(self.open(), name)), named(b)
        b.commit(delete=[name])
        expected = before - named(b)
        assert found == expected, f"deleting {name}: {len(found - expected)} too many, {len(expected - found)} too few"

    def compact(self) -> None:
        b, rng = self.b, self.rng
        used = [index for index, entry in b.segments.items() if entry.state and entry.cls != 3]
        b.compact(*rng.sample(used, min(len(used), rng.choice((1, 2, 5)))), own_segments=rng.random() < 0.5)
        b.commit()

    def move(self) -> None:
        pointers = list(self.b.named())
        self.b.move(self.rng.sample(pointers, min(len(pointers), 3)))
        self.b.commit()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            do = self.rng.choice([self.save] * 4 + [self.delete] * 3 + [self.compact, self.move, self.b.commit])
            if do in (self.save, self.b.commit) or self.b.checkpoints:
                do()
        store = self.open()
        verifier = reader.Verifier(store)
        verifier.verify()
        assert not verifier.problems and not verifier.damages, (verifier.problems, verifier.damages)
        assert verifier.counts["overcounted"] == 0, "live is not exact"
        for name, checkpoint in self.b.checkpoints.items():
            its = {region.name: dict(store.read_pages(region)) for region in store.find_checkpoint(name).regions}
            assert its == {n: r.content for n, r in checkpoint.regions.items()}, f"wrong pages of {name}"


def main() -> None:
    histories = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10 ** 9
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as directory:
        for number in range(histories):
            try:
                History(random.Random(f"{seed}.{number}"), f"{directory}/store").run(40)
            except BaseException:
                print(f"history {number} of seed {seed}")
                raise
    print(f"{histories} histories: what dies is what no other names")


if __name__ == "__main__":
    main()
