// Whether the system makes shared memory of huge pages for those who ask.

import Units

/// The system's settings; each can only be read, so what is not there counts as no.
enum TransparentHugePages {
    /// For anonymous shared memory.
    static var anonymousMemory: Bool {
        // The setting in force is in brackets: "always within_size advise [never] deny force".
        let text = ProcessFiles.text("/sys/kernel/mm/transparent_hugepage/shmem_enabled") ?? ""
        guard let setting = text.split(whereSeparator: \.isWhitespace).first(where: { $0.hasPrefix("[") }) else {
            return false
        }
        return setting != "[never]" && setting != "[deny]"
    }

    /// For named shared memory: an option of its mount.
    static var sharedMemory: Bool {
        let mounts = ProcessFiles.text("/proc/self/mountinfo")?.split(separator: "\n") ?? []
        // The last mount at a place is the one that is seen.
        let mount = mounts.last { $0.split(separator: " ").dropFirst(4).first == "/dev/shm" }
        let options = mount?.split(separator: " ").last?.split(separator: ",") ?? []
        return options.contains { $0.hasPrefix("huge=") && $0 != "huge=never" }
    }
}
