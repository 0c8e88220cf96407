"""The command line: `penstock serve | demo | predict | check | tune | bench | doctor | models | key`. Calls others.

What operators say to a running gateway stands in `gateway.admin.commands`.
"""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Any

import typer

from gateway import __version__, client, clients, config, screens, server
from gateway.admin import commands
from gateway.bench import options
from gateway.errors import InvalidModel, InvalidSettings
from gateway.terminal import EXIT_FAILED, err, fail, out

app = typer.Typer(
    name="penstock",
    help="An image-inference gateway: photos in over HTTP, labels out, one isolated process per device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option(help="Where the server is.")]


def _version(asked: bool) -> None:  # noqa: FBT001 - typer's callback
    if asked:
        out.print(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = None,
) -> None:
    pass


@app.command()
def serve(
    *,
    models: Annotated[str | None, typer.Option(help="Model repository: <model>/<version>/model.toml.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu or cuda:N; again for more workers.")] = None,
    decoders: Annotated[int | None, typer.Option(help="Decoder processes; 0: half of the cores, at least 2.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the running gateway's place when ready.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow changes in the repository.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings and exit.")] = False,
) -> None:
    """Serve a model repository over HTTP until SIGTERM or Ctrl-C."""
    flags: dict[str, Any] = {
        "models": models,
        "host": host,
        "port": port,
        "devices": tuple(device) if device else None,
        "decoders": decoders,
        "log_level": log_level,
        "watch": watch or None,
    }
    try:
        settings = config.load(config_file, os.environ, flags)
        if print_config:
            # Not through rich: this is a file's content.
            typer.echo(config.to_toml(settings), nl=False)
            return
        raise typer.Exit(server.run(settings, replace=replace))
    except (InvalidSettings, InvalidModel) as error:
        fail(error)


@app.command()
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Answer one photo and exit.")] = False,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.")] = 8080,
) -> None:
    """Build the demo model, serve it, classify a real photo, and go on serving until Ctrl-C."""
    try:
        from gateway.demo import show  # noqa: PLC0415 - needs the `demo` extra
    except ImportError as error:
        fail(f"the demo needs {error.name}; install it with: pip install 'penstock[cpu,demo]'")
    try:
        raise typer.Exit(show.run(out, port=port, once=once))
    except (InvalidSettings, InvalidModel, client.ServerSaysNo, OSError, show.UnsafeWeights) as error:
        fail(error)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="NAME or NAME/VERSION.")],
    files: Annotated[list[Path], typer.Argument(help="Image files.")],
    *,
    url: Url = DEFAULT_URL,
    top_k: Annotated[int | None, typer.Option(help="Classes per image; default: the model's.")] = None,
) -> None:
    """Send image files to a running server and print what it says of each."""
    failed = False
    try:
        for chunk in client.chunks(files):
            answers = client.predict(url, model, [image for _, image in chunk], top_k)
            for (file, _), answer in zip(chunk, answers, strict=True):
                out.print(screens.answer(str(file), answer))
                failed = failed or "error" in answer
    except client.ServerSaysNo as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def models(*, url: Url = DEFAULT_URL) -> None:
    """List the models of a running server."""
    try:
        out.print(screens.models(client.models(url)))
    except client.ServerSaysNo as error:
        fail(error)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="<model>/<version>, <model>, or a whole repository.")],
    *,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
) -> None:
    """Validate a model directory as the server would: read it, load it in a worker, warm it, measure it."""
    try:
        refused = screens.check(out, directory, device)
    except (InvalidSettings, InvalidModel) as error:
        fail(error)
    raise typer.Exit(1 if refused else 0)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="<model>/<version>, or NAME or NAME/VERSION with --models.")],
    *,
    deadline_ms: Annotated[float, typer.Option(help="What a request has, from its arrival to its answer.")],
    models: Annotated[str | None, typer.Option(help="Model repository that MODEL is a name in.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu or cuda:N; again for more workers.")] = None,
    decoders: Annotated[int | None, typer.Option(help="Decoder processes; 0: half of the cores, at least 2.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of your own photos; else one is made up.")] = None,
    minutes: Annotated[float, typer.Option(help="How long it may take, about.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="Also draw the plot into this PNG (needs matplotlib).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave model.toml as it is.")] = False,
) -> None:
    """Measure a model on this machine and write the batching that keeps a deadline at the highest rate."""
    from gateway.tuning import command  # noqa: PLC0415 - brings Pillow along, which a gateway does without

    flags: dict[str, Any] = {"models": models, "devices": tuple(device) if device else None, "decoders": decoders}
    try:
        settings = config.load(config_file, os.environ, flags)
        found = command.find(model, settings, in_repository=models is not None)
        goal = command.goal_of(found, settings, deadline_ms=deadline_ms, minutes=minutes, images=images)
        status = command.run(out, goal, png=plot, dry_run=dry_run)
    except command.WRONG as error:
        fail(error)
    raise typer.Exit(status)


@app.command()
def doctor(
    *,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu or cuda:N; again for more of them.")] = None,
    trials: Annotated[bool, typer.Option("--run", help="Run a small model on each device as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which devices and backends can be used on this machine, what is missing, and how to get it."""
    from gateway.doctor import command  # noqa: PLC0415 - a gateway does without

    flags: dict[str, Any] = {"devices": tuple(device) if device else None}
    try:
        settings = config.load(config_file, os.environ, flags)
        good = command.run(out, settings, device or (), as_json=as_json, trials=trials)
    except InvalidSettings as error:
        fail(error)
    raise typer.Exit(0 if good else EXIT_FAILED)


@app.command()
def key(name: Annotated[str, typer.Argument(help="Whose key it is; the metrics name it.")]) -> None:
    """Make a client's key: the key itself on stderr, this once; its settings on stdout, to append to the file."""
    made = clients.new_key()
    try:
        table = clients.to_toml(name, made)
    except InvalidSettings as error:
        fail(error)
    err.print(f"The key of {name}, shown this once; it is sent as Authorization: Bearer KEY:\n{made}", soft_wrap=True)
    typer.echo(table, nl=False)


options.register(app)
commands.register(app)


def main() -> None:
    """Entry point of `penstock` and `python -m gateway`."""
    app()
