"""The training: steps, checkpoints, and the final model."""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import is_unused, read_json, write_json
from danqing.engine.core.logs import say
from danqing.engine.core.progress import OpenProgress, Progress, silent
from danqing.engine.core.storage import RemotePath
from danqing.engine.evaluate.datasets import Suite
from danqing.engine.evaluate.evaluation import evaluate
from danqing.engine.evaluate.results import write_evaluations
from danqing.engine.evaluate.suites import open_suite
from danqing.engine.run.lock import lock_folder
from danqing.engine.run.log import logging_to
from danqing.engine.run.versions import ENGINE, current_versions
from danqing.engine.train.checkpoints import Checkpoints
from danqing.engine.train.evaluating import check_suite, trained_towers
from danqing.engine.train.journal import Journal, open_journal, read_lines
from danqing.engine.train.loader import Loader, TrainBatch
from danqing.engine.train.loss import siglip_loss
from danqing.engine.train.meter import Meter
from danqing.engine.train.model import SiglipTowers, Source, write_model
from danqing.engine.train.order import Order
from danqing.engine.train.ranks import Ranks, joined_ranks
from danqing.engine.train.recipe import TrainRecipe
from danqing.engine.train.shards import data_digest, find_shards, write_index

MANIFEST, MODEL, CHECKPOINTS, INDEX = "train.json", "model", "checkpoints", "index"


