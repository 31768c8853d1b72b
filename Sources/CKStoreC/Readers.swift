// Looking at checkpoints and reading them in C. ckstore.h is the documentation of every function.

import CKStoreHeader
import CheckpointStore
import Units

// MARK: snapshots

@c @implementation
public func ckstore_open_snapshot(
    _ store: OpaquePointer?, _ snapshot: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let store = unsafe try object(store, as: CheckpointStore.self, "store")
        let result = unsafe try Argument.required(snapshot, "snapshot")
        unsafe result.pointee = handle(try store.snapshot())
    }
}

@c @implementation
public func ckstore_snapshot_free(_ snapshot: OpaquePointer?) { unsafe free(snapshot, as: Snapshot.self) }

@c @implementation
public func ckstore_snapshot_generation(_ snapshot: OpaquePointer?) -> UInt64 {
    unsafe peek(snapshot, as: Snapshot.self)?.generation.rawValue ?? 0
}

// MARK: descriptions

@c @implementation
public func ckstore_region_at(
    _ info: UnsafePointer<ckstore_checkpoint_info>?, _ index: Int
) -> UnsafePointer<ckstore_region_info>? {
    guard let info = unsafe info, unsafe index >= 0 && index < info.pointee.region_count else { return nil }
    return unsafe parts(of: info).regions + index
}

@c @implementation
public func ckstore_label_at(
    _ info: UnsafePointer<ckstore_checkpoint_info>?, _ index: Int
) -> UnsafePointer<ckstore_label>? {
    guard let info = unsafe info, unsafe index >= 0 && index < info.pointee.label_count else { return nil }
    return unsafe parts(of: info).labels + index
}

private func parts(of info: UnsafePointer<ckstore_checkpoint_info>) -> CheckpointParts {
    guard let parts = unsafe info.pointee.internal else { preconditionFailure("the description was not made by this library") }
    return unsafe parts.load(as: CheckpointParts.self)
}

@c @implementation
public func ckstore_list_checkpoints(
    _ snapshot: OpaquePointer?, _ list: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let snapshot = unsafe try object(snapshot, as: Snapshot.self, "snapshot")
        let result = unsafe try Argument.required(list, "list")
        unsafe result.pointee = handle(ListHandle(try snapshot.checkpoints(), of: snapshot))
    }
}

@c @implementation
public func ckstore_list_count(_ list: OpaquePointer?) -> Int { unsafe peek(list, as: ListHandle.self)?.infos.count ?? 0 }

@c @implementation
public func ckstore_list_at(_ list: OpaquePointer?, _ index: Int) -> UnsafePointer<ckstore_checkpoint_info>? {
    guard let infos = unsafe peek(list, as: ListHandle.self)?.infos, infos.indices.contains(index) else { return nil }
    return unsafe infos.baseAddress.map { unsafe $0 + index }
}

@c @implementation
public func ckstore_list_free(_ list: OpaquePointer?) { unsafe free(list, as: ListHandle.self) }

// MARK: checkpoints

@c @implementation
public func ckstore_open_checkpoint(
    _ snapshot: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ checkpoint: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let snapshot = unsafe try object(snapshot, as: Snapshot.self, "snapshot")
        let result = unsafe try Argument.required(checkpoint, "checkpoint")
        let name = unsafe try Argument.text(name, "name")
        unsafe result.pointee = handle(CheckpointHandle(try snapshot.reader(named: name)))
    }
}

@c @implementation
public func ckstore_open_checkpoint_by_id(
    _ snapshot: OpaquePointer?, _ id: UInt64, _ checkpoint: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let snapshot = unsafe try object(snapshot, as: Snapshot.self, "snapshot")
        let result = unsafe try Argument.required(checkpoint, "checkpoint")
        unsafe result.pointee = handle(CheckpointHandle(snapshot.reader(try snapshot.checkpoint(CheckpointID(id)))))
    }
}

@c @implementation
public func ckstore_checkpoint_get_info(_ checkpoint: OpaquePointer?) -> UnsafePointer<ckstore_checkpoint_info>? {
    unsafe peek(checkpoint, as: CheckpointHandle.self)?.info
}

@c @implementation
public func ckstore_checkpoint_free(_ checkpoint: OpaquePointer?) { unsafe free(checkpoint, as: CheckpointHandle.self) }

// MARK: regions

@c @implementation
public func ckstore_open_region(
    _ checkpoint: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ region: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let checkpoint = unsafe try object(checkpoint, as: CheckpointHandle.self, "checkpoint")
        let result = unsafe try Argument.required(region, "region")
        let name = unsafe try Argument.text(name, "name")
        unsafe result.pointee = handle(RegionHandle(try checkpoint.reader.region(name)))
    }
}

@c @implementation
public func ckstore_region_get_info(_ region: OpaquePointer?) -> UnsafePointer<ckstore_region_info>? {
    unsafe peek(region, as: RegionHandle.self)?.info
}

@c @implementation
public func ckstore_region_free(_ region: OpaquePointer?) { unsafe free(region, as: RegionHandle.self) }

@c @implementation
public func ckstore_read_pages(
    _ region: OpaquePointer?, _ firstPage: UInt64, _ buffer: UnsafeMutableRawPointer?, _ bufferBytes: Int,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let reader = unsafe try object(region, as: RegionHandle.self, "region").reader
        let buffer = unsafe try Argument.buffer(buffer, count: bufferBytes, "buffer")
        guard bufferBytes % pageSize == 0 else {
            throw .argument("\(bufferBytes) bytes are no multiple of the page", remedy: "Use ckstore_read_bytes.")
        }
        unsafe try reader.read(pages: try Argument.pages(firstPage, count: UInt64(bufferBytes / pageSize)), into: buffer)
    }
}

@c @implementation
public func ckstore_read_bytes(
    _ region: OpaquePointer?, _ offsetBytes: UInt64, _ buffer: UnsafeMutableRawPointer?, _ lengthBytes: Int,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let reader = unsafe try object(region, as: RegionHandle.self, "region").reader
        unsafe try reader.read(at: ByteCount(offsetBytes), into: try Argument.buffer(buffer, count: lengthBytes, "buffer"))
    }
}

@c @implementation
public func ckstore_read_all(
    _ region: OpaquePointer?, _ buffer: UnsafeMutableRawPointer?, _ bufferBytes: Int,
    _ options: UnsafePointer<ckstore_read_options>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let reader = unsafe try object(region, as: RegionHandle.self, "region").reader
        let buffer = unsafe try Argument.buffer(buffer, count: bufferBytes, "buffer")
        let options = unsafe try Argument.options(options, default: ckstore_read_options())
        let needed = reader.info.pageCount.bytes
        guard UInt64(bufferBytes) >= needed.rawValue else {
            throw .argument("the buffer has \(bufferBytes) bytes, the region's pages take \(needed)")
        }
        unsafe try reader.readAll(
            into: buffer, isZeroed: options.is_zeroed != 0, parallelism: try Argument.threads(options.thread_count))
    }
}
