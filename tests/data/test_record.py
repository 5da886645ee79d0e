"""The recorder of a robot: whatever kills it, what was finished is there; every episode is readable at once."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from sample_episodes import FEATURES, fingerprints, images, length, vectors, write_dataset

from moe_robot.data.loader import open_dataset
from moe_robot.data.record import EpisodeBuilder
from moe_robot.types import UserError

RECORDER = """
import sys
from sample_episodes import FEATURES, record
from moe_robot.data.store import DatasetWriter
to, codec = sys.argv[1:]
writer = DatasetWriter(to, FEATURES, {"environment": "samples"}, codec)
print(writer.episodes, flush=True)
for episode in range(writer.episodes, 400):
    writer.append(record(episode, codec))
    writer.commit()
    print(episode + 1, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("codec", ["png", "h264"])
def test_kill_minus_nine_loses_no_finished_episode(tmp_path, codec, kills):
    """Pictures and videos: after each kill the set is whole, opens, decodes to its last frame, and is gone on with."""
    directory, chance, finished = tmp_path / "killed", random.Random(codec), 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDER, directory, codec],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        begun = process.stdout.readline()
        assert int(begun) >= finished
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        reported = [begun, *process.stdout.readlines()]
        process.wait()
        finished = int([line for line in reported if line.endswith("\n")][-1])
        total = json.loads((directory / "meta/info.json").read_text())["total_episodes"]
        assert finished <= total <= finished + 1  # the last report may have been cut off
        if total:
            data = open_dataset(directory, 2, split="all")
            batch = data.batch(np.arange(len(data)))
            assert len(data) == sum(length(e) for e in range(total))
            states = np.concatenate([vectors(e)[0] for e in range(total)]).astype(np.float32)
            np.testing.assert_array_equal(batch["observation.state"], states)
    write_dataset(directory, total + 2, codec)
    assert fingerprints(directory) == fingerprints(write_dataset(tmp_path / "whole", total + 2, codec))


def test_the_callers_buffers_may_be_used_again_at_once():
    builder, buffer = EpisodeBuilder(FEATURES), {c: np.zeros((*s, 3), np.uint8) for c, s in FEATURES.cameras.items()}
    for frame in range(40):
        for camera, pixels in images(0, frame).items():
            buffer[camera][:] = pixels
        builder.add(buffer, np.zeros(3), np.zeros(2))
    whole = EpisodeBuilder(FEATURES)
    for frame in range(40):
        whole.add(images(0, frame), np.zeros(3), np.zeros(2))
    assert builder.finish("go").frames.equals(whole.finish("go").frames)


def test_a_frame_that_cannot_be_encoded_is_told_at_the_end_of_the_episode_at_the_latest(monkeypatch):
    def fail(frame):
        raise UserError("no encoder")

    builder = EpisodeBuilder(FEATURES)
    monkeypatch.setattr("moe_robot.data.record.encode_image", fail)
    builder.add(images(0, 0), np.zeros(3), np.zeros(2))
    with pytest.raises(UserError, match="no encoder"):
        builder.finish("go")
