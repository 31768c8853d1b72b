#!/usr/bin/env python3
"""Reads copy-on-write files of disks, as COW.md describes them.

    cow.py info  FILE                    its header, as JSON
    cow.py list  FILE                    its block groups, one a line, every block verified
    cow.py apply IMAGE OUT FILE...       IMAGE with the files' groups on top, the lowest file first, into OUT

OUT is written when all files have been verified, and must be none of the others. Exit codes: 0 ok, 1 failure, 2 usage, 3 corrupt,
unsupported or no copy-on-write file, or files that don't belong together. It only reads, and takes no lock: don't use it on files in use.
"""
from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import dataclass

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
        self.path = path
        with open(path, "rb") as file:
            self.data = file.read()
        self.header = self._newest_header()
        self.blocks_per_group = self.header.group_size // PAGE
        self.entry_size = 8 + 16 * self.blocks_per_group
        self.slots_per_chunk = (PAGE - 48) // self.entry_size
        self.chunk_size = 2 * PAGE + self.slots_per_chunk * self.header.group_size
        self.group_count = -(-self.header.disk_length // self.header.group_size)
        self.groups: dict[int, tuple[int, list[bytes]]] = {}
        if self.header.chunk_count:
            if self._start(self.header.chunk_count) >= 1 << 63 or self._start(self.header.chunk_count - 1) + PAGE > len(self.data):
                raise Damage("map pages are missing: the file is truncated")
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
        best = (0, None)
        for twin in range(2):
            start = self._start(chunk) + twin * PAGE
            page = self.data[start:start + PAGE]
            if len(page) != PAGE or page[16:20] != b"CKDM" or h128(page[16:]) != page[:16]:
                continue
            index, generation, own = struct.unpack_from("<QQQ", page, 24)
            if index != chunk or own != self.header.id or generation > self.header.generation:
                continue
            if generation > best[0]:
                best = (generation, page)
        if best[1] is None:
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


def in_order(files: list[CowFile]) -> list[CowFile]:
    """Those that have something to merge. Raises when they are not all of a disk's, the lowest first."""
    # What lies on these counts as lying on what is below them.
    passed: dict[int, int] = {}
    for file in files:
        if file.header.state == 2 or not file.groups:
            passed.setdefault(file.header.id, 0 if file.header.state == 2 else file.header.parent)
    below = 0
    result = []
    for file in files:
        if file.header.state == 2 or not file.groups:
            continue
        parent = file.header.parent
        # As many steps as there are such files: damaged ones might go in a circle.
        for _ in passed:
            if parent not in passed:
                break
            parent = passed[parent]
        if parent != below:
            on = f"the file {parent:x}" if parent else "the image"
            raise Damage(f"{file.path} lies on {on}, which is not the one before it")
        below = file.header.id
        result.append(file)
    return result


def apply(image: str, out: str, paths: list[str]) -> None:
    for path in [image] + paths:
        if os.path.exists(out) and os.path.samefile(path, out):
            raise OSError(f"{out} is {path}: choose another file to write to")
    with open(image, "rb") as source:
        disk = bytearray(source.read())
    files = [CowFile(path) for path in paths]
    for file in files:
        if file.header.disk_length != len(disk):
            raise Damage(f"{file.path} is of a disk of {file.header.disk_length} bytes, not {len(disk)}")
    for file in in_order(files):
        for group in file.groups:
            start = group * file.header.group_size
            disk[start:start + file.length(group)] = file.content(group)
    with open(out, "wb") as target:
        target.write(disk)


def main(arguments: list[str]) -> int:
    command, *rest = arguments or [""]
    if not (command in ("info", "list") and len(rest) == 1 or command == "apply" and len(rest) >= 3):
        print(__doc__, file=sys.stderr)
        return 2
    global xxhash
    try:
        import xxhash
    except ImportError:
        print("cow.py needs xxhash (Debian: python3-xxhash)", file=sys.stderr)
        return 1
    try:
        if command == "info":
            info(rest[0])
        elif command == "list":
            list_groups(rest[0])
        else:
            apply(rest[0], rest[1], rest[2:])
    except Damage as error:
        print(f"corrupt: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"cow.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
