#!/usr/bin/python3
"""Independent reader for ckstore stores, written from FORMAT.md alone.

    reader.py info    STORE
    reader.py list    STORE [--tree] [--json]
    reader.py restore STORE CHECKPOINT REGION OUT    (OUT "-": standard output)
    reader.py machine STORE CHECKPOINT
    reader.py verify  STORE [--json]
    reader.py dump    STORE [--segment N]

Option --generation N opens generation N, even of a store of which newer slots were lost.
CHECKPOINT is a name, or an id as 16 hex digits. Exit codes: 0 ok, 1 failure, 2 usage,
3 corrupt / unsupported / not a store, 5 not found.

It only ever reads the store and takes no locks, so it must not be used on a store that is being
written to. The format itself is in the package ckstore beside this file, verification in verifier.py, the record of
virtual machines in machine.py.
"""
from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time

from ckstore import HEADER, KINDS, NOWHERE, PAGE, Checkpoint, Lineage, Medium, NotFound, Region, Store, StoreError, printable
from machine import machine_record
from verifier import Verifier


def timestamp(nanoseconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10 ** 9))
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"


# ---------------------------------------------------------------- info, list, restore, dump

def info(store: Store, _) -> int:
    slot = store.slot
    rows = [
        ("store", slot.uuid), ("format version", slot.version),
        ("generation", f"{slot.generation}" + (f" (poisoned, repeats {slot.base_generation})" if slot.kind == 2 else "")),
        ("generations in the rings", ", ".join(map(str, sorted(
            {s.generation for ring in store.slots for s in ring if s.valid})))),
        ("committed", timestamp(slot.commit_time)),
        ("checkpoints", slot.checkpoint_count),
        ("segments", f"{slot.used_segments} used of {slot.segment_count}, {slot.segment_size} bytes each"),
        ("commit unit", slot.commit_unit), ("erase unit", slot.erase_unit or "unknown"),
        ("ring B at", slot.twin_offset), ("segments at", slot.data_offset),
        ("catalog segment", "none" if slot.catalog_segment == NOWHERE else slot.catalog_segment),
        ("reserve", f"{slot.reserve_segments} segments")]
    for mask, bits, title in ((1, slot.incompatible, "incompatible features"),
                              (2, slot.read_only_compatible, "read-only compatible features"),
                              (3, slot.compatible, "compatible features")):
        rows.append((title, ", ".join(printable(name) for _, name in slot.features(mask, bits)) or "none"))
    rows.append(("may be written", f"no: {', '.join(map(printable, slot.why_read_only()))}" if slot.why_read_only() else "yes"))
    for title, value in rows:
        print(f"{title + ':':32}{value}")
    return 0


def describe(checkpoint: Checkpoint) -> dict:
    return {"id": f"{checkpoint.id:016x}", "name": checkpoint.name,
            "parent": f"{checkpoint.parent:016x}" if checkpoint.parent else None,
            "createdNanoseconds": checkpoint.created, "newPages": checkpoint.new_pages,
            "storedBytes": checkpoint.stored_bytes, "group": f"{checkpoint.group:016x}" if checkpoint.group else None,
            "labels": checkpoint.labels,
            "regions": [{"name": region.name, "kind": region.kind, "byteLength": region.byte_length,
                         "storedPages": region.stored_pages, "newPages": region.new_pages}
                        for region in checkpoint.regions]}


def list_checkpoints(store: Store, options) -> int:
    """All checkpoints that can be read, in the order of their names; an error for each that cannot."""
    found, errors = [], []
    for key, value in store.walk_catalog(1, errors.append):
        try:
            found.append(store.checkpoint(*store.catalog_value(key, value)))
        except StoreError as error:
            errors.append(error)
    found.sort(key=lambda checkpoint: checkpoint.name.encode())
    lineage = store.lineage(errors.append) if options.tree else None
    if lineage and store.slot.is_draft:         # no tree is kept: what the records say of it
        ids = {checkpoint.id for checkpoint in found}
        lineage.nodes.update((c.id, (c.parent if c.parent in ids else 0, True)) for c in found)
    for error in errors:
        print(f"reader.py: {error.word}: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps({"generation": store.slot.generation, "checkpoints": [describe(c) for c in found],
                          **(describe_lineage(lineage) if lineage else {})}, indent=1))
    elif lineage:
        print_tree(lineage, {checkpoint.id: checkpoint for checkpoint in found})
    else:
        print_list(found)
    return max((error.exit_code for error in errors), default=0)


