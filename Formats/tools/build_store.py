"""Writes small ckstore stores straight from FORMAT.md, good ones and deliberately bad ones.

It knows nothing of the reader. A `Builder` keeps a model of what it has written (`checkpoints`), from which the
expected listings are made. The same calls give the same bytes.

Bad stores come from hooks that see every block and every slot just before it is sealed: what a hook changes gets a
right checksum, and so do all pointers above it, up to the slots. Damage that a checksum shall find is done to the
finished medium (`Builder.medium`). Section numbers are those of FORMAT.md.

`Builder` makes the blocks and the commits; lineage, accounting and compaction are in build_reclaim.py; a `DraftBuilder`
writes as the draft of the format was, before version 1.
"""
from __future__ import annotations

import hashlib
import random
import struct
import uuid
from dataclasses import dataclass, field
from typing import Callable, Optional

import lz4.block
import xxhash

from build_reclaim import Reclaim, round_up

PAGE, SPAN, RUN_PAGES, FANOUT = 4096, 512, 16, 128
NULL = bytes(40)
MAGICS = {1: b"CKRN", 2: b"CKLF", 3: b"CKPL", 4: b"CKIN", 5: b"CKCP", 6: b"CKBT", 7: b"CKTL", 8: b"CKTI",
          9: b"CKSG", 10: b"CKCM", 11: b"CKFT"}
CLASS_OF_KIND = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2}
FEATURES = {"draft": (1, 0, "draft"), "forwarding": (1, 1, "forwarding"), "lineage": (2, 0, "lineage")}
REGION_KINDS = {"memory": 1, "disk": 2, "state": 3}


def h128(data) -> bytes:
    return xxhash.xxh3_128_intdigest(bytes(data)).to_bytes(16, "little")


