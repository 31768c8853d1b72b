"""The bad sample stores of what happens over time: lineage, references, forwarding. See golden_bad.py."""
import struct

import golden_good
from golden_bad import bad, flip, newest

FAILS = {"exit": 3}
ENTRY = 48                      # bytes of a forwarding entry (7.3)


def bad_features() -> None:
    """3.5: which features go with which roots."""
    last = golden_good.forwarding().generation
    corrupt = {**FAILS, "error": "corrupt"}

    def slot(base, *changes):
        def change(raw):
            for layout, offset, *values in changes:
                struct.pack_into(layout, raw, offset, *values)
        return dict(base=base, on_slot=newest(change, golden_good.LAST if base == "chain" else last))
    bad("forwarding-without-feature", "a forwarding tree without the feature that says so", open={**corrupt, "word": "forwarding"},
        **slot("forwarding", ("<Q", 56, 0)))
    bad("forwarding-feature-alone", "the feature forwarding, but no forwarding tree", open={**corrupt, "word": "forwarding"},
        **slot("chain", ("<Q", 56, 2)))
    bad("lineage-without-feature", "a lineage tree without the feature that says so", open={**corrupt, "word": "lineage"},
        **slot("chain", ("<Q", 64, 0)))
    bad("lineage-null", "checkpoints, but no lineage tree", open={**corrupt, "word": "lineage"}, **slot("chain", ("40s", 288, b"")))


def bad_lineages() -> None:
    good = golden_good.lineage()
    ids = {name: checkpoint.id for name, checkpoint in good.checkpoints.items()}
    root, a = (next(number for number, (parent, is_living) in good.lineage.items() if not is_living and bool(parent) == below)
               for below in (False, True))

    def node(number):
        return struct.pack(">QQ", number, 0)

    def value(parent, state):
        return struct.pack("<QB7x", parent, state)

    def edge(parent, child):
        return struct.pack(">QQ", parent, child)

    def reference(name):
        return bytes(8) + name.encode()

    def case(name, about, word, change, **verify):
        """`change` gets the entries of the newest generation's lineage tree."""
        bad(f"lineage-{name}", about, base="lineage", verify={**FAILS, "word": word, **verify},
            on_lineage=lambda generation, entries: change(entries) if generation == good.generation else None)

    def reparent(entries, number, parent, state=1):
        entries.pop(edge(good.lineage[number][0], number), None)
        entries[node(number)] = value(parent, state)
        if parent:
            entries[edge(parent, number)] = b""
    case("node-missing", "a checkpoint without a node", "has no node", lambda e: e.pop(node(ids["twin 1"])))
    case("living-is-tombstone", "the node of a checkpoint says that it was deleted", "tombstone",
         lambda e: e.update({node(ids["b"]): value(root, 2)}))
    case("tombstone-is-living", "a tombstone says that it is living", "living", lambda e: e.update({node(root): value(0, 1)}))
    case("state", "a node of a state that version 1 does not have", "state 3", lambda e: e.update({node(root): value(0, 3)}))
    case("edge-missing", "a node whose parent has no edge to it", "edge", lambda e: e.pop(edge(root, ids["b"])))
    case("edge-extra", "an edge that no node has", "edge", lambda e: e.update({edge(ids["b"], ids["trunk 3"]): b""}))
    case("edge-nowhere", "an edge to a node that is not there", "edge", lambda e: e.update({edge(ids["b"], 99): b""}))
    case("edge-value", "an edge with a value", "value", lambda e: e.update({edge(root, ids["b"]): b"\0"}))
    case("parent-missing", "a node whose parent is not there", "has no node", lambda e: reparent(e, ids["b"], 99))
    case("cycle", "a node that is its own ancestor", "own ancestors", lambda e: reparent(e, root, ids["trunk 2"], 2))
    case("tombstone-leaf", "a tombstone without children", "fewer than two", lambda e: e.update({node(99): value(0, 2)}))

    def one_child(entries):
        reparent(entries, ids["b"], 0)
        reparent(entries, a, 0, 2)
    case("tombstone-one-child", "a tombstone with a single child", "fewer than two", one_child)
    case("node-size", "a node's value of wrong size", "wrong size", lambda e: e.update({node(root): value(0, 2)[:15]}))
    case("key-size", "a key of wrong size", "wrong size", lambda e: e.update({node(root) + b"\0": b""}))
    case("reference-to-tombstone", "a reference to a deleted checkpoint", "no living checkpoint",
         lambda e: e.update({reference("nightly"): struct.pack("<Q", root)}))
    case("reference-to-nothing", "a reference to an id that never was", "no living checkpoint",
         lambda e: e.update({reference("nightly"): struct.pack("<Q", 99)}))
    case("reference-is-a-name", "a reference and a checkpoint of one name", "name of a checkpoint",
         lambda e: e.update({reference("b"): struct.pack("<Q", ids["b"])}))
    case("reference-name", "a reference with a slash in its name", "bad name",
         lambda e: e.update({reference("x/y"): struct.pack("<Q", ids["b"])}))
    case("reference-nameless", "a reference without a name", "bad name", lambda e: e.update({reference(""): struct.pack("<Q", ids["b"])}))
    case("reference-size", "a reference's value of wrong size", "wrong size", lambda e: e.update({reference("nightly"): b""}))
    case("sharing", "a checkpoint that shares pages with others has another parent in the lineage", "sharing",
         lambda e: reparent(e, ids["b"], ids["twin 1"]), optional=True)
    bad("lineage-bit-flip", "one bit of the lineage tree's root is wrong", base="lineage", verify={**FAILS, "word": "checksum"},
        after=lambda b: flip(max(note for note in b.blocks if note[0] == "catalog" and note[2] == 3), 50)(b))


