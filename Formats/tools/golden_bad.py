"""The bad sample stores: what is damaged in each, and what a reader must say of it. Lineage and forwarding are in
golden_bad_time.py. See golden/README.md."""
import struct

from build_store import h128, seal_slot
from golden_good import LAST, PAGE, chain

BAD = {}


def bad(name, about, *, base="chain", on_block=None, on_slot=None, on_lineage=None, after=None, medium_bytes=None, **expect):
    """`expect`: open, list, verify as {"exit", "error", "word"}; damages as [checkpoint, region, first page, count];
    restore as [checkpoint, region, exit, word]. What is not given is as in the good store, but for `open` failing."""
    assert name not in BAD
    BAD[name] = dict(about=about, base=base, hooks=dict(on_block=on_block, on_slot=on_slot, on_lineage=on_lineage),
                     after=after, medium_bytes=medium_bytes, expect=expect)


def at(note, change):
    """A hook that changes the block of that note."""
    def hook(_, block, its):
        if its == note:
            change(block)
    return hook


def newest(change, last=LAST):
    return lambda generation, slot: change(slot) if generation == last else None


def patch(layout, offset, *values):
    return lambda block: struct.pack_into(layout, block, offset, *values)


def swap(first, second, length):
    def change(block):
        block[first:first + length], block[second:second + length] = (
            block[second:second + length], block[first:first + length])
    return change


def flip(note, offset):
    return lambda b: b.medium.flip(b.blocks[note][0] + offset)


def slot_offset(b, generation, twin):
    return twin * b.twin_offset + generation % 16 * 4096


def put_slot(b, generation, twin, raw):
    b.medium.write(slot_offset(b, generation, twin), raw)


def tear(*generations):
    """Both twins half written."""
    def change(b):
        for generation in generations:
            for twin in (0, 1):
                at_offset = slot_offset(b, generation, twin)
                b.medium.write(at_offset + 2048, bytes(range(256)) * 8)
                b.medium.write(at_offset, b"CKSTORE1")
    return change