def print_list(found: list) -> None:
    names = {checkpoint.id: checkpoint.name for checkpoint in found}
    for checkpoint in found:
        parent = names.get(checkpoint.parent, f"{checkpoint.parent:016x} (deleted)") if checkpoint.parent else "-"
        print(f"{printable(checkpoint.name)}  id {checkpoint.id:016x}  parent {printable(parent)}  "
              f"created {timestamp(checkpoint.created)}")
        for key, value in checkpoint.labels.items():
            print(f"    label {printable(key)} = {printable(value)}")
        for region in checkpoint.regions:
            print(f"    {region.kind:6} {printable(region.name)}  {region.byte_length} bytes, "
                  f"{region.stored_pages} pages stored, {region.new_pages} of them new")


def describe_lineage(lineage: Lineage) -> dict:
    return {"lineage": [{"id": f"{number:016x}", "parent": f"{parent:016x}" if parent else None, "isLiving": is_living}
                        for number, (parent, is_living) in sorted(lineage.nodes.items())],
            "references": {name: f"{number:016x}" for name, number in sorted(lineage.references.items())}}


def print_tree(lineage: Lineage, checkpoints: dict) -> None:
    """6.3: parents above their children; a child is set in only where it has siblings."""
    references, children = {}, {}
    for name, number in sorted(lineage.references.items()):
        references.setdefault(number, []).append(name)
    for number, (parent, _) in lineage.nodes.items():
        children.setdefault(parent, []).append(number)

    def age(number):
        return (checkpoints[number].created, number) if number in checkpoints else (0, number)
    pending = [(number, 0) for number in sorted(children.get(0, []), key=age, reverse=True)]
    while pending:
        number, depth = pending.pop()
        checkpoint, (parent, is_living) = checkpoints.get(number), lineage.nodes[number]
        what = printable(checkpoint.name) if checkpoint else "(unreadable)" if is_living else "(deleted)"
        named = f"  <- {', '.join(map(printable, references[number]))}" if number in references else ""
        print(f"{'    ' * depth}{'-' if parent else '*'} {what}  id {number:016x}"
              f"{'  created ' + timestamp(checkpoint.created) if checkpoint else ''}{named}")
        below = sorted(children.get(number, []), key=age, reverse=True)
        pending += [(child, depth + (len(below) > 1)) for child in below]


def restore(store: Store, options) -> int:
    checkpoint = store.find_checkpoint(options.checkpoint)
    region = next((region for region in checkpoint.regions if region.name == options.region), None)
    if region is None:
        raise NotFound(f"region {printable(options.region)} in checkpoint {printable(checkpoint.name)}")
    if options.out == "-":
        stream_region(store, region, sys.stdout.buffer)
    else:
        write_region(store, region, options.out)
    return 0


def machine(store: Store, options) -> int:
    record = machine_record(store, store.find_checkpoint(options.checkpoint))
    print(json.dumps(record, indent=2, sort_keys=True))
    return 0


def stream_region(store: Store, region: Region, out) -> None:
    at, zeros = 0, bytes(1 << 20)

    def fill(end):
        nonlocal at
        while at < end:
            at += out.write(zeros[:min(len(zeros), end - at)])
    for page, data in store.read_pages(region):
        fill(page * PAGE)
        at += out.write(data[:region.byte_length - at])
    fill(region.byte_length)
    out.flush()


def write_region(store: Store, region: Region, path: str) -> None:
    """Writes a sparse file under a temporary name, so that no half-restored file is taken for a whole one."""
    try:
        fd, temporary = tempfile.mkstemp(prefix=".restore-", dir=os.path.dirname(os.path.abspath(path)))
        try:
            with os.fdopen(fd, "wb") as out:
                out.truncate(region.byte_length)
                for page, data in store.read_pages(region):
                    out.seek(page * PAGE)
                    out.write(data[:region.byte_length - page * PAGE])
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def dump(store: Store, options) -> int:
    """4.3: every block of one or all segments, found without the trees."""
    if options.segment is not None and options.segment >= store.slot.segment_count:
        raise NotFound(f"segment {options.segment}; the store has {store.slot.segment_count}")
    segments = range(store.slot.segment_count) if options.segment is None else [options.segment]
    for segment in segments:
        for offset, kind, raw in store.scan(segment):
            birth = HEADER.unpack_from(raw)[3]
            print(f"segment {segment} offset {offset:#x} length {len(raw)} {KINDS[kind].name} birth {birth:#x}"
                  f"{block_details(kind, raw)}")
    return 0


