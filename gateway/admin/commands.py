"""The commands for operators: `penstock load | unload | reload | set | drain | status | admin-token`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from rich.text import Text

from gateway import clients, config, paths
from gateway.admin import screens
from gateway.admin.client import AdminClient, Refused, model_path, read_token
from gateway.admin.wishes import apply, read_changes
from gateway.client import ServerSaysNo
from gateway.errors import InvalidSettings
from gateway.terminal import EXIT_FAILED, err, fail, out

EXIT_INTERRUPTED = 130

Name = Annotated[str, typer.Argument(help="The model's name.")]
Socket = Annotated[
    Path | None,
    typer.Option(help="The admin socket; by default that of a gateway with the settings of the environment."),
]
Url = Annotated[str | None, typer.Option(help="The admin port instead, as http://HOST:PORT; needs --token-file.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File that holds the token of the admin port.")]


class Where(NamedTuple):
    """The options that say where the gateway is."""

    socket: Path | None
    url: str | None
    token_file: Path | None

    def client(self) -> AdminClient:
        """A client for it. Ends the program when the options do not fit."""
        if self.url is not None:
            if self.socket is not None or self.token_file is None:
                fail("--url needs --token-file, and no --socket")
            if "://" not in self.url:
                fail(f"{self.url} is not an address; write http://HOST:PORT")
            return AdminClient(self.url, _token(self.token_file))
        if self.token_file is not None:
            fail("--token-file goes with --url; the admin socket asks for no token")
        return AdminClient(str(self.socket or _default_socket()))


def _token(file: Path) -> str:
    try:
        return read_token(file)
    except ServerSaysNo as error:
        fail(error)
    except OSError as error:
        fail(f"{file}: {error.strerror}")


def _default_socket() -> Path:
    """Where a gateway with these settings has its admin socket."""
    try:
        found = paths.admin_socket(config.load(None, os.environ, {}))
    except InvalidSettings as error:
        fail(error)
    except OSError as error:
        fail(f"there is no runtime folder ({error}); say where the admin socket is with --socket")
    if found is None:
        fail("PENSTOCK_ADMIN_SOCKET is 'off'; use --url and --token-file")
    return found


def _change(where: Where, method: str, path: str, document: dict[str, Any] | None = None) -> None:
    """Ask for long work and follow it to its end, which is the program's status."""
    admin = where.client()
    try:
        ended = screens.follow(out, admin.follow(admin.ask(method, path, document)))
    except ServerSaysNo as error:
        _say_no(error)
    except KeyboardInterrupt:
        err.print("the operation goes on; `penstock status` shows it", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    why = ended.get("error")
    if why:
        fail(f"{ended.get('kind')} failed: {why.get('code')}: {why.get('detail')}", EXIT_FAILED)
    out.print(screens.ended(ended), soft_wrap=True)


def _say_no(error: ServerSaysNo) -> NoReturn:
    """The server's no, and whose fault it is as the status."""
    if isinstance(error, Refused) and not error.is_ours:
        fail(error, EXIT_FAILED)
    fail(error)


def load(
    name: Name,
    *,
    version: Annotated[int | None, typer.Option(help="One version; else what the repository and settings say.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Have it answer requests that name no version.")] = False,
    socket: Socket = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Load a model, or one more version of it, into a running gateway."""
    if default and version is None:
        fail("--default needs --version; say which one")
    document: dict[str, Any] = {} if version is None else {"version": version, "default": default}
    _change(Where(socket, url, token_file), "POST", f"{model_path(name)}/versions", document)


def unload(
    name: Name,
    *,
    version: Annotated[int | None, typer.Option(help="One version; else all of them.")] = None,
    socket: Socket = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Unload a model, or one version of it; what it held in memory is given back."""
    query = "" if version is None else f"?version={version}"
    _change(Where(socket, url, token_file), "DELETE", f"{model_path(name)}{query}")


def reload(
    name: Name,
    *,
    version: Annotated[int | None, typer.Option(help="One version; else all that are served.")] = None,
    socket: Socket = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Read a model's files again; the old ones answer until the new ones are warm."""
    document = {} if version is None else {"version": version}
    _change(Where(socket, url, token_file), "POST", f"{model_path(name)}/reload", document)


def configure(
    name: Name,
    *,
    default: Annotated[int | None, typer.Option(help="Version that answers requests which name none.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="VERSION=WEIGHT: share of those requests; again for each. Replaces all.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="NAME=VERSION, or NAME= to take it away; again for more.")
    ] = None,
    shadow: Annotated[str | None, typer.Option(help="VERSION[:SHARE]: gets a copy of the default's requests.")] = None,
    clear: Annotated[
        list[str] | None, typer.Option(help="versions, default, aliases, weights or shadow: as if never set.")
    ] = None,
    socket: Socket = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Set a model's default version, aliases, weights and shadow; what is not named stays as it is."""
    try:
        changed = read_changes(default=default, weights=weight, aliases=alias, shadow=shadow, clear=clear)
    except ValueError as error:
        fail(error)
    where = Where(socket, url, token_file)
    try:
        model = where.client().ask("GET", model_path(name))
    except ServerSaysNo as error:
        _say_no(error)
    _change(where, "PUT", model_path(name), apply(model.get("want") or {}, changed))


def drain(*, socket: Socket = None, url: Url = None, token_file: TokenFile = None) -> None:
    """Have a running gateway answer what it accepted, and end, as on SIGTERM."""
    admin = Where(socket, url, token_file).client()
    said = None
    try:
        for status in admin.drain():
            in_flight = status.get("in_flight")
            if in_flight != said:
                said = in_flight
                out.print(Text(f"draining: {in_flight} image(s) in flight"))
    except ServerSaysNo as error:
        _say_no(error)
    except KeyboardInterrupt:
        err.print("the drain goes on", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    out.print("the gateway is gone")


def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As the gateway says it.")] = False,
    socket: Socket = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Show a running gateway: its models, workers, memory, and what is under way."""
    try:
        found = Where(socket, url, token_file).client().ask("GET", "/admin/status")
    except ServerSaysNo as error:
        _say_no(error)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        out.print(screens.status(found))


def admin_token() -> None:
    """Make the token of the admin port: the token on stderr, this once; its setting on stdout, for the file."""
    token = clients.new_key(clients.ADMIN_PREFIX)
    err.print(f"The admin token, shown this once; it belongs into a file for --token-file:\n{token}", soft_wrap=True)
    typer.echo(f'admin_token_sha256 = "{clients.digest_of(token)}"')


def register(app: typer.Typer) -> None:
    """Put the commands into the program."""
    for command in (load, unload, reload, drain, status):
        app.command()(command)
    app.command("set")(configure)
    app.command("admin-token")(admin_token)
