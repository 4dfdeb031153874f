"""The command line: one thin file per command group; nothing heavy is imported until a command needs it."""

from __future__ import annotations

import sys


def main(args: list[str] | None = None) -> None:
    """Run a command; an error that the user can cause is one line on stderr and exit status 2."""
    from limbeck.cli.app import app
    from limbeck.errors import UserError

    try:
        app(args)
    except UserError as error:
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
