"""The image's health check (`python -m engine.health`): queries the workers that serve metrics in this container."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.announce import silent_workers


def main() -> int:
    """Returns 1 if a worker does not answer, else 0. A job without metrics counts as healthy."""
    silent = silent_workers(Path(os.environ["DANQING_CACHE"]) / "metrics")
    if silent:
        print(f"metrics not served: {', '.join(silent)}")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