def bad_slots():
    fails = {"exit": 3}

    def every_slot(change):
        def run(b):
            for twin in (0, 1):
                for index in range(16):
                    change(b, slot_offset(b, index, twin))
        return run
    bad("no-magic", "both rings are zeros", after=every_slot(lambda b, o: b.medium.write(o, bytes(4096))),
        open={**fails, "error": "not a store"})
    bad("no-valid-slot", "one bit of every slot is wrong", after=every_slot(lambda b, o: b.medium.flip(o + 300)),
        open={**fails, "error": "corrupt", "word": "no valid slot"})
    bad("two-torn", "the positions of the next two generations are torn", after=tear(LAST + 1, LAST + 2),
        open={**fails, "error": "superblock lost"})

    def lose(b):
        for generation in (LAST - 1, LAST):
            for twin in (0, 1):
                put_slot(b, generation, twin, b.slot_history[generation - 16][twin])
    bad("lost-slots", "the writes of the last two generations' slots were lost; their catalog nodes are there", after=lose,
        open={**fails, "error": "superblock lost"})

    def feature(slot):
        struct.pack_into("<Q", slot, 56, 1 << 7)
        struct.pack_into("<H", slot, 512, 2)
        struct.pack_into("<BBB29s", slot, 516 + 32, 1, 7, 11, b"time-travel")
    bad("unknown-feature", "an incompatible feature that version 1 does not know", on_slot=newest(feature),
        open={**fails, "error": "unsupported", "word": "time-travel"})
    bad("unnamed-feature", "an unknown incompatible bit without a name", on_slot=newest(patch("<Q", 56, 1 << 63)),
        open={**fails, "error": "unsupported", "word": "63"})
    bad("version-2", "format version 2", on_slot=newest(patch("<I", 28, 2)), open={**fails, "error": "unsupported"})
    bad("truncated", "the medium ends in the last segment", medium_bytes=-4096, open={**fails, "error": "truncated"})
    bad("truncated-ring", "the medium ends in ring B", medium_bytes=131072 + 8192, open={**fails, "error": "truncated"})

    def differ(b):
        slot = bytearray(b.slot_history[LAST][1])
        slot[344] ^= 1
        put_slot(b, LAST, 1, seal_slot(slot))
    bad("twins-differ", "twins of the newest generation that are both valid and not alike", after=differ,
        open={**fails, "error": "corrupt", "word": "twins"})

    def foreign(b):
        slot = bytearray(b.slot_history[LAST - 1][0])
        slot[32] ^= 1
        put_slot(b, LAST - 1, 0, seal_slot(slot))
    bad("other-uuid", "a slot of another store", after=foreign, open={**fails, "error": "corrupt", "word": "UUID"})
    for name, layout, offset, value in (("segment-size", "<I", 80, 131071), ("commit-unit", "<I", 84, 0),
                                        ("segment-count", "<I", 88, 0), ("data-offset", "<Q", 104, 131072),
                                        ("table-depth", "<B", 92, 1), ("feature-names", "<H", 512, 112),
                                        ("base-generation", "<Q", 360, 3), ("forwarding", "<I", 256, 64), ("lineage", "<B", 300, 7),
                                        ("slot-kind", "<B", 27, 3)):
        bad(f"bad-{name}", f"{name} of the newest slot is out of range", on_slot=newest(patch(layout, offset, value)),
            open={**fails, "error": "corrupt"})
    bad("checkpoint-count", "checkpointCount is one too many", on_slot=newest(patch("<Q", 328, 99)),
        verify={**fails, "word": "checkpointCount"})

    def half_poisoned(b):
        slot = bytearray(b.slot_history[LAST][0])
        slot[27] = 2
        slot[128:328] = b.slot_history[LAST - 1][0][128:328]
        slot[328:344] = b.slot_history[LAST - 1][0][328:344]
        slot[360:368] = b.slot_history[LAST - 1][0][360:368]
        put_slot(b, LAST, 0, seal_slot(slot))
    bad("half-poisoned", "a crash between the two writes that poison the newest generation: the poisoned twin counts",
        after=half_poisoned, list={"exit": 0}, restore=[["tick-08", "memory", 0, None], ["last", "memory", 5, None]])

    bad("one-twin-torn", "a crash between the twins: the newest generation is in ring A alone",
        after=lambda b: put_slot(b, LAST, 1, b.slot_history[LAST - 16][1][:256] + b.slot_history[LAST][1][256:]))
    bad("torn-in-flight", "a crash in a commit: the position of the next generation is torn", after=tear(LAST + 1))
    bad("ring-a-lost", "ring A is zeros; ring B is found by search",
        after=lambda b: [b.medium.write(i * 4096, bytes(4096)) for i in range(16)], verify={**fails, "word": "slot"})
    bad("wrong-place-slot", "the newest slot stands in the wrong position of the rings too",
        after=lambda b: [put_slot(b, 15, twin, b.slot_history[LAST][twin]) for twin in (0, 1)],
        open={**fails, "error": "superblock lost"})


