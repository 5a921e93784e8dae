"""Checkpoints of a training: written beside it, complete or not there, and readable by any number of ranks."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.utils._pytree import tree_map

from danqing.engine.core.errors import DanqingError

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # PyTorch's remark on one process
KEPT = 2
"""Newest checkpoints that are kept."""
NAME = re.compile(r"\d{6,}")


class Checkpoints:
    """The checkpoints in a folder.

    All ranks hold the same parameters (DDP), so the first rank writes them all, in a thread of its own, and to a folder
    `NNNNNN.part` that is renamed when it is complete.

    Args:
        folder: where they are.
        keep_every: checkpoints of steps divisible by this are never removed; None: only the newest are kept.
    """

    def __init__(self, folder: Path, keep_every: int | None = None) -> None:
        self.folder, self.keep_every = folder, keep_every
        self._pending: tuple[int, Future[Any]] | None = None
        # A thread must not use the process group of the training, which is busy.
        self._alone = dist.new_group([0], backend="gloo") if dist.is_initialized() else None
        self._writes = not dist.is_initialized() or dist.get_rank() == 0

    def steps(self) -> list[int]:
        """The steps after which there is a checkpoint, in order."""
        return sorted(int(path.name) for path in self.folder.glob("*") if NAME.fullmatch(path.name))

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]) -> int:
        """Loads the newest checkpoint that can be read into a model and its optimizer.

        Args:
            model: receives the parameters.
            optimizer: receives its moments.
            warn: called with a line for each checkpoint that cannot be read.

        Returns:
            The checkpoint's step, 0 if there is none.

        Raises:
            DanqingError: there are checkpoints, and none can be read.
        """
        found = self.steps()
        for step in reversed(found):
            path, state = self.folder / f"{step:06d}", _state(model, optimizer)
            try:
                load(state, checkpoint_id=path)
            except torch.OutOfMemoryError:
                raise
            except (Exception, CheckpointException) as problem:  # of many types: what unpickling damaged bytes raises
                warn(f"{path}: cannot be read ({type(problem).__name__}); the checkpoint before it is used")
                continue
            set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            return step
        if found:
            raise DanqingError(
                f"{self.folder}: no checkpoint can be read; remove this folder to train again from the first step"
            )
        return 0

    def save(self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begins to write a checkpoint; first waits until the one before it is written."""
        self.finish()
        if not self._writes:
            return
        state = _state(model, optimizer)
        if next(model.parameters()).device.type == "cpu":  # not every PyTorch copies these before the call returns
            state = tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, state)
        path = self.folder / f"{step:06d}.part"
        shutil.rmtree(path, ignore_errors=True)
        saving: Any = async_save(state, checkpoint_id=path, process_group=self._alone)
        self._pending = step, saving

    def commit_written(self) -> None:
        """Renames the checkpoint that is being written, if it is complete by now."""
        if self._pending and self._pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Waits until a checkpoint that is being written is complete, and renames it; removes old ones."""
        if self._pending is None:
            return
        (step, saving), self._pending = self._pending, None
        saving.result()
        path = self.folder / f"{step:06d}"
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".part").rename(path)
        for old in self.steps()[:-KEPT]:
            if not (self.keep_every and old % self.keep_every == 0):
                shutil.rmtree(self.folder / f"{old:06d}", ignore_errors=True)


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    parameters, moments = get_state_dict(model, optimizer)
    return {"model": parameters, "optimizer": moments}