def bad_forwardings() -> None:
    good = golden_good.forwarding()
    index_segment = next(struct.unpack_from("<I", pointer)[0] for pointer in good.moved if pointer[12] == 2)

    def table(segment, number, change):
        """Changes a forwarding table, in whatever generation it was written."""
        def hook(kind, block, note):
            if kind == 11 and note[2:] == (segment, number):
                change(block)
        return hook

    def entry(i, layout, offset, *values):
        return lambda block: struct.pack_into(layout, block, 40 + ENTRY * i + offset, *values)

    def last_note(*what):
        return max(note for note in good.blocks if note[0] == what[0] and note[2:2 + len(what) - 1] == what[1:])

    def broken(name, about, word, change):
        """A table that cannot be: nothing that it may forward is readable."""
        bad(f"forwarding-{name}", about, base="forwarding", on_block=table(0, 0, change), verify={**FAILS, "word": word},
            restore=[["three", "ram", 3, word], ["four", "ram", 3, word], ["fresh", "ram", 3, word]])

    def swap(block):
        first, second = bytes(block[40:40 + ENTRY]), bytes(block[40 + ENTRY:40 + 2 * ENTRY])
        block[40:40 + 2 * ENTRY] = second + first
    broken("order", "the entries of a table are not ascending", "out of order", swap)
    broken("twice", "two entries of one offset and birth", "out of order",
           lambda block: block.__setitem__(slice(40 + ENTRY, 40 + 2 * ENTRY), block[40:40 + ENTRY]))
    broken("key", "a table's first entry is not that of its key", "key", entry(0, "<I", 0, 192))
    broken("segment", "a table names another segment", "key", lambda block: struct.pack_into("<I", block, 32, 1))
    broken("count", "entryCount of a table is 513", "entryCount", lambda block: struct.pack_into("<I", block, 36, 513))
    broken("empty", "entryCount of a table is 0", "entryCount", lambda block: struct.pack_into("<I", block, 36, 0))
    broken("live", "live has a page that was not kept", "live", entry(0, "<HH", 42, 0x0F, 0x1F))
    broken("live-zero", "an entry of which nothing is live", "live", entry(0, "<H", 44, 0))
    broken("kind", "an entry of a catalog node", "kind 6", entry(0, "<B", 40, 6))
    broken("codec", "an entry of a codec that version 1 does not have", "codec 2", entry(0, "<B", 41, 2))
    broken("new-offset", "a new offset that is no multiple of 64", "offsets", entry(0, "<I", 8, 129))
    broken("new-length", "a new length that no run can have", "length", entry(0, "<I", 12, 1 << 20))
    bad("forwarding-overlap", "the last entry of a table belongs behind the next one", base="forwarding", verify={**FAILS, "word": "overlaps"},
        on_block=table(0, 0, entry(3, "<I", 0, 131072 - 64)), restore=[["three", "ram", 3, "checksum"]])
    bad("forwarding-bit-flip", "one bit of a table is wrong", base="forwarding", after=flip(last_note("forwarding", 0, 0), 60),
        verify={**FAILS, "word": "checksum"}, restore=[["three", "ram", 3, "checksum"], ["fresh", "ram", 3, "checksum"]])
    bad("forwarding-root-bit-flip", "one bit of the forwarding tree's root is wrong: no place is known", base="forwarding",
        after=flip(max(note for note in good.blocks if note[0] == "catalog" and note[2] == 4), 50),
        list={**FAILS, "word": "checksum"}, verify={**FAILS, "word": "checksum"}, damages=[[None] * 4] * 3,
        restore=[["three", "ram", 3, "checksum"]])
    bad_entries(good, index_segment, table, entry)


