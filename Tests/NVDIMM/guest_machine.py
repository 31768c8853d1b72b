"""Runs the emulated machine, reads what the guest frames, and cuts the power.

Invariants:
- QEMU never outlives `Machine.run`, nor this process: the kernel kills it when its parent dies.
- Output of the command is passed on byte by byte; only frames with this run's own random word are taken as frames.
"""

import dataclasses
import os
import re
import select
import subprocess
import time

from guest_process import die_with_parent, escaped
from guest_trouble import Trouble, tool

MEBIBYTE = 1 << 20


@dataclasses.dataclass
class PowerCut:
    """When to kill the machine: at a line of output, some seconds after it, or some seconds after the command began."""

    marker: bytes | None
    seconds: float


class TimeLimit(Exception):
    """The guest was killed because it took too long."""


class Machine:
    def __init__(self, kernel, initramfs, nvdimm, memory_bytes, console, nonce):
        self.nonce = nonce
        self.console = console
        nvdimm_bytes = os.stat(nvdimm).st_size
        memory = f"{memory_bytes // MEBIBYTE}M,slots=2,maxmem={(memory_bytes + nvdimm_bytes) // MEBIBYTE + 1024}M"
        self.arguments = [
            tool("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max", "-machine", "pc,nvdimm=on", "-m", memory,
            "-object", f"memory-backend-file,id=media,share=on,mem-path={escaped(nvdimm)},size={nvdimm_bytes}",
            "-device", "nvdimm,id=nvdimm,memdev=media",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(kernel), "-initrd", str(initramfs),
            # The emulated processor needs no mitigations, and its clock no calibration.
            "-append", "console=ttyS0 loglevel=4 rdinit=/init panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check",
            "-serial", f"file:{escaped(console)}",
            "-chardev", "stdio,id=result,signal=off", "-serial", "chardev:result",
        ]

    def run(self, limit_seconds, power_cut, output):
        """Boots, passes the command's output on to `output`, and returns its exit code; None after a power cut.

        Throws `TimeLimit`, and `Trouble` when the guest could not do its work or ended before the power was cut.
        """
        process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True, preexec_fn=die_with_parent)
        try:
            return self._read(process, time.monotonic() + limit_seconds, power_cut, output)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()

    def _read(self, process, deadline, power_cut, output):
        frames = Frames(self.nonce, power_cut and power_cut.marker, output)
        cut_time = None
        while True:
            if power_cut and cut_time is None and frames.has_reached_marker:
                cut_time = time.monotonic() + power_cut.seconds
            now = time.monotonic()
            if cut_time is not None and now >= cut_time:
                frames.flush()
                return None
            if now >= deadline:
                frames.flush()
                raise TimeLimit()
            wait = min(deadline, cut_time or deadline) - now
            if not select.select([process.stdout], [], [], wait)[0]:
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                frames.flush()
                message = process.stderr.read().decode(errors="replace").strip()
                raise Trouble(f"the guest ended without a result\n{message}".strip())
            frame = frames.take(chunk)
            if frame is None:
                continue
            if frame.startswith("failed "):
                raise Trouble(f"the guest failed: {frame.removeprefix('failed ')}")
            if power_cut:
                raise Trouble(f"the command ended ({frame}) before the power was cut")
            return int(frame.removeprefix("exit "))


class Frames:
    """Takes the stream of the second serial port apart (see guest-init).

    `has_reached_marker` becomes true with the line `marker` of the output; without a marker, when the command begins.
    """

    def __init__(self, nonce, marker, output):
        self.head = f"@@nvdimm-guest {nonce} ".encode()
        self.marker = marker
        self.output = output
        self.pending = b""
        self.has_begun = False
        self.has_reached_marker = False
        self.last_line = b""

    def take(self, chunk):
        """Passes on what is certainly output; returns the text of a closing frame once it is complete."""
        self.pending += chunk
        if not self.has_begun:
            frame = self._next_frame()
            if frame is None:
                return None
            if frame != "begin":
                return frame
            self.has_begun = True
            chunk = self.pending
        self._look_for_marker(chunk)
        start = self.pending.find(self.head)
        if start < 0:
            start = len(self.pending) - self._possible_head()
        self._pass_on(start)
        return self._next_frame()

    def flush(self):
        if self.has_begun:
            self._pass_on(len(self.pending))

    def _look_for_marker(self, chunk):
        if self.has_reached_marker:
            return
        *lines, self.last_line = (self.last_line + chunk).split(b"\n")
        self.has_reached_marker = self.marker is None or self.marker in lines

    def _next_frame(self):
        match = re.search(re.escape(self.head) + rb"([^\n]*)@@\n", self.pending)
        if match is None:
            return None
        self.pending = self.pending[match.end():]
        return match.group(1).decode(errors="replace")

    def _possible_head(self):
        """How many of the last bytes may be the beginning of a frame."""
        for length in range(min(len(self.head) - 1, len(self.pending)), 0, -1):
            if self.head.startswith(self.pending[-length:]):
                return length
        return 0

    def _pass_on(self, length):
        self.output.write(self.pending[:length])
        self.output.flush()
        self.pending = self.pending[length:]
