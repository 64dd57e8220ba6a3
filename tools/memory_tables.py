"""Tables of docs/memory.md, from the JSON files that its benchmarks wrote."""

import json
import statistics
from collections import Counter

from measured_tables import ROOT, table

DOCS = ROOT / "docs"
SIZES = ("16", "64", "256", "1024")
PROTOTYPE = {
    "`facts/thinker`": ("99.9 to 100", "99.4 to 99.9", "98.7 to 99.2", "-"),
    "`facts_two_hops/thinker`, two hops": ("99.5 to 99.8", "97.5 to 99.5", "90.1 to 96.7", "-"),
    "`facts_levels/thinker`": ("99.4, 99.5", "97.5, 98.4", "92.3, 95.9", "-"),
    "`64 entities`": ("100", "99.6", "97.5", "89.1 (64 questions)"),
}
"""The accuracy of the prototype of this memory, of one to three runs that learned. Its second level
had one fact a section, and one of its five runs with two hops did not learn."""


def facts_scores() -> str:
    """The accuracy of benchmarks/facts.py by length, a row for each case."""
    rows = []
    for name, runs in _facts().items():
        for kind in ("", "two hops") if "two hops" in runs[0]["scores"]["16"] else ("",):
            cells = [_scores(runs, size, kind, "index") for size in SIZES]
            found = _scores(runs, "256", kind, "found")
            minutes = [run["cpu_minutes"] for run in runs if not run["resumed"]]
            shown = f"{statistics.mean(minutes):.1f}" if minutes else "-"
            title = f"`{name}`" + (f", {kind}" if kind else "")
            rows.append([title, *cells, found, str(len(runs)), shown])
            if title in PROTOTYPE:
                rows.append(["... prototype", *PROTOTYPE[title], "-", "-", "-"])
    columns = [f"{size} sections" for size in SIZES]
    return table(["case", *columns, "right blocks read, 256", "seeds", "CPU minutes"], rows)


def facts_controls() -> str:
    """The accuracy of documents of 256 sections through the index and with its controls."""
    rows = []
    ways = ("index", "all", "asked once", "random", "cleared")
    for name, runs in _facts().items():
        kinds = ("two hops",) if "two hops" in runs[0]["scores"]["256"] else ("",)
        for kind in kinds:
            title = f"`{name}`" + (f", {kind}" if kind else "")
            rows.append([title, *(_scores(runs, "256", kind, way) for way in ways)])
    return table(["case", "index", "all blocks", "asked once", "random blocks", "cleared"], rows)


def facts_stores() -> str:
    """What clearing half of the sections and rounding latents change."""
    rows = []
    for name, runs in _facts().items():
        half = [run["scores"]["64"]["half cleared"] for run in runs]
        cells = [_spread([x[part] for x in half]) for part in ("cleared", "kept", "kept before")]
        kept = [_spread([run["stored"][x] for run in runs]) for x in ("float32", "float16", "int8")]
        rows.append([f"`{name}`", *cells, *kept])
    columns = ["about the cleared half", "about the rest", "the rest before"]
    return table(["case", *columns, "float32", "float16", "int8"], rows)


def gradient_cache() -> str:
    """The memory and time of benchmarks/gradient_cache.py."""
    found = _read("gradient_cache.json")
    rows = [
        [name, f"{found['MiB'][name]:.0f}", f"{found['seconds'][name]:.2f}"]
        for name in found["MiB"]
    ]
    least, most = found["times"]
    ratio = f"{found['memory']:.2f}", f"{found['time']:.2f} ({least:.2f} to {most:.2f})"
    return table(["graph", "MiB", "CPU seconds"], [*rows, ["cached / whole", *ratio]])


def store_faults() -> str:
    """The results of the benchmarks that kill, damage and read a store."""
    found, rows = _read("memory_store.json"), []
    if kills := found.get("kills"):
        during = ", ".join(f"{number:,} {name}" for name, number in kills["killed_during"].items())
        what = f"{kills['rounds']:,} kills of the writer ({during})"
        rows.append([what, f"{len(kills['lost'])} of {kills['acknowledged']:,} blocks lost"])
    if flips := found.get("flips"):
        ends = Counter()
        for counts in flips["files"].values():
            ends.update(counts)
        shown = ", ".join(f"{number:,} {name}" for name, number in ends.most_common())
        rows.append(
            [f"{flips['rounds']:,} flipped bits", f"{len(flips['silent'])} silent: {shown}"]
        )
    if readers := found.get("readers"):
        what = f"4 readers for {readers['minutes']:.0f} minutes, {readers['kills']} kills"
        rows.append([what, f"{len(readers['wrong'])} wrong of {readers['snapshots']:,} snapshots"])
    return table(["what was done", "result"], rows)


def memory_search() -> str:
    """The measurements of benchmarks/memory_search.py, a column for each kind of keys."""
    shown = {
        "append, CPU s": ("30", lambda x: f"{x['append_s']:.1f}"),
        "the first index, as the writer closes, CPU s": ("", lambda x: f"{x['close_s']:.1f}"),
        "rebuild, CPU s": ("15", lambda x: f"{x['rebuild_s']:.1f}"),
        "open and first search, CPU s": ("2", lambda x: f"{x['open_s']:.2f}"),
        "recall@10": ("0.95", lambda x: f"{x['recall']:.3f}"),
        "one query, median, CPU ms": ("", lambda x: f"{x['query_ms']['p50']:.1f}"),
        "one query, 99th percentile, CPU ms": ("10", lambda x: f"{x['query_ms']['p99']:.1f}"),
        "64 queries, CPU ms": ("200", lambda x: f"{x['queries_64_ms']:.0f}"),
        "most memory of appending, MiB": ("1,000", lambda x: f"{x['append_rss_mb']:.0f}"),
        "of rebuilding, MiB": ("1,000", lambda x: f"{x['rebuild_rss_mb']:.0f}"),
        "of searching, MiB": ("1,000", lambda x: f"{x['search_rss_mb']:.0f}"),
        "disk, MiB": ("", lambda x: f"{x['disk_mb']:.0f}"),
    }
    found = _read("memory_search.json").values()
    rows = [[name, asked, *map(show, found)] for name, (asked, show) in shown.items()]
    return table(["", "asked", "a key of 64 a block", "two keys of 32 a block"], rows)


def _facts() -> dict:
    """{case: results of its seeds} of benchmarks/facts.py."""
    return {name: list(seeds.values()) for name, seeds in _read("facts.json").items()}


def _read(name: str) -> dict:
    return json.loads((DOCS / name).read_text())


def _scores(runs: list[dict], size: str, kind: str, way: str) -> str:
    found = [run["scores"].get(size, {}) for run in runs]
    values = [(x.get(kind, {}) if kind else x).get(way) for x in found]
    return "-" if None in values else _spread(values)


def _spread(values: list[float]) -> str:
    """Percent, the mean and in brackets the least and the most."""
    if not values:
        return "not measured"
    mean, least, most = statistics.mean(values), min(values), max(values)
    shown = f"{100 * mean:.1f}"
    return shown if len(values) == 1 else f"{shown} ({100 * least:.1f} to {100 * most:.1f})"
