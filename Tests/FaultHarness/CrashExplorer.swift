// The search for a crash that a store does not survive.
//
// Invariants:
// - The workload runs once; every image is made from its recording.
// - Which images are made depends on the recording, the plan and the seed, not on the number of
//   workers, and of several failures the one at the earliest point is reported.

import Foundation

/// Cuts power at every point of a recorded workload, in every way, and checks what is left.
public struct CrashExplorer: Sendable {
    /// Which images are made.
    public struct Plan: Sendable {
        /// Modes of which every image is made.
        public var exhaustiveModes: [CrashMode] = CrashMode.allCases.filter { !$0.isRandom }
        /// Modes of which random images are made.
        public var randomModes: [CrashMode] = [.randomSubset, .tornSectors, .tornWords]
        /// How many different random images to make, spread evenly over the points and random modes.
        /// Where few writes are unflushed there are fewer different ones than that: the report counts.
        public var randomImageCount = 10_000
        /// Threads that check images.
        public var workerCount = 1
        /// Everything, with ten thousand random images.
        public init() {}
    }

    /// The environment variable that makes an explorer check one image only: "name point mode ordinal seed".
    public static let replayVariable = "CKSTORE_CRASH_REPLAY"

    /// The name in replay lines; without spaces.
    public var name: String
    /// The seed of all random images.
    public var seed: UInt64
    /// Which images are made.
    public var plan: Plan

    /// Prepares an exploration; nothing runs before `explore`.
    public init(_ name: String, seed: UInt64, plan: Plan = Plan()) {
        precondition(!name.contains(" "), "the name is one word of a replay line")
        self.name = name
        self.seed = seed
        self.plan = plan
    }

    /// Runs the workload on `device`, then checks crash images of everything it did. `check` throws
    /// when an image is not what the marks before the crash promise; it may write to the image.
    /// Throws what the workload throws, or a `CrashFailure`.
    @discardableResult public func explore(
        _ device: SimulatedDevice, workload: (SimulatedDevice) throws -> Void,
        check: @escaping @Sendable (CrashImage) throws -> Void
    ) throws -> CrashReport {
        device.forgetLog()
        try workload(device)
        return try explore(recorded: device, check: check)
    }

    /// Checks crash images of what was recorded already.
    @discardableResult public func explore(
        recorded device: SimulatedDevice, check: @escaping @Sendable (CrashImage) throws -> Void
    ) throws(CrashFailure) -> CrashReport {
        let cursor = device.crashCursor()
        if let image = replayedImage(cursor) {
            try judge(image, cursor.events, check)
            return .replay
        }
        let epochs = CrashExplorer.epochs(of: cursor.events)
        let randomCount = randomCountPerPoint(cursor)
        let shared = Guarded(Shared())
        PlainThreads.run(max(1, plan.workerCount)) { _ in
            var cursor = cursor
            while let epoch = shared.with({ $0.next(of: epochs) }) {
                let (report, failure) = explore(epoch, &cursor, randomCount, check)
                shared.with { $0.add(report, failure) }
            }
        }
        let (report, failure) = shared.with { ($0.report, $0.failure) }
        if let failure { throw failure }
        return report
    }

    private struct Shared {
        var nextEpoch = 0
        var report = CrashReport()
        var failure: CrashFailure?

        mutating func next(of epochs: [[Int]]) -> [Int]? {
            guard nextEpoch < epochs.count else { return nil }
            if let failure, failure.point < epochs[nextEpoch][0] { return nil }
            defer { nextEpoch += 1 }
            return epochs[nextEpoch]
        }

        mutating func add(_ other: CrashReport, _ failure: CrashFailure?) {
            report.add(other)
            if let failure, failure.point < self.failure?.point ?? .max { self.failure = failure }
        }
    }

    /// The points worth a crash, grouped so that within a group neither the durable content nor the
    /// marks change: images with equal fingerprints in one group are equal.
    static func epochs(of events: [DeviceEvent]) -> [[Int]] {
        var epochs = [[0]]
        for event in events where event.changesCrashState {
            switch event.kind {
            case .write, .discard, .resize: epochs[epochs.count - 1].append(event.index + 1)
            default: epochs.append([event.index + 1])
            }
        }
        return epochs
    }

    /// The random modes that can bring anything at this point that the exhaustive ones don't.
    private func randomModes(at point: CrashPoint) -> [CrashMode] {
        if point.unflushedCount == 0 { return [] }
        let isEverySubsetMade =
            plan.exhaustiveModes.contains(.everySubset) && point.unflushedCount <= CrashMode.everySubsetLimit
        return plan.randomModes.filter { $0 != .randomSubset || !isEverySubsetMade }
    }