def text_page(text: str) -> bytes:
    """A page that compresses well."""
    raw = (text + "\n").encode()
    return (raw * (PAGE // len(raw) + 1))[:PAGE]


def noise_page(seed: int) -> bytes:
    """A page that does not compress."""
    return random.Random(seed).randbytes(PAGE)


def seal(block: bytearray) -> bytearray:
    """2.3: block checksum."""
    block[0:16] = h128(block[16:])
    return block


def seal_slot(slot: bytearray) -> bytearray:
    """3.1: slot checksum."""
    slot[8:24] = h128(slot[24:])
    return slot


class Medium:
    """A sparse file: only pages that were written are kept."""

    def __init__(self, size: int):
        self.size, self.pages = size, {}

    def write(self, offset: int, data) -> None:
        assert offset + len(data) <= self.size
        data = bytes(data)
        while data:
            page, start = divmod(offset, PAGE)
            part = data[:PAGE - start]
            self.pages.setdefault(page, bytearray(PAGE))[start:start + len(part)] = part
            offset, data = offset + len(part), data[len(part):]

    def read(self, offset: int, length: int) -> bytes:
        result = bytearray()
        while len(result) < length:
            page, start = divmod(offset + len(result), PAGE)
            result += self.pages.get(page, bytes(PAGE))[start:start + length - len(result)]
        return bytes(result)

    def flip(self, offset: int, bit: int = 0) -> None:
        self.write(offset, bytes([self.read(offset, 1)[0] ^ 1 << bit]))

    def save(self, path) -> None:
        with open(path, "wb") as out:
            out.truncate(self.size)
            for page, data in sorted(self.pages.items()):
                if any(data):
                    out.seek(page * PAGE)
                    out.write(data[:self.size - page * PAGE])

    def patches(self, base: Optional["Medium"] = None) -> list:
        """What must be written over `base` (or over zeros) to get this medium, as {"offset", "hex"}."""
        result = []
        for page in sorted(set(self.pages) | set(base.pages if base else ())):
            new = self.pages.get(page, bytes(PAGE))
            old = base.pages.get(page, bytes(PAGE)) if base else bytes(PAGE)
            changed = [i for i in range(PAGE) if new[i] != old[i]]
            while changed:
                start = end = changed[0]
                while changed and changed[0] - end <= 8:
                    end = changed.pop(0)
                result.append({"offset": page * PAGE + start, "hex": bytes(new[start:end + 1]).hex()})
        return result


@dataclass
class Segment:
    """7.1"""
    state: int = 0
    cls: int = 0
    committed: int = 0
    live: int = 0
    written: int = 0
    birth: int = 0
    freed: int = 0

    def encode(self, has_written: bool) -> bytes:
        return struct.pack("<BBHIIIQQ", self.state, self.cls, 0, self.committed, self.live, self.written if has_written else 0,
                           self.birth, self.freed)

    def add(self, units: int) -> None:
        self.live, self.written = self.live + units, self.written + units


@dataclass
class Leaf:
    """One span of a region as it was written: `places` is {page in the span: (run pointer, index, hash)}."""
    pointer: bytes
    places: dict
    base: Optional["Leaf"] = None


@dataclass
class Region:
    kind: str
    length: int
    content: dict                                   # page -> 4096 bytes, no zero pages
    leaves: dict = field(default_factory=dict)      # span -> Leaf
    nodes: dict = field(default_factory=dict)       # (level, first page, children) -> pointer, its own and its ancestors'
    inner: list = field(default_factory=list)       # pointers of the inner nodes of its tree
    root: bytes = NULL
    new_pages: int = 0

    def pages_digest(self) -> str:
        """SHA-256 over the index (u64) and the bytes of every page that is not zero, ascending."""
        digest = hashlib.sha256()
        for page in sorted(self.content):
            digest.update(struct.pack("<Q", page) + self.content[page])
        return digest.hexdigest()


@dataclass
class Checkpoint:
    id: int
    name: str
    parent: int
    created: int
    labels: dict
    regions: dict
    group: int = 0
    pointer: bytes = NULL
    generation: int = 0
    new_pages: int = 0
    stored_bytes: int = 0


class Builder(Reclaim):
    """A writer of one store. `on_block(kind, block, note)` and `on_slot(generation, slot)` may change bytes before
    they are sealed; `note` says what the block is for, as a tuple of text and numbers. `on_lineage(generation, entries)`
    may change the lineage tree's entries, {key: value}. `features` are further ones, as (mask, bit, name)."""
    has_written = True

    def __init__(self, *, segment_count=8, segment_size=131072, twin_offset=131072, commit_unit=4096,
                 catalog_fanout=3, forwarding_fanout=512, features=(), placement=None, seed=1,
                 on_block: Optional[Callable] = None, on_slot: Optional[Callable] = None,
                 on_lineage: Optional[Callable] = None):
        self.segment_count, self.segment_size, self.commit_unit = segment_count, segment_size, commit_unit
        self.twin_offset, self.data_offset, self.features = twin_offset, 2 * twin_offset, features
        self.catalog_fanout, self.forwarding_fanout, self.placement = catalog_fanout, forwarding_fanout, list(placement or [])
        self.on_block, self.on_slot, self.on_lineage = on_block, on_slot, on_lineage
        self.random = random.Random(seed)
        self.uuid = uuid.UUID(int=self.random.getrandbits(128), version=4)
        self.page_hash_seed = self.random.getrandbits(64)
        self.medium = Medium(self.medium_bytes)
        self.segments, self.checkpoints, self.blocks = {}, {}, {}
        self.lineage, self.references, self.moved = {}, {}, {}
        self.catalog_segment, self.generation = 0xFFFFFFFF, 0
        self.catalog_memo, self.table_memo = {}, {}
        self.slot_history = {}
        self.table_depth = 0
        while 64 << 6 * self.table_depth < segment_count:
            self.table_depth += 1
        self.roots = [NULL] * 5          # in the order of the slot: by id, by name, table, forwarding, lineage
        self.reachable = {}             # pointer -> length, of the nodes of the newest generation's B+ trees and forwarding tables
        self.write_slots(1)

    @property
    def medium_bytes(self) -> int:
        return self.data_offset + self.segment_count * self.segment_size

    # ------------------------------------------------------------ blocks

    def position(self, segment: int, offset: int) -> int:
        return self.data_offset + segment * self.segment_size + offset

    def put(self, kind: int, body: bytes, birth: int, segment: int, offset: int, note: tuple, codec: int = 0) -> bytes:
        """Seals a block (its header and `body`), writes it, and gives the pointer to it."""
        block = bytearray(bytes(16) + MAGICS[kind] + struct.pack("<IQ", 32 + len(body), birth) + body)
        if self.on_block:
            self.on_block(kind, block, note)
        seal(block)
        self.medium.write(self.position(segment, offset), block)
        self.blocks[note] = (self.position(segment, offset), len(block))
        return struct.pack("<IIIBBHQ", segment, offset, len(block), kind, codec, 0, birth) + bytes(block[:16])

    def claim(self, cls: int, birth: int) -> int:
        """Section 8, rule 4; 4.1."""
        order = self.placement + list(range(self.segment_count))
        index = next(i for i in order if self.segments.get(i, Segment()).state == 0
                     and (self.segments.get(i, Segment()).freed == 0 or self.generation > self.segments[i].freed))
        self.segments[index] = Segment(1, cls, birth=birth)
        body = self.uuid.bytes + struct.pack("<IB3xQI60x", index, cls, self.generation, self.segment_size)
        self.put(9, body, birth, index, 0, ("header", index))
        return index

    class Appender:
        """What one checkpoint, or a compaction, writes to segments of one class; not to those of `avoid`."""

        def __init__(self, builder: "Builder", cls: int, birth: int, own_segments: bool, avoid=()):
            self.builder, self.cls, self.birth, self.own_segments, self.avoid = builder, cls, birth, own_segments, avoid
            self.segment, self.at, self.parts = None, 0, []     # parts: [segment, first offset, end offset]

        def begin(self, need: int) -> None:
            b = self.builder
            for index, entry in sorted(b.segments.items()):
                if not self.own_segments and entry.state == 1 and entry.cls == self.cls and index not in self.avoid \
                        and index not in [part[0] for part in self.parts] \
                        and entry.committed + need <= b.segment_size - b.commit_unit:
                    self.segment, self.at = index, round_up(entry.committed, b.commit_unit)
                    break
            else:
                self.segment, self.at = b.claim(self.cls, self.birth), 128
            self.parts.append([self.segment, self.at, self.at])

        def append(self, kind: int, body: bytes, note: tuple, codec: int = 0, birth: Optional[int] = None) -> bytes:
            """`birth`: of a block that is only moved."""
            b, length = self.builder, 32 + len(body)
            if self.segment is None or self.at + length > b.segment_size - b.commit_unit:
                self.begin(length)
            pointer = b.put(kind, body, self.birth if birth is None else birth, self.segment, self.at, note, codec)
            self.parts[-1][2] = self.at + length
            self.at = round_up(self.at + length, 64)
            entry = b.segments[self.segment]
            entry.add(body[16] if kind == 1 else -(-length // 64))
            entry.birth = self.birth
            return pointer

        def finish(self, record: bytes, name: bytes) -> None:
            """4.2: commit records, and the new committedLength."""
            b = self.builder
            for segment, first, end in self.parts:
                at = round_up(end, 64)
                if at + 88 + len(name) > b.segment_size - b.commit_unit:
                    at = b.segment_size - b.commit_unit
                body = record + struct.pack("<IIIHH", segment, first, end, len(name), 0) + name
                b.put(10, body, self.birth, segment, at, ("commit", segment, name.decode()))
                b.segments[segment].committed = round_up(at + 32 + len(body), b.commit_unit)

    # ------------------------------------------------------------ 5. pages

    def write_runs(self, runs: Builder.Appender, key: int, span: int, pages: dict, note: tuple, size: int) -> dict:
        """5.1: {page in the span: (run pointer, index, hash)}, `size` pages to a run."""
        places, numbers = {}, sorted(pages)
        for i in range(0, len(numbers), size):
            part = numbers[i:i + size]
            raw = b"".join(pages[q] for q in part)
            packed = lz4.block.compress(raw, store_size=False)
            codec = 1 if len(packed) < len(raw) else 0
            head = struct.pack("<QQBBHI", key, span * SPAN, len(part), codec, 0, 0) + struct.pack(f"<{len(part)}H", *part)
            head += bytes(round_up(32 + len(head), 8) - 32 - len(head))
            pointer = runs.append(1, head + (packed if codec else raw), ("run", *note, span, part[0]), codec)
            for index, q in enumerate(part):
                hashed = xxhash.xxh3_128_intdigest(pages[q], seed=self.page_hash_seed).to_bytes(16, "little")
                places[q] = (pointer, index, hashed)
        return places

    def full_leaf(self, index: Builder.Appender, key: int, span: int, places: dict, note: tuple) -> Leaf:
        """5.2"""
        runs = list(dict.fromkeys(places[q][0] for q in sorted(places)))
        extents = []                                # [first page, count, page of the run, run]
        for q in sorted(places):
            pointer, at, _ = places[q]
            run = runs.index(pointer)
            last = extents[-1] if extents else None
            if last and last[3] == run and last[0] + last[1] == q and last[2] + last[1] == at and last[1] < RUN_PAGES:
                last[1] += 1
            else:
                extents.append([q, 1, at, run])
        body = struct.pack("<QQHHHH", key, span * SPAN, len(runs), len(extents), len(places), 0) + b"".join(runs)
        body += b"".join(struct.pack("<HBBHH", *extent, 0) for extent in extents)
        body += b"".join(places[q][2] for q in sorted(places))
        return Leaf(index.append(2, body, ("leaf", *note, span)), places)

    def patch_leaf(self, index: Builder.Appender, key: int, span: int, base: Leaf, places: dict, note: tuple) -> Leaf:
        """5.3"""
        changed = sorted(q for q in set(base.places) | set(places) if base.places.get(q) != places.get(q))
        runs = list(dict.fromkeys(places[q][0] for q in changed if q in places))
        body = struct.pack("<QQHHI", key, span * SPAN, len(runs), len(changed), 0) + base.pointer + b"".join(runs)
        for q in changed:
            if q in places:
                body += struct.pack("<HHB3x", q, runs.index(places[q][0]), places[q][1]) + places[q][2]
            else:
                body += struct.pack("<HHB3x", q, 0xFFFF, 0) + bytes(16)
        return Leaf(index.append(3, body, ("patch", *note, span)), places, base)

    def page_table(self, index: Builder.Appender, region: Region, key: int, note: tuple) -> tuple:
        """5.4: (root, depth)."""
        region.inner = []
        spans, depth = -(-region.length // (SPAN * PAGE)), 0
        while FANOUT ** depth < spans:
            depth += 1
        level_nodes = {span: leaf.pointer for span, leaf in region.leaves.items()}
        for level in range(1, depth + 1):
            groups = {}
            for number, pointer in sorted(level_nodes.items()):
                groups.setdefault(number // FANOUT, {})[number % FANOUT] = pointer
            level_nodes = {}
            for number, members in groups.items():
                first = number * SPAN * FANOUT ** level
                memo = (level, first, tuple(members.items()))
                if memo not in region.nodes:
                    bitmap = sum(1 << i for i in members).to_bytes(16, "little")
                    body = struct.pack("<QQBBHI", key, first, level, 0, len(members), 0) + bitmap
                    body += b"".join(members[i] for i in sorted(members))
                    region.nodes[memo] = index.append(4, body, ("inner", *note, level, first))
                level_nodes[number] = region.nodes[memo]
                region.inner.append(region.nodes[memo])
        return level_nodes.get(0, NULL), depth

    # ------------------------------------------------------------ 6. checkpoints

    def checkpoint(self, name: str, regions: dict, *, parent: Optional[str] = None, labels=None, group=0,
                   patch=True, run_pages=RUN_PAGES, own_segments=False) -> Checkpoint:
        """Writes a checkpoint's blocks. `regions` is {name: (kind, length, {page: bytes or None})}; what is given is
        laid over the parent's pages, None makes a page zero, a kind of None drops the region. `own_segments`: appends to
        no other checkpoint's segments."""
        above = self.checkpoints[parent] if parent else None        # living, as section 8, rule 6, wants it
        new = Checkpoint(self.random.getrandbits(64), name, above.id if above else 0,
                         1_700_000_000_000_000_000 + self.generation * 10 ** 9, dict(labels or {}), {}, group)
        runs, index = (self.Appender(self, cls, new.id, own_segments) for cls in (1, 2))
        whole = dict(regions)
        for region_name, old in (above.regions if above else {}).items():
            whole.setdefault(region_name, (old.kind, old.length, {}))
        encoded = b""
        for region_name in sorted(whole, key=str.encode):
            kind, length, changes = whole[region_name]
            if kind is None:
                continue
            old = above.regions.get(region_name) if above else None
            region = Region(kind, length, dict(old.content) if old else {}, {}, dict(old.nodes) if old else {})
            for page, data in changes.items():
                region.content[page] = data
            region.content = {page: data for page, data in region.content.items()
                              if data is not None and any(data) and page * PAGE < length}
            encoded += self.write_region(runs, index, new, region_name, region, old, patch, run_pages)
            new.regions[region_name] = region
        new.new_pages = sum(region.new_pages for region in new.regions.values())
        labels_raw = b"".join(struct.pack("<HH", len(k), len(v)) + k + v for k, v in
                              sorted((k.encode(), v.encode()) for k, v in new.labels.items()))
        raw = name.encode()
        body = struct.pack("<QQQQHHIQQQ", new.id, new.parent, new.created, self.generation, len(raw), len(new.labels),
                           len(new.regions), new.new_pages, new.stored_bytes, group) + raw + labels_raw + encoded
        new.pointer = index.append(5, body, ("record", name))
        runs.finish(new.pointer, raw)
        index.finish(new.pointer, raw)
        self.checkpoints[name] = new
        return new

    def write_region(self, runs, index, checkpoint: Checkpoint, name: str, region: Region, old: Optional[Region],
                     patch: bool, run_pages: int) -> bytes:
        """The leaves and nodes of a region that differ from the parent's; gives the entry of the record."""
        key, note = xxhash.xxh3_64_intdigest(name.encode()), (checkpoint.name, name)
        before = old.content if old else {}
        for span in sorted({page // SPAN for page in region.content}):
            wanted = {p % SPAN: d for p, d in region.content.items() if p // SPAN == span}
            leaf = old.leaves.get(span) if old else None
            had = {p % SPAN: d for p, d in before.items() if p // SPAN == span}
            base = (leaf.base or leaf) if leaf else None
            base_fits = base and all((span * SPAN + q) * PAGE < region.length for q in base.places)
            if leaf and had == wanted and base_fits:
                region.leaves[span] = leaf
                continue
            fresh = {q: d for q, d in wanted.items() if had.get(q) != d}
            places = {q: leaf.places[q] for q in wanted if q not in fresh} if leaf else {}
            places.update(self.write_runs(runs, key, span, fresh, note, run_pages))
            region.new_pages += len(fresh)
            differing = sum(base.places.get(q) != places.get(q) for q in set(base.places) | set(places)) if base else 0
            if patch and base_fits and 1 <= differing <= 64:
                region.leaves[span] = self.patch_leaf(index, key, span, base, places, note)
            else:
                region.leaves[span] = self.full_leaf(index, key, span, places, note)
            checkpoint.stored_bytes += sum(struct.unpack_from("<I", pointer, 8)[0]
                                           for pointer in {places[q][0] for q in fresh})
        region.root, depth = self.page_table(index, region, key, note)
        raw = name.encode()
        return (struct.pack("<HBBIQQ", len(raw), REGION_KINDS[region.kind], depth, 0, region.length, key) + region.root
                + struct.pack("<QQ", len(region.content), region.new_pages) + raw)

    # ------------------------------------------------------------ 6.2, 7, 3: a commit

    def commit(self, *checkpoints: Checkpoint, delete=(), references=None) -> None:
        """3.3: catalog, segment table and slots of the next generation. `references` are {name: a checkpoint's, or None}."""
        generation = self.generation + 1
        for new in checkpoints:
            new.generation = generation
        self.update_lineage(checkpoints, delete, references or {})
        for name in delete:
            del self.checkpoints[name]
        entries = list(self.checkpoints.values())
        by_id = sorted((c.id.to_bytes(8, "big"), c.pointer + struct.pack("<QII", c.generation, 0, 0)) for c in entries)
        by_name = sorted((c.name.encode(), struct.pack("<Q", c.id)) for c in entries)
        self.free_segments(generation)
        self.open_catalog_segment(generation, 40 * 4096)
        self.forget_replaced()
        by_id, by_name = self.catalog(1, by_id, generation), self.catalog(2, by_name, generation)
        lineage = self.catalog(3, self.lineage_entries(generation), generation)
        forwarding = self.catalog(4, self.forwarding_tables(generation), generation)
        self.roots = [by_id, by_name, self.segment_table(generation), forwarding, lineage]
        self.write_slots(generation)

    def open_catalog_segment(self, generation: int, most: int) -> None:
        """A commit's catalog and table nodes go to one segment; a new one when the old may be too full."""
        entry = self.segments.get(self.catalog_segment)
        if entry is None or entry.committed + min(most, self.segment_size // 4) > self.segment_size:
            self.catalog_segment = self.claim(3, generation)
            self.catalog_at = 128
        else:
            self.catalog_at = entry.committed

    def forget_replaced(self) -> None:
        """What the newest generation does not reach may be gone with its segment."""
        self.catalog_memo = {key: pointer for key, pointer in self.catalog_memo.items() if pointer in self.reachable}
        self.reachable = {}

    def append_catalog(self, kind: int, body: bytes, generation: int, note: tuple) -> bytes:
        """A block behind those of the commit; one that stands there already, from an earlier commit, is used again."""
        if (kind, body) not in self.catalog_memo:
            self.catalog_memo[kind, body] = self.put_catalog(kind, body, generation, note)
            self.segments[self.catalog_segment].add(-(-(32 + len(body)) // 64))
        self.reachable[self.catalog_memo[kind, body]] = 32 + len(body)
        return self.catalog_memo[kind, body]

    def put_catalog(self, kind: int, body: bytes, generation: int, note: tuple) -> bytes:
        pointer = self.put(kind, body, generation, self.catalog_segment, self.catalog_at, note)
        self.catalog_at = round_up(self.catalog_at + 32 + len(body), 64)
        return pointer

    def catalog(self, tree: int, entries: list, generation: int) -> bytes:
        """6.2, bottom up; nodes that have not changed are used again."""
        if not entries:
            return NULL
        level, items = 0, entries
        while True:
            size = self.catalog_fanout
            groups = [items[i:i + size] for i in range(0, len(items), size)]
            nodes, last = [], None
            for number, group in enumerate(groups):
                if level == 0:
                    raw = b"".join(struct.pack("<HH", len(k), len(v)) + k + v for k, v in group)
                    low, high = group[0][0], group[-1][0]
                else:
                    keys = [b"" if number == 0 and i == 0 else item[0] for i, item in enumerate(group)]
                    raw = b"".join(struct.pack("<HH", len(k), 0) + k + item[2] for k, item in zip(keys, group))
                    low, high = group[0][0], group[-1][1]
                body = struct.pack("<BBHI", tree, level, len(group), 0) + raw
                pointer = self.append_catalog(6, body, generation, ("catalog", generation, tree, level, number))
                # The shortest key above everything in the node before and not above this node's first.
                key = low if last is None or level else next(
                    low[:n] for n in range(1, len(low) + 1) if low[:n] > last)
                nodes.append((key, high, pointer))
                last = high
            if len(nodes) == 1:
                return nodes[0][2]
            level, items = level + 1, nodes

    def table_leaf(self, group: int) -> bytes:
        """7.2: the body of the leaf of segments from 64 x group on."""
        return struct.pack("<IH10x", group * 64, 64) + b"".join(
            self.segments.get(group * 64 + i, Segment()).encode(self.has_written) for i in range(64))

    def segment_table(self, generation: int) -> bytes:
        """Section 7. The table holds the entry of the segment that it is written to, so sizes come first."""
        groups = {index // 64 for index in self.segments}
        members, numbers = {}, groups           # level -> {node: the nodes below it}
        for level in range(1, self.table_depth + 1):
            members[level] = {parent: sorted(n for n in numbers if n // 64 == parent) for parent in sorted({n // 64 for n in numbers})}
            numbers = set(members[level])
        inner = [48 + 40 * len(kids) for level in members.values() for kids in level.values()]
        fresh = self.settle_table(generation, groups, inner)
        assert self.segments[self.catalog_segment].committed <= self.segment_size
        for group in fresh:
            body = self.table_leaf(group)
            self.table_memo[group] = (body, self.put_catalog(7, body, generation, ("table", generation, 0, group * 64)))
        pointers = {group: self.table_memo[group][1] for group in groups}
        for level in range(1, self.table_depth + 1):
            above = {}
            for parent, kids in members[level].items():
                bitmap = sum(1 << kid % 64 for kid in kids).to_bytes(8, "little")
                first = parent * 64 ** (level + 1)
                body = struct.pack("<IBBH", first, level, 0, len(kids)) + bitmap + b"".join(pointers[k] for k in kids)
                above[parent] = self.put_catalog(8, body, generation, ("table", generation, level, first))
            pointers = above
        return pointers[0]

    def changed_leaves(self, groups) -> set:
        """The leaves of the table that the commit must write."""
        return {group for group in groups if self.table_memo.get(group, (None,))[0] != self.table_leaf(group)}

    def close_catalog_segment(self, generation: int, sizes: list) -> None:
        """Sets birth and committedLength as they are when the table's nodes, of these sizes, are written."""
        entry = self.segments[self.catalog_segment]
        entry.birth = generation
        entry.committed = round_up(self.catalog_at + sum(round_up(size, 64) for size in sizes), self.commit_unit)

    def all_features(self) -> list:
        """3.5: as (mask, bit, name)."""
        own = ["lineage"] + (["forwarding"] if self.roots[3] != NULL else [])
        return sorted([FEATURES[name] for name in own] + list(self.features))

    def write_slots(self, generation: int, kind: int = 1, base_generation: Optional[int] = None) -> None:
        """3.1"""
        used = sum(entry.state for entry in self.segments.values())
        features = self.all_features()
        bits = [sum(1 << bit for mask, bit, _ in features if mask == which) for which in (1, 2, 3)]
        self.slot_history[generation] = []
        for twin in (0, 1):
            slot = bytearray(4096)
            struct.pack_into("<8s16sHBBI16sQQQQIIIB3xQQQQ", slot, 0, b"CKSTORE1", bytes(16), generation % 16, twin, kind, 1,
                             self.uuid.bytes, generation, *bits, self.segment_size, self.commit_unit,
                             self.segment_count, self.table_depth, self.twin_offset, self.data_offset,
                             self.page_hash_seed, 1_700_000_000_500_000_000 + generation * 10 ** 9)
            slot[128:328] = b"".join(self.roots)
            struct.pack_into("<QIIIIQQ", slot, 328, len(self.checkpoints), used, self.catalog_segment, 0, 1, 0,
                             base_generation or generation)
            struct.pack_into("<H", slot, 512, len(features))
            for i, (mask, bit, name) in enumerate(features):
                struct.pack_into("<BBB29s", slot, 516 + 32 * i, mask, bit, len(name), name.encode())
            if self.on_slot:
                self.on_slot(generation, slot)
            seal_slot(slot)
            self.slot_history[generation].append(bytes(slot))
            self.medium.write(twin * self.twin_offset + generation % 16 * 4096, slot)
        self.generation = generation

    # ------------------------------------------------------------ what a reader should say

    def listing(self) -> dict:
        return {"generation": self.generation, "checkpoints": [
            {"id": f"{c.id:016x}", "name": c.name, "parent": f"{c.parent:016x}" if c.parent else None,
             "createdNanoseconds": c.created, "newPages": c.new_pages, "storedBytes": c.stored_bytes,
             "group": f"{c.group:016x}" if c.group else None,
             "labels": dict(sorted(c.labels.items(), key=lambda item: item[0].encode())),
             "regions": [{"name": n, "kind": r.kind, "byteLength": r.length, "storedPages": len(r.content),
                          "newPages": r.new_pages} for n, r in c.regions.items()]}
            for c in sorted(self.checkpoints.values(), key=lambda c: c.name.encode())]}

    def contents(self) -> list:
        return [{"checkpoint": c.name, "region": n, "pagesSha256": r.pages_digest()}
                for c in sorted(self.checkpoints.values(), key=lambda c: c.name.encode()) for n, r in c.regions.items()]


class DraftBuilder(Builder):
    """Writes as the draft was: no lineage, no forwarding, no `written`; `live` is only counted up."""
    has_written = False

    def all_features(self) -> list:
        return [FEATURES["draft"], *self.features]

    def forget_replaced(self) -> None:
        """No segment of class 3 is ever freed."""

    def update_lineage(self, checkpoints, delete, references) -> None:
        assert not references

    def lineage_entries(self, generation: int) -> list:
        return []

    def free_segments(self, generation: int) -> None:
        """Frees the segments of classes 1 and 2 that nothing names; a node that was replaced counts as named."""
        pointers = []
        for checkpoint in self.checkpoints.values():
            pointers.append(checkpoint.pointer)
            for region in checkpoint.regions.values():
                pointers += list(region.nodes.values())
                for leaf in region.leaves.values():
                    for each in filter(None, (leaf, leaf.base)):
                        pointers += [each.pointer] + [place[0] for place in each.places.values()]
        reached = {struct.unpack_from("<I", pointer)[0] for pointer in pointers}
        for index, entry in self.segments.items():
            if entry.state == 1 and entry.cls != 3 and index not in reached:
                self.segments[index] = Segment(0, entry.cls, birth=entry.birth, freed=generation)

    def settle_table(self, generation: int, groups: set, inner: list) -> list:
        fresh = sorted(self.changed_leaves(groups) | {self.catalog_segment // 64})
        sizes = [48 + 64 * 32] * len(fresh) + inner
        self.segments[self.catalog_segment].live += sum(-(-size // 64) for size in sizes)
        self.close_catalog_segment(generation, sizes)
        return fresh
