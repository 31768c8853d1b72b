"""Opening a store (3.2), reading its blocks (2.3, 4.3) and the segment table (section 7)."""
from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Optional

from .basics import (HEADER, KIND_OF_MAGIC, KINDS, TREES, Corrupt, Medium, NotFound, Pointer, StoreError, SuperblockLost,
                     Truncated, children, h128, printable, round_up)
from .pages import Pages
from .records import Records
from .slots import NOWHERE, SLOTS, find_rings
from .trees import Trees


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


class Store(Trees, Records, Pages):
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
