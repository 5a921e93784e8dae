"""The engine's logger. A run adds a handler that writes its run.log (`engine.run.folder`)."""

import logging

log = logging.getLogger("danqing")
