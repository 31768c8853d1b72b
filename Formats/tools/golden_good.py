"""The good sample stores. See golden/README.md."""
import struct

from build_store import Builder, DraftBuilder, noise_page, text_page

PAGE = 4096
LAST = 20                       # the newest generation of "chain"


def empty(**hooks) -> Builder:
    return Builder(segment_count=2, seed=11, **hooks)


def tiny(**hooks) -> Builder:
    b = Builder(segment_count=3, seed=12, **hooks)
    pages = {0: text_page("Hello, page 0."), 2: text_page("Page 2; page 1 is zero.")}
    b.commit(b.checkpoint("first", {"ram": ("memory", 8 * PAGE, pages)}, labels={"note": "the first one"}))
    return b


def chain(make=Builder, **hooks) -> Builder:
    """Inner nodes, patch and full leaves, raw and LZ4 runs, labels, groups, B+trees of three levels, freed and reused
    segments, rings that have gone round."""
    b = make(segment_count=8, seed=13, catalog_fanout=3, **hooks)
    memory = {p: text_page(f"memory page {p}") for p in [*range(20), *range(600, 608), 1299]}
    memory |= {100: noise_page(100), 101: noise_page(101)}
    tail = text_page("the last page is not full")[:1000] + bytes(PAGE - 1000)
    disk = {0: text_page("boot sector"), 1: text_page("superblock"), 5: noise_page(5), 300: tail}
    b.commit(b.checkpoint("alpha", {"memory": ("memory", 1300 * PAGE, memory), "disk0": ("disk", 300 * PAGE + 1000, disk),
                                    "cpu": ("state", 777, {0: text_page("registers")[:777] + bytes(PAGE - 777)})},
                          labels={"host": "north", "empty": "", "größe": "∞"}))
    b.commit(b.checkpoint("beta", {"memory": ("memory", 1300 * PAGE, {3: text_page("three"), 4: None, 50: text_page("50")})},
                          parent="alpha"))
    b.commit(b.checkpoint("gamma", {"memory": ("memory", 1300 * PAGE, {3: None, 51: noise_page(51), 700: text_page("700")})},
                          parent="beta"))
    b.commit(b.checkpoint("grüße δ", {"memory": ("memory", 1300 * PAGE, {0: text_page("zero, once more"), 51: None}),
                                      "cpu": (None, 0, {})}, parent="gamma", patch=False))
    b.commit(b.checkpoint("left", {"a": ("disk", 512 * PAGE, {511: text_page("left")}), "b": ("state", 0, {})}, group=77),
             b.checkpoint("right", {"a": ("disk", 512 * PAGE + 1, {512: b"!" + bytes(4095)}), "z": ("memory", 2 ** 40, {})},
                          group=77))
    b.commit(b.checkpoint("doomed", {"memory": ("memory", 64 * PAGE, {p: noise_page(p) for p in (7, 8)})}, own_segments=True))
    b.commit(delete=["doomed"])                                             # generation 8
    b.commit(b.checkpoint("child of none", {}))                             # 9
    b.commit(b.checkpoint("phoenix", {"memory": ("memory", 64 * PAGE, {7: noise_page(9)})}, own_segments=True))     # 10
    parent = "gamma"
    for i in range(9):
        name = f"tick-{i:02}"
        b.commit(b.checkpoint(name, {"memory": ("memory", 1300 * PAGE, {10 + i: text_page(f"tick {i}"), 1000: text_page(name)})},
                              parent=parent), delete=["tick-03"] if i == 6 else [])
        parent = name
    fresh = {p: text_page(f"fresh {p}") for p in (0, 1, 2, 3, 4, 513)} | {20: noise_page(20)}
    b.commit(b.checkpoint("last", {"fresh": ("disk", 1100 * PAGE, fresh),
                                   "memory": ("memory", 1300 * PAGE, {9: text_page("nine"), 8: None})},
                          parent="tick-08", labels={"x": "y"}, run_pages=4))
    assert b.generation == LAST
    return b


