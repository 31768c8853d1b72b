"""Verifying a store: all that the newest slot reaches, and the rules of FORMAT.md that go beyond single blocks."""
from __future__ import annotations

import struct
from typing import NamedTuple, Optional

from ckstore import (KINDS, NEVER_USED, PAGE, SLOTS, SPAN, Checkpoint, Lineage, Pointer, Region, Store, StoreError, SuperblockLost, p128,
                     printable)

CLASSES = {0: "-", 1: "runs", 2: "index", 3: "catalog"}


class Damage(NamedTuple):
    first_page: int
    page_count: int
    reason: str


class Subtree(NamedTuple):
    """What a page-table node and everything below it holds."""
    pages: int
    damages: tuple
    names: tuple = ()           # what it names itself: pointers to the node, the base of a patch leaf, the runs, with what
                                # tells one place from another
    below: tuple = ()           # the subtrees of its children


class Verifier:
    """Walks everything that the slot reaches. A block that several checkpoints share is read once, but its
    damage is reported for each of them. The count `overcounted` is by how much the segments' `live` are above what is
    reachable: 0 where a writer counts exactly and nothing is damaged."""

    def __init__(self, store: Store):
        self.store = store
        self.blocks = {}            # (segment, offset) -> Pointer, of every sound block that was reached, where it is
        self.meant = {}             # (segment, offset) -> the pointer that led there, as it is written
        self.subtrees = {}          # (pointer, level, pages of the region) -> Subtree
        self.runs = {}              # pointer -> (pages, hashes), or the error's message
        self.listed = {}            # pointer to a run, as it is written -> places in it that leaves list
        self.named = {}             # what trees name, as in `Subtree.names` -> the checkpoints whose trees do
        self.problems = []          # of the store as a whole
        self.damages = []           # of checkpoints
        self.counts = dict.fromkeys(("checkpoints", "regions", "leaves", "runs", "pages", "blocks", "segments", "overcounted"), 0)

    def seen(self, pointer: Pointer) -> None:
        place = self.store.place(pointer)
        at = (place.segment, place.offset)
        self.blocks[at] = place
        if self.meant.setdefault(at, pointer) != pointer:
            self.problems.append(f"two pointers that are not alike lead to the {place}")

    def problem(self, error) -> None:
        self.problems.append(str(error))

    def verify(self) -> None:
        self.check_checkpoints()
        self.check_forwarding()
        self.check_table()
        self.check_slots()
        self.counts["blocks"] = len(self.blocks)

    def check_slots(self) -> None:
        """A crash in a commit may leave the newest generation with one twin, and the position of the next one torn:
        that is no damage (3.2). Any other bad slot is."""
        newest = self.store.newest
        for index, twins in enumerate(zip(*self.store.slots)):
            if index in (newest % SLOTS, (newest + 1) % SLOTS):
                continue
            for slot in twins:
                if not slot.valid and not (slot.is_zero and twins[1 - slot.ring].is_zero):
                    self.problems.append(f"slot {index} of ring {'AB'[slot.ring]} is damaged or missing")

    # ------------------------------------------------------------ catalog, both ways

    def check_checkpoints(self) -> None:
        store, names, found, missing = self.store, {}, {}, []
        incomplete = lambda error: (self.problem(error), missing.append(error))  # noqa: E731
        for key, value in store.walk_catalog(2, incomplete, self.seen):
            if len(value) != 8:
                self.problem("catalog by name: entry of wrong size")
                continue
            names[key] = int.from_bytes(value, "little")
        for key, value in store.walk_catalog(1, incomplete, self.seen):
            try:
                number, pointer = store.catalog_value(key, value)
                found[number] = None
                checkpoint = found[number] = store.checkpoint(number, pointer)
            except StoreError as error:
                self.damages.append({"checkpoint": None, "id": key.hex(), "region": None, "firstPage": None,
                                     "pageCount": None, "reason": str(error)})
                continue
            self.seen(pointer)
            self.check_checkpoint(checkpoint)
        self.counts["checkpoints"] = len(found)
        if missing:                         # entries are missing already because of damage
            return
        if not store.slot.is_draft:
            self.check_lineage(found, names)
        for number, checkpoint in found.items():
            if checkpoint and names.get(checkpoint.name.encode()) != number:
                self.problem(f"catalog: checkpoint {number:016x} is not in the tree by name as {printable(checkpoint.name)}")
        for name, number in names.items():
            if number not in found or (found[number] and found[number].name.encode() != name):
                self.problem(f"catalog: name {printable(name.decode('utf-8', 'replace'))} leads to no checkpoint of that name")
        count = store.slot.checkpoint_count
        if not len(found) == len(names) == count:
            self.problem(f"catalog: {len(found)} checkpoints by id, {len(names)} by name, checkpointCount is {count}")

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        if sum(region.new_pages for region in checkpoint.regions) != checkpoint.new_pages:
            self.problem(f"checkpoint {printable(checkpoint.name)}: newPages is not the sum of its regions'")
        for region in checkpoint.regions:
            self.counts["regions"] += 1
            tree = self.node(region.root, region, region.depth, 0) if region.root else Subtree(0, ())
            self.collect(tree, checkpoint.id)
            damages = list(tree.damages)
            if not damages and tree.pages != region.stored_pages:
                damages.append(Damage(0, region.pages, f"storedPages is {region.stored_pages}, "
                                                       f"the leaves list {tree.pages} pages"))
            for damage in damages:
                self.damages.append({"checkpoint": checkpoint.name, "id": f"{checkpoint.id:016x}", "region": region.name,
                                     "firstPage": damage.first_page, "pageCount": damage.page_count,
                                     "reason": damage.reason})

    def collect(self, tree: Subtree, checkpoint: int) -> None:
        """Notes that the checkpoint names all that is in the tree."""
        for name in tree.names:
            self.named.setdefault(name, set()).add(checkpoint)
        for each in tree.below:
            self.collect(each, checkpoint)

    # ------------------------------------------------------------ 6.3, 6.4 lineage and references

    def check_lineage(self, found: dict, names: dict) -> None:
        """`found`: the checkpoints by id, None for one that cannot be read; `names`: the tree by name."""
        before = len(self.problems)
        lineage = self.store.lineage(self.problem, self.seen)
        if len(self.problems) > before:
            return
        nodes, children = lineage.nodes, {}
        for number in found.keys() - nodes.keys():
            self.problem(f"lineage: checkpoint {number:016x} has no node")
        for number, (parent, is_living) in nodes.items():
            if is_living != (number in found):
                self.problem(f"lineage: node {number:016x} is {'living' if is_living else 'a tombstone'}, "
                             f"but {'not ' if is_living else ''}in the catalog")
            if parent and parent not in nodes:
                self.problem(f"lineage: node {number:016x}: its parent {parent:016x} has no node")
            if parent:
                children.setdefault(parent, []).append(number)
        for parent, child in lineage.edges ^ {(parent, number) for number, (parent, _) in nodes.items() if parent}:
            self.problem(f"lineage: the edge from {parent:016x} to {child:016x} does not fit the nodes")
        for number, (_, is_living) in nodes.items():
            if not is_living and len(children.get(number, [])) < 2:
                self.problem(f"lineage: tombstone {number:016x} has fewer than two children")
        reached = [number for number, (parent, _) in nodes.items() if not parent]
        for number in reached:                  # grows while it is walked
            reached += children.get(number, [])
        if len(reached) < len(nodes) and len(self.problems) == before:
            self.problem("lineage: some nodes are their own ancestors")
        self.check_references(lineage, found, names)
        if len(self.problems) == before:
            self.check_sharing(nodes)

    def check_references(self, lineage: Lineage, found: dict, names: dict) -> None:
        for name, number in lineage.references.items():
            if number not in found:
                self.problem(f"lineage: reference {printable(name)} names {number:016x}, which is no living checkpoint")
            if name.encode() in names:
                self.problem(f"lineage: reference {printable(name)} has the name of a checkpoint")

    def check_sharing(self, nodes: dict) -> None:
        """6.3: the checkpoints that name one thing hang together in the lineage, tombstones between them."""
        def top(number):
            """Up through tombstones: the last node before a living one (or none), and that one."""
            parent = nodes[number][0]
            while parent and not nodes[parent][1]:
                number, parent = parent, nodes[parent][0]
            return number, parent
        tops = {number: top(number) for number, (_, is_living) in nodes.items() if is_living}
        for name, checkpoints in self.named.items():
            parts = {part for part, ancestor in map(tops.get, checkpoints) if ancestor not in checkpoints}
            if len(parts) > 1:
                self.problem(f"lineage: sharing: {len(checkpoints)} checkpoints name the {name[0]}, but do not hang "
                             f"together in the lineage")

    # ------------------------------------------------------------ page tables

    def node(self, pointer: Pointer, region: Region, level: int, first: int) -> Subtree:
        """Level 0 is a leaf. The region's length is part of the key, since it limits what a node may list."""
        key = (pointer, level, first, region.key, region.pages)
        if key not in self.subtrees:
            try:
                tree = self.leaf(pointer, region, first) if level == 0 else self.inner(pointer, region, level, first)
            except StoreError as error:
                count = min(SPAN * 128 ** level, region.pages - first)
                tree = Subtree(0, (Damage(first, count, str(error)),))
            self.subtrees[key] = tree
        return self.subtrees[key]

    def inner(self, pointer: Pointer, region: Region, level: int, first: int) -> Subtree:
        nodes = self.store.inner_node(pointer, region, level, first)
        self.seen(pointer)
        trees = tuple(self.node(child, region, level - 1, child_first) for child_first, child in nodes)
        return Subtree(sum(tree.pages for tree in trees), tuple(d for tree in trees for d in tree.damages),
                       ((pointer, region.key, level, first),), trees)

    def leaf(self, pointer: Pointer, region: Region, span: int) -> Subtree:
        leaves, hidden = [], []
        places = self.store.leaf(pointer, region, span, lambda each: (self.seen(each), leaves.append(each)), hidden.append)
        self.counts["leaves"] += 1
        self.counts["pages"] += len(places)
        damages = []
        for page, place in places.items():
            reason = self.check_page(place, region, span, page)
            if reason is None:
                continue
            last = damages[-1] if damages else None
            if last and last.reason == reason and last.first_page + last.page_count == span + page:
                damages[-1] = last._replace(page_count=last.page_count + 1)
            else:
                damages.append(Damage(span + page, 1, reason))
        for place in hidden:                # the base lists them, and other checkpoints may read them there
            if self.is_kept(place):
                self.listed.setdefault(place.run, set()).add(place.index)
        names = [(each, region.key, 0, span) for each in leaves]
        names += [(place.run, region.key, span, place.index) for place in [*places.values(), *hidden]]
        return Subtree(len(places), tuple(damages), tuple(names))

    def is_kept(self, place) -> bool:
        try:
            moved = self.store.forward(place.run)
        except StoreError:
            return False
        return moved is None or bool(moved.kept >> place.index & 1)

    def check_page(self, place, region: Region, span: int, page: int) -> Optional[str]:
        if place.run not in self.runs:
            try:
                run = self.store.run(place.run, region, span)
                hashes = [p128(run.data[i * PAGE:(i + 1) * PAGE], self.store.slot.page_hash_seed)
                          for i in range(len(run.pages))]
                self.runs[place.run] = (run._replace(data=b""), hashes, region.key, span)
                self.seen(place.run)
                self.counts["runs"] += 1
            except StoreError as error:
                self.runs[place.run] = str(error)
        run = self.runs[place.run]
        if isinstance(run, str):
            return run
        run, hashes, key, first = run
        where = f"region {printable(region.name)}: {place.run}"
        index = run.index_of(place.index)
        if (key, first) != (region.key, span) or index is None or run.pages[index] != page:
            return f"{where} does not hold the page"
        if hashes[index] != place.hash:
            return f"{where}: wrong page hash"
        self.listed.setdefault(place.run, set()).add(place.index)
        return None

    # ------------------------------------------------------------ 7.3 forwarding

    def check_forwarding(self) -> None:
        """Every table, whether or not something reached leads through it."""
        places, end = {}, b""
        for table in self.store.forwarding_tables(None, self.problem, self.seen):
            if table[0] <= end:
                self.problem(f"forwarding: the {table[1]} overlaps the table before it")
            try:
                moved = self.store.forwarding_table(*table)
            except StoreError as error:
                self.problem(error)
                continue
            self.seen(table[1])
            end = table[0][:4] + struct.pack(">IQ", *max(moved))
            for (offset, birth), forward in moved.items():
                at = (forward.place.segment, forward.place.offset)
                if places.setdefault(at, (table, offset, birth)) != (table, offset, birth):
                    self.problem(f"forwarding: two entries lead to segment {at[0]} offset {at[1]}")
        for pointer, indices in self.listed.items():
            moved = self.store.forward(pointer)
            if moved and any(not moved.live >> index & 1 for index in indices):
                self.problem(f"forwarding: {pointer}: live is {moved.live:#x}, but leaves list its pages {sorted(indices)}")

    # ------------------------------------------------------------ 7. segment table

    def check_table(self) -> None:
        store, slot = self.store, self.store.slot
        entries = {}
        complete = True

        def walk(pointer, level, first):
            nonlocal complete
            try:
                node = store.table_node(pointer, level, first, self.seen)
            except StoreError as error:
                complete = False
                return self.problem(error)
            if level:
                for child_first, child in node:
                    walk(child, level - 1, child_first)
            else:
                entries.update((first + i, entry) for i, entry in enumerate(node) if entry != NEVER_USED)
        if store.roots.table is not None:
            walk(store.roots.table, slot.table_depth, 0)
        used = [segment for segment, entry in entries.items() if entry.state == 1]
        self.counts["segments"] = len(used)
        if complete and len(used) != slot.used_segments:
            self.problem(f"segment table: {len(used)} segments in use, usedSegments is {slot.used_segments}")
        for segment, entry in sorted(entries.items()):
            self.check_entry(segment, entry)
        if complete:
            self.check_blocks(entries)

    def check_entry(self, segment: int, entry) -> None:
        slot, where = self.store.slot, f"segment {segment}"
        if segment >= slot.segment_count:
            return self.problem(f"{where}: entry behind segmentCount is not zero")
        if entry.state > 1 or entry.segment_class > 3:
            return self.problem(f"{where}: state {entry.state}, class {entry.segment_class}")
        if entry.state == 0:
            if entry.committed_length or entry.freed_generation > slot.base_generation \
                    or (not slot.is_draft and (entry.live or entry.written)):
                self.problem(f"{where}: free with committedLength, live, written, or a freedGeneration to come")
            return None
        if entry.live > entry.written and not slot.is_draft:
            self.problem(f"{where}: live is {entry.live}, but written only {entry.written}")
        if entry.committed_length % slot.commit_unit or not 0 < entry.committed_length <= slot.segment_size \
                or not entry.segment_class:
            self.problem(f"{where}: committedLength {entry.committed_length}, class {entry.segment_class}")
        block = self.store.scan_block(segment, 0)
        if block is None or block[0] != 9:
            return self.problem(f"{where}: no segment header")
        header = block[1]
        index, its_class, _, base, size = struct.unpack_from("<IB3sQI", header, 48)
        if header[32:48] != slot.uuid.bytes or index != segment or its_class != entry.segment_class \
                or size != slot.segment_size:
            self.problem(f"{where}: its header is of another store, segment, class or size")
        if base > self.store.newest:
            raise SuperblockLost(f"{where} was claimed after generation {base}, the newest slot is {self.store.newest}")
        return None

    def check_blocks(self, entries: dict) -> None:
        """7.2: every reachable block lies in a used segment of its class, below its committedLength, and `live` counts it."""
        live, previous = {}, None
        for (segment, offset), pointer in sorted(self.blocks.items()):
            entry, kind = entries.get(segment, NEVER_USED), KINDS[pointer.kind]
            if entry.state != 1 or entry.segment_class != kind.segment_class:
                self.problem(f"{pointer}: its segment is {'of class ' + CLASSES[entry.segment_class] if entry.state == 1 else 'free'}")
            elif offset + pointer.length > entry.committed_length:
                self.problem(f"{pointer}: behind committedLength {entry.committed_length}")
            if previous and previous.segment == segment and previous.offset + previous.length > offset:
                self.problem(f"{pointer}: overlaps {previous}")
            previous = pointer
            if pointer.kind != 1:
                live[segment] = live.get(segment, 0) + -(-pointer.length // 64)
        for pointer, indices in self.listed.items():
            segment = self.store.place(pointer).segment
            live[segment] = live.get(segment, 0) + len(indices)
        for segment, entry in entries.items():
            units = live.get(segment, 0)
            if entry.state == 1 and units > entry.live:
                self.problem(f"segment {segment}: live is {entry.live}, but {units} are reachable")
            if not self.store.slot.is_draft:            # there it is an upper bound by right
                self.counts["overcounted"] += max(0, entry.live - units)
