"""Engines: compiled forms of a model, each for one kind of device, and which of them are active.

    DANQING_CACHE/engines/CARD-ONNX/
        NAME/engine.plan or engine.onnx    the engine
        NAME/engine.json                   its description, SHA-256 and parity with the model
        active.json                        target → names of active engines, the current one last

A plan is opaque code. It is loaded only if its SHA-256 is the one in its JSON.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.files import MAKING, building, read_json, remove_abandoned, write_json, writing_cache
from danqing.engine.core.logs import say
from danqing.trt_models.card import Card
from danqing.trt_models.package_files import cache_folder, sha256
from danqing.trt_models.run.session import Session, open_session
from danqing.trt_models.runtimes import RUNTIMES
from danqing.trt_models.store import model_hash, onnx_path

if TYPE_CHECKING:
    from danqing.engine.core.device import Device


MIN_COSINE, MAX_FLIPS = 0.999, 0.001
"""Default limits of parity: minimum mean cosine of the outputs, maximum share of pairs whose verdict changes."""
COSINE, DIFFERENCE = "cosine", "1 - |difference|"
"""Measures of parity: of embeddings, and of probabilities and log-likelihoods, whose cosine is nearly always 1."""


@dataclass(frozen=True)
class Parity:
    """Agreement of an engine with its model in float32, measured on real pairs on the engine's device.

    Attributes:
        rows: number of pairs.
        cosine_min, cosine_mean: minimum and mean of `measure` over the rows.
        flips: share of the pairs whose verdict changes under the recipe's criteria that depend on this model.
        rate, reference_rate: rows per second of the engine and of ONNX Runtime in float32.
        recipe: name of the recipe.
        target, runtime_version: the device's target and the runtime's version of the measurement.
        wanted: the limits of `cosine_mean` (minimum), `flips` and, if it was evaluated, `drop` (maximum).
        torch_rate: rows per second of PyTorch's model under `torch.compile`; None if not timed.
        measure: `COSINE` of embeddings, `DIFFERENCE` of a classifier's probabilities or a language model's
            log-likelihoods.
        drop: by how much the metric of an evaluation that fell most has fallen; None if it was not evaluated.
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
    wanted: Mapping[str, float] = field(default_factory=lambda: {"cosine_mean": MIN_COSINE, "flips": MAX_FLIPS})
    torch_rate: float | None = None
    measure: str = COSINE
    drop: float | None = None

    def __str__(self) -> str:
        evaluated = "" if self.drop is None else f"; drop {self.drop:.2%}, allowed {self.wanted['drop']:.2%}"
        return (
            f"mean {self.measure} {self.cosine_mean:.5f}, wanted {self.wanted['cosine_mean']}; "
            f"flips {self.flips:.2%}, allowed {self.wanted['flips']:.2%}{evaluated}"
        )

    @property
    def passed(self) -> bool:
        kept = self.drop is None or self.drop <= self.wanted["drop"]
        return self.cosine_mean >= self.wanted["cosine_mean"] and self.flips <= self.wanted["flips"] and kept


@dataclass(frozen=True)
class Engine:
    """One compiled form of a model.

    Attributes:
        card, onnx: the card's name and the SHA-256 of the ONNX file of the model.
        runtime, runtime_version: the library that runs it, and the version that compiled it.
        target: `cpu`, or a GPU architecture such as `sm_90`.
        precision: fp32, fp16, bf16, int8 or fp8.
        batch: minimum, usual and maximum rows of a batch.
        sha256: SHA-256 of the engine's file.
        options: how it was compiled, for the record.
        parity: None if it was not measured.
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
        name: name of its folder.
        reason: the error and its remedy.
    """

    name: str
    reason: str


