// Hashes against values from another implementation's bindings; compression and the scan for zeros.

import PageCodec
import Testing
import Units

@Suite struct `Page codec` {
    /// Bytes that the expected hashes below were made from, by the Python package xxhash.
    private func pattern(_ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 * 131 + 7 * ($0 >> 8) + 3) }
    }

    @Test func `block checksums are XXH3 with 128 bits and seed 0`() {
        for (length, hash) in [
            (0, "99aa06d3014798d86001c324468d497f"), (1, "22bbb76b211a39ba13e608bc156defed"),
            (3, "a7141a4d6424893f974a8c6fa70c32a8"), (16, "f3e407b341dfba3134dbab61519e4476"),
            (17, "1879de0d8e7d0625980d68f6d41eb28d"), (64, "5a9fdc7e54436be86796c847ecbd7dcb"),
            (129, "cce6effe0dedc24455387bdda5accd8f"), (240, "7db5606af28958ff1b7ccd7ad717c030"),
            (241, "bcb184a76a650df6ef630bb6bb6cfe02"), (1000, "023b86a2e2bb48ba6ed261d4657614ce"),
            (4096, "48d0c9f6fccfbd5e6d254ae790a56d8b"), (65536, "4ee9bd0ffb9a7f44f6a4c3d66e435de9"),
        ] {
            let bytes = pattern(length)
            #expect(unsafe bytes.withUnsafeBytes { unsafe hash128($0) }.description == hash, "\(length) bytes")
            #expect(unsafe hash128(bytes.span.bytes).description == hash, "\(length) bytes")
        }
    }

    @Test func `page hashes are XXH3 with 128 bits under the seed`() {
        let page = pattern(4096)
        for (seed, hash) in [
            (UInt64(0), "48d0c9f6fccfbd5e6d254ae790a56d8b"), (1, "f3fb1b456db2906276acf4493b218772"),
            (0x9E37_79B9_7F4A_7C15, "fbaefdeb300adeded8fdd932d9a8ca59"),
        ] {
            let found = unsafe page.withUnsafeBytes { unsafe pageHash($0.baseAddress!, seed: seed) }
            #expect(found.description == hash, "seed \(seed)")
        }
    }

    @Test func `region keys are XXH3 with 64 bits of the name`() {
        for (name, key) in [
            ("ram0", UInt64(0x0f1a_0536_4fdd_e1e2)), ("disk/0", 0x8ea6_3e2e_e213_637e), ("ä", 0x5430_6467_6a70_b4b4),
            ("pc.ram", 0x45bb_88ee_7eae_bad4), ("", 0x2d06_8005_38d3_94c2),
        ] {
            #expect(regionKey(name) == RegionKey(key), "\(name)")
        }
    }

    @Test func `one byte that is not zero is found wherever it is`() {
        var bytes = [UInt8](repeating: 0, count: 700)
        func isZeroRange(_ range: Range<Int>) -> Bool {
            unsafe bytes.withUnsafeBytes { unsafe isZero(UnsafeRawBufferPointer(rebasing: $0[range])) }
        }
        #expect(isZeroRange(0..<0) && isZeroRange(0..<700))
        #expect(unsafe isZero(UnsafeRawBufferPointer(start: nil, count: 0)))
        for at in 0..<700 {
            bytes[at] = 0x80
            for start in [0, 1, 7, 8, 63] where start <= at {
                #expect(!isZeroRange(start..<700), "byte \(at) from \(start)")
                #expect(!isZeroRange(start..<(at + 1)), "byte \(at) last, from \(start)")
                #expect(isZeroRange(start..<at), "byte \(at) just behind, from \(start)")
            }
            bytes[at] = 0
        }
    }

    private func compressed(_ bytes: [UInt8], room: Int) -> [UInt8]? {
        var compressor = RunCompressor()
        var block = [UInt8](repeating: 0, count: room)
        let length = unsafe bytes.withUnsafeBytes { source in
            unsafe block.withUnsafeMutableBytes { unsafe compressor.compress(source, into: $0) }
        }
        return length.map { [UInt8](block[..<$0]) }
    }

    private func decompressed(_ block: [UInt8], _ length: Int, of total: Int? = nil) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: length)
        let isSound = unsafe block.withUnsafeBytes { source in
            unsafe bytes.withUnsafeMutableBytes { room in
                total.map { unsafe decompressPrefix(source, into: room, totalLength: $0) }
                    ?? (unsafe decompress(source, into: room))
            }
        }
        return isSound ? bytes : nil
    }

    @Test func `what gets smaller is compressed and comes back`() throws {
        let bytes = [UInt8]((0..<256).flatMap { _ in pattern(256) })
        let block = try #require(compressed(bytes, room: bytes.count))
        #expect(block.count < bytes.count)
        #expect(decompressed(block, bytes.count) == bytes)
        #expect(decompressed(block, bytes.count - 1) == nil && decompressed(block, bytes.count + 1) == nil)
        #expect(decompressed([UInt8](block.dropLast()), bytes.count) == nil && decompressed([], 4096) == nil)
        #expect(compressed(bytes, room: block.count) == block && compressed(bytes, room: block.count - 1) == nil)
        for length in [1, 4095, 4096, 8192, 65535, 65536] {
            #expect(decompressed(block, length, of: bytes.count) == [UInt8](bytes[..<length]), "\(length) bytes")
        }
        #expect(decompressed([UInt8](block[..<20]), 8192, of: bytes.count) == nil)
    }

    @Test func `what does not get smaller is not compressed`() {
        var random = SeededRandom()
        #expect(compressed(random.bytes(4096), room: 8192) == nil, "seed \(random.seed)")
        #expect(compressed([], room: 100) == nil && compressed([1], room: 100) == nil)
        #expect(compressed([UInt8](repeating: 0, count: 4096), room: 0) == nil)
    }

    @Test func `a compressor keeps nothing of what it did before`() {
        var compressor = RunCompressor()
        let pages = [pattern(4096), [UInt8](repeating: 7, count: 65536), pattern(16384)]
        for bytes in pages + pages {
            var block = [UInt8](repeating: 0, count: bytes.count)
            let length = unsafe bytes.withUnsafeBytes { source in
                unsafe block.withUnsafeMutableBytes { unsafe compressor.compress(source, into: $0) }
            }
            #expect(length.map { [UInt8](block[..<$0]) } == compressed(bytes, room: bytes.count))
        }
    }
}
