// The command that shall load a checkpoint: what can be seen of it without running it, and what is added to it.
//
// Invariant: the user's own arguments go to QEMU as they are and in their order; ours come after them.

import CheckpointCore

/// A command that starts QEMU.
public struct QEMUCommandLine: Sendable {
    /// A path, or a name that is looked up in PATH.
    public var executable: String
    public var arguments: [String]

    /// - Throws: `.invalidInput` when there is no command, or one with options that a restore has no place for.
    public init(_ words: [String]) throws(EngineError) {
        guard let first = words.first, !first.isEmpty else {
            throw EngineError(
                .invalidInput, "no command was given", remedy: "Write it after --, for example: -- qemu-system-x86_64 -machine pc -m 512M …")
        }
        executable = first
        arguments = Array(words.dropFirst())
        for option in ["incoming", "loadvm", "daemonize", "preconfig"] where has(option) {
            throw EngineError(
                .invalidInput, "-\(option) can't be used with a restore", remedy: "Leave it out: ckstore loads the machine, and stays with it until it ends.")
        }
    }

    /// Whether the option is among the arguments, written with one dash or two.
    func has(_ option: String) -> Bool { arguments.contains { $0 == "-\(option)" || $0 == "--\(option)" } }

    /// The value of the last option of one of these names.
    func value(of options: [String]) -> String? {
        let names = options.flatMap { ["-\($0)", "--\($0)"] }
        return arguments.indices.last { names.contains(arguments[$0]) && $0 + 1 < arguments.count }.map { arguments[$0 + 1] }
    }

    /// Refuses what can be seen to be wrong before anything is started or written; what can't be seen here shows when QEMU has
    /// started and says what machine it makes.
    /// - Throws: `.mismatch`.
    public func check(against record: MachineRecord) throws(EngineError) {
        if let machine = value(of: ["machine", "M"]) {
            let name = property(machine, "type") ?? machine.prefix { $0 != "," }.description
            // Aliases ("pc") are QEMU's to resolve; versioned names are not.
            if name.contains("."), !name.contains("="), name != record.machineType {
                throw RestorePlan.wrongMachine(record.machineType, name)
            }
        }
        if let text = value(of: ["smp"]), let count = Int(property(text, "cpus") ?? text.prefix { $0 != "," }.description),
            count != record.virtualCPUs
        {
            throw EngineError(
                .mismatch, "the checkpoint was taken with \(record.virtualCPUs) vCPUs, this command line makes \(count)",
                remedy: "Use -smp \(record.virtualCPUs).")
        }
        let main = record.memoryBlocks.first { $0.name == "pc.ram" }
        if let main, !has("numa"), let text = value(of: ["m"]),
            let size = Self.bytes(property(text, "size") ?? text.prefix { $0 != "," }.description), size != main.byteLength
        {
            throw EngineError(
                .mismatch, "the checkpoint was taken with \(RestorePlan.size(main.byteLength)) of memory, this command line gives \(RestorePlan.size(size))",
                remedy: "Use -m \(main.byteLength >> 20)M.")
        }
    }

    private func property(_ text: String, _ name: String) -> String? {
        text.split(separator: ",").first { $0.hasPrefix("\(name)=") }.map { String($0.dropFirst(name.count + 1)) }
    }

    /// A size as QEMU takes it for memory: MiB unless a suffix says otherwise; nil when it is not plain or absurd: QEMU judges it then.
    private static func bytes(_ text: String) -> UInt64? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        guard let number = UInt64(digits) else { return nil }
        switch text.dropFirst(digits.count).lowercased() {
        case "", "m": return number.multiplied(by: 1 << 20)
        case "k": return number.multiplied(by: 1 << 10)
        case "g": return number.multiplied(by: 1 << 30)
        case "t": return number.multiplied(by: 1 << 40)
        case "b": return number
        default: return nil
        }
    }
}

extension UInt64 {
    /// nil when it does not fit.
    fileprivate func multiplied(by factor: UInt64) -> UInt64? {
        let (product, overflow) = multipliedReportingOverflow(by: factor)
        return overflow ? nil : product
    }
}
