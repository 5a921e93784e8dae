"""Options that several commands share: names, validation, and conversion."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from cyclopts import Group, Parameter

from danqing.engine.core.buckets import ENDPOINT
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.local_copies import COPIES
from danqing.engine.core.storage import RemotePath, path_of
from danqing.engine.core.vlm_defaults import AUTO, CONCURRENCY

if TYPE_CHECKING:
    from danqing.engine.recipe.reading import Recipe
    from danqing.engine.run.settings import Settings
    from danqing.engine.score.workers import Watcher
    from danqing.engine.write.output import WriteOptions

BUILTIN_RECIPES = ("danqing", "danqing-plus", "embedded")
"""`engine.recipe.reading.builtin_names`, without its imports, so that help is printed at once."""

RECIPE = Group("Recipe", sort_key=1)
LAYOUT = Group("Input layout", sort_key=2)
TEXT = Group("Text", sort_key=3)
PICTURES = Group("Pictures", sort_key=4)
MACHINE = Group("Machine", sort_key=5)
SEVERAL = Group("Several GPUs", sort_key=6)
MONITORING = Group("Monitoring", sort_key=7)
OTHER_DATA = Group("Other data", sort_key=8)
OUTPUT = Group("Output", sort_key=9)
STORAGE = Group("Object storage", sort_key=10)
VLM = Group("Vision-language model", sort_key=11)


def whole_from(minimum: int, maximum: int | None = None) -> Callable[[Any, int | None], None]:
    """Returns a validator of whole numbers."""
    wanted = f"of {minimum} or more" if maximum is None else f"from {minimum} to {maximum}"

    def check(kind: Any, value: int | None) -> None:
        if value is not None and (value < minimum or (maximum is not None and value > maximum)):
            raise ValueError(f"It must be a whole number {wanted}.")

    return check


def number_from(minimum: float, maximum: float | None = None) -> Callable[[Any, float | None], None]:
    """Returns a validator of numbers; `nan` and `inf` are none."""
    wanted = f"of {minimum:g} or more" if maximum is None else f"from {minimum:g} to {maximum:g}"

    def check(kind: Any, value: float | None) -> None:
        if value is not None and not minimum <= value <= (sys.float_info.max if maximum is None else maximum):
            raise ValueError(f"It must be a number {wanted}.")

    return check


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,18}", tokens[0].value):
        raise ValueError(f"{tokens[0].value!r} is not a whole number.")
    return int(tokens[0].value)


def to_paths(kind: Any, tokens: Sequence[Any]) -> Any:
    """Converts names of local files and addresses of remote ones to paths; only checks a `list[str]`."""
    paths = [path_of(token.value) for token in tokens]
    if kind == list[str]:
        return [token.value for token in tokens]
    return paths if kind == list[Path] else tuple(paths) if get_origin(kind) is tuple else paths[0]


def to_local_folder(kind: Any, tokens: Sequence[Any]) -> Path:
    """Converts the name of a local folder; refuses addresses."""
    path = path_of(tokens[0].value)
    if isinstance(path, RemotePath):
        raise DanqingError(f"{tokens[0].keyword} must be a local folder, not {path}")
    return path


def is_folder(kind: Any, value: Path | None) -> None:
    """Validates that the name of a folder is not that of a local file."""
    if value is not None and not isinstance(value, RemotePath) and value.is_file():
        raise ValueError(f"{str(value)!r} is a file; name a folder.")


def is_file(kind: Any, value: Path | None) -> None:
    """Validates that the name of a file to write is not that of a local folder, or of a file in a local file."""
    if value is None or isinstance(value, RemotePath):
        return
    if value.is_dir():
        raise ValueError(f"{str(value)!r} is a folder; name a file in it.")
    if value.parent.is_file():
        raise ValueError(f"{str(value.parent)!r} is a file; name a folder before the file.")


def _devices(kind: Any, value: str) -> None:
    if value and not value.strip(" ,;"):
        raise ValueError(f"{value!r} names no GPU.")


def _part(kind: Any, value: str) -> None:
    from danqing.engine.run.part import TaskPart

    if value:
        TaskPart.parse(value)


def _part_or_any(kind: Any, value: str) -> None:
    from danqing.engine.run.claims import read_share

    read_share(value)


def _size(kind: Any, tokens: Sequence[Any]) -> int:
    from danqing.engine.core.memory import read_size

    try:
        return read_size(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a size; write for example 4G or 900M.") from None


Natural = Annotated[int, Parameter(converter=_whole, validator=whole_from(0))]
PositiveInt = Annotated[int, Parameter(converter=_whole, validator=whole_from(1))]
Port = Annotated[int, Parameter(converter=_whole, validator=whole_from(1, 65535))]
Size = Annotated[int, Parameter(converter=_size, metavar="SIZE")]
OptionalFile = Annotated[Path | None, Parameter(converter=to_paths, n_tokens=1, metavar="FILE")]
Suites = Annotated[tuple[str, ...], Parameter(metavar="DIR|NAME", n_tokens=1)]
Resizer = Annotated[
    Literal["auto", "dali", "kernel"],
    Parameter(
        help="kernel: bit-equal to Pillow on every device; dali: DALI's graph; auto: dali on a GPU, kernel on a CPU."
    ),
]
StrictEngines = Annotated[
    bool,
    Parameter(help="Stop if an engine in use does not open; by default the previous engine runs, or the model itself."),
]
MetricsPort = Annotated[Port | None, Parameter(group=MONITORING, metavar="PORT")]
MetricsAddress = Annotated[
    str,
    Parameter(group=MONITORING, metavar="ADDRESS", help="Address to serve at; by default this machine only."),
]
Threads = Annotated[
    Annotated[int, Parameter(converter=_whole, validator=whole_from(1, 1024))] | None,
    Parameter(group=MACHINE, metavar="N", help="Host threads (default: all cores)."),
]
Neighbours = Annotated[
    str,
    Parameter(
        group=MACHINE,
        metavar="NAME",
        help="Index for near-duplicates: tiles, faiss, lists (for a recall below 1), an installed package's index, or "
        "auto: tiles; for a recall below 1, faiss on a GPU if it is installed, else lists. Exact indexes give equal "
        "verdicts.",
    ),
]

Inputs = Annotated[
    list[str],
    Parameter(
        converter=to_paths,
        help="WebDataset shards (.tar), Parquet with pictures, tables (.csv, .jsonl) that name picture files, folders "
        "of any of these or of pictures with .txt beside them; globs and brace ranges ({00000..00041}.tar).",
    ),
]
OutputFolder = Annotated[
    Path,
    Parameter(
        name=["--output", "-o"], metavar="OUT", converter=to_paths, validator=is_folder, help="Folder to write to."
    ),
]
LocalFolder = Annotated[
    Path,
    Parameter(
        name=["--output", "-o"],
        metavar="OUT",
        converter=to_local_folder,
        validator=is_folder,
        help="Folder to write to.",
    ),
]
RunFolder = Annotated[Path, Parameter(converter=to_paths, help="Folder of the run.")]
Encoding = Annotated[
    str,
    Parameter(
        group=LAYOUT,
        metavar="NAME",
        help="Encoding of captions and tables, e.g. gb18030 (default: detected: UTF-8, UTF-16, GB18030, Big5).",
    ),
]
FollowLinks = Annotated[
    bool,
    Parameter(group=LAYOUT, help="Also read files outside the input's folder that a table or symbolic link names."),
]
Strict = Annotated[bool, Parameter(group=LAYOUT, help="Exit with status 3 if any input is damaged (OUT/damaged.json).")]
PART_HELP = (
    "Run as task I of N (0/16 to 15/16), which work on one OUT at the same time. A task does every N-th input shard, "
    "or writes an N-th of the output shards. For job arrays of Slurm and indexed jobs of Kubernetes."
)
Part = Annotated[
    str,
    Parameter(group=SEVERAL, metavar="I/N", validator=_part, allow_leading_hyphen=True, help=PART_HELP),
]
PartOrAny = Annotated[
    str,
    Parameter(
        group=SEVERAL,
        metavar="I/N|any",
        validator=_part_or_any,
        allow_leading_hyphen=True,
        help=f"{PART_HELP} With 'any', a process has no number: it takes shards that no other process has taken, until "
        "all are done. For machines of unequal speed, and any number of them.",
    ),
]
Ray = Annotated[
    str,
    Parameter(
        group=SEVERAL,
        metavar="auto|local|ADDRESS",
        help="Run on a Ray cluster, with a worker on every GPU (write: on every core). OUT and the inputs need the "
        "same paths on all nodes. auto: the cluster that this machine is a node of; local: this machine only.",
    ),
]
Limit = Annotated[
    PositiveInt | None,
    Parameter(metavar="N", help="Use only the first N rows of the input; later shards are not opened."),
]
ForceResume = Annotated[
    bool,
    Parameter(
        name="--force",
        group=OUTPUT,
        help="Resume even if a version changed that can change scores; OUT then records both versions.",
    ),
]
ForceModels = Annotated[
    bool,
    Parameter(
        name="--force",
        group=OUTPUT,
        help="Decide even if the recipe names other models than those that scored the run.",
    ),
]


CacheFolder = Annotated[
    Path | None,
    Parameter(
        group=STORAGE,
        converter=to_local_folder,
        n_tokens=1,
        validator=is_folder,
        metavar="DIR",
        help="Local folder for copies of remote files (default: remote in the cache).",
    ),
]


@Parameter(name="*", group=STORAGE)
@dataclass(frozen=True)
class StorageOptions:
    """Access to addresses (s3://, gs://, abfs://, hdfs://; inputs also https://).

    The options set environment variables, which worker processes inherit.
    """

    endpoint: Annotated[
        str, Parameter(metavar="URL", help=f"Address of an S3-compatible store, such as MinIO (default: ${ENDPOINT}).")
    ] = ""
    cache: CacheFolder = None

    def __post_init__(self) -> None:
        given = {ENDPOINT: self.endpoint, COPIES: self.cache}
        os.environ.update({name: str(value) for name, value in given.items() if value})

    @property
    def arguments(self) -> list[str]:
        """The options as they were given, for the command line of the next step."""
        given = {"--endpoint": self.endpoint, "--cache": self.cache}
        return [word for name, value in given.items() if value for word in (name, str(value))]

    @property
    def environment(self) -> str:
        """The endpoint as the start of another program's command line, which has no option for it."""
        return f"{ENDPOINT}={shlex.quote(self.endpoint)} " if self.endpoint else ""


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class ShardOptions:
    """Format of the written shards."""

    output_format: Annotated[
        str,
        Parameter(
            metavar="NAME",
            help="webdataset: .tar shards with a table of scores; parquet: pictures inside the table; or the writer of "
            "an installed package.",
        ),
    ] = "webdataset"
    shard_size: Annotated[PositiveInt, Parameter(metavar="N", help="Pairs per written shard.")] = 10_000
    shuffle: Annotated[
        int | None,
        Parameter(
            metavar="SEED",
            help="Write the pairs in the order of a permutation with this seed; needs free space for a copy of them.",
        ),
    ] = None
    licence: Annotated[str, Parameter(metavar="NAME", help="Licence that the dataset card names.")] = "other"

    def load(self) -> WriteOptions:
        """Returns the options as the phases take them."""
        from danqing.engine.write.output import WriteOptions

        return WriteOptions(**asdict(self))


@Parameter(name="*", group=RECIPE)
@dataclass(frozen=True)
class RecipeOptions:
    """The recipe, and values of it that are overridden."""

    recipe: Annotated[
        str | None, Parameter(metavar="NAME|FILE", help=f"{', '.join(BUILTIN_RECIPES)}, or a YAML file.")
    ] = None
    settings: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            metavar="NAME.KEY=VALUE",
            help="Override one value, e.g. words.max=40 or models.image_embedding=my-card.yaml; repeatable.",
        ),
    ] = ()

    @property
    def arguments(self) -> list[str]:
        """The options as they were given, for the command line of the next step."""
        given = ["--recipe", self.recipe] if self.recipe else []
        return [*given, *(word for value in self.settings for word in ("--set", value))]

    def load(self, default: str | None = None) -> Recipe:
        """Reads the recipe; if none is given, `default`, else the engine's default."""
        from danqing.engine.recipe.reading import DEFAULT_RECIPE, load_recipe
        from danqing.engine.stages import model_roles
        from danqing.engine.stages.columns import known_columns

        return load_recipe(self.recipe or default or DEFAULT_RECIPE, self.settings, known_columns(), model_roles())


