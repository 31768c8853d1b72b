// What the command printed, taken apart.

import Foundation
import QEMUTesting
import Testing

extension Outcome {
    /// Standard output as a JSON object.
    func object(at location: SourceLocation = #_sourceLocation) throws -> [String: Any] {
        let value = try JSONSerialization.jsonObject(with: Data(output))
        return try #require(value as? [String: Any], "\(text)", sourceLocation: location)
    }
}
