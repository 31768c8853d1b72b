// The libFuzzer entry: every input goes to the decoder that its first byte chooses (Exerciser.swift).

/// Called by libFuzzer for every input; a trap is a finding.
@c(LLVMFuzzerTestOneInput) public func fuzzOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    exerciseDecoder(unsafe [UInt8](UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}
