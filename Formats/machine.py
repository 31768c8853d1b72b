"""The machine record of a checkpoint, read and judged as MACHINE.md says."""
from __future__ import annotations

import json

from ckstore import PAGE, Checkpoint, Store, StoreError

VERSION = 1
LONGEST = 16 << 20
LARGEST = 1 << 53
KEYS = ("version engine hypervisor hypervisorVersion machineType architecture virtualCPUs memoryBlocks physicalRanges disks "
        "deviceStateRegion deviceStateBytes wasRunning takenMicroseconds").split()


class NoMachine(StoreError):
    word, exit_code = "invalid", 2


class BadMachine(StoreError):
    word, exit_code = "corrupt", 3


def machine_record(store: Store, checkpoint: Checkpoint) -> dict:
    """The record; raises NoMachine or BadMachine."""
    regions = {region.name: region for region in checkpoint.regions}
    if "machine" not in regions:
        raise NoMachine("this is no checkpoint of a virtual machine")
    try:
        record = json.loads(content(store, regions["machine"]))
    except ValueError:
        raise BadMachine("the machine record is no JSON") from None
    if not isinstance(record, dict) or type(record.get("version")) is not int:
        raise BadMachine("the machine record is no object with a version")
    if record["version"] != VERSION:
        raise BadMachine(f"the machine record has version {record['version']}")
    try:
        check(record, regions)
    except (KeyError, TypeError) as error:
        raise BadMachine(f"the machine record is wrong: {error!r}") from None
    return record


def content(store: Store, region) -> bytes:
    if region.byte_length > LONGEST:
        raise BadMachine(f"the machine record has {region.byte_length} bytes")
    data = bytearray((region.byte_length + PAGE - 1) // PAGE * PAGE)
    for page, page_bytes in store.read_pages(region):
        data[page * PAGE:(page + 1) * PAGE] = page_bytes
    return bytes(data[:region.byte_length])


def check(record: dict, regions: dict) -> None:
    missing = [key for key in KEYS if key not in record]
    need(not missing, f"it lacks {', '.join(missing)}")
    need(1 <= number(record["virtualCPUs"]) <= 65536, "its vCPUs")
    number(record["takenMicroseconds"])
    number(record.get("stopMicroseconds") or 0)
    blocks = {block["name"]: block for block in record["memoryBlocks"]}
    disks = {disk["name"] for disk in record["disks"]}
    need(blocks, "it has no memory")
    need(len(blocks) == len(record["memoryBlocks"]) and len(disks) == len(record["disks"]), "it has a name twice")
    for block in blocks.values():
        page = number(block["hostPageBytes"])
        need(page >= 4096 and page & (page - 1) == 0, f"host pages of {page} bytes")
        need(number(block["byteLength"]) > 0 and block["byteLength"] % page == 0, f"block {block['name']} is no whole number of pages")
    for part in record["physicalRanges"]:
        end = number(part["blockOffset"]) + number(part["byteLength"])
        need(part["byteLength"] > 0 and end <= blocks[part["block"]]["byteLength"], "a physical range that reaches beyond its block")
    check_regions(record, regions)


def check_regions(record: dict, regions: dict) -> None:
    named = [(block["region"], "memory", block["byteLength"]) for block in record["memoryBlocks"]]
    named += [(disk["region"], "disk", disk["byteLength"]) for disk in record["disks"]]
    named.append((record["deviceStateRegion"], "state", record["deviceStateBytes"]))
    need(record["deviceStateBytes"] != 0, "no device state")
    need(len({name for name, _, _ in named}) == len(named), "it names a region twice")
    for name, kind, length in named:
        region = regions.get(name)
        need(region is not None, f"there is no region {name}")
        need(region.kind == kind and region.byte_length == number(length), f"region {name} is {region.kind} of {region.byte_length} bytes")


def number(value) -> int:
    need(type(value) is int and 0 <= value < LARGEST, f"{value!r} is no length")
    return value


def need(condition, reason: str) -> None:
    if not condition:
        raise BadMachine(f"the machine record is wrong: {reason}")
