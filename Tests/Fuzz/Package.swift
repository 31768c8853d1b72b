// swift-tools-version: 6.2
import PackageDescription

let strict: [SwiftSetting] = [.swiftLanguageMode(.v6), .strictMemorySafety(), .treatAllWarnings(as: .error)]

// Outside the main package's graph, since a fuzzer brings its own `main`. Build and start it with `run`.
let package = Package(
    name: "Fuzz",
    dependencies: [.package(name: "ckstore", path: "../..")],
    targets: [
        .executableTarget(
            name: "FuzzDecoders",
            dependencies: [.product(name: "StoreFormat", package: "ckstore")],
            swiftSettings: strict),
        .executableTarget(
            name: "FuzzStream",
            dependencies: [
                .product(name: "MigrationStream", package: "ckstore"), .product(name: "CheckpointCore", package: "ckstore"),
            ],
            swiftSettings: strict),
    ]
)
