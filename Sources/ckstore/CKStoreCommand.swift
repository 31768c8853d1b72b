// The command `ckstore`: its subcommands, and how every run of it ends.
//
// Invariants:
// - Errors go to standard error; with --json also to standard output, as an object. The exit code is the same.
// - Commands run on the main thread; blocking calls are theirs to make.

import ArgumentParser
import Glibc

@main
struct CKStoreCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ckstore",
        abstract: "Keeps checkpoints of live machines: memory, disks and device state, crash-safe and incremental.",
        discussion: """
            A STORE is named by what it stands on:
              file:/var/lib/vm.ck   a file on any file system; a path alone means this
              raw:/dev/sdb1         a block device without a file system
              flash:/mnt/pmem/vm.ck persistent memory or flash
              ram:name              shared memory, gone with the next start of the machine

            Example:
              ckstore create vm.ck --size 64G
              ckstore save vm.ck monday --memory ram=guest.mem --disk vda=hd.img
              ckstore save vm.ck tuesday --parent monday --memory ram=guest.mem
              ckstore list vm.ck
              ckstore restore vm.ck monday --all restored/

            Sizes are bytes, or have a suffix K, M, G or T (powers of 1024).

            Exit codes:
              0  done
              1  failed
              2  usage: a wrong option, or a name, size or input that can't be used
              3  corrupt: damaged, cut off, not a store, or made by a newer version
              4  no space, on a medium or in the store
              5  not found: a store, checkpoint, region or file
              6  busy: somebody else uses it
              128 + n  ended by signal n (130: interrupted, 143: terminated)

            Shell completion: ckstore --generate-completion-script bash (or zsh, fish).
            """,
        version: "ckstore 0.1.0",
        groupedSubcommands: [
            CommandGroup(name: "Stores", subcommands: [Create.self, Resize.self, Compact.self, Info.self, Report.self, Verify.self, Scrub.self, RepairCommand.self, SalvageCommand.self, Bench.self, TimeBench.self, LiveBench.self, RollbackBenchCommand.self]),
            CommandGroup(
                name: "Checkpoints",
                subcommands: [
                    Save.self, Restore.self, List.self, Show.self, Read.self, Diff.self, Mount.self, Export.self, Name.self, Delete.self, Prune.self,
                ]),
            CommandGroup(name: "Between stores", subcommands: [Send.self, Receive.self, Sync.self]),
            CommandGroup(name: "Virtual machines", subcommands: [VM.self]),
        ])

    static func main() {
        ProcessSetup.prepare()
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch {
            Failure(error).exit()
        }
    }
}

/// What this process sets up before anything else.
enum ProcessSetup {
    static func prepare() {
        // A file opened in place of a closed standard descriptor would get what is printed.
        for number in Int32(0)...2 where fcntl(number, F_GETFD) < 0 {
            _ = unsafe open("/dev/null", number == 0 ? O_WRONLY : O_RDONLY)
        }
        // A reader that went away and a limit that was reached are errors of the write, so that nothing half-made
        // stays behind.
        _ = signal(SIGPIPE, SIG_IGN)
        _ = signal(SIGXFSZ, SIG_IGN)
    }
}
