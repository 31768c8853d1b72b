"""What the guest's tools need from the host, and how they report that something is missing."""

import os
import shutil

# Every program of the host that is used, and the Debian package that brings it. Nothing else is needed, apart from the
# kernel package, which is downloaded and unpacked into the cache but never installed (see guest_kernel.py).
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "ndctl": "ndctl",
    "mkfs.ext4": "e2fsprogs",
    "ldd": "libc-bin",
    # Only to fill the kernel cache:
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "depmod": "kmod",
    # Only to build programs for the guests:
    "gcc": "gcc",
    "strip": "binutils",
    # Only for benchmarks:
    "qemu-img": "qemu-utils",
    "dd": "coreutils",
}

SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


class Trouble(Exception):
    """The guest cannot do its work. The message says what is wrong and what to do about it."""


def tool(name):
    """The path of a host program; throws `Trouble` that names the package to install."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise Trouble(f"{name} is missing: install the Debian package {PACKAGES[name]}")
    return path