def bad_blocks():
    fails = {"exit": 3}
    run0, run1 = ("run", "last", "fresh", 0, 0), ("run", "last", "fresh", 1, 1)
    leaf0, leaf1, inner = ("leaf", "last", "fresh", 0), ("leaf", "last", "fresh", 1), ("inner", "last", "fresh", 1, 0)
    memory = ("patch", "last", "memory", 0)
    whole, span0, span1 = ["last", "fresh", 0, 1100], ["last", "fresh", 0, 512], ["last", "fresh", 512, 512]
    memory0 = ["last", "memory", 0, 512]

    def damaged(name, about, place, word, region="fresh", exit_code=3, **how):
        places = place if isinstance(place[0], list) else [place]
        bad(name, about, verify=fails, damages=places, restore=[["last", region, exit_code, word]], **how)
    damaged("run-bit-flip", "one bit of a run's payload is wrong", ["last", "fresh", 0, 4], "checksum", after=flip(run0, 70))

    def stale(b):
        offset, length = b.blocks[run0]
        old = bytearray(b.medium.read(offset, length))
        old[24:32] = struct.pack("<Q", 1234)
        old[0:16] = h128(old[16:])
        b.medium.write(offset, old)
    damaged("run-stale", "a run of another checkpoint, valid in itself, stands in a run's place",
            ["last", "fresh", 0, 4], "another block", after=stale)
    damaged("run-length-lies", "storedLength in a run's header is not the pointer's", ["last", "fresh", 0, 4], "length",
            on_block=at(run0, patch("<I", 20, 4096)))
    damaged("run-other-span", "a run names another span", span1[:2] + [513, 1], "wrong place",
            on_block=at(run1, patch("<Q", 40, 0)))
    damaged("run-other-region", "a run names another region", span1[:2] + [513, 1], "wrong place",
            on_block=at(run1, patch("<Q", 32, 0)))
    damaged("run-page-list", "a run's page list does not hold the page that a leaf looks for there",
            span1[:2] + [513, 1], "hold", on_block=at(run1, patch("<H", 56, 2)))
    damaged("run-page-count", "a run of 17 pages", ["last", "fresh", 0, 4], "17 pages", on_block=at(run0, patch("<B", 48, 17)))
    damaged("run-codec", "a run of a codec that version 1 does not have", ["last", "fresh", 0, 4], "codec",
            on_block=at(run0, patch("<B", 49, 2)))

    def bomb(block):                                    # one literal, one match that goes on and on, five literals
        size = len(block) - 64
        block[64:] = b"\x1fA\x01\x00" + b"\xff" * (size - 11) + b"\x00" + b"\x50AAAAA"
    damaged("lz4-bomb", "a run's payload decodes to more than its pages", span1[:2] + [513, 1], "decoded",
            on_block=at(run1, bomb))

    def short(block):
        size = len(block) - 64
        block[64:] = bytes([0xF0, size - 2 - 15]) + b"A" * (size - 2)
    damaged("lz4-short", "a run's payload decodes to less than its pages", span1[:2] + [513, 1], "payload",
            on_block=at(run1, short))
    damaged("lz4-garbage", "a run's payload is no LZ4 block", span1[:2] + [513, 1], "decoded",
            on_block=at(run1, lambda block: block.__setitem__(slice(64, None), b"\xff" * (len(block) - 64))))
    damaged("page-hash", "a leaf's hash of page 513 is wrong", span1[:2] + [513, 1], "hash",
            on_block=at(leaf1, lambda block: block.__setitem__(-1, block[-1] ^ 1)))
    damaged("leaf-bit-flip", "one bit of a leaf is wrong", span0, "checksum", after=flip(leaf0, 60))
    damaged("leaves-swapped", "an inner node's pointers are exchanged", [span0, span1], "wrong place",
            on_block=at(inner, swap(72, 112, 40)))
    damaged("leaf-run-count", "a leaf's runCount does not fit its length", span0, "counts", on_block=at(leaf0, patch("<H", 48, 500)))

    def extent(change):
        def run(block):
            runs = struct.unpack_from("<H", block, 48)[0]
            change(block, 56 + 40 * runs)
        return run
    damaged("extents-overlap", "two extents list one page", span0, "extent",
            on_block=at(leaf0, extent(lambda block, o: struct.pack_into("<H", block, o + 8, 1))))
    damaged("extent-outside", "an extent reaches beyond the span", span0, "extent",
            on_block=at(leaf0, extent(lambda block, o: struct.pack_into("<H", block, o, 510))))
    damaged("extent-run-index", "an extent names a run that the leaf does not have", span0, "extent",
            on_block=at(leaf0, extent(lambda block, o: struct.pack_into("<H", block, o + 4, 9))))
    damaged("extent-page-offset", "an extent names a place in the run that the run does not have",
            [["last", "fresh", 0, 4]], "hold",
            on_block=at(leaf0, extent(lambda block, o: struct.pack_into("<B", block, o + 3, 12))))
    damaged("inner-bitmap", "an inner node's bitmap has a bit too many", whole, "bitmap", on_block=at(inner, patch("<B", 56, 7)))
    damaged("inner-level", "an inner node of a level too high", whole, "wrong place", on_block=at(inner, patch("<B", 48, 2)))
    damaged("inner-child-kind", "an inner node of level 1 points to a checkpoint record", whole, "kind",
            on_block=at(inner, patch("<B", 72 + 12, 5)))
    damaged("inner-outside", "a child behind the region's end", whole, "end",
            on_block=at(inner, patch("<B", 56, 1 | 16)))
    damaged("pointer-range", "a pointer reaches beyond its segment", span0, "range", on_block=at(inner, patch("<I", 72 + 4, 131072 - 64)))
    damaged("pointer-segment", "a pointer to a segment that is not there", span0, "range", on_block=at(inner, patch("<I", 72, 8)))
    damaged("pointer-length", "a pointer of a gigantic length", whole, "length", on_block=at(inner, patch("<I", 72 + 8, 60000)))
    damaged("pointer-key", "a pointer with an encryption key", whole, "unsupported", on_block=at(inner, patch("<H", 72 + 14, 7)))
    damaged("patch-base-null", "a patch leaf without a base", memory0, "null", region="memory",
            on_block=at(memory, lambda block: block.__setitem__(slice(56, 96), bytes(40))))
    damaged("patch-run-index", "an entry of a patch leaf names a run that is not there", memory0, "entry", region="memory",
            on_block=at(memory, lambda block: struct.pack_into("<H", block, len(block) - 24 + 2, 64)))
    damaged("patch-order", "the entries of a patch leaf are not ascending", memory0, "entry", region="memory",
            on_block=at(memory, lambda block: struct.pack_into("<H", block, len(block) - 24, 0)))