@Parameter(name="*", group=LAYOUT)
@dataclass(frozen=True)
class LayoutOptions:
    """Location of picture and caption in a row."""

    image_key: Annotated[
        str | None,
        Parameter(
            metavar="NAME,…",
            help="Extension of a member or name of a column with the picture (default: jpg, png, …, image, file_name).",
        ),
    ] = None
    caption_key: Annotated[
        str | None,
        Parameter(
            metavar="NAME,…",
            help="Extension, .json field or column with the caption (default: txt, text, caption, alt_text).",
        ),
    ] = None
    encoding: Encoding = ""
    follow_links: FollowLinks = False


@Parameter(name="*", group=TEXT)
@dataclass(frozen=True)
class TextOptions:
    """Lists for judging URLs and captions."""

    blocklist: Annotated[OptionalFile, Parameter(help="Blocked domains, one per line, including subdomains.")] = None
    user_dict: Annotated[
        tuple[Path, ...],
        Parameter(
            converter=to_paths,
            n_tokens=1,
            metavar="FILE",
            help="Words that jieba does not know, one per line, with frequency and tag if known; repeatable.",
        ),
    ] = ()

    @property
    def arguments(self) -> list[str]:
        """The options as they were given, for the command line of the next step."""
        given = ["--blocklist", str(self.blocklist)] if self.blocklist else []
        return [*given, *(word for path in self.user_dict for word in ("--user-dict", str(path)))]


