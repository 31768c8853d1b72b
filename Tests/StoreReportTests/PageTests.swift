// The page itself: whole, safe from what people call things, and running in a browser.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreReport
import StoreTesting
import Testing
import Units

/// Names and labels that try to get out of where they stand. A name can have no slash, a label can.
private let hostileName = "<script>document.body.dataset.pwned='name'<b onclick=\"x\">&amp;{{script}}'\\"
private let hostileLabel = "</script><script>document.body.dataset.pwned='label'</script><!--"

/// A store with hostile names, two branches and a deleted checkpoint, as a report.
private func hostileReport() throws -> ReportData {
    let scratch = try ScratchStore()
    func save(_ name: String, parent: String?, _ page: UInt64) throws {
        let writer = try scratch.store.begin(name, parent: parent, options: WriterOptions(labels: [hostileLabel: hostileLabel]))
        for region in ["ram", hostileName] {
            let handle = try writer.addRegion(region, kind: .memory, byteLength: .mebibytes(1))
            try handle.put(page: PageIndex(page), Array(repeating: 3, count: pageSize))
        }
        try writer.commit()
    }
    try save("first", parent: nil, 1)
    try save(hostileName, parent: "first", 2)
    try save("gone", parent: hostileName, 3)
    try save("kept", parent: "gone", 4)
    try save("other", parent: "gone", 5)
    try scratch.store.delete(["gone"])
    return try ReportData(scratch.store, madeMilliseconds: 1_800_000_000_000)
}

@Test func `names can't become markup or script, and the data comes through as it is`() async throws {
    try await onPlainThread {
        let data = try hostileReport()
        let page = try ReportPage.html(data)
        #expect(!page.contains("<script>document") && !page.contains("<b onclick") && !page.contains(hostileLabel))
        #expect(page.components(separatedBy: "<script").count == 3 && page.components(separatedBy: "</script>").count == 3)
        let start = try #require(page.range(of: "id=\"data\">")).upperBound
        let end = try #require(page.range(of: "</script>", range: start..<page.endIndex)).lowerBound
        let decoded = try JSONDecoder().decode(ReportData.self, from: Data(page[start..<end].utf8))
        #expect(try ReportPage.json(decoded) == ReportPage.json(data))
        #expect(decoded.checkpoints.contains { $0.name == hostileName })
    }
}

@Test func `the page asks nothing of any network`() async throws {
    try await onPlainThread {
        let page = try ReportPage.html(try hostileReport())
        for text in ["http:", "https:", "url(", "@import", "src=", "href=", "fetch(", "XMLHttpRequest", "innerHTML"] {
            #expect(!page.contains(text), "\(text)")
        }
        #expect(page.contains("default-src 'none'"))
        // The number that lets the script run is another one for each page.
        func nonce(_ page: String) -> Substring? { page.firstMatch(of: /nonce="([a-z0-9]+)"/)?.1 }
        let other = try ReportPage.html(try hostileReport())
        #expect(nonce(page) != nil && nonce(page) != nonce(other))
    }
}

/// The page in a browser.
@Suite(.serialized, .enabled(if: Browser.path != nil, "chromium is not installed"))
struct BrowserTests {
    @Test func `the script comes to its end in a browser, whatever the store has`() async throws {
        try await onPlainThread {
            let hostile = try hostileReport()
            let (empty, one) = (try ScratchStore(), try ScratchStore())
            _ = try one.store.begin("only").commit()
            for data in [hostile, try ReportData(empty.store, madeMilliseconds: 0), try ReportData(one.store, madeMilliseconds: 0)] {
                let (page, log) = try Browser.open(try ReportPage.html(data))
                #expect(page.contains("data-ready=\"yes\""), "\(log)")
                #expect(!page.contains("data-error") && !page.contains("data-pwned"))
                #expect(!log.contains("CONSOLE"), "\(log)")
            }
            #expect(hostile.checkpoints.count == 4)
        }
    }

    @Test func `the address chooses what is shown`() async throws {
        try await onPlainThread {
            let page = try ReportPage.html(try hostileReport())
            let (shown, _) = try Browser.open(page, fragment: "checkpoint=first&region=ram&colour=age")
            #expect(shown.contains("<h2 id=\"chosen-name\">first</h2>"))
            #expect(shown.contains("aria-checked=\"true\">Age<"))
            #expect(shown.contains("ram of first: 1 page change in 1 of 256 cells"))
            let other = try #require(hostileName.addingPercentEncoding(withAllowedCharacters: .alphanumerics))
            let (compared, _) = try Browser.open(page, fragment: "checkpoint=first&region=ram&compare=\(other)")
            #expect(compared.contains("ram of first: 1 page change in 1 of 256 cells, between &lt;script&gt;"))
            // Hostile names are there, as text.
            #expect(compared.contains("&lt;script&gt;document.body") && compared.contains("&lt;/script&gt;"))
        }
    }
}

/// Chromium without a window.
private enum Browser {
    static let path = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .first { FileManager.default.isExecutableFile(atPath: $0) }

    /// Opens a page and returns the document as it is when the script has run, and what the browser logged.
    static func open(_ html: String, fragment: String = "") throws -> (page: String, log: String) {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-page-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(at: folder) }
        let file = folder.appendingPathComponent("page.html")
        try Data(html.utf8).write(to: file)
        let (output, log) = (folder.appendingPathComponent("output"), folder.appendingPathComponent("log"))
        for url in [output, log] { try Data().write(to: url) }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(path))
        process.arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=5000",
            "--user-data-dir=\(folder.path)/profile", "--dump-dom", "file://\(file.path)#\(fragment)",
        ]
        process.standardOutput = try FileHandle(forWritingTo: output)
        process.standardError = try FileHandle(forWritingTo: log)
        try process.run()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        return (String(decoding: try Data(contentsOf: output), as: UTF8.self), String(decoding: try Data(contentsOf: log), as: UTF8.self))
    }
}
