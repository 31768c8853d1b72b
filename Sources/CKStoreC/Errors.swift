// Errors as C sees them: a number, and texts of fixed size.
//
// Invariants:
// - A number once given to a code stays; codes without one are CKSTORE_OTHER.
// - No text is cut in the middle of a character, and one that is cut says so.

import CKStoreHeader
import CheckpointStore
import Glibc
import Units

/// The codes with their numbers.
private let numberedCodes: [(code: StoreError.Code, number: ckstore_code)] = [
    (.notAStore, CKSTORE_NOT_A_STORE), (.corrupt, CKSTORE_CORRUPT), (.truncated, CKSTORE_TRUNCATED),
    (.unsupported, CKSTORE_UNSUPPORTED), (.wrongBase, CKSTORE_WRONG_BASE), (.noSpace, CKSTORE_NO_SPACE),
    (.busy, CKSTORE_BUSY), (.readOnly, CKSTORE_READ_ONLY_STORE), (.storeFailed, CKSTORE_STORE_FAILED),
    (.notFound, CKSTORE_NOT_FOUND), (.exists, CKSTORE_EXISTS), (.invalidInput, CKSTORE_INVALID_ARGUMENT),
    (.ioFailed, CKSTORE_IO_FAILED), (.cancelled, CKSTORE_CANCELLED), (.permission, CKSTORE_PERMISSION),
]

extension ckstore_code {
    /// The number as functions return it.
    var result: Int32 { Int32(rawValue) }
}

extension StoreError {
    /// The error's number in C.
    var result: Int32 { (numberedCodes.first { $0.code == code }?.number ?? CKSTORE_OTHER).result }

    /// A mistake in the arguments of a call.
    static func argument(_ reason: String, remedy: String = "") -> StoreError {
        StoreError(.invalidInput, reason, remedy: remedy)
    }
}

/// Writes an error, or success, where the caller wants it.
func report(_ error: StoreError?, to target: UnsafeMutablePointer<ckstore_error>?) {
    guard let target = unsafe target else { return }
    guard let error else {
        unsafe clear(target)
        return
    }
    unsafe target.pointee.code = error.result
    unsafe target.pointee.reserved_flags = 0
    unsafe target.pointee.offset_bytes = error.offset?.rawValue ?? .max
    unsafe target.pointee.first_page = error.pages?.lowerBound.rawValue ?? .max
    unsafe target.pointee.page_count = error.pages.map { ($0.upperBound - $0.lowerBound).rawValue } ?? 0
    unsafe target.pointee.reserved = (0, 0, 0, 0)
    unsafe put(error.description, in: &target.pointee.message)
    unsafe put(error.reason, in: &target.pointee.reason)
    unsafe put(error.remedy, in: &target.pointee.remedy)
    unsafe put(error.medium, in: &target.pointee.medium)
    unsafe put(error.checkpoint ?? "", in: &target.pointee.checkpoint)
    unsafe put(error.region ?? "", in: &target.pointee.region)
}

/// Success: every text is empty. Cheap, since it is done by every call.
private func clear(_ target: UnsafeMutablePointer<ckstore_error>) {
    unsafe target.pointee.code = CKSTORE_OK.result
    unsafe target.pointee.reserved_flags = 0
    unsafe target.pointee.offset_bytes = .max
    unsafe target.pointee.first_page = .max
    unsafe target.pointee.page_count = 0
    unsafe target.pointee.reserved = (0, 0, 0, 0)
    unsafe target.pointee.message.0 = 0
    unsafe target.pointee.reason.0 = 0
    unsafe target.pointee.remedy.0 = 0
    unsafe target.pointee.medium.0 = 0
    unsafe target.pointee.checkpoint.0 = 0
    unsafe target.pointee.region.0 = 0
}

/// Fills an array of characters with `text` and a zero byte.
private func put<Characters: BitwiseCopyable>(_ text: String, in characters: inout Characters) {
    unsafe withUnsafeMutableBytes(of: &characters) { room in
        let fitting = cut(text, to: room.count - 1)
        var length = 0
        for byte in fitting.utf8 {
            // A zero byte inside would hide the rest.
            unsafe room[length] = byte == 0 ? UInt8(ascii: "?") : byte
            length += 1
        }
        unsafe room[length] = 0
    }
}

/// `text` if it has at most `limit` bytes, else its beginning and "...".
private func cut(_ text: String, to limit: Int) -> String {
    guard text.utf8.count > limit else { return text }
    var end = text.utf8.index(text.startIndex, offsetBy: limit - 3)
    while !text.unicodeScalars.indices.contains(end) { end = text.utf8.index(before: end) }
    return text[..<end] + "..."
}

// MARK: functions

@c @implementation
public func ckstore_abi_version() -> UInt32 { UInt32(CKSTORE_ABI_VERSION) }

@c @implementation
public func ckstore_error_message(_ error: UnsafePointer<ckstore_error>?) -> UnsafePointer<CChar>? {
    guard let error = unsafe error else { return unsafe ckstore_code_name(CKSTORE_OK.result) }
    guard unsafe error.pointee.message.0 != 0 else { return unsafe ckstore_code_name(error.pointee.code) }
    let base = unsafe UnsafeRawPointer(error)
    guard let offset = MemoryLayout<ckstore_error>.offset(of: \.message) else {
        preconditionFailure("a field of a C struct has an offset")
    }
    return unsafe (base + offset).assumingMemoryBound(to: CChar.self)
}

@c @implementation
public func ckstore_code_name(_ code: Int32) -> UnsafePointer<CChar>? {
    unsafe codeNames.name(of: code)
}

/// The codes' names as constant C strings.
@safe private struct CodeNames: @unchecked Sendable {
    private var names: [Int32: UnsafePointer<CChar>] = unsafe [:]
    private let other: UnsafePointer<CChar>

    init() {
        unsafe other = Self.constant("other")
        unsafe names[CKSTORE_OK.result] = unsafe Self.constant("ok")
        for (code, number) in numberedCodes { unsafe names[number.result] = unsafe Self.constant(code.rawValue) }
    }

    func name(of code: Int32) -> UnsafePointer<CChar> { unsafe names[code] ?? other }

    /// A copy that lives as long as the process.
    private static func constant(_ text: String) -> UnsafePointer<CChar> {
        guard let copy = unsafe strdup(text) else { preconditionFailure("out of memory") }
        return unsafe UnsafePointer(copy)
    }
}
private let codeNames = CodeNames()