def bad_entries(good, index_segment, table, entry) -> None:
    """Tables that are well-formed, with an entry that does not fit what it stands for."""
    whole = [["three", "ram", 0, 512]]                                  # the leaf that was moved: its base is "two"'s

    def case(name, about, word, change, segment, number, damages, **expect):
        bad(f"forwarding-{name}", about, base="forwarding", on_block=table(segment, number, change),
            verify={**FAILS, "word": word}, damages=damages, restore=[[damages[0][0], "ram", 3, word]], **expect)
    case("other-kind", "a full leaf is entered as a patch leaf", "entered as", entry(0, "<B", 40, 3), index_segment, 0, whole)
    case("index-kept", "an index block of which two pages were kept", "kept", entry(0, "<HH", 42, 3, 3), index_segment, 0,
         [["three", "ram", 0, 512], ["three", "ram", 512, 188]])
    case("index-checksum", "an index block's checksum is not the pointer's", "another length or checksum",
         entry(0, "<Q", 24, 99), index_segment, 0, whole)
    case("index-length", "an index block's length is not the pointer's", "another length or checksum",
         entry(0, "<I", 12, 128), index_segment, 0, whole)
    noise = [["fresh", "ram", 0, 5]]                                    # the repaired run
    first = next(i for i, (offset, birth) in enumerate(sorted(
        struct.unpack_from("<I", p, 4) + struct.unpack_from("<Q", p, 16) for p in good.moved if p[:4] == bytes(4)))
        if birth == good.checkpoints["fresh"].id)
    case("run-checksum", "a run's new checksum is not that of what stands there", "another block", entry(first, "<Q", 24, 99), 0, 0, noise)
    case("run-codec", "a run's new codec is not that of its header", "codec", entry(first, "<B", 41, 1), 0, 0, noise)
    case("run-kept", "a run has fewer pages than were kept", "kept", entry(first, "<HH", 42, 0x3F, 0x1F), 0, 0, noise)
    case("page-not-kept", "a page that a leaf lists was not kept", "hold", entry(first, "<HH", 42, 0x2F, 0x0F), 0, 0,
         [["fresh", "ram", 4, 1]])
    case("new-place", "an entry leads out of the store", "range", entry(first, "<I", 4, 99), 0, 0, noise)

    def drop(block):
        del block[40 + ENTRY * first:40 + ENTRY * (first + 1)]
        struct.pack_into("<I", block, 20, len(block))
        struct.pack_into("<I", block, 36, struct.unpack_from("<I", block, 36)[0] - 1)
    bad("forwarding-entry-missing", "the entry of a block that is not where pointers say is missing", base="forwarding",
        on_block=lambda kind, block, note: drop(block) if kind == 11 and note[1:] == (good.generation, 0, 0) else None,
        verify={**FAILS, "word": "checksum"}, damages=noise, restore=[["fresh", "ram", 3, "checksum"]])
    bad("forwarding-live-low", "live of an entry lacks a page that a leaf lists", base="forwarding",
        on_block=table(0, 0, entry(first, "<H", 44, 0x0F)), verify={**FAILS, "word": "live"})


def bad_accounts() -> None:
    """7.2: the segment table speaks of where blocks are, not of where pointers say."""
    good = golden_good.forwarding()
    new = struct.unpack_from("<I", next(moved.pointer for pointer, moved in good.moved.items() if pointer[12] == 1))[0]

    def its(offset, value):
        def hook(kind, block, note):
            if note == ("table", good.generation, 0, 0):
                struct.pack_into("<I", block, 48 + 32 * new + offset, value)
        return hook
    bad("moved-live-low", "live counts less than the moved pages that leaves list", base="forwarding",
        on_block=its(8, 1), verify={**FAILS, "word": "live"})
    bad("moved-committed-low", "committedLength is below the end of moved blocks", base="forwarding", on_block=its(4, 4096),
        verify={**FAILS, "word": "committedLength"})


def define() -> None:
    """Adds to BAD."""
    bad_features()
    bad_lineages()
    bad_forwardings()
    bad_accounts()
