#!/usr/bin/python3
"""Prints what every region of a store holds, as JSON: [{"checkpoint", "region", "pagesSha256"}], in the order of the names.

    page_digests.py STORE

The digest is that of golden/README.md. Everything is read and verified by ../ckstore.
"""
import hashlib
import json
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ckstore import Medium, Store, StoreError  # noqa: E402


def digest(store: Store, region) -> str:
    result = hashlib.sha256()
    for page, data in store.read_pages(region):
        if any(data):
            result.update(struct.pack("<Q", page) + data)
    return result.hexdigest()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        store = Store(Medium(sys.argv[1]))
        checkpoints = [store.checkpoint(*store.catalog_value(*entry)) for entry in store.walk_catalog(1)]
        checkpoints.sort(key=lambda checkpoint: checkpoint.name.encode())
        print(json.dumps([{"checkpoint": checkpoint.name, "region": region.name, "pagesSha256": digest(store, region)}
                          for checkpoint in checkpoints for region in checkpoint.regions], indent=1))
        return 0
    except StoreError as error:
        print(f"page_digests.py: {error.word}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
