import Media
import Testing

@Test func `a locator names its kind and its place`() throws {
    for (text, kind, target) in [
        ("raw:/dev/sdb1", MediumKind.raw, "/dev/sdb1"), ("file:/var/lib/vm.ck", .file, "/var/lib/vm.ck"),
        ("ram:vm-1_a.b", .ram, "vm-1_a.b"), ("flash:/mnt/pmem0/vm.ck", .flash, "/mnt/pmem0/vm.ck"),
        ("/var/lib/vm.ck", .file, "/var/lib/vm.ck"), ("vm.ck", .file, "vm.ck"), ("./a:b", .file, "./a:b"),
        ("file:a:b", .file, "a:b"),
    ] {
        let locator = try Locator(text)
        #expect(locator.kind == kind)
        #expect(locator.target == target)
        #expect(try Locator(locator.description) == locator)
    }
}

@Test func `a locator that can't be is refused with a remedy`() {
    let long = String(repeating: "a", count: 201)
    for text in [
        "", "file:", "ram:", "disk:/dev/sda",
        "ram:a/b", "ram:.hidden", "ram:a b", "ram:\(long)", "file:a\0b", "File:/a",
    ] {
        let error = expectFailure(.invalidLocator) { _ = try Locator(text) }
        #expect(error?.remedy.isEmpty == false)
    }
}
