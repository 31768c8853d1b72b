// What the tests of the reference machine share.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import ReferenceMachine
import Testing
import Units

/// Why machines can't be tested here; nil when they can.
let unavailability = ReferenceMachine.unavailability

extension Trait where Self == ConditionTrait {
    /// Skips what needs /dev/kvm where it can't be used: in containers without the device, on kernels without it.
    static var needsKVM: Self {
        .enabled(if: unavailability == nil, "no virtual machines here: \(unavailability.map(\.description) ?? "")")
    }
}

/// All tests that run machines, one after the other: guests with several processors wait for each other busily.
@Suite(.serialized, .needsKVM) struct ReferenceMachineTests {}

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

func require(_ condition: Bool, _ description: @autoclosure () -> String) throws {
    if !condition { throw TestFailure(description()) }
}

/// A seed for this run, printed, so that a failure can be replayed by CKSTORE_TEST_SEED.
func printedSeed(_ test: String = #function) -> UInt64 {
    let given = unsafe getenv("CKSTORE_TEST_SEED").flatMap { unsafe UInt64(String(cString: $0)) }
    let seed = given ?? UInt64.random(in: 0...UInt64.max)
    print("\(test): CKSTORE_TEST_SEED=\(seed)")
    return seed
}

extension GuestMemory {
    /// A copy of its content.
    var content: [UInt8] { unsafe [UInt8](UnsafeRawBufferPointer(bytes)) }

    func fill(_ content: [UInt8]) { unsafe bytes.copyBytes(from: content) }

    /// A copy of a range, as devices see it.
    func content(_ range: Range<Int>) -> [UInt8] {
        unsafe [UInt8](UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(deviceBytes)[range]))
    }

    func word(_ offset: Int) -> UInt32 { unsafe UnsafeRawBufferPointer(bytes).load(fromByteOffset: offset, as: UInt32.self) }
}

extension ReferenceMachine {
    var printed: String { String(decoding: serialOutput, as: UTF8.self) }

    /// Lets it run to its end.
    func finish() throws {
        resume()
        try require(try waitUntilHalted(milliseconds: 60_000), "the guest does not come to its end; it has printed \(printed)")
    }
}

/// The programs that tests run, with what they are expected to leave.
enum Workload {
    static let partLength = ByteCount.kibibytes(256)
    static let memoryLength = ByteCount.mebibytes(4)
    static let sectors: UInt64 = 64
    /// Some requests reach beyond the end of the disk.
    static let diskLength = ByteCount((Int(sectors) + 4) * 512)

    static func counter(_ stages: Int, _ rounds: Int, _ seed: UInt64) -> GuestProgram {
        .counter(stages: stages, roundsPerStage: rounds, partLength: partLength, seed: seed)
    }

    static func model(processors: Int, _ stages: Int, _ rounds: Int, _ seed: UInt64) -> CounterModel {
        CounterModel(processors: processors, stages: stages, roundsPerStage: rounds, partLength: partLength, seed: seed)
    }

    static func disk(_ requests: Int, _ seed: UInt64) -> GuestProgram { .disk(requests: requests, sectors: sectors, seed: seed) }

    /// What each processor leaves, with a disk of its own, and what is printed.
    static func model(_ requests: Int, _ seed: UInt64, disks: Int = 1) -> (output: String, processors: [DiskModel]) {
        let models = (0..<disks).map {
            DiskModel(processor: $0, requests: requests, sectors: sectors, seed: seed, disk: diskContent(seed, $0))
        }
        return (UInt64(folding: models.map(\.digest)).printed, models)
    }

    /// Disks with their first content; to be closed.
    static func disks(_ count: Int, _ seed: UInt64) -> [TestDisk] {
        (0..<count).map { TestDisk(diskContent(seed, $0), seed: seed &+ UInt64($0)) }
    }

    static func diskContent(_ seed: UInt64, _ index: Int = 0) -> [UInt8] {
        var random = SeededGenerator(seed: seed, UInt64(index))
        return (0..<diskLength.int).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    static func memory(_ sharing: GuestMemory.Sharing = .shared, _ pages: GuestMemory.Pages = .base) throws -> GuestMemory {
        try GuestMemory("ram", byteLength: memoryLength, pages: pages, sharing: sharing)
    }
}
