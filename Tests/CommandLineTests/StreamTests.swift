// `ckstore send`, `receive` and `sync`, with pipes between them, and with one side killed.

import Foundation
import QEMUTesting
import Testing

/// A store with two checkpoints, and an empty one beside it.
private func makeTwoStores(pages: Int = 3000) throws -> (box: Sandbox, other: String) {
    let box = try Sandbox()
    try box.create()
    let ram = noise(1, count: pages * 4096)
    try box.expect(
        0, "save", box.store, "mon", "--memory", "ram=\(box.write("ram", ram))", "--disk", "hd=\(box.write("hd", noise(2, count: 10_000)))",
        "--label", "day=1")
    try box.expect(
        0, "save", box.store, "tue", "--parent", "mon", "--inherit", "--memory",
        "ram=\(box.write("ram", noise(3, count: 4096) + ram.dropFirst(4096)))")
    let other = box.file("other.ck")
    try box.expect(0, "create", other, "--size", "64M", "--segment", "256K")
    return (box, other)
}

/// What `list` says of a store, but for its own figures.
private func records(_ box: Sandbox, _ store: String, _ options: String...) throws -> [[String: String]] {
    let list = try box.run(["list", store, "--json"] + options).object()
    let checkpoints = try #require(list["checkpoints"] as? [[String: Any]])
    return checkpoints.map { entry in
        Dictionary(uniqueKeysWithValues: ["name", "id", "parentID", "createdAt", "labels"].map { ($0, "\(entry[$0] ?? "")") })
    }
}

private func restored(_ box: Sandbox, _ store: String, _ name: String) throws -> [[UInt8]] {
    let directory = "restored-\(UUID())"
    try box.expect(0, "restore", store, name, "--all", box.file(directory))
    return try ["hd", "ram"].map { try box.read("\(directory)/\($0)") }
}

