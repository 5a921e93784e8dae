"""Profiles a scoring while it runs: spans, sampler, and the files written afterwards."""

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
from danqing.engine.core.spans import OpenRange, Spans
from danqing.engine.recipe.plan import Plan
from danqing.engine.run.folder import Run
from danqing.engine.stages import Context
from danqing.profiling.limits import measure_limits
from danqing.profiling.profile import Limits, Profile, to_trace
from danqing.profiling.report import write_profile
from danqing.profiling.sampler import Sampler


class Watch:
    """Records a scoring that runs within its `with` block, with `spans`; `write` then makes the profile.

    On a GPU every call of a stage is also an NVTX range, for Nsight Systems, if the package nvtx is installed.

    Args:
        device: the device that scores.
        limits: the upper bounds (`measure_limits`).

    Raises:
        DanqingError: the device is a GPU, and the package nvidia-ml-py is missing.
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

    def write(
        self, folder: Path, sequential_spans: Spans | None = None, sequential_sampler: Sampler | None = None
    ) -> Profile:
        """Writes profile.json, profile.html and trace.json.

        Args:
            folder: where to write.
            sequential_spans, sequential_sampler: of a sequential scoring of the same pairs, if there was one.
        """
        found = Profile.of(
            self.device.threads, self.limits, self.spans, self.sampler, sequential_spans or Spans(), sequential_sampler
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "profile.json", found.to_dict())
        write_json(folder / "trace.json", to_trace(self.spans.events, self.sampler.readings))
        write_profile(folder / "profile.html", found, self.spans.events, self.sampler.readings)
        return found


@contextmanager
def profile_scoring(run: Run, plan: Plan, context: Context) -> Iterator[Spans]:
    """Profiles a scoring within a `with` block; writes OUT/profile/.

    Yields:
        The spans that the scoring must record in.
    """
    watch = Watch(context.device, measure_limits(run.unscored(), run.layout, plan, context))
    with watch:
        yield watch.spans
    watch.write(run.folder / "profile")


def _nvtx_range() -> OpenRange | None:
    """Returns a function that opens an NVTX range; None without the package nvtx."""
    try:
        import nvtx
    except ImportError:
        return None
    return partial(nvtx.annotate, domain="danqing")
