// libpmem's side of mapping: what only it can tell is whether stores reach persistence without the kernel.

import CLinux
import CPMem
import Glibc

/// Maps files by libpmem.
enum PersistentMemory {
    /// Maps all of an open file for reading and writing. Returns nil when libpmem refuses it, for the
    /// reason that `failure` then gives.
    static func map(_ descriptor: Descriptor) -> (base: UnsafeMutableRawPointer, length: Int, isPersistent: Bool)? {
        var length = 0
        var isPersistent: Int32 = 0
        guard let base = unsafe pmem_map_file(descriptor.reopeningPath, 0, 0, 0, &length, &isPersistent) else {
            return nil
        }
        return unsafe (base, length, isPersistent == 1)
    }

    /// The negative errno value of this thread's last failed call.
    static var failure: Int32 { errno == 0 ? -EINVAL : -errno }
}
