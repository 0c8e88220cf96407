"""The options of `penstock bench`. Parses; what is done with them stands in `command`, which is imported when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.bench.wish import Form, Load, Wish
from gateway.terminal import err, fail, out

EXIT_INTERRUPTED = 130

_Url = Annotated[str, typer.Argument(help="http://HOST:PORT of a Penstock server, or the whole URL of any endpoint.")]
_Model = Annotated[str | None, typer.Option(help="NAME or NAME/VERSION; needless where there is one.")]
_Load = Annotated[Load, typer.Option(help="Who sends when.")]
_Connections = Annotated[int | None, typer.Option(help="closed, offline: as many (32); others: at most (1024).")]
_Rate = Annotated[float | None, typer.Option(help="poisson, bursts, server: requests a second.")]
_Burst = Annotated[int, typer.Option(help="bursts: requests that come at once.")]
_Trace = Annotated[Path | None, typer.Option(help="trace: file with a line 'seconds bytes' per request.")]
_Speed = Annotated[float, typer.Option(help="trace: replay it so many times as fast.")]
_Seconds = Annotated[float | None, typer.Option(help="How long; default 10, of MLPerf's scenarios what rules say.")]
_Warmup = Annotated[float, typer.Option("--warmup", help="Seconds in a closed loop before, not counted.")]
_Form = Annotated[Form | None, typer.Option(help="How images lie in a body; default raw, for several msgpack.")]
_Images = Annotated[list[Path] | None, typer.Option(help="Image file or a folder of them; again for more.")]
_Size = Annotated[str, typer.Option(help="Of the made-up image, where there are no --images.")]
_PerRequest = Annotated[int | None, typer.Option("--images-per-request", help="Images in one body; default 1.")]
_Body = Annotated[Path | None, typer.Option(help="Send this file as it is instead.")]
_Type = Annotated[str | None, typer.Option("--content-type", help="Of --body.")]
_Header = Annotated[list[str] | None, typer.Option(help="'Name: value', sent too; again for more.")]
_Expect = Annotated[list[str] | None, typer.Option(help="Text in every answer, or $.path[0]=value; again for more.")]
_Bound = Annotated[float | None, typer.Option("--bound-ms", help="server, --search: what a request may take.")]
_Percentile = Annotated[float, typer.Option(help="--search: share of requests that keep the bound.")]
_Search = Annotated[bool, typer.Option("--search", help="Find the largest rate that keeps the bound.")]
_Timeout = Annotated[float, typer.Option("--timeout", help="Seconds after which an answer is given up.")]
_Seed = Annotated[int, typer.Option(help="Of arrivals; the same seed, the same times.")]
_Pid = Annotated[list[int] | None, typer.Option(help="The server's process, where its port does not tell; again.")]
_Json = Annotated[str | None, typer.Option("--json", help="Write the report as JSON; - for standard output.")]
_Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page, with plots.")]
_Record = Annotated[Path | None, typer.Option("--record", help="Write the requests' times and sizes as a trace.")]


def bench(
    url: _Url,
    *,
    model: _Model = None,
    load: _Load = Load.CLOSED,
    connections: _Connections = None,
    rate: _Rate = None,
    burst_size: _Burst = 16,
    trace: _Trace = None,
    speed: _Speed = 1.0,
    seconds: _Seconds = None,
    warmup: _Warmup = 2.0,
    form: _Form = None,
    images: _Images = None,
    size: _Size = "500x375",
    images_per_request: _PerRequest = None,
    body: _Body = None,
    content_type: _Type = None,
    header: _Header = None,
    expect: _Expect = None,
    bound_ms: _Bound = None,
    percentile: _Percentile = 99.0,
    search: _Search = False,
    timeout: _Timeout = 10.0,
    seed: _Seed = 1,
    pid: _Pid = None,
    json: _Json = None,
    html: _Html = None,
    record: _Record = None,
) -> None:
    """Load a server, this one or any other, and report what came of it."""
    from gateway.bench import command  # noqa: PLC0415 - brings Pillow along, which a gateway does without

    wish = Wish(
        url=url,
        model=model,
        load=load,
        connections=connections,
        rate=rate,
        burst_size=burst_size,
        trace=trace,
        speed=speed,
        seconds=seconds,
        warmup_s=warmup,
        form=form,
        images=tuple(images or ()),
        size=size,
        images_per_request=images_per_request,
        body=body,
        content_type=content_type,
        headers=tuple(header or ()),
        expect=tuple(expect or ()),
        bound_ms=bound_ms,
        percentile=percentile,
        search=search,
        timeout_s=timeout,
        seed=seed,
        pids=tuple(pid or ()),
    )
    try:
        status = command.run(err if json == command.STDOUT else out, wish, command.Files(json, html, record))
    except command.WRONG as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted; nothing is reported", EXIT_INTERRUPTED)
    raise typer.Exit(status)


def register(app: typer.Typer) -> None:
    """Put the command into the program."""
    app.command()(bench)
