"""Peers in virtual environments of their own, since what they need is at odds with what we need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from danqing.engine.core.errors import DanqingError

TORCH = "torch==2.13.0"
"""For peers that need it: the one our tests run."""


@dataclass(frozen=True)
class Environment:
    """How to set up a peer.

    Args:
        name: of its package, and of its folder.
        packages: what pip installs, in the order that it is asked.
        alone: what is installed then without anything it asks for.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()

    def make(self, peers: Path) -> None:
        """Makes it, or brings it up to date.

        Raises:
            DanqingError: with pip's last words.
        """
        folder = peers / self.name
        pip = [folder / "bin" / "python", "-m", "pip", "install"]
        commands = [[sys.executable, "-m", "venv", folder], [*pip, *self.packages]]
        if self.alone:
            commands.append([*pip, "--no-deps", *self.alone])
        for command in commands:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                raise DanqingError(f"{folder}: {(done.stderr or done.stdout)[-1000:]}")

    def program(self, peers: Path, name: str) -> Path:
        """One of its programs.

        Raises:
            DanqingError: it is not there; says how to set it up.
        """
        path = (peers / self.name / "bin" / name).absolute()
        if not path.exists():
            benchmark = getattr(sys.modules["__main__"].__spec__, "name", Path(sys.argv[0]).stem)
            raise DanqingError(f"{peers}: no {self.name} here; first run python -m {benchmark} --setup-peers {peers}")
        return path

    def version(self, peers: Path) -> str:
        places = [str(path) for path in (peers / self.name).glob("lib/python*/site-packages")]
        return next((found.version for found in metadata.distributions(name=self.name, path=places)), "?")
