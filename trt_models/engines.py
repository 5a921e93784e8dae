"""Engines: compiled forms of a model, each for one kind of device; which of them is in use, and which was before.

    DANQING_CACHE/engines/CARD-ONNX/
        NAME/engine.plan or engine.onnx    what runs
        NAME/engine.json                   what it is, its SHA-256, and how near it comes to the model it was made from
        active.json                        target → names, the newest last

A plan is opaque code. It is loaded only if its bytes are those that its own JSON names.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.files import read_json, write_json, writing_cache
from danqing.trt_models.card import Card
from danqing.trt_models.package_files import cache_folder, sha256
from danqing.trt_models.run.session import Session, TensorRtSession, open_session
from danqing.trt_models.store import model_hash, onnx_path

if TYPE_CHECKING:
    from danqing.engine.core.device import Device

log = logging.getLogger("danqing")


class Runtime(NamedTuple):
    """A library that runs engines.

    Attributes:
        module: its Python module.
        packages: names of the distributions that contain it.
        open: opens an engine's file as a session on the device.
        file: file name of its engines.
        portable: whether every version of the library runs the file; a plan runs on the version that compiled it only.
    """

    module: str
    packages: tuple[str, ...]
    open: Callable[[Path, Engine, Device], Session]
    file: str = "engine.plan"
    portable: bool = False


def _open_onnx(path: Path, engine: Engine, device: Device) -> Session:
    return open_session(path, device, engine.batch[2 if is_gpu(engine.target) else 1], tf32=True)


def _open_plan(path: Path, engine: Engine, device: Device) -> Session:
    return TensorRtSession(path, RUNTIMES[engine.runtime].module, engine.batch[2], device)


def _open_torch(path: Path, engine: Engine, device: Device) -> Session:
    from danqing.trt_models.run.torch_session import open_torch_session  # imports torch

    return open_torch_session(path, device, engine.batch)


RUNTIMES = {
    "onnxruntime": Runtime("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), _open_onnx, "engine.onnx", portable=True),
    "tensorrt": Runtime("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), _open_plan),
    "tensorrt-rtx": Runtime("tensorrt_rtx", ("tensorrt-rtx", "tensorrt-rtx-cu13"), _open_plan),
    "torch": Runtime("torch", ("torch",), _open_torch, "engine.onnx", portable=True),
}
LEAST_COSINE, MOST_FLIPS = 0.999, 0.001
"""Parity by default: mean cosine of the outputs, share of pairs whose verdict changes."""
COSINE, DIFFERENCE = "cosine", "1 - |difference|"
"""Measures of parity: of embeddings, and of classifiers, where the cosine of two or three numbers says too little."""


@dataclass(frozen=True)
class Parity:
    """How near an engine comes to its model in float32, on real pairs, on the device it is for.

    Attributes:
        rows: pairs looked at.
        cosine_min, cosine_mean: least and mean of `measure` over the rows.
        flips: share of the pairs whose verdict changes under the recipe's criteria that this model takes part in.
        rate, reference_rate: rows a second, of the engine and of ONNX Runtime in float32.
        torch_rate: of PyTorch's own model under `torch.compile`, where it was timed.
        target, runtime_version: what it ran on.
        wanted: the limits it was held to, `cosine_mean` and `flips`.
        measure: `COSINE` of embeddings, `DIFFERENCE` of a classifier's probabilities.
    """

    rows: int
    cosine_min: float
    cosine_mean: float
    flips: float
    rate: float
    reference_rate: float
    recipe: str
    target: str
    runtime_version: str
    wanted: Mapping[str, float] = field(default_factory=lambda: {"cosine_mean": LEAST_COSINE, "flips": MOST_FLIPS})
    torch_rate: float | None = None
    measure: str = COSINE

    def __str__(self) -> str:
        return (
            f"mean {self.measure} {self.cosine_mean:.5f}, wanted {self.wanted['cosine_mean']}; "
            f"flips {self.flips:.2%}, allowed {self.wanted['flips']:.2%}"
        )

    @property
    def passed(self) -> bool:
        return self.cosine_mean >= self.wanted["cosine_mean"] and self.flips <= self.wanted["flips"]


@dataclass(frozen=True)
class Engine:
    """One compiled form of a model.

    Attributes:
        card, onnx: the model: its card's name and the SHA-256 of the ONNX file.
        runtime, runtime_version: the library that runs it, and the version that compiled it; a plan runs on no other.
        target: `cpu`, or the GPU architecture, `sm_90`.
        precision: fp32, fp16, bf16, int8 or fp8.
        batch: fewest, usual and most rows it takes at once.
        sha256: of the engine's file.
    """

    card: str
    onnx: str
    runtime: str
    runtime_version: str
    target: str
    precision: str
    batch: tuple[int, int, int]
    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    parity: Parity | None = None

    @property
    def name(self) -> str:
        return (
            f"{self.target}-{self.precision}-{self.runtime}-{self.runtime_version}-b{self.batch[2]}-{self.sha256[:8]}"
        )


@dataclass(frozen=True)
class UnreadableEngine:
    """An engine whose JSON is missing or damaged.

    Attributes:
        name: of its folder.
        reason: what is wrong with the JSON, and what to do.
    """

    name: str
    reason: str


class Engines:
    """The engines of one model."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.onnx = model_hash(card)
        self.folder = cache_folder() / "engines" / f"{card.name}-{self.onnx[:12]}"

    @property
    def asked(self) -> str:
        """The model's NAME in a command."""
        return str(self.card.file or self.card.name)

    def all(self) -> list[Engine]:
        """The engines whose JSON can be read."""
        return [engine for engine in self.entries() if isinstance(engine, Engine)]

    def entries(self) -> list[Engine | UnreadableEngine]:
        """All engines, in the order of their names."""
        return [self._entry(path.parent.name) for path in sorted(self.folder.glob("*/engine.json"))]

    def _entry(self, name: str) -> Engine | UnreadableEngine:
        try:
            return _read(self.folder / name / "engine.json")
        except DanqingError as problem:
            return UnreadableEngine(name, str(problem))

    def named(self, name: str) -> Engine:
        """By its name, or a part of it that no other has; `newest` is the one compiled last.

        Raises:
            DanqingError: no such engine, or several; or its JSON cannot be read.
        """
        engines = self.all()
        if name == "newest" and engines:
            return max(engines, key=lambda engine: self.path(engine).stat().st_mtime_ns)
        found = [engine for engine in engines if name in engine.name]
        if not found:
            for entry in self.entries():
                if isinstance(entry, UnreadableEngine) and (name in entry.name or not engines):
                    raise DanqingError(entry.reason)
        if len(found) != 1:
            known = [engine.name for engine in found or engines]
            if not known:
                raise DanqingError(f"{self.card.name} has no engine yet; make one: danqing models compile {self.asked}")
            raise DanqingError(
                f"{self.card.name}: {'several engines' if found else 'no engine'} {name!r}; {did_you_mean(name, known)}"
            )
        return found[0]

    def path(self, engine: Engine) -> Path:
        return self.folder / engine.name / RUNTIMES[engine.runtime].file

    def add(self, engine: Engine, write: Callable[[Path], None]) -> Engine:
        """Keeps a new engine; `write` makes its file. Its JSON comes last, so what has one is whole.

        An engine whose file has the same bytes keeps its JSON, and with it the parity that was measured.

        Returns:
            The engine with the SHA-256 of its file.

        Raises:
            DanqingError: the cache folder cannot be written or is full.
        """
        with writing_cache():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=self.folder) as aside:
                file = Path(aside) / RUNTIMES[engine.runtime].file
                write(file)
                if others := sorted(path.name for path in Path(aside).iterdir() if path != file):
                    raise DanqingError(f"{self.card.name}: an engine is one file, and this one needs {others}, too")
                engine = replace(engine, sha256=sha256(file))
                self.path(engine).parent.mkdir(exist_ok=True)
                file.replace(self.path(engine))
        kept = self._entry(engine.name)
        if isinstance(kept, Engine) and _identity(kept) == _identity(engine):
            return kept
        self.note(engine)
        return engine

    def note(self, engine: Engine) -> None:
        """Writes the engine's JSON, with its parity if it was measured."""
        with writing_cache():
            write_json(self.path(engine).with_suffix(".json"), asdict(engine))

    def checked(self, engine: Engine) -> Path:
        """The engine's file.

        Raises:
            DanqingError: its bytes are not those that were compiled here, or its model has changed since.
        """
        path = self.path(engine)
        if not path.is_file() or sha256(path) != engine.sha256:
            raise DanqingError(f"{path}: not the file that engine.json names; refusing to load it, compile it again")
        if engine.onnx != self.onnx:
            raise DanqingError(f"{path}: made from another version of {self.card.name}; compile it again")
        installed = runtime_version(engine.runtime)
        if installed is None or not (RUNTIMES[engine.runtime].portable or engine.runtime_version == installed):
            raise DanqingError(
                f"{path}: compiled with {engine.runtime} {engine.runtime_version}, installed is "
                f"{installed or 'none'}; compile it again"
            )
        return path

    def proven(self, engine: Engine) -> Path:
        """Returns the engine's file, after `checked` and a check that its parity was measured.

        Raises:
            DanqingError: as `checked`; or parity was not measured for this target with the installed runtime.
        """
        path, parity, installed = self.checked(engine), engine.parity, runtime_version(engine.runtime)
        verify = f"danqing models verify {self.asked} {engine.name} --data INPUT"
        if parity is None:
            raise DanqingError(f"{engine.name}: parity was never measured; run `{verify}` first")
        if parity.target != engine.target:
            raise DanqingError(f"{engine.name}: parity was measured on {parity.target}; run `{verify}` there")
        if parity.runtime_version != installed:
            raise DanqingError(
                f"{engine.name}: parity was measured with {engine.runtime} {parity.runtime_version}, installed is "
                f"{installed}; run `{verify}` again"
            )
        return path

    def active(self, target: str) -> list[Engine | UnreadableEngine]:
        """The engine in use on such devices, then those that were before it.

        Raises:
            DanqingError: active.json cannot be read.
        """
        return [self._entry(name) for name in reversed(self._names().get(target, []))]

    def targets(self) -> list[str]:
        return sorted(self._names())

    def activate(self, engine: Engine) -> None:
        """Makes it the one in use, from the next shard on wherever a run is under way.

        Raises:
            DanqingError: no parity was measured on such a device with this runtime, or it was not enough.
        """
        self.proven(engine)
        parity = engine.parity
        if parity is None or not parity.passed:
            raise DanqingError(f"{engine.name}: parity is not enough ({parity})")
        names = self._names()
        names[engine.target] = [name for name in names.get(engine.target, []) if name != engine.name] + [engine.name]
        self._write_names(names)

    def rollback(self, target: str) -> Engine | UnreadableEngine | None:
        """Takes the engine in use out of use; the one before is back, or the model itself (None)."""
        names = self._names()
        if not names.get(target):
            raise DanqingError(f"{self.card.name}: no engine is in use on {target}")
        names[target].pop()
        self._write_names(names)
        return next(iter(self.active(target)), None)

    def _names(self) -> dict[str, list[str]]:
        path = self.folder / "active.json"
        if not path.exists():
            return {}
        remedy = f"remove it and take an engine into use again: danqing models activate {self.asked} ENGINE"
        names = read_json(path, remedy)
        if not all(isinstance(of, list) and all(isinstance(name, str) for name in of) for of in names.values()):
            raise DanqingError(f"{path}: does not list the names of engines; {remedy}")
        return names

    def _write_names(self, names: dict[str, list[str]]) -> None:
        with writing_cache():
            write_json(self.folder / "active.json", names)


