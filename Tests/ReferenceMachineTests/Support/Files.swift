// Whole files, for images that machines in other processes use.

import Glibc

func write(_ content: [UInt8], to path: String) throws {
    let file = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    try require(file >= 0, "can't create \(path)")
    defer { close(file) }
    var done = 0
    while done < content.count {
        let count = unsafe content.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress! + done, $0.count - done) }
        try require(count > 0, "can't write \(path)")
        done += count
    }
}

func read(_ path: String) throws -> [UInt8] {
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
    try require(file >= 0, "can't open \(path)")
    defer { close(file) }
    var content = [UInt8](repeating: 0, count: Int(lseek(file, 0, SEEK_END)))
    let count = unsafe content.withUnsafeMutableBytes { unsafe pread(file, $0.baseAddress, $0.count, 0) }
    try require(count == content.count, "can't read \(path)")
    return content
}
