"""The guest's kernel and modules: taken from Debian's kernel package, unpacked into a cache, never installed.

Invariants:
- A cache entry appears by one rename, when it is complete; an entry that is there can be trusted.
- The name of an entry tells what this file puts into it: a changed module list or layout makes a new entry.
- All guests share one entry, so that the package is downloaded once.
- One process fills the cache at a time, so that whatever is found under a temporary name is left over from a crash.
"""

import contextlib
import fcntl
import hashlib
import lzma
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

from guest_trouble import Trouble, tool

META_PACKAGE = "linux-image-amd64"

# What any of the guests loads; what these depend on is found by depmod and taken along.
MODULES = ["crc32c_generic", "ext4", "libnvdimm", "nd_pmem", "nfit", "virtio_blk", "virtio_pci"]

LAYOUT = "2: kernel, modules/name.ko, loading (lines of a module and the files to load for it, in order), package"


class Kernel:
    """A complete cache entry."""

    def __init__(self, folder):
        self.image = folder / "kernel"
        self.folder = folder

    def modules(self, names):
        """The files of the modules `names`, which MODULES has, and of all that they depend on, each after what it needs."""
        loading = dict(line.split(" ", 1) for line in (self.folder / "loading").read_text().splitlines())
        files = []
        for name in names:
            files += [file for file in loading[name].split() if file not in files]
        return [self.folder / "modules" / file for file in files]


def cached_kernel(cache, say):
    """The kernel in `cache`, downloaded first (about 70 MB) when it is not there yet.

    `say` is given a line for people before something slow begins.
    """
    recipe = "\n".join([META_PACKAGE, *MODULES, LAYOUT])
    entry = cache / f"kernel-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if entry.is_dir():
        return Kernel(entry)
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if not entry.is_dir():
            for leftover in cache.glob("filling-*"):
                shutil.rmtree(leftover)
            temporary = pathlib.Path(tempfile.mkdtemp(prefix="filling-", dir=cache))
            try:
                fill(temporary, say)
                (temporary / "entry").rename(entry)
            finally:
                shutil.rmtree(temporary)
    return Kernel(entry)


@contextlib.contextmanager
def locked(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fill(temporary, say):
    package = concrete_package()
    say(f"downloading {package} into the cache (once)")
    command([tool("apt-get"), "download", package], temporary,
            remedy="is the package server reachable, and are the package lists new enough? Run apt-get update")
    [archive] = temporary.glob("*.deb")
    unpacked = temporary / "unpacked"
    command([tool("dpkg-deb"), "-x", archive, unpacked], temporary, remedy="is there room for 500 MB?")
    [modules] = (unpacked / "lib/modules").iterdir()
    command([tool("depmod"), "-b", unpacked, modules.name], temporary, remedy="is there room for 500 MB?")

    entry = temporary / "entry"
    (entry / "modules").mkdir(parents=True)
    loading = loading_order(modules)
    for path in {path for paths in loading.values() for path in paths}:
        shutil.copyfile(path, entry / "modules" / path.name)
    (entry / "loading").write_text("".join(
        f"{name} {' '.join(path.name for path in paths)}\n" for name, paths in loading.items()))
    [compressed] = (unpacked / "boot").glob("vmlinuz-*")
    (entry / "kernel").write_bytes(bootable_image(compressed.read_bytes()))
    (entry / "package").write_text(archive.name + "\n")
    for path in entry.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def concrete_package():
    """The kernel package behind the meta package."""
    text = command([tool("apt-cache"), "depends", META_PACKAGE], None, remedy="run apt-get update")
    for line in text.splitlines():
        word, _, name = line.strip().partition(": ")
        if word == "Depends" and name.startswith("linux-image-"):
            return name
    raise Trouble(f"apt-cache knows no package behind {META_PACKAGE}: run apt-get update on a Debian system")


def loading_order(modules):
    """For each of MODULES its file and those that it depends on, each after what it needs; none for one that is built in."""
    dependencies = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        dependencies[pathlib.PurePath(path).name.split(".")[0].replace("-", "_")] = (path, needed.split())
    built_in = {pathlib.PurePath(line).stem.replace("-", "_")
                for line in (modules / "modules.builtin").read_text().splitlines()}
    order = {}
    for name in MODULES:
        order[name] = []
        if name in built_in:
            continue
        if name not in dependencies:
            raise Trouble(f"the kernel package has no module {name}: adapt MODULES in {__file__}")
        path, needed = dependencies[name]
        # modules.dep lists what must be loaded first at the end.
        for file in [*reversed(needed), path]:
            if not file.endswith(".ko"):
                raise Trouble(f"the kernel's module {file} is compressed, which the guest's insmod cannot load")
            order[name].append(modules / file)
    return order


def bootable_image(compressed):
    """The ELF kernel inside a bzImage, which QEMU starts directly: an emulated processor would take three seconds to
    decompress it. A kernel that is packed in another way than Debian's is used as it is."""
    setup_sectors = compressed[0x1F1] or 4
    offset, length = struct.unpack_from("<II", compressed, 0x248)
    payload = compressed[(setup_sectors + 1) * 512 + offset:][:length]
    if not payload.startswith(b"\xfd7zXZ\0"):
        return compressed
    image = lzma.LZMADecompressor().decompress(payload)
    return image if image.startswith(b"\x7fELF") else compressed


def command(arguments, folder, remedy):
    result = subprocess.run(arguments, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            env={**os.environ, "LC_ALL": "C"})
    if result.returncode != 0:
        words = " ".join(map(str, arguments))
        raise Trouble(f"{words} failed ({result.returncode}): {remedy}\n{result.stderr.strip()}")
    return result.stdout
