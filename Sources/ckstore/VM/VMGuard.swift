// `ckstore vm guard`: the process that `ckstore vm checkpoint` starts to stand by. Not for people.

import ArgumentParser
import CheckpointCore
import QEMUEngine

struct VMGuard: ParsableCommand {
    static let commandName = "guard"
    static let configuration = CommandConfiguration(
        commandName: commandName,
        abstract: "Stand by while a checkpoint is taken (started by `vm checkpoint`).",
        shouldDisplay: false)

    @Argument(help: "What the checkpoint says of the machine.")
    var orders: String

    func run() throws {
        try Guard.run(orders: orders) { standardError("ckstore: \($0)\n") }
    }
}
