// From the system's error numbers to typed errors with a remedy.

import Glibc
import SystemPackage
import Units

extension MediumError.Code {
    /// The system has run out of something that is not the medium's: descriptors, address space, memory.
    public static let systemLimit = MediumError.Code(rawValue: "system-limit")
}

extension MediumError {
    /// The error for a system call that failed with `number` while doing `operation`.
    static func system(
        _ number: Int32, medium: String, operation: String, offset: MediumOffset? = nil, length: ByteCount? = nil
    ) -> MediumError {
        let (code, remedy) = judgement(of: number)
        return MediumError(
            code, medium: medium, operation: operation, offset: offset, length: length, errno: number,
            reason: Errno(rawValue: number).description, remedy: remedy)
    }

    private static func judgement(of number: Int32) -> (Code, remedy: String) {
        switch number {
        case ENOENT, ENXIO, ENOTDIR:
            (.notFound, "Check the locator, and that the device or directory is there.")
        case EEXIST: (.exists, "Choose another name, or force it if the content is no longer needed.")
        case EACCES, EPERM: (.permission, "Run as a user who may read and write it, or open it for reading only.")
        case EROFS: (.readOnly, "The file system or device is read-only: open it for reading only.")
        case EBUSY, EAGAIN, ETXTBSY: (.busy, "Somebody else uses it: unmount it or wait until they are done.")
        case ENOSPC, EDQUOT: (.noSpace, "Free space on the medium or make it larger, then try again.")
        case EFBIG: (.noSpace, "The file system or a process limit does not allow files this large.")
        case EOPNOTSUPP, ENOSYS, ENOTTY, ENODEV: (.unsupported, "Use a medium that can do this.")
        case ENOMEM, EMFILE, ENFILE, EOVERFLOW:
            (.systemLimit, "Raise the process's limits (memory, address space, open files), then try again.")
        default:
            (.ioFailed, "See the kernel log; check the device and its cabling, and restore from a copy if it is gone.")
        }
    }
}

/// Throws the typed error for a negative errno `result`; returns other results as they are.
@discardableResult
func checked<Result: SignedInteger>(
    _ result: Result, _ medium: String, _ operation: String, offset: MediumOffset? = nil, length: ByteCount? = nil
) throws(MediumError) -> Result {
    guard result < 0 else { return result }
    throw .system(Int32(-result), medium: medium, operation: operation, offset: offset, length: length)
}
