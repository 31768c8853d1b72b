#!/usr/bin/env python3
"""Reads copy-on-write files of disks, as COW.md describes them.

    cow.py info  FILE                    its header, as JSON
    cow.py list  FILE                    its block groups, one a line, every block verified
    cow.py apply IMAGE OUT FILE...       IMAGE with the files' groups on top, the lowest file first, into OUT

Exit codes: 0 ok, 1 failure, 2 usage, 3 corrupt, unsupported or no copy-on-write file. It only reads.
"""
from __future__ import annotations

import json
import struct
import sys
from dataclasses import dataclass

import xxhash

PAGE = 4096
FREE = (1 << 64) - 1
STATES = ("open", "merging", "merged")


class Damage(Exception):
    """The file is damaged, unsupported or none."""


def h128(data: bytes) -> bytes:
    # The library's digest is the canonical, big-endian form.
    return xxhash.xxh3_128(data).digest()[::-1]


@dataclass
class Header:
    state: int
    generation: int
    id: int
    parent: int
    disk_length: int
    group_size: int
    chunk_count: int
    map_hash: bytes


def parse_header(page: bytes) -> Header | int | None:
    """The header, the version that it has instead of 1, or None."""
    if len(page) != PAGE or page[:8] != b"COWDISK1" or h128(page[24:]) != page[8:24]:
        return None
    version, state, generation, own, parent, length, group, block, chunks = struct.unpack_from("<IIQQQQIIQ", page, 24)
    if version != 1:
        return version
    if (state > 2 or own == 0 or block != PAGE or generation >= 1 << 62 or chunks > 1 << 48 or length % 512 or not 512 <= length < 1 << 56
            or not 4096 <= group <= 262144 or group & (group - 1)):
        return None
    return Header(state, generation, own, parent, length, group, chunks, page[80:96])


class CowFile:
    def __init__(self, path: str):
        with open(path, "rb") as file:
            self.data = file.read()
        self.header = self._newest_header()
        self.blocks_per_group = self.header.group_size // PAGE
        self.entry_size = 8 + 16 * self.blocks_per_group
        self.slots_per_chunk = (PAGE - 48) // self.entry_size
        self.chunk_size = 2 * PAGE + self.slots_per_chunk * self.header.group_size
        self.group_count = -(-self.header.disk_length // self.header.group_size)
        self.groups: dict[int, tuple[int, list[bytes]]] = {}
        checksums = []
        for chunk in range(self.header.chunk_count):
            page = self._map_page(chunk)
            checksums.append(page[:16])
            self._entries(chunk, page)
        if h128(b"".join(checksums)) != self.header.map_hash:
            raise Damage("a map page is damaged or of another state")

    def _newest_header(self) -> Header:
        found = [parse_header(self.data[number * PAGE:(number + 1) * PAGE]) for number in range(4)]
        headers = [header for header in found if isinstance(header, Header)]
        if headers and len(self.data) >= 4 * PAGE:
            return max(headers, key=lambda header: header.generation)
        versions = [version for version in found if isinstance(version, int)]
        raise Damage(f"version {versions[0]}" if versions and not headers else "no copy-on-write file, or a damaged one")

    def _start(self, chunk: int) -> int:
        return 4 * PAGE + chunk * self.chunk_size

    def _map_page(self, chunk: int) -> bytes:
        best = None
        for twin in range(2):
            start = self._start(chunk) + twin * PAGE
            page = self.data[start:start + PAGE]
            if len(page) != PAGE or page[16:20] != b"CKDM" or h128(page[16:]) != page[:16]:
                continue
            index, generation, own = struct.unpack_from("<QQQ", page, 24)
            if index != chunk or own != self.header.id or generation > self.header.generation:
                continue
            if best is None or generation > best[0]:
                best = (generation, page)
        if best is None:
            raise Damage(f"map page {chunk} is damaged, or the file is truncated")
        return best[1]

    def _entries(self, chunk: int, page: bytes) -> None:
        for slot in range(self.slots_per_chunk):
            start = 48 + slot * self.entry_size
            group, = struct.unpack_from("<Q", page, start)
            if group == FREE:
                continue
            if group >= self.group_count or group in self.groups:
                raise Damage(f"group {group} is there twice, or none of the disk's")
            hashes = [page[start + 8 + 16 * block:start + 24 + 16 * block] for block in range(-(-self.length(group) // PAGE))]
            self.groups[group] = (self._start(chunk) + 2 * PAGE + slot * self.header.group_size, hashes)

    def length(self, group: int) -> int:
        return min(self.header.group_size, self.header.disk_length - group * self.header.group_size)

    def content(self, group: int) -> bytes:
        start, hashes = self.groups[group]
        for block, expected in enumerate(hashes):
            data = self.data[start + block * PAGE:start + (block + 1) * PAGE]
            if len(data) != PAGE or h128(data) != expected:
                raise Damage(f"block {block} of group {group} is damaged")
        return self.data[start:start + self.length(group)]


def info(path: str) -> None:
    file = CowFile(path)
    header = file.header
    print(json.dumps({
        "state": STATES[header.state], "generation": header.generation, "id": f"{header.id:x}",
        "parent": f"{header.parent:x}" if header.parent else None, "diskLength": header.disk_length, "groupSize": header.group_size,
        "groups": len(file.groups)}))


def list_groups(path: str) -> None:
    file = CowFile(path)
    for group in sorted(file.groups):
        print(group, xxhash.xxh3_128(file.content(group)).hexdigest())


def apply(image: str, out: str, paths: list[str]) -> None:
    with open(image, "rb") as source:
        disk = bytearray(source.read())
    below = 0
    for path in paths:
        file = CowFile(path)
        if file.header.state == 2 or not file.groups:
            continue
        if file.header.disk_length != len(disk):
            raise Damage(f"{path} is of a disk of {file.header.disk_length} bytes")
        if below and file.header.parent != below:
            raise Damage(f"{path} does not lie on the file before it")
        below = file.header.id
        for group in file.groups:
            start = group * file.header.group_size
            disk[start:start + file.length(group)] = file.content(group)
    with open(out, "wb") as target:
        target.write(disk)


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) == 2 and arguments[0] == "info":
            info(arguments[1])
        elif len(arguments) == 2 and arguments[0] == "list":
            list_groups(arguments[1])
        elif len(arguments) >= 4 and arguments[0] == "apply":
            apply(arguments[1], arguments[2], arguments[3:])
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except Damage as error:
        print(f"corrupt: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
