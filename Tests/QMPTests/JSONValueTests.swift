import QMP
import Testing

@Test func `whole numbers keep every digit`() {
    let numbers: [Int64] = [0, 1, -1, .max, .min, 9_007_199_254_740_993, -9_007_199_254_740_993]
    for number in numbers {
        #expect(JSONValue(bytes: "\(number)".utf8) == .integer(number))
        #expect(JSONValue.integer(number).bytes == [UInt8]("\(number)".utf8))
    }
    #expect(JSONValue(bytes: "18446744073709551615".utf8) == .number(18_446_744_073_709_551_616))
    #expect(JSONValue(bytes: "0.5".utf8) == 0.5)
}

@Test func `every kind of value survives a round trip, on one line`() throws {
    let value: JSONValue = [
        "null": nil, "true": true, "false": false, "number": -1.5, "text": "a\n\"/\u{1F600}\u{0}", "list": [1, [], [:], "1", 0],
    ]
    let bytes = try #require(value.bytes)
    #expect(!bytes.contains(10))
    #expect(JSONValue(bytes: bytes) == value)
    #expect(value["list"]?.array?.count == 5)
    #expect(value["text"]?.integer == nil)
    #expect(value["true"]?.bool == true)
    #expect(JSONValue.array([value])["true"] == nil)
}

@Test func `what is no JSON is no value`() {
    for text in ["", "{", "}", "{\"a\":}", "nul", "1 2", "\"\u{1}", "{}}", "\"\\u12\""] {
        #expect(JSONValue(bytes: text.utf8) == nil, "\(text)")
    }
    #expect(JSONValue(bytes: [UInt8(ascii: "\""), 0xff, UInt8(ascii: "\"")]) == nil)
    #expect(JSONValue.number(.infinity).bytes == nil)
}