@Parameter(name="*", group=PICTURES)
@dataclass(frozen=True)
class PictureOptions:
    """Processing of pictures."""

    score_everything: Annotated[bool, Parameter(help="Compute all scores of all pairs, without gates.")] = False
    max_pixels: Annotated[
        PositiveInt | None, Parameter(metavar="N", help="Refuse larger pictures (default: Pillow's limit).")
    ] = None
    resizer: Resizer = "auto"
    strict_engines: StrictEngines = False
    memory_limit: Annotated[Size | None, Parameter(help="Limit of host memory for scoring, such as 4G or 900M.")] = None


Endpoint = Annotated[str, Parameter(metavar="URL,…")]
VlmModel = Annotated[
    str, Parameter(group=VLM, metavar="ID", help="Id of the endpoint's model; auto: the only one that it serves.")
]
Concurrency = Annotated[
    PositiveInt, Parameter(group=VLM, metavar="N", help="Requests at once, of each process; over all endpoints.")
]


@Parameter(name="*", group=VLM)
@dataclass(frozen=True)
class VlmOptions:
    """The vision-language model that criteria with `vlm` ask."""

    vlm_endpoint: Annotated[
        Endpoint,
        Parameter(
            help="OpenAI-compatible endpoint, as http://HOST:8000/v1, for criteria with vlm; several share the "
            "requests. A key is read from $DANQING_VLM_KEY.",
        ),
    ] = ""
    vlm_model: VlmModel = AUTO
    vlm_concurrency: Concurrency = CONCURRENCY


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True)
class MachineOptions:
    """Device and number of host threads."""

    device: Annotated[str, Parameter(metavar="NAME", help="cpu, cuda, cuda:N, or auto: a GPU if there is one.")] = (
        "auto"
    )
    threads: Threads = None

    @cached_property
    def chosen(self) -> str:
        """The device's name; `auto` is resolved to `cuda:0` or `cpu`."""
        from danqing.engine.core.device import resolve_device

        return resolve_device(self.device)

    @property
    def note(self) -> str:
        """Line with the device that `auto` has chosen, and the reason; empty if the device was named."""
        if self.device != "auto":
            return ""
        if self.chosen != "cpu":
            return f"device: {self.chosen}"
        if Path("/dev/nvidia0").exists() and not find_spec("cupy"):
            return "device: cpu (to use the GPU: pip install 'danqing-engine[cuda]')"
        return "device: cpu (no GPU found)"


