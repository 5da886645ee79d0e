"""Statistics of a comparison: finished runs of several policies in, success side by side with intervals and tests out.

A run is one policy trained with one seed and evaluated; its result is a JSON file (``cli.compare_run`` writes it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from moe_robot.evaluation.episode import Episode
from moe_robot.evaluation.statistics import Rate, hierarchical_interval, holm, mcnemar
from moe_robot.types import Cost, UserError

SCHEMA = 1
Key = TypeVar("Key")

Outcomes = Mapping[str, str]
"""Task -> one letter per episode, that of seed ``eval_seed + i`` at place i; see :func:`letter`."""


def letter(episode: Episode) -> str:
    """``s`` success, ``n`` the named task in place of the meant one, ``w`` wrong, ``t`` time out, ``e`` end."""
    return "n" if episode.named_success and not episode.success else episode.verdict[0]


def letters(episodes: Iterable[Episode]) -> dict[str, str]:
    """Episodes by task and then seed, as :data:`Outcomes`."""
    found: dict[str, str] = {}
    for episode in episodes:
        found[episode.job.task] = found.get(episode.job.task, "") + letter(episode)
    return found


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        label: the entry's name.
        line: what it has in common with the other points of its sweep; its label where there is no sweep.
        seed: of the training.
        eval_seed: of the first episode of every task.
        outcomes: of the whole policy.
        ablations: what was switched off -> outcomes on the first of the same episodes.
        samples: trained on, or None where the checkpoint does not tell; likewise ``parameters``.
        cost: of one action chunk, or None for a policy that does not tell.
    """

    label: str
    line: str
    seed: int
    eval_seed: int
    outcomes: Outcomes
    ablations: Mapping[str, Outcomes]
    samples: int | None
    parameters: int | None
    cost: Cost | None

    @classmethod
    def from_json(cls, result: Mapping[str, Any]) -> Run:
        """From the content of a result file.

        Raises:
            UserError: another schema.
        """
        if result.get("schema") != SCHEMA:
            raise UserError(f"a result has schema {result.get('schema')}, expected {SCHEMA}: run the comparison again")
        cost = result["cost"]
        return cls(
            label=result["label"],
            line=result["line"],
            seed=result["identity"]["seed"],
            eval_seed=result["identity"]["eval_seed"],
            outcomes=result["outcomes"],
            ablations=result["ablations"],
            samples=result["training"].get("samples"),
            parameters=result["training"].get("parameters"),
            cost=cost and Cost(**cost),
        )


@dataclass(frozen=True)
class Difference:
    """Success of one entry minus that of another (or of the same one with all on), over pairs of episodes.

    Attributes:
        ci95: bootstrap over training seeds and episodes.
        seeds: the training seeds that both have.
        pairs: how many pairs of episodes.
        p_value: exact McNemar over all pairs.
        p_holm: the same after Holm's correction over all entries that are compared.
    """

    value: float
    ci95: tuple[float, float]
    seeds: tuple[int, ...]
    pairs: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Row:
    """One entry: all its seeds together.

    Attributes:
        success: over all seeds, tasks and episodes, with the Wilson interval of these networks.
        ci95: bootstrap over training seeds and episodes: of the preset.
        tasks: success by task.
        by_seed: success by training seed, of one network each.
        against: the difference to the baseline; None for the baseline itself, or where no training seed is shared.
        samples: trained on, mean over seeds.
        parameters: as the training counted them, also where ``cost`` is not told.
    """

    label: str
    line: str
    seeds: tuple[int, ...]
    success: Rate
    ci95: tuple[float, float]
    tasks: Mapping[str, Rate]
    by_seed: Mapping[int, Rate]
    against: Difference | None
    samples: float | None
    parameters: int | None
    cost: Cost | None

    @property
    def lowest(self) -> tuple[str, Rate]:
        """The task with the lowest success."""
        return min(self.tasks.items(), key=lambda item: item[1].value)


@dataclass(frozen=True)
class Ablation:
    """An entry with something switched off.

    Attributes:
        what: for example ``sensors front``, ``experts vision`` or ``gate content``.
        named: how often the task that a shuffled sentence named was done; None for other ablations.
        change: success minus that of the whole policy on the same episodes; its Holm correction is over all ablations.
        tasks: task -> success.
        whole: task -> success of the whole policy on the same episodes.
    """

    label: str
    what: str
    success: Rate
    ci95: tuple[float, float]
    named: Rate | None
    change: Difference
    tasks: Mapping[str, Rate]
    whole: Mapping[str, Rate]


@dataclass(frozen=True)
class Comparison:
    """What came out. ``baseline`` is the label that the others are compared with."""

    baseline: str
    rows: tuple[Row, ...]
    ablations: tuple[Ablation, ...]


