// Which thread of a process is led through making a userfaultfd, and what failing at it means.
//
// Invariants:
// - A thread that waits for events is preferred, and waited for: it is disturbed least, and the worst that our sudden death
//   in the microseconds of its calls does to it is a wait that ends early with a wrong count. Only a process in which none is seen
//   has another thread led; a lock's wait, say, that ended with a wrong result would end the process.
// - The process keeps no descriptor of what is made.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

struct Injection {
    private let process: TargetProcess
    private let avoided: Set<Int32>

    private struct Candidate {
        var thread: Int32
        var rank: Int
        var waitsForEvents: Bool
    }
    private struct Outcome {
        var result: Int32
        var step: ck_injection_step
    }

    /// x86-64's numbers of poll, select, pselect6 and ppoll, which are restarted after every stop.
    private static let waitsForEvents: Set<UInt64> = [7, 23, 270, 271]
    /// How often threads are looked at: first for one that waits for events, then for one in any system call, at last for any.
    private static let eventRounds = 25
    private static let callRounds = 5
    private static let microsecondsBetweenRounds: UInt32 = 2000
    /// UFFD_USER_MODE_ONLY: no rights needed. Enough where no fault is ever reported.
    private static let userModeOnly: UInt32 = 1

    init(_ process: TargetProcess, avoiding threads: Set<Int32>) {
        self.process = process
        avoided = threads
    }

    /// A new userfaultfd of the process.
    func userfault(for kind: ProtectionKind) throws(EngineError) -> OwnedDescriptor {
        let flags = UInt32(O_CLOEXEC | O_NONBLOCK)
        var outcome = try attempt(flags)
        if outcome.result == -EPERM, outcome.step == CK_INJECTION_CREATE, kind == .asynchronous {
            outcome = try attempt(flags | Self.userModeOnly)
        }
        if outcome.result >= 0 { return OwnedDescriptor(owning: outcome.result) }
        throw error(outcome)
    }

    /// Tries threads, best first, until one has done it or something is wrong that other threads share.
    private func attempt(_ flags: UInt32) throws(EngineError) -> Outcome {
        let instruction = try systemCallInstruction()
        var last = Outcome(result: -ESRCH, step: CK_INJECTION_ATTACH)
        let rounds = Self.eventRounds + Self.callRounds + 1
        for round in 0..<rounds {
            if round > 0 { usleep(Self.microsecondsBetweenRounds) }
            for candidate in try candidates() where candidate.waitsForEvents || round >= Self.eventRounds {
                var injection = ck_injection()
                injection.thread = candidate.thread
                injection.process = process.handle.number
                injection.instruction = instruction
                injection.flags = flags
                injection.allow_running = round == rounds - 1
                injection.suspend_seccomp = try hasFilters(candidate.thread)
                last = try run(injection)
                if last.result >= 0 { return last }
                // Another thread may be in a better state; what is wrong after that is wrong with all.
                guard last.step == CK_INJECTION_STOP || last.step == CK_INJECTION_STATE || last.result == -ESRCH else { return last }
            }
        }
        return last
    }

    /// On a thread of its own: the end of that thread lets go of whatever is still held.
    private func run(_ injection: ck_injection) throws(EngineError) -> Outcome {
        let outcome = Lock<Outcome?>(nil)
        let handed = Handed(injection)
        let thread = PlainThread {
            var injection = handed.value
            var step = CK_INJECTION_ATTACH
            let result = unsafe ck_take_userfaultfd(&injection, &step)
            outcome.withLock { $0 = Outcome(result: result, step: step) }
        }
        guard let thread else { throw EngineError(.noMemory, "can't start a thread") }
        thread.join()
        return outcome.withLock { $0! }
    }

    private func candidates() throws(EngineError) -> [Candidate] {
        var result: [Candidate] = []
        for thread in try process.threads() {
            // A thread that ends meanwhile has no such file any more.
            guard let text = try? SystemText.read(process.path("task/\(thread)/syscall")) else { continue }
            let call = text[...].fields.first?.number()
            let waitsForEvents = call.map { Self.waitsForEvents.contains($0) } ?? false
            var rank = waitsForEvents ? 0 : call != nil ? 2 : 4
            if avoided.contains(thread) { rank += 8 }
            // The first thread is the one that a program's own loop is in.
            if thread != process.pid { rank += 1 }
            result.append(Candidate(thread: thread, rank: rank, waitsForEvents: waitsForEvents))
        }
        try process.checkRunning()
        return result.sorted { ($0.rank, $0.thread) < ($1.rank, $1.thread) }
    }

    private func hasFilters(_ thread: Int32) throws(EngineError) -> Bool {
        guard let lines = try? SystemText.lines(process.path("task/\(thread)/status")) else {
            try process.checkRunning()
            return false
        }
        let line = lines.first { $0.starts(with: "Seccomp:".utf8) }
        return line?.fields.last?.number() ?? 0 != 0
    }

    /// A `syscall` instruction in the process's vDSO; 0 when there is none.
    private func systemCallInstruction() throws(EngineError) -> UInt64 {
        guard let vdso = try process.mappings().first(where: { $0.path == "[vdso]" }), vdso.length <= .mebibytes(1) else { return 0 }
        let memory = try process.open("mem")
        var code = [UInt8](repeating: 0, count: vdso.length.int)
        let got = unsafe code.withUnsafeMutableBytes { unsafe ck_read_at(memory.number, $0.baseAddress!, $0.count, vdso.addresses.lowerBound.rawValue) }
        try checked(got, "read the process's memory", place: process.place)
        let offset = unsafe code.withUnsafeBytes { unsafe ck_find_system_call_instruction($0.baseAddress!, Int(got)) }
        return offset < 0 ? 0 : vdso.addresses.lowerBound.rawValue + UInt64(offset)
    }

    private func error(_ outcome: Outcome) -> EngineError {
        let number = -outcome.result
        let place = process.place
        switch (outcome.step, number) {
        case (_, ENOSYS):
            return EngineError(
                .unsupported, "tracking from outside needs an x86-64 host whose kernel has userfaultfd",
                remedy: "Use the background engine.", place: place)
        case (CK_INJECTION_ATTACH, EPERM):
            return EngineError(
                .permission, "can't trace the process",
                remedy: "Run as root, and end debuggers or tracers of that process. A process with system call filters needs CAP_SYS_ADMIN.",
                place: place)
        case (CK_INJECTION_STOP, _), (CK_INJECTION_STATE, _):
            return EngineError(
                .busy, "none of the process's threads could be stopped where that is safe", remedy: "Try again.", place: place)
        case (CK_INJECTION_CREATE, EPERM):
            return EngineError(
                .permission, "the process may not use userfaultfd",
                remedy: "Set vm.unprivileged_userfaultfd to 1, or run the machine with CAP_SYS_PTRACE.", place: place)
        case (CK_INJECTION_CREATE, _):
            return EngineError(system: "make a userfaultfd in the process", number, place: place)
        case (CK_INJECTION_TAKE, _):
            return EngineError(system: "duplicate a descriptor of the process", number, remedy: "Run as root.", place: place)
        default: return EngineError(system: "lead a thread of the process through a system call", number, place: place)
        }
    }
}
