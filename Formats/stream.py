#!/usr/bin/env python3
"""Lists, verifies and applies streams of checkpoints, by STREAM.md alone.

  stream.py list FILE            what the stream has, as JSON
  stream.py verify FILE          checks everything; says nothing when all is right
  stream.py apply FILE DIR       applies it to plain files: DIR/CHECKPOINT/REGION

`apply` finds a base as DIR/NAME with a file .id in it that has the base's id, and makes each checkpoint's directory beside it.
Exit codes: 0 right, 1 usage or a missing base, 3 damaged, cut, unsupported or no stream.

Needs the Debian packages python3-lz4 and python3-xxhash.
"""

import json
import os
import shutil
import struct
import sys

import lz4.block
import xxhash

PAGE = 4096
SPAN = 512
PREAMBLE = struct.Struct("<8sII16s")
HEADER = struct.Struct("<4sB3sQIIQ16s")
LIMITS = {1: 40 + 8 * 4096, 2: 64 + 2 * 65536, 3: 16 + 4 * 256 + 10 * 512 + SPAN * PAGE, 4: 24, 5: 32, 6: 24}
KINDS = {1: "memory", 2: "disk", 3: "state"}


class Refused(Exception):
    """The stream is not one that a reader may take: damaged, cut, unsupported, no stream."""


def h128(data):
    """H128, as stored: the low 64 bits first."""
    return xxhash.xxh3_128(data).intdigest().to_bytes(16, "little")


def need(condition, reason):
    if not condition:
        raise Refused(f"damaged: {reason}")


class Frames:
    """The frames of a stream, each checked before it is handed out."""

    def __init__(self, file):
        self.file = file
        self.count = 0
        raw = self.read(PREAMBLE.size)
        magic, version, _, checksum = PREAMBLE.unpack(raw)
        if magic != b"CKSTRM1\0":
            raise Refused("no stream of checkpoints")
        need(h128(raw[:16]) == checksum, "the preamble")
        if version != 1:
            raise Refused(f"unsupported: version {version}")
        self.chain = checksum

    def read(self, count):
        raw = self.file.read(count)
        if len(raw) != count:
            raise Refused("cut: it ends before its end")
        return raw

    def next(self):
        raw = self.read(HEADER.size)
        magic, kind, _, sequence, length, _, check, chain = HEADER.unpack(raw)
        need(magic == b"CKSF" and int.from_bytes(h128(raw[:24])[:8], "little") == check, f"frame {self.count} has no header")
        need(sequence == self.count, f"frame {sequence} in the place of frame {self.count}")
        need(kind in LIMITS and length <= LIMITS[kind], f"frame {self.count}: kind {kind}, {length} bytes")
        payload = self.read(length)
        need(h128(self.chain + raw[:32] + h128(payload)) == chain, f"frame {self.count} is not what was sent")
        self.chain = chain
        self.count += 1
        return kind, payload


class Cursor:
    """Fields of a payload, one after the other."""

    def __init__(self, raw):
        self.raw = raw
        self.position = 0

    def take(self, count):
        need(self.position + count <= len(self.raw), "a frame that ends before its fields do")
        self.position += count
        return self.raw[self.position - count:self.position]

    def fields(self, layout):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def text(self, count):
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("damaged: text that is not UTF-8") from None

    def end(self):
        need(self.position == len(self.raw), "a frame that is longer than its fields")


def check_name(name):
    raw = name.encode()
    need(1 <= len(raw) <= 255 and "/" not in name and name not in (".", ".."), f"the name {name!r}")
    need(not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name), f"the name {name!r}")


def ascending(names):
    return all(a.encode() < b.encode() for a, b in zip(names, names[1:]))


def parse_start(raw):
    cursor = Cursor(raw)
    stream, origin, created, checkpoints, count = cursor.fields("Q16sQII")
    need(count <= 4096, f"{count} relatives")
    relatives = cursor.fields(f"{count}Q")
    cursor.end()
    return {"stream": stream, "origin": origin.hex(), "created": created, "checkpointCount": checkpoints, "relatives": relatives}