class Engines:
    """The stored engines of one model.

    Args:
        card: the model.

    Raises:
        DanqingError: as `trt_models.store.onnx_path`.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.onnx = model_hash(card)
        self.folder = cache_folder() / "engines" / f"{card.name}-{self.onnx[:12]}"

    @property
    def asked(self) -> str:
        """NAME of the model in a command."""
        return str(self.card.file or self.card.name)

    def all(self) -> list[Engine]:
        """Returns the engines whose JSON is readable."""
        return [engine for engine in self.entries() if isinstance(engine, Engine)]

    def entries(self) -> list[Engine | UnreadableEngine]:
        """Returns all engines, sorted by name."""
        return [self._entry(path.parent.name) for path in sorted(self.folder.glob("*/engine.json"))]

    def _entry(self, name: str) -> Engine | UnreadableEngine:
        try:
            return _read(self.folder / name / "engine.json")
        except DanqingError as problem:
            return UnreadableEngine(name, str(problem))

    def named(self, name: str) -> Engine:
        """Finds an engine.

        Args:
            name: its name or a unique part of it; `newest` for the engine compiled last.

        Raises:
            DanqingError: there is no such engine, or several; or its JSON is not readable.
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
        """Stores a new engine. Its JSON is written last, so an engine that has one is complete.

        If an engine with an identical file exists, its JSON is kept, and with it the measured parity.

        Args:
            engine: its description; `sha256` is filled in here.
            write: writes the engine's file to the given path.

        Returns:
            The engine with the SHA-256 of its file.

        Raises:
            DanqingError: the cache folder cannot be written to or is full.
        """
        with writing_cache():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
            with tempfile.TemporaryDirectory(prefix=MAKING, dir=self.folder) as aside:
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
        """Writes the engine's JSON."""
        with writing_cache():
            write_json(self.path(engine).with_suffix(".json"), asdict(engine))

    def checked(self, engine: Engine) -> Path:
        """Returns the engine's file after checks.

        Raises:
            DanqingError: the file's SHA-256 is not the one in the JSON, the model has changed since, or the installed
                runtime cannot run it.
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
        """Returns the engine's file after `checked` and a check that its parity was measured.

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
        """Returns the active engine of a target, then the previously active ones, the most recent first.

        Raises:
            DanqingError: active.json is not readable.
        """
        return [self._entry(name) for name in reversed(self._names().get(target, []))]

    def targets(self) -> list[str]:
        """Returns the targets for which an engine was activated, sorted."""
        return sorted(self._names())

    def activate(self, engine: Engine) -> None:
        """Makes an engine the active one of its target. A run in progress uses it from its next shard on.

        Raises:
            DanqingError: as `proven`; or its parity is outside the limits.
        """
        self.proven(engine)
        parity = engine.parity
        if parity is None or not parity.passed:
            raise DanqingError(f"{engine.name}: parity is not enough ({parity})")
        with self._changing_names() as names:
            names[engine.target] = [name for name in names.get(engine.target, []) if name != engine.name]
            names[engine.target].append(engine.name)

    def rollback(self, target: str) -> Engine | UnreadableEngine | None:
        """Deactivates a target's active engine.

        Returns:
            The previous engine, which is active again; None if the model itself runs.

        Raises:
            DanqingError: no engine is active.
        """
        with self._changing_names() as names:
            if not names.get(target):
                raise DanqingError(f"{self.card.name}: no engine is in use on {target}")
            names[target].pop()
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

    @contextmanager
    def _changing_names(self) -> Iterator[dict[str, list[str]]]:
        """Reads active.json and writes it after the `with` block, while no other process changes it."""
        with building(self.folder, f"the list of {self.card.name}'s engines"):
            yield (names := self._names())
            write_json(self.folder / "active.json", names)


class Opened(NamedTuple):
    """An opened model or engine.

    Attributes:
        session: runs it.
        sha256: SHA-256 of the file that runs.
        refused: why the active engine does not open, if the previous one or the model itself runs instead.
    """

    session: Session
    sha256: str
    refused: str | None = None


def open_model(card: Card, device: Device, engine: Engine | None) -> Opened:
    """Opens a model or one of its engines.

    Args:
        card: the model.
        device: the device to run on.
        engine: None for the model itself.

    Raises:
        DanqingError: as `Engines.checked`; or the runtime cannot load the engine.
    """
    if engine is None:
        return Opened(open_session(onnx_path(card), device), model_hash(card))
    path = Engines(card).checked(engine)
    return Opened(RUNTIMES[engine.runtime].open(path, engine.batch, device), engine.sha256)


def open_active(card: Card, device: Device, strict: bool = False) -> Opened:
    """Opens the active engine of the device; if it does not open, the previous ones in order, then the model itself.

    Args:
        card: the model.
        device: the device to run on.
        strict: raise an error if the active engine does not open.

    Raises:
        DanqingError: the model itself does not open; active.json is not readable; with `strict`, the active engine does
            not open.
    """
    engines, refused = Engines(card), None
    for engine in engines.active(device.target):
        try:
            if isinstance(engine, UnreadableEngine):
                raise DanqingError(engine.reason)
            engines.proven(engine)
            return open_model(card, device, engine)._replace(refused=refused)
        except Exception as problem:  # runtimes raise exceptions of their own for a damaged plan
            reason = f"{card.name}: the engine {engine.name} does not open: {problem}"
            if strict:
                raise DanqingError(f"{reason}; without --strict-engines the one before it would run") from problem
            say(f"{reason}; the one before it runs instead", logging.WARNING)
            refused = refused or reason
    return open_model(card, device, None)._replace(refused=refused)


def runtime_version(runtime: str) -> str | None:
    """The installed version of what runs an engine; None if there is none."""
    return RUNTIMES[runtime].version()


def is_gpu(target: str) -> bool:
    """Whether a target is a GPU architecture, such as `sm_90`."""
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
