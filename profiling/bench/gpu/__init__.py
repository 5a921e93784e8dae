"""Benchmark of the engine on a GPU, in steps: parity with the CPU, rates, and the limits of each stage.

Each step is a process with a time limit that writes `STEP.json` and a part of the table. The tower for the steps
`networks` and `end-to-end` is exported in the background while the first steps run.
"""
