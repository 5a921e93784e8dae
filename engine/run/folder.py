"""The folder of a run: its files, its manifest and its log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import is_unused, read_json, write_json
from danqing.engine.core.logs import say
from danqing.engine.core.storage import RemotePath, forget, path_of
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.run.lock import lock_folder, lock_manifest
from danqing.engine.run.log import logging_to
from danqing.engine.run.part import Share, TaskPart
from danqing.engine.run.versions import ENGINE, SCORING_VERSIONS, current_versions, version_changes
from danqing.engine.sources import Layout, Shard

MAX_NAMES = 3
"""Shards that a message names."""
MERGED = "merged"
"""Key of the manifest of a run that was made by merging others; lists them."""
TASKS = "tasks"
"""Key of the manifest of a run that tasks of a job array score: their number (N of `--part I/N`)."""
RECAPTIONED = "recaptioned"
"""Key of the manifest of a run with recaptions; has `verdicts`, their digest, if all that they keep is recaptioned."""
REQUIRED = {"recipe": dict, "recipe_hash": str, "layout": dict, "shards": list, "models": dict, "versions": dict}
"""Keys that every run.json has, and their types."""


class Run:
    """A run: its folder, and the manifest of what was done in it (run.json).

    Attributes:
        folder: OUT of the commands.
        manifest: content of run.json: inputs, recipe, hashes of the models, versions, counts, times.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create_or_resume(
        cls,
        folder: Path,
        shards: list[Shard],
        recipe: Recipe,
        layout: Layout,
        identity: Mapping[str, Any],
        force: bool = False,
        part: Share | None = None,
    ) -> Run:
        """Opens a folder for scoring: starts a run in an empty folder, resumes the run that is there.

        A run without scores, which a failed start leaves, is started again, but not by a part: others may be running.

        Args:
            folder: OUT; created if it does not exist.
            shards: the inputs, in output order.
            recipe: the models and criteria to score for.
            layout: which parts of a sample are the image and the caption.
            identity: everything else that scores depend on (model hashes, block list, options), as JSON values.
            force: resume although versions that change scores (`SCORING_VERSIONS`) differ from those of the run.
            part: the part to score; the caller holds the manifest (`lock_manifest`). N of `--part I/N` is noted.

        Raises:
            DanqingError: the folder holds a run with another recipe, identity, other inputs or versions; lists the
                differences.
        """
        wanted = {
            "shards": [asdict(shard) | {"path": str(shard.path.resolve())} for shard in shards],
            "layout": asdict(layout),
            **identity,
        }
        tasks = {TASKS: part.count} if isinstance(part, TaskPart) else {}
        if not is_run(folder):
            return cls.create(folder, recipe, wanted | tasks)
        run = cls.open(folder)
        if not part and not any((folder / "scores").glob("*.parquet")):
            return cls.create(folder, recipe, wanted)
        differences = recipe.differences(run.recipe) + identity_differences(run.manifest, wanted)
        if differences:
            raise DanqingError(
                f"{folder} holds a run that was scored differently:\n  "
                + "\n  ".join(differences)
                + "\nChoose another --output, or use `danqing decide` to change thresholds only."
            )
        changed = run.manifest | tasks != run.manifest
        run.manifest |= tasks
        if (run.unscored() and resume_with_versions(folder, run.manifest, force)) or changed:
            run.save()
        return run

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, content: Mapping[str, Any]) -> Run:
        """Starts a run and writes its manifest.

        Args:
            folder: OUT.
            recipe: see `create_or_resume`.
            content: the keys `shards` and `layout`, and the run's identity.
        """
        versions = current_versions()
        manifest = {"engine": versions[ENGINE], "recipe": recipe.to_dict(), "recipe_hash": recipe.hash, "models": {}}
        run = cls(folder, manifest | dict(content) | {"versions": versions, "counts": {}, "times": {"started": _now()}})
        run.save()
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads the manifest of a run.

        Raises:
            DanqingError: the folder has no run.json, or one that is not that of a run; names what is wrong in it.
        """
        forget()
        path = folder / "run.json"
        if not path.exists():
            if (folder / "select.json").exists():
                raise DanqingError(
                    f"{folder}: a selection and no run; `danqing curate` makes a run of the pictures of its URLs, when "
                    "they are downloaded"
                )
            raise DanqingError(f"{folder}: no run here (run.json is missing); `danqing score` starts one")
        remedy = "damaged, or of another version of danqing; restore it, or score again into another folder"
        run = cls(folder, read_json(path, remedy))
        for key, kind in REQUIRED.items():
            if not isinstance(run.manifest.get(key), kind):
                problem = "missing" if key not in run.manifest else f"not {_KINDS[kind]}"
                raise DanqingError(f"{path}: {key!r} is {problem}; {remedy}")
        try:
            run.shards, run.layout  # noqa: B018
        except (TypeError, KeyError, AttributeError) as problem:
            raise DanqingError(f"{path}: 'shards' or 'layout' cannot be read: {problem}; {remedy}") from None
        return run

    @contextmanager
    def locked(self, part: Share | None = None) -> Iterator[None]:
        """Holds the lock of the run's folder during a `with` block, and first reads the manifest again.

        Args:
            part: see `lock_folder`.

        Raises:
            DanqingError: another process writes to the run, or its folder cannot be written.
        """
        with lock_folder(self.folder, part) as taken_here:
            if taken_here:  # another process can have changed the run since this object was made
                self.manifest = Run.open(self.folder).manifest
            yield

    @contextmanager
    def locked_manifest(self, part: Share | None) -> Iterator[None]:
        """Locks the manifest and reads it again, so that a task can change it during a `with` block; other tasks wait.

        Args:
            part: the task's part. None: no other task writes to the run, so nothing is locked and read.
        """
        if part is None:
            yield
            return
        with lock_manifest(self.folder):
            self.manifest = Run.open(self.folder).manifest
            yield

    def save(self) -> None:
        """Writes the manifest."""
        write_json(self.folder / "run.json", self.manifest)

    def note(self, section: str, **values: Any) -> None:
        """Updates a section of the manifest and writes it."""
        self.manifest.setdefault(section, {}).update(values)
        self.save()

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was scored with."""
        return recipe_from_dict(self.manifest["recipe"], str(self.folder / "run.json"))

    @property
    def layout(self) -> Layout:
        """Which parts of a sample are the image and the caption."""
        stored: dict[str, Any] = self.manifest["layout"]
        lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
        return Layout(**stored | lists)

    @property
    def shards(self) -> list[Shard]:
        """The run's inputs, in output order; a shard's position is its number."""
        return [Shard(**shard | {"path": path_of(shard["path"])}) for shard in self.manifest["shards"]]

    def _file(self, kind: str, number: int, suffix: str) -> Path:
        return self.folder / kind / f"{number:05d}{suffix}"

    def scores_path(self, number: int) -> Path:
        """Every row of a shard with every score."""
        return self._file("scores", number, ".parquet")

    def features_path(self, number: int) -> Path:
        """The shard's image embeddings: float16, (rows with one, dimension), unit length."""
        return self._file("features", number, ".npy")

    def verdicts_path(self, number: int) -> Path:
        """Every row of a shard: kept, or dropped by which criterion."""
        return self._file("verdicts", number, ".parquet")

    def tar_path(self, number: int) -> Path:
        """An output shard as WebDataset; output shards have numbers of their own, over the borders of input shards."""
        return self._file("shards", number, ".tar")

    def table_path(self, number: int) -> Path:
        """The rows of an output shard with their scores; with the images, if the output format is Parquet."""
        return self._file("shards", number, ".parquet")

    def recaptions_path(self, number: int) -> Path:
        """The recaptions of a shard's kept rows."""
        return self._file("recaptions", number, ".parquet")

    def check_decided(self) -> None:
        """Raises DanqingError if the run has no verdicts."""
        if "decided" not in self.manifest:
            raise DanqingError(f"{self.folder}: no verdicts yet; run `danqing decide {self.folder}` first")

    def unscored(self, part: Share | None = None) -> list[Shard]:
        """The shards, of a part or of the whole run, that have no scores or no features."""
        scores, features = (
            {path.stem for path in (self.folder / kind).glob(f"[0-9]*.{suffix}") if path.exists()}
            for kind, suffix in (("scores", "parquet"), ("features", "npy"))
        )
        return [
            shard
            for shard in self.shards
            if (part is None or part.holds(shard.number)) and f"{shard.number:05d}" not in scores & features
        ]

    def is_scored(self, shard: Shard) -> bool:
        """Whether a shard has scores and features."""
        return self.scores_path(shard.number).exists() and self.features_path(shard.number).exists()

    def check_scored(self) -> None:
        """Raises DanqingError if shards have no scores; names them, and the parts that they belong to."""
        if problem := self.unscored_shards():
            raise DanqingError(f"{self.folder}: {problem}")

    def unscored_shards(self) -> str:
        """Names the shards without scores, the parts that they belong to, and what to do; empty if there are none."""
        missing = self.unscored()
        if not missing:
            return ""
        finish = "finish `danqing score`"
        if tasks := self.manifest.get(TASKS):
            parts = sorted({shard.number % tasks for shard in missing})
            finish = f"finish `danqing score --part` of {_first_names([f'{number}/{tasks}' for number in parts])}"
        names = _first_names([shard.name for shard in missing])
        return f"{len(missing)} shards have no scores yet, of {len(self.shards)}: {names}; {finish}"

    @property
    def decide_command(self) -> str:
        """The command that makes the verdicts and the funnel again."""
        if MERGED not in self.manifest:
            return f"danqing decide {self.folder}"
        return " ".join(["danqing merge", *(part["folder"] for part in self.parts), "-o", str(self.folder)])

    @property
    def parts(self) -> list[dict[str, str]]:
        """The runs that this one was merged from: `folder`, and the hashes of their scores and verdicts then.

        A folder beside OUT is stored relative to it, as the links to its files are, so that all can be moved together.
        """
        here, stored = self.folder.resolve(), self.manifest.get(MERGED, [])
        return [part | {"folder": str(_beside(here, path_of(part["folder"])))} for part in stored]

    def log_path(self, part: Share | None = None) -> Path:
        """The log of the run, or of a part: on network file systems, several hosts cannot append to one file."""
        return self.folder / f"run{part.suffix if part else ''}.log"

    @contextmanager
    def logged(self, part: Share | None = None) -> Iterator[None]:
        """Appends log records and the stderr of native libraries (codecs) to `log_path` during a `with` block."""
        with logging_to(self.log_path(part)):
            yield


