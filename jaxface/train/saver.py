"""Saves of a run that may fail: the disk is full, read-only or gone.

The one law: a save that fails costs no step. The state stays where it is trained, the
failure is told at once, the next save is tried as if nothing was, and a run whose last
save failed does not end as if it had not.

    saver = Saver(manager, home=workdir / "config.json")
    saver.save(5, state, position=40, ...)    # an error in the log, at worst
    saver.finish()                            # raises where the last one failed
"""

from __future__ import annotations

from typing import Any

import jax
from absl import logging
from etils import epath

from jaxface import checkpoint


class Saver:
    """What stands between a run and its checkpoints.

    Args:
        manager: from `checkpoint.open_manager`.
        home: a file beside the checkpoints, which is there as long as their disk is.
    """

    def __init__(self, manager: Any, *, home: epath.Path) -> None:
        self.manager = manager
        self._home = home
        self._failure: checkpoint.SaveError | None = None

    def save(self, step: int, state: Any, **facts: Any) -> None:
        """Start a save, as `checkpoint.save` does; a failure is told and kept.

        Raises:
            OSError: with several processes, of which the others wait for this one.
        """
        self.settle()
        self._failure = None
        try:
            self._try(step)
            checkpoint.save(self.manager, step, state, **facts)
        except checkpoint.SaveError as error:
            self._tell(error)

    def settle(self) -> None:
        """Wait for the save under way; a failure is told and kept.

        Raises:
            OSError: with several processes, once, with what there is instead.
        """
        if self._failure and jax.process_count() > 1:
            return  # told, and the others are not coming to an end of it
        try:
            checkpoint.settle(self.manager)
        except checkpoint.SaveError as error:
            self._tell(error)

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: it failed, with what there is instead.
        """
        self.settle()
        if self._failure:
            words = f"the last save failed: {self._said(self._failure)}"
            raise OSError(words) from self._failure

    def _try(self, step: int) -> None:
        """Write a byte and remove it, before a save that could not be made is begun.

        Orbax's threads wait five minutes for a folder that could not be made, and with
        them the end of the process.
        """
        probe = self.manager.directory / f".probe-{jax.process_index()}"
        try:
            # Where a mount vanished, its empty folder must not be written to.
            if not self._home.exists():
                raise FileNotFoundError(f"{self._home} is gone; is its disk mounted?")
            try:
                probe.write_bytes(b"?")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise checkpoint.SaveError(step, self.manager.directory, error) from error

    def _tell(self, error: checkpoint.SaveError) -> None:
        self._failure = error
        if jax.process_count() > 1:
            raise OSError(self._said(error)) from error
        logging.error("SAVE FAILED, training goes on to the next save: %s", error)

    def _said(self, error: checkpoint.SaveError) -> str:
        last = self.manager.latest_step()
        there = "no step" if last is None else f"step {last}"
        return (
            f"{error}; there is {there}: see to the disk and run the same command again"
        )
