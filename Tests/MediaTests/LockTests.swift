import Foundation
import Media
import Synchronization
import Testing
import Units

/// A store in a scratch directory and two handles on it.
private struct TwoHandles {
    let directory: ScratchDirectory
    let one, two: any Medium

    init() throws {
        directory = try ScratchDirectory()
        one = try createMedium(directory.locator(), size: .mebibytes(1))
        two = try openMedium(directory.locator(), access: .readWrite)
    }

    func close() {
        one.close()
        two.close()
    }
}

@Test func `an exclusive lock excludes every other handle, and no shared one excludes a shared one`() throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    let (one, two) = (handles.one.locks, handles.two.locks)
    let range = LockRange(start: 10, count: 5)
    #expect(try one.tryLock(range, .exclusive))
    #expect(try one.isFree(range, for: .exclusive), "one's own lock is in nobody's way")
    for mode in [LockMode.shared, .exclusive] {
        #expect(try !two.tryLock(range, mode))
        #expect(try !two.isFree(range, for: mode))
    }
    #expect(try one.tryLock(range, .shared), "a lock taken again changes its mode")
    #expect(try two.tryLock(range, .shared))
    #expect(try !two.tryLock(range, .exclusive))
    #expect(try !one.isFree(range, for: .exclusive))
    #expect(try one.isFree(range, for: .shared))
    try one.unlock(range)
    #expect(try two.tryLock(range, .exclusive))
    try one.unlock(range)
    #expect(try !one.tryLock(range, .shared), "giving up what one doesn't hold takes nothing from others")
}

@Test func `locks exclude byte for byte`() throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    let (one, two) = (handles.one.locks, handles.two.locks)
    #expect(try one.tryLock(LockRange(start: 10, count: 10), .exclusive))
    #expect(try two.tryLock(LockRange(start: 9), .exclusive))
    #expect(try two.tryLock(LockRange(start: 20), .exclusive))
    for start in [10, 15, 19] as [UInt64] { #expect(try !two.tryLock(LockRange(start: start), .shared)) }
    #expect(try !two.tryLock(LockRange(start: 0, count: 1000), .shared))
    try one.unlock(LockRange(start: 12, count: 3))
    #expect(try two.tryLock(LockRange(start: 12, count: 3), .exclusive))
    #expect(try !two.tryLock(LockRange(start: 11), .exclusive))
    #expect(try !two.tryLock(LockRange(start: 15), .exclusive))
    // The far end of the lock bytes, and all of them.
    let last = LockRange(start: (1 << 62) - 1)
    #expect(try one.tryLock(last, .exclusive))
    #expect(try !two.tryLock(last, .exclusive))
    #expect(try !two.isFree(LockRange(start: 0, count: 1 << 62), for: .shared))
}

@Test func `waiting for a lock ends with the lock or with the holder's name`() throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    let (one, two) = (handles.one.locks, handles.two.locks)
    let range = LockRange(start: 0)
    try one.lock(range, .exclusive, timeout: nil)
    let error = expectFailure(.busy) { try two.lock(range, .exclusive, timeout: .milliseconds(20)) }
    #expect(error?.reason.contains("process \(getpid())") == true)
    for timeout in [Duration.seconds(60), nil] {
        onThreads(2) { thread in
            do {
                if thread == 0 {
                    try two.lock(range, .exclusive, timeout: timeout)
                } else {
                    usleep(30_000)
                    try one.unlock(range)
                }
            } catch { Issue.record(error) }
        }
        #expect(try !one.isFree(range, for: .shared))
        try two.unlock(range)
        #expect(try one.tryLock(range, .exclusive))
    }
}

@Test func `locks are gone with their handle, and only with it`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        defer { try? removeMedium(locator) }
        let one = try createMedium(locator, size: .mebibytes(1))
        let two = try openMedium(locator, access: .readWrite)
        #expect(try one.locks.tryLock(LockRange(start: 1), .exclusive))
        // A third handle's closing takes nobody's locks away, as it would with the old kind of lock.
        let three = try openMedium(locator, access: .readWrite)
        _ = try three.bytes(at: 0, count: 4096)
        three.close()
        #expect(try !two.locks.tryLock(LockRange(start: 1), .shared))
        #expect(lastingHolders(of: LockRange(start: 1), seenBy: two) == [getpid()])
        _ = try one.bytes(at: 0, count: 4096)
        one.close()
        #expect(try two.locks.tryLock(LockRange(start: 1), .exclusive))
        two.close()
    }
}