def _beside(here: Path, folder: Path) -> Path:
    return folder if isinstance(folder, RemotePath) or folder.is_absolute() else (here / folder).resolve()


def resume_with_versions(folder: Path, manifest: dict[str, Any], force: bool) -> bool:
    """Compares the versions that a started run or selection has recorded with those of this process; prints changes.

    Args:
        folder: where it is, for the messages.
        manifest: has `versions`, those of the start, and, if there were changes, `resumed`: a list of `time` and
            `changed` (name → versions before and after). A change is added to it.
        force: go on although scores can change.

    Returns:
        Whether the manifest was changed.

    Raises:
        DanqingError: versions changed that can change scores (`SCORING_VERSIONS`), and `force` is False.
    """
    before = dict(manifest.get("versions", {}))
    for earlier in manifest.get("resumed", ()):
        before |= {name: new for name, (_, new) in earlier["changed"].items()}
    changed = version_changes(before, current_versions())
    if not changed:
        return False
    lines = [f"{name}: {old} at the start, {new or 'none'} now" for name, (old, new) in changed.items()]
    decisive = [
        f"{line} ({SCORING_VERSIONS[name]})"
        for line, name in zip(lines, changed, strict=True)
        if name in SCORING_VERSIONS
    ]
    if decisive and not force:
        raise DanqingError(
            f"{folder} was started with other versions, so its rows would not be comparable:\n  "
            + "\n  ".join(decisive)
            + "\nInstall those versions, choose another --output, or go on with --force; run.json then names both."
        )
    say(f"{folder}: resumed with other versions: {'; '.join(lines)}")
    manifest.setdefault("resumed", []).append({"time": _now(), "changed": changed})
    return True


