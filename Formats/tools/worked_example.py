#!/usr/bin/python3
"""Writes section 11 of ../FORMAT.md from the bytes of ../golden/tiny.ckstore. `--check`: only says whether it is right."""
import pathlib
import re
import struct
import sys

FORMATS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(FORMATS))
import ckstore  # noqa: E402

POINTER = [(4, "segment"), (4, "offset"), (4, "storedLength"), (1, "kind"), (1, "codec"), (2, "keyId"), (8, "birth"),
           (16, "checksum")]
HEADER = [(16, "checksum"), (4, "magic"), (4, "storedLength"), (8, "birth")]


def quoted(raw: bytes) -> str:
    return '"' + raw.decode() + '"'


class Block:
    """Bytes of the medium, told field by field."""

    def __init__(self, data: bytes, at: int, length: int):
        self.raw, self.at, self.done, self.lines = data[at:at + length], at, 0, []

    def field(self, length: int, name: str, note=None) -> bytes:
        raw = self.raw[self.done:self.done + length]
        assert len(raw) == length, name
        if note is None and length in (1, 2, 4, 8):
            value = int.from_bytes(raw, "little")
            note = f"{value:#x}" if value > 0xFFFFFF else str(value)
        shown = [raw[i:i + 16].hex(" ") for i in range(0, length, 16)]
        if len(shown) > 2 and not any(raw):
            shown, note = [f"{shown[0]} ..."], note or f"{length} bytes of zero"
        elif len(shown) > 3:
            shown, note = shown[:2] + ["..."], note or f"{length} bytes"
        for i, part in enumerate(shown):
            text = f"{name}{': ' + note if note else ''}" if i == 0 else ""
            self.lines.append(f"{self.at + self.done + 16 * i:06x}  {part:51} {text}".rstrip())
        self.done += length
        return raw

    def fields(self, rows, prefix="") -> None:
        for row in rows:
            length, name, note = row if len(row) == 3 else (*row, None)
            raw = self.raw[self.done:self.done + length]
            if name in ("magic", "name", "key", "value") and note is None and raw.isascii():
                note = quoted(raw)
            self.field(length, prefix + name, note)

    def pointer(self, name: str) -> None:
        if not any(self.raw[self.done:self.done + 40]):
            self.field(40, name, "null")
        else:
            self.fields(POINTER, f"{name}.")

    def end(self) -> str:
        assert self.done == len(self.raw), f"{len(self.raw) - self.done} bytes are not told"
        return "```\n" + "\n".join(self.lines) + "\n```\n"


