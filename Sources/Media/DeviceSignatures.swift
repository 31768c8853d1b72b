// What a device carries: file systems, volumes and partition tables that libblkid knows.

import CBlkid
import CLinux
import Glibc
import Units

enum DeviceSignatures {
    /// More signatures than any device has; probing that doesn't end is an error.
    private static let mostSignatures = 64

    /// Names what is on the device, in the order of libblkid's search; empty when nothing is known.
    /// With `wiping` it removes each signature (and nothing more), durably.
    static func find(on device: Descriptor, medium: String, wiping: Bool) throws(MediumError) -> [String] {
        guard let probe = unsafe blkid_new_probe() else {
            throw .system(ENOMEM, medium: medium, operation: "look for signatures")
        }
        defer { unsafe blkid_free_probe(probe) }
        guard unsafe prepare(probe, device) else {
            throw .system(errno == 0 ? EIO : errno, medium: medium, operation: "look for signatures")
        }
        var found: [String] = []
        while true {
            let result = unsafe blkid_do_probe(probe)
            if result == 1 { break }
            guard result == 0, found.count < mostSignatures else {
                throw .system(EIO, medium: medium, operation: "look for signatures")
            }
            found.append(unsafe describe(probe))
            guard !wiping || (unsafe blkid_do_wipe(probe, 0)) == 0 else {
                throw .system(EIO, medium: medium, operation: "remove the signature of \(found.last ?? "")")
            }
        }
        if wiping, !found.isEmpty { try checked(ck_flush_all(device.number), medium, "flush it") }
        return found
    }

    private static func prepare(_ probe: blkid_probe, _ device: Descriptor) -> Bool {
        // With the place of each magic number, which wiping needs.
        let superblocks = BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL | BLKID_SUBLKS_MAGIC | BLKID_SUBLKS_BADCSUM
        let partitions = BLKID_PARTS_MAGIC | BLKID_PARTS_FORCE_GPT
        return unsafe blkid_probe_set_device(probe, device.number, 0, 0) == 0
            && blkid_probe_enable_superblocks(probe, 1) == 0
            && blkid_probe_set_superblocks_flags(probe, superblocks) == 0
            && blkid_probe_enable_partitions(probe, 1) == 0
            && blkid_probe_set_partitions_flags(probe, partitions) == 0
    }

    private static func describe(_ probe: blkid_probe) -> String {
        if let table = unsafe value("PTTYPE", of: probe) { return "a partition table (\(table))" }
        let type = unsafe value("TYPE", of: probe) ?? "an unknown signature"
        return unsafe value("LABEL", of: probe).map { "\(type) labelled '\($0)'" } ?? type
    }

    private static func value(_ name: String, of probe: blkid_probe) -> String? {
        var text: UnsafePointer<CChar>?
        guard unsafe blkid_probe_lookup_value(probe, name, &text, nil) == 0, let text = unsafe text else { return nil }
        return unsafe String(cString: text)
    }
}
