import av
import cv2
import numpy as np
import pytest

from moe_robot.evaluation.episode import Actor, Cast, Job
from moe_robot.evaluation.video import ASLEEP, PAPER, ROLES, VERDICTS, awake_LE, film, lamps
from moe_robot.types import Routing, UserError


@pytest.fixture
def filmed(make_checkpoint, tmp_path):
    """A function that films an episode: the episode, the decoded frames, the stream's facts, the strip."""

    def run(**config):
        actor = Actor(Cast(make_checkpoint(**config), "signpost", {}, "seen", "cpu"), Job("go_right", 3))
        episode = film(actor, Job("go_right", 3), tmp_path)
        actor.close()
        with av.open(str(tmp_path / "go_right_3.mp4")) as container:
            stream = container.streams.video[0]
            facts = (stream.codec_context.name, stream.pix_fmt, int(stream.average_rate))
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        strip = cv2.cvtColor(cv2.imread(str(tmp_path / "go_right_3.png")), cv2.COLOR_BGR2RGB)
        return episode, frames, facts, strip

    return run


def near(picture, color, tolerance=24):
    return (np.abs(picture.astype(int) - color).max(axis=-1) <= tolerance).sum()


def test_the_video_is_h264_that_browsers_play_one_frame_per_step(filmed):
    episode, frames, facts, _ = filmed()
    assert facts == ("h264", "yuv420p", 10)
    assert len(frames) == episode.steps + 1 + 10  # the first observation, one per step, and the last for a second


def test_the_last_frame_says_how_it_ended(filmed):
    episode, frames, _, strip = filmed()
    assert episode.success
    assert near(frames[0], VERDICTS["success"]) < 50
    assert near(frames[-1], VERDICTS["success"]) > 3000
    assert near(strip[250:275], VERDICTS["success"], 60) > 20


def test_the_video_shows_the_walker_moving(filmed):
    _, frames, _, _ = filmed()
    columns = [np.flatnonzero(near_columns(frame[80:500, 20:460])).mean() for frame in (frames[0], frames[-1])]
    assert columns[1] > columns[0] + 50


def near_columns(picture):
    return (np.abs(picture.astype(int) - (40, 90, 160)).max(axis=-1) < 40).any(axis=0)


def test_without_a_gate_there_is_no_lamp_panel(filmed):
    _, gated, _, strip = filmed()
    _, plain, _, plain_strip = filmed(gate=False)
    assert plain[0].shape[1] < gated[0].shape[1] - 150
    assert plain_strip.shape[0] < strip.shape[0] - 100
    assert near(gated[0], ROLES["language"]) > 200
    assert near(plain[0], ROLES["language"]) == 0


ROUTING = Routing(
    ("vision", "language"),
    ("vision.0", "arm.0", "language.0"),
    ("vision", "arm", "language"),
    np.array([[[8, 0, 0], [0, 0, 4]], [[0, 3, 1], [0, 1, 3]]]),
)


def test_a_lamp_is_as_bright_as_its_expert_is_busy():
    assert awake_LE(ROUTING).tolist() == [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]]


def test_an_expert_that_slept_is_dark_and_one_that_ran_has_its_role_color():
    picture = lamps(ROUTING, 120, 180, labels=False)
    first, second = picture[:, :60], picture[:, 60:]
    assert near(first, ROLES["vision"], 8) > 100
    assert near(second, ROLES["vision"], 8) == 0
    assert near(first, ROLES["arm"], 8) == 0
    assert near(second, ROLES["arm"], 8) > 100
    assert near(first, ASLEEP, 2) > 100


def test_lamps_of_a_strangers_roles_have_colors_of_their_own():
    odd = Routing(("all",), ("a", "b"), ("legs", "eyes"), np.array([[[1, 1]]]))
    picture = lamps(odd, 60, 80, labels=False)
    colors = {tuple(color) for color in picture.reshape(-1, 3) if near(picture, color, 0) > 100}
    assert len(colors - {PAPER}) == 2


def test_a_video_that_cannot_be_written_is_said_in_one_line(checkpoint, tmp_path):
    actor = Actor(Cast(checkpoint, "signpost", {}, "seen", "cpu"), Job("go_left", 1))
    with pytest.raises(UserError, match=r"cannot write .*go_left_1\.mp4"):
        film(actor, Job("go_left", 1), tmp_path / "missing")
    actor.close()
