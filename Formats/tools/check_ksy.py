#!/usr/bin/python3
"""Checks ckstore.ksy without a compiler: its keys and references, and, with a small interpreter for the part of the
language that it uses, that it reads the good sample stores: every block is consumed to its last byte, the
checkpoints that its pointers lead to are those of the listings, and the lineage is that of the trees. Needs PyYAML."""
import json
import pathlib
import re
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "golden"))
import check  # noqa: E402

KEYS = {"id", "doc", "doc-ref", "type", "size", "size-eos", "repeat", "repeat-expr", "if", "enum", "encoding", "pos", "io", "value"}
IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*$")
INTEGERS = {"u1": 1, "u2": 2, "u4": 4, "u8": 8}
CONDITIONAL = re.compile(r"(.+?) \? (.+?) : (.+)$")


def python_of(expression: str) -> str:
    """The language's `a ? b : c` and `.to_i` (enumerations are plain numbers here)."""
    found = CONDITIONAL.match(expression)
    if found:
        return f"({found[2]}) if ({found[1]}) else ({python_of(found[3])})"
    return expression.replace(".to_i", "")


class Stream:
    def __init__(self, source, size):
        self.source, self.size, self.at = source, size, 0

    def read(self, length):
        assert 0 <= length <= self.size - self.at, "end of stream"
        self.source.seek(self.at)
        self.at += length
        return self.source.read(length)


