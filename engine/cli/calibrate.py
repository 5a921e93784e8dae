"""`danqing calibrate`: how to choose a threshold for a model, measured on a run's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import App, Parameter

from danqing.engine.cli.app import CALIBRATE_HELP, PARAMETERS, RUNS, command, examples_text
from danqing.engine.cli.options import MachineOptions, PositiveInt, RunFolder, StorageOptions, whole_from
from danqing.engine.cli.output import OutputOptions

EXAMPLES = ("danqing calibrate redundancy out", "danqing calibrate redundancy out --within 0.05,0.1,0.2 --sample 200")

calibrate = App("calibrate", help=CALIBRATE_HELP, help_epilogue=examples_text(EXAMPLES), default_parameter=PARAMETERS)


def _distances(kind: Any, tokens: Sequence[Any]) -> tuple[float, ...]:
    try:
        return tuple(float(word) for token in tokens for word in token.value.split(","))
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a list of numbers; write for example 0.05,0.1,0.2.") from None


@command(*EXAMPLES, group=RUNS, parent=calibrate)
def redundancy(
    run: RunFolder,
    /,
    *,
    within: Annotated[
        tuple[float, ...],
        Parameter(
            converter=_distances,
            n_tokens=1,
            metavar="X,…",
            help="Cosine distances to try (default: 0.5, 0.8, 1, 1.5 and 2 times the recipe's).",
        ),
    ] = (),
    sample: Annotated[PositiveInt, Parameter(metavar="N", help="Number of pictures.")] = 1000,
    seed: Annotated[
        int, Parameter(metavar="N", validator=whole_from(0), help="Chooses the pictures of the sample.")
    ] = 0,
    machine: MachineOptions = MachineOptions(),
    storage: StorageOptions = StorageOptions(),
    out: OutputOptions = OutputOptions(),
) -> None:
    """Measure which copies, and which other pictures, `within` joins.

    Makes 16 known edits of pictures of a decided run, embeds them with the run's image model, and counts, for each
    distance, the copies that are joined to their original and the pairs of pictures that are joined. Names the pairs
    to look at. The run is not changed.
    """
    from danqing.engine.phases import calibrate_redundancy
    from danqing.engine.report.terminal import print_calibration
    from danqing.engine.run.folder import Run

    with out.progress(machine.note):
        found = calibrate_redundancy(Run.open(run), sample, seed, within, machine.chosen, machine.threads)
    if not out.finish({"folder": run, "sample": sample, "seed": seed, **asdict(found)}):
        print_calibration(found)
