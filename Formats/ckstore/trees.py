"""Sections 6.2 to 6.4, 7.3 and 7.4 of FORMAT.md: the B+ trees, the lineage, references, and where moved blocks are."""
from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Optional

from .basics import KINDS, SEGMENT_HEADER_LENGTH, TREES, Corrupt, Fields, Pointer, StoreError, parse_pointer

MAX_CATALOG_DEPTH = 16          # section 6.2


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


class Trees:
    """Mixed into Store."""

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
        """7.3: (key, pointer) of the forwarding tables in order, of those of one segment when that is given."""
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
        return found

    def forwarding_table(self, key: bytes, pointer: Pointer) -> dict:
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
            if its <= last if last else its != key:
                raise Corrupt(f"{where}: entry {i} is out of order, or not that of the table's key")
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
