"""The terminal: what is said goes to stdout, what is wrong to stderr, and a script reads the exit status."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2


def fail(message: object, status: int = EXIT_WRONG_INPUT) -> NoReturn:
    """One line that says what is wrong, and the end."""
    err.print(f"[bold red]penstock:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(status)