class Opened(NamedTuple):
    """A model that is ready to run.

    Attributes:
        session: runs it.
        sha256: hash of the file that runs.
        refused: why the engine in use does not open, if an older one or the model itself runs in its place.
    """

    session: Session
    sha256: str
    refused: str | None = None


def open_model(card: Card, device: Device, engine: Engine | None) -> Opened:
    """Opens a model, or an engine of it.

    Args:
        card: the model.
        device: the device to run on.
        engine: None for the model itself.

    Raises:
        DanqingError: an engine that is not what its JSON says, or that its runtime cannot load.
    """
    if engine is None:
        return Opened(open_session(onnx_path(card), device), model_hash(card))
    path = Engines(card).checked(engine)
    return Opened(RUNTIMES[engine.runtime].open(path, engine, device), engine.sha256)


def open_active(card: Card, device: Device, strict: bool = False) -> Opened:
    """Opens the engine in use for the device; if it does not open, the one before it, and in the end the model itself.

    Args:
        card: the model.
        device: the device to run on.
        strict: raise an error if the engine in use does not open.

    Raises:
        DanqingError: the model itself does not open; active.json cannot be read; with `strict`, the engine in use does
            not open.
    """
    engines, refused = Engines(card), None
    for engine in engines.active(device.target):
        try:
            if isinstance(engine, UnreadableEngine):
                raise DanqingError(engine.reason)
            engines.proven(engine)
            return open_model(card, device, engine)._replace(refused=refused)
        except Exception as problem:  # whatever a runtime raises over a broken plan
            reason = f"{card.name}: the engine {engine.name} does not open: {problem}"
            if strict:
                raise DanqingError(f"{reason}; without --strict-engines the one before it would run") from problem
            log.warning("%s; the one before it runs instead", reason)
            print(f"danqing: {reason}; the one before it runs instead", file=sys.stderr)
            refused = refused or reason
    return open_model(card, device, None)._replace(refused=refused)


def runtime_version(runtime: str) -> str | None:
    """The installed version of what runs an engine; None if there is none."""
    for package in RUNTIMES[runtime].packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_gpu(target: str) -> bool:
    return re.fullmatch(r"sm_\d{2,3}", target) is not None


def _identity(engine: Engine) -> tuple[str, str, str]:
    return engine.sha256, engine.runtime, engine.runtime_version


def _read(path: Path) -> Engine:
    remedy = "remove its folder and compile the engine again"
    content = read_json(path, remedy)
    if (runtime := content.get("runtime")) not in list(RUNTIMES):
        known = ", ".join(sorted(RUNTIMES))
        raise DanqingError(f"{path}: this version of DanQing has no runtime {runtime!r}; known: {known}; {remedy}")
    try:
        parity = Parity(**content.pop("parity")) if content.get("parity") else content.pop("parity", None)
        fewest, usual, most = content["batch"]
        return Engine(**content | {"batch": (fewest, usual, most), "parity": parity})
    except (ValueError, TypeError, KeyError) as problem:
        raise DanqingError(f"{path}: is not an engine's JSON: {problem}; {remedy}") from None
