"""`danqing train`: from written runs to a trained model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

from cyclopts import Parameter

from danqing.engine.cli.app import MODELS, command
from danqing.engine.cli.options import (
    MONITORING,
    LocalFolder,
    MachineOptions,
    MetricsAddress,
    MetricsPort,
    Natural,
    StorageOptions,
    number_from,
    to_local_folder,
    to_paths,
)
from danqing.engine.cli.output import OutputOptions


@Parameter(name="*", group=MONITORING)
@dataclass(frozen=True)
class JournalOptions:
    """What is measured while the model is trained, and where it is shown."""

    suite: Annotated[
        str,
        Parameter(
            name="--evaluate",
            metavar="SUITE",
            help="Evaluate the model on this suite at the end (see `danqing evaluate`).",
        ),
    ] = ""
    every: Annotated[Natural, Parameter(metavar="N", help="Also evaluate it every N steps.")] = 0
    log_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        Parameter(help="Also send the lines of train.jsonl there; repeatable."),
    ] = ()
    metrics_port: Annotated[MetricsPort, Parameter(help="Serve loss, rate and data wait to Prometheus.")] = None
    metrics_address: MetricsAddress = "127.0.0.1"


@command(
    "danqing train out --from siglip2-base-patch16-256 -o trained --set batch=768",
    "torchrun --nproc-per-node 8 -m danqing.engine.cli.main train out --from checkpoint -o trained --set batch=6144",
    "danqing models export trained/model",
    group=MODELS,
)
def train(
    runs: Annotated[list[Path], Parameter(metavar="RUN", converter=to_paths, help="Folders of written runs.")],
    /,
    *,
    checkpoint: Annotated[
        Path,
        Parameter(
            name="--from",
            converter=to_local_folder,
            metavar="CHECKPOINT",
            help="Model to start from: folder with config.json, weights and tokenizer.model of a SigLIP 2, as "
            "published, or model/ of another training.",
        ),
    ],
    output: LocalFolder,
    recipe: Annotated[str, Parameter(metavar="NAME|FILE", help="danqing, or a YAML file.")] = "danqing",
    settings: Annotated[
        tuple[str, ...],
        Parameter(name="--set", metavar="KEY=VALUE", help="Override one value, e.g. batch=1536; repeatable."),
    ] = (),
    recaption_share: Annotated[
        float | None,
        Parameter(
            metavar="P",
            validator=number_from(0, 1),
            help="Share of the pairs whose text is their recaption, if they have one; as --set recaption_share=P.",
        ),
    ] = None,
    decode: Annotated[
        Literal["auto", "cpu"], Parameter(help="Where pictures are decoded and resized; auto: where the model is.")
    ] = "auto",
    machine: MachineOptions = MachineOptions(),
    journal: JournalOptions = JournalOptions(),
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> None:
    """Train a SigLIP model on the pairs that runs have kept.

    A second start goes on from the last checkpoint. Started by torchrun, it uses a GPU a process; the batches are the
    same for any number of processes.
    """
    from danqing.engine.report.terminal import ProgressBar, console
    from danqing.engine.train import import_training
    from danqing.engine.train.recipe import load_train_recipe

    share = [] if recaption_share is None else [f"recaption_share={recaption_share}"]
    chosen = load_train_recipe(recipe, [*settings, *share])
    loop = import_training()
    options = loop.TrainOptions(machine.chosen, machine.threads, decode, **asdict(journal))
    with out.progress(machine.note):
        found = loop.train(runs, checkpoint, output, chosen, options, ProgressBar)
    if found.is_first and not out.finish({"folder": output, "model": found.model, "steps": found.steps, **found.last}):
        console.print(f"{found.model}: {found.steps:,} steps, loss {found.last.get('loss', float('nan')):.4f}")
        console.print(f"Next: danqing models export {quote(str(found.model))}", soft_wrap=True)
