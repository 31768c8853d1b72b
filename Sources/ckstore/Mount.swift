// `ckstore mount`.
//
// Invariants:
// - Without --foreground the command returns when the file system can be used, or with the error and exit code of what kept it from that.
// - The process that serves it opens the store itself: no thread and no lock is shared with the one that was started by hand.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Glibc
import Media
import QMP
import StoreMount
import Threading
import Units

struct Mount: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show checkpoints as folders and files, without restoring them.",
        discussion: """
            DIR gets a folder for each checkpoint, with a file for each region: memory, disks and states, readable at any offset and \
            mappable, for any program. `checkpoint.json` in each folder is what `ckstore show --json` prints. Nothing can be changed. Only \
            what is read is decoded; every byte is verified on the way, and what is damaged is an I/O error (the log names checkpoint, \
            region and pages). Zero pages are holes; times are those of the checkpoints.

            The command returns when DIR can be used; a process in the background serves it until it is unmounted, with `umount DIR` \
            or `fusermount3 -u DIR`, or by SIGTERM. With --foreground, Ctrl-C unmounts.

            A mount shows the checkpoints of the moment it was made, and keeps them readable: what is deleted meanwhile gives its space \
            back when the mount ends. With --follow it shows new checkpoints within a second, and holds the space of deleted ones only \
            while a file of theirs is open. Messages of the background process go to the system's log, or to --log.

            With --private-writes programs can open regions of memory for reading and writing and map them privately: what they write \
            is in their own memory, and gone with them. QEMU needs that for `share=off` main memory, which is else refused with \
            "Read-only file system". Changes, and mappings that share them, are refused as before; only the table of mounts says `rw`. \
            QEMU 8.2 and later do without: share=off,readonly=on,rom=off.

            Example:
              ckstore mount vm.ck /mnt/vm
              ls -l /mnt/vm/monday; strings /mnt/vm/monday/ram | grep -m1 'Linux version'
              cmp -l /mnt/vm/monday/vda /mnt/vm/tuesday/vda | head
              qemu-img convert -f raw -O qcow2 /mnt/vm/monday/vda monday.qcow2
              umount /mnt/vm
              ckstore mount vm.ck /mnt/vm --private-writes
              qemu-system-x86_64 -m 4G -machine q35,memory-backend=ram0 \\
                -object memory-backend-file,id=ram0,size=4G,mem-path=/mnt/vm/monday/ram,share=off ...
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "An empty directory to mount on.", completion: .directory)
    var directory: String
    @Option(help: ArgumentHelp("Show only this checkpoint.", valueName: "name"))
    var checkpoint: String?
    @Flag(help: "Show checkpoints that are made later, and forget those that are deleted.")
    var follow = false
    @Flag(help: "Serve from this process, until it is interrupted or DIR is unmounted.")
    var foreground = false
    @Flag(help: "Let other users look into DIR too.")
    var allowOther = false
    @Flag(help: "Let programs map memory privately that open it for writing, as QEMU does; nothing can be changed.")
    var privateWrites = false
    @Option(
        help: ArgumentHelp("Memory for decoded pages, shared by all files; at least 4M (default: 256M).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var cache: Size?
    @Option(help: ArgumentHelp("Append messages to this file.", valueName: "file"), completion: .file())
    var log: String?
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions
    /// The pipe on which a background process says that it is there.
    @Option(help: .hidden)
    var readyDescriptor: Int32?

    func validate() throws {
        guard !directory.isEmpty, !directory.utf8.contains(0) else { throw ValidationError("DIR is empty.") }
        if let cache, cache.bytes < MountOptions.leastCache {
            throw ValidationError("--cache is \(cache.bytes) bytes; it must be at least \(readable(MountOptions.leastCache)).")
        }
        if follow, generation.value != nil { throw ValidationError("--follow goes on to the newest generation; leave out --generation.") }
        if follow, checkpoint != nil { throw ValidationError("One checkpoint never changes; leave out --follow or --checkpoint.") }
    }

    func run() throws {
        if foreground || readyDescriptor != nil { try serve() } else { try startBackground() }
    }

    // MARK: in the background

    private func startBackground() throws {
        var ends: [Int32] = [-1, -1]
        guard unsafe pipe(&ends) == 0, ends.allSatisfy({ fcntl($0, F_SETFD, FD_CLOEXEC) == 0 }) else { throw systemError("make", "a pipe") }
        let (reading, writing) = (OwnedDescriptor(owning: ends[0]), OwnedDescriptor(owning: ends[1]))
        let number: Int32 = 3
        // The same words, with one option more right behind `mount`, where no `--` can hide it.
        let arguments = ["mount", "--ready-descriptor", "\(number)"] + CommandLine.arguments.dropFirst(2)
        let child = try ChildProcess.spawn(
            executable: "/proc/self/exe", arguments: arguments, inheriting: [(writing.number, number)], diesWithParent: false,
            inNewSession: true)
        writing.close()
        guard let generation = Self.readReady(reading.number) else {
            // It has said what is wrong, unless it was killed.
            let status = try child.wait(timeoutMilliseconds: nil)
            if case .exited(let code) = status, code != 0 { throw ExitCode(code) }
            throw EngineError(
                .exited, "the process that was to serve the mount has ended: \(status?.description ?? "-")",
                remedy: "Try --foreground, which shows more.", place: directory)
        }
        try reportMounted(generation: generation, process: child.pid)
    }

    /// The generation that the background process shows; nil: it has ended.
    private static func readReady(_ descriptor: Int32) -> UInt64? {
        var generation: UInt64 = 0
        while true {
            let count = unsafe withUnsafeMutableBytes(of: &generation) { unsafe read(descriptor, $0.baseAddress, $0.count) }
            if count == MemoryLayout<UInt64>.size { return generation }
            guard count < 0, errno == EINTR else { return nil }
        }
    }

    private func reportMounted(generation: UInt64, process: Int32) throws {
        let result = Result(medium: target.store.description, mountPoint: directory, generation: generation, process: process)
        let place = printable(directory)
        try output.report(result, summary: "mounted \(printable(target.store.description)) on \(place); unmount with: umount \(place)\n")
    }

    // MARK: serving

    private func serve() throws {
        Interruption.begin()
        let stop = MountStop()
        Interruption.setReceiver { stop.receive($0) }
        let ready = readyDescriptor.map { OwnedDescriptor(owning: $0) }
        let log = try openLog()
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        var options = MountOptions(path: directory)
        options.checkpoint = checkpoint
        options.allowsOthers = allowOther
        options.follows = follow
        options.allowsPrivateWrites = privateWrites
        options.cache = cache?.bytes ?? options.cache
        let mount = try StoreMount(store, options, log: log) { (snapshot, info) throws(StoreError) in try Self.describe(info, snapshot) }
        stop.set(mount)
        do {
            if let ready { try announce(mount, ready) } else { try reportMounted(generation: mount.generation.rawValue, process: getpid()) }
        } catch {
            // Whoever was to be told has gone: nobody would know of the mount.
            try mount.unmount(detach: true)
            mount.wait()
            throw error
        }
        mount.wait()
    }

    /// Tells the process that was started by hand, and lets go of its terminal and directory.
    private func announce(_ mount: StoreMount, _ ready: OwnedDescriptor) throws {
        let null = OwnedDescriptor(owning: unsafe open("/dev/null", O_RDWR | O_CLOEXEC))
        guard null.number >= 0, unsafe chdir("/") == 0 else { throw systemError("open", "/dev/null") }
        for standard in Int32(0)...2 { dup2(null.number, standard) }
        let status = unsafe withUnsafeBytes(of: mount.generation.rawValue) { unsafe writeAll(ready.number, $0) }
        guard status == 0 else { throw BrokenPipe() }
        ready.close()
    }

    /// The content of `checkpoint.json`: what `show --json` prints.
    private static func describe(_ info: CheckpointInfo, _ snapshot: Snapshot) throws(StoreError) -> [UInt8] {
        let object = CheckpointObject(info, parentName: try snapshot.parentName(of: info))
        do { return Array(try StandardOutput.text(json: object, isPretty: false).utf8) } catch {
            throw StoreError(.ioFailed, "can't describe the checkpoint: \(error)", checkpoint: info.name)
        }
    }

    private func openLog() throws -> MountLog {
        guard let log else { return readyDescriptor == nil ? MountLog { standardError("ckstore: \($0)\n") } : .system() }
        let file = OwnedDescriptor(owning: unsafe open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600))
        guard file.number >= 0 else { throw systemError("open", log) }
        return MountLog { line in
            var line = "\(timestamp(nanoseconds: wallClockNanoseconds(), isExact: false)) \(line)\n"
            // A log that can't be written to has nobody to tell.
            _ = line.withUTF8 { unsafe writeAll(file.number, UnsafeRawBufferPointer($0)) }
        }
    }

    private struct Result: Encodable {
        var medium: String
        var mountPoint: String
        var generation: UInt64
        var process: Int32
    }
}

/// What signals do to a mount: the first unmounts, the second ends the process even if somebody uses it. Thread-safe.
private final class MountStop: Sendable {
    private struct State {
        var mount: StoreMount?
        var signals = 0
    }
    private let state = Lock(State())

    /// Signals that came before are obeyed now.
    func set(_ mount: StoreMount) {
        let isWanted = state.withLock { state in
            state.mount = mount
            return state.signals > 0
        }
        if isWanted { unmount(mount) }
    }

    func receive(_ number: Int32) {
        let (mount, count) = state.withLock { state in
            state.signals += 1
            return (state.mount, state.signals)
        }
        if count > 1 { _exit(128 + number) }
        if let mount { unmount(mount) }
    }

    private func unmount(_ mount: StoreMount) {
        do { try mount.unmount(detach: false) } catch {
            guard error.code == .busy else { return Failure.report(error.description) }
            Failure.report("\(mount.path) is in use: detached; it ends with the last file in it that is closed, or with another signal")
            do { try mount.unmount(detach: true) } catch { Failure.report(error.description) }
        }
    }
}
