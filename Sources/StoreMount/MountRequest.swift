// One request of the kernel, and the ways to answer it.
//
// Invariant: each request is answered once; whoever has it sees to that.

import CStoreMount
import Glibc

/// A request that has not been answered. The answers' meanings are those of the C functions of their names.
@safe struct MountRequest: Sendable {
    nonisolated(unsafe) private let pointer: OpaquePointer

    init(_ pointer: OpaquePointer) { unsafe self.pointer = pointer }

    func fail(_ number: Int32) { unsafe ck_reply_error(pointer, number) }

    func answer(_ node: ck_node) {
        var node = node
        unsafe ck_reply_node(pointer, &node)
    }

    /// There is no such name.
    func answerNoName(seconds: Double) { unsafe ck_reply_no_name(pointer, seconds) }

    func answer(attributes node: ck_node) {
        var node = node
        unsafe ck_reply_attributes(pointer, &node)
    }

    func answer(link target: String) { unsafe ck_reply_link(pointer, target) }

    func answer(file handle: UInt64, _ caching: ck_caching) { unsafe ck_reply_file(pointer, handle, caching) }

    func answer(folder handle: UInt64, isConstant: Bool) { unsafe ck_reply_folder(pointer, handle, isConstant) }

    func answer(_ pieces: borrowing Pieces) {
        unsafe pieces.vectors.withUnsafeBufferPointer { unsafe ck_reply_pieces(pointer, $0.baseAddress, $0.count) }
    }

    func answer(_ bytes: UnsafeRawBufferPointer) {
        var piece = unsafe iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        unsafe ck_reply_pieces(pointer, &piece, bytes.isEmpty ? 0 : 1)
    }

    func answer(offset: UInt64) { unsafe ck_reply_offset(pointer, offset) }

    func answer(_ space: ck_space) {
        var space = space
        unsafe ck_reply_space(pointer, &space)
    }

    /// Adds an entry to a listing that is to be the answer. Returns the bytes that it takes; nil: it does not fit.
    func add(
        _ name: String, _ node: ck_node, next: UInt64, withAttributes: Bool, to room: UnsafeMutableRawBufferPointer
    ) -> Int? {
        var node = node
        let length = unsafe ck_listing_add(pointer, room.baseAddress, room.count, name, &node, next, withAttributes)
        return length == 0 ? nil : length
    }
}