def parse_checkpoint(raw):
    cursor = Cursor(raw)
    number, parent, created, base, base_created, start_region, label_count, name_length, start_page, region_count, reference_count = cursor.fields(
        "QQQQQIHHQII")
    need(number != 0 and number not in (parent, base), "a checkpoint that is its own parent or base")
    need(region_count <= 4096 and start_region <= region_count and start_page % SPAN == 0, "a start or regions that can't be")
    name = cursor.text(name_length)
    check_name(name)
    need(not name.startswith("ckstore.receiving."), "a name that is kept")
    labels = []
    for _ in range(label_count):
        key_length, value_length = cursor.fields("HH")
        need(1 <= key_length <= 255, "a label's key")
        labels.append((cursor.text(key_length), cursor.text(value_length)))
    need(ascending([key for key, _ in labels]), "labels out of order")
    regions = []
    for _ in range(region_count):
        length, kind, _, size, stored = cursor.fields("HB5sQQ")
        region = {"name": cursor.text(length), "kind": KINDS.get(kind), "byteLength": size, "storedPages": stored}
        check_name(region["name"])
        need(region["kind"] and size < 1 << 63 and (kind != 1 or size % PAGE == 0), "a region's kind or length")
        need(stored <= page_count(region), "a region with more pages than it has")
        regions.append(region)
    need(ascending([region["name"] for region in regions]), "regions out of order")
    references, left = [], 65536
    for _ in range(reference_count):
        (length,) = cursor.fields("H")
        left -= 2 + length
        need(left >= 0, "more names than there can be")
        references.append(cursor.text(length))
        check_name(references[-1])
        need(references[-1] not in ("latest", name) and not references[-1].startswith("ckstore.receiving."), "a name that can't be one that moves")
    need(ascending(references), "names that move out of order")
    cursor.end()
    return {
        "id": number, "parent": parent, "created": created, "base": base, "baseCreated": base_created,
        "start": (start_region, start_page), "name": name, "labels": labels, "regions": regions, "references": references}


