// One machine's place on the host: its sockets, its disks' images, its command line.

import Foundation
import Units

/// A folder with a guest's sockets and disks, and the command line that uses them.
///
/// Invariant: every socket and image of the machine is in its folder, which goes with the object.
public final class GuestMachine: Sendable {
    public let options: GuestOptions
    /// The paths of the disks' images, in the order of the options.
    public let disks: [String]
    /// The names of the disks in checkpoints: their devices' ids.
    public var diskNames: [String] { disks.indices.map { "vd\($0)" } }
    private let image: GuestImage
    private let folder: TemporaryFolder

    /// Makes the folder, with empty disks.
    public convenience init(_ options: GuestOptions) throws {
        try self.init(options, makesDisks: true)
    }

    /// A machine that `original` can be brought back in: the same hardware, sockets of its own, and raw images, which are still to
    /// be made, for disks.
    public convenience init(forRestoreOf original: GuestMachine) throws {
        var options = original.options
        for index in options.disks.indices { options.disks[index].format = .raw }
        try self.init(options, makesDisks: false)
    }

    private init(_ options: GuestOptions, makesDisks: Bool) throws {
        let folder = try TemporaryFolder()
        self.options = options
        self.folder = folder
        image = try GuestImage.shared()
        disks = options.disks.enumerated().map { folder.file("disk\($0.offset).\($0.element.format)") }
        guard makesDisks else { return }
        for (disk, path) in zip(options.disks, disks) {
            let arguments = ["qemu-img", "create", "-q", "-f", disk.format.rawValue, path, "\(disk.size)"]
            let outcome = try RunningTool(arguments, program: "/usr/bin/env", scratch: folder.path).wait(limitSeconds: 30)
            guard outcome.exitCode == 0 else { throw GuestTrouble("qemu-img: \(outcome.errors)") }
        }
    }

    /// Where things of this guest may be put.
    public func file(_ name: String) -> String { folder.file(name) }
    /// The monitor for ckstore.
    public var monitorPath: String { folder.file("qmp") }
    /// A second monitor, for the test itself.
    public var testMonitorPath: String { folder.file("qmp-test") }
    /// What the guest's kernel, the workload and QEMU said.
    public var messages: String {
        [folder.file("console"), logPath].map {
            String(decoding: FileManager.default.contents(atPath: $0) ?? Data(), as: UTF8.self)
        }.joined()
    }
    var logPath: String { folder.file("log") }
    var controlPath: String { folder.file("control") }
    var ticksPath: String { folder.file("ticks") }

    /// QEMU's program.
    public static let program = "qemu-system-x86_64"

    /// The arguments that QEMU gets, without those of a restore.
    public var arguments: [String] {
        options.memoryArguments + [
            "-accel", "tcg", "-cpu", "max", "-smp", "\(options.virtualCPUs)", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", image.kernel, "-initrd", image.initramfs, "-append", image.append,
            "-serial", "file:\(folder.file("console"))",
            "-chardev", "socket,id=control,path=\(controlPath),server=on,wait=off", "-serial", "chardev:control",
            "-chardev", "socket,id=ticks,path=\(ticksPath),server=on,wait=off",
            "-device", "isa-debugcon,chardev=ticks,iobase=0xe9",
            "-qmp", "unix:\(monitorPath),server=on,wait=off", "-qmp", "unix:\(testMonitorPath),server=on,wait=off",
        ] + diskArguments + options.extraArguments
    }

    private var diskArguments: [String] {
        zip(options.disks, disks).enumerated().flatMap { number, pair in
            let (disk, path) = pair
            let device = ["-device", "virtio-blk-pci,id=\(diskNames[number]),drive=disk\(number)"]
            return switch disk.style {
            case .drive: ["-drive", "file=\(path),format=\(disk.format),if=none,id=disk\(number)"] + device
            case .node:
                [
                    "-blockdev", "driver=file,node-name=file\(number),filename=\(path)",
                    "-blockdev", "driver=\(disk.format),node-name=disk\(number),file=file\(number)",
                ] + device
            }
        }
    }
}