@dataclass(frozen=True)
class TrainOptions:
    """How to train, beside the recipe.

    Attributes:
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads: host threads of a process, on a CPU also of PyTorch; None: all cores.
        decode: `cpu`: decode pictures on the host; `auto`: on the device.
        log_to: `tensorboard`, `wandb`, `trackio`.
        metrics_port, metrics_address: where Prometheus metrics are served; None for nowhere.
        suite: evaluation suite; empty for none.
        every: steps between two evaluations; 0: only the final model is evaluated.
    """

    device: str = "auto"
    threads: int | None = None
    decode: str = "auto"
    log_to: tuple[str, ...] = ()
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"
    suite: str = ""
    every: int = 0


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        model: folder of the final model.
        steps: number of steps.
        last: the last line of train.jsonl that has a loss.
        is_first: whether this process is the first of several, which prints the result.
    """

    model: Path
    steps: int
    last: dict[str, Any]
    is_first: bool = True


def train(
    runs: Sequence[Path],
    checkpoint: Path,
    output: Path,
    recipe: TrainRecipe,
    options: TrainOptions | None = None,
    progress: OpenProgress = silent,
) -> Trained:
    """Trains a SigLIP model on the pairs that runs have written; goes on from the last checkpoint in `output`.

    Started by torchrun, every process calls it with the same arguments.

    Args:
        runs: folders of written runs.
        checkpoint: folder of the model to start from, in the published layout.
        output: receives train.json, train.jsonl, checkpoints/ and, at the end, model/.
        recipe: the settings.
        options: the device and what is logged.
        progress: shows the steps.

    Returns:
        Where the final model is.

    Raises:
        DanqingError: a run is not written, the checkpoint is not that of a SigLIP, or `output` holds another training
            or is inside a run.
    """
    options = options or TrainOptions()
    if options.every and not options.suite:
        raise DanqingError("--every N is how often to evaluate: name a suite with --evaluate")
    for folder in (checkpoint, output):
        if isinstance(folder, RemotePath):
            raise DanqingError(f"{folder}: a training reads its checkpoint from a local folder, and writes to one")
    _refuse_inside_run(output, runs)
    with joined_ranks(options.device, options.decode) as ranks, ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(lock_folder(output))
        ranks.wait()
        return _Training(runs, checkpoint, output, recipe, options, ranks).run(progress)


def _refuse_inside_run(output: Path, runs: Sequence[Path]) -> None:
    """Raises an error if a training would write into the folder of a run."""
    given = {folder.resolve() for folder in runs if not isinstance(folder, RemotePath)}
    for place in (output.resolve(), *output.resolve().parents):
        if (place / "run.json").is_file() and (place in given or (place / "scores").is_dir()):
            raise DanqingError(f"{output}: is inside the run {place}; choose an --output outside of it")


class _Training:
    """One process of a training."""

    def __init__(
        self,
        runs: Sequence[Path],
        checkpoint: Path,
        output: Path,
        recipe: TrainRecipe,
        options: TrainOptions,
        ranks: Ranks,
    ) -> None:
        self.output, self.recipe, self.options, self.ranks = output, recipe, options, ranks
        self.shards = find_shards(runs, recipe.pairs)
        if recipe.recaption_share and not any(shard.recaptioned for shard in self.shards):
            raise DanqingError(
                f"recaption_share is {recipe.recaption_share:g}, and no shard has recaptions; run `danqing recaption "
                f"{runs[0]}` and `danqing write {runs[0]}`, or leave it at 0"
            )
        try:
            rows = tuple(shard.rows for shard in self.shards)
            self.order = Order(rows, recipe.batch, recipe.seed, recipe.window_shards)
        except ValueError as problem:
            raise DanqingError(f"{runs[0]}: {problem}; --set batch=N") from None
        ranks.part(recipe.batch)  # a batch that cannot be divided is an error now
        self.steps = recipe.steps or recipe.epochs * self.order.steps_per_epoch
        self.source = Source.open(checkpoint)
        self.suite = open_suite(options.suite) if options.suite and ranks.is_first else None

    def run(self, progress: OpenProgress) -> Trained:
        """Trains, or finds that all is done."""
        suite = self.suite if self._lacks_evaluation() else None
        if suite:
            check_suite(suite, self.source, self.ranks.decoder)
        model_folder, journal = self.output / MODEL, self.output / "train.jsonl"
        model = None if model_folder.exists() else self.source.load()  # before the first file is written
        if self.ranks.is_first:
            self._note()
        self.ranks.wait()
        if model is None:
            if suite:  # the training ended before its evaluation
                model = Source.open(model_folder).load().to(self.ranks.device)
                with self._journal(self.steps) as lines:
                    self._evaluate(lines, self.steps, model, suite)
        else:
            log = self.output / ("train.log" if self.ranks.is_first else f"train-{self.ranks.rank}.log")
            with progress("train", 0, "steps") if self.ranks.is_first else silent("", 0) as shown, logging_to(log):
                self._train(model, shown)
            self.ranks.wait()
        last: dict[str, Any] = next((line for line in reversed(read_lines(journal)) if "loss" in line), {})
        return Trained(model_folder, self.steps, last, self.ranks.is_first)

    def _note(self) -> None:
        """Writes train.json, or compares it with that of a training which this one is to go on with."""
        path = self.output / MANIFEST
        identity = {
            "checkpoint": self.source.files,
            "data": data_digest(self.shards),
            "pairs": sum(shard.rows for shard in self.shards),
            "steps": self.steps,
        }
        if not path.exists():
            if not is_unused(self.output):
                raise DanqingError(f"{self.output}: holds other files and no training; choose another --output")
            recipe = {"recipe": self.recipe.to_dict()}
            write_json(path, recipe | identity | {"versions": {ENGINE: current_versions()[ENGINE]}})
            return
        found = read_json(path, "choose another --output")
        differences = self.recipe.differences(found.get("recipe", {})) + [
            f"{name}: {found.get(name)} there, {value} here"
            for name, value in identity.items()
            if found.get(name) != value
        ]
        if differences:
            listed = "\n  ".join(differences)
            raise DanqingError(f"{self.output} holds another training:\n  {listed}\nChoose another --output.")

    def _train(self, model: Any, shown: Progress) -> None:
        ranks, recipe = self.ranks, self.recipe
        if recipe.warm_up_steps > self.steps:
            shown.say(
                f"{self.steps:,} steps, and warm_up_steps is {recipe.warm_up_steps:,}: the learning rate ends below "
                f"{recipe.learning_rate:g}; --set warm_up_steps=N"
            )
        torch.manual_seed(recipe.seed)
        if ranks.device.type == "cpu" and self.options.threads:
            torch.set_num_threads(self.options.threads)
        model = model.to(ranks.device).train()
        optimizer = adamw(model, recipe, ranks.device)
        checkpoints = Checkpoints(self.output / CHECKPOINTS, recipe.keep_every_steps)
        first = checkpoints.load(model, optimizer, shown.say)
        ranks.wait()
        if ranks.is_first:
            for left in (self.output / CHECKPOINTS).glob("*.part"):
                shutil.rmtree(left)
        net, loader = self._net(model), self._loader()
        shown.expect(self.steps - first, 0)
        with ExitStack() as stack:
            journal = stack.enter_context(self._journal(first)) if ranks.is_first else None
            stack.callback(checkpoints.finish)
            batches = stack.enter_context(loader.batches(range(first, self.steps)))
            meter = Meter(ranks, model, recipe.batch)
            for step in range(first, self.steps):
                batch, rate = meter.timed(batches), recipe.learning_rate_at(step, self.steps)
                meter.add(*take_step(net, model, optimizer, batch, recipe, rate), batch.replaced)
                done = step + 1
                saves = done % recipe.checkpoint_steps == 0
                if done % recipe.log_steps == 0 or saves or done == self.steps:
                    line = meter.line(done, rate)
                    if journal:
                        journal.write(line)
                if saves or done == self.steps:
                    checkpoints.save(done, model, optimizer)
                checkpoints.commit_written()
                every = self.options.every
                if journal and self.suite and every and done % every == 0 and done < self.steps:
                    with meter.paused():
                        self._evaluate(journal, done, model, self.suite)
                shown.advance(1)
            checkpoints.finish()
            if ranks.is_first:
                write_model(model, self.source, self.output / MODEL, self.output.resolve().name)
            if journal and self.suite:  # after the model is written: a failing evaluation must not lose it
                self._evaluate(journal, self.steps, model, self.suite)

    def _net(self, model: Any) -> torch.nn.Module:
        """Both towers, compiled on a GPU, and within DDP if there are several ranks."""
        towers = SiglipTowers(model)
        if self.ranks.device.type == "cuda":
            if can_compile():
                towers.compile()
            else:
                say("torch.compile needs a C compiler and Python's headers (gcc, python3-dev): training without it")
        if self.ranks.count == 1:
            return towers
        return DistributedDataParallel(towers, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _loader(self) -> Loader:
        """The rank's loader, after the ranks have indexed all shards."""
        ranks = self.ranks
        for shard in self.shards[ranks.rank :: ranks.count]:
            write_index(shard, self.output / INDEX)
        ranks.wait()
        return Loader(
            self.shards, self.output / INDEX, self.order, self.source.image_input, self.source.tokenizer(), ranks,
            self.recipe.recaption_share, self.options.threads,
        )  # fmt: skip

    def _journal(self, first: int) -> AbstractContextManager[Journal]:
        options = self.options
        return open_journal(
            self.output, first, self.recipe.to_dict(), options.log_to, options.metrics_port, options.metrics_address
        )

    def _lacks_evaluation(self) -> bool:
        """Whether this rank has a suite whose evaluation of the final model is not in the journal."""
        if not self.suite:
            return False
        lines = read_lines(self.output / "train.jsonl")
        found = {name.rpartition("/")[0] for line in lines if line.get("step") == self.steps for name in line}
        return any(dataset.name not in found for dataset in self.suite.datasets)

    def _evaluate(self, journal: Journal, step: int, model: Any, suite: Suite) -> None:
        """Evaluates the model: a line of the journal, and evaluation.json. Other ranks wait at their next step."""
        name = f"{self.output.resolve().name}@{step}"
        with trained_towers(name, model.eval(), self.source, self.ranks.decoder) as towers:
            found = evaluate(towers, suite)
        model.train()
        write_evaluations(self.output / "evaluation.json", [found])
        metrics = {f"{row.dataset}/{name}": value for row in found.rows for name, value in row.metrics.items()}
        journal.write({"step": step} | metrics)


def can_compile() -> bool:
    """Whether torch.compile can build what Triton launches kernels with: in C, when a kernel is first used."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and (Path(sysconfig.get_config_var("INCLUDEPY")) / "Python.h").is_file()


def adamw(model: torch.nn.Module, recipe: TrainRecipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW without decay of biases, norms and the parameters of the logits."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, recipe.learning_rate, recipe.betas, fused=device.type == "cuda")


def take_step(
    net: torch.nn.Module,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    recipe: TrainRecipe,
    learning_rate: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes one optimizer step.

    Args:
        net: `SiglipTowers`, or DDP around them.
        model: the model inside.
        optimizer: of the model.
        batch: the rank's pairs.
        recipe: the bounds of gradient and scale.
        learning_rate: of this step.

    Returns:
        The rank's loss, and the norm of the gradient before it is clipped: float32, on the device.
    """
    kind = batch.pixels.device.type
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast(kind, torch.bfloat16) if kind == "cuda" else nullcontext():
        features = net(batch.pixels, batch.tokens)
    loss = siglip_loss(*features)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(recipe.max_logit_scale))
    return loss.detach(), norm.detach()
