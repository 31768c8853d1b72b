"""Reading ckstore stores: the format of FORMAT.md as Python, written from that document alone.

`Store` opens a generation (3.2) and reads catalog, checkpoints, page tables and pages; `reader.py` has the
commands. Everything that is read is checked, sizes before anything is allocated; what is wrong raises a
StoreError. Section numbers ("4.3") are those of FORMAT.md. Needs Python 3.9, lz4 and xxhash.
"""
from __future__ import annotations

import os
import struct
import unicodedata
import uuid
from typing import Iterator, NamedTuple, Optional

import lz4.block
import xxhash

PAGE = 4096
SPAN = 512                      # pages (section 5)
SLOTS = 16                      # per ring (section 1)
INCOMPATIBLE = {0: "draft", 1: "forwarding"}        # the features that this reader knows (3.5)
READ_ONLY_COMPATIBLE = {0: "lineage"}
NOWHERE = 0xFFFFFFFF            # catalogSegment: not yet set
MAX_CATALOG_DEPTH = 16          # section 6.2


# ---------------------------------------------------------------- errors

class StoreError(Exception):
    """What stops a command; `word` is the kind of the error, the message says where."""
    word, exit_code = "failed", 1


class NotAStore(StoreError):
    word, exit_code = "not a store", 3


class Corrupt(StoreError):
    word, exit_code = "corrupt", 3


class Truncated(Corrupt):
    word = "truncated"


class SuperblockLost(Corrupt):
    word = "superblock lost"


class Unsupported(StoreError):
    word, exit_code = "unsupported", 3


class NotFound(StoreError):
    word, exit_code = "not found", 5


# ---------------------------------------------------------------- 2. primitives

def h128(data) -> bytes:
    """2.1: 16 bytes, low half first."""
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


def p128(page, seed: int) -> bytes:
    return xxhash.xxh3_128_intdigest(page, seed=seed).to_bytes(16, "little")


