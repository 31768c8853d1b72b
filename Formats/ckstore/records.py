"""Section 6.1 of FORMAT.md: checkpoint records; and how a checkpoint is found."""
from __future__ import annotations

import struct
from typing import NamedTuple, Optional

from .basics import PAGE, SPAN, Corrupt, Fields, NotFound, Pointer, h64, parse_pointer, printable


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


class Records:
    """Mixed into Store."""

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
