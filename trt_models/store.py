"""Where models are kept: built once from packages or exported by the user, checked by hash whenever they are opened."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import read_json, write_json, writing_cache
from danqing.trt_models.card import Card
from danqing.trt_models.package_files import cache_folder, check, package_file, sha256


def onnx_path(card: Card) -> Path:
    """The model's ONNX file, checked. One that comes from installed packages is built now, if the cache has none for
    this card and these exporters; one that comes from a checkpoint was exported by the user.

    Beside it lies model.json with the SHA-256 of the file and of its weights, if these are kept apart.

    Raises:
        DanqingError: a missing package, a model never exported, weights not the card's, or a file that was changed.
    """
    if card.onnx:
        path = package_file(None, card.onnx, card.folder)
        check(path, card.sha256, f"the card {card.name}")
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
            check(package_file(package, file), digest, f"the card {card.name}")
        _build(card, folder)
    for name, digest in _noted_files(note, card).items():
        check(folder / name, digest, str(note))
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
    from danqing.trt_models.export import BUILDERS

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
    spec = find_spec("danqing.trt_models.export")
    assert spec is not None and spec.submodule_search_locations is not None
    digest = hashlib.sha256()
    for path in sorted(Path(next(iter(spec.submodule_search_locations))).iterdir()):
        if path.suffix in (".py", ".tsv"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _build_hash(card: Card) -> str:
    return hashlib.sha256(f"{card.hash} {_exporters_hash()}".encode()).hexdigest()[:12]
