"""A retention policy in Python: `prune GROUP --policy spread --keep-spread 10`.

It keeps few snapshots, the sparser the older they are: the newest, and of those that are one day old or older, two days,
four days and so on the newest of each.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import about, policy
from wit_world.imports import types

DAY = 86_400


def spread(ages: list[int], count: int) -> list[bool]:
    """Which of the snapshots of these ages (in seconds, the newest first) are kept."""
    kept = [False] * len(ages)
    boundary = 0
    for _ in range(count):
        for number, age in enumerate(ages):
            if age >= boundary:
                kept[number] = True
                break
        boundary = boundary * 2 or DAY
    return kept


class About(exports.About):
    def describe(self) -> about.Info:
        option = types.OptionSpec(
            name="keep-spread",
            kind=types.OptionKind.INTEGER,
            help="How many snapshots to keep, each about twice as old as the one before",
            repeatable=False,
            default=None,
            minimum=1,
            choices=[],
        )
        return about.Info(
            name="spread",
            version="0.1.0",
            summary="Keeps snapshots the sparser the older they are",
            options=[option],
            capabilities=[],
        )


class Policy(exports.Policy):
    def decide(
        self,
        now: int,
        snapshots: list[policy.Snapshot],
        options: list[types.OptionValue],
    ) -> list[policy.Decision]:
        given = [option.value for option in options if option.name == "keep-spread"]
        if not given:
            raise Err(types.Failure_Invalid("--keep-spread is missing"))
        # What is not finished is nothing to fall back on.
        finished = [snapshot for snapshot in snapshots if snapshot.finished]
        kept = spread([now - snapshot.taken for snapshot in finished], int(given[-1]))
        keep = {snapshot.taken for snapshot, keep in zip(finished, kept) if keep}
        return [decision(not s.finished or s.taken in keep) for s in snapshots]


def decision(keep: bool) -> policy.Decision:
    if keep:
        return policy.Decision(policy.Verdict.KEEP, "spread")
    return policy.Decision(policy.Verdict.REMOVE, "a newer one is near")