def compare(runs: Sequence[Run], baseline: str = "moe") -> Comparison:
    """Put finished runs side by side, in the order in which their labels come.

    An entry and the baseline are paired on training seed, task and episode seed: the k-th training seed of one with
    the same training seed of the other, and within it the episodes that began alike. Exact McNemar then counts the
    pairs over all training seeds in which one of the two succeeded; Holm's correction is over the entries beside the
    baseline. It asks whether *these trained networks* differ: pairs of one training seed share their two networks, so a
    preset that was lucky in one training is lucky in all its pairs. Whether the *presets* differ is told by the
    interval of the difference, which draws training seeds anew (:func:`.statistics.hierarchical_interval`).

    Raises:
        UserError: runs that were not evaluated on the same episodes.
    """
    _check_same_episodes(runs)
    of: dict[str, dict[int, Run]] = {}
    for run in runs:
        of.setdefault(run.label, {})[run.seed] = run
    theirs = of.get(baseline, {})
    against = _corrected(
        {
            label: _difference(mine, theirs, lambda run: run.outcomes, lambda run: run.outcomes)
            for label, mine in of.items()
            if label != baseline and mine.keys() & theirs.keys()
        }
    )
    rows = tuple(_row(label, mine, against.get(label)) for label, mine in of.items())
    return Comparison(baseline, rows, _ablations(of))


def _check_same_episodes(runs: Sequence[Run]) -> None:
    def played(run: Run) -> tuple[int, dict[str, int]]:
        return run.eval_seed, {task: len(row) for task, row in run.outcomes.items()}

    for run in runs:
        if played(run) != played(runs[0]):
            raise UserError(
                f"{run.label} seed {run.seed} and {runs[0].label} seed {runs[0].seed} were not evaluated on the same "
                "episodes: give --entries that were, or evaluate one of them again in another --out"
            )


def _row(label: str, runs: Mapping[int, Run], against: Difference | None) -> Row:
    everything = list(runs.values())
    samples = [run.samples for run in everything if run.samples is not None]
    return Row(
        label=label,
        line=everything[0].line,
        seeds=tuple(runs),
        success=_rate(run.outcomes for run in everything),
        ci95=hierarchical_interval([_successes(run.outcomes) for run in everything]),
        tasks=_by_task(run.outcomes for run in everything),
        by_seed={seed: _rate([run.outcomes]) for seed, run in runs.items()},
        against=against,
        samples=sum(samples) / len(samples) if samples else None,
        parameters=everything[0].parameters,
        cost=everything[0].cost,
    )


def _ablations(of: Mapping[str, Mapping[int, Run]]) -> tuple[Ablation, ...]:
    found: dict[tuple[str, str], tuple[dict[int, Run], Difference]] = {}
    for label, runs in of.items():
        for what in dict.fromkeys(what for run in runs.values() for what in run.ablations):
            mine = {seed: run for seed, run in runs.items() if what in run.ablations}
            change = _difference(
                mine, mine, lambda run, what=what: run.ablations[what], lambda run, what=what: _first(run, what)
            )
            found[label, what] = mine, change
    corrected = _corrected({key: change for key, (_, change) in found.items()})
    return tuple(
        Ablation(
            label=label,
            what=what,
            success=_rate(run.ablations[what] for run in mine.values()),
            ci95=hierarchical_interval([_successes(run.ablations[what]) for run in mine.values()]),
            named=_rate((run.ablations[what] for run in mine.values()), "n") if "shuffled" in what else None,
            change=corrected[label, what],
            tasks=_by_task(run.ablations[what] for run in mine.values()),
            whole=_by_task(_first(run, what) for run in mine.values()),
        )
        for (label, what), (mine, _) in found.items()
    )


def _first(run: Run, what: str) -> Outcomes:
    """The whole policy's outcomes on the episodes that the ablation played: the first ones of each task."""
    return {task: run.outcomes[task][: len(row)] for task, row in run.ablations[what].items()}


def _rate(outcomes: Iterable[Outcomes], success: str = "s") -> Rate:
    return Rate.of([one == success for tasks in outcomes for row in tasks.values() for one in row])


def _by_task(outcomes: Iterable[Outcomes]) -> dict[str, Rate]:
    runs = list(outcomes)
    return {task: _rate({task: run[task]} for run in runs) for task in runs[0]}


def _successes(outcomes: Outcomes) -> list[list[int]]:
    return [[int(one == "s") for one in row] for row in outcomes.values()]


def _difference(
    mine: Mapping[int, Run],
    theirs: Mapping[int, Run],
    my_outcomes: Callable[[Run], Outcomes],
    their_outcomes: Callable[[Run], Outcomes],
) -> Difference:
    seeds = [seed for seed in mine if seed in theirs]
    first = [my_outcomes(mine[seed]) for seed in seeds]
    second = [their_outcomes(theirs[seed]) for seed in seeds]
    cells = [
        [[int(a == "s") - int(b == "s") for a, b in zip(row, two[task], strict=True)] for task, row in one.items()]
        for one, two in zip(first, second, strict=True)
    ]
    values = [value for tasks in cells for row in tasks for value in row]
    p_value = mcnemar(first_only=values.count(1), second_only=values.count(-1))
    return Difference(
        value=sum(values) / len(values),
        ci95=hierarchical_interval(cells),
        seeds=tuple(seeds),
        pairs=len(values),
        p_value=p_value,
        p_holm=p_value,
    )


def _corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    adjusted = holm([difference.p_value for difference in differences.values()])
    return {key: replace(old, p_holm=p) for (key, old), p in zip(differences.items(), adjusted, strict=True)}
