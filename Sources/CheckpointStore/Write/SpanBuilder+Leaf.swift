// The leaf that a saved span gets: a patch of the one before, or a full one.

import StoreFormat
import Units

extension SpanBuilder {
    /// Most entries that a patch leaf has; past that a full leaf reads and costs less.
    static let maximumPatch = 64

    func storeLeaf(_ map: SpanMap, span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard map.storedPages > 0 else { return nil }
        let birth = BlockBirth(writer.id)
        // Neither a patch leaf nor its base may list pages behind the region's end: one that was made shorter gets a full leaf.
        let isShortened = !map.patched.subtracting(PageSet(0..<limit)).isEmpty
        if let base = map.base, map.patched.count <= SpanBuilder.maximumPatch, !isShortened {
            return try writer.appendIndex(map.patchLeaf(over: base, key: key, span: span).encoded(birth: birth))
        }
        return try writer.appendIndex(map.fullLeaf(key: key, span: span).encoded(birth: birth))
    }
}
