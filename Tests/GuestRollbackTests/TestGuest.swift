// A guest of toy machines with its devices, and what it has to be like in the end.

import CheckpointCore
import Foundation
import GuestRollback
import MachineMemory
import Threading
import Units

/// One guest of a test.
final class TestGuest<Processor: ToyProcessor> {
    let machines: [ToyMachine]
    let processors: [Processor]
    /// Primaries, then alternates.
    let devices: [ManualDevice]
    let alternates: [ManualDevice]
    let memory: GuestMemory
    let guest: RollbackGuest
    private let contents: [[UInt8]]

    init(
        _ machines: [ToyMachine], name: String = "guest", diskSectors: Int = 64, mirrored: Bool = false,
        options: GuestOptions = GuestOptions(),
        sharing: GuestMemory.Sharing = .anonymous, rules: any GuestRules = StandardGuestRules(), make: (ToyMachine) -> Processor
    ) throws {
        self.machines = machines
        contents = (0..<machines[0].layout.devices).map { ManualDevice.content(sectors: diskSectors, seed: UInt64($0) + 77) }
        devices = contents.enumerated().map { ManualDevice("\(name)-disk\($0)", $1) }
        let alternates = mirrored ? contents.enumerated().map { ManualDevice("\(name)-mirror\($0)", $1) } : []
        self.alternates = alternates
        memory = try GuestMemory(
            name, byteLength: ByteCount(machines.reduce(0) { $0 + $1.layout.pages } * pageSize), sharing: sharing)
        processors = machines.map(make)
        let pairs = try devices.enumerated().map { try MirroredDevice($1, alternate: mirrored ? alternates[$0] : nil) }
        guest = try RollbackGuest(name, memory: memory, processors: processors, devices: pairs, options: options, rules: rules)
        for processor in processors { processor.world.guest = guest }
    }

    /// Ends the guest. Its processors know it as it knows them: that has to end as well.
    func close() {
        guest.close()
        for processor in processors { processor.world.guest = nil }
    }

    var memoryBytes: [UInt8] { unsafe Array(memory.bytes) }

    /// Compares everything with the model. Reads at devices are counted when none may be repeated.
    func check(noReadTwice: Bool = false) throws {
        let model = ToyModel(memory: memory.byteLength.int, disks: contents)
        let expected = try model.run(machines)
        for (index, (processor, expected)) in zip(processors, expected).enumerated() {
            let machine = processor.machine
            guard machine.unexpected == 0 else {
                throw TestFailure("processor \(index): \(machine.unexpected) completions that nobody asked for")
            }
            guard machine.encoded() == expected.encoded() else {
                throw TestFailure(
                    "processor \(index) ends as \(machine.step)/\(machine.accumulator), the model as \(expected.step)/\(expected.accumulator)"
                )
            }
        }
        guard memoryBytes == model.memory else {
            let page = zip(memoryBytes, model.memory).enumerated().first { $1.0 != $1.1 }!.offset / pageSize
            throw TestFailure("memory differs in page \(page)")
        }
        // A device that has failed proves nothing any more; its mirror has to have everything.
        let failed = Set(guest.failedDevices.map(\.place))
        for (index, disk) in model.disks.enumerated() {
            for device in [devices[index]] + (alternates.isEmpty ? [] : [alternates[index]]) where !failed.contains(device.name) {
                try check(device, disk, model, onlyDevice: model.disks.count == 1)
            }
        }
        let reads = (devices + alternates).reduce(0) { $0 + $1.readCount }
        guard !noReadTwice || reads == model.reads.count else { throw TestFailure("\(reads) reads for \(model.reads.count)") }
    }

    private func check(_ device: ManualDevice, _ disk: [UInt8], _ model: ToyModel, onlyDevice: Bool) throws {
        let ids = device.writes.map(\.id)
        guard Set(ids).count == ids.count else {
            throw TestFailure("\(device.name): written more than once: \(ids.filter { id in ids.count { $0 == id } > 1 }.map(\.rawValue))")
        }
        guard device.content == disk else { throw TestFailure("\(device.name): content differs") }
        guard onlyDevice else { return }
        guard Set(device.writes) == Set(model.writes) else {
            throw TestFailure("\(device.name): \(device.writes.count) writes, not \(model.writes.count) as expected")
        }
    }

    /// Waits until the guest has been told of everything that is finished.
    func settle() throws {
        if guest.waitUntilSettled(milliseconds: 10_000) { return }
        throw TestFailure("completions are not delivered")
    }
}

extension TestGuest where Processor == SteppedProcessor {
    convenience init(
        stepped machines: [ToyMachine], diskSectors: Int = 64, mirrored: Bool = false, options: GuestOptions = GuestOptions(),
        sharing: GuestMemory.Sharing = .anonymous, rules: any GuestRules = StandardGuestRules()
    ) throws {
        try self.init(machines, diskSectors: diskSectors, mirrored: mirrored, options: options, sharing: sharing, rules: rules) {
            SteppedProcessor($0)
        }
    }
}
