"""What every program here that starts a QEMU needs for it."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1


def escaped(path):
    """A path as QEMU's option syntax wants it: a comma is doubled."""
    return str(path).replace(",", ",,")


def die_with_parent():
    """For `preexec_fn`: the kernel kills the process when its parent's thread ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
