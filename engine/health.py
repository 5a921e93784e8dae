"""The image's health check (`python -m engine.health`): queries the workers that serve metrics in this container."""

from __future__ import annotations

import sys

from engine.announce import silent_workers
from engine.files import cache_path


def main() -> int:
    """Returns 1 if a worker does not answer, else 0. A job without metrics counts as healthy."""
    silent = silent_workers(cache_path() / "metrics")
    if silent:
        print(f"metrics not served: {', '.join(silent)}")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
