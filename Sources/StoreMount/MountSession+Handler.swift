// The table of functions that the C part calls.
//
// Invariant: the session lives from the moment its table is made until `release`.

import CStoreMount

extension MountSession {
    /// The table; keeps this object alive until `release`.
    func handler() -> ck_mount_handler {
        var handler = unsafe ck_mount_handler()
        unsafe handler.context = Unmanaged.passRetained(self).toOpaque()
        unsafe handler.look_up = { context, request, folder, name in
            unsafe session(context).lookUp(MountRequest(request!), folder, name.flatMap { unsafe String(validatingCString: $0) })
        }
        unsafe handler.attributes = { context, request, inode in unsafe session(context).attributes(MountRequest(request!), inode) }
        unsafe handler.read_link = { context, request, inode in unsafe session(context).readLink(MountRequest(request!), inode) }
        unsafe handler.open_file = { context, request, inode, forWriting in
            unsafe session(context).open(MountRequest(request!), inode, forWriting: forWriting)
        }
        unsafe handler.close_file = { context, handle in unsafe session(context).close(handle) }
        unsafe handler.read_file = { context, request, handle, offset, size in
            unsafe session(context).read(MountRequest(request!), handle, offset, size)
        }
        unsafe handler.seek = { context, request, handle, offset, forHole in
            unsafe session(context).seek(MountRequest(request!), handle, offset, forHole: forHole)
        }
        unsafe handler.open_folder = { context, request, inode in unsafe session(context).openFolder(MountRequest(request!), inode) }
        unsafe handler.close_folder = { context, handle in unsafe session(context).close(handle) }
        unsafe handler.list = { context, request, handle, first, size, withAttributes in
            unsafe session(context).list(MountRequest(request!), handle, from: first, size, withAttributes: withAttributes)
        }
        unsafe handler.space = { context, request in unsafe session(context).space(MountRequest(request!)) }
        return unsafe handler
    }

    /// Nobody calls the table's functions any more. Call it once for each table.
    func release() { unsafe Unmanaged.passUnretained(self).release() }
}

private func session(_ context: UnsafeMutableRawPointer?) -> MountSession {
    unsafe Unmanaged<MountSession>.fromOpaque(context!).takeUnretainedValue()
}