@Test func `a handle's end frees its locks at once, even while processes are being spawned`() throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    let locator = try handles.directory.locator(), other = handles.two.locks
    let spawned = Atomic(0)
    onThreads(2) { thread in
        do {
            while spawned.load(ordering: .relaxed) < 40 {
                if thread == 0 {
                    // Shares every descriptor with this process until it executes.
                    try run("true")
                    spawned.add(1, ordering: .relaxed)
                } else {
                    let medium = try openMedium(locator, access: .readWrite)
                    let range = LockRange(start: 1)
                    guard try medium.locks.tryLock(range, .exclusive) else { throw Failed(text: "not free") }
                    medium.close()
                    guard try other.tryLock(range, .exclusive) else { throw Failed(text: "still held") }
                    try other.unlock(range)
                }
            }
        } catch {
            spawned.store(40, ordering: .relaxed)
            Issue.record(error)
        }
    }
}

@Test func `another process is excluded and sees who holds the lock`() async throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    #expect(try handles.one.locks.tryLock(LockRange(start: 5), .exclusive))
    let path = handles.directory.file(), process = getpid()
    await #expect(processExitsWith: .success) { [path = path as String, process = process as Int32] in
        for access in [MediumAccess.readOnly, .readWrite] {
            let medium = try openMedium(Locator(kind: .file, target: path), access: access)
            try #require(try !medium.locks.tryLock(LockRange(start: 5), .shared))
            try #require(try medium.locks.tryLock(LockRange(start: 6), .shared))
            try #require(lastingHolders(of: LockRange(start: 5), seenBy: medium) == [process])
            try #require(medium.locks.holders(of: LockRange(start: 5)).allSatisfy { !$0.command.isEmpty })
            try #require(medium.locks.holders(of: LockRange(start: 7)).isEmpty)
            medium.close()
        }
    }
}

@Test func `a killed process leaves no lock behind`() async throws {
    let handles = try TwoHandles()
    defer { handles.close() }
    let path = handles.directory.file()
    await #expect(processExitsWith: .signal(SIGKILL)) { [path = path as String] in
        let medium = try openMedium(Locator(kind: .file, target: path), access: .readWrite)
        try #require(try medium.locks.tryLock(LockRange(start: 0, count: 100), .exclusive))
        kill(getpid(), SIGKILL)
    }
    #expect(try handles.one.locks.tryLock(LockRange(start: 0, count: 100), .exclusive))
}

@Test func `a forked child neither holds its parent's locks nor keeps them alive`() async throws {
    let directory = try ScratchDirectory()
    let path = directory.file()
    await #expect(processExitsWith: .success) { [path = path as String] in
        // Swift hides fork because little is allowed after it; waiting is.
        let symbol = try unsafe #require(dlsym(nil, "fork"))
        let fork = unsafe unsafeBitCast(symbol, to: (@convention(c) () -> pid_t).self)
        let locator = try Locator(kind: .file, target: path)
        let one = try createMedium(locator, size: .mebibytes(1))
        let two = try openMedium(locator, access: .readWrite)
        try #require(try one.locks.tryLock(LockRange(start: 0), .exclusive))
        let child = fork()
        if child == 0 {
            // In the child its copy is dead.
            let refused = (try? one.locks.tryLock(LockRange(start: 0), .exclusive)) == nil
            if !refused { _exit(1) }
            while true { pause() }
        }
        defer { kill(child, SIGKILL) }
        // The child lives, and the lock stays the parent's alone.
        try #require(try !two.locks.tryLock(LockRange(start: 0), .shared))
        one.close()
        usleep(200_000)
        var status: Int32 = 0
        try #require(unsafe waitpid(child, &status, WNOHANG) == 0)
        try #require(try two.locks.tryLock(LockRange(start: 0), .exclusive))
    }
}
