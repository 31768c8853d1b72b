// What the tests of disks share that has no better place.

import CheckpointCore

/// Something that a test wanted and did not find. Thrown where `#expect` would not know its test: on threads of explorations.
struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// Throws unless `condition` holds.
func require(_ condition: Bool, _ description: @autoclosure () -> String) throws {
    if !condition { throw TestFailure(description()) }
}

/// The error that `body` throws; fails when it throws none.
func engineError(_ body: () throws -> Void) throws -> EngineError {
    do { try body() } catch let error as EngineError { return error }
    throw TestFailure("no error where one was due")
}
