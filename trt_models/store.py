"""The store of ONNX models: built once from packages or exported by the user, and checked by hash when opened."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import MAKING, building, exchange, read_json, write_json, writing_cache
from danqing.engine.core.storage import fetch_together
from danqing.trt_models.card import Card, TermList, TokenInput
from danqing.trt_models.package_files import cache_folder, check, package_file, sha256


def onnx_path(card: Card) -> Path:
    """Returns a model's ONNX file, after a check of its SHA-256.

    A model from installed packages is built first if the cache has none of this card and these exporters. The file
    model.json beside the ONNX names the SHA-256 of each of the model's files.

    Raises:
        DanqingError: a package is missing, the model was never exported, its weights are not those that the card names,
            or a file has changed.
    """
    if card.onnx:
        path = package_file(None, card.onnx, card.folder)
        check(path, card.sha256, f"the card {card.name}")
        names = external_files(path, sha256(path))
        for name in names:
            beside = package_file(None, name, path.parent)
            if name not in card.weights:
                raise DanqingError(
                    f"{card.file}: {card.onnx} keeps tensors in {name}; add its SHA-256 to the card: "
                    f"weights: {{{name}: {sha256(beside)}}}"
                )
            check(beside, card.weights[name], f"the card {card.name}")
        return fetch_together(path, names)
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
        with building(folder, f"the model {card.name}"):
            if not note.exists():  # another process can have built it
                _build(card, folder)
    for name, digest in _noted_files(note, card).items():
        check(folder / name, digest, str(note))
    return folder / "model.onnx"


def is_exported(card: Card) -> bool:
    """Whether a model needs no export, or was exported to the cache."""
    return bool(card.onnx) or not card.export or (model_folder(card) / "model.json").exists()


def _noted_files(note: Path, card: Card) -> dict[str, str]:
    """Reads model.json: file name → SHA-256."""
    again = f"run `danqing models export {card.file or card.name} --from FOLDER`" if card.export else "run again"
    remedy = f"remove the folder {note.parent} and {again}"
    files = read_json(note, remedy).get("files")
    if not isinstance(files, dict) or "model.onnx" not in files:
        raise DanqingError(f"{note}: does not name the model's files; {remedy}")
    return files


def model_folder(card: Card) -> Path:
    """Returns the folder of the model's files: in the cache if it is built or exported, else that of the card."""
    if card.export:
        return cache_folder() / "models" / f"{card.name}-{card.hash[:12]}"
    if card.build:
        return cache_folder() / "models" / f"{card.name}-{_build_hash(card)}"
    return card.folder or Path()


def is_stored(card: Card) -> bool:
    """Whether the model's files exist, so that it needs neither a build nor an export."""
    return not (card.build or card.export) or (model_folder(card) / "model.json").exists()


def model_hash(card: Card) -> str:
    """Returns a SHA-256 of the whole model.

    It is that of the ONNX file. Exported files contain the SHA-256 of weights in a separate file; that of other files
    with external data is hashed again with those of the weights.

    Raises:
        DanqingError: as `onnx_path`.
    """
    digest = sha256(onnx_path(card))
    if not (card.onnx and card.weights):
        return digest
    parts = [digest, *(f"{name} {weights}" for name, weights in sorted(card.weights.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def files_beside(card: Card) -> dict[str, str]:
    """Returns the SHA-256 of each vocabulary and word list beside a user's card: file → SHA-256."""
    if card.folder is None or card.export:  # model.json names the vocabulary of an export
        return {}
    given: list[TokenInput | TermList] = [*card.lexicon]
    given += [card.token_input] if card.token_input else []
    names = sorted({entry.file for entry in given if entry.package is None})
    return {name: sha256(package_file(None, name, card.folder)) for name in names}


@cache
def external_files(path: Path, digest: str) -> tuple[str, ...]:
    """Lists the files beside an ONNX file that hold tensors of it.

    Args:
        path: the ONNX file.
        digest: its SHA-256, so that a file that changed is read again.

    Raises:
        DanqingError: the file is no ONNX, or names a file outside its folder.
    """
    import onnx

    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except Exception as problem:  # protobuf's own
        raise DanqingError(f"{path}: cannot be read as ONNX: {problem}") from None
    found = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DanqingError(f"{path}: keeps tensors in {name}, outside its folder; refusing to load it")
    return tuple(sorted(found))


def _tensors(message: Any) -> Iterator[Any]:
    """Yields every tensor of a protobuf message, those of subgraphs and attributes among them."""
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for part in value if isinstance(value, Sequence) else [value]:
            if part.DESCRIPTOR.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def _build(card: Card, folder: Path) -> None:
    from danqing.trt_models.export import BUILDERS

    if card.build not in BUILDERS:
        raise DanqingError(f"card {card.name}: no exporter {card.build!r}; known: {', '.join(sorted(BUILDERS))}")
    packages = sorted({weights.partition(":")[0] for weights in card.weights})
    content = BUILDERS[card.build]().SerializeToString()
    note = {"packages": {name: metadata.version(name) for name in packages}}
    store_model(card, folder, lambda path: path.write_bytes(content), note)


def store_model(
    card: Card, folder: Path, save: Callable[[Path], object], note: dict[str, Any], extra_files: Iterable[Path] = ()
) -> None:
    """Writes a model's folder. It appears complete, by one rename, also if several processes write it at once.

    Args:
        card: the model's card.
        folder: `model_folder(card)`.
        save: writes the ONNX to the given path, and the weights beside it if they are a separate file.
        note: what model.json records besides the card's name and the hashes.
        extra_files: files to copy into the folder.

    Raises:
        DanqingError: the cache folder cannot be written to or is full.
    """
    with writing_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name  # with the usual permissions, which `temporary` does not have
            made.mkdir()
            save(made / "model.onnx")
            for path in extra_files:
                shutil.copyfile(path, made / path.name)
            files = {path.name: sha256(path) for path in sorted(made.iterdir())}
            write_json(made / "model.json", {"card": card.name, "files": files, **note})
            _put(made, folder, keep=bool(card.build))


def _put(made: Path, folder: Path, keep: bool) -> None:
    """Gives a complete folder its name.

    Args:
        made: the complete folder, in a folder that is removed afterwards.
        folder: its place. What is there may be in use: equal files are kept, other ones are replaced in one step.
        keep: keep also other files, because they are of the same model.
    """
    try:
        made.rename(folder)
    except OSError as problem:
        if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        note = folder / "model.json"
        if note.exists() and (keep or note.read_bytes() == (made / "model.json").read_bytes()):
            return
        try:
            exchange(made, folder)
        except OSError:  # a file system without this step
            folder.rename(made.with_name("before"))
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
