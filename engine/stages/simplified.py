"""Traditional to Simplified Chinese: the words of OpenCC's dictionaries."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.package_files import package_file

FOLDER = "opencc/clib/share/opencc"
READER = "opencc/clib/bin/opencc_dict"
"""OpenCC's program that writes a dictionary as text."""


def simplified_words() -> dict[str, str]:
    """Returns the Traditional characters and phrases of OpenCC's configuration `t2s`, and what they become.

    OpenCC replaces at each position of a text the longest phrase, else the character. Some phrases become themselves,
    so that their characters stay (慰藉).

    Raises:
        DanqingError: the package has no dictionaries, or its program that reads them does not run.
    """
    config = json.loads(package_file("opencc", f"{FOLDER}/t2s.json").read_text(encoding="utf-8"))
    words: dict[str, str] = {}
    for name in dictionary_files(config["conversion_chain"]):
        words = read_dictionary(package_file("opencc", f"{FOLDER}/{name}")) | words  # the first one decides
    return words


def dictionary_files(section: Any) -> Iterator[str]:
    """Yields the names of the dictionaries of a section of a configuration, in turn."""
    for part in section if isinstance(section, list) else section.values():
        if isinstance(part, dict | list):
            yield from dictionary_files(part)
    if isinstance(section, dict) and "file" in section:
        yield section["file"]


def read_dictionary(path: Path) -> dict[str, str]:
    """Reads one of OpenCC's dictionaries (.ocd2).

    Raises:
        DanqingError: OpenCC's program does not run.
    """
    program = package_file("opencc", READER)
    with TemporaryDirectory() as folder:
        text = Path(folder, "words.txt")
        command = [program, "--input", path, "--from", "ocd2", "--to", "text", "--output", text]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as problem:
            said = getattr(problem, "stderr", "").strip()
            raise DanqingError(
                f"{program}: cannot read {path.name}: {said or problem}; install OpenCC's wheel again "
                "(pip install --force-reinstall opencc)"
            ) from None
        pairs = [line.split("\t") for line in text.read_text(encoding="utf-8").splitlines()]
    return {word: targets.split(" ")[0] for word, targets in pairs}  # the first of several is the usual one
