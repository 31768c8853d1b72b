// Telling the sections of device state apart.
//
// Invariant: sections follow each other without a gap and end exactly at the end-of-stream byte. Where a device's own data looks like
// a footer with another section behind it, the split is wrong; that takes five bytes that agree with the open
// section's own id and a plausible head behind them.

import CheckpointCore

extension DeviceState {
    /// A section's head, and where its data begins.
    private struct Head {
        var section: Section
        var dataStart: Int
    }

    /// The sections of `bytes[..<end]`.
    static func sections(_ bytes: [UInt8], upTo end: Int) throws(EngineError) -> [Section] {
        var sections: [Section] = []
        var position = 0
        var failure: EngineError?
        unsafe bytes.withUnsafeBytes { buffer in
            let blob = unsafe UnsafeRawBufferPointer(rebasing: buffer[..<end])
            while position < end, failure == nil {
                guard let head = unsafe head(blob, at: position) else {
                    failure = corrupt("has no section at byte \(position), where one should be")
                    return
                }
                guard let footer = unsafe footer(blob, of: head) else {
                    failure = corrupt("has a section \(head.section.name) without an end")
                    return
                }
                var section = head.section
                section.data = head.dataStart..<footer
                sections.append(section)
                position = footer + 5
            }
        }
        if let failure { throw failure }
        guard !sections.isEmpty else { throw corrupt("has no section at all") }
        return sections
    }

    private static func head(_ blob: UnsafeRawBufferPointer, at offset: Int) -> Head? {
        var cursor = unsafe FieldCursor(blob)
        cursor.position = offset
        guard cursor.u8() == StreamLayout.Section.full, let id = cursor.u32(), let text = unsafe cursor.countedBytes(),
            let instance = cursor.u32(), let version = cursor.u32(), unsafe !text.isEmpty,
            unsafe text.allSatisfy({ (0x20...0x7e).contains($0) }), let name = unsafe String(validating: text, as: UTF8.self)
        else { return nil }
        let section = Section(name: name, sectionID: id, instance: instance, version: version, data: offset..<offset)
        return Head(section: section, dataStart: cursor.position)
    }

    /// Where the footer of a section begins: the first one that the end or another section's head follows.
    private static func footer(_ blob: UnsafeRawBufferPointer, of head: Head) -> Int? {
        var cursor = unsafe FieldCursor(blob)
        var position = head.dataStart
        while position + 5 <= blob.count {
            defer { position += 1 }
            guard unsafe blob[position] == StreamLayout.Section.footer else { continue }
            cursor.position = position + 1
            guard cursor.u32() == head.section.sectionID else { continue }
            if unsafe cursor.remaining == 0 || self.head(blob, at: cursor.position) != nil { return position }
        }
        return nil
    }
}
