// Copy-on-write files and images on the simulated media of the crash harness.

import CheckpointCore
import FaultHarness
import Media
import Threading
import Units
import VirtualDisks

extension EngineError {
    init(_ error: MediumError) {
        self.init(error.code == .noSpace ? .noSpace : .ioFailed, error.reason, place: error.medium)
    }
}

func onMedium<T>(_ body: () throws(MediumError) -> T) throws(EngineError) -> T {
    do { return try body() } catch { throw EngineError(error) }
}

/// A file on a simulated medium of fixed size.
final class FaultStorage: CowStorage {
    let name: String
    private let medium: FaultMedium
    private let afterEach: @Sendable () -> Void

    init(_ device: SimulatedDevice, afterEach: @escaping @Sendable () -> Void = {}) {
        medium = FaultMedium(device)
        name = medium.name
        self.afterEach = afterEach
    }

    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Int {
        guard offset.rawValue < medium.size.rawValue else { return 0 }
        let count = min(buffer.count, (MediumOffset(medium.size.rawValue) - offset).int)
        try onMedium { () throws(MediumError) in
            unsafe try medium.read(at: offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
        }
        return count
    }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        defer { afterEach() }
        try onMedium { () throws(MediumError) in unsafe try medium.write(at: offset, bytes) }
    }

    func flush() throws(EngineError) {
        defer { afterEach() }
        try onMedium { () throws(MediumError) in try medium.flush() }
    }

    func remove() throws(EngineError) {}
}

/// An image on a simulated medium; requests are done before the calls return.
final class FaultBackend: DiskBackend {
    let name: String
    let byteLength: ByteCount
    private let medium: FaultMedium
    private let afterEach: @Sendable () -> Void

    init(_ device: SimulatedDevice, afterEach: @escaping @Sendable () -> Void = {}) {
        medium = FaultMedium(device)
        name = medium.name
        byteLength = device.size
        self.afterEach = afterEach
    }

    func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        completion(
            Result { () throws(EngineError) in
                try onMedium { () throws(MediumError) in unsafe try medium.read(at: MediumOffset(offset.rawValue), into: bytes.bytes) }
            })
    }

    func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        let result = Result { () throws(EngineError) in
            try onMedium { () throws(MediumError) in
                unsafe try medium.write(at: MediumOffset(offset.rawValue), UnsafeRawBufferPointer(bytes.bytes))
            }
        }
        afterEach()
        completion(result)
    }

    func flush(_ completion: @escaping DiskCompletion) {
        let result = Result { () throws(EngineError) in try onMedium { () throws(MediumError) in try medium.flush() } }
        afterEach()
        completion(result)
    }
}
