"""The engine on a GPU, in steps: is it right there, how fast is it, and what limits it.

Each step is a process with a time limit; it writes `STEP.json` and a part of the table. The tower of the steps
`networks` and `end-to-end` is exported and compiled in the background while the first steps run.
"""