def build() -> str:
    path = FORMATS / "golden" / "tiny.ckstore"
    data = path.read_bytes()
    store = ckstore.Store(ckstore.Medium(str(path)))
    slot = store.slot
    out = []

    def block(pointer, rows=()) -> Block:
        b = Block(data, store.position(pointer.segment, pointer.offset), pointer.length)
        b.fields(HEADER)
        b.fields(rows)
        return b

    def place(pointer) -> str:
        return (f"segment {pointer.segment}, offset {pointer.offset:#x}; on the medium {slot.data_offset:#x} + "
                f"{pointer.segment} x {slot.segment_size:#x} + {pointer.offset:#x} = "
                f"{store.position(pointer.segment, pointer.offset):#x}")
    out.append(f"""`golden/tiny.ckstore`, made by `tools/make_golden.py`; this section is written by `tools/worked_example.py`.
The store has one checkpoint, "first", with one region, "ram", of 8 pages; pages 0 and 2 are not zero. The segments
have {slot.segment_size // 1024} KiB, and there are {slot.segment_count}. All numbers in the first column are offsets on the medium, in hexadecimal.

### 11.1 The newest slot
Ring A, position {slot.slot_index} (generation {slot.generation} mod 16), at {slot.slot_index * 4096:#x}. Position 1 holds generation 1, the empty store;
all others are zero. Ring B, at {slot.twin_offset:#x}, has the same slots but for `twin` and `checksum`.
""")
    b = Block(data, slot.slot_index * 4096, 4096)
    b.fields([(8, "magic"), (16, "checksum"), (2, "slotIndex"), (1, "twin"), (1, "kind", "1 commit"), (4, "formatVersion"),
              (16, "storeUUID", str(slot.uuid)), (8, "generation"), (8, "incompatFeatures"),
              (8, "readOnlyCompatFeatures", "bit 0, `lineage`"), (8, "compatFeatures"), (4, "segmentSize"), (4, "commitUnit"), (4, "segmentCount"),
              (1, "tableDepth"), (3, "reserved"), (8, "twinOffset"), (8, "dataOffset"), (8, "pageHashSeed"),
              (8, "commitTimeNanoseconds", str(slot.commit_time))])
    for name in ("catalogById", "catalogByName", "segmentTable", "forwarding", "lineage"):
        b.pointer(name)
    b.fields([(8, "checkpointCount"), (4, "usedSegments"), (4, "catalogSegment"), (4, "allocationHint"), (4, "reserveSegments"),
              (8, "eraseUnit"), (8, "baseGeneration"), (144, "reserved"), (2, "featureNameCount"), (2, "reserved"),
              (1, "mask", "2 read-only compat"), (1, "bit"), (1, "length"), (29, "name", '"lineage"'), (3548, "unused feature names, reserved")])
    out.append(b.end())

    pointer = store.roots.by_id
    out.append(f"""### 11.2 The catalog by id
`catalogById` leads to {place(pointer)}. The checksum is that of the pointer; the first bytes of the key are the most
significant.
""")
    b = block(pointer, [(1, "tree", "1 by id"), (1, "level", "0 leaf"), (2, "entryCount"), (4, "reserved"), (2, "keyLength"),
                        (2, "valueLength"), (8, "key", "id, big-endian")])
    b.pointer("record")
    b.fields([(8, "generation"), (4, "flags"), (4, "reserved")])
    out.append(b.end())
    pointer = store.roots.by_name
    out.append(f"### 11.3 The catalog by name\nAt {place(pointer)}.\n")
    out.append(block(pointer, [(1, "tree", "2 by name"), (1, "level", "0 leaf"), (2, "entryCount"), (4, "reserved"),
                               (2, "keyLength"), (2, "valueLength"), (5, "key"), (8, "value", "id, little-endian")]).end())

    (key, value), = store.walk_catalog(1)
    number, pointer = store.catalog_value(key, value)
    region = store.checkpoint(number, pointer).regions[0]
    record_pointer = pointer
    out.append(f"### 11.4 The checkpoint record\nAt {place(pointer)}.\n")
    b = block(pointer, [(8, "id"), (8, "parentId", "none"), (8, "createdNanoseconds"), (8, "baseGeneration"), (2, "nameLength"),
                        (2, "labelCount"), (4, "regionCount"), (8, "newPages"), (8, "storedBytes"), (8, "groupId"), (5, "name"),
                        (2, "keyLength"), (2, "valueLength"), (4, "key"), (13, "value"), (2, "nameLength"),
                        (1, "kind", "1 memory"), (1, "depth"), (4, "reserved"), (8, "byteLength"), (8, "regionKey", 'H64("ram")')])
    b.pointer("root")
    b.fields([(8, "storedPages"), (8, "newPages"), (3, "name")])
    out.append(b.end())

    leaf = region.root
    runs, extents, hashes = struct.unpack_from("<HHH", store.block(leaf, ""), 48)
    out.append(f"### 11.5 The leaf\nDepth 0: the region's root is its only leaf, at {place(leaf)}.\n")
    b = block(leaf, [(8, "regionKey"), (8, "spanFirstPage"), (2, "runCount"), (2, "extentCount"), (2, "hashCount"), (2, "reserved")])
    for i in range(runs):
        b.pointer(f"runs[{i}]")
    for i in range(extents):
        b.fields([(2, "firstPage"), (1, "pageCount"), (1, "pageOffset"), (2, "runIndex"), (2, "reserved")], f"extents[{i}].")
    for page in store.leaf(leaf, region, 0):
        b.field(16, f"hashes: P128 of page {page}")
    out.append(b.end())

    run = next(iter(store.leaf(leaf, region, 0).values())).run
    out.append(f"### 11.6 The run\nAt {place(run)}. Decoded, the payload has 8192 bytes: pages 0 and 2.\n")
    b = block(run, [(8, "regionKey"), (8, "spanFirstPage"), (1, "pageCount"), (1, "codec", "1 LZ4"), (2, "keyId"), (4, "reserved"),
                    (2, "pages[0]"), (2, "pages[1]"), (4, "padding to a multiple of 8", "")])
    b.field(len(b.raw) - b.done, "payload")
    out.append(b.end())

    at = store.position(run.segment, 0)
    out.append(f"### 11.7 Segment header and commit record\nThe run's segment, {run.segment}, starts with its header, at {at:#x}:\n")
    b = Block(data, at, 128)
    b.fields(HEADER + [(16, "storeUUID", str(slot.uuid)), (4, "segment"), (1, "class", "1 runs"), (3, "reserved"),
                       (8, "baseGeneration"), (4, "segmentSize"), (60, "reserved")])
    out.append(b.end())
    offset, _, raw = next(found for found in store.scan(run.segment) if found[1] == 10)
    out.append("The commit record follows the last block of the checkpoint, at the next multiple of 64:\n")
    b = Block(data, store.position(run.segment, offset), len(raw))
    b.fields(HEADER)
    b.pointer("checkpointRecord")
    assert ckstore.parse_pointer(raw, 32, (5,), False, "") == record_pointer
    b.fields([(4, "segment"), (4, "firstOffset"), (4, "endOffset"), (2, "nameLength"), (2, "reserved"), (5, "name")])
    out.append(b.end())

    table = store.roots.table
    out.append(f"### 11.8 The segment table\nA single leaf, at {place(table)}.\n")
    b = block(table, [(4, "firstSegment"), (2, "entryCount"), (10, "reserved", "")])
    for i in range(slot.segment_count):
        b.fields([(1, "state", "1 used"), (1, "class"), (2, "flags"), (4, "committedLength"), (4, "live"), (4, "written"),
                  (8, "birth"), (8, "freedGeneration")], f"entries[{i}].")
    b.field(32 * (64 - slot.segment_count), "entries of segments that are not there")
    out.append(b.end())

    pointer = store.roots.lineage
    out.append(f"### 11.9 The lineage\nAt {place(pointer)}. The reference stands before the node: its key starts with zeros.\n")
    out.append(block(pointer, [(1, "tree", "3 lineage"), (1, "level", "0 leaf"), (2, "entryCount"), (4, "reserved"),
                               (2, "keyLength"), (2, "valueLength"), (8, "key", "a reference"), (6, "key", '"latest"'), (8, "value", "id, little-endian"),
                               (2, "keyLength"), (2, "valueLength"), (8, "key", "id, big-endian"), (8, "key", "a node"),
                               (8, "parent", "none"), (1, "state", "1 living"), (7, "reserved", "")]).end())
    return "## 11. Worked example\n" + "\n".join(out)


def main() -> int:
    path = FORMATS / "FORMAT.md"
    text, section = path.read_text(), build()
    before, found, rest = text.partition("\n## 11. Worked example\n")
    following = re.search(r"^## (?!11\.)", rest, re.M) if found else None
    new = before.rstrip("\n") + "\n\n" + section + ("\n" + rest[following.start():] if following else "")
    if "--check" in sys.argv:
        print("section 11 is right" if new == text else "section 11 of FORMAT.md is not what worked_example.py writes")
        return 0 if new == text else 1
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
