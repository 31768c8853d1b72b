#!/usr/bin/python3
"""Runs a reader against all sample stores and compares what it says with what it must say.

    check.py [--reader PROGRAM] [NAME ...]      default: ../reader.py, all stores
    check.py --expand NAME FILE                 only write the store NAME to FILE

Without names it also holds the files themselves to the digests in v1.sha256. Exit code 0: all as expected. See README.md for the form of the *.json files.
"""
import argparse
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple, Optional

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import reader  # noqa: E402

PAGE = 4096


def expand(case: dict, path) -> None:
    """A store from its base and its patches."""
    with open(path, "wb") as out:
        if case["base"]:
            out.write((HERE / case["base"]).read_bytes())
        for patch in case["patches"]:
            out.seek(patch["offset"])
            out.write(bytes.fromhex(patch["hex"]))
        out.truncate(case["mediumBytes"])


def pages_digest(path) -> str:
    """SHA-256 over the index (u64, little-endian) and the bytes of every page that is not zero, ascending."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        size, at = os.fstat(source.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA) // PAGE * PAGE
            except OSError:
                break
            source.seek(at)
            page = source.read(PAGE).ljust(PAGE, b"\0")
            if any(page):
                digest.update(struct.pack("<Q", at // PAGE) + page)
            at += PAGE
    return digest.hexdigest()


class Outcome(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_program(program: str, arguments: list) -> Outcome:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_own_reader(_, arguments: list) -> Outcome:
    """reader.py in a forked process: as good as a new one, without the time that Python takes to start."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()              # what is still there would be written by the child as well
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["reader.py", *arguments]
                code = reader.main()
            except SystemExit as leaving:
                code = leaving.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode())


class Check:
    def __init__(self, reader: Optional[str], name: str, directory: pathlib.Path):
        self.reader, self.name, self.failures = reader, name, []
        self.case = json.loads((HERE / f"{name}.json").read_text())
        self.store, self.out = directory / f"{name}.ckstore", directory / "out"
        expand(self.case, self.store)

    def run(self, expected: dict, command: str, *arguments: str):
        """Runs the reader; compares exit code, kind of error ("error") and a word of its output ("word")."""
        done = (run_program if self.reader else run_own_reader)(self.reader, [command, str(self.store), *arguments])
        output, what = done.stdout + done.stderr, " ".join((command, *arguments))
        if done.returncode != expected["exit"]:
            self.failures.append(f"{what}: exit code {done.returncode}, not {expected['exit']}: {output[-300:]}")
        for key in ("error", "word"):
            if expected.get(key) and expected[key] not in output:
                self.failures.append(f"{what}: no {expected[key]!r} in {output[-300:]!r}")
        if "Traceback" in output:
            self.failures.append(f"{what}: traceback")
        return done

    def same(self, what: str, found, expected) -> None:
        if found != expected:
            differing = next((i for i, (a, b) in enumerate(zip(repr(found), repr(expected))) if a != b), 0)
            start = max(0, differing - 100)
            self.failures.append(f"{what}: ...{repr(found)[start:differing + 200]}, not ...{repr(expected)[start:differing + 200]}")

    def check(self) -> list:
        expect = self.case["expect"]
        done = self.run(expect["open"], "info")
        if not self.reader and "readOnly" in expect:
            self.same("may be written", "may be written:                 yes" in done.stdout, not expect["readOnly"])
        if expect["open"]["exit"]:
            for command in ("list", "verify"):
                self.run(expect["open"], command)
            return self.failures
        done = self.run(expect["list"], "list", "--json")
        listing = expect["list"].get("listing")
        if "sameAs" in expect["list"]:
            listing = json.loads((HERE / f"{expect['list']['sameAs']}.json").read_text())["expect"]["list"]["listing"]
        if listing:
            self.same("list", json.loads(done.stdout), listing)
        if "tree" in expect:
            done = self.run(expect["list"], "list", "--tree", "--json")
            self.same("tree", {key: value for key, value in json.loads(done.stdout).items() if key in expect["tree"]}, expect["tree"])
        self.check_verify(expect["verify"])
        for row in expect.get("contents", []):
            self.run({"exit": 0}, "restore", row["checkpoint"], row["region"], str(self.out))
            self.same(f"contents of {row['checkpoint']}, {row['region']}", pages_digest(self.out), row["pagesSha256"])
        for row in expect.get("restore", []):
            self.out.unlink(missing_ok=True)
            self.run(row, "restore", row["checkpoint"], row["region"], str(self.out))
            self.same(f"restored {row['checkpoint']}, {row['region']}", self.out.exists(), row["exit"] == 0)
        for row in expect.get("generations", []):
            done = self.run(row, "list", "--json", "--generation", str(row["generation"]))
            names = [c["name"] for c in json.loads(done.stdout)["checkpoints"]] if done.stdout else []
            self.same(f"generation {row['generation']}", [n in names for n in row.get("has", []) + row.get("hasNot", [])],
                      [True] * len(row.get("has", [])) + [False] * len(row.get("hasNot", [])))
        return self.failures

    def check_verify(self, expected: dict) -> None:
        if self.reader and expected.get("optional"):
            return
        done = self.run(expected, "verify", "--json")
        if "damages" in expected and not expected.get("error"):
            keys = ("checkpoint", "region", "firstPage", "pageCount")

            def rows(damages):
                return sorted(([damage[key] for key in keys] for damage in damages), key=str)
            self.same("damages", rows(json.loads(done.stdout)["damages"]), rows(expected["damages"]))
        if "overcounted" in expected and not self.reader:
            self.same("overcounted", json.loads(done.stdout)["counts"]["overcounted"], expected["overcounted"])


def changed_files() -> list:
    """What is not as v1.sha256 has it."""
    lines = [line.split() for line in (HERE / "v1.sha256").read_text().splitlines()]
    return [f"{name}: not the file of the set v1" for digest, name in lines
            if not (HERE / name).exists() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--reader", metavar="PROGRAM")
    parser.add_argument("--expand", nargs=2, metavar=("NAME", "FILE"))
    options = parser.parse_args()
    if options.expand:
        expand(json.loads((HERE / f"{options.expand[0]}.json").read_text()), options.expand[1])
        return 0
    names = options.names or sorted(path.stem for path in HERE.glob("*.json"))
    changed = [] if options.names else changed_files()
    for failure in changed:
        print(failure)
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            failures = Check(options.reader, name, pathlib.Path(directory)).check()
        for failure in failures:
            print(f"{name}: {failure}")
        failed += bool(failures)
    print(f"{len(names) - failed} of {len(names)} stores as expected")
    return 1 if failed or changed else 0


if __name__ == "__main__":
    sys.exit(main())
