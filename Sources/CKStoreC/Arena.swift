// Memory that C looks at: descriptions of checkpoints and regions, freed with the handle they belong to.
//
// Invariant: what an arena has handed out is not written again.

import CKStoreHeader
import CheckpointStore
import Glibc

/// Owns copies of values and texts at fixed addresses.
@safe final class Arena {
    private var blocks: [UnsafeMutableRawPointer] = unsafe []

    deinit { for unsafe block in unsafe blocks { unsafe block.deallocate() } }

    /// A copy of `values`.
    func keep<T: BitwiseCopyable>(_ values: [T]) -> UnsafePointer<T> {
        let copy = UnsafeMutablePointer<T>.allocate(capacity: max(1, values.count))
        for (index, value) in values.enumerated() { unsafe (copy + index).initialize(to: value) }
        unsafe blocks.append(UnsafeMutableRawPointer(copy))
        return unsafe UnsafePointer(copy)
    }

    /// A copy of `text`, with a zero byte at its end.
    func keep(_ text: String) -> UnsafePointer<CChar> {
        unsafe keep(text.utf8CString.map { $0 })
    }

    func describe(_ info: CheckpointInfo) -> ckstore_checkpoint_info {
        let regions = info.regions
        let labels = info.labels
        let parts = unsafe CheckpointParts(
            regions: keep(regions.map { unsafe describe($0) }),
            labels: keep(
                labels.map { label in
                    unsafe ckstore_label(
                        key: keep(label.key), value: keep(label.value), key_length: label.key.utf8.count,
                        value_length: label.value.utf8.count)
                }))
        return unsafe ckstore_checkpoint_info(
            id: info.id.rawValue, parent_id: info.parent?.rawValue ?? 0, created_nanoseconds: info.createdNanoseconds,
            generation: info.generation.rawValue, group_id: info.groupID ?? 0, new_pages: info.newPages.rawValue,
            stored_bytes: info.storedBytes.rawValue, name: keep(info.name), region_count: regions.count,
            label_count: labels.count, internal: UnsafeRawPointer(keep([parts])))
    }

    func describe(_ info: RegionInfo) -> ckstore_region_info {
        let kind =
            switch info.kind {
            case .memory: CKSTORE_MEMORY
            case .disk: CKSTORE_DISK
            case .state: CKSTORE_STATE
            }
        return unsafe ckstore_region_info(
            name: keep(info.name), kind: kind.number, reserved: 0, length_bytes: info.byteLength.rawValue,
            page_count: info.pageCount.rawValue, stored_pages: info.storedPages.rawValue, new_pages: info.newPages.rawValue)
    }
}

/// What a description of a checkpoint has behind `internal`.
@unsafe struct CheckpointParts: BitwiseCopyable {
    let regions: UnsafePointer<ckstore_region_info>
    let labels: UnsafePointer<ckstore_label>
}