def bad_records_and_catalogs():
    fails = {"exit": 3}
    record = ("record", "last")

    def region_field(name, offset, layout, value):
        """`offset` is from the start of the region's entry, which is 80 bytes before its name's only occurrence."""
        return lambda block: struct.pack_into(layout, block, bytes(block).rindex(name) - 80 + offset, value)
    lost = {"verify": {**fails}, "damages": [[None, None, None, None]], "list": {**fails}}

    def lost_record(name, about, word, **how):
        bad(name, about, restore=[["last", "fresh", 3, word], ["alpha", "memory", 0, None]], **lost, **how)
    lost_record("record-bit-flip", "one bit of a checkpoint record is wrong", "checksum", after=flip(record, 64))
    lost_record("record-region-count", "regionCount says more than the record holds", "behind",
                on_block=at(record, patch("<I", 68, 9)))
    lost_record("record-other-id", "a record of another id", "record is of", on_block=at(record, patch("<Q", 32, 5)))
    lost_record("record-region-key", "a region key that is not the hash of its name", "key",
                on_block=at(record, region_field(b"fresh", 16, "<Q", 1)))
    lost_record("record-depth", "a depth that does not fit the region's length", "depth",
                on_block=at(record, region_field(b"fresh", 3, "<B", 2)))
    lost_record("record-name", "a region's name with a slash", "name",
                on_block=at(record, lambda block: block.__setitem__(bytes(block).rindex(b"fresh") + 1, ord("/"))))
    lost_record("record-memory-length", "memory whose length is no multiple of a page", "length",
                on_block=at(record, region_field(b"memory", 8, "<Q", 1300 * PAGE - 1)))
    bad("record-stored-pages", "storedPages of a region is wrong", verify=fails, damages=[["last", "fresh", 0, 1100]],
        list={"exit": 0}, on_block=at(record, region_field(b"fresh", 64, "<Q", 6)))

    def in_newest_leaf(tree, find, change):
        """Changes the newest catalog leaf of a tree that holds `find`, at the place where it does."""
        def hook(kind, block, note):
            if kind == 6 and note[1:4] == (LAST, tree, 0) and find in block:
                change(block, bytes(block).index(find))
        return hook
    bad("name-not-listed", "the tree by name has 'lasu' for 'last'", verify={**fails, "word": "tree by name"},
        restore=[["last", "fresh", 5, None], ["alpha", "memory", 0, None]],
        on_block=in_newest_leaf(2, b"last", lambda block, o: block.__setitem__(o + 3, ord("u"))))
    bad("name-to-other-id", "the tree by name leads to an id that is not there", verify={**fails, "word": "name"},
        restore=[["last", "fresh", 3, "by id"]],
        on_block=in_newest_leaf(2, b"last", lambda block, o: struct.pack_into("<Q", block, o + 4, 99)))
    for tree, word in ((1, "id"), (2, "name")):
        def duplicate(kind, block, note, tree=tree):
            if kind == 6 and note[:4] == ("catalog", LAST, tree, 2):    # the root
                first = 40 + 4
                second = first + 40 + 4 + struct.unpack_from("<H", block, first + 40)[0]
                block[second:second + 40] = block[first:first + 40]
        expect = dict(verify={**fails, "word": "keys out of order"}, on_block=duplicate)
        bad(f"catalog-{word}-child-twice", f"the root of the tree by {word} has the same child twice",
            **({"list": {**fails, "word": "keys out of order"}} if tree == 1 else {}), **expect)

        def root_level(kind, block, note, tree=tree):
            if kind == 6 and note[:4] == ("catalog", LAST, tree, 2):
                block[33] = 15
        bad(f"catalog-{word}-level", f"the root of the tree by {word} has a level that its children do not fit",
            verify={**fails, "word": "level"}, on_block=root_level,
            **({"list": {**fails, "word": "level"}} if tree == 1 else {}))

    def entries_overrun(kind, block, note):
        if kind == 6 and note[:4] == ("catalog", LAST, 1, 2):
            struct.pack_into("<H", block, 34, 500)
    bad("catalog-entry-count", "entryCount of the root by id is too great", on_block=entries_overrun,
        verify={**fails, "word": "reach behind"}, list={**fails, "word": "reach behind"})
    bad("catalog-bit-flip", "one bit of the root by id is wrong", verify={**fails, "word": "checksum"},
        list={**fails, "word": "checksum"},
        after=lambda b: b.medium.flip(next(o for n, (o, _) in b.blocks.items() if n[:4] == ("catalog", LAST, 1, 2)) + 50))


