"""The guest's root file system: an uncompressed initramfs (cpio "newc") with programs and the libraries they load.

Invariants:
- Every folder stands in the archive before what it contains, and every path stands there once.
- A library is put where the host's loader found it, with symbolic links resolved: absolute run paths stay right.
"""

import os
import pathlib
import re
import stat
import subprocess

from guest_trouble import Trouble, tool

NO_DEVICE = (0, 0)


class Archive:
    """Writes entries to `file` as they are added; `finish` completes it."""

    def __init__(self, file):
        self.file = file
        self.inode = 0
        self.paths = {}
        self.library_folders = []

    def add_folder(self, path):
        path = pathlib.PurePosixPath(path)
        if path == pathlib.PurePosixPath("/") or str(path) in self.paths:
            return
        self.add_folder(path.parent)
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def add_bytes(self, path, content, mode=0o644):
        self._add_below_folder(path, stat.S_IFREG | mode, content)

    def add_link(self, path, target):
        self._add_below_folder(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def add_console(self):
        """/dev/console, which the kernel opens for init before init can mount anything."""
        self._add_below_folder("/dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))

    def add_file(self, host, guest):
        """A file of the host; with the libraries that it loads when it is a program or a library itself."""
        source = os.path.realpath(host)
        if self.paths.get(str(guest)) == source:
            return
        try:
            content = pathlib.Path(source).read_bytes()
            mode = stat.S_IMODE(os.stat(source).st_mode)
        except OSError as error:
            raise Trouble(f"cannot read {host}, which is to go into the guest: {error.strerror}") from error
        self._add_below_folder(guest, stat.S_IFREG | mode, content, source=source)
        if content.startswith(b"\x7fELF"):
            for library in libraries(source):
                self.add_library(library)

    def add_library(self, path):
        if self.paths.get(path) == os.path.realpath(path):
            return
        folder = os.path.dirname(path)
        if folder not in self.library_folders:
            self.library_folders.append(folder)
        self._add_below_folder(path, stat.S_IFREG | 0o755, pathlib.Path(path).read_bytes(),
                               source=os.path.realpath(path))

    def finish(self):
        self.inode = 0
        self._write("TRAILER!!!", 0, b"", NO_DEVICE)

    def _add_below_folder(self, path, mode, content, source=None, device=NO_DEVICE):
        self.add_folder(pathlib.PurePosixPath(path).parent)
        self._add(path, mode, content, source, device)

    def _add(self, path, mode, content, source=None, device=NO_DEVICE):
        path = str(path)
        if path in self.paths:
            raise Trouble(f"two files are to become {path} in the guest: give one of them another name")
        self.paths[path] = source
        self.inode += 1
        self._write(path.lstrip("/"), mode, content, device)

    def _write(self, name, mode, content, device):
        if len(content) >= 1 << 32:
            raise Trouble(f"{name} is too large for the guest's memory")
        encoded = os.fsencode(name) + b"\0"
        fields = [self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.file.write(padded(header + encoded))
        self.file.write(padded(content))


def padded(content):
    return content + bytes(-len(content) % 4)


def libraries(program):
    """What the loader would map for a program, the loader itself included; nothing for a static program."""
    result = subprocess.run([tool("ldd"), program], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    output = result.stdout + result.stderr
    if "not a dynamic executable" in output or "statically linked" in output:
        return []
    missing = re.findall(r"^\s*(\S+) => not found", output, re.MULTILINE)
    if missing:
        raise Trouble(f"{program} needs {', '.join(missing)}, not found on this host: set LD_LIBRARY_PATH")
    if result.returncode != 0:
        raise Trouble(f"ldd {program} failed ({result.returncode}): {output.strip()}")
    return re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", output, re.MULTILINE)
