// Writing checkpoints in C. ckstore.h is the documentation of every function.

import CKStoreHeader
import CheckpointStore
import Units

@c @implementation
public func ckstore_begin(
    _ store: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ parent: UnsafePointer<CChar>?,
    _ options: UnsafePointer<ckstore_writer_options>?, _ writer: UnsafeMutablePointer<OpaquePointer?>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let store = unsafe try object(store, as: CheckpointStore.self, "store")
        let result = unsafe try Argument.required(writer, "writer")
        let name = unsafe try Argument.text(name, "name")
        let parent = unsafe try Argument.optionalText(parent, "parent")
        let options = unsafe try Argument.options(options, default: ckstore_writer_options())
        guard options.reserved == 0 else { throw .argument("a reserved field of the options is not 0") }
        let threads = try Argument.threads(options.thread_count)
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: threads))
        unsafe result.pointee = handle(WriterHandle(writer, of: store))
    }
}

@c @implementation
public func ckstore_writer_id(_ writer: OpaquePointer?) -> UInt64 {
    unsafe peek(writer, as: WriterHandle.self)?.writer.id.rawValue ?? 0
}

@c @implementation
public func ckstore_add_region(
    _ writer: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ kind: Int32, _ lengthBytes: UInt64,
    _ region: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(writer, as: WriterHandle.self, "writer")
        let result = unsafe try Argument.required(region, "region")
        let name = unsafe try Argument.text(name, "name")
        let kind = try Argument.kind(kind)
        let length = lengthBytes == .max ? nil : ByteCount(lengthBytes)
        let region = try handle.use { writer throws(StoreError) in
            handle.region(try writer.addRegion(name, kind: kind, byteLength: length))
        }
        unsafe result.pointee = OpaquePointer(Unmanaged.passUnretained(region).toOpaque())
    }
}

@c @implementation
public func ckstore_inherit_region(
    _ writer: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(writer, as: WriterHandle.self, "writer")
        let name = unsafe try Argument.text(name, "name")
        try handle.use { writer throws(StoreError) in try writer.inheritRegion(name) }
    }
}

@c @implementation
public func ckstore_put_pages(
    _ region: OpaquePointer?, _ firstPage: UInt64, _ bytes: UnsafeRawPointer?, _ lengthBytes: Int, _ mode: Int32,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(region, as: RegionWriterHandle.self, "region")
        let bytes = unsafe try Argument.bytes(bytes, count: lengthBytes, "bytes")
        guard mode == CKSTORE_COPY.number || mode == CKSTORE_STABLE.number else {
            throw .argument("there is no mode \(mode)", remedy: "Use CKSTORE_COPY or CKSTORE_STABLE.")
        }
        let pages = try Argument.pages(firstPage, count: PageCount(covering: ByteCount(bytes.count)).rawValue)
        try handle.use { region throws(StoreError) in
            unsafe try region.write(bytes, at: pages.lowerBound, isStable: mode == CKSTORE_STABLE.number)
        }
    }
}

@c @implementation
public func ckstore_put_page(
    _ region: OpaquePointer?, _ page: UInt64, _ bytes: UnsafeRawPointer?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(region, as: RegionWriterHandle.self, "region")
        let bytes = unsafe try Argument.bytes(bytes, count: pageSize, "bytes")
        let pages = try Argument.pages(page, count: 1)
        try handle.use { region throws(StoreError) in unsafe try region.put(page: pages.lowerBound, bytes) }
    }
}

@c @implementation
public func ckstore_put_zeros(
    _ region: OpaquePointer?, _ firstPage: UInt64, _ pageCount: UInt64, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(region, as: RegionWriterHandle.self, "region")
        let pages = try Argument.pages(firstPage, count: pageCount)
        try handle.use { region throws(StoreError) in try region.putZeros(pages) }
    }
}

@c @implementation
public func ckstore_put_blob(
    _ writer: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ kind: Int32, _ bytes: UnsafeRawPointer?, _ lengthBytes: Int,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(writer, as: WriterHandle.self, "writer")
        let name = unsafe try Argument.text(name, "name")
        let kind = try Argument.kind(kind)
        let bytes = unsafe try Argument.bytes(bytes, count: lengthBytes, "bytes")
        try handle.use { writer throws(StoreError) in unsafe try writer.putBlob(name, kind: kind, bytes) }
    }
}

@c @implementation
public func ckstore_set_label(
    _ writer: OpaquePointer?, _ key: UnsafePointer<CChar>?, _ value: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let handle = unsafe try object(writer, as: WriterHandle.self, "writer")
        let key = unsafe try Argument.text(key, "key")
        let value = unsafe try Argument.text(value, "value")
        try handle.use { writer throws(StoreError) in try writer.setLabel(key, value) }
    }
}

// MARK: ending

@c @implementation
public func ckstore_commit(_ writer: OpaquePointer?, _ error: UnsafeMutablePointer<ckstore_error>?) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        try commit([unsafe try object(writer, as: WriterHandle.self, "writer")])
    }
}

@c @implementation
public func ckstore_commit_group(
    _ writers: UnsafePointer<OpaquePointer?>?, _ writerCount: Int, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let writers = unsafe try Argument.required(writers, "writers")
        guard writerCount > 0 else { throw .argument("there are no writers") }
        var handles: [WriterHandle] = []
        for index in 0..<writerCount {
            handles.append(unsafe try object(writers[index], as: WriterHandle.self, "writers[\(index)]"))
        }
        try commit(handles)
    }
}

@c @implementation
public func ckstore_cancel(_ writer: OpaquePointer?) { unsafe peek(writer, as: WriterHandle.self)?.writer.cancel() }

@c @implementation
public func ckstore_abort(_ writer: OpaquePointer?) { unsafe peek(writer, as: WriterHandle.self)?.abort() }

@c @implementation
public func ckstore_writer_free(_ writer: OpaquePointer?) { unsafe free(writer, as: WriterHandle.self) }

/// Commits together what different, open writers of one store have; otherwise leaves all of them as they are.
private func commit(_ handles: [WriterHandle]) throws(StoreError) {
    let store = handles[0].store
    guard handles.allSatisfy({ $0.store === store }) else { throw .argument("the writers are of different stores") }
    guard Set(handles.map(ObjectIdentifier.init)).count == handles.count else { throw .argument("a writer is named twice") }
    for (index, handle) in handles.enumerated() where !handle.close() {
        for closed in handles[..<index] { closed.reopen() }
        throw handle.ended
    }
    try store.commit(handles.map(\.writer))
}
