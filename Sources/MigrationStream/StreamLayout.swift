// The numbers of QEMU's migration stream that the parser and the writer share.
//
// Invariant: every integer of the stream is big-endian; these constants are the stream's own and never change
// within a version of it.

import CheckpointCore
import Units

/// What a stream is made of. Section types and record flags are those of QEMU's stream version 3.
enum StreamLayout {
    /// "QEVM".
    static let magic: UInt32 = 0x5145_564d
    static let version: UInt32 = 3

    /// The first byte of each section.
    enum Section {
        static let endOfStream: UInt8 = 0x00
        static let start: UInt8 = 0x01
        static let part: UInt8 = 0x02
        static let end: UInt8 = 0x03
        static let full: UInt8 = 0x04
        static let subsection: UInt8 = 0x05
        static let description: UInt8 = 0x06
        static let configuration: UInt8 = 0x07
        static let command: UInt8 = 0x08
        static let footer: UInt8 = 0x7e
    }

    /// The low 12 bits of a memory record's first word; the rest is the page's byte offset within its block.
    enum Flag {
        static let zero: UInt64 = 0x02
        static let memorySize: UInt64 = 0x04
        static let page: UInt64 = 0x08
        static let endOfSection: UInt64 = 0x10
        static let sameBlock: UInt64 = 0x20
        static let mask: UInt64 = 0xfff
    }

    static let ramName = "ram"
    static let ramVersion: UInt32 = 4
    static let capabilitiesName = "configuration/capabilities"
    /// The capability with which each block of the list carries its guest-physical address.
    static let ignoreShared = "x-ignore-shared"

    static let maximumMachineTypeBytes = 256
    static let maximumBlocks = 4096
    static let maximumCapabilities = 64
    /// The longest name that fits its length byte.
    static let maximumNameBytes = 255
}

/// One block of guest RAM as a stream lists it.
public struct StreamRAMBlock: Sendable, Equatable {
    /// QEMU's name for it: "pc.ram", or the id of its memory backend.
    public var name: String
    /// Its length, a multiple of 4096 and not 0.
    public var byteLength: ByteCount
    /// The size of the pages that back it, where the stream tells: streams of a source that can do postcopy tell it of blocks
    /// with huge pages. Nil otherwise.
    public var pageBytes: UInt64?
    /// Where the block starts in its part of the guest's physical address space, where the stream tells (`x-ignore-shared`).
    public var guestPhysicalAddress: UInt64?

    public init(name: String, byteLength: ByteCount, pageBytes: UInt64? = nil, guestPhysicalAddress: UInt64? = nil) {
        self.name = name
        self.byteLength = byteLength
        self.pageBytes = pageBytes
        self.guestPhysicalAddress = guestPhysicalAddress
    }
}
