"""What the builder of sample stores does over time: lineage and references, accounting, compaction, forwarding.

A part of build_store.py, in a file of its own. Where an engine counts up and down, this counts anew from the model at
every commit: both must come to the same. Section numbers are those of FORMAT.md.
"""
from __future__ import annotations

import copy
import struct
from typing import NamedTuple

import lz4.block

NULL = bytes(40)
RUN_HEAD = 56                           # 5.1: where the page list starts
TABLE_LEAF = 48 + 64 * 32               # 7.2


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def bits(pages) -> int:
    return sum(1 << page for page in pages)


class Moved(NamedTuple):
    """7.3: where the block of a pointer went."""
    pointer: bytes
    kept: int
    live: int


class Reclaim:
    """Mixed into Builder. `lineage` is {id: [parent's id or 0, is it living?]}, `references` {name: id}, `moved` {pointer: Moved}."""

    # ------------------------------------------------------------ 6.3, 6.4 lineage and references

    def update_lineage(self, checkpoints, delete, references: dict) -> None:
        for new in checkpoints:
            assert not new.parent or self.lineage[new.parent][1], "the parent is not living"
            self.lineage[new.id] = [new.parent, True]
            self.references["latest"] = new.id
        for name, target in references.items():
            assert name not in self.checkpoints
            self.references.pop(name, None)
            if target is not None:
                self.references[name] = self.checkpoints[target].id
        for name in delete:
            self.delete_node(self.checkpoints[name].id)

    def delete_node(self, number: int) -> None:
        """6.3: the node becomes a tombstone, and tombstones that hold nothing together go."""
        assert all(name == "latest" for name, target in self.references.items() if target == number)
        ancestor = self.lineage[number][0]
        while ancestor and not self.lineage[ancestor][1]:
            ancestor = self.lineage[ancestor][0]
        if self.references.get("latest") == number:
            self.references.pop("latest")
            if ancestor:
                self.references["latest"] = ancestor
        self.lineage[number][1] = False
        while number and not self.lineage[number][1]:
            parent, children = self.lineage[number][0], [n for n, (p, _) in self.lineage.items() if p == number]
            if len(children) >= 2:
                break
            for child in children:
                self.lineage[child][0] = parent
            del self.lineage[number]
            number = parent

    def lineage_entries(self, generation: int) -> list:
        """6.3, 6.4: the entries of the lineage tree."""
        entries = {bytes(8) + name.encode(): struct.pack("<Q", number) for name, number in self.references.items()}
        for number, (parent, is_living) in self.lineage.items():
            entries[struct.pack(">QQ", number, 0)] = struct.pack("<QB7x", parent, 1 if is_living else 2)
            if parent:
                entries[struct.pack(">QQ", parent, number)] = b""
        if self.on_lineage:
            self.on_lineage(generation, entries)
        return sorted(entries.items())

    # ------------------------------------------------------------ 7.1 accounting

    def named(self) -> dict:
        """{pointer: pages of the run that leaves list, None for other blocks} of all that living checkpoints name."""
        found = {}
        for checkpoint in self.checkpoints.values():
            found[checkpoint.pointer] = None
            for region in checkpoint.regions.values():
                found.update(dict.fromkeys(region.inner))
                for leaf in region.leaves.values():
                    for each in filter(None, (leaf, leaf.base)):
                        found[each.pointer] = None
                        for run, index, _ in each.places.values():
                            found.setdefault(run, set()).add(index)
        return found

    def place(self, pointer: bytes) -> bytes:
        """7.4"""
        return self.moved[pointer].pointer if pointer in self.moved else pointer

    def free_segments(self, generation: int) -> None:
        """7.1, 7.3: counts `live` of classes 1 and 2 and of the forwarding entries; frees what has none."""
        named, live = self.named(), {}
        self.moved = {pointer: moved._replace(live=1 if named[pointer] is None else bits(named[pointer]))
                      for pointer, moved in self.moved.items() if pointer in named}
        for pointer, pages in named.items():
            segment, _, length = struct.unpack_from("<III", self.place(pointer))
            live[segment] = live.get(segment, 0) + (-(-length // 64) if pages is None else len(pages))
        for index, entry in self.segments.items():
            if entry.state == 1 and entry.cls != 3:
                entry.live = live.get(index, 0)
                if not entry.live:
                    self.free(index, generation)

    def free(self, index: int, generation: int) -> None:
        entry = self.segments[index]
        entry.state, entry.committed, entry.live, entry.written, entry.freed = 0, 0, 0, 0, generation

    def settle_table(self, generation: int, groups: set, inner: list) -> list:
        """7.1: brings the entries to what they are behind this commit, and gives the leaves of the table that it writes.
        `inner` are the sizes of the table's inner nodes. A leaf that is written anew changes the entry of the segment
        that held the old one, which may be in yet another leaf."""
        before = copy.deepcopy(self.segments)
        fresh = {self.catalog_segment // 64} | groups - self.table_memo.keys()
        while True:
            self.segments = copy.deepcopy(before)
            sizes = [TABLE_LEAF] * len(fresh) + inner
            self.segments[self.catalog_segment].add(sum(-(-size // 64) for size in sizes))
            live = {self.catalog_segment: sum(-(-size // 64) for size in sizes)}
            kept = {self.table_memo[group][1]: TABLE_LEAF for group in groups - fresh}
            for pointer, length in {**self.reachable, **kept}.items():
                segment = struct.unpack_from("<I", pointer)[0]
                live[segment] = live.get(segment, 0) + -(-length // 64)
            for index, entry in self.segments.items():
                if entry.state == 1 and entry.cls == 3:
                    entry.live = live.get(index, 0)
                    if not entry.live:
                        self.free(index, generation)
            self.close_catalog_segment(generation, sizes)
            more = self.changed_leaves(groups - fresh)
            if not more:
                return sorted(fresh)
            fresh |= more

    # ------------------------------------------------------------ 8.2 compaction, 8.3 repair

    def compact(self, *victims: int, own_segments=True) -> None:
        """Moves all that lives out of these segments; the next commit frees them."""
        self.move([pointer for pointer in self.named() if struct.unpack_from("<I", self.place(pointer))[0] in victims],
                  own_segments, victims)

    def move(self, pointers: list, own_segments=True, avoid=()) -> None:
        """Moves the blocks of these pointers, runs without their dead pages."""
        named, number = self.named(), self.random.getrandbits(64)
        appenders = {cls: self.Appender(self, cls, number, own_segments, avoid) for cls in (1, 2)}
        for pointer in sorted(pointers, key=lambda each: struct.unpack_from("<II", self.place(each))):
            segment, offset, length, kind, codec, _, birth = struct.unpack_from("<IIIBBHQ", self.place(pointer))
            block = self.medium.read(self.position(segment, offset), length)
            kept = live = 1
            if kind == 1:
                kept = self.moved[pointer].kept if pointer in self.moved else (1 << block[48]) - 1
                live = bits(named[pointer])
            body = block[32:]
            if kept != live:
                body, codec = repacked(block, [i for i, bit in enumerate(pages_of(kept)) if live >> bit & 1])
                kept = live
            new = appenders[1 if kind == 1 else 2].append(kind, body, ("moved", self.generation, segment, offset), codec, birth)
            self.moved[pointer] = Moved(new, kept, live)
        for appender in appenders.values():
            appender.finish(NULL, b"")

    def shrink(self, segment_count: int) -> None:
        """3.2: fewer segments, from the next commit on; those that go must be free."""
        assert all(entry.state == 0 for index, entry in self.segments.items() if index >= segment_count)
        assert segment_count <= 64 and self.table_depth == 0
        self.segments = {index: entry for index, entry in self.segments.items() if index < segment_count}
        self.segment_count = segment_count

    def forwarding_tables(self, generation: int) -> list:
        """7.3: writes the tables; gives the entries of the forwarding tree."""
        rows, result = {}, []
        for pointer, moved in self.moved.items():
            segment, offset, _, kind, _, _, birth = struct.unpack_from("<IIIBBHQ", pointer)
            new_segment, new_offset, length, _, codec, _, _, checksum = struct.unpack("<IIIBBHQ16s", moved.pointer)
            rows.setdefault(segment, []).append((offset, birth, struct.pack(
                "<IIIIQ16sBBHHH", offset, new_segment, new_offset, length, birth, checksum, kind, codec, moved.kept, moved.live, 0)))
        for segment, entries in sorted(rows.items()):
            entries.sort()
            for i in range(0, len(entries), self.forwarding_fanout):
                part = entries[i:i + self.forwarding_fanout]
                body = struct.pack("<II", segment, len(part)) + b"".join(entry[2] for entry in part)
                pointer = self.append_catalog(11, body, generation, ("forwarding", generation, segment, i // self.forwarding_fanout))
                result.append((struct.pack(">IIQ", segment, part[0][0], part[0][1]), pointer))
        return result


def pages_of(mask: int) -> list:
    return [i for i in range(16) if mask >> i & 1]


def repacked(block: bytes, keep: list) -> tuple:
    """5.1: the body and codec of a run that has only the pages `keep` of this one."""
    count, codec = block[48], block[49]
    pages = struct.unpack_from(f"<{count}H", block, RUN_HEAD)
    payload = block[round_up(RUN_HEAD + 2 * count, 8):]
    raw = lz4.block.decompress(payload, uncompressed_size=count * 4096) if codec else payload
    raw = b"".join(raw[i * 4096:(i + 1) * 4096] for i in keep)
    packed = lz4.block.compress(raw, store_size=False)
    codec = 1 if len(packed) < len(raw) else 0
    head = block[32:48] + struct.pack("<BBHI", len(keep), codec, 0, 0) + struct.pack(f"<{len(keep)}H", *(pages[i] for i in keep))
    head += bytes(round_up(32 + len(head), 8) - 32 - len(head))
    return head + (packed if codec else raw), codec
