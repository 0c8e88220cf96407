"""A report as one HTML page: figures, plots, tables; no script, nothing fetched. Pure, from the JSON document."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from gateway.bench import svg
from gateway.bench.svg import Line, Ticks, number

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#667;--rule:#dde1e6;--paper:#fff;--good:#1a7f37;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#99a;--rule:#333a44;--paper:#14171c;--good:#4ac26b;
--bad:#ff7b6b}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1100px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.3rem 0}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.75rem;margin:1rem 0}
.tile{border:1px solid var(--rule);border-radius:8px;padding:.6rem .8rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums;white-space:nowrap}
.plots{margin-top:1rem;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:1rem}
figure{margin:0;border:1px solid var(--rule);border-radius:8px;padding:.6rem}
figcaption{font-weight:600}svg{width:100%;height:auto;display:block}
.grid{stroke:var(--rule);fill:none}.tick{font:11px system-ui;fill:var(--dim)}.name{font:11px system-ui;fill:var(--ink)}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.8rem}
.legend i{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin-right:.35rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}
.warn{border-left:4px solid var(--bad);padding:.4rem .8rem;margin:1rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem;margin:0}
"""

_COLOURS = ("#2f6fde", "#e07b00", "#2a9d5b", "#c0399f", "#8a6df0", "#b58900", "#d1495b", "#4c9aa8")

_PLACES = {"p50": 1.0, "p75": 1.6, "p90": 2.3, "p95": 2.9, "p99": 4.0, "p99.5": 4.6, "p99.9": 5.6, "p99.99": 7.0}
"""Where percentiles stand: each nine takes as much room as the last."""


def render(found: dict[str, Any]) -> str:
    """The whole page of a document."""
    colours = "".join(
        f".line.c{place}{{stroke:{colour}}}.bar.c{place}{{fill:{colour}}}.legend .c{place}{{background:{colour}}}"
        for place, colour in enumerate(_COLOURS)
    )
    title = f"{found['load']['kind']} load on {found['url']}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}{colours}</style></head><body>",
        f"<h1>{escape(title)}</h1>{_facts(found)}{_tiles(found)}{_limits(found)}",
        _scenario(found["mlperf"]),
        f'<div class="plots">{"".join(_plots(found))}</div>',
        _tables(found),
        "</body></html>\n",
    ]
    return "".join(parts)


def _facts(found: dict[str, Any]) -> str:
    load, request, machine = found["load"], found["request"], found["machine"]
    facts = [
        found["began"],
        f"model {found['model']}" if found["model"] else "",
        f"{number(load['rate'])} requests/s offered" if load["rate"] is not None else "",
        f"bursts of {load['burst_size']}" if load["burst_size"] else "",
        f"{load['connections']} connections" if load["connections"] else "",
        f"{request['images']} image(s), {number(request['bytes_mean'])} bytes a request",
        f"seed {load['seed']}",
        f"generator: {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}",
        f"penstock {found['penstock']}",
    ]
    return f'<p class="dim">{escape(" · ".join(fact for fact in facts if fact))}</p>'


def _tiles(found: dict[str, Any]) -> str:
    latency = found["latency_ms"]
    tiles = [
        (number(found["rate"]), "good answers/s"),
        (number(found["images_rate"]), "images/s") if found["request"]["images"] > 1 else None,
        (f"{number(latency['p50'])} ms", "p50"),
        (f"{number(latency['p99'])} ms", "p99"),
        (f"{number(latency['p99.9'])} ms", "p99.9"),
        (number(found["good_count"]), "good answers"),
        (number(found["failed_count"]), "failures"),
    ]
    search = found["search"]
    if search is not None:
        words = f"largest rate with p{search['percentile']:g} ≤ {number(search['bound_ms'])} ms"
        tiles.insert(0, (f"{number(search['rate'])}/s", words))
    shown = (f'<div class="tile"><b>{escape(tile[0])}</b>{escape(tile[1])}</div>' for tile in tiles if tile)
    return f'<div class="tiles">{"".join(shown)}</div>'


def _limits(found: dict[str, Any]) -> str:
    """Whether the generator was the limit, in words, either way."""
    own = found["generator"]
    figures = (
        f"late by {number(own['lateness_p99_ms'])} ms (p99), its loop by {number(own['loop_p99_ms'])} ms, "
        f"{own['cpu_share']:.0%} of a core used, {own['waited_share']:.0%} of the time without one"
    )
    if not own["limits"]:
        return f'<p><b class="good">The generator was not the limit</b>: {escape(figures)}.</p>'
    words = "".join(f"<p>{escape(limit)}</p>" for limit in own["limits"])
    return f'<div class="warn"><b class="bad">The generator was a limit itself</b>{words}<p>{escape(figures)}</p></div>'