    private func randomCountPerPoint(_ cursor: CrashCursor) -> Int {
        var walker = cursor
        var shareCount = 0
        for index in CrashExplorer.epochs(of: cursor.events).joined() {
            walker.advance(to: index)
            shareCount += randomModes(at: walker.point).count
        }
        return shareCount == 0 ? 0 : (plan.randomImageCount + shareCount - 1) / shareCount
    }

    private func explore(
        _ epoch: [Int], _ cursor: inout CrashCursor, _ randomCount: Int,
        _ check: @Sendable (CrashImage) throws -> Void
    ) -> (CrashReport, CrashFailure?) {
        var report = CrashReport()
        var seen: Set<UInt64> = []
        for index in epoch {
            cursor.advance(to: index)
            report.pointCount += 1
            let modes =
                plan.exhaustiveModes.map { ($0, wanted: Int.max, tried: 0) }
                + randomModes(at: cursor.point).map { ($0, wanted: randomCount, tried: randomCount * 4) }
            for (mode, wanted, tried) in modes {
                var freshCount = 0
                for image in cursor.point.images(mode, seed: seed, randomCount: tried) {
                    guard seen.insert(image.fingerprint).inserted else {
                        report.duplicateCount += 1
                        continue
                    }
                    report.imageCount += 1
                    do throws(CrashFailure) { try judge(image, cursor.events, check) } catch { return (report, error) }
                    freshCount += 1
                    if freshCount == wanted { break }
                }
            }
        }
        return (report, nil)
    }

    private func judge(
        _ image: CrashImage, _ events: [DeviceEvent], _ check: (CrashImage) throws -> Void
    ) throws(CrashFailure) {
        do {
            try check(image)
        } catch {
            let place = "\(name) \(image.point) \(image.mode) \(image.ordinal) \(image.seed)"
            throw CrashFailure(
                point: image.point, reason: "\(error)", lastMark: image.marks.last,
                recentEvents: events[max(0, image.point - 8)..<image.point].map(\.description),
                replayLine: "\(CrashExplorer.replayVariable)='\(place)'")
        }
    }

    /// The image that the environment asks for, when it asks this explorer.
    private func replayedImage(_ cursor: CrashCursor) -> CrashImage? {
        let words = (ProcessInfo.processInfo.environment[CrashExplorer.replayVariable] ?? "").split(separator: " ")
        guard words.count == 5, words[0] == name else { return nil }
        guard let point = Int(words[1]), let mode = CrashMode(rawValue: String(words[2])), let ordinal = Int(words[3]),
            let seed = UInt64(words[4]), point <= cursor.events.count
        else {
            preconditionFailure(
                "\(CrashExplorer.replayVariable) is not 'name point mode ordinal seed' of this recording")
        }
        var cursor = cursor
        cursor.advance(to: point)
        return cursor.point.image(mode, ordinal: ordinal, seed: seed)
    }
}

/// What an exploration went through without a failure.
public struct CrashReport: Sendable, CustomStringConvertible {
    /// Places where power was cut.
    public var pointCount = 0
    /// Different images that were checked.
    public var imageCount = 0
    /// Images that were not checked, being equal to one that was.
    public var duplicateCount = 0
    /// True when the environment asked for a single image: the counts say nothing then.
    public var isReplay = false
    /// Nothing yet.
    package init() {}
    /// What a run in which the environment asks for a single image comes to.
    package static var replay: CrashReport { CrashReport(pointCount: 1, imageCount: 1, isReplay: true) }
    init(pointCount: Int, imageCount: Int, isReplay: Bool) {
        self.pointCount = pointCount
        self.imageCount = imageCount
        self.isReplay = isReplay
    }
    /// Adds the counts of another exploration.
    package mutating func add(_ other: CrashReport) {
        pointCount += other.pointCount
        imageCount += other.imageCount
        duplicateCount += other.duplicateCount
        isReplay = isReplay || other.isReplay
    }
    public var description: String {
        "\(imageCount) crash images at \(pointCount) points (\(duplicateCount) more were duplicates)"
    }
}

/// A crash image that failed its check.
public struct CrashFailure: Error, CustomStringConvertible {
    /// How many events came before the cut.
    public var point: Int
    /// What the check threw.
    public var reason: String
    /// The last mark before the cut.
    public var lastMark: String?
    /// The last events before the cut.
    public var recentEvents: [String]
    /// Set this in the environment to check this image alone.
    public var replayLine: String
    public var description: String {
        """
        after a power cut at event \(point) (last mark: \(lastMark ?? "none")): \(reason)
        replay with \(replayLine)
        before the cut:
          \(recentEvents.joined(separator: "\n  "))
        """
    }
}
