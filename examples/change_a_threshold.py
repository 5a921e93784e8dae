"""Decides a run again with other thresholds, and compares the funnels. Nothing is scored again, so it takes seconds.

    python examples/change_a_threshold.py out words.max=40

Arguments: folder of a run, and the values to override. Thresholds can be tightened freely. To loosen them, score with
`score_everything=True`: by default a pair that a criterion drops is not scored any further.
"""

import sys

import danqing


def main(folder: str, *overrides: str) -> None:
    run = danqing.open_run(folder)
    before = run.funnel
    after = danqing.decide(run, set=overrides).funnel
    print(f"{'criterion':24}{'rule':42}{'dropped before':>16}{'now':>8}")
    dropped = {line.criterion: line.dropped for line in before.lines}
    for line in after.lines:  # an override of null removes a criterion
        mark = "  <" if line.dropped != dropped[line.criterion] else ""
        print(f"{line.criterion:24}{line.rule:42}{dropped[line.criterion]:16}{line.dropped:8}{mark}")
    print(f"kept: {before.kept} before, {after.kept} now, of {after.collected}")
    danqing.write(run)  # the shards follow the verdicts; unchanged shards are not written again


if __name__ == "__main__":
    main(*sys.argv[1:])
