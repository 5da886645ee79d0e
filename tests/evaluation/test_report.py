import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from moe_robot.evaluation import evaluate
from moe_robot.evaluation.page import page
from moe_robot.evaluation.statistics import wilson


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, signpost):
    """A report with everything in it, as read back from the files."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps({"policy": "signpost", "preset": "signpost", "blunder": 0.35}))
    (folder / "model.safetensors").write_bytes(b"weights")
    step0 = {"vision": {"vision": 0.9, "language": 0.1}, "language": {"vision": 0.3, "language": 0.7}}
    train = {"environment": "signpost", "routing": {"step0": step0}, "steps": 500, "held_out_tasks": ["go_<down>"]}
    (folder / "train.json").write_text(json.dumps(train))
    out = folder / "out"
    results = evaluate(
        folder,
        out=out,
        episodes=6,
        knockouts=["language"],
        sensors_off=["wrist", "front+arm"],
        video=1,
        instructions="shuffled",
        policy_factory=signpost.SensingSignpostPolicy.from_pretrained,
    )
    return results, json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_the_report_has_the_promised_schema(evaluated):
    results, report, _ = evaluated
    assert report["schema"] == 3
    assert report["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert report["preset"] == "signpost"
    assert report["env"] == "signpost/Signpost-v0"
    assert report["renderer"] == "numpy rectangles"
    assert report["instructions"] == "shuffled"
    assert set(report["versions"]) == {"python", "moe_robot", "torch", "mujoco", "gymnasium", "numpy"}
    assert set(report["tasks"]) == {"go_left", "go_right", "go_up"}
    assert set(report["latency_ms"]) == set(report["control_step_ms"]) == {"p50", "p95", "max"}
    assert report["training"]["steps"] == 500
    assert {"cpu", "cores", "load"} <= set(report["machine"])
    for name, task in report["tasks"].items():
        mine = [e for e in results.episodes if e.job.task == name]
        assert task["episodes"] == 6
        assert task["seeds"] == list(range(100_000, 100_006))
        assert task["outcomes"] == [int(e.success) for e in mine]
        assert task["successes"] == sum(e.success for e in mine)
        assert task["success_rate"] == task["successes"] / 6
        assert task["ci95"] == pytest.approx(wilson(task["successes"], 6))
        assert task["named_success"] == sum(e.named_success for e in mine) / 6
        assert task["wrong"] == sum(e.wrong for e in mine)
        assert task["timeouts"] == sum(e.timeout for e in mine)
        assert task["episode_steps"] == sum(e.steps for e in mine) / 6
    assert report["overall"]["episodes"] == 18


@pytest.mark.parametrize(("kind", "off"), [("knockouts", "language"), ("sensors_off", "front+arm")])
def test_the_row_without_experts_or_sensors_is_the_paired_difference(evaluated, kind, off):
    _, report, _ = evaluated
    row = report[kind][off]
    assert row["difference"] == pytest.approx(report["overall"]["success_rate"] - row["success_rate"])
    assert row["difference_ci95"][0] <= row["difference"] <= row["difference_ci95"][1]
    assert row["episodes"] == 18


def test_routing_is_summed_over_all_inferences_and_stands_beside_step_0(evaluated):
    results, report, html = evaluated
    total = sum(e.routing.counts_LME for e in results.episodes)
    assert report["routing"]["language"]["language"] == pytest.approx(total[:, 1, 2].sum() / total[:, 1].sum())
    assert sum(report["routing"]["vision"].values()) == pytest.approx(1)
    assert report["routing_step0"]["vision"]["vision"] == 0.9
    assert "At step 0, before training" in html
    assert "imprint of that starting bonus and no learning" in html


def test_every_rate_in_the_json_has_an_interval(evaluated):
    def check(node):
        if isinstance(node, dict):
            for rate, ci in (
                ("success_rate", "ci95"),
                ("named_success", "named_ci95"),
                ("difference", "difference_ci95"),
            ):
                if rate in node:
                    low, high = node[ci]
                    assert low <= node[rate] <= high
            for child in node.values():
                check(child)

    check(evaluated[1])
    assert "success_rate" in json.dumps(evaluated[1])


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags, self.links = [], [""], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href"}]

    def handle_data(self, data):
        if self.tags[-1] not in {"style", "title"}:
            self.text.append(data)


def read(html):
    parser = _Text()
    parser.feed(html)
    return " ".join(" ".join(parser.text).split()), parser


def test_every_rate_on_the_page_has_an_interval(evaluated):
    text, _ = read(evaluated[2])
    text = re.sub(r"\d+ to \d+ %", "INTERVAL", text).replace("95 % interval", "ITS").replace("95 % bootstrap", "ITS")
    text = text.replace("median 95 % longest", "")  # a quantile of times, no rate
    following = [text[rate.end() : rate.end() + 30] for rate in re.finditer(r"\d+ %", text)]
    # overall, named, both by task, and with and without the experts, all sensors and two times fewer
    assert len(following) == 1 + 1 + 2 * 3 + 2 + 3
    assert [rest for rest in following if "INTERVAL" not in rest] == []


def test_the_page_needs_nothing_from_outside(evaluated):
    results, _, html = evaluated
    _, parser = read(html)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert parser.links
    for link in parser.links:
        assert (results.out / link).is_file()
    assert "url(" not in html
    assert "go_&lt;down&gt;" in html


def test_the_page_tells_which_sensors_were_off(evaluated):
    assert "without front and arm" in evaluated[2]
    assert "the policy treats these sensors as absent" in evaluated[2]


def test_failures_come_first_in_the_gallery(evaluated):
    verdicts = [clip["verdict"] == "success" for clip in evaluated[1]["videos"]]
    assert verdicts == sorted(verdicts)
    assert len(verdicts) == 3


def test_a_policy_without_a_gate_has_no_routing_and_a_page(make_checkpoint, tmp_path):
    folder = make_checkpoint({"environment": "signpost"}, gate=False)
    evaluate(folder, out=tmp_path / "out", tasks="go_left", episodes=2, video=1)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["routing"] is None
    assert "routing_step0" not in report
    assert "no gate" in (tmp_path / "out/report.html").read_text()


def test_without_step_0_the_page_says_that_shares_show_no_learning(evaluated):
    report = {key: value for key, value in evaluated[1].items() if key != "routing_step0"}
    assert "says nothing about what the gate learned" in " ".join(page(report).split())
