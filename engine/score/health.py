"""Health check of the image: queries the workers that serve metrics in this container.

python -m danqing.engine.score.health
"""

from __future__ import annotations

import sys

from danqing.engine.core.cache import cache_path
from danqing.engine.score.announce import silent_workers


def main() -> int:
    """Returns 1 if a worker does not answer, else 0. A job without metrics counts as healthy."""
    silent = silent_workers(cache_path() / "metrics")
    if silent:
        print(f"metrics not served: {', '.join(silent)}")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