def bad_tables():
    fails = {"exit": 3}
    good = chain()
    runs = struct.unpack_from("<I", next(iter(good.checkpoints["last"].regions["fresh"].leaves[0].places.values()))[0])[0]
    index = struct.unpack_from("<I", good.checkpoints["last"].pointer)[0]
    table = ("table", LAST, 0, 0)

    def entry(segment, offset, layout, value):
        return at(table, patch(layout, 48 + 32 * segment + offset, value))
    bad("table-bit-flip", "one bit of the segment table is wrong", verify={**fails, "word": "checksum"}, after=flip(table, 100))
    bad("table-class", "a segment of runs is listed as one of index blocks", on_block=entry(runs, 1, "<B", 2),
        verify={**fails, "word": "class"})
    bad("table-free", "a segment that is used is listed as free", on_block=entry(index, 0, "<B", 0),
        verify={**fails, "word": "free"})
    bad("table-committed-low", "committedLength is below the end of the last block",
        on_block=entry(runs, 4, "<I", good.segments[runs].committed - 8192), verify={**fails, "word": "committedLength"})
    bad("table-committed-odd", "committedLength is no multiple of commitUnit",
        on_block=entry(runs, 4, "<I", good.segments[runs].committed + 64), verify={**fails, "word": "committedLength"})
    bad("table-live-low", "live is less than what leaves list", on_block=entry(runs, 8, "<I", 1), verify={**fails, "word": "live"})
    bad("table-written-low", "written is less than live", on_block=entry(runs, 12, "<I", good.segments[runs].live - 1),
        verify={**fails, "word": "written"})
    free = next(number for number in range(good.segment_count) if number not in good.segments)
    bad("table-free-written", "written of a free segment is not 0", on_block=entry(free, 12, "<I", 1),
        verify={**fails, "word": "written"})
    bad("table-first-segment", "the table's leaf says that it is for other segments", on_block=at(table, patch("<I", 32, 64)),
        verify={**fails, "word": "wrong place"})
    bad("used-segments", "usedSegments is wrong", on_slot=newest(patch("<I", 336, 1)), verify={**fails, "word": "usedSegments"})
    bad("header-bit-flip", "one bit of a segment header is wrong", after=flip(("header", runs), 50),
        verify={**fails, "word": "segment header"})

    def future(kind, block, note):
        if note == ("header", runs):
            struct.pack_into("<Q", block, 56, LAST + 3)
    bad("header-from-the-future", "a segment was claimed after a generation that no slot shows", on_block=future,
        verify={**fails, "error": "superblock lost"})


def define() -> None:
    """Fills BAD."""
    bad_slots()
    bad_blocks()
    bad_records_and_catalogs()
    bad_tables()
