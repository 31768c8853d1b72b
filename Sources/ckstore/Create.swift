// `ckstore create`.
//
// Invariant: a create that fails removes the file that it has made.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Create: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make an empty store.",
        discussion: """
            A file takes the space that checkpoints need, up to its size; the default is 8G. A device is used whole. \
            Shared memory (ram:) needs a size. A store can be resized later.

            Example:
              ckstore create vm.ck --size 64G
              ckstore create raw:/dev/sdb1
              ckstore create ram:scratch --size 2G
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        help: ArgumentHelp("How large the store is (default for file: and flash: 8G).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var size: Size?
    @Option(
        help: ArgumentHelp("The unit that space is given out in: a multiple of 2M is best (default: 2M).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var segment: Size?
    @Flag(help: "Replace what is there: a store with all its checkpoints, another file, a file system.")
    var force = false
    @OptionGroup var output: OutputOptions

    private static let defaultSize = ByteCount.gibibytes(8)

    func validate() throws {
        if target.store.kind == .ram, size == nil { throw ValidationError("ram: needs --size, for example --size 2G.") }
    }

    func run() throws {
        let size = size?.bytes ?? (target.store.kind == .raw ? nil : Self.defaultSize)
        let options = CreateOptions(segmentSize: segment?.bytes ?? .mebibytes(2), force: force)
        let wasThere = try checkContent(size, options)
        let medium = try createMedium(target.store, size: size, force: force)
        let store: CheckpointStore
        do { store = try CheckpointStore.create(on: medium, options: options) } catch {
            medium.close()
            if !wasThere { try? removeMedium(target.store) }
            throw error
        }
        defer { store.close() }
        let result = Result(
            medium: medium.name, uuid: store.uuid.description, sizeBytes: medium.size.rawValue,
            segmentBytes: UInt64(store.geometry.segmentSize), segmentCount: UInt64(store.geometry.segmentCount))
        try output.report(result, summary: "created \(medium.name), \(readable(medium.size))\n")
    }

    /// True unless there is surely nothing. Throws when what is there would be lost for a store that can't be.
    private func checkContent(_ size: ByteCount?, _ options: CreateOptions) throws -> Bool {
        let medium: any Medium
        do { medium = try openMedium(target.store, access: .readWrite) } catch { return error.code != .notFound }
        defer { medium.close() }
        try CheckpointStore.checkCreate(on: medium, size: size ?? medium.size, options: options)
        return true
    }

    private struct Result: Encodable {
        var medium: String
        var uuid: String
        var sizeBytes: UInt64
        var segmentBytes: UInt64
        var segmentCount: UInt64
    }
}
