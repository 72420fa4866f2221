"""How the numbers of `benchmarks.scale` grow: as a plot, as a table, and against their limits.

Apart from the measuring so that a kept file can be drawn and judged again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES_A_POINT = 16.0
MOST_DELIVERY_BYTES = 300e6
MOST_RESUME_SECONDS = 1.0
MOST_GROWTH = 2.0
"""How much more a point of the last decade may cost than one of the decade before: 1 is linear, 10 is quadratic."""
_SHORTEST_SECONDS = 0.05
"""What takes less says nothing about growth: clocks of CPU time tick a hundred times a second."""

_LOADS = {"load_before": "before", "load_after": "at the end"}
_BEGIN, _END = "<!-- scale:begin -->", "<!-- scale:end -->"

Numbers = dict[str, Any]


def show_limits(measured: Numbers) -> bool:
    """Print every limit beside what was measured; whether all were kept."""
    kept = True
    for text, value, limit, unit in limits(measured):
        kept = kept and value <= limit
        print(f"{'kept' if value <= limit else 'BROKEN':<7} {text}: {value:,.3g} {unit} (at most {limit:g} {unit})")
    return kept


def limits(measured: Numbers) -> Iterator[tuple[str, float, float, str]]:
    """What is promised: text, measured value, limit, unit."""
    recorded, delivered = measured["recorded"], measured["delivered"]
    for shape, numbers in recorded.items():
        if shape.isdecimal():
            yield f"bytes on disk a point, {_title(shape)}", numbers["bytes_a_point"], MOST_BYTES_A_POINT, "bytes"
    yield from _growths("recording", {shape: n["call_us"] * n["steps"] / 1e6 for shape, n in recorded.items()})
    for backend, shapes in delivered.items():
        for shape, numbers in shapes.items():
            text = f"memory of the delivery to {backend}, {_title(shape)}"
            yield text, numbers["peak_bytes"] / 1e6, MOST_DELIVERY_BYTES / 1e6, "MB"
            left_out = sum(numbers["notes"].values())
            missing = abs(numbers["points"] - numbers["arrived"] - left_out)
            yield f"points missing at {backend} and not in its report, {_title(shape)}", missing, 0, ""
        # Its processor time: what else a machine and a server do meanwhile would be judged with the time that passes.
        yield from _growths(f"delivery to {backend}", {shape: n["cpu_seconds"] for shape, n in shapes.items()})
    if "resumed" in measured:
        numbers = measured["resumed"]
        for what in ("init_seconds", "first_delivered_seconds"):
            extra = numbers["1 GB"][what] - numbers["new"][what]
            text = what.removesuffix("_seconds").replace("_", " ")
            yield f"{text} at the end of 1 GB, more than of a new run", extra, MOST_RESUME_SECONDS, "s"


def _growths(what: str, costs: dict[str, float]) -> Iterator[tuple[str, float, float, str]]:
    """What a point of the last decade costs, beside one of the decade before: fixed costs drop out of both."""
    sizes = sorted(int(shape) for shape in costs if shape.isdecimal())
    if len(sizes) < 3:
        return
    small, middle, large = sizes[-3:]
    late = (costs[str(large)] - costs[str(middle)]) / (large - middle)
    early = (costs[str(middle)] - costs[str(small)]) / (middle - small)
    if costs[str(middle)] - costs[str(small)] < _SHORTEST_SECONDS:
        return
    yield f"{what}: cost of a point at {large:,}, beside {middle:,}", late / early, MOST_GROWTH, "x"


def markdown(measured: Numbers) -> str:
    """The tables for the documentation."""
    lines = [
        "| recorded | a call, us | longest call, ms | bytes a point | reserved more while it runs, MB"
        " | peak memory of training, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape, one in measured["recorded"].items():
        reserved = (one["reserved_bytes"] - one["bytes"]) / 1e6
        lines.append(
            f"| {_title(shape)} | {one['call_us']:,.1f} | {one['longest_call_ms']:,.1f} | {one['bytes_a_point']:,.1f} "
            f"| {max(reserved, 0):,.1f} | {one['peak_bytes'] / 1e6:,.0f} |"
        )
    lines += [
        "",
        "| delivered | to | seconds | CPU seconds of the delivery | points a second | peak memory, MB | arrived |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for backend, shapes in measured["delivered"].items():
        for shape, one in shapes.items():
            lines.append(
                f"| {_title(shape)} | {backend} | {one['seconds']:,.1f} | {one['cpu_seconds']:,.1f} "
                f"| {one['points'] / one['seconds']:,.0f} | {one['peak_bytes'] / 1e6:,.0f} | {one['arrived']:,} |"
            )
    if "resumed" in measured:
        lines += [
            "",
            "| going on with (best of rounds) | `init`, s | first step at its backend, s | `status`, s | `sync`, s |",
        ]
        lines.append("| --- | ---: | ---: | ---: | ---: |")
        for name in ("new", "1 GB"):
            one = measured["resumed"][name]
            title = (
                "a new run" if name == "new" else f"a journal of {measured['resumed']['journal_bytes'] / 1e9:.2f} GB"
            )
            seconds = ("init_seconds", "first_delivered_seconds", "status_seconds", "sync_seconds")
            lines.append(f"| {title} | {' | '.join(f'{one[key]:.2f}' for key in seconds)} |")
    return "\n".join([*lines, "", context(measured)])


def context(measured: Numbers) -> str:
    """When and where it was measured."""
    where = measured["machine"]
    known = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    loads = " and ".join(f"{measured[key]:.1f} {when}" for key, when in _LOADS.items() if key in measured)
    return (
        f"Measured {measured['date'][:10]} on {where['cores']} cores of {where['cpu']}, Linux {where['kernel']}, Python"
        f" {where['python']}; {known}. Processes that wanted to run, others' included: {loads}."
    )


def _title(shape: str) -> str:
    if shape == "wide":
        return "100,000 metrics in one step"
    if shape == "single":
        return "one metric a step"
    return f"{int(shape):,} points"


def write_page(measured: Numbers, docs: Path) -> None:
    """Put table and plot into the documentation."""
    page = docs / "scale.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{markdown(measured)}\n{_END}{after}")
    draw(measured, docs / "scale.svg")


def draw(measured: Numbers, target: Path) -> None:
    """Draw the growth: processor time and memory over the number of points; for the time both axes are logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    # The same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "trackhub"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    times, memory = figure.subplots(1, 2)
    recorded = measured["recorded"]
    sizes = sorted(int(shape) for shape in recorded if shape.isdecimal())
    seconds = [recorded[str(size)]["call_us"] * recorded[str(size)]["steps"] / 1e6 for size in sizes]
    times.plot(sizes, seconds, "o-", color="black", label="recording, all calls")
    memory.plot(sizes, [recorded[str(size)]["peak_bytes"] / 1e6 for size in sizes], "o-", color="black")
    for backend, shapes in measured["delivered"].items():
        line = times.plot(
            sizes, [shapes[str(size)]["cpu_seconds"] for size in sizes], "o-", label=f"delivery to {backend}"
        )
        color = line[0].get_color()
        memory.plot(sizes, [shapes[str(size)]["peak_bytes"] / 1e6 for size in sizes], "o-", color=color)
        if "wide" in shapes:
            memory.plot([shapes["wide"]["points"]], [shapes["wide"]["peak_bytes"] / 1e6], "x", color=color)
    first = seconds[0]
    times.plot(
        sizes,
        [first * size / sizes[0] for size in sizes],
        ":",
        color="gray",
        label="ten times the points, ten times the time",
    )
    times.set(xscale="log", yscale="log", xlabel="points in one run", ylabel="seconds", title="Processor time")
    memory.axhline(MOST_DELIVERY_BYTES / 1e6, color="gray", linestyle=":")
    memory.set(
        xscale="log", xlabel="points in one run (x: 100,000 metrics in one step)", title="Peak memory of the process"
    )
    memory.set(ylabel="MB", ylim=(0, 330))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    for axes in (times, memory):
        axes.grid(alpha=0.25)
    where = measured["machine"]
    about = f"measured {measured['date'][:10]} on {where['cores']} cores of {where['cpu']}, Python {where['python']}"
    figure.suptitle(about, fontsize="small", color="gray")
    figure.savefig(target, metadata={"Date": None})
