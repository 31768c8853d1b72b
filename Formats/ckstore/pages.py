"""Section 5 of FORMAT.md: page tables, leaves, runs, pages."""
from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Optional

import lz4.block

from .basics import PAGE, SPAN, Corrupt, Pointer, children, p128, parse_pointer, printable, round_up
from .records import Region


class Run(NamedTuple):
    pages: tuple                # index of each page in the span
    data: bytes                 # decoded
    kept: Optional[int] = None  # when it was moved: `Forward.kept`

    def index_of(self, index: int) -> Optional[int]:
        """Where page `index` of the run that the leaves mean is in this one."""
        if self.kept is not None:
            if not self.kept >> index & 1:
                return None
            index = bin(self.kept & (1 << index) - 1).count("1")
        return index if index < len(self.pages) else None


class Place(NamedTuple):
    """Where a page is: the run, the page's place in it, and its hash."""
    run: Pointer
    index: int
    hash: bytes


class Pages:
    """Mixed into Store."""

    def inner_node(self, pointer: Pointer, region: Region, level: int, first: int) -> list:
        """5.4: (first page, pointer) of the children that are there."""
        where = f"region {printable(region.name)}, page {first}"
        raw = self.block(pointer, where)
        key, first_page, its_level, _, count, _ = struct.unpack_from("<QQBBHI", raw, 32)
        if key != region.key or first_page != first or its_level != level:
            raise Corrupt(f"{where}: {pointer}: wrong place in the tree (region, first page or level)")
        step = SPAN * 128 ** (level - 1)
        nodes = [(first + i * step, child) for i, child in
                 children(raw, 56, 128, count, (2, 3) if level == 1 else (4,), f"{where}: {pointer}")]
        if nodes[-1][0] >= region.pages:
            raise Corrupt(f"{where}: {pointer}: child behind the region's end")
        return nodes

    def leaves(self, region: Region) -> Iterator[tuple]:
        """(first page, pointer) of every leaf, in order."""
        def walk(pointer, level, first):
            if level == 0:
                yield first, pointer
            else:
                for child_first, child in self.inner_node(pointer, region, level, first):
                    yield from walk(child, level - 1, child_first)
        if region.root is not None:
            yield from walk(region.root, region.depth, 0)

    def leaf(self, pointer: Pointer, region: Region, span: int, seen=None, hidden=None) -> dict:
        """5.2, 5.3: {page in the span: Place} of the pages that are not zero, in ascending order. `seen` is given the
        pointers to the leaf and to its base, `hidden` the places that the base lists and the patch replaces."""
        raw = self.block(pointer, f"region {printable(region.name)}, page {span}")
        if seen:
            seen(pointer)
        where = f"region {printable(region.name)}, page {span}: {pointer}"
        key, first_page = struct.unpack_from("<QQ", raw, 32)
        if key != region.key or first_page != span:
            raise Corrupt(f"{where}: wrong place in the tree (region or first page)")
        limit = min(SPAN, region.pages - span)
        if pointer.kind == 2:
            return self.full_leaf(raw, limit, where)
        run_count, entry_count, _ = struct.unpack_from("<HHI", raw, 48)
        if run_count > 64 or not 1 <= entry_count <= 64 or len(raw) != 96 + 40 * run_count + 24 * entry_count:
            raise Corrupt(f"{where}: counts don't fit its length")
        base = parse_pointer(raw, 56, (2,), False, where)
        runs = [parse_pointer(raw, 96 + 40 * i, (1,), False, where) for i in range(run_count)]
        places, last = self.leaf(base, region, span, seen), -1
        for i in range(entry_count):
            page, run, index, page_hash = struct.unpack_from("<HHB3x16s", raw, 96 + 40 * run_count + 24 * i)
            if page <= last or page >= limit or (run >= run_count and run != 0xFFFF) or index > 15:
                raise Corrupt(f"{where}: entry {i} out of range or order")
            if hidden and page in places:
                hidden(places[page])
            if run == 0xFFFF:
                places.pop(page, None)
            else:
                places[page] = Place(runs[run], index, page_hash)
            last = page
        return dict(sorted(places.items()))

    def full_leaf(self, raw: bytes, limit: int, where: str) -> dict:
        """5.2"""
        r, e, h = struct.unpack_from("<HHH", raw, 48)
        if not (1 <= r <= 512 and 1 <= e <= 512 and 1 <= h <= 512) or len(raw) != 56 + 40 * r + 8 * e + 16 * h:
            raise Corrupt(f"{where}: counts don't fit its length")
        runs = [parse_pointer(raw, 56 + 40 * i, (1,), False, where) for i in range(r)]
        places, end, hashes = {}, 0, 56 + 40 * r + 8 * e
        for i in range(e):
            first, count, index, run, _ = struct.unpack_from("<HBBHH", raw, 56 + 40 * r + 8 * i)
            if first < end or not 1 <= count <= 16 or first + count > limit or run >= r or index + count > 16:
                raise Corrupt(f"{where}: extent {i} out of range or order")
            for j in range(count):
                if len(places) < h:
                    at = hashes + 16 * len(places)
                    places[first + j] = Place(runs[run], index + j, raw[at:at + 16])
                else:
                    raise Corrupt(f"{where}: more pages than hashes")
            end = first + count
        if len(places) != h:
            raise Corrupt(f"{where}: more hashes than pages")
        return places

    def run(self, pointer: Pointer, region: Region, span: int) -> Run:
        """5.1: a run, decoded, from where it is (7.4). What is decoded never has more than 16 pages."""
        where = f"region {printable(region.name)}, page {span}: {pointer}"
        moved = self.forward(pointer)
        raw = self.block(pointer, f"region {printable(region.name)}, page {span}")
        key, first_page, count, codec, key_id, _ = struct.unpack_from("<QQBBHI", raw, 32)
        if key != region.key or first_page != span:
            raise Corrupt(f"{where}: wrong place (region or span)")
        if not 1 <= count <= 16 or codec != (moved.place if moved else pointer).codec or key_id:
            raise Corrupt(f"{where}: {count} pages, codec {codec}, key {key_id}")
        if moved and bin(moved.kept).count("1") != count:
            raise Corrupt(f"{where}: {count} pages, but {moved.kept:#x} were kept when it was moved")
        start = round_up(56 + 2 * count, 8)
        if start >= len(raw):
            raise Corrupt(f"{where}: no payload")
        pages = struct.unpack_from(f"<{count}H", raw, 56)
        if pages[-1] >= SPAN or any(a >= b for a, b in zip(pages, pages[1:])):
            raise Corrupt(f"{where}: page list out of range or order")
        data = raw[start:]
        if codec == 1:
            try:
                data = lz4.block.decompress(data, uncompressed_size=count * PAGE)
            except (lz4.block.LZ4BlockError, ValueError, MemoryError):
                raise Corrupt(f"{where}: cannot be decoded") from None
        if len(data) != count * PAGE:
            raise Corrupt(f"{where}: payload of {len(data)} bytes for {count} pages")
        return Run(pages, data, moved.kept if moved else None)

    def page(self, run: Run, place: Place, page: int, where: str) -> bytes:
        """5.5: the page that a leaf's `place` names, with its hash checked."""
        index = run.index_of(place.index)
        if index is None or run.pages[index] != page % SPAN:
            raise Corrupt(f"{where}, page {page}: the {place.run} does not hold it")
        data = run.data[index * PAGE:(index + 1) * PAGE]
        if p128(data, self.slot.page_hash_seed) != place.hash:
            raise Corrupt(f"{where}, page {page}: wrong page hash")
        return data

    def read_pages(self, region: Region) -> Iterator[tuple]:
        """(page, bytes) of every page that is not zero, in order, everything verified."""
        for span, pointer in self.leaves(region):
            places = self.leaf(pointer, region, span)
            uses, runs = {}, {}
            for place in places.values():
                uses[place.run] = uses.get(place.run, 0) + 1
            for page, place in places.items():
                if place.run not in runs:
                    runs[place.run] = self.run(place.run, region, span)
                yield span + page, self.page(runs[place.run], place, span + page, f"region {printable(region.name)}")
                uses[place.run] -= 1
                if not uses[place.run]:
                    del runs[place.run]
