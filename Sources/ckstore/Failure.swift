// From errors to messages and exit codes.
//
// Invariant: every way to end has one code here, the one that `ckstore --help` lists.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import CheckpointStream
import Glibc
import Media

/// The codes that `ckstore` exits with.
enum ExitStatus {
    static let failed: Int32 = 1
    static let usage: Int32 = 2
    static let corrupt: Int32 = 3
    static let noSpace: Int32 = 4
    static let notFound: Int32 = 5
    static let busy: Int32 = 6

    static func code(for error: StoreError) -> Int32 {
        switch error.code {
        case .invalidInput: usage
        case .notAStore, .corrupt, .truncated, .unsupported, .notAStream, .damagedStream, .cutStream: corrupt
        case .noSpace: noSpace
        case .notFound, .outOfOrder, .foreign: notFound
        case .busy: busy
        case .cancelled: Interruption.received.map { 128 + $0 } ?? failed
        default: failed
        }
    }

    static func code(for error: EngineError) -> Int32 {
        if let storeError = error.storeError { return code(for: storeError) }
        return switch error.code {
        case .invalidInput, .mismatch: usage
        case .corrupt: corrupt
        case .noSpace: noSpace
        case .notFound: notFound
        case .busy: busy
        case .cancelled: Interruption.received.map { 128 + $0 } ?? failed
        default: failed
        }
    }
}

/// Whoever read standard output has gone.
struct BrokenPipe: Error {}

/// How a run ends that did not simply return.
enum Failure {
    /// Help, a version, a completion script: asked for, so no error.
    case answer(String)
    case usage(String)
    case store(StoreError)
    case engine(EngineError)
    /// Everything has been said.
    case silent(Int32)
    case brokenPipe

    init(_ error: any Error) {
        switch error {
        case let error as StoreError: self = .store(error)
        case let error as EngineError: self = .engine(error)
        case let error as MediumError: self = .store(StoreError(error))
        case is BrokenPipe: self = .brokenPipe
        case let error as ExitCode: self = .silent(error.rawValue)
        default:
            let isAnswer = CKStoreCommand.exitCode(for: error).isSuccess
            let text = CKStoreCommand.fullMessage(for: error)
            self = isAnswer ? .answer(text) : .usage(text)
        }
    }

    /// Says it, and ends the process.
    func exit() -> Never {
        switch self {
        case .answer(let text):
            do { try StandardOutput.write(text + "\n") } catch { Failure(error).exit() }
            Glibc.exit(0)
        case .usage(let text):
            let message = text.hasPrefix("Error: ") ? String(text.dropFirst(7)) : text
            Self.report(message, FailureObject(usage: message))
            Glibc.exit(ExitStatus.usage)
        case .store(let error):
            Self.report(error.description, FailureObject(error))
            Glibc.exit(ExitStatus.code(for: error))
        case .engine(let error):
            Self.report(error.description, FailureObject(error))
            Glibc.exit(ExitStatus.code(for: error))
        case .silent(let code):
            Glibc.exit(code)
        case .brokenPipe:
            // As any filter ends whose reader has gone.
            _ = signal(SIGPIPE, SIG_DFL)
            raise(SIGPIPE)
            Glibc.exit(128 + SIGPIPE)
        }
    }

    /// Says it for people, while the command goes on.
    static func report(_ message: String) { standardError("ckstore: \(message)\n") }

    /// Says what went wrong, for people and, where that was asked for, for programs.
    static func report(_ message: String, _ object: FailureObject) {
        standardError("ckstore: \(message)\n")
        guard wantsJSON else { return }
        // Where standard output is what failed, standard error has said it.
        try? StandardOutput.write(json: ErrorEnvelope(error: object))
    }

    /// Known before the arguments are parsed, since their errors are reported as JSON too.
    private static var wantsJSON: Bool { CommandLine.arguments.prefix { $0 != "--" }.contains("--json") }
}

/// `{"error": …}`.
struct ErrorEnvelope: Encodable {
    var error: FailureObject
}

/// An error as JSON. Keys are absent where the error has no such place.
struct FailureObject: Encodable {
    var code: String
    var message: String
    var remedy: String?
    var medium: String?
    var offsetBytes: UInt64?
    var checkpoint: String?
    var region: String?
    var pages: PageRangeObject?
    /// What it concerns otherwise: a socket, a process, a disk, a RAM block.
    var place: String?

    init(_ error: EngineError) {
        self.init(error.storeError ?? StoreError(.init(rawValue: error.code.rawValue), error.reason, remedy: error.remedy))
        if error.storeError == nil, !error.place.isEmpty { place = error.place }
    }

    init(_ error: StoreError) {
        code = error.code.rawValue
        message = error.reason
        remedy = error.remedy.isEmpty ? nil : error.remedy
        medium = error.medium.isEmpty ? nil : error.medium
        offsetBytes = error.offset?.rawValue
        checkpoint = error.checkpoint
        region = error.region
        pages = error.pages.map(PageRangeObject.init)
    }

    /// The first line says what is wrong, the others what would be right.
    init(usage text: String) {
        code = "usage"
        let lines = text.split(separator: "\n", maxSplits: 1)
        message = lines.first.map(String.init) ?? text
        remedy = lines.count > 1 ? String(lines[1]) : nil
    }
}

/// The error for a system call on `path` that just failed with `number`.
func systemError(_ what: String, _ path: String, _ number: Int32 = errno, region: String? = nil) -> StoreError {
    let (code, remedy): (StoreError.Code, String) =
        switch number {
        case ENOENT: (.notFound, "Check the path.")
        case ENOTDIR, EISDIR, ENAMETOOLONG, ELOOP: (.invalidInput, "Check the path.")
        case EEXIST: (.exists, "Choose another name, or use --force to replace it.")
        case EBUSY, ETXTBSY: (.busy, "Somebody else uses it: unmount it or wait until they are done.")
        case ENOSPC, EDQUOT: (.noSpace, "Free space there, then try again.")
        case EFBIG: (.noSpace, "The file system or a process limit does not allow files this large.")
        case EACCES, EPERM, EROFS: (.ioFailed, "Run as a user who may do that, or choose another place.")
        default: (.ioFailed, "")
        }
    let reason = unsafe String(cString: strerror(number))
    return StoreError(code, "can't \(what) \(path): \(reason)", remedy: remedy, region: region)
}
