#!/usr/bin/python3
"""Makes the sample stores in ../golden, good and bad, with what a reader must say of them (see golden/README.md), and says
which of them are not those of the release any more.

    make_golden.py [--pin]      --pin: what is made is the set of the release; only before it is one
"""
import argparse
import hashlib
import json
import pathlib
import sys

import golden_bad
import golden_bad_time
from golden_good import GOOD, LAST, RAW, READ_ONLY

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
PINS = GOLDEN / "v1.sha256"


def tree(b) -> dict:
    """What `list --tree --json` adds."""
    return {"lineage": [{"id": f"{number:016x}", "parent": f"{parent:016x}" if parent else None, "isLiving": is_living}
                        for number, (parent, is_living) in sorted(b.lineage.items())],
            "references": {name: f"{number:016x}" for name, number in sorted(b.references.items())}}


def expectation(name: str, b) -> dict:
    expect = {"open": {"exit": 0}, "list": {"exit": 0, "listing": b.listing()}, "verify": {"exit": 0, "damages": []},
              "contents": b.contents(), "readOnly": name in READ_ONLY}
    if b.all_features()[0][2] != "draft":
        expect["tree"] = tree(b)
        expect["verify"]["overcounted"] = 0
    if name in ("chain", "draft-chain"):
        expect["generations"] = [
            {"generation": LAST - 1, "exit": 0, "has": ["tick-08"], "hasNot": ["last"]},
            {"generation": 9, "exit": 0, "has": ["child of none"], "hasNot": ["doomed", "phoenix"]},
            {"generation": 7, "exit": 3, "has": ["alpha", "left"], "hasNot": ["doomed", "phoenix"]},
            {"generation": 3, "exit": 5}, {"generation": LAST + 1, "exit": 5}]
    return expect


def bad_expectation(base: str, expect: dict) -> dict:
    opening = expect.get("open", {"exit": 0})
    if opening["exit"]:
        return {"open": opening}
    result = {"open": opening, "list": {"exit": 0, "sameAs": base}, "verify": {"exit": 0, "damages": []}}
    for key in ("list", "verify"):
        if key in expect:
            result[key] = dict(expect[key])
    if "verify" in expect and "damages" in expect:
        result["verify"]["damages"] = [dict(zip(("checkpoint", "region", "firstPage", "pageCount"), damage))
                                       for damage in expect["damages"]]
    result["restore"] = [dict(zip(("checkpoint", "region", "exit", "word"), row)) for row in expect.get("restore", [])]
    return result


def write(name: str, content: dict) -> None:
    with open(GOLDEN / f"{name}.json", "w") as out:
        json.dump(content, out, indent=1, ensure_ascii=False)
        out.write("\n")


def write_good(name: str, b) -> None:
    raw = name in RAW
    if raw:
        b.medium.save(GOLDEN / f"{name}.ckstore")
    write(name, {"about": GOOD[name].__doc__.replace("\n    ", " ") if GOOD[name].__doc__ else name,
                 "base": f"{name}.ckstore" if raw else None, "mediumBytes": b.medium_bytes,
                 "patches": [] if raw else b.medium.patches(), "expect": expectation(name, b)})


def write_bad(name: str, case: dict, good) -> None:
    b = GOOD[case["base"]](**case["hooks"])
    if case["after"]:
        case["after"](b)
    size, patches = case["medium_bytes"] or b.medium_bytes, b.medium.patches(good.medium)
    assert patches or case["medium_bytes"], f"{name}: nothing is changed"
    write(name if name.startswith("bad-") else f"bad-{name}", {
        "about": case["about"], "base": f"{case['base']}.ckstore", "mediumBytes": size if size > 0 else b.medium_bytes + size,
        "resealed": any(case["hooks"].values()), "patches": patches, "expect": bad_expectation(case["base"], case["expect"])})


def digests() -> dict:
    """{file: SHA-256} of all that belongs to the set."""
    files = sorted(path for pattern in ("*.json", "*.ckstore") for path in GOLDEN.glob(pattern) if not path.name.startswith("engine-"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pins() -> dict:
    return {name: digest for digest, name in (line.split() for line in PINS.read_text().splitlines())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    for old in list(GOLDEN.glob("*.json")) + list(GOLDEN.glob("*.ckstore")):
        if not old.name.startswith("engine-"):      # those are written by the engine
            old.unlink()
    golden_bad.define()
    golden_bad_time.define()
    stores = {name: make() for name, make in GOOD.items()}
    for name, b in stores.items():
        write_good(name, b)
    for name, case in golden_bad.BAD.items():
        write_bad(name, case, stores[case["base"]])
    print(f"{len(stores)} good stores, {len(golden_bad.BAD)} bad ones")
    made = digests()
    if options.pin:
        PINS.write_text("".join(f"{digest}  {name}\n" for name, digest in made.items()))
        return 0
    changed = sorted(name for name, digest in pins().items() if made.get(name) != digest)
    for name in changed:
        print(f"{name} is not that of the release: take the change back, or give the new store another name")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
