"""How the command ends: every error as one sentence, every ending with its own exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, NoReturn

import typer

from compressor.errors import EXIT_BAD_INPUT, EXIT_PASS, EXIT_RUN_FAILED, RankpressError

# Typer exits with 2 on a mistyped flag, which here would say "undecided"; all bad input is 3.
_UsageError: Any = typer.BadParameter.__base__

_INTERRUPTED, _READER_GONE = 130, 141  # the shell's custom: 128 + SIGINT, 128 + SIGPIPE


def _leave_quietly() -> NoReturn:
    """Leave as other tools do when nobody reads on, as behind ``| head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has somewhere to go
    sys.exit(_READER_GONE)


def run_and_leave(app: typer.Typer) -> NoReturn:
    """Run the command that the arguments name and leave with its exit code."""
    try:
        code = app(standalone_mode=False) or EXIT_PASS
        if code == _INTERRUPTED:  # Typer makes this of an interrupt, without a word
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer makes this exit code 1, here: "gate failed"
            _leave_quietly()
        raise
    except BrokenPipeError:
        _leave_quietly()
    except _UsageError as error:
        print(f"error: command line: {error.format_message()}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except RankpressError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted; a compress run continues where it stopped when started again", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except OSError as error:  # a full disk, a folder that vanished, missing rights: nothing of ours to debug
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_RUN_FAILED)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("cli", "compressor"):
            raise
        install = "pip install 'rankpress[compress]' (with torch==2.13.0 named first for the CPU build)"
        print(f"error: this command needs the package {error.name}, which is not installed; {install}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except Exception:  # noqa: BLE001 - a defect of ours: show its trace, and not exit code 1: "gate failed"
        traceback.print_exc()
        sys.exit(EXIT_RUN_FAILED)
