"""Profiling a scoring: what to hand to it, who looks at the machine meanwhile, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json
from danqing.engine.core.nvml import open_meter
from danqing.engine.core.spans import Range, Spans
from danqing.engine.recipe.plan import Plan
from danqing.engine.run.folder import Run
from danqing.engine.stages import Context
from danqing.profiling.limits import measure_limits
from danqing.profiling.profile import Limits, Profile, to_trace
from danqing.profiling.report import write_profile
from danqing.profiling.sampler import Sampler


class Watch:
    """Its `spans` are handed to a scoring that runs within the `with` block; then there is a profile.

    On a GPU every stage is also an NVTX range of its name, for Nsight Systems, if the package nvtx is installed.

    Raises:
        DanqingError: a GPU, and a package is missing that looks at it.
    """

    def __init__(self, device: Device, limits: Limits) -> None:
        self.device, self.limits = device, limits
        if device.kind == "cpu":
            self.spans, self.sampler = Spans(profiled=True), Sampler()
            return
        try:
            meter = open_meter(device.xp.cuda.Device(device.number).pci_bus_id)
        except ImportError as problem:
            raise DanqingError(f"profiling a GPU: {problem}; pip install 'danqing-engine[cuda]'") from None
        self.spans = Spans(profiled=True, named=_nvtx_range())
        self.sampler = Sampler(meter)

    def __enter__(self) -> Watch:
        self.sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sampler.__exit__(kind, error, trace)

    def write(self, folder: Path, alone: Spans | None = None, in_turn: Sampler | None = None) -> Profile:
        """profile.json, profile.html and trace.json.

        Args:
            alone, in_turn: of a scoring of the same pairs with the stages in turn.
        """
        found = Profile.of(self.device.threads, self.limits, self.spans, self.sampler, alone or Spans(), in_turn)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "profile.json", found.to_dict())
        write_json(folder / "trace.json", to_trace(self.spans.events, self.sampler.looks))
        write_profile(folder / "profile.html", found, self.spans.events, self.sampler.looks)
        return found


@contextmanager
def watched(run: Run, plan: Plan, context: Context) -> Iterator[Spans]:
    """Measures the limits, yields spans for the scoring within the `with` block, and writes OUT/profile/."""
    watch = Watch(context.device, measure_limits(run.unscored(), run.layout, plan, context))
    with watch:
        yield watch.spans
    watch.write(run.folder / "profile")


def _nvtx_range() -> Range | None:
    """A function that makes the NVTX range of a stage's name; None without the package nvtx."""
    try:
        import nvtx
    except ImportError:
        return None
    return partial(nvtx.annotate, domain="danqing")
