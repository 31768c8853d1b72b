import Foundation
import Media
import Testing
import Units

@Test func `a created file is empty, private and of the size asked for`() throws {
    let directory = try ScratchDirectory()
    let medium = try createMedium(directory.locator(), size: .mebibytes(3))
    defer { medium.close() }
    #expect(medium.size == .mebibytes(3))
    #expect(try medium.bytes(at: 0, count: 3 << 20) == zeros(3 << 20))
    let attributes = try FileManager.default.attributesOfItem(atPath: directory.file())
    #expect(attributes[.posixPermissions] as? Int == 0o600)
}

@Test func `creating over content needs force`() throws {
    let directory = try ScratchDirectory()
    for locator in [
        try directory.locator(), try Locator(kind: .flash, target: directory.file("flash")),
        try Locator(kind: .ram, target: "test-\(UUID())"),
    ] {
        defer { try? removeMedium(locator) }
        let first = try createMedium(locator, size: .mebibytes(1))
        try first.write(pattern(1, count: 100), at: 5000)
        first.close()
        expectFailure(.exists) { _ = try createMedium(locator, size: .mebibytes(2)) }
        let same = try openMedium(locator, access: .readOnly)
        #expect(try same.bytes(at: 5000, count: 100) == pattern(1, count: 100), "\(locator)")
        same.close()
        let second = try createMedium(locator, size: .mebibytes(2), force: true)
        #expect(second.size == .mebibytes(2))
        #expect(try second.bytes(at: 5000, count: 100) == zeros(100), "\(locator)")
        second.close()
    }
}

@Test func `an empty file is no content`() throws {
    let directory = try ScratchDirectory()
    #expect(FileManager.default.createFile(atPath: directory.file(), contents: nil))
    try createMedium(directory.locator(), size: .mebibytes(1)).close()
}

@Test func `not even force takes a store away from its users`() throws {
    let directory = try ScratchDirectory()
    let user = try createMedium(directory.locator(), size: .mebibytes(1))
    defer { user.close() }
    try user.locks.lock(LockRange(start: 7), .shared, timeout: .zero)
    let error = expectFailure(.busy) { _ = try createMedium(directory.locator(), size: .mebibytes(1), force: true) }
    #expect(error?.reason.contains("process \(getpid())") == true)
    #expect(user.size == .mebibytes(1))
}

@Test func `a create that fails leaves no file`() throws {
    let directory = try ScratchDirectory()
    expectFailure(.noSpace) { _ = try createMedium(directory.locator(), size: ByteCount(UInt64(Int64.max))) }
    #expect(!FileManager.default.fileExists(atPath: directory.file()))
    expectFailure(.noSpace) { _ = try createMedium(directory.locator(), size: ByteCount(UInt64.max)) }
    #expect(!FileManager.default.fileExists(atPath: directory.file()))
    expectFailure(.unsupported) { _ = try createMedium(Locator(kind: .flash, target: directory.file())) }
    #expect(!FileManager.default.fileExists(atPath: directory.file()))
}

@Test func `opening what is not there or of another kind says what to do`() throws {
    let directory = try ScratchDirectory()
    expectFailure(.notFound) { _ = try openMedium(directory.locator(), access: .readOnly) }
    expectFailure(.notFound) { _ = try openMedium(Locator("ram:test-\(UUID())"), access: .readOnly) }
    expectFailure(.notFound) { _ = try openMedium(Locator("raw:/dev/no-such-device"), access: .readOnly) }
    expectFailure(.notFound) { _ = try createMedium(Locator("\(directory.path)/none/store.ck"), size: .mebibytes(1)) }
    expectFailure(.invalidLocator) { _ = try openMedium(Locator(directory.path), access: .readOnly) }
    expectFailure(.invalidLocator) { _ = try openMedium(Locator("raw:/dev/null"), access: .readOnly) }
    try run("mkfifo", directory.file("pipe"))
    expectFailure(.invalidLocator) { _ = try openMedium(directory.locator("pipe"), access: .readOnly) }
    expectFailure(.invalidLocator) { _ = try createMedium(directory.locator("pipe"), force: true) }
    try createMedium(directory.locator(), size: .mebibytes(1)).close()
    let error = expectFailure(.invalidLocator) {
        _ = try openMedium(Locator(kind: .raw, target: directory.file()), access: .readOnly)
    }
    #expect(error?.remedy.contains("file:") == true)
}

@Test func `what was removed is gone for openers and stays for its users`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        let user = try createMedium(locator, size: .mebibytes(1))
        defer { user.close() }
        try user.write(pattern(2, count: 64), at: 0)
        try removeMedium(locator)
        expectFailure(.notFound) { _ = try openMedium(locator, access: .readOnly) }
        expectFailure(.notFound) { try removeMedium(locator) }
        #expect(try user.bytes(at: 0, count: 64) == pattern(2, count: 64))
    }
}

@Test func `a handle for reading refuses every change`() throws {
    let directory = try ScratchDirectory()
    for locator in [
        try directory.locator(), try Locator(kind: .flash, target: directory.file("flash")),
        try Locator(kind: .ram, target: "test-\(UUID())"),
    ] {
        defer { try? removeMedium(locator) }
        try createMedium(locator, size: .mebibytes(1)).close()
        let medium = try openMedium(locator, access: .readOnly)
        defer { medium.close() }
        #expect(medium.traits.isReadOnly)
        #expect(medium.traits.kind == locator.kind)
        expectFailure(.readOnly) { try medium.write([1], at: 0) }
        expectFailure(.readOnly) { try medium.reserve(at: .zero, ByteCount(1)) }
        expectFailure(.readOnly) { try medium.discard(at: .zero, ByteCount(4096)) }
        expectFailure(.readOnly) { try medium.resize(to: .mebibytes(2)) }
        expectFailure(.readOnly) { _ = try medium.locks.tryLock(LockRange(start: 0), .exclusive) }
        #expect(try medium.locks.tryLock(LockRange(start: 0), .shared))
        #expect(try medium.bytes(at: 0, count: 4096) == zeros(4096))
    }
}
