"""`danqing recaption`: captions of the kept pictures by a vision-language model."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from danqing.engine.cli.app import PHASES, command
from danqing.engine.cli.options import (
    VLM,
    CacheFolder,
    Concurrency,
    Endpoint,
    MachineOptions,
    MetricsAddress,
    MetricsPort,
    Part,
    PositiveInt,
    RunFolder,
    StorageOptions,
    VlmModel,
)
from danqing.engine.cli.output import OutputOptions
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable
from danqing.engine.core.vlm_defaults import AUTO, CONCURRENCY


@Parameter(name="*", group=VLM)
@dataclass(frozen=True)
class ServerOptions:
    """Whom to ask: `VlmOptions` with an endpoint that must be named, and shorter names."""

    vlm_endpoint: Annotated[
        Endpoint,
        Parameter(
            name=["--endpoint", "--vlm-endpoint"],
            help="OpenAI-compatible endpoints, as http://HOST:8000/v1, that serve the same model; each request goes to "
            "the one with the fewest outstanding. A key is read from $DANQING_VLM_KEY.",
        ),
    ]
    vlm_model: Annotated[VlmModel, Parameter(name=["--model", "--vlm-model"])] = AUTO
    vlm_concurrency: Annotated[Concurrency, Parameter(name=["--concurrency", "--vlm-concurrency"])] = CONCURRENCY


@Parameter(name="*", group=VLM)
@dataclass(frozen=True)
class PromptOptions:
    """What is asked."""

    prompt: Annotated[
        str, Parameter(metavar="NAME|FILE", help="short or dense (Chinese captions), or a text file.")
    ] = "short"
    max_tokens: Annotated[
        PositiveInt | None,
        Parameter(metavar="N", help="Tokens of an answer (default: 128; with the prompt dense 512)."),
    ] = None
    longest_edge: Annotated[
        PositiveInt | None,
        Parameter(metavar="PIXELS", help="Send larger pictures in this size (default: the original bytes)."),
    ] = None


@command(
    "danqing recaption out --endpoint http://127.0.0.1:8000/v1",
    "danqing recaption out --endpoint http://a:8000/v1,http://b:8000/v1 --prompt dense",
    "danqing recaption out --endpoint http://a:8000/v1 --prompt mine.txt --again",
    group=PHASES,
)
def recaption(
    run: RunFolder,
    /,
    *,
    server: ServerOptions,
    prompt: PromptOptions = PromptOptions(),
    again: Annotated[
        bool,
        Parameter(
            group=VLM,
            help="Ask anew with another prompt or model; with the same ones, ask again where the outcome is an error.",
        ),
    ] = False,
    part: Part = "",
    machine: MachineOptions = MachineOptions(),
    metrics_port: Annotated[
        MetricsPort, Parameter(help="Serve rates, queue, outcomes and tokens to Prometheus.")
    ] = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    cache: CacheFolder = None,
    out: OutputOptions = OutputOptions(),
) -> None:
    """Ask a vision-language model for captions of the kept pairs.

    Writes recaptions/ and report.html. Finished shards are not asked again; `danqing write` then adds the captions.
    """
    from danqing.engine.phases import NO_ENDPOINT, recaption_run
    from danqing.engine.recaption.prompts import open_prompt
    from danqing.engine.run.folder import RECAPTIONED, Run
    from danqing.engine.run.settings import settings_from

    storage = StorageOptions(cache=cache)
    metrics = {"metrics_port": metrics_port, "metrics_address": metrics_address}
    settings = settings_from({**asdict(server), **asdict(machine), **metrics, "part": part})
    if settings.vlm is None:
        raise DanqingError(NO_ENDPOINT)
    question = open_prompt(**asdict(prompt))
    with out.progress(machine.note):
        opened = Run.open(run)
        recaption_run(opened, question, settings, again)
    noted = opened.manifest[RECAPTIONED]
    outcomes, complete = noted.get("outcomes"), "verdicts" in noted
    result = {"folder": run, **{name: noted.get(name) for name in ("model", "prompt_hash")}, "complete": complete}
    if out.finish({**result, "outcomes": outcomes}):
        return
    if not complete:
        print(f"{run}: part {part} is recaptioned; recaptions of other parts are missing")
        return
    listed = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    model, report = printable(noted["model"]), run / "report.html"
    print(f"{model}: {listed or 'no kept pairs'}; pictures with both captions in {report}")
    print(f"Next: {shlex.join(['danqing', 'write', str(run), *storage.arguments])}")
