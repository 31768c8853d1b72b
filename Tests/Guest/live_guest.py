"""A guest that runs the self-checking workload, for benchmarks: boots it, talks to it, listens to its ticks and to QEMU.

Invariants:
- QEMU never outlives its `LiveGuest`, nor this process.
- Sockets and images of a guest are in its own folder.
- Every wait has a limit.
"""

import bisect
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import threading
import time

from guest_process import die_with_parent, escaped
from guest_trouble import Trouble, tool

BUILD = pathlib.Path(__file__).resolve().parent / "build"
BOOT_LIMIT_SECONDS = 60
SO_PEERCRED_FORMAT = "3i"


def built_guest():
    """Paths of the guest's kernel and initramfs, and the kernel's command line; see build."""
    result = subprocess.run([BUILD], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise Trouble("the guest was not built")
    return json.loads(result.stdout)


class Machine:
    """The command line of a guest: the same hardware in another folder is the machine that a checkpoint of it is restored in."""

    def __init__(self, guest, folder, memory_mebibytes, shares_memory, disk_format, disk_mebibytes=256):
        self.guest = guest
        self.folder = pathlib.Path(folder)
        self.memory_mebibytes = memory_mebibytes
        self.shares_memory = shares_memory
        self.disk_format = disk_format
        self.disk_mebibytes = disk_mebibytes
        self.folder.mkdir(mode=0o700)

    def for_restore(self, folder):
        """The same machine with places of its own; its disk is a raw file that is still to be made."""
        return Machine(self.guest, folder, self.memory_mebibytes, self.shares_memory, "raw", self.disk_mebibytes)

    @property
    def disk(self):
        return self.folder / f"disk.{self.disk_format}"

    def make_disk(self):
        command = [tool("qemu-img"), "create", "-q", "-f", self.disk_format, self.disk, f"{self.disk_mebibytes}M"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def path(self, name):
        return self.folder / name

    def arguments(self):
        def socket_at(name):
            return f"path={escaped(self.path(name))},server=on,wait=off"
        size = f"{self.memory_mebibytes}M"
        memory = ["-machine", "pc", "-m", size]
        if self.shares_memory:
            memory = ["-object", f"memory-backend-memfd,id=ram,share=on,size={size}", "-machine", "pc,memory-backend=ram", "-m", size]
        return [
            tool("qemu-system-x86_64"), *memory, "-accel", "tcg", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", self.guest["kernel"], "-initrd", self.guest["initramfs"], "-append", self.guest["append"],
            "-serial", f"file:{escaped(self.path('console'))}",
            "-chardev", f"socket,id=control,{socket_at('control')}", "-serial", "chardev:control",
            "-chardev", f"socket,id=ticks,{socket_at('ticks')}", "-device", "isa-debugcon,chardev=ticks,iobase=0xe9",
            "-qmp", f"unix:{escaped(self.path('qmp'))},server=on,wait=off",
            "-qmp", f"unix:{escaped(self.path('qmp-bench'))},server=on,wait=off",
            "-blockdev", f"driver=file,node-name=file0,filename={escaped(self.disk)}",
            "-blockdev", f"driver={self.disk_format},node-name=disk0,file=file0",
            "-device", "virtio-blk-pci,id=vda,drive=disk0",
        ]


class LiveGuest:
    """A running guest. Whoever started QEMU, `close` ends it."""

    def __init__(self, machine, process):
        """Takes over a QEMU that has been started, or that `process` will start."""
        self.machine = machine
        self.process = process
        self.deadline = time.monotonic() + BOOT_LIMIT_SECONDS
        self.started = time.time()
        self.qemu = None
        self.port = self.ticks = self.monitor = None
        try:
            ticks = self._connect("ticks")
            credentials = ticks.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(SO_PEERCRED_FORMAT))
            self.qemu = os.pidfd_open(struct.unpack(SO_PEERCRED_FORMAT, credentials)[0])
            self.ticks = TickLog(ticks)
            self.monitor = Monitor(self._connect("qmp-bench"))
            self.port = Port(self._connect("control"))
            self.first_status = self.port.command("status", BOOT_LIMIT_SECONDS, repeats=True)
        except (Trouble, OSError) as error:
            text = self.messages()
            self.close()
            raise Trouble(f"the guest did not come up: {error}\n{text}") from error

    @staticmethod
    def boot(machine):
        machine.make_disk()
        process = subprocess.Popen(machine.arguments(), stdin=subprocess.DEVNULL, start_new_session=True,
                                   preexec_fn=die_with_parent)
        return LiveGuest(machine, process)

    def messages(self):
        console = self.machine.path("console")
        return console.read_text(errors="replace")[-6000:] if console.exists() else ""

    def _connect(self, name):
        path = self.machine.path(name)
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
            if self.process.poll() is not None:
                raise Trouble(f"{self.process.args[0]} has ended with {self.process.returncode}")
            if time.monotonic() > self.deadline:
                raise Trouble(f"nobody listens at {path}")
            time.sleep(0.001)

    def command(self, text, limit=120):
        return self.port.command(text, limit)

    def close(self):
        """Kills QEMU and waits until it, and the process that was given, are gone."""
        if self.qemu is not None:
            try:
                signal.pidfd_send_signal(self.qemu, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(self.qemu)
            self.qemu = None
        elif self.process.poll() is None:
            self.process.kill()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for connection in [self.ticks, self.monitor, self.port]:
            if connection:
                connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Port:
    """The workload's commands (see workload/main.c)."""

    def __init__(self, connection):
        self.connection = connection
        self.connection.settimeout(0.05)
        self.number = int.from_bytes(os.urandom(3), "big") << 8
        self.buffer = b""

    def command(self, text, limit, repeats=False):
        self.number += 1
        line = f"\n{self.number} {text}\n".encode()
        deadline, next_send = time.monotonic() + limit, 0
        while time.monotonic() < deadline:
            if time.monotonic() >= next_send:
                self.connection.sendall(line)
                next_send = time.monotonic() + 0.3 if repeats else deadline
            try:
                chunk = self.connection.recv(1 << 14)
            except TimeoutError:
                continue
            if not chunk:
                raise Trouble("the guest is gone")
            *lines, self.buffer = (self.buffer + chunk).split(b"\n")
            for answer in map(parsed, lines):
                if answer.get("id") == self.number:
                    return answer
        raise Trouble(f"the guest did not answer \"{text}\" in {limit} s")

    def close(self):
        self.connection.close()


def parsed(line):
    try:
        answer = json.loads(line)
    except ValueError:
        # Cut off by a checkpoint or a restart.
        return {}
    return answer if isinstance(answer, dict) else {}


class TickLog:
    """When the guest's ticks came. Reads as long as the guest lives: QEMU waits for whoever doesn't."""

    def __init__(self, connection):
        self.connection = connection
        self.times = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            # A logger that waits for a core would see stalls of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        except PermissionError:
            pass
        while self.connection.recv(1 << 14):
            self.times.append(time.monotonic())

    def first(self, limit=10):
        """When the first tick came, waited for."""
        deadline = time.monotonic() + limit
        while not self.times:
            if time.monotonic() > deadline:
                raise Trouble(f"the guest did not tick in {limit} s")
            time.sleep(0.002)
        return self.times[0]

    def longest_gap(self, start, end):
        """The longest time without a tick between two moments of time.monotonic(); both ends count as ticks."""
        times = [start, *self.times[bisect.bisect(self.times, start):bisect.bisect(self.times, end)], end]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def close(self):
        self.connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.connection.close()


class Monitor:
    """A monitor of QEMU's. For one thread."""

    def __init__(self, connection):
        self.connection = connection
        self.buffer = b""
        self.events = []
        self._next(10)
        self.execute("qmp_capabilities")

    def execute(self, command, limit=60, descriptors=(), **arguments):
        """Raises `Trouble` with QEMU's own words when it refuses."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        if descriptors:
            socket.send_fds(self.connection, [line], descriptors)
        else:
            self.connection.sendall(line)
        while True:
            message = self._next(limit)
            if "error" in message:
                raise Trouble(f"QEMU refused {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def pass_descriptor(self, descriptor, name):
        """Gives QEMU a descriptor that it knows as `name` from then on."""
        self.execute("getfd", descriptors=[descriptor], fdname=name)

    def wait_for(self, is_wanted, since=0, limit=120):
        """The first event from index `since` on that `is_wanted`; its index follows from `events`."""
        deadline = time.monotonic() + limit
        index = since
        while True:
            while index < len(self.events):
                if is_wanted(self.events[index]):
                    return self.events[index]
                index += 1
            self._next(deadline - time.monotonic())

    def drain(self):
        """Takes in what has come."""
        try:
            while True:
                self._next(0.001)
        except TimeoutError:
            pass

    def _next(self, limit):
        """Reads one message; events are kept, and returned too."""
        while b"\n" not in self.buffer:
            self.connection.settimeout(max(0.001, limit))
            chunk = self.connection.recv(1 << 16)
            if not chunk:
                raise Trouble("QEMU has closed its monitor")
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            stamp = message["timestamp"]
            message["time"] = stamp["seconds"] + stamp["microseconds"] / 1e6
            self.events.append(message)
        return message

    def close(self):
        self.connection.close()
