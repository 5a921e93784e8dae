"""Where models are kept: built once from packages or exported by the user, checked by hash whenever they are opened."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import DanqingError
from engine.files import cache_path, read_json, write_json, writing_cache
from kernels.lexicon import Patterns
from trt_models.card import Card, ImageInput, load_card
from trt_models.classifier import Lexicon, TextClassifier, TextNetwork, read_terms
from trt_models.tokenizer import AnyTokenizer, open_tokenizer

if TYPE_CHECKING:
    from engine.device import Device
    from trt_models.engines import Engine, UnreadableEngine
    from trt_models.session import Session


def cache_folder() -> Path:
    """The folder `engine.files.cache_path`, created if it does not exist.

    Raises:
        DanqingError: it cannot be created.
    """
    folder = cache_path()
    with writing_cache():
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_file(package: str | None, file: str, folder: Path | None = None) -> Path:
    """A data file of an installed package (found without importing it), or one relative to `folder`."""
    if package is None:
        path = (folder or Path()) / file
        if not path.is_file():
            raise DanqingError(f"{path}: no such file")
        return path
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise DanqingError(f"the package {package!r} is missing: pip install {package}") from None
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise DanqingError(f"{path}: not in {package} {distribution.version}; the card was written for another version")
    return path


def sha256(path: Path) -> str:
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Large files are read once a process, unless they change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def onnx_path(card: Card) -> Path:
    """The model's ONNX file, checked. One that comes from installed packages is built now, if the cache has none for
    this card and these exporters; one that comes from a checkpoint was exported by the user.

    Beside it lies model.json with the SHA-256 of the file and of its weights, if these are kept apart.

    Raises:
        DanqingError: a missing package, a model never exported, weights not the card's, or a file that was changed.
    """
    if card.onnx:
        path = package_file(None, card.onnx, card.folder)
        _check(path, card.sha256, f"the card {card.name}")
        return path
    folder = model_folder(card)
    note = folder / "model.json"
    if not note.exists():
        if card.export:
            raise DanqingError(
                f"{card.name} was never exported: get {card.published} (its whole folder), then run "
                f"`danqing models export {card.file or card.name} --from FOLDER`"
            )
        for weights, digest in card.weights.items():
            package, _, file = weights.partition(":")
            _check(package_file(package, file), digest, f"the card {card.name}")
        _build(card, folder)
    for name, digest in _noted_files(note, card).items():
        _check(folder / name, digest, str(note))
    return folder / "model.onnx"


def _noted_files(note: Path, card: Card) -> dict[str, str]:
    """File name → SHA-256, from a model's model.json."""
    again = f"run `danqing models export {card.file or card.name} --from FOLDER`" if card.export else "run again"
    remedy = f"remove the folder {note.parent} and {again}"
    files = read_json(note, remedy).get("files")
    if not isinstance(files, dict) or "model.onnx" not in files:
        raise DanqingError(f"{note}: does not name the model's files; {remedy}")
    return files


def model_folder(card: Card) -> Path:
    """Where the model's files are: beside a user's own card, else in the cache."""
    if card.export:
        return cache_folder() / "models" / f"{card.name}-{card.hash[:12]}"
    if card.build:
        return cache_folder() / "models" / f"{card.name}-{_build_hash(card)}"
    return card.folder or Path()


def is_here(card: Card) -> bool:
    """Whether the model's files are there: nothing to build, nothing to export."""
    return not (card.build or card.export) or (model_folder(card) / "model.json").exists()


def model_hash(card: Card) -> str:
    """Names the model's content: the SHA-256 of its ONNX file, which names that of weights kept beside it."""
    return sha256(onnx_path(card))


def _build(card: Card, folder: Path) -> None:
    from trt_models.export import BUILDERS

    if card.build not in BUILDERS:
        raise DanqingError(f"card {card.name}: no exporter {card.build!r}; known: {', '.join(sorted(BUILDERS))}")
    packages = sorted({weights.partition(":")[0] for weights in card.weights})
    content = BUILDERS[card.build]().SerializeToString()
    note = {"packages": {name: metadata.version(name) for name in packages}}
    keep(card, folder, lambda path: path.write_bytes(content), note)


def keep(
    card: Card, folder: Path, save: Callable[[Path], object], note: dict[str, Any], also: Iterable[Path] = ()
) -> None:
    """Puts a model where `onnx_path` looks for it. The whole folder appears at once, also if several processes do this.

    Args:
        save: writes the ONNX to a path, and beside it what goes with it.
        also: files to be copied beside it.

    Raises:
        DanqingError: the cache folder cannot be written or is full.
    """
    with writing_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as aside:
            made = Path(aside) / folder.name  # a folder with the usual permissions, which `aside` does not have
            made.mkdir()
            save(made / "model.onnx")
            for path in also:
                shutil.copyfile(path, made / path.name)
            files = {path.name: sha256(path) for path in sorted(made.iterdir())}
            write_json(made / "model.json", {"card": card.name, "files": files, **note})
            try:
                made.rename(folder)
            except OSError as problem:
                if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                # Another process built the same model meanwhile; it may be in use by now. An export may be another one.
                if card.build and (folder / "model.json").exists():
                    return
                folder.rename(Path(aside) / "before")
                made.rename(folder)


