"""`danqing recaption`: captions of the kept pictures by a vision-language model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from danqing.engine.cli.app import PHASES, command
from danqing.engine.cli.options import (
    MONITORING,
    VLM,
    CacheFolder,
    Concurrency,
    MachineOptions,
    Part,
    Port,
    PositiveInt,
    RunFolder,
    StorageOptions,
    VlmModel,
)
from danqing.engine.cli.output import OutputOptions
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable


@Parameter(name="*", group=VLM)
@dataclass(frozen=True)
class AskingOptions:
    """What is asked, and whom."""

    endpoint: Annotated[
        str,
        Parameter(
            name=["--endpoint", "--vlm-endpoint"],
            metavar="URL,…",
            help="OpenAI-compatible endpoints, as http://HOST:8000/v1, that serve the same model; each request goes to "
            "the one with the fewest outstanding. A key is read from $DANQING_VLM_KEY.",
        ),
    ]
    model: Annotated[VlmModel, Parameter(name=["--model", "--vlm-model"])] = "auto"
    prompt: Annotated[
        str,
        Parameter(metavar="NAME|FILE", help="short or dense (Chinese captions), or a text file."),
    ] = "short"
    max_tokens: Annotated[
        PositiveInt | None,
        Parameter(metavar="N", help="Tokens of an answer (default: 128; with the prompt dense 512)."),
    ] = None
    longest_edge: Annotated[
        PositiveInt | None,
        Parameter(metavar="PIXELS", help="Send larger pictures in this size (default: the original bytes)."),
    ] = None
    concurrency: Annotated[Concurrency, Parameter(name=["--concurrency", "--vlm-concurrency"])] = 128
    again: Annotated[
        bool,
        Parameter(
            help="Ask anew with another prompt or model; with the same ones, ask again where the outcome is an error."
        ),
    ] = False


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
    asking: AskingOptions,
    part: Part = "",
    machine: MachineOptions = MachineOptions(),
    metrics_port: Annotated[
        Port | None,
        Parameter(group=MONITORING, metavar="PORT", help="Serve rates, queue, outcomes and tokens to Prometheus."),
    ] = None,
    metrics_address: Annotated[
        str, Parameter(group=MONITORING, metavar="ADDRESS", help="Address to serve at; by default this machine only.")
    ] = "127.0.0.1",
    cache: CacheFolder = None,
    out: OutputOptions = OutputOptions(),
) -> None:
    """Ask a vision-language model for captions of the kept pairs.

    Writes recaptions/ and report.html. Finished shards are not asked again; `danqing write` then adds the captions.
    """
    from danqing.engine.phases import recaption_run
    from danqing.engine.recaption.prompts import open_prompt
    from danqing.engine.run.folder import RECAPTIONED, Run
    from danqing.engine.run.part import TaskPart
    from danqing.engine.run.settings import server_from

    storage = StorageOptions(cache=cache)
    server = server_from(
        {"vlm_endpoint": asking.endpoint, "vlm_model": asking.model, "vlm_concurrency": asking.concurrency}
    )
    if server is None:
        raise DanqingError("--endpoint: name at least one address, as http://HOST:8000/v1")
    prompt = open_prompt(asking.prompt, asking.max_tokens, asking.longest_edge)
    task = TaskPart.parse(part) if part else None
    with out.progress(machine.note):
        opened = Run.open(run)
        recaption_run(
            opened, server, prompt, asking.again, machine.chosen, machine.threads,
            part=task, metrics=(metrics_port, metrics_address),
        )  # fmt: skip
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
