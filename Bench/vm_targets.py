"""The tables of a measurement, and which targets it meets."""

import dataclasses
import statistics

MEGABYTE = 1_000_000
GIBIBYTE_STEP = 1.5  # from the small guest to the large one


@dataclasses.dataclass
class Verdict:
    """A target and what was measured for it."""

    what: str
    target: str
    measured: str
    is_met: bool


def print_rows(rows):
    for memory, load in dict.fromkeys((row.memory, row.load) for row in rows):
        print(f"\nguest of {memory} MiB, {load}")
        print(f"  {'WAY':<34}{'RUNS':>5}{'STOP':>11}{'P95':>11}{'STALL':>11}{'TOTAL':>10}{'BYTES':>11}")
        for row in rows:
            if (row.memory, row.load) == (memory, load):
                total, size = row.median("total"), row.median("bytes")
                print(f"  {row.way:<34}{len(row.runs):>5}{milliseconds(row.median('stop'))}{milliseconds(percentile(row.values('stop'), 95))}"
                      f"{milliseconds(row.median('stall'))}{'-' if total is None else f'{total:.2f} s':>10}"
                      f"{'-' if size is None else f'{size / MEGABYTE:.1f} MB':>11}")
    print("\nMedians of the runs. BYTES: what was stored; for peers, the file.")


def print_verdicts(verdicts):
    print(f"\n  {'':<8}{'TARGET':<84}{'MEASURED'}")
    for verdict in verdicts:
        print(f"  {'met' if verdict.is_met else 'MISSED':<8}{verdict.what + ': ' + verdict.target:<84}{verdict.measured}")


def milliseconds(seconds):
    return f"{'-' if seconds is None else f'{seconds * 1e3:.1f} ms':>11}"


def percentile(values, percent):
    """The smallest value that at least so many percent of the values don't exceed."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def verdicts(rows, lazy):
    found = Finder(rows)
    results = []
    for memory, load in dict.fromkeys((row.memory, row.load) for row in rows):
        results += background(found, memory, load) + external(found, memory, load)
    results += stop_of_external(found) + lazy_restores(lazy)
    return results


class Finder:
    def __init__(self, rows):
        self.rows = rows

    def __call__(self, memory, load, way):
        """The row, or None when there is none."""
        for row in self.rows:
            if (row.memory, row.load) == (memory, load) and row.way.startswith(way):
                return row
        return None

    def figures(self, memory, load, ways, name):
        """The medians that there are."""
        values = ((way, row.median(name)) for way in ways if (row := self(memory, load, way)))
        return {way: value for way, value in values if value is not None}


def background(found, memory, load):
    place = f"background, {memory} MiB, {load}"
    alone, full, later = (found(memory, load, way) for way in
                          ["snapshot, discarded", "ckstore background, full", "ckstore background, incremental"])
    runs = full.runs + later.runs
    def difference(name):
        return statistics.median(getattr(ours, name) - getattr(theirs, name) for ours, theirs in zip(runs, alone.runs, strict=True))
    ratio = statistics.median(ours.total / theirs.total for ours, theirs in zip(runs, alone.runs, strict=True))
    results = [
        Verdict(place, "stop <= QEMU alone + 1 ms", f"{difference('stop') * 1e3:+.1f} ms", difference("stop") <= 0.001),
        Verdict(place, "total <= 1.1 x QEMU alone", f"{ratio:.2f} x", ratio <= 1.1),
        Verdict(place, "longest stall <= QEMU alone + 10 ms", f"{difference('stall') * 1e3:+.1f} ms", difference("stall") <= 0.010),
    ]
    if load == "idle":
        share = later.median("bytes") / full.median("bytes")
        results.append(Verdict(place, "another checkpoint stores < 5 % of the first", f"{share:.1%}", share < 0.05))
    return results + [smaller(found, memory, load, "background")]


def external(found, memory, load):
    place = f"external, {memory} MiB, {load}"
    full, later = (found(memory, load, f"ckstore external, {kind}").median("total") for kind in ["full", "incremental"])
    peers = found.figures(memory, load, ["savevm", "migrate exec:cat", "migrate exec:lz4"], "total")
    best = min(peers, key=peers.get)
    return [
        Verdict(place, "an incremental >= 5 x faster than the full one", f"{full / later:.1f} x", full >= 5 * later),
        Verdict(place, "total of a full one < savevm, exec:cat, exec:lz4", f"{full:.2f} s, {best} {peers[best]:.2f} s", full < peers[best]),
        smaller(found, memory, load, "external"),
    ]


def smaller(found, memory, load, engine):
    stored = found(memory, load, f"ckstore {engine}, full").median("bytes")
    peer = found(memory, load, "migrate exec:lz4").median("bytes")
    return Verdict(
        f"{engine}, {memory} MiB, {load}", "stored < exec:lz4",
        f"{stored / MEGABYTE:.1f} MB, {'none' if peer is None else f'{peer / MEGABYTE:.1f} MB'}", peer is None or stored < peer)


def stop_of_external(found):
    stops = {memory: found(memory, "20 MB/s", "ckstore external, incremental").values("stop")
             for memory in dict.fromkeys(row.memory for row in found.rows)}
    medians = {memory: statistics.median(values) for memory, values in stops.items()}
    largest = max(stops)
    tail = percentile(stops[largest], 95)
    place = f"external, {largest} MiB, 20 MB/s"
    results = [
        Verdict(place, "stop p50 <= 12 ms", f"{medians[largest] * 1e3:.1f} ms", medians[largest] <= 0.012),
        Verdict(place, "stop p95 <= 20 ms", f"{tail * 1e3:.1f} ms", tail <= 0.020),
    ]
    if len(medians) > 1:
        step = (medians[2048] - medians[512]) / GIBIBYTE_STEP
        results.append(Verdict("external, 20 MB/s", "stop p50 <= 1.7 ms more for each further GiB", f"{step * 1e3:+.1f} ms", step <= 0.0017))
    return results


def lazy_restores(lazy):
    limits = {512: 0.110, 2048: 0.160}
    medians = {memory: statistics.median(values) for memory, values in lazy.items()}
    results = [
        Verdict(f"lazy restore, {memory} MiB", f"the guest runs after p50 <= {limits[memory] * 1e3:.0f} ms", f"{median * 1e3:.0f} ms",
                median <= limits[memory])
        for memory, median in medians.items()
    ]
    if len(medians) > 1:
        step = (medians[2048] - medians[512]) / GIBIBYTE_STEP
        results.append(Verdict("lazy restore", "p50 <= 40 ms more for each further GiB", f"{step * 1e3:+.0f} ms", step <= 0.040))
    return results
