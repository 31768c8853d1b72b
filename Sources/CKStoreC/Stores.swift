// Stores in C: create, open, close, delete, verify. ckstore.h is the documentation of every function.

import CKStoreHeader
import CheckpointStore
import Media
import Units

@c @implementation
public func ckstore_create(
    _ locator: UnsafePointer<CChar>?, _ options: UnsafePointer<ckstore_create_options>?,
    _ store: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let result = unsafe try Argument.required(store, "store")
        let place = unsafe try makeLocator(locator)
        let options = unsafe try Argument.options(options, default: ckstore_create_options())
        guard options.reserved == 0 else { throw .argument("a reserved field of the options is not 0") }
        var layout = CreateOptions(force: options.force != 0)
        if options.segment_bytes != 0 { layout.segmentSize = ByteCount(options.segment_bytes) }
        let size = options.medium_bytes == 0 ? nil : ByteCount(options.medium_bytes)
        unsafe result.pointee = handle(try createStore(place, size: size, layout))
    }
}

@c @implementation
public func ckstore_open(
    _ locator: UnsafePointer<CChar>?, _ access: Int32, _ options: UnsafePointer<ckstore_open_options>?,
    _ store: UnsafeMutablePointer<OpaquePointer?>?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let result = unsafe try Argument.required(store, "store")
        let place = unsafe try makeLocator(locator)
        let options = unsafe try Argument.options(options, default: ckstore_open_options())
        let access = try mediumAccess(access)
        let environment = try commitTimeout(options.commit_timeout_milliseconds)
        let generation = options.generation == 0 ? nil : Generation(options.generation)
        unsafe result.pointee = handle(try openStore(place, access, generation, environment))
    }
}

@c @implementation
public func ckstore_close(_ store: OpaquePointer?) { unsafe free(store, as: CheckpointStore.self) }

@c @implementation
public func ckstore_is_read_only(_ store: OpaquePointer?) -> Int32 {
    unsafe peek(store, as: CheckpointStore.self)?.isReadOnly == false ? 0 : 1
}

@c @implementation
public func ckstore_delete(
    _ store: OpaquePointer?, _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ nameCount: Int,
    _ freedSegments: UnsafeMutablePointer<UInt64>?, _ obstacle: UnsafeMutablePointer<ckstore_error>?,
    _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let store = unsafe try object(store, as: CheckpointStore.self, "store")
        let names = unsafe try Argument.required(names, "names")
        guard nameCount > 0 else { throw .argument("there are no names") }
        var all: [String] = []
        for index in 0..<nameCount { all.append(unsafe try Argument.text(names[index], "names[\(index)]")) }
        let result = try store.delete(all)
        if let freedSegments = unsafe freedSegments { unsafe freedSegments.pointee = UInt64(result.freedSegments) }
        unsafe report(result.obstacle, to: obstacle)
    }
}

@c @implementation
public func ckstore_verify(
    _ store: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ options: UnsafePointer<ckstore_verify_options>?,
    _ onDamage: ckstore_damage_function?, _ context: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<ckstore_error>?
) -> Int32 {
    unsafe perform(error) { () throws(StoreError) in
        let store = unsafe try object(store, as: CheckpointStore.self, "store")
        let name = unsafe try Argument.optionalText(name, "name")
        let options = unsafe try Argument.options(options, default: ckstore_verify_options())
        let threads = try Argument.threads(options.thread_count)
        let damages = try store.verify(
            checkpoint: name, options: VerifyOptions(checksPages: options.checks_pages != 0, parallelism: threads)
        ).lostPlaces.map { damage in
            StoreError(
                .corrupt, damage.reason, medium: store.medium.name, offset: damage.offset, checkpoint: damage.checkpoint,
                region: damage.region, pages: damage.pages)
        }
        if let onDamage = unsafe onDamage {
            var one = ckstore_error()
            for damage in damages {
                unsafe report(damage, to: &one)
                unsafe onDamage(context, &one)
            }
        }
        if let first = damages.first { throw first }
    }
}

// MARK: media

private func makeLocator(_ text: UnsafePointer<CChar>?) throws(StoreError) -> Locator {
    let text = unsafe try Argument.text(text, "locator")
    return try onMedium { () throws(MediumError) in try Locator(text) }
}

private func mediumAccess(_ number: Int32) throws(StoreError) -> MediumAccess {
    switch number {
    case CKSTORE_READ_ONLY.number: .readOnly
    case CKSTORE_READ_WRITE.number: .readWrite
    default: throw .argument("there is no access \(number)", remedy: "Use CKSTORE_READ_ONLY or CKSTORE_READ_WRITE.")
    }
}

/// Makes the medium and the store on it, or neither.
private func createStore(_ place: Locator, size: ByteCount?, _ options: CreateOptions) throws(StoreError) -> CheckpointStore {
    let isNew = isAbsent(place)
    let medium = try onMedium { () throws(MediumError) in try createMedium(place, size: size, force: options.force) }
    do { return try CheckpointStore.create(on: medium, options: options) } catch {
        medium.close()
        // The failure that matters is the first one; an empty file that can't be removed is no worse than it.
        if isNew { try? removeMedium(place) }
        throw error
    }
}

private func openStore(
    _ place: Locator, _ access: MediumAccess, _ generation: Generation?, _ environment: StoreEnvironment
) throws(StoreError) -> CheckpointStore {
    let medium = try onMedium { () throws(MediumError) in try openMedium(place, access: access) }
    do { return try CheckpointStore.open(medium, generation: generation, environment: environment) } catch {
        medium.close()
        throw error
    }
}

/// The usual environment with the time that C wants to wait for commits.
private func commitTimeout(_ milliseconds: UInt64) throws(StoreError) -> StoreEnvironment {
    switch milliseconds {
    case 0: return StoreEnvironment()
    case .max: return StoreEnvironment(commitTimeout: nil)
    default:
        guard milliseconds <= UInt64(UInt32.max) else {
            throw .argument("\(milliseconds) ms are too long to wait", remedy: "Use CKSTORE_NONE to wait for ever.")
        }
        return StoreEnvironment(commitTimeout: .milliseconds(Int64(milliseconds)))
    }
}

private func isAbsent(_ place: Locator) -> Bool {
    do {
        try openMedium(place, access: .readOnly).close()
        return false
    } catch { return error.code == .notFound }
}

/// Runs an operation of a medium and turns its error into the store's.
private func onMedium<T>(_ body: () throws(MediumError) -> T) throws(StoreError) -> T {
    do { return try body() } catch { throw StoreError(error) }
}
