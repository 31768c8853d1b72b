#!/usr/bin/env python3
"""Reads a rollback image, written from ROLLBACK.md alone.

    rollback.py IMAGE MEMORY STATE    writes the checkpoint's memory and device state into files; prints its epoch and name

The files are written when all has been verified; each is a file of its own. It holds the image's shared lock meanwhile. Exit codes: 0 ok,
1 failure (a file that can't be read or written, an image in use), 2 usage, 3 no image, or a damaged or unsupported one.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

PAGE = 4096
MAGIC = b"CKROLL1\0"
LOCK_BYTE = (1 << 62) + 2
OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)


class BadImage(Exception):
    pass


def h128(content: bytes) -> bytes:
    return xxhash.xxh3_128_intdigest(content).to_bytes(16, "little")


class Image:
    """The newest checkpoint of an image; everything that is returned has been checked."""

    def __init__(self, file) -> None:
        self.file = file
        self.size = file.seek(0, 2)
        self.epoch, self.length, self.room, self.state_length, state_hash, table_hash, self.name = self.newest_record()
        self.pages = self.length // PAGE
        table_length = -(-(16 * self.pages + (self.pages + 7) // 8) // PAGE) * PAGE
        area = 4 * PAGE + self.epoch % 2 * (self.room + table_length)
        self.locations = 4 * PAGE + 2 * (self.room + table_length)
        if self.size < self.locations + 2 * self.length:
            raise BadImage("the medium is too short")
        self.state = self.read(area, self.state_length)
        self.table = self.read(area + self.room, table_length)
        if h128(self.state) != state_hash or h128(self.table) != table_hash:
            raise BadImage("state or table are damaged")

    def read(self, offset: int, count: int) -> bytes:
        self.file.seek(offset)
        content = self.file.read(count)
        if len(content) != count:
            raise BadImage(f"no {count} bytes at {offset}")
        return content

    def newest_record(self) -> tuple:
        found = []
        for slot in range(4):
            record = self.read(slot * PAGE, PAGE)
            if record[:8] != MAGIC or h128(record[:4080]) != record[4080:]:
                continue
            version, epoch, length, room, state_length = struct.unpack_from("<I20xQQQQ", record, 8)
            if version != 1:
                raise BadImage(f"version {version}")
            (name_length,) = struct.unpack_from("<H", record, 96)
            sound = epoch and epoch % 2 == slot % 2 and 0 < length <= 1 << 47 and room <= 1 << 30 and not (length | room) % PAGE
            if sound and state_length <= room and name_length <= 255:
                name = record[112:112 + name_length].decode(errors="replace")
                found.append((epoch, length, room, state_length, record[64:80], record[80:96], name))
        if not found:
            raise BadImage("no valid record")
        return max(found, key=lambda record: record[0])

    def page(self, number: int) -> bytes:
        expected = self.table[16 * number:16 * number + 16]
        if expected == bytes(16):
            return bytes(PAGE)
        location = self.table[16 * self.pages + number // 8] >> number % 8 & 1
        content = self.read(self.locations + location * self.length + number * PAGE, PAGE)
        if h128(content) != expected and not (h128(content) == bytes(16) and expected == b"\1" + bytes(15)):
            raise BadImage(f"page {number} is damaged")
        return content


def lock(file) -> None:
    """Takes the image's lock, shared, as long as the file is open."""
    # The kernel's struct flock of 64-bit systems: type, whence, start, length, process (0).
    description = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, LOCK_BYTE, 1, 0)
    try:
        fcntl.fcntl(file.fileno(), OFD_SETLK, description)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise OSError("the image is in use: somebody writes checkpoints to it") from None
        raise


def refuse_same(one: str, other: str) -> None:
    """Raises when two paths are one file, which may not exist yet."""
    both_exist = os.path.exists(one) and os.path.exists(other)
    if os.path.samefile(one, other) if both_exist else os.path.realpath(one) == os.path.realpath(other):
        raise OSError(f"{other} is {one}: choose another file to write to")


def read(path: str, memory_path: str, state_path: str) -> None:
    with open(path, "rb") as file:
        refuse_same(path, memory_path)
        refuse_same(path, state_path)
        if not os.path.exists(memory_path) or os.path.isfile(memory_path):
            refuse_same(memory_path, state_path)
        lock(file)
        image = Image(file)
        # Everything is verified before anything is written; and again when it is.
        for number in range(image.pages):
            image.page(number)
        with open(memory_path, "wb") as memory, open(state_path, "wb") as state:
            for number in range(image.pages):
                memory.write(image.page(number))
            state.write(image.state)
        sys.stdout.reconfigure(errors="backslashreplace")
        print(image.epoch, image.name)


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    global xxhash
    try:
        import xxhash
    except ImportError:
        print("rollback.py needs xxhash (Debian: python3-xxhash)", file=sys.stderr)
        return 1
    try:
        read(*arguments)
    except BadImage as error:
        print(f"rollback.py: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"rollback.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
