"""The run folder, and the settings of a run."""
