"""Section 3 of FORMAT.md: slots, their rings, features."""
from __future__ import annotations

import struct
import uuid
from typing import NamedTuple, Optional

from .basics import PAGE, Corrupt, Medium, NotAStore, Pointer, Unsupported, h128, parse_pointer, printable

SLOTS = 16                      # per ring (section 1)
INCOMPATIBLE = {0: "draft", 1: "forwarding"}        # the features that this reader knows (3.5)
READ_ONLY_COMPATIBLE = {0: "lineage"}
NOWHERE = 0xFFFFFFFF            # catalogSegment: not yet set

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
