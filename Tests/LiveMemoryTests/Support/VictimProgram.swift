// The program that tests look at from outside.

/// Maps shared memory, writes it on command and by threads, waits in system calls, protects its own memory: whatever a machine does.
let victimProgram = #"""
    import ctypes, mmap, os, random, struct, sys, threading, time

    pages, huge, writers = (int(a) for a in sys.argv[1:4])
    page = 4096
    memory_file = os.memfd_create("victim", 4 if huge else 0)
    os.ftruncate(memory_file, pages * page)
    memory = mmap.mmap(memory_file, pages * page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    gate = threading.Event()
    locks = [threading.Lock() for _ in range(writers)]
    written = [0] * writers

    def writer(number):
        # Each thread goes round its own pages; every write differs from what was there.
        count = pages // writers
        first, place, value = number * count, 0, number
        while True:
            gate.wait()
            with locks[number]:
                if not gate.is_set():
                    continue
                for _ in range(256):
                    at = (first + place) * page + value % 500 * 8
                    memory[at:at + 8] = struct.pack("<Q", value + 1)
                    place = (place + 1) % count
                    value += 1
                written[number] += 256

    def pause():
        gate.clear()
        for lock in locks:
            with lock:
                pass

    def scatter(seed, count):
        choice = random.Random(seed)
        for _ in range(count):
            at = choice.randrange(pages) * page + choice.randrange(512) * 8
            memory[at:at + 8] = choice.randbytes(8)

    class Time(ctypes.Structure):
        _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]

    def wait_in(kind, milliseconds):
        """Waits once in a system call, without the interpreter's own repetition; says how that ended."""
        limit = Time(milliseconds // 1000, milliseconds % 1000 * 1000000)
        by = ctypes.byref(limit)
        word = ctypes.c_int(7)
        reading, writing = os.pipe()
        poller = libc.epoll_create1(0)
        later = threading.Timer(milliseconds / 1000, lambda: os.write(writing, b"x"))
        later.start()
        calls = {
            "poll": lambda: libc.poll(None, 0, milliseconds),
            "ppoll": lambda: libc.ppoll(None, 0, by, None),
            "select": lambda: libc.pselect(0, None, None, None, by, None),
            "epoll": lambda: libc.epoll_wait(poller, ctypes.create_string_buffer(12), 1, milliseconds),
            "nanosleep": lambda: libc.nanosleep(by, None),
            "futex": lambda: libc.syscall(202, ctypes.byref(word), 0, 7, by, None, 0),
            "read": lambda: libc.read(reading, ctypes.create_string_buffer(1), 1),
            "compute": lambda: compute(milliseconds),
        }
        start = time.monotonic()
        print("waiting", flush=True)
        ctypes.set_errno(0)
        result = calls[kind]()
        error = ctypes.get_errno()
        later.join()
        return f"{result} {error} {time.monotonic() - start:.3f}"

    class Polled(ctypes.Structure):
        _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]

    def loop():
        """Waits for input as an event loop does: what came is in `revents`, whatever the count says."""
        print("looping", flush=True)
        while True:
            polled = Polled(0, 1, 0)
            if libc.ppoll(ctypes.byref(polled), 1, None, None) < 0:
                return "failed"
            if polled.revents:
                return "ok" if os.read(0, 100) == b"stop\n" else "nonsense"

    def compute(milliseconds):
        end = time.monotonic() + milliseconds / 1000
        total = 0
        while time.monotonic() < end:
            total = (total * 3 + 1) % 1000003
        return 0

    def protect_self(mode):
        """Registers the memory with a userfaultfd of its own that nobody reads: "wp" and "missing"."""
        own = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
        buffer = ctypes.create_string_buffer(struct.pack("<QQQ", 0xaa, 1 | 1 << 12 if mode == "wp" else 1 << 5, 0), 24)
        assert libc.ioctl(own, ctypes.c_ulong(0xc018aa3f), buffer) == 0, "handshake"
        buffer = ctypes.create_string_buffer(struct.pack("<QQQQ", address, pages * page, 2 if mode == "wp" else 1, 0), 32)
        assert libc.ioctl(own, ctypes.c_ulong(0xc020aa00), buffer) == 0, "registration"
        if mode == "wp":
            buffer = ctypes.create_string_buffer(struct.pack("<QQQ", address, pages * page, 1), 24)
            assert libc.ioctl(own, ctypes.c_ulong(0xc018aa06), buffer) == 0, "protection"
        return own

    for number in range(writers):
        threading.Thread(target=writer, args=(number,), daemon=True).start()
    print("ready", hex(address), flush=True)
    for line in iter(sys.stdin.readline, ""):
        words = line.split()
        answer = "ok"
        if words[0] == "write":
            scatter(int(words[1]), int(words[2]))
        elif words[0] == "run":
            gate.set()
        elif words[0] == "pause":
            pause()
        elif words[0] == "written":
            answer = str(sum(written))
        elif words[0] == "wait":
            answer = wait_in(words[1], int(words[2]))
        elif words[0] == "loop":
            answer = loop()
        elif words[0] == "protect":
            answer = str(protect_self(words[1]))
        elif words[0] == "close":
            os.close(int(words[1]))
        elif words[0] == "punch":
            libc.fallocate(memory_file, 3, ctypes.c_long(int(words[1]) * page), ctypes.c_long(int(words[2]) * page))
        elif words[0] == "unmap":
            libc.munmap(ctypes.c_void_p(address + pages // 2 * page), ctypes.c_size_t(pages // 4 * page))
        elif words[0] == "blocks":
            answer = str(os.fstat(memory_file).st_blocks)
        print(answer, flush=True)
    os._exit(0)
    """#