def block_details(kind: int, raw: bytes) -> str:
    if kind in (1, 2, 3, 4):
        key, first = struct.unpack_from("<QQ", raw, 32)
        return f" region {key:016x} page {first}" + (f" level {raw[48]}" if kind == 4 else "")
    if kind == 5:
        length = struct.unpack_from("<H", raw, 64)[0]
        return f" name {printable(raw[96:96 + length].decode('utf-8', 'replace'))}"
    if kind == 6:
        return f" tree {raw[32]} level {raw[33]} entries {struct.unpack_from('<H', raw, 34)[0]}"
    if kind in (7, 8):
        return f" first segment {struct.unpack_from('<I', raw, 32)[0]}"
    if kind == 11:
        return " segment {} entries {}".format(*struct.unpack_from("<II", raw, 32))
    if kind == 9:
        segment, its_class = struct.unpack_from("<IB", raw, 48)
        return f" segment {segment} class {its_class} base generation {struct.unpack_from('<Q', raw, 56)[0]}"
    segment, first, end, length = struct.unpack_from("<IIIH", raw, 72)
    return f" segment {segment} blocks {first:#x}..{end:#x} name {printable(raw[88:88 + length].decode('utf-8', 'replace'))}"


# ---------------------------------------------------------------- verify

def verify(store: Store, options) -> int:
    verifier = Verifier(store)
    verifier.verify()
    problems, damages = list(dict.fromkeys(verifier.problems)), verifier.damages
    if options.json:
        print(json.dumps({"ok": not (problems or damages), "generation": store.slot.generation,
                          "counts": verifier.counts, "notes": store.warnings, "problems": problems,
                          "damages": damages}, indent=1))
    else:
        for damage in damages:
            name = damage["checkpoint"] if damage["checkpoint"] is not None else damage["id"]
            text = f"checkpoint {printable(name)}"
            if damage["region"] is not None:
                last = damage["firstPage"] + max(damage["pageCount"], 1) - 1
                text += f", region {printable(damage['region'])}, pages {damage['firstPage']}..{last}"
            print(f"damaged: {text}: {damage['reason']}")
        for note in store.warnings:
            print(f"note: {note}")
        for problem in problems:
            print(f"problem: {problem}")
        print(", ".join(f"{count} {what}" for what, count in verifier.counts.items()))
        print(f"{len(damages)} damages, {len(problems)} problems" if damages or problems else "ok")
    return 3 if damages or problems else 0


# ---------------------------------------------------------------- command line

def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reader.py", description="Reads ckstore stores.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function, text):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("store", metavar="STORE")
        sub.add_argument("--generation", type=number, metavar="N", help="open an older generation")
        sub.set_defaults(function=function)
        return sub
    command("info", info, "what the newest slot says")
    sub = command("list", list_checkpoints, "the checkpoints")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--tree", action="store_true", help="by their lineage, with the references")
    sub = command("restore", restore, "write a region to a file")
    for name in ("checkpoint", "region", "out"):
        sub.add_argument(name, metavar=name.upper())
    command("machine", machine, "the virtual machine of a checkpoint").add_argument("checkpoint", metavar="CHECKPOINT")
    command("verify", verify, "check everything that the slot reaches").add_argument("--json", action="store_true")
    command("dump", dump, "blocks, found without the trees").add_argument("--segment", type=number, metavar="N")
    return parser


def number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def main() -> int:
    options = arguments().parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        store = Store(Medium(options.store), options.generation, salvage=options.command == "dump")
        if options.command != "verify":
            for warning in store.warnings:
                print(f"reader.py: warning: {warning}", file=sys.stderr)
        code = options.function(store, options)
        sys.stdout.flush()
        return code
    except StoreError as error:
        print(f"reader.py: {error.word}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:                # of standard output: the store's and the file's own are StoreErrors
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"reader.py: failed: standard output: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
