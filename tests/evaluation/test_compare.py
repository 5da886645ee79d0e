"""The statistics of a comparison and its tables, on outcomes made up by hand."""

import io
import re

import pytest
from rich.console import Console

from moe_robot.evaluation.compare import Run, compare, letter
from moe_robot.evaluation.compare_plot import plot
from moe_robot.evaluation.compare_table import grids, markdown, print_grids
from moe_robot.evaluation.episode import Episode, Job
from moe_robot.evaluation.statistics import Rate, mcnemar, wilson
from moe_robot.types import Cost, UserError


def finished(label, seed, outcomes, ablations=None, line=None, flops=1000):
    cost = Cost(50, 20, {"stems": flops // 2, "experts": flops - flops // 2})
    return Run(label, line or label, seed, 100_000, outcomes, ablations or {}, 6400, 50, cost)


MOE = [
    finished("moe", 0, {"push": "ssss", "pull": "sstw"}, {"sensors front": {"push": "ts", "pull": "tt"}}),
    finished("moe", 1, {"push": "ssst", "pull": "ssss"}, {"sensors front": {"push": "tt", "pull": "ts"}}),
]
DENSE = [
    finished("dense", 0, {"push": "stss", "pull": "ttts"}),
    finished("dense", 1, {"push": "sstt", "pull": "stst"}),
]


def test_an_entry_is_counted_over_all_its_seeds_and_tasks():
    row, _ = compare([*MOE, *DENSE]).rows
    assert (row.success.successes, row.success.n, row.seeds) == (13, 16, (0, 1))
    assert row.tasks["pull"].successes == 6
    assert row.lowest[0] == "pull"
    assert row.ci95[0] <= 13 / 16 <= row.ci95[1]
    assert (row.samples, row.against) == (6400, None)


def test_the_baseline_is_paired_on_training_seed_task_and_episode():
    against = compare([*MOE, *DENSE]).rows[1].against
    assert against is not None
    # Only moe, by hand: seed 0 push 1, pull 2; seed 1 push 1, pull 2. Only dense: seed 0 pull 1.
    assert against.pairs == 16
    assert against.value == pytest.approx((1 - 6) / 16)
    assert against.p_value == against.p_holm == pytest.approx(mcnemar(6, 1))
    assert against.ci95[0] <= against.value <= against.ci95[1]


def test_only_training_seeds_that_both_have_are_paired():
    late = finished("dense", 7, {"push": "tttt", "pull": "tttt"})
    against = compare([*MOE, *DENSE, late]).rows[1].against
    assert against is not None
    assert (against.seeds, against.pairs) == ((0, 1), 16)
    assert compare([*MOE, late]).rows[1].against is None


def test_p_values_are_corrected_for_the_number_of_entries():
    others = [finished(f"d{i}", 0, {"push": "tttt", "pull": "tttt"}) for i in range(3)]
    rows = compare([MOE[0], *others]).rows
    for row in rows[1:]:
        assert row.against is not None
        assert row.against.p_value == pytest.approx(mcnemar(0, 6))
        assert row.against.p_holm == pytest.approx(3 * mcnemar(0, 6))


def test_an_ablation_is_compared_with_the_whole_policy_on_the_same_first_episodes():
    (one,) = compare([*MOE, *DENSE]).ablations
    assert (one.label, one.what, one.success.successes, one.success.n) == ("moe", "sensors front", 2, 8)
    assert one.change.value == pytest.approx(2 / 8 - 1)  # the first two of each task all succeeded with all on
    assert one.named is None


def test_a_shuffled_sentence_tells_how_often_the_named_task_was_done():
    run = finished("moe", 0, {"push": "ss"}, {"instructions shuffled": {"push": "nt"}})
    (one,) = compare([run]).ablations
    assert one.named is not None
    assert (one.success.successes, one.named.successes) == (0, 1)


def test_runs_of_other_episodes_are_not_put_side_by_side():
    with pytest.raises(UserError, match=r"dense seed 0 and moe seed 0 were not evaluated on the same episodes"):
        compare([MOE[0], finished("dense", 0, {"push": "ss", "pull": "ss"})])


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"success": True}, "s"),
        ({"wrong": True}, "w"),
        ({"timeout": True}, "t"),
        ({}, "e"),
        ({"named_success": True, "wrong": True}, "n"),
    ],
)
def test_every_outcome_has_its_letter(told, expected):
    plain = {"success": False, "named_success": None, "wrong": False, "timeout": False}
    episode = Episode(Job("push", 1), "push it", **{**plain, **told}, steps=3, latency_ms=(), step_ms=(), routing=None)
    assert letter(episode) == expected