@Test func `checkpoints go from store to store through a pipe and through files`() throws {
    let (box, other) = try makeTwoStores()
    let pipe = try PrivatePipe()
    let receiver = try box.start(["receive", other, "--json"], input: pipe.reading.fileDescriptor)
    try pipe.reading.close()
    let sender = try box.start(["send", box.store, "mon"], output: pipe.writing.fileDescriptor)
    try pipe.writing.close()
    #expect(try sender.wait().exitCode == 0)
    let outcome = try receiver.wait()
    #expect(outcome.exitCode == 0, "\(outcome.errors)")
    #expect((try outcome.object()["checkpoints"] as? [[String: Any]])?.first?["name"] as? String == "mon")
    let change = box.file("tue.stream")
    let sent = try box.expect(0, "send", box.store, "tue", "--from", "mon", "-o", change, "--json").object()
    #expect(sent["writtenPages"] as? Int == 1)
    #expect(try box.read("tue.stream").count < 10_000)
    try box.expect(0, "receive", other, "--input", change)
    #expect(try records(box, other) == records(box, box.store))
    for name in ["mon", "tue"] { #expect(try restored(box, other, name) == restored(box, box.store, name)) }
    // Refusals and their codes.
    #expect(try box.expect(1, "receive", other, "--input", change, "--json").text.contains("\"duplicate\""))
    try box.expect(0, "receive", other, "--input", change, "--skip-present")
    let third = box.file("third.ck")
    try box.expect(0, "create", third, "--size", "64M", "--segment", "256K")
    #expect(try box.expect(5, "receive", third, "--input", change, "--json").text.contains("\"foreign\""))
    try box.expect(3, "receive", third, "--input", box.write("text", Array("no stream, but a text of more bytes".utf8)))
    try box.expect(0, "send", box.store, "--all", "-o", box.file("all.stream"))
    try box.expect(0, "receive", third, "--input", box.file("all.stream"))
    #expect(try records(box, third) == records(box, box.store))
    // Under another name, and where the name is taken.
    try box.expect(0, "delete", third, "tue")
    try box.expect(0, "save", third, "tue", "--disk", "d=\(box.write("d", [1]))")
    #expect(try box.expect(1, "receive", third, "--input", change).errors.contains("--as"))
    try box.expect(0, "receive", third, "--input", change, "--as", "wed")
    #expect(try restored(box, third, "wed") == restored(box, box.store, "tue"))
    try box.expect(0, "verify", third)
}

@Test func `a cut stream is kept, hidden, told, gone on from or dropped`() throws {
    let (box, other) = try makeTwoStores()
    try box.expect(0, "send", box.store, "mon", "-o", box.file("mon.stream"))
    let stream = try box.read("mon.stream")
    let cut = try box.write("cut", Array(stream.prefix(stream.count * 2 / 3)))
    let failed = try box.expect(3, "receive", other, "--input", cut, "--json")
    #expect(failed.text.contains("cut-stream") && failed.errors.contains("--resume ck1-"), "\(failed.errors)")
    #expect(try records(box, other).isEmpty && records(box, other, "--all").count == 1)
    let status = try box.expect(0, "receive", other, "--status", "--json").object()
    let part = try #require((status["parts"] as? [[String: Any]])?.first)
    let token = try #require(part["token"] as? String)
    #expect(part["name"] as? String == "mon" && failed.errors.contains(token))
    #expect(try box.expect(0, "receive", other, "--status").text.contains("ckstore send STORE --resume \(token)"))
    try box.expect(2, "send", box.store, "--resume", token + "0", "-o", box.file("x"))
    try box.expect(0, "send", box.store, "--resume", token, "-o", box.file("rest.stream"))
    #expect(try box.read("rest.stream").count < stream.count / 2)
    try box.expect(0, "receive", other, "--input", box.file("rest.stream"))
    #expect(try records(box, other, "--all") == Array(records(box, box.store).prefix(1)))
    #expect(try restored(box, other, "mon") == restored(box, box.store, "mon"))
    // Dropped: as if nothing had come.
    try box.expect(0, "delete", other, "mon")
    try box.expect(3, "receive", other, "--input", cut)
    try box.expect(0, "receive", other, "--discard")
    #expect(try records(box, other, "--all").isEmpty)
    #expect(try box.expect(0, "receive", other, "--status").text == "nothing has come in part\n")
    try box.expect(0, "verify", other)
}

@Test func `either side is killed, and the next one goes on`() throws {
    for victim in ["sender", "receiver"] {
        let (box, other) = try makeTwoStores()
        let pipe = try PrivatePipe()
        let receiver = try box.start(["receive", other, "--step", "1M"], input: pipe.reading.fileDescriptor)
        try pipe.reading.close()
        // A file that is fed slowly stands for a sender: the pipe's end is the test's, so that it can stop half-way.
        try box.expect(0, "send", box.store, "mon", "-o", box.file("mon.stream"))
        let stream = try box.read("mon.stream")
        try pipe.writing.write(contentsOf: Data(stream.prefix(stream.count / 2)))
        if victim == "receiver" {
            // Wait for a step: only what is durable outlives it.
            while try records(box, other, "--all").isEmpty { usleep(10_000) }
            receiver.send(SIGKILL)
            #expect(try receiver.wait().signal == SIGKILL)
            try pipe.writing.close()
        } else {
            try pipe.writing.close()
            #expect(try receiver.wait().exitCode == 3)
        }
        try box.expect(0, "verify", other)
        let status = try box.expect(0, "receive", other, "--status", "--json").object()
        let token = try #require((status["parts"] as? [[String: Any]])?.first?["token"] as? String)
        try box.expect(0, "send", box.store, "mon", "--resume", token, "-o", box.file("rest.stream"))
        try box.expect(0, "receive", other, "--input", box.file("rest.stream"))
        #expect(try restored(box, other, "mon") == restored(box, box.store, "mon"), "\(victim)")
        #expect(try records(box, other, "--all") == Array(records(box, box.store).prefix(1)), "\(victim)")
    }
}

@Test func `names that move go from store to store, and one that is something else's is kept out and told`() throws {
    let (box, other) = try makeTwoStores(pages: 20)
    try box.expect(0, "name", "set", box.store, "stable", "mon")
    let sent = try box.expect(0, "send", box.store, "mon", "-o", box.file("mon.stream"), "--json").object()
    #expect((sent["names"] as? [[String: Any]])?.map { $0["name"] as? String } == ["stable"])
    #expect(try box.expect(0, "receive", other, "--input", box.file("mon.stream")).text.contains("\nstable leads to mon\n"))
    try box.expect(0, "name", "set", box.store, "stable", "tue")
    try box.expect(0, "name", "set", box.store, "best", "tue")
    try box.expect(0, "save", other, "best", "--disk", "hd=\(box.write("hd", noise(9, count: 9000)))")
    try box.expect(0, "send", box.store, "tue", "--from", "mon", "-o", box.file("tue.stream"))
    let received = try box.expect(1, "receive", other, "--input", box.file("tue.stream"), "--json")
    #expect(received.errors.contains("the name 'best' was not pointed at"), "\(received.errors)")
    let names = try #require(try received.object()["names"] as? [[String: Any]])
    #expect(names.map { $0["outcome"] as? String } == ["kept-out", "moved"] && names[1]["checkpoint"] as? String == "tue")
    #expect((names[0]["conflict"] as? [String: Any])?["code"] as? String == "exists" && names[1]["beforeID"] != nil)
    let listed = try box.expect(0, "name", "list", other, "--json").object()["names"] as? [[String: Any]]
    #expect(listed?.map { "\($0["name"]!) \($0["checkpoint"]!)" } == ["latest tue", "stable tue"])
    // The other way into an empty store: --no-names on either side, then sync.
    let third = box.file("third.ck")
    try box.expect(0, "create", third, "--size", "64M", "--segment", "256K")
    try box.expect(0, "sync", box.store, third, "--no-names")
    #expect(try box.expect(0, "name", "list", third).text.contains("stable") == false)
    #expect(try box.expect(0, "sync", box.store, third).text.contains("stable leads to tue\n"))
    try box.expect(0, "name", "set", box.store, "stable", "mon")
    let lines = try box.expect(0, "sync", box.store, third, "--json").text.split(separator: "\n")
    #expect(lines.count == 2 && lines[0].contains("\"named\"") && lines[0].contains("\"moved\"") && lines[1].contains("\"namesSet\":1"), "\(lines)")
    #expect(try box.expect(1, "sync", box.store, other).errors.contains("the name 'best' was not pointed at"))
    try box.expect(0, "sync", box.store, other, "--no-names")
}

@Test func `sync brings one store up to another, once and until interrupted`() throws {
    let (box, other) = try makeTwoStores(pages: 500)
    let text = try box.expect(0, "sync", box.store, other).text
    #expect(text.contains("copied mon, in full") && text.contains("copied tue, changes since mon: 1 pages") && text.contains("2 checkpoints copied"))
    #expect(try records(box, other) == records(box, box.store))
    #expect(try box.expect(0, "sync", box.store, other).text.contains("0 checkpoints copied"))
    try box.expect(2, "sync", box.store, box.store)
    let follower = try box.start(["sync", box.store, other, "--follow", "--interval", "1", "--json", "--keep-source", "1"])
    try box.expect(0, "save", box.store, "wed", "--parent", "tue", "--inherit", "--disk", "hd=\(box.write("hd", noise(9, count: 9000)))")
    while try records(box, other).count < 3 { usleep(50_000) }
    while try box.checkpointNames() != ["wed"] { usleep(50_000) }
    follower.send(SIGINT)
    let outcome = try follower.wait()
    #expect(outcome.exitCode == 0, "\(outcome.errors)")
    let lines = outcome.text.split(separator: "\n")
    #expect(lines.count == 3 && lines.contains { $0.contains("\"copied\"") && $0.contains("wed") }, "\(outcome.text)")
    #expect(lines.filter { $0.contains("deletedAtSource") }.count == 2)
    #expect(try records(box, other).map { $0["name"] } == ["mon", "tue", "wed"])
    #expect(try restored(box, other, "wed") == restored(box, box.store, "wed"))
}
