// `ckstore read`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Read: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Print bytes of a region.",
        discussion: """
            Writes the bytes as they are, or as a dump with --hex. Reads just what it needs, and verifies it.

            Example:
              ckstore read vm.ck mon ram --offset 0x1000 --length 256 --hex
              ckstore read vm.ck mon vda --length 512 > boot-sector
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @Argument(help: "The name of the region.")
    var region: String
    @Option(help: ArgumentHelp("The first byte (default: 0).", valueName: "size"), transform: { try Size(parsing: $0) })
    var offset: Size?
    @Option(help: ArgumentHelp("How many bytes (default: up to the end).", valueName: "size"), transform: { try Size(parsing: $0) })
    var length: Size?
    @Flag(help: "Print a dump: offset, bytes, text.")
    var hex = false
    @OptionGroup var generation: GenerationOption
    @Flag(help: "Print an error, if there is one, as JSON on standard output.")
    var json = false

    private static let chunkBytes = 1 << 20

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let reader = try store.snapshot().reader(named: name).region(region)
        let end = reader.info.byteLength.rawValue
        let start = offset?.bytes.rawValue ?? 0
        guard start <= end, (length?.bytes.rawValue ?? 0) <= end - start else {
            throw StoreError(
                .invalidInput, "offset \(start) and length \(length?.bytes.rawValue ?? 0) reach behind its \(end) bytes",
                remedy: "Read less.", medium: store.medium.name, checkpoint: name, region: region)
        }
        try copy(reader, start..<start + (length?.bytes.rawValue ?? end - start))
    }

    private func copy(_ reader: RegionReader, _ range: Range<UInt64>) throws {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(min(UInt64(Self.chunkBytes), UInt64(range.count))), alignment: 64)
        defer { unsafe buffer.deallocate() }
        var position = range.lowerBound
        while position < range.upperBound {
            let count = Int(min(range.upperBound - position, UInt64(buffer.count)))
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
            unsafe try reader.read(at: ByteCount(position), into: piece)
            if hex {
                try unsafe StandardOutput.write(Self.dump(UnsafeRawBufferPointer(piece), at: position))
            } else {
                unsafe try StandardOutput.write(UnsafeRawBufferPointer(piece))
            }
            position += UInt64(count)
        }
    }

    /// Lines of 16 bytes: where, the bytes, and those of them that are text.
    static func dump(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> String {
        let digits = Array("0123456789abcdef".utf8)
        var text: [UInt8] = []
        for start in stride(from: 0, to: bytes.count, by: 16) {
            let line = unsafe Array(bytes[start..<min(start + 16, bytes.count)])
            let place = offset + UInt64(start)
            for shift in stride(from: 44, through: 0, by: -4) { text.append(digits[Int(place >> UInt64(shift) & 15)]) }
            for column in 0..<16 {
                text += column == 8 ? [32, 32] : [32]
                if column < line.count {
                    let byte = line[column]
                    text += [digits[Int(byte >> 4)], digits[Int(byte & 15)]]
                } else {
                    text += [32, 32]
                }
            }
            text += [32, 32, UInt8(ascii: "|")]
            for byte in line { text.append((0x20...0x7E).contains(byte) ? byte : UInt8(ascii: ".")) }
            text += [UInt8(ascii: "|"), 10]
        }
        return String(decoding: text, as: UTF8.self)
    }
}