def deep(**hooks) -> Builder:
    """A region of 40 GiB (page table of depth 3), a segment table with two levels of inner nodes, segments far apart,
    a commit unit of 64 KiB."""
    b = Builder(segment_count=4200, seed=14, commit_unit=65536, segment_size=262144, catalog_fanout=50,
                placement=[3, 70, 4199, 4096, 0], **hooks)
    pages = {0: text_page("first"), 65535: text_page("end of a level-1 node"), 65536: text_page("next level-1 node"),
             8388607: text_page("end of a level-2 node"), 8388608: text_page("next"), 10485759: text_page("last")}
    b.commit(b.checkpoint("wide", {"memory": ("memory", 40 << 30, pages)}))
    b.commit(b.checkpoint("wider", {"memory": ("memory", 40 << 30, {65536: text_page("changed"), 9000000: text_page("new")})},
                          parent="wide", own_segments=True))
    return b


def poisoned(**hooks) -> Builder:
    b = tiny(**hooks)
    b.write_slots(3, kind=2, base_generation=2)
    return b


def catalog_full_nodes(**hooks) -> Builder:
    """Catalog nodes as full as they may be: 4096 bytes at most."""
    b = Builder(segment_count=8, seed=15, catalog_fanout=14, **hooks)
    long = "long-name-" * 24
    b.commit(*[b.checkpoint(f"{long}{i:03}", {}) for i in range(24)])
    return b


def lineage(**hooks) -> Builder:
    """Branches, tombstones with two children and more, one below another, tombstones that went, references, `latest` moved
    by deletions."""
    b = Builder(segment_count=16, seed=16, twin_offset=65536, catalog_fanout=4, **hooks)
    ram = 600 * PAGE

    def save(name, parent, pages, **more):
        b.commit(b.checkpoint(name, {"ram": ("memory", ram, pages)}, parent=parent), **more)

    def pages(text, *numbers):
        return {number: text_page(f"{text} {number}") for number in numbers}
    save("root", None, pages("root", *range(12), 520, 521))
    save("trunk 1", "root", pages("trunk 1", 1, 520))
    save("trunk 2", "trunk 1", pages("trunk 2", 2), references={"golden image": "root"})
    save("trunk 3", "trunk 2", pages("trunk 3", 3) | {520: None})
    save("a", "root", pages("a", 4))
    for name in ("a1", "a2", "a3"):
        save(name, "a", pages(name, 5))
    save("b", "root", pages("b", 6), references={"8 bytes!": "a1", "größe": "b", "golden image": "trunk 2"})
    save("side", "trunk 2", pages("side", 7))
    save("alone", None, pages("alone", 0))
    b.commit(delete=["trunk 1"])                    # one child: goes
    b.commit(delete=["root"])                       # stays between trunk 2, a, b
    b.commit(delete=["a"])                          # stays below it, between a1, a2, a3
    b.commit(delete=["a2"])                         # a leaf: goes
    save("b1", "b", pages("b1", 8))
    save("b2", "b1", pages("b2", 9), references={"größe": None})
    b.commit(delete=["b1"])
    b.commit(delete=["b2"])                         # `latest` goes to b
    b.commit(delete=["side"], references={"nightly": "trunk 3"})
    save("twin 1", "alone", pages("twin 1", 1))
    save("twin 2", "alone", pages("twin 2", 1))
    b.commit(delete=["alone"])                      # the root of a tree of its own, kept for its children
    b.commit(delete=["twin 2"])                     # and gone; no ancestor is left: `latest` goes
    assert b.references.keys() == {"golden image", "8 bytes!", "nightly"}
    b.commit(references={"latest": "twin 1"})
    return b


def segment_of(b: Builder, pointer: bytes) -> int:
    return struct.unpack_from("<I", b.place(pointer))[0]


def run_segments(b: Builder, name: str) -> set:
    """Where the runs are that a checkpoint's leaves name."""
    return {segment_of(b, place[0]) for region in b.checkpoints[name].regions.values()
            for leaf in region.leaves.values() for place in leaf.places.values()}


