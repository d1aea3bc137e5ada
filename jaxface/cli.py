"""How every script of launch/ starts and fails: quiet logs, one-line errors.

The one law: what a user can mend is told in one line and exits with 1; a traceback
is left for our own mistakes. `--debug` shows it for both. A run that a signal ended
early, saved, exits with 75: start it again. `--cpu-devices` is `--cpu_devices`.

    cli.run(main)              # instead of absl's app.run(main)
"""

from __future__ import annotations

import logging as standard
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from absl.logging import converter

_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error came from.")
_MENDABLE = (KeyError, ValueError, OSError, FloatingPointError, ImportError)
_WARNING, _ERROR = 30, 40  # the levels of Python's own logging


def run(main: Callable[[], None]) -> None:
    """Parse the flags, call `main`, and turn its errors into one line."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
        try:
            main()
        except _MENDABLE as error:
            if _DEBUG.value:
                raise
            sys.exit(f"error: {_line(error)}")

    app.run(guarded, flags_parser=_parse)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show what jaxface logs, and of other libraries only warnings.

    Orbax tells of every file it touches, as information and as warnings alike, and of
    a save that fails by three tracebacks: `train.saver` says it in a line, the file has
    them all.

    Args:
        level: absl's; less important lines are not shown.
    """
    logging.set_verbosity(logging.INFO)  # a log of its own may want more
    logging.set_stderrthreshold(level)
    least = converter.absl_to_standard(level)
    handler = logging.get_absl_handler()
    handler.addFilter(_wanted)
    handler.addFilter(lambda record: record.levelno >= least)
    handler.addFilter(lambda record: _DEBUG.value or "orbax" not in record.pathname)


def log_to_file(path: pathlib.Path) -> None:
    """Append all that jaxface logs to a file too, made with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(logging.PythonFormatter())
    handler.addFilter(_wanted)
    standard.getLogger().addHandler(handler)


class _LogFile(standard.FileHandler):
    """A log file whose disk may fail: said once, not by a traceback for every line."""

    failed = False

    def handleError(self, record: Any) -> None:  # noqa: N802
        """Take what was raised for a line."""
        if not self.failed:
            error = sys.exc_info()[1]
            print(
                f"{self.baseFilename}: {error}; lines may be missing", file=sys.stderr
            )
        self.failed = True


def _wanted(record: Any) -> bool:
    if "orbax" in record.pathname:
        return record.levelno >= standard.ERROR
    return record.levelno >= standard.WARNING or "jaxface" in record.pathname


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage([_spelled(word) for word in argv])
    except (KeyError, AttributeError, ValueError, OSError) as error:
        # A config file or an override of it that cannot be read.
        sys.exit(f"error: {_line(error)}")


def _spelled(word: str) -> str:
    """Return a flag as it is defined, whose words a hyphen may part too."""
    name, equals, value = word.partition("=")
    flag = name.removeprefix("--").replace("-", "_")
    known = flag in flags.FLAGS or flag.removeprefix("no") in flags.FLAGS
    return f"--{flag}{equals}{value}" if known and name.startswith("--") else word


def _line(error: BaseException) -> str:
    # A KeyError prints its argument quoted, and ml_collections quotes it once more.
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    *_, last = text.replace("\\n", "\n").strip("'").splitlines()
    return last if "Did you mean" in last else " ".join(text.split())
