"""The command `hotspare`: daemons, their operators' verbs, a load and a demonstration.

`main` parses, runs one command, and turns every way to end into an exit code. Users' mistakes end in one
sentence; only a defect of ours shows a traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

from hotspare.cli.arguments import parse
from hotspare.cli.exits import Exit, exit_for
from hotspare.cli.output import print_error, say
from hotspare.errors import HotspareError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (or of the process) and returns its exit code.

    Raises SystemExit where argparse does: for help, and for arguments that cannot be parsed.
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except HotspareError as exc:
        print_error(exc, as_json=options.json)
        return exit_for(exc)
    except BrokenPipeError:
        _stop_printing()
        return Exit.UNREAD
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception:
        traceback.print_exc()
        say("hotspare: this is a defect in hotspare; please report it with the lines above")
        return Exit.DEFECT


def _run(options: Namespace) -> int:
    # Each command is imported when it runs, so that `hotspare get` does not wait for what `demo` draws with.
    match options.command:
        case "serve":
            from hotspare.cli.serve import serve

            return serve(options)
        case "run":
            from hotspare.cli.run import run as run_command

            return run_command(options)
        case "demo":
            from hotspare.cli.demo import demo

            return demo(options)
        case "new-key":
            from hotspare.cli.new_key import new_key

            return new_key()
        case "version":
            from hotspare.cli.version import version

            return version(options)
    from hotspare.cli.commands import run

    return run(options)


def _stop_printing() -> None:
    """Python flushes stdout once more when it exits; that must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
