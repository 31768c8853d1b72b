"""Errors, and section 2 of FORMAT.md: hashes, kinds of blocks, pointers; how bytes are taken apart."""
from __future__ import annotations

import os
import struct
import unicodedata
from typing import NamedTuple, Optional

import xxhash

PAGE = 4096
SPAN = 512                      # pages (section 5)
TREES = {1: "catalog by id", 2: "catalog by name", 3: "lineage", 4: "forwarding"}       # 6.2


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


# ---------------------------------------------------------------- taking bytes apart

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