@Parameter(name="*")
@dataclass(frozen=True)
class SeveralOptions:
    """Several workers, and what is measured while they score."""

    devices: Annotated[
        str,
        Parameter(
            group=SEVERAL,
            metavar="N,…",
            validator=_devices,
            help="Score on these GPUs, one process each; a process takes the next shard when it is free.",
        ),
    ] = ""
    workers_per_gpu: Annotated[
        PositiveInt,
        Parameter(
            group=SEVERAL,
            metavar="N",
            help="Processes per GPU, each with its own models, if one process does not keep the GPU busy.",
        ),
    ] = 1
    ray: Ray = ""
    profile: Annotated[
        bool, Parameter(group=MONITORING, help="Measure where the time of scoring goes; writes OUT/profile/.")
    ] = False
    metrics_port: Annotated[
        MetricsPort,
        Parameter(
            help="Serve rates, queues, errors and drops to Prometheus while scoring; of several workers, the second "
            "serves the next port, and so on. With --ray, this process serves those of all workers.",
        ),
    ] = None
    metrics_address: MetricsAddress = "127.0.0.1"

    def note(self, machine: MachineOptions) -> str:
        """Returns the line about the chosen device; empty if devices were named."""
        return "" if self.devices or self.ray else machine.note

    @property
    def watcher(self) -> Watcher | None:
        """Profiles the scoring; None without `--profile`."""
        from danqing.profiling.watch import profile_scoring

        return profile_scoring if self.profile else None


@Parameter(name="*")
@dataclass(frozen=True)
class StageOptions:
    """Everything that scores can depend on besides input and recipe, and the machine."""

    text: TextOptions = TextOptions()
    pictures: PictureOptions = PictureOptions()
    machine: MachineOptions = MachineOptions()
    force: ForceResume = False
    vlm: VlmOptions = VlmOptions()

    def settings(
        self,
        layout: LayoutOptions | None = None,
        several: SeveralOptions | None = None,
        limit: int | None = None,
        part: str = "",
    ) -> Settings:
        """Builds the settings of a run; `limit` is the number of rows to score, `part` the value of `--part`."""
        from danqing.engine.run.settings import settings_from

        given = (
            layout or LayoutOptions(), several or SeveralOptions(), self.text, self.pictures, self.machine, self.vlm
        )  # fmt: skip
        options = {name: value for group in given for name, value in asdict(group).items() if name != "profile"}
        return settings_from(options | {"limit": limit, "force": self.force, "part": part})
