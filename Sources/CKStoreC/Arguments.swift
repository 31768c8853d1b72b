// What comes from C, checked before it is used; and the frame that every call runs in.
//
// Invariant: nothing that C hands in is trusted but pointers that are not NULL.

import CKStoreHeader
import CheckpointStore
import StoreFormat
import Units

/// Runs `body` and tells C how it went.
func perform(
    _ error: UnsafeMutablePointer<ckstore_error>?, _ body: () throws(StoreError) -> Void
) -> Int32 {
    do {
        try body()
        unsafe report(nil, to: error)
        return CKSTORE_OK.result
    } catch let failure {
        unsafe report(failure, to: error)
        return failure.result
    }
}

/// The most threads that a caller may ask for.
private let maximumThreads: UInt32 = 256
/// The most pages that a region has.
private let maximumPages = UInt64(1) << 51

/// Arguments of a call, checked.
enum Argument {
    static func required<T>(_ pointer: T?, _ name: String) throws(StoreError) -> T {
        guard let pointer else { throw .argument("\(name) is NULL") }
        return pointer
    }

    static func text(_ pointer: UnsafePointer<CChar>?, _ name: String) throws(StoreError) -> String {
        guard let text = unsafe String(validatingCString: try required(pointer, name)) else {
            throw .argument("\(name) is not UTF-8")
        }
        return text
    }

    static func optionalText(_ pointer: UnsafePointer<CChar>?, _ name: String) throws(StoreError) -> String? {
        guard unsafe pointer != nil else { return nil }
        return unsafe try text(pointer, name)
    }

    /// The bytes at `pointer`; none need no pointer.
    static func bytes(_ pointer: UnsafeRawPointer?, count: Int, _ name: String) throws(StoreError) -> UnsafeRawBufferPointer {
        if count == 0 { return unsafe UnsafeRawBufferPointer(start: nil, count: 0) }
        let start = unsafe try required(pointer, name)
        guard count > 0 else { throw .argument("\(name) has \(UInt(bitPattern: count)) bytes, more than there can be") }
        return unsafe UnsafeRawBufferPointer(start: start, count: count)
    }

    /// The room for results at `pointer`; none needs no pointer.
    static func buffer(
        _ pointer: UnsafeMutableRawPointer?, count: Int, _ name: String
    ) throws(StoreError) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(mutating: try bytes(UnsafeRawPointer(pointer), count: count, name))
    }

    /// `count` pages from `first` on.
    static func pages(_ first: UInt64, count: UInt64) throws(StoreError) -> Range<PageIndex> {
        guard first <= maximumPages, count <= maximumPages - first else {
            throw .argument("\(count) pages from page \(first) on are more than a region can have")
        }
        return PageIndex(first)..<PageIndex(first + count)
    }

    static func kind(_ number: Int32) throws(StoreError) -> RegionKind {
        switch number {
        case CKSTORE_MEMORY.number: .memory
        case CKSTORE_DISK.number: .disk
        case CKSTORE_STATE.number: .state
        default: throw .argument("there is no kind of region \(number)")
        }
    }

    /// How many threads to use.
    static func threads(_ count: UInt32) throws(StoreError) -> Int {
        guard count <= maximumThreads else { throw .argument("\(count) threads are too many", remedy: "Ask for at most 256.") }
        return count == 0 ? WriterOptions.defaultParallelism : Int(count)
    }

    /// A struct that may be shorter than this library's (an older program's) or longer (a newer one's); what it
    /// lacks is zero, and what this library does not know must be.
    static func options<T: BitwiseCopyable>(_ pointer: UnsafePointer<T>?, default value: T) throws(StoreError) -> T {
        guard let pointer = unsafe pointer else { return value }
        let start = unsafe UnsafeRawPointer(pointer)
        let size = unsafe start.load(as: Int.self)
        guard size >= MemoryLayout<Int>.size, size <= 4096 else {
            throw .argument("the options' struct_size is \(UInt(bitPattern: size))", remedy: "Set it to the struct's sizeof.")
        }
        let given = unsafe UnsafeRawBufferPointer(start: start, count: size)
        var result = value
        let known = min(size, MemoryLayout<T>.size)
        unsafe withUnsafeMutableBytes(of: &result) { target in
            unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: given[..<known]))
        }
        guard unsafe given[known...].allSatisfy({ $0 == 0 }) else {
            throw .argument("the options ask for something that this library does not know", remedy: "Use a newer libckstore.")
        }
        return result
    }
}

extension ckstore_kind {
    /// The kind as functions take it.
    var number: Int32 { Int32(rawValue) }
}

extension ckstore_access {
    /// The access as functions take it.
    var number: Int32 { Int32(rawValue) }
}

extension ckstore_put_mode {
    /// The mode as functions take it.
    var number: Int32 { Int32(rawValue) }
}