def h64(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Kind(NamedTuple):
    magic: bytes
    name: str
    segment_class: int          # 4: 1 runs, 2 index, 3 catalog, 0 any
    least: int                  # the shortest and the longest block that the field ranges allow
    most: int


KINDS = {
    1: Kind(b"CKRN", "page run", 1, 65, 88 + 65536 + 65536 // 255 + 16),
    2: Kind(b"CKLF", "full leaf", 2, 120, 56 + 512 * 64),
    3: Kind(b"CKPL", "patch leaf", 2, 120, 96 + 64 * 64),
    4: Kind(b"CKIN", "inner node", 2, 112, 72 + 128 * 40),
    5: Kind(b"CKCP", "checkpoint record", 2, 97, 65536),
    6: Kind(b"CKBT", "catalog node", 3, 44, 4096),
    7: Kind(b"CKTL", "segment-table leaf", 3, 48 + 64 * 32, 48 + 64 * 32),
    8: Kind(b"CKTI", "segment-table inner node", 3, 88, 48 + 64 * 40),
    9: Kind(b"CKSG", "segment header", 0, 128, 128),
    10: Kind(b"CKCM", "commit record", 0, 88, 88 + 255),
    11: Kind(b"CKFT", "forwarding table", 3, 40 + 48, 40 + 512 * 48),
}
TREES = {1: "catalog by id", 2: "catalog by name", 3: "lineage", 4: "forwarding"}       # 6.2
KIND_OF_MAGIC = {kind.magic: number for number, kind in KINDS.items()}
SEGMENT_HEADER_LENGTH = 128


class Pointer(NamedTuple):
    """2.2"""
    segment: int
    offset: int
    length: int
    kind: int
    codec: int
    key_id: int
    birth: int
    checksum: bytes

    def __str__(self) -> str:
        name = KINDS[self.kind].name if self.kind in KINDS else f"block of kind {self.kind}"
        return f"{name} at segment {self.segment} offset {self.offset}"


POINTER = struct.Struct("<IIIBBHQ16s")
HEADER = struct.Struct("<16s4sIQ")


def parse_pointer(data: bytes, at: int, kinds: tuple, nullable: bool, what: str) -> Optional[Pointer]:
    """2.2: a pointer to one of `kinds`; None for the null pointer."""
    raw = data[at:at + 40]
    if raw == bytes(40):
        if nullable:
            return None
        raise Corrupt(f"{what}: null pointer")
    pointer = Pointer(*POINTER.unpack(raw))
    if pointer.length == 0:
        raise Corrupt(f"{what}: pointer of length 0 that is not null")
    if pointer.kind not in kinds:
        raise Corrupt(f"{what}: pointer to kind {pointer.kind}, expected {' or '.join(map(str, kinds))}")
    if pointer.key_id:
        raise Unsupported(f"{what}: encrypted with key {pointer.key_id}")
    if pointer.codec > (1 if pointer.kind == 1 else 0):
        raise Corrupt(f"{what}: pointer with codec {pointer.codec}")
    kind = KINDS[pointer.kind]
    if pointer.offset % 64 or pointer.offset < SEGMENT_HEADER_LENGTH or not kind.least <= pointer.length <= kind.most:
        raise Corrupt(f"{what}: pointer with offset {pointer.offset}, length {pointer.length}")
    return pointer


class Medium:
    """A file or block device, read with bounds checks."""

    def __init__(self, path: str):
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise Truncated(f"bytes {offset}..{offset + length} lie behind the medium's end at {self.size}")
        parts = []
        while length:
            try:
                part = os.pread(self.fd, length, offset)
            except OSError as error:
                raise StoreError(f"cannot read at {offset}: {error.strerror}") from None
            if not part:
                raise Truncated(f"the medium ended at {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


# ---------------------------------------------------------------- 3. slots

SLOT_HEAD = struct.Struct("<8s16sHBBI16sQQQQIIIB3xQQQQ")
SLOT_TAIL = struct.Struct("<QIIIIQQ")


class Slot:
    """3.1; `valid` is only the sentence "A slot is valid when": the ranges are checked by `check`."""

    def __init__(self, raw: bytes, ring: int, index: int):
        self.raw = raw
        self.ring, self.index = ring, index
        (magic, checksum, self.slot_index, self.twin, self.kind, self.version, uuid_bytes, self.generation,
         self.incompatible, self.read_only_compatible, self.compatible, self.segment_size, self.commit_unit,
         self.segment_count, self.table_depth, self.twin_offset, self.data_offset, self.page_hash_seed,
         self.commit_time) = SLOT_HEAD.unpack_from(raw)
        self.uuid = uuid.UUID(bytes=uuid_bytes)
        (self.checkpoint_count, self.used_segments, self.catalog_segment, self.allocation_hint,
         self.reserve_segments, self.erase_unit, self.base_generation) = SLOT_TAIL.unpack_from(raw, 328)
        self.has_magic = magic == b"CKSTORE1"
        self.is_zero = raw == bytes(PAGE)
        self.valid = (self.has_magic and checksum == h128(raw[24:]) and self.twin == ring
                      and self.slot_index == index == self.generation % SLOTS)

    def same_state(self, other: "Slot") -> bool:
        """3.2 step 4: equal but for twin and checksum."""
        def strip(raw):
            return raw[:8] + raw[24:26] + raw[27:]
        return strip(self.raw) == strip(other.raw)

    def feature_names(self) -> dict:
        names = {}
        (count,) = struct.unpack_from("<H", self.raw, 512)
        if count > 111:
            raise Corrupt(f"slot of generation {self.generation}: {count} feature names")
        for i in range(count):
            mask, bit, length = self.raw[516 + 32 * i:519 + 32 * i]
            if mask not in (1, 2, 3) or bit > 63 or not 1 <= length <= 29:
                raise Corrupt(f"slot of generation {self.generation}: feature name {i} is out of range")
            text = self.raw[519 + 32 * i:519 + 32 * i + length]
            names[mask, bit] = text.decode("ascii", "backslashreplace")
        return names

    def features(self, mask: int, bits: int) -> list:
        names = self.feature_names()
        return [(bit, names.get((mask, bit), f"bit {bit}")) for bit in range(64) if bits >> bit & 1]

    @property
    def is_draft(self) -> bool:
        return bool(self.incompatible & 1)

    def check_supported(self) -> None:
        if self.version != 1:
            raise Unsupported(f"format version {self.version}; this reader knows version 1")
        unknown = [name for bit, name in self.features(1, self.incompatible) if bit not in INCOMPATIBLE]
        if unknown:
            raise Unsupported(f"the store needs feature {', '.join(map(printable, unknown))}")

    def why_read_only(self) -> list:
        """3.5: the features for which a program that knows no more than this one must not write to the store."""
        unknown = [name for bit, name in self.features(2, self.read_only_compatible) if bit not in READ_ONLY_COMPATIBLE]
        return (["draft"] if self.is_draft else []) + unknown

    def check_ranges(self) -> None:
        """3.1: the ranges of a valid, supported slot."""
        unit, size = self.commit_unit, self.segment_size
        for ok, what in (
                (self.kind in (1, 2), f"kind {self.kind}"),
                (1 <= self.generation < 1 << 40, f"generation {self.generation}"),
                (self.checkpoint_count < 1 << 63, f"checkpointCount {self.checkpoint_count}"),
                (unit in (4096 << i for i in range(5)), f"commitUnit {unit}"),
                (unit and size % unit == 0 and 128 << 10 <= size <= 1 << 30, f"segmentSize {size}"),
                (self.segment_count >= 1, "segmentCount 0"),
                (self.twin_offset in (1 << i for i in range(16, 25)), f"twinOffset {self.twin_offset}"),
                (self.data_offset == 2 * self.twin_offset, f"dataOffset {self.data_offset}"),
                (self.table_depth == table_depth(self.segment_count), f"tableDepth {self.table_depth}"),
                (self.catalog_segment < self.segment_count or self.catalog_segment == NOWHERE,
                 f"catalogSegment {self.catalog_segment}"),
                (self.allocation_hint < self.segment_count, f"allocationHint {self.allocation_hint}"),
                (self.used_segments <= self.segment_count, f"usedSegments {self.used_segments}"),
                (self.base_generation == self.generation if self.kind == 1
                 else 1 <= self.base_generation < self.generation, f"baseGeneration {self.base_generation}")):
            if not ok:
                raise Corrupt(f"slot of generation {self.generation}: {what}")
        self.check_roots()

    def check_roots(self) -> None:
        """3.1, 3.5: which roots are null, and which features say so."""
        roots, empty = self.roots(), self.checkpoint_count == 0
        has_forwarding, has_lineage = bool(self.incompatible >> 1 & 1), bool(self.read_only_compatible & 1)
        for ok, what in (
                ((roots.by_id is None) == empty == (roots.by_name is None),
                 f"catalog roots don't fit checkpointCount {self.checkpoint_count}"),
                (has_lineage != self.is_draft, "of the features draft and lineage, it has both or none"),
                ((roots.lineage is None) == (empty or not has_lineage),
                 f"the lineage pointer does not fit the features, or checkpointCount {self.checkpoint_count}"),
                ((roots.forwarding is None) != has_forwarding, "the forwarding pointer does not fit the features")):
            if not ok:
                raise Corrupt(f"slot of generation {self.generation}: {what}")

    def roots(self) -> "Roots":
        def pointer(at, kind, name):
            return parse_pointer(self.raw, at, (kind,), True, f"slot of generation {self.generation}, {name}")
        return Roots(pointer(128, 6, "catalogById"), pointer(168, 6, "catalogByName"),
                     pointer(208, 8 if self.table_depth else 7, "segmentTable"), pointer(248, 6, "forwarding"),
                     pointer(288, 6, "lineage"))


class Roots(NamedTuple):
    by_id: Optional[Pointer]
    by_name: Optional[Pointer]
    table: Optional[Pointer]
    forwarding: Optional[Pointer]
    lineage: Optional[Pointer]


def table_depth(segment_count: int) -> int:
    """7.2: the smallest d with 64 x 64^d >= segmentCount."""
    depth = 0
    while 64 << 6 * depth < segment_count:
        depth += 1
    return depth


def read_ring(medium: Medium, ring: int, offset: int) -> list:
    """The 16 slots of a ring; what lies behind the medium's end counts as zero (step 5 reports it)."""
    slots = []
    for index in range(SLOTS):
        at = offset + index * PAGE
        raw = medium.read(at, PAGE) if at + PAGE <= medium.size else bytes(PAGE)
        slots.append(Slot(raw, ring, index))
    return slots


def find_rings(medium: Medium) -> tuple:
    """3.2 steps 1 and 2."""
    ring_a = read_ring(medium, 0, 0)
    valid_a = [slot for slot in ring_a if slot.valid]
    if valid_a:
        newest = max(valid_a, key=lambda slot: slot.generation)
        if newest.version == 1 and newest.twin_offset not in (1 << i for i in range(16, 25)):
            raise Corrupt(f"slot of generation {newest.generation}: twinOffset {newest.twin_offset}")
        return ring_a, read_ring(medium, 1, newest.twin_offset)
    any_magic = any(slot.has_magic for slot in ring_a)
    for shift in range(16, 25):
        ring_b = read_ring(medium, 1, 1 << shift)
        if any(slot.valid and slot.twin_offset == 1 << shift for slot in ring_b):
            return ring_a, ring_b
        any_magic = any_magic or any(slot.has_magic for slot in ring_b)
    if any_magic:
        raise Corrupt("no valid slot in either ring")
    raise NotAStore("no slot with the magic CKSTORE1 where a store has its slot rings")


# ---------------------------------------------------------------- the store

class TableEntry(NamedTuple):
    """7.1"""
    state: int
    segment_class: int
    committed_length: int
    live: int
    written: int                # reserved in a store of the draft
    birth: int
    freed_generation: int


TABLE_ENTRY = struct.Struct("<BBHIIIQQ")
NEVER_USED = TableEntry(0, 0, 0, 0, 0, 0, 0)


class Region(NamedTuple):
    name: str
    kind: str
    depth: int
    byte_length: int
    key: int
    root: Optional[Pointer]
    stored_pages: int
    new_pages: int

    @property
    def pages(self) -> int:
        return -(-self.byte_length // PAGE)


class Checkpoint(NamedTuple):
    id: int
    name: str
    parent: int
    created: int
    base_generation: int
    new_pages: int
    stored_bytes: int
    group: int
    labels: dict
    regions: list


class Lineage(NamedTuple):
    """6.3, 6.4"""
    nodes: dict                 # id -> (parent's id, or 0; is it living?)
    edges: set                  # (parent's id, child's id)
    references: dict            # name -> id


class Forward(NamedTuple):
    """7.3: where a block is instead of where the pointers to it say."""
    place: Pointer              # of the kind and birth of those pointers
    kept: int                   # bit i: page i of the old run is there, at the number of the bits below
    live: int                   # the bits of pages that leaves may still list


class Run(NamedTuple):
    pages: tuple                # index of each page in the span
    data: bytes                 # decoded
    kept: Optional[int] = None  # when it was moved: `Forward.kept`

    def index_of(self, index: int) -> Optional[int]:
        """Where page `index` of the run that the leaves mean is in this one."""
        if self.kept is not None:
            if not self.kept >> index & 1:
                return None
            index = bin(self.kept & (1 << index) - 1).count("1")
        return index if index < len(self.pages) else None


class Place(NamedTuple):
    """Where a page is: the run, the page's place in it, and its hash."""
    run: Pointer
    index: int
    hash: bytes


class Store:
    """One generation of a store, opened for reading."""

    def __init__(self, medium: Medium, generation: Optional[int] = None, salvage: bool = False):
        """3.2. `salvage` leaves out the steps that only prove that something newer was lost."""
        self.medium = medium
        self.warnings = []
        salvage = salvage or generation is not None
        self.slots = find_rings(medium)
        valid = [slot for ring in self.slots for slot in ring if slot.valid]
        if len({slot.uuid for slot in valid}) > 1:                                          # step 3
            raise Corrupt("slots of different stores (storeUUID)")
        self.newest = max(slot.generation for slot in valid)                                # step 4
        for a, b in zip(*self.slots):
            if a.valid and b.valid and a.generation == b.generation and a.kind == b.kind and not a.same_state(b):
                raise Corrupt(f"the twins of generation {a.generation} differ")
        valid.sort(key=lambda slot: slot.kind, reverse=True)            # of unlike twins the poisoned one counts
        newest = next(slot for slot in valid if slot.generation == self.newest)
        newest.check_supported()
        if generation is None or generation == self.newest:
            self.slot = newest
        else:
            self.slot = next((slot for slot in valid if slot.generation == generation), None)
            if self.slot is None:
                raise NotFound(f"generation {generation}; the rings hold "
                               f"{', '.join(map(str, sorted({slot.generation for slot in valid})))}")
            self.slot.check_supported()
        self.slot.check_ranges()
        self.roots = self.slot.roots()
        self.trees = dict(zip(TREES, (self.roots.by_id, self.roots.by_name, self.roots.lineage, self.roots.forwarding)))
        self.tables = {}            # segment -> its forwarding tables, as `forwarding_tables` gives them
        self.forwards = {}          # (key, pointer) of a forwarding table -> its entries
        a, b = (ring[self.newest % SLOTS] for ring in self.slots)
        if not (a.valid and b.valid and a.generation == b.generation):
            self.warnings.append(f"the newest generation, {self.newest}, has only one sound slot; the next commit heals it")
        lost = None
        for a, b in zip(*self.slots):                                                       # step 6
            torn = not (a.valid or b.valid or (a.is_zero and b.is_zero))
            if torn and a.index != (self.newest + 1) % SLOTS:
                lost = f"slot {a.index} is torn, and is not the one of generation {self.newest + 1}"
        end = self.slot.data_offset + self.slot.segment_count * self.slot.segment_size      # step 5
        if medium.size < end and not salvage:
            raise Truncated(f"the medium has {medium.size} bytes, the store needs {end}")
        if lost is None and not salvage:
            lost = self.find_lost_commit()                                                  # step 7
        if lost:
            if not salvage:
                raise SuperblockLost(lost)
            self.warnings.append(f"superblock lost: {lost}")

    def find_lost_commit(self) -> Optional[str]:
        """3.2 step 7: follow the commits behind committedLength of the catalog segment."""
        slot, segment = self.slot, self.slot.catalog_segment
        if segment == NOWHERE:
            return None
        try:
            at = self.table_entry(segment).committed_length
        except StoreError as error:
            self.warnings.append(f"cannot check for lost slots: {error}")
            return None
        at = round_up(at, slot.commit_unit)
        while at < slot.segment_size:
            found = False
            while block := self.scan_block(segment, at):
                kind, raw = block
                _, _, length, birth = HEADER.unpack_from(raw)
                if kind not in (6, 7, 8, 11) or birth <= self.newest:
                    break
                if birth >= self.newest + 2:
                    return f"generation {birth} wrote to segment {segment}, but the newest slot is {self.newest}"
                found = True
                at = round_up(at + length, 64)
            if not found:
                return None
            at = round_up(at, slot.commit_unit)
        return None

    # ------------------------------------------------------------ blocks

    def position(self, segment: int, offset: int) -> int:
        return self.slot.data_offset + segment * self.slot.segment_size + offset

    def place(self, pointer: Pointer) -> Pointer:
        """7.4: the pointer itself, or, when its block was moved, one to where that is."""
        moved = self.forward(pointer)
        return moved.place if moved else pointer

    def block(self, pointer: Pointer, what: str) -> bytes:
        """2.3, "To read the block of a pointer", up to the fields that name the place in the tree."""
        slot, kind = self.slot, KINDS[pointer.kind]
        where = f"{what}: {pointer}"
        place = self.place(pointer)
        if place is not pointer:
            where, pointer = f"{where}, moved to segment {place.segment} offset {place.offset}", place
        if pointer.segment >= slot.segment_count or pointer.offset + pointer.length > slot.segment_size:
            raise Corrupt(f"{where} of {pointer.length} bytes: pointer out of range")
        raw = self.medium.read(self.position(pointer.segment, pointer.offset), pointer.length)
        checksum, magic, length, birth = HEADER.unpack_from(raw)
        if h128(raw[16:]) != checksum:
            raise Corrupt(f"{where}: wrong checksum")
        if checksum != pointer.checksum:
            raise Corrupt(f"{where}: another block stands there (stale or misdirected): checksum is not the pointer's")
        if magic != kind.magic:
            raise Corrupt(f"{where}: magic is {printable(magic.decode('latin-1'))}")
        if length != pointer.length or birth != pointer.birth:
            raise Corrupt(f"{where}: length or birth is not the pointer's")
        return raw

    def scan_block(self, segment: int, offset: int) -> Optional[tuple]:
        """4.3: the kind and bytes of a block at a place that no pointer vouches for, or None."""
        slot = self.slot
        if offset + HEADER.size > slot.segment_size:
            return None
        at = self.position(segment, offset)
        try:
            checksum, magic, length, _ = HEADER.unpack(self.medium.read(at, HEADER.size))
            kind = KIND_OF_MAGIC.get(magic)
            if kind is None or not KINDS[kind].least <= length <= min(KINDS[kind].most, slot.segment_size - offset):
                return None
            raw = self.medium.read(at, length)
        except Truncated:
            return None
        return (kind, raw) if h128(raw[16:]) == checksum else None

    def scan(self, segment: int) -> Iterator[tuple]:
        """4.3: (offset, kind, bytes) of every block."""
        offset = 0
        while offset < self.slot.segment_size:
            block = self.scan_block(segment, offset)
            if block:
                yield (offset, *block)
                offset = round_up(offset + len(block[1]), 64)
            else:
                offset = (offset // self.slot.commit_unit + 1) * self.slot.commit_unit

    # ------------------------------------------------------------ 7. segment table

    def table_node(self, pointer: Pointer, level: int, first: int, seen=None) -> list:
        """7.2: children (first, pointer) of an inner node, or the 64 entries of a leaf (level 0)."""
        what = "segment table"
        raw = self.block(pointer, what)
        if seen is not None:
            seen(pointer)
        if level == 0:
            first_segment, count = struct.unpack_from("<IH", raw, 32)
            if first_segment != first or count != 64:
                raise Corrupt(f"{what}: {pointer}: wrong place in the tree")
            entries = [TABLE_ENTRY.unpack_from(raw, 48 + 32 * i) for i in range(64)]
            return [TableEntry(*e[:2], *e[3:]) for e in entries]
        first_segment, its_level, _, count = struct.unpack_from("<IBBH", raw, 32)
        if first_segment != first or its_level != level:
            raise Corrupt(f"{what}: {pointer}: wrong place in the tree")
        step = 64 ** level
        return [(first + i * step, child) for i, child in
                children(raw, 40, 64, count, (7,) if level == 1 else (8,), f"{what}: {pointer}")]

    def table_entry(self, segment: int) -> TableEntry:
        pointer, first = self.roots.table, 0
        for level in range(self.slot.table_depth, 0, -1):
            if pointer is None:
                return NEVER_USED
            nodes = dict(self.table_node(pointer, level, first))
            first = segment - segment % 64 ** level
            pointer = nodes.get(first)
        return NEVER_USED if pointer is None else self.table_node(pointer, 0, segment - segment % 64)[segment % 64]

    # ------------------------------------------------------------ 6.2 the B+ trees

    def catalog_node(self, pointer: Pointer, tree: int, level: Optional[int], low: bytes,
                     high: Optional[bytes]) -> tuple:
        """6.2: (level, [(key, value or pointer)]); all keys lie in [low, high)."""
        where = f"{TREES[tree]}: {pointer}"
        raw = self.block(pointer, TREES[tree])
        its_tree, its_level, count = struct.unpack_from("<BBH", raw, 32)
        if its_tree != tree:
            raise Corrupt(f"{where}: belongs to tree {its_tree}")
        if its_level >= MAX_CATALOG_DEPTH or (level is not None and its_level != level) or count < 1:
            raise Corrupt(f"{where}: wrong level {its_level}, or no entries")
        entries, at, last = [], 40, None
        for _ in range(count):
            if at + 4 > len(raw):
                raise Corrupt(f"{where}: entries reach behind its end")
            key_length, value_length = struct.unpack_from("<HH", raw, at)
            size = 40 if its_level else value_length
            if at + 4 + key_length + size > len(raw):
                raise Corrupt(f"{where}: entries reach behind its end")
            key = raw[at + 4:at + 4 + key_length]
            at += 4 + key_length
            first_inner = its_level and not entries
            if (last is not None and key <= last) or (key < low and not first_inner) or (high is not None and key >= high):
                raise Corrupt(f"{where}: keys out of order")
            value = parse_pointer(raw, at, (6,), False, where) if its_level else raw[at:at + size]
            entries.append((key, value))
            at, last = at + size, key
        if at != len(raw):
            raise Corrupt(f"{where}: {len(raw) - at} bytes behind the entries")
        return its_level, entries

    def walk_catalog(self, tree: int, on_error=None, seen=None, first: bytes = b"", end: Optional[bytes] = None) -> Iterator[tuple]:
        """(key, value) of every entry in order, of those in [first, end) when that is given. A damaged node goes to
        `on_error` when that is given."""
        def walk(pointer, level, low, high):
            try:
                level, entries = self.catalog_node(pointer, tree, level, low, high)
            except StoreError as error:
                if on_error is None:
                    raise
                return on_error(error)
            if seen:
                seen(pointer)
            for i, (key, value) in enumerate(entries):
                if end is not None and key >= end:
                    return
                following = entries[i + 1][0] if i + 1 < len(entries) else high
                if level == 0 and key >= first:
                    yield key, value
                elif level and (following is None or following > first):
                    yield from walk(value, level - 1, max(low, key), following)
        if self.trees[tree] is not None:
            yield from walk(self.trees[tree], None, b"", None)

    def find(self, tree: int, key: bytes) -> Optional[bytes]:
        """The value of a key."""
        return next((value for _, value in self.walk_catalog(tree, first=key, end=key + b"\0")), None)

    # ------------------------------------------------------------ 6.3, 6.4 lineage and references

    def lineage(self, on_error=None, seen=None) -> Lineage:
        """The whole lineage tree, entry by entry; whether they fit together is for a verifier to say. An entry that
        cannot be is left out and goes to `on_error`, when that is given, as does a damaged node."""
        result = Lineage({}, set(), {})
        for key, value in self.walk_catalog(3, on_error, seen):
            try:
                self.lineage_entry(key, value, result)
            except Corrupt as error:
                if on_error is None:
                    raise
                on_error(error)
        return result

    def lineage_entry(self, key: bytes, value: bytes, result: Lineage) -> None:
        where = f"lineage: entry {key.hex()}"
        if key[:8] == bytes(8):
            if len(value) != 8:
                raise Corrupt(f"{where}: reference of wrong size")
            name = Fields(key[8:], where).name(len(key) - 8)
            result.references[name] = int.from_bytes(value, "little")
            return
        if len(key) != 16:
            raise Corrupt(f"{where}: wrong size")
        first, second = struct.unpack(">QQ", key)
        if second:
            if value:
                raise Corrupt(f"{where}: an edge with a value")
            result.edges.add((first, second))
            return
        if len(value) != 16:
            raise Corrupt(f"{where}: node of wrong size")
        parent, state = struct.unpack_from("<QB", value)
        if state not in (1, 2):
            raise Corrupt(f"{where}: state {state}")
        result.nodes[first] = (parent, state == 1)

    # ------------------------------------------------------------ 7.3, 7.4 forwarding

    def forwarding_tables(self, segment: Optional[int] = None, on_error=None, seen=None) -> list:
        """7.3: (key, pointer, end) of the forwarding tables, of those of one segment when that is given; all keys of a
        table lie in [key, end)."""
        first, end, found = b"", None, []
        if segment is not None:
            first, end = segment.to_bytes(4, "big"), segment.to_bytes(4, "big") + b"\xff" * 13
        for key, value in self.walk_catalog(4, on_error, seen, first, end):
            try:
                if len(key) != 16 or len(value) != 40:
                    raise Corrupt(f"forwarding: entry {key.hex()} of wrong size")
                found.append((key, parse_pointer(value, 0, (11,), False, f"forwarding: entry {key.hex()}")))
            except StoreError as error:
                if on_error is None:
                    raise
                on_error(error)
        ends = [key for key, _ in found[1:]] + [None]
        return [(key, pointer, end) for (key, pointer), end in zip(found, ends)]

    def forwarding_table(self, key: bytes, pointer: Pointer, end: Optional[bytes]) -> dict:
        """7.3: {(offset, birth): Forward} of a table."""
        if (key, pointer) in self.forwards:
            return self.forwards[key, pointer]
        where = f"forwarding: {pointer}"
        raw = self.block(pointer, "forwarding")
        segment, count = struct.unpack_from("<II", raw, 32)
        if not 1 <= count <= 512 or len(raw) != 40 + 48 * count:
            raise Corrupt(f"{where}: entryCount {count} does not fit its length")
        result, last = {}, None
        for i in range(count):
            offset, new_segment, new_offset, length, birth, checksum, kind, codec, kept, live, _ = struct.unpack_from(
                "<IIIIQ16sBBHHH", raw, 40 + 48 * i)
            its = struct.pack(">IIQ", segment, offset, birth)
            if (its <= last if last else its != key) or (end is not None and its >= end):
                raise Corrupt(f"{where}: entry {i} is out of order, or does not fit the tables' keys")
            if not 1 <= kind <= 5 or codec > (kind == 1) or not KINDS[kind].least <= length <= KINDS[kind].most \
                    or any(at % 64 or at < SEGMENT_HEADER_LENGTH for at in (offset, new_offset)):
                raise Corrupt(f"{where}: entry {i}: kind {kind}, codec {codec}, offsets {offset}, {new_offset}, length {length}")
            if live == 0 or live & ~kept or (kind != 1 and kept != 1):
                raise Corrupt(f"{where}: entry {i}: kept {kept:#x}, live {live:#x}")
            place = Pointer(new_segment, new_offset, length, kind, codec, 0, birth, checksum)
            result[offset, birth], last = Forward(place, kept, live), its
        self.forwards[key, pointer] = result
        return result

    def forward(self, pointer: Pointer) -> Optional[Forward]:
        """7.4: where the block of a pointer went; None when it is where the pointer says."""
        if self.roots.forwarding is None or pointer.kind > 5:
            return None
        if pointer.segment not in self.tables:
            self.tables[pointer.segment] = self.forwarding_tables(pointer.segment)
        wanted = struct.pack(">IIQ", pointer.segment, pointer.offset, pointer.birth)
        tables = [table for table in self.tables[pointer.segment] if table[0] <= wanted]
        found = self.forwarding_table(*tables[-1]).get((pointer.offset, pointer.birth)) if tables else None
        if found is None:
            return None
        place = found.place
        if place.kind != pointer.kind:
            raise Corrupt(f"forwarding: the {pointer} is entered as a {KINDS[place.kind].name}")
        if place.kind != 1 and (place.length, place.checksum) != (pointer.length, pointer.checksum):
            raise Corrupt(f"forwarding: the {pointer} is entered with another length or checksum")
        return found

    # ------------------------------------------------------------ 6.1 checkpoints

    def catalog_value(self, key: bytes, value: bytes) -> tuple:
        """6.2: (id, record pointer) of an entry of the tree by id."""
        if len(key) != 8 or len(value) != 56:
            raise Corrupt("catalog by id: entry of wrong size")
        number = int.from_bytes(key, "big")
        pointer = parse_pointer(value, 0, (5,), False, "catalog by id")
        generation, flags, _ = struct.unpack_from("<QII", value, 40)
        if pointer.birth != number or not 1 <= generation <= self.slot.base_generation or flags:
            raise Corrupt(f"catalog by id: entry {number:016x}: wrong birth, generation or flags")
        return number, pointer

    def checkpoint(self, number: int, pointer: Pointer) -> Checkpoint:
        """6.1"""
        where = f"checkpoint {number:016x}"
        raw = Fields(self.block(pointer, where), where)
        its_id, parent, created, base, name_length, label_count, region_count, new_pages, stored_bytes, group = \
            raw.unpack("<QQQQHHIQQQ", 32)
        if its_id != number or its_id == 0:
            raise Corrupt(f"{where}: the record is of checkpoint {its_id:016x}")
        if region_count > 4096:
            raise Corrupt(f"{where}: {region_count} regions")
        name, labels, regions, last = raw.name(name_length), {}, [], None
        for _ in range(label_count):
            key_length, value_length = raw.unpack("<HH")
            key, value = raw.take(key_length), raw.take(value_length)
            if not 1 <= key_length <= 255 or (last is not None and key <= last):
                raise Corrupt(f"{where}: label keys out of range or order")
            labels[raw.text(key)], last = raw.text(value), key
        last, keys = None, set()
        for _ in range(region_count):
            name_length, kind, depth, _, length, key = raw.unpack("<HBBIQQ")
            root = raw.take(40)
            stored, new = raw.unpack("<QQ")
            region_name = raw.name(name_length)
            encoded = region_name.encode()
            spot = f"{where}, region {printable(region_name)}"
            if (last is not None and encoded <= last) or key in keys or key != h64(encoded):
                raise Corrupt(f"{spot}: names out of order, or wrong region key")
            if kind not in (1, 2, 3) or length > 1 << 63 or (kind == 1 and length % PAGE):
                raise Corrupt(f"{spot}: kind {kind}, length {length}")
            spans, need = -(-length // (SPAN * PAGE)), 0
            while 128 ** need < spans:
                need += 1
            if depth != need:
                raise Corrupt(f"{spot}: depth {depth}, not {need}")
            pointer = parse_pointer(root, 0, (4,) if depth else (2, 3), True, spot)
            if pointer and spans == 0:
                raise Corrupt(f"{spot}: an empty region with pages")
            regions.append(Region(region_name, ("memory", "disk", "state")[kind - 1], depth, length, key,
                                  pointer, stored, new))
            last = encoded
            keys.add(key)
        raw.end()
        return Checkpoint(number, name, parent, created, base, new_pages, stored_bytes, group, labels, regions)

    def find_checkpoint(self, name: str) -> Checkpoint:
        """6.4: by name; by reference, when no checkpoint has that name; else by id in 16 hex digits."""
        encoded = name.encode("utf-8", "surrogateescape")
        value, how = self.find(2, encoded), "name"
        if value is None:
            value, how = self.find(3, bytes(8) + encoded), "reference"
        if value is not None and len(value) != 8:
            raise Corrupt(f"catalog: {how} {printable(name)} of wrong size")
        if value is not None:
            number = int.from_bytes(value, "little")
        elif len(name) == 16 and all(c in "0123456789abcdefABCDEF" for c in name):
            number = int(name, 16)
        else:
            raise NotFound(f"checkpoint {printable(name)}")
        entry = self.find(1, number.to_bytes(8, "big"))
        if entry is None:
            if value is not None:
                raise Corrupt(f"catalog: {how} {printable(name)} is checkpoint {number:016x}, which the tree by id lacks")
            raise NotFound(f"checkpoint {printable(name)}")
        found = self.checkpoint(*self.catalog_value(number.to_bytes(8, "big"), entry))
        if value is not None and how == "name" and found.name.encode() != encoded:
            raise Corrupt(f"catalog: {printable(name)} leads to checkpoint {printable(found.name)}")
        return found

    # ------------------------------------------------------------ 5. pages

    def inner_node(self, pointer: Pointer, region: Region, level: int, first: int) -> list:
        """5.4: (first page, pointer) of the children that are there."""
        where = f"region {printable(region.name)}, page {first}"
        raw = self.block(pointer, where)
        key, first_page, its_level, _, count, _ = struct.unpack_from("<QQBBHI", raw, 32)
        if key != region.key or first_page != first or its_level != level:
            raise Corrupt(f"{where}: {pointer}: wrong place in the tree (region, first page or level)")
        step = SPAN * 128 ** (level - 1)
        nodes = [(first + i * step, child) for i, child in
                 children(raw, 56, 128, count, (2, 3) if level == 1 else (4,), f"{where}: {pointer}")]
        if nodes[-1][0] >= region.pages:
            raise Corrupt(f"{where}: {pointer}: child behind the region's end")
        return nodes

    def leaves(self, region: Region) -> Iterator[tuple]:
        """(first page, pointer) of every leaf, in order."""
        def walk(pointer, level, first):
            if level == 0:
                yield first, pointer
            else:
                for child_first, child in self.inner_node(pointer, region, level, first):
                    yield from walk(child, level - 1, child_first)
        if region.root is not None:
            yield from walk(region.root, region.depth, 0)

    def leaf(self, pointer: Pointer, region: Region, span: int, seen=None, hidden=None) -> dict:
        """5.2, 5.3: {page in the span: Place} of the pages that are not zero, in ascending order. `seen` is given the
        pointers to the leaf and to its base, `hidden` the places that the base lists and the patch replaces."""
        raw = self.block(pointer, f"region {printable(region.name)}, page {span}")
        if seen:
            seen(pointer)
        where = f"region {printable(region.name)}, page {span}: {pointer}"
        key, first_page = struct.unpack_from("<QQ", raw, 32)
        if key != region.key or first_page != span:
            raise Corrupt(f"{where}: wrong place in the tree (region or first page)")
        limit = min(SPAN, region.pages - span)
        if pointer.kind == 2:
            return self.full_leaf(raw, limit, where)
        run_count, entry_count, _ = struct.unpack_from("<HHI", raw, 48)
        if run_count > 64 or not 1 <= entry_count <= 64 or len(raw) != 96 + 40 * run_count + 24 * entry_count:
            raise Corrupt(f"{where}: counts don't fit its length")
        base = parse_pointer(raw, 56, (2,), False, where)
        runs = [parse_pointer(raw, 96 + 40 * i, (1,), False, where) for i in range(run_count)]
        places, last = self.leaf(base, region, span, seen), -1
        for i in range(entry_count):
            page, run, index, page_hash = struct.unpack_from("<HHB3x16s", raw, 96 + 40 * run_count + 24 * i)
            if page <= last or page >= limit or (run >= run_count and run != 0xFFFF) or index > 15:
                raise Corrupt(f"{where}: entry {i} out of range or order")
            if hidden and page in places:
                hidden(places[page])
            if run == 0xFFFF:
                places.pop(page, None)
            else:
                places[page] = Place(runs[run], index, page_hash)
            last = page
        return dict(sorted(places.items()))

    def full_leaf(self, raw: bytes, limit: int, where: str) -> dict:
        """5.2"""
        r, e, h = struct.unpack_from("<HHH", raw, 48)
        if not (1 <= r <= 512 and 1 <= e <= 512 and 1 <= h <= 512) or len(raw) != 56 + 40 * r + 8 * e + 16 * h:
            raise Corrupt(f"{where}: counts don't fit its length")
        runs = [parse_pointer(raw, 56 + 40 * i, (1,), False, where) for i in range(r)]
        places, end, hashes = {}, 0, 56 + 40 * r + 8 * e
        for i in range(e):
            first, count, index, run, _ = struct.unpack_from("<HBBHH", raw, 56 + 40 * r + 8 * i)
            if first < end or not 1 <= count <= 16 or first + count > limit or run >= r or index + count > 16:
                raise Corrupt(f"{where}: extent {i} out of range or order")
            for j in range(count):
                if len(places) < h:
                    at = hashes + 16 * len(places)
                    places[first + j] = Place(runs[run], index + j, raw[at:at + 16])
                else:
                    raise Corrupt(f"{where}: more pages than hashes")
            end = first + count
        if len(places) != h:
            raise Corrupt(f"{where}: more hashes than pages")
        return places

    def run(self, pointer: Pointer, region: Region, span: int) -> Run:
        """5.1: a run, decoded, from where it is (7.4). What is decoded never has more than 16 pages."""
        where = f"region {printable(region.name)}, page {span}: {pointer}"
        moved = self.forward(pointer)
        raw = self.block(pointer, f"region {printable(region.name)}, page {span}")
        key, first_page, count, codec, key_id, _ = struct.unpack_from("<QQBBHI", raw, 32)
        if key != region.key or first_page != span:
            raise Corrupt(f"{where}: wrong place (region or span)")
        if not 1 <= count <= 16 or codec != (moved.place if moved else pointer).codec or key_id:
            raise Corrupt(f"{where}: {count} pages, codec {codec}, key {key_id}")
        if moved and bin(moved.kept).count("1") != count:
            raise Corrupt(f"{where}: {count} pages, but {moved.kept:#x} were kept when it was moved")
        start = round_up(56 + 2 * count, 8)
        if start >= len(raw):
            raise Corrupt(f"{where}: no payload")
        pages = struct.unpack_from(f"<{count}H", raw, 56)
        if pages[-1] >= SPAN or any(a >= b for a, b in zip(pages, pages[1:])):
            raise Corrupt(f"{where}: page list out of range or order")
        data = raw[start:]
        if codec == 1:
            try:
                data = lz4.block.decompress(data, uncompressed_size=count * PAGE)
            except (lz4.block.LZ4BlockError, ValueError, MemoryError):
                raise Corrupt(f"{where}: cannot be decoded") from None
        if len(data) != count * PAGE:
            raise Corrupt(f"{where}: payload of {len(data)} bytes for {count} pages")
        return Run(pages, data, moved.kept if moved else None)

    def page(self, run: Run, place: Place, page: int, where: str) -> bytes:
        """5.5: the page that a leaf's `place` names, with its hash checked."""
        index = run.index_of(place.index)
        if index is None or run.pages[index] != page % SPAN:
            raise Corrupt(f"{where}, page {page}: the {place.run} does not hold it")
        data = run.data[index * PAGE:(index + 1) * PAGE]
        if p128(data, self.slot.page_hash_seed) != place.hash:
            raise Corrupt(f"{where}, page {page}: wrong page hash")
        return data

    def read_pages(self, region: Region) -> Iterator[tuple]:
        """(page, bytes) of every page that is not zero, in order, everything verified."""
        for span, pointer in self.leaves(region):
            places = self.leaf(pointer, region, span)
            uses, runs = {}, {}
            for place in places.values():
                uses[place.run] = uses.get(place.run, 0) + 1
            for page, place in places.items():
                if place.run not in runs:
                    runs[place.run] = self.run(place.run, region, span)
                yield span + page, self.page(runs[place.run], place, span + page, f"region {printable(region.name)}")
                uses[place.run] -= 1
                if not uses[place.run]:
                    del runs[place.run]


def children(raw: bytes, at: int, width: int, count: int, kinds: tuple, where: str) -> list:
    """5.4, 7.2: (index, pointer) by a bitmap of `width` bits at `at`, the pointers behind it."""
    present = int.from_bytes(raw[at:at + width // 8], "little")
    start = at + width // 8
    if not 1 <= count <= width or bin(present).count("1") != count or len(raw) != start + 40 * count:
        raise Corrupt(f"{where}: bitmap, childCount and length don't fit")
    indices = [i for i in range(width) if present >> i & 1]
    return [(index, parse_pointer(raw, start + 40 * i, kinds, False, where)) for i, index in enumerate(indices)]


class Fields:
    """A cursor over the bytes of a block that never leaves them."""

    def __init__(self, raw: bytes, where: str):
        self.raw, self.where, self.at = raw, where, 0

    def take(self, length: int) -> bytes:
        if self.at + length > len(self.raw):
            raise Corrupt(f"{self.where}: fields reach behind the block's end")
        self.at += length
        return self.raw[self.at - length:self.at]

    def unpack(self, layout: str, at: Optional[int] = None) -> tuple:
        self.at = self.at if at is None else at
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Corrupt(f"{self.where}: text is not UTF-8") from None

    def name(self, length: int) -> str:
        """6.1: the rules for names."""
        text = self.text(self.take(length))
        if not 1 <= length <= 255 or text in (".", "..") or "/" in text \
                or any(unicodedata.category(c) == "Cc" for c in text):
            raise Corrupt(f"{self.where}: bad name {printable(text)!r}")
        return text

    def end(self) -> None:
        if self.at != len(self.raw):
            raise Corrupt(f"{self.where}: {len(self.raw) - self.at} bytes behind the last field")


def printable(text: str) -> str:
    """Text that cannot play tricks on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