@cache
def _exporters_hash() -> str:
    spec = find_spec("trt_models.export")
    assert spec is not None and spec.submodule_search_locations is not None
    digest = hashlib.sha256()
    for path in sorted(Path(next(iter(spec.submodule_search_locations))).iterdir()):
        if path.suffix in (".py", ".tsv"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _build_hash(card: Card) -> str:
    return hashlib.sha256(f"{card.hash} {_exporters_hash()}".encode()).hexdigest()[:12]


def _check(path: Path, expected: str | None, source: str) -> None:
    if not path.is_file():
        raise DanqingError(f"{path}: missing, {source} names it; remove the folder {path.parent} and make it again")
    found = sha256(path)
    if found != expected:
        raise DanqingError(
            f"{path}: SHA-256 is {found[:16]}…, {source} says {(expected or '')[:16]}…; refusing to load it"
        )


class ModelSet:
    """The models a recipe names by role, opened when first asked for.

    Args:
        names: role → card.
        engines: role → the engine to run, None for the model itself. Other roles run the engine in use on the device.
        strict: raise an error if an engine in use does not open, instead of running an older one or the model.
    """

    def __init__(
        self, names: Mapping[str, str], engines: Mapping[str, Engine | None] | None = None, strict: bool = False
    ) -> None:
        self.names = names
        self.engines = engines or {}
        self.strict = strict
        self.running: dict[str, str] = {}
        """Role → SHA-256 of the ONNX or engine file that runs, of every open session."""
        self.refused: dict[str, str] = {}
        """Role → why its engine in use does not open, where an older one or the model itself runs in its place."""
        self._sessions: dict[str, Session] = {}
        self._in_use: dict[str, list[Engine | UnreadableEngine]] = {}
        self._tokenizers: dict[str, AnyTokenizer] = {}

    def card(self, role: str) -> Card:
        if role not in self.names:
            raise DanqingError(f"the recipe's criteria need a model for {role}: add models.{role} to it")
        return load_card(self.names[role])

    def session(self, role: str, device: Device) -> Session:
        from trt_models.engines import Engines, open_active, open_model

        if role not in self._sessions:
            card = self.card(role)
            if role in self.engines:
                opened = open_model(card, device, self.engines[role])
            else:
                self._in_use[role] = Engines(card).active(device.target)
                opened = open_active(card, device, self.strict)
            self._sessions[role], self.running[role] = opened.session, opened.sha256
            if opened.refused:
                self.refused[role] = opened.refused
        return self._sessions[role]

    def warm(self) -> None:
        """Lets what runs on this machine's cores take the memory it needs."""
        from trt_models.session import OnnxSession

        for session in self._sessions.values():
            if isinstance(session, OnnxSession):
                session.warm()

    def outdated(self, device: Device) -> list[str]:
        """The roles for which another engine was activated since their sessions were opened."""
        from trt_models.engines import Engines

        return [role for role, seen in self._in_use.items() if Engines(self.card(role)).active(device.target) != seen]

    def reopen(self, device: Device) -> None:
        """Lets go of the sessions that are outdated; they are opened anew when asked for."""
        for role in self.outdated(device):
            del self._sessions[role], self.running[role], self._in_use[role]
            self.refused.pop(role, None)

    def image_input(self, role: str) -> ImageInput:
        card = self.card(role)
        if card.image_input is None:
            raise DanqingError(f"model {card.name}: its card has no image_input")
        return card.image_input

    def tokenizer(self, role: str) -> AnyTokenizer:
        card = self.card(role)
        wanted = card.token_input
        if wanted is None:
            raise DanqingError(f"model {card.name}: its card has no token_input")
        if role not in self._tokenizers:
            if card.export and wanted.package is None:
                onnx_path(card)  # exported, and its vocabulary unchanged
            self._tokenizers[role] = open_tokenizer(
                wanted, package_file(wanted.package, wanted.file, model_folder(card))
            )
        return self._tokenizers[role]

    def text_classifier(self, role: str, device: Device) -> TextClassifier:
        """Word lists or a network, whichever the card describes."""
        card = self.card(role)
        if card.task != "text_classifier":
            raise DanqingError(f"models.{role}: {card.name} is a model for {card.task}, not a text_classifier")
        if not card.lexicon:
            return TextNetwork(self.session(role, device), self.tokenizer(role), device)
        return Lexicon(self.terms(role), Patterns(**card.patterns), device)

    def terms(self, role: str) -> dict[str, float]:
        """The terms of a word-list classifier, and what each weighs."""
        card = self.card(role)
        return read_terms((entry, package_file(entry.package, entry.file, card.folder)) for entry in card.lexicon)

    def hashes(self) -> dict[str, dict[str, str]]:
        """Role → card name, card hash and, for networks, the ONNX file's hash: what the scores depend on."""
        out = {}
        for role in self.names:
            card = self.card(role)
            out[role] = {"name": card.name, "card": card.hash}
            if not card.lexicon:
                out[role]["onnx"] = model_hash(card)
        return out
