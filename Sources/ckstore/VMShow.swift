// `ckstore vm show`.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Media
import Units

struct VMShow: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show",
        abstract: "Show the virtual machine of a checkpoint: its type, memory, disks, how long it stood still.",
        discussion: """
            Example:
              ckstore vm show vm.ck monday
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly)
        defer { store.close() }
        let source = try StoreBackedDataStore(store).source(name)
        let record = try source.machineRecord()
        if output.json { return try StandardOutput.write(json: MachineObject(checkpoint: name, id: source.id, machine: record)) }
        let stop = record.stopMicroseconds.map { "\(oneDecimal(Double($0) / 1000)) ms" } ?? "-"
        let lines = [
            ("name", printable(name)), ("id", source.id.description),
            ("taken", timestamp(nanoseconds: record.takenMicroseconds.multipliedReportingOverflow(by: 1000).partialValue, isExact: true)),
            ("machine", printable(record.machineType)), ("vCPUs", "\(record.virtualCPUs)"),
            ("hypervisor", printable("\(record.hypervisor) \(record.hypervisorVersion) (\(record.architecture))")),
            ("engine", record.engine.rawValue), ("stopped for", stop), ("was running", record.wasRunning ? "yes" : "no"),
            ("device state", "\(record.deviceStateBytes) bytes"),
        ]
        var memory = Table(columns: [("RAM BLOCK", .left), ("BYTES", .right), ("HOST PAGE", .right)])
        memory.rows = record.memoryBlocks.map { [printable($0.name), "\($0.byteLength)", readable(ByteCount($0.hostPageBytes))] }
        var text = listing(lines.map { (name: $0.0, value: $0.1) }) + "\n" + memory.text
        if !record.disks.isEmpty {
            var disks = Table(columns: [("DISK", .left), ("BYTES", .right), ("FORMAT", .left), ("IMAGE", .left)])
            disks.rows = record.disks.map {
                [printable($0.name), "\($0.byteLength)", printable($0.imageFormat), printable($0.imageName)]
            }
            text += "\n" + disks.text
        }
        try StandardOutput.write(text)
    }
}

/// A checkpoint's machine as JSON: the record, as Formats/MACHINE.md has it.
private struct MachineObject: Encodable {
    var checkpoint: String
    var id: CheckpointID
    var machine: MachineRecord
}