def moved_store(**hooks) -> Builder:
    """Two branches of which the common ancestor is gone, their blocks moved: runs whole and in part, leaves, a patch leaf,
    inner nodes, records."""
    b = Builder(segment_count=20, twin_offset=65536, catalog_fanout=4, forwarding_fanout=4, **hooks)

    def save(name, parent, pages, **more):
        b.commit(b.checkpoint(name, {"ram": ("memory", 700 * PAGE, pages)}, parent=parent, run_pages=8, own_segments=True, **more))

    def pages(text, *numbers):
        return {number: text_page(f"{text} {number}") for number in numbers}
    save("base", None, pages("base", *range(48), 601) | {600: noise_page(600)})
    save("one", "base", pages("one", 1, 2, 9, 17, 18, 19) | {30: None})
    save("two", "one", pages("two", *range(32, 40), 3, 601), patch=False)
    save("three", "two", pages("three", 5, 41) | {6: None})
    save("other", "base", pages("other", *range(8), 20), patch=False)
    b.commit(delete=["base"])
    b.commit(delete=["one"])
    old = run_segments(b, "two") | {segment_of(b, b.checkpoints["two"].pointer), segment_of(b, b.checkpoints["three"].pointer)}
    b.compact(*old)
    b.commit()
    return b


def forwarding(**hooks) -> Builder:
    """Blocks moved by compaction, some twice; several forwarding tables for a segment; segments used again after they were
    evacuated; entries of which pages have died since; a repaired run."""
    b = moved_store(seed=17, **hooks)
    b.commit()                                      # what was freed may be used from here on
    b.commit(b.checkpoint("four", {"ram": ("memory", 700 * PAGE, {p: text_page(f"four {p}") for p in (0, 7, 45, 513)})},
                          parent="three", patch=False))
    b.commit(b.checkpoint("fresh", {"ram": ("memory", 64 * PAGE, {p: noise_page(p) for p in range(5)})}, own_segments=True))
    b.commit(delete=["two"])
    twice = run_segments(b, "three") & {segment_of(b, moved.pointer) for moved in b.moved.values()}
    b.compact(*twice)
    b.commit()
    b.commit(delete=["other"])
    broken = next(place[0] for place in b.checkpoints["fresh"].regions["ram"].leaves[0].places.values())
    b.move([broken])
    b.commit()
    b.medium.flip(b.position(*struct.unpack_from("<II", broken)) + 100)
    return b


def shrunk(**hooks) -> Builder:
    """A store that was made smaller: pointers as written name segments that are not there any more."""
    b = moved_store(seed=18, placement=[19, 18, 0, 17, 16, 15, 14], **hooks)
    b.placement = []
    b.compact(*[index for index, entry in b.segments.items() if entry.state and entry.cls != 3 and index > 12])
    b.commit()
    b.shrink(13)
    b.commit()
    return b


def read_only(**hooks) -> Builder:
    """A read-only compatible feature that version 1 does not know, and a compatible one: open for reading only."""
    b = Builder(segment_count=3, seed=19, twin_offset=65536, features=((2, 5, "shadow-index"), (3, 9, "hints")), **hooks)
    b.commit(b.checkpoint("first", {"ram": ("memory", 8 * PAGE, {0: text_page("Hello."), 2: text_page("Two.")})}))
    return b


def draft_chain(**hooks) -> Builder:
    """The chain as the draft of the format had it: readable for ever, never written to."""
    return chain(make=DraftBuilder, **hooks)


GOOD = {"empty": empty, "tiny": tiny, "chain": chain, "deep": deep, "poisoned": poisoned, "full-nodes": catalog_full_nodes,
        "lineage": lineage, "forwarding": forwarding, "forwarding-shrunk": shrunk, "ro-compat-unknown": read_only,
        "draft-chain": draft_chain}
RAW = ("tiny", "chain", "lineage", "forwarding", "draft-chain")         # kept as whole files
READ_ONLY = ("ro-compat-unknown", "draft-chain")                        # no program of version 1 writes to them
