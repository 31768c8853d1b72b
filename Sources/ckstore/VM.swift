// `ckstore vm`: checkpoints of virtual machines.

import ArgumentParser

struct VM: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Checkpoint and restore running virtual machines.",
        discussion: """
            Example:
              ckstore vm checkpoint vm.ck monday --qmp /run/vm1.qmp
              ckstore vm restore vm.ck monday --lazy --disk vda=hd.img -- \\
                qemu-system-x86_64 -machine pc -m 512M -drive if=none,id=d,file=hd.img,format=raw \\
                  -device virtio-blk-pci,id=vda,drive=d
              ckstore vm show vm.ck monday
            """,
        subcommands: [VMCheckpoint.self, VMRestore.self, VMResume.self, VMShow.self, VMRescue.self, VMGuard.self])
}