def _scenario(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    colour, word = ("good", "valid") if verdict["valid"] else ("bad", "not valid")
    rules = [[rule["name"], "kept" if rule["kept"] else "not kept", rule["words"]] for rule in verdict["rules"]]
    return (
        f"<h2>MLPerf scenario {escape(verdict['scenario'])}</h2><p>{escape(verdict['metric'])}: "
        f"<b>{number(verdict['value'])} {escape(verdict['unit'])}</b>; by the rules of load and counting "
        f'<b class="{colour}">{word}</b></p>{_table(["rule", "", ""], rules)}'
    )


def _plots(found: dict[str, Any]) -> list[str]:
    spans = found["over_time"]
    from_due, from_sent = found["latency_ms"], found["latency_from_sent_ms"]
    percentiles = [
        Line(name, [(place, table[key]) for key, place in _PLACES.items()], style)
        for name, table, style in (("from when due", from_due, ""), ("from when sent", from_sent, "dashed"))
    ]
    rates = [
        Line("good answers", [(span["at_s"], span["rate"]) for span in spans]),
        Line("failures", [(span["at_s"], span["failed_rate"]) for span in spans]),
    ]
    if found["load"]["rate"] is not None:
        ends = (0.0, found["length_s"])
        rates.append(Line("offered", [(at, found["load"]["rate"]) for at in ends], "dashed"))
    latencies = [Line(key[:3], [(span["at_s"], span[key]) for span in spans]) for key in ("p50_ms", "p99_ms")]
    ticks = Ticks(list(_PLACES.values()), list(_PLACES))
    plots = [
        svg.lines("Latency percentiles of good answers", percentiles, x_name="percentile", y_name="ms", x_ticks=ticks),
        svg.lines("Rate over time", rates, x_name="s", y_name="requests/s"),
        svg.lines("Latency of good answers over time", latencies, x_name="s", y_name="ms"),
    ]
    if found["search"] is not None:
        plots.append(_searched(found["search"]))
    if found["inside"] is not None:
        plots += _inside(found["inside"])
    if found["processes"]:
        cpu: dict[str, float] = {}
        for process in found["processes"]:
            cpu[f"{process['role']} {process['pid']}"] = process["cpu_us_per_request"]
        if len(cpu) > 1:
            cpu["together"] = sum(cpu.values())
        plots.append(svg.rows("CPU per request", cpu, unit="µs"))
    return plots


def _searched(search: dict[str, Any]) -> str:
    """The tail against the rate; what took over three bounds stands at three."""
    bound = search["bound_ms"]
    probes = sorted(search["probes"], key=lambda probe: probe["rate"])
    points = [(probe["rate"], min(probe["tail_ms"] or 3 * bound, 3 * bound)) for probe in probes]
    drawn = [
        Line(f"p{search['percentile']:g} (three bounds at most)", points, "dots"),
        Line("bound", [(0.0, bound), (points[-1][0], bound)], "dashed"),
    ]
    return svg.lines("Rates tried", drawn, x_name="requests/s", y_name="ms")


def _inside(inside: dict[str, Any]) -> list[str]:
    plots = []
    if inside["batches"]:
        sizes = sorted({size for table in inside["batches"].values() for size in table}, key=_size_order)
        stacks = {seal: [float(table.get(size, 0)) for size in sizes] for seal, table in inside["batches"].items()}
        mean = number(inside["batch_images_mean"])
        title = f"Batches by size and why they were closed (mean {mean} images)"
        plots.append(svg.columns(title, [_at_most(size) for size in sizes], stacks, x_name="images", y_name="batches"))
    if inside["stages_ms"]:
        plots.append(svg.rows("Where an image's time went (means)", inside["stages_ms"], unit="ms"))
    if inside["parts_ms"]:
        plots.append(svg.rows("A batch in the worker (means)", inside["parts_ms"], unit="ms"))
    return plots


def _size_order(size: str) -> float:
    return float("inf") if size == "more" else float(size)


def _at_most(size: str) -> str:
    return size if size in {"1", "2", "more"} else f"≤ {size}"


def _tables(found: dict[str, Any]) -> str:
    parts = ["<h2>Answers</h2>", _table(["status", "count"], [[k, number(v)] for k, v in found["statuses"].items()])]
    if found["failures"]:
        shown = [[name, f"<pre>{escape(body)}</pre>"] for name, body in found["failures"].items()]
        parts += ["<h2>The first failure of each kind</h2>", _table(["status", "its body begins"], shown, marked=1)]
    latency, sent = found["latency_ms"], found["latency_from_sent_ms"]
    rows = [[name, number(value), number(sent.get(name))] for name, value in latency.items()]
    parts += ["<h2>Latency of good answers, ms</h2>", _table(["", "from when due", "from when sent"], rows)]
    if found["inside"] is not None:
        images = [[code, number(count)] for code, count in found["inside"]["images"].items()]
        parts += ["<h2>Images, by the server's own count</h2>", _table(["outcome", "count"], images)]
    if found["search"] is not None:
        probes = [
            [
                number(probe["rate"]),
                number(probe["due_count"]),
                number(probe["tail_ms"]),
                f"{probe['failed_share']:.2%}",
                ("confirmed" if probe["confirms"] else "kept") if probe["met"] else "not kept",
            ]
            for probe in found["search"]["probes"]
        ]
        head = ["requests/s", "requests", f"p{found['search']['percentile']:g} ms", "failed", "bound"]
        parts += ["<h2>Rates tried</h2>", _table(head, probes)]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: int = -1) -> str:
    """`marked`: a column that is HTML already."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{cell if place == marked else escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{names}</tr>{body}</table>"
