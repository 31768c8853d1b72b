// What a virtual machine monitor implements to have its machines checkpointed while they run.

import CheckpointCore
import MachineMemory
import VirtualDisks

/// A virtual machine of this process.
///
/// Its memory is `GuestMemory`, its disks are `VirtualDisk`s: what its processors and devices do to them goes through those. Devices write
/// memory through `GuestMemory.deviceBytes`. Calls come from one thread at a time, and may block.
public protocol Machine: Sendable {
    /// What people know it by.
    var name: String { get }
    /// For the record in the checkpoint, so that others can tell whether they can load it.
    var identity: MachineIdentity { get }
    var virtualCPUCount: Int { get }
    /// In an order that stays the same; the names differ.
    var memory: [GuestMemory] { get }
    /// In an order that stays the same; the names differ.
    var disks: [VirtualDisk] { get }
    /// Where memory appears in the guest's physical address space, for tools; may be empty.
    var physicalRanges: [MachineRecord.PhysicalRange] { get }

    /// Stops the machine: on return no processor runs and no request is submitted to a disk. Requests under way stay under way, and may
    /// be completed meanwhile.
    /// - Throws: `.timeout` when it does not stop; it runs on then.
    func pause() throws(EngineError)
    /// Lets it run again.
    func resume() throws(EngineError)
    /// Everything but memory and disks, while it is stopped: processors, devices, the disk requests under way.
    func deviceState() throws(EngineError) -> [UInt8]
    /// The same state with the outcomes of requests that were under way when it was captured, all of whose completions have returned: at a restore
    /// they are completed with these, and never executed again. It has the length of `state`.
    func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8]
}

/// Which kind of machine it is.
public struct MachineIdentity: Sendable, Equatable {
    /// "ckstore-reference".
    public var hypervisor: String
    /// "1".
    public var version: String
    /// The hypervisor's name for the set of devices.
    public var machineType: String
    /// "x86_64".
    public var architecture: String

    public init(hypervisor: String, version: String, machineType: String, architecture: String) {
        self.hypervisor = hypervisor
        self.version = version
        self.machineType = machineType
        self.architecture = architecture
    }
}

/// The steps of a checkpoint, numbered as in the method's flow chart [system A, FIG. 2].
public enum LiveStep: Int, Sendable, CaseIterable, Comparable {
    case createOverlays = 802
    case stop = 804
    case markMemory = 806
    case captureDeviceState = 808
    case switchDisks = 810
    /// Only when a read under way is followed by a write under way to the same block.
    case waitForAllRequests = 812
    case resume = 814
    /// From here on reads under way are issued again where needed; not after `waitForAllRequests`.
    case reissueReads = 815
    case saveDeviceState = 820
    case waitForReads = 822
    case saveMemory = 824
    case clearMarks = 828
    case copyDisks = 830
    case recordDisks = 832
    case commitOverlays = 834
    case resumeNormalOperation = 836

    public static func < (a: LiveStep, b: LiveStep) -> Bool { a.rawValue < b.rawValue }
}