class Bytes:
    """A source in memory with the calls of a file."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def seek(self, at):
        self.at = at

    def read(self, length):
        return self.raw[self.at:self.at + length]


class Node:
    def __init__(self, ksy, spec, io, root, parameters=()):
        self._ksy, self._spec, self._io, self._root = ksy, spec, io, root or self
        self._fields = {p["id"]: value for p, value in zip(spec.get("params", []), parameters)}
        for attribute in spec.get("seq", []):
            self._fields[attribute["id"]] = self._attribute(attribute, self._io)

    def __getattr__(self, name):
        if name not in self._fields:
            spec = self._spec.get("instances", {}).get(name)
            if spec is None:
                raise AttributeError(name)
            self._fields[name] = self._instance(spec)
        return self._fields[name]

    def _evaluate(self, expression, **names):
        if not isinstance(expression, str):
            return expression
        outer = self

        class Names(dict):
            def __missing__(self, name):
                return getattr(outer, name)
        return eval(python_of(expression), {"__builtins__": {}}, Names(names, _io=self._io, _root=self._root))

    def _instance(self, spec):
        if "value" in spec:
            return self._evaluate(spec["value"])
        if "if" in spec and not self._evaluate(spec["if"]):
            return None
        io = self._evaluate(spec["io"]) if "io" in spec else self._io
        before, io.at = io.at, self._evaluate(spec["pos"])
        try:
            return self._attribute(spec, io)
        finally:
            io.at = before

    def _attribute(self, spec, io):
        if "if" in spec and not self._evaluate(spec["if"]):
            return None
        if "repeat" in spec:
            return [self._one(spec, io, i) for i in range(self._evaluate(spec["repeat-expr"]))]
        return self._one(spec, io, None)

    def _one(self, spec, io, index):
        kind = spec.get("type")
        if isinstance(kind, dict):
            kind = self._switch(kind)
        if kind in INTEGERS:
            return int.from_bytes(io.read(INTEGERS[kind]), "little")
        if "size" in spec or "size-eos" in spec:
            raw = io.read(self._evaluate(spec["size"]) if "size" in spec else io.size - io.at)
            if kind is None:
                return raw
            if kind == "str":
                return raw.decode(spec.get("encoding", "UTF-8"))
            io = Stream(Bytes(raw), len(raw))
        name, _, arguments = kind.partition("(")
        parameters = [self._evaluate(a, _index=index) for a in arguments.rstrip(")").split(",")] if arguments else []
        return Node(self._ksy, self._ksy["types"][name], io, self._root, parameters)

    def _switch(self, kind):
        value = self._evaluate(kind["switch-on"])
        for case, name in kind["cases"].items():
            if isinstance(case, str):
                enum, _, symbol = case.partition("::")
                case = next(k for k, v in self._ksy["enums"][enum].items() if v == symbol)
            if case == value:
                return name
        raise AssertionError(f"no case for {value:#x}")


def check_language(ksy) -> None:
    assert set(ksy) <= {"meta", "doc-ref", "instances", "enums", "types"}
    assert set(ksy["meta"]) <= {"id", "title", "file-extension", "ks-version", "encoding", "endian"}
    used = {"slot", "segment"}
    for owner, spec in [("ckstore", ksy), *ksy["types"].items()]:
        assert IDENTIFIER.match(owner)
        identifiers = [a["id"] for a in spec.get("seq", []) + spec.get("params", [])] + list(spec.get("instances", {}))
        assert len(set(identifiers)) == len(identifiers) and all(IDENTIFIER.match(i) for i in identifiers), owner
        for attribute in spec.get("seq", []) + list(spec.get("instances", {}).values()):
            assert set(attribute) <= KEYS, (owner, attribute)
            assert attribute.get("enum", "codec") in ksy["enums"], (owner, attribute)
            kind = attribute.get("type")
            for name in kind["cases"].values() if isinstance(kind, dict) else [kind] if kind else []:
                name = name.partition("(")[0]
                assert name in ksy["types"] or name in INTEGERS or name == "str", (owner, name)
                used.add(name)
    assert set(ksy["types"]) <= used, f"unused: {set(ksy['types']) - used}"
    for name, values in ksy["enums"].items():
        assert all(isinstance(v, int) and IDENTIFIER.match(s) for v, s in values.items()), name
    for value, comment in re.findall(r"^    (0x[0-9a-f]{8}): \w+ +# \"(\w{4})\"", (HERE.parent / "ckstore.ksy").read_text(), re.M):
        assert int(value, 16).to_bytes(4, "little").decode() == comment, comment


def blocks(pointer, moved, found) -> None:
    """Follows a pointer and all below it; `moved` are the forwarding entries by place and birth, `found` is {position: block}."""
    if pointer.is_null:
        return
    at = (pointer.segment, pointer.ofs_block)
    entry = moved.get((*at, pointer.birth)) if pointer.kind <= 5 else None
    if entry:
        at, block = (entry.new_segment, entry.ofs_new_block), entry.block
        assert block.len_stored == entry.len_new_stored and block.checksum == entry.new_checksum and entry.kind == pointer.kind
    else:
        block = pointer.block
        assert block.len_stored == pointer.len_stored and block.checksum == pointer.checksum
    if at in found:
        return
    found[at] = block
    assert block.birth == pointer.birth
    assert block._io.at == block._io.size, f"{block._io.size - block._io.at} bytes are left of a block"

    def walk(value):
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, Node):
            if value._spec is value._ksy["types"]["pointer"]:
                blocks(value, moved, found)
            else:
                for field in list(value._fields.values()):
                    walk(field)
    walk(block.body)


def check_lineage(types, found, tree) -> None:
    """The entries of the tree are those of `list --tree`."""
    if tree is None:
        return
    entries = [entry for block in found.values() if block.body._spec is types["catalog_node"] and block.body.tree == 3
               for entry in block.body.leaf_entries or []]
    nodes = {entry.key[:8].hex(): (entry.value.parent_id, entry.value.state == 1) for entry in entries if entry.sort == 5}
    assert nodes == {n["id"]: (int(n["parent"] or "0", 16), n["isLiving"]) for n in tree["lineage"]}
    assert {entry.key[8:].decode(): f"{entry.value.checkpoint_id:016x}" for entry in entries if entry.sort == 7} == tree["references"]
    assert {(entry.key[8:].hex(), int.from_bytes(entry.key[:8], "big")) for entry in entries if entry.sort == 6} == {
        (number, parent) for number, (parent, _) in nodes.items() if parent}


def main() -> None:
    ksy = yaml.safe_load((HERE.parent / "ckstore.ksy").read_text())
    check_language(ksy)
    types = ksy["types"]
    for path in sorted((HERE.parent / "golden").glob("*.json")):
        case = json.loads(path.read_text())
        if path.stem.startswith("bad-"):
            continue
        with tempfile.NamedTemporaryFile() as file:
            check.expand(case, file.name)
            with open(file.name, "rb") as source:
                root = Node(ksy, ksy, Stream(source, case["mediumBytes"]), None)
                slots = [slot.state for slot in root.ring_a if slot.has_magic]
                newest = max(slots, key=lambda state: state.generation)
                assert [s.state.generation for s in root.ring_b if s.has_magic] == [s.generation for s in slots]
                tables, found = {}, {}
                blocks(newest.forwarding, {}, tables)
                moved = {(b.body.segment, e.ofs_block, e.birth): e for b in tables.values()
                         if b.body._spec is types["forwarding_table"] for e in b.body.entries}
                for pointer in (newest.catalog_by_id, newest.catalog_by_name, newest.segment_table, newest.lineage):
                    blocks(pointer, moved, found)
                check_lineage(types, found, case["expect"].get("tree"))
                records = [b.body for b in found.values() if b.body._spec is types["checkpoint_record"]]
                listing = {c["name"]: c for c in case["expect"]["list"]["listing"]["checkpoints"]}
                assert {r.name: [r.checkpoint_id, [(g.name, g.len_region) for g in r.regions],
                                 {label.key: label.value for label in r.labels}] for r in records} == {
                    name: [int(c["id"], 16), [(g["name"], g["byteLength"]) for g in c["regions"]], c["labels"]]
                    for name, c in listing.items()}
                for segment in {at[0] for at in found}:
                    header = root.segments[segment].header
                    assert header.body.segment == segment and header.body.store_uuid == newest.store_uuid
                print(f"{path.stem}: {len(found)} blocks, {len(records)} checkpoints, {len(moved)} moved blocks")


if __name__ == "__main__":
    main()