SPEED = {
    "moe": {
        "chunk_wall_ms": {"p50": 3.25, "p95": 4.5},
        "chunk_cpu_ms": {"p50": 3.0, "p95": 4.0},
        "chunks_per_second": 800.0,
        "training_samples_per_second": 321.0,
    }
}


def test_the_tables_hold_every_number_that_was_promised():
    success, by_seed, by_task, cost, off, off_by_task = grids(compare([*MOE, *DENSE]), SPEED, per_task=True)
    moe, dense = success.rows
    low, high = wilson(13, 16)
    assert moe[:4] == ("moe", "0 1", "16", f"81 % [{100 * low:.0f}, {100 * high:.0f}]")
    assert re.fullmatch(r"-31 \[-\d+, [-+]?\d+\]", dense[-2])
    assert float(dense[-1]) == pytest.approx(mcnemar(6, 1), abs=6e-4)
    assert cost.rows[0] == ("moe", "50", "20", "0.0", "6,400", "321", "3.25", "4.50", "3.00", "800")
    assert cost.rows[1][5:] == ("–",) * 5
    assert off.rows[0][:3] == ("moe", "sensors front", "8")
    assert off_by_task.heads == ("entry", "without", *MOE[0].outcomes)
    for task, cell in zip(off_by_task.heads[2:], off_by_task.rows[0][2:], strict=True):
        off_rate = Rate(sum(run.ablations["sensors front"][task].count("s") for run in MOE), 4)
        assert cell == f"{off_rate} (100)"  # the first two of each task all succeeded with all on
    of_seeds = [sum(outcomes.count("s") for outcomes in run.outcomes.values()) for run in MOE]
    assert by_seed.heads == ("entry", "seed 0", "seed 1")
    assert by_seed.rows[0] == ("moe", *(str(Rate(n, 8)) for n in of_seeds))
    assert by_task.heads == ("task", "moe", "dense")
    assert [row[0] for row in by_task.rows] == list(MOE[0].outcomes)
    assert by_task.rows[0][1] == str(Rate(sum(run.outcomes[by_task.rows[0][0]].count("s") for run in MOE), 8))


def test_what_was_not_run_leaves_its_cell_empty():
    _, by_seed, _ = grids(compare([*MOE, DENSE[0]]), {})[:3]
    assert by_seed.rows[1][1:] == (str(compare([DENSE[0]], "dense").rows[0].success), "–")


def test_every_rate_has_an_interval_and_every_row_as_many_cells_as_heads():
    for grid in grids(compare([*MOE, *DENSE]), {}, per_task=True):
        for row in grid.rows:
            assert len(row) == len(grid.heads)
            for cell in row:
                assert "%" not in cell or re.search(r"\d+ % \[\d+, \d+\]", cell)


def test_markdown_and_the_terminal_say_the_same():
    tables = grids(compare([*MOE, *DENSE]), SPEED)
    text = markdown(tables)
    written = io.StringIO()
    console = Console(width=200, file=written)
    print_grids(tables, console)
    shown = " ".join(written.getvalue().split())
    for grid in tables:
        for row in grid.rows:
            assert f"| {' | '.join(row)} |" in text
            assert all(cell in shown for cell in row)
        assert grid.note in text


def test_a_sweep_is_drawn_as_one_line_per_preset(tmp_path):
    sweep = [
        finished(f"{line}-hidden{width}", 0, {"push": "sstt"}, line=line, flops=10_000 * width)
        for line in ("moe", "dense")
        for width in (32, 64)
    ]
    speed = {run.label: SPEED["moe"] for run in sweep}
    figure = plot(compare(sweep, "moe-hidden32"), speed, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for axes in figure.axes:
        assert [bars.get_label() for bars in axes.containers] == ["moe", "dense"]
    left = figure.axes[0].containers[0].lines[0]
    assert list(left.get_xdata()) == pytest.approx([0.32, 0.64])
    assert list(left.get_ydata()) == [50, 50]


def test_a_picture_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        plot(compare(MOE), {}, tmp_path / "file/curves.png")