def finished_work(folder: Path) -> str:
    """Describes the finished part of a run or selection, for the message of an interrupted command; "" if none."""
    with suppress(DanqingError):
        if (folder / "run.json").exists():
            run = Run.open(folder)
            if "decided" in run.manifest and not run.unscored():
                recaptioned = ""
                if "verdicts" not in run.manifest.get(RECAPTIONED, {"verdicts": ""}):
                    done = sum(1 for _ in (folder / "recaptions").glob("[!.]*.parquet"))
                    recaptioned = f"; {done} of {len(run.shards)} shards are recaptioned"
                written = ", decided and written" if "written" in run.manifest else " and decided, not yet written"
                return f"{folder} is scored{written}{recaptioned}"
            return f"{len(run.shards) - len(run.unscored())} of {len(run.shards)} shards of {folder} are scored"
    parts = sum(1 for _ in (folder / "verdicts").glob("[!.]*.parquet"))
    return f"{parts} parts of {folder} are finished" if parts else ""


def is_run(folder: Path) -> bool:
    """Returns whether a folder holds a run; if not, it is empty or does not exist.

    Raises:
        DanqingError: the folder holds something else.
    """
    if (folder / "run.json").exists():
        return True
    if not is_unused(folder):
        raise DanqingError(f"{folder}: not empty and not a run (no run.json); choose another folder")
    return False


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Compares identities (see `Run.create_or_resume`).

    Args:
        there: the identity of a run, read from its run.json.
        here: the identity of this call; only its keys are compared.

    Returns:
        One line per difference.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(here))
    keys = [key for key, value in wanted.items() if there.get(key) != value]
    if "shards" in keys and "limit" in keys:
        keys.remove("shards")  # the limit cuts the list of shards
    return [
        _shard_difference(there.get(key) or [], wanted[key])
        if key == "shards"
        else f"{key}: {_short(there.get(key))} there, {_short(wanted[key])} here"
        for key in keys
    ]


def _shard_difference(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    """Describes how two lists of shards differ: their lengths, and the names of new, removed and changed shards."""
    before, now = ({(shard["path"], shard["first"]): shard for shard in shards} for shards in (there, here))
    content = [{key: shard | {"number": 0} for key, shard in shards.items()} for shards in (before, now)]
    named = {
        "new": [path for path, first in now if (path, first) not in before],
        "removed": [path for path, first in before if (path, first) not in now],
        "changed": [key[0] for key in now if key in before and content[0][key] != content[1][key]],
    }
    named = {what: list(dict.fromkeys(Path(path).name for path in paths)) for what, paths in named.items()}
    found = [
        f"{_first_names(names)} {'is' if len(names) == 1 else 'are'} {what}" for what, names in named.items() if names
    ]
    return f"shards: {len(there)} there, {len(here)} here: {'; '.join(found) or 'in another order'}"


def _first_names(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES:,} more"


_KINDS = {dict: "an object", list: "a list", str: "a text"}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