def page_count(region):
    return -(-region["byteLength"] // PAGE)


def parse_span(raw):
    """The region's index, the span's first page, its zeros as (first, count), its pages as a dictionary."""
    cursor = Cursor(raw)
    region, run_count, zero_count, _, first = cursor.fields("HHHHQ")
    need(run_count <= 512 and zero_count <= 256 and first % SPAN == 0 and first < 1 << 51, "a span frame's fields")
    seen = set()
    zeros, end = [], 0
    for _ in range(zero_count):
        start, count = cursor.fields("HH")
        need(count > 0 and start >= end and start + count <= SPAN, "zeros out of order")
        end = start + count
        zeros.append((start, count))
        seen.update(range(start, end))
    runs = []
    for _ in range(run_count):
        count, codec, _, stored = cursor.fields("BBHI")
        need(1 <= count <= 16 and codec in (0, 1), "a run's fields")
        need(stored == count * PAGE if codec == 0 else 0 < stored < count * PAGE, "a run's length")
        numbers = cursor.fields(f"{count}H")
        need(all(a < b for a, b in zip(numbers, numbers[1:])) and numbers[-1] < SPAN, "a run's pages")
        need(not seen.intersection(numbers), "a page twice")
        seen.update(numbers)
        runs.append((numbers, codec, stored))
    pages = {}
    for numbers, codec, stored in runs:
        data = cursor.take(stored)
        if codec == 1:
            try:
                data = lz4.block.decompress(data, uncompressed_size=len(numbers) * PAGE)
            except lz4.block.LZ4BlockError:
                raise Refused("damaged: a run that does not decode") from None
        need(len(data) == len(numbers) * PAGE, "a run that decodes to another length")
        for index, number in enumerate(numbers):
            pages[number] = data[index * PAGE:(index + 1) * PAGE]
    cursor.end()
    return region, first, zeros, pages


def read(file, target):
    """Reads a whole stream; `target` gets what it has, a checkpoint's `finish` when it may be believed. Returns a listing."""
    frames = Frames(file)
    kind, payload = frames.next()
    need(kind == 1, "it does not start with a start frame")
    start = parse_start(payload)
    listing = {
        "stream": f"{start['stream']:016x}", "origin": start["origin"], "created": start["created"], "checkpoints": []}
    current, complete = None, True
    while True:
        kind, payload = frames.next()
        if kind == 2:
            need(complete, "a checkpoint without its end")
            if current:
                target.finish()
            current, complete = parse_checkpoint(payload), False
            position = current["start"]
            totals = [0, 0, 0]
            target.begin(current)
        elif kind in (3, 4):
            need(not complete, "pages of no checkpoint")
            if kind == 3:
                region, first, zeros, pages = parse_span(payload)
                end = first + SPAN
                last = max([0] + [s + c for s, c in zeros] + [p + 1 for p in pages])
            else:
                region, _, first, count = struct.unpack("<H6sQQ", payload)
                need(first % SPAN == 0 and 0 < count and first + count <= 1 << 52, "a zeros frame's fields")
                zeros, pages, last, end = [(0, count)], {}, count, first + -(-count // SPAN) * SPAN
            need(region < len(current["regions"]) and (region, first) >= position, "pages out of order")
            need(first + last <= page_count(current["regions"][region]), "pages behind a region's end")
            position = (region, end)
            totals[0] += len(pages)
            totals[1] += sum(count for _, count in zeros)
            totals[2] += 1
            target.pages(region, first, zeros, pages)
        elif kind == 5:
            need(not complete and len(payload) == 32, "the end of no checkpoint")
            need(struct.unpack("<QQQQ", payload) == (current["id"], *totals), "a checkpoint's totals")
            complete = True
            listing["checkpoints"].append(
                {
                    "id": f"{current['id']:016x}", "parent": f"{current['parent']:016x}", "base": f"{current['base']:016x}",
                    "name": current["name"], "created": current["created"], "labels": dict(current["labels"]),
                    "references": current["references"],
                    "start": list(current["start"]), "regions": current["regions"], "writtenPages": totals[0], "zeroedPages": totals[1],
                    "dataFrames": totals[2]})
        elif kind == 6:
            need(complete and len(payload) == 24, "the end in a checkpoint")
            need(
                struct.unpack("<QQQ", payload) == (start["stream"], start["checkpointCount"], frames.count - 1)
                and len(listing["checkpoints"]) == start["checkpointCount"], "the stream's totals")
            need(not file.read(1), "something follows on the end")
            if current:
                target.finish()
            listing["frames"] = frames.count
            listing["checksum"] = frames.chain.hex()
            return listing
        else:
            raise Refused("damaged: it starts twice")


class Nothing:
    """Where nothing is applied."""

    def begin(self, checkpoint):
        pass

    def pages(self, region, first, zeros, pages):
        pass

    def finish(self):
        pass


class Files:
    """Checkpoints as directories of files: made under a name with a dot in front, which goes when the checkpoint is believed."""

    def __init__(self, directory):
        self.directory = directory
        self.path = None

    def begin(self, checkpoint):
        if checkpoint["start"] != (0, 0):
            sys.exit("stream.py: it goes on after a cut; only a store can have what came before")
        base = self.find(checkpoint["base"]) if checkpoint["base"] else None
        self.checkpoint = checkpoint
        self.path = os.path.join(self.directory, ".incoming")
        shutil.rmtree(self.path, ignore_errors=True)
        os.mkdir(self.path, 0o700)
        for region in checkpoint["regions"]:
            path = os.path.join(self.path, region["name"])
            before = base and os.path.join(base, region["name"])
            if before and os.path.exists(before):
                shutil.copyfile(before, path)
            with open(path, "ab") as file:
                file.truncate(region["byteLength"])

    def find(self, number):
        for name in os.listdir(self.directory):
            try:
                with open(os.path.join(self.directory, name, ".id")) as file:
                    if file.read().strip() == f"{number:016x}":
                        return os.path.join(self.directory, name)
            except OSError:
                continue
        sys.exit(f"stream.py: the base {number:016x} is not in {self.directory}")

    def pages(self, region, first, zeros, pages):
        length = self.checkpoint["regions"][region]["byteLength"]
        with open(os.path.join(self.path, self.checkpoint["regions"][region]["name"]), "r+b") as file:
            def put(page, data):
                offset = (first + page) * PAGE
                file.seek(offset)
                file.write(data[:max(0, length - offset)])
            for start, count in zeros:
                for page in range(start, start + count):
                    put(page, bytes(PAGE))
            for page, data in pages.items():
                put(page, data)

    def finish(self):
        for region in self.checkpoint["regions"]:
            path = os.path.join(self.path, region["name"])
            with open(path, "rb") as file:
                stored = sum(any(page) for page in iter(lambda: file.read(PAGE), b""))
            need(stored == region["storedPages"], f"region {region['name']} has {stored} pages, not {region['storedPages']}")
        with open(os.path.join(self.path, ".id"), "w") as file:
            file.write(f"{self.checkpoint['id']:016x}\n")
        os.rename(self.path, os.path.join(self.directory, self.checkpoint["name"]))


def main(arguments):
    if len(arguments) not in (2, 3) or arguments[0] not in ("list", "verify", "apply") or (len(arguments) == 3) != (arguments[0] == "apply"):
        sys.exit(__doc__)
    try:
        with open(arguments[1], "rb") as file:
            listing = read(file, Files(arguments[2]) if arguments[0] == "apply" else Nothing())
    except Refused as error:
        print(f"stream.py: {arguments[1]}: {error}", file=sys.stderr)
        sys.exit(3)
    if arguments[0] == "list":
        json.dump(listing, sys.stdout, indent=1, ensure_ascii=False)
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
