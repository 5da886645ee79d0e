"""Films an episode: what the policy saw, what it was told, which experts were awake (H.264, and a strip of frames)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from moe_robot.evaluation.episode import Actor, Episode, Job
from moe_robot.evaluation.journal import writing
from moe_robot.evaluation.knockouts import without
from moe_robot.types import Observation, Routing

RGB = tuple[int, int, int]

INK: RGB = (38, 44, 52)
FAINT: RGB = (122, 130, 140)
PAPER: RGB = (250, 250, 248)
ASLEEP: RGB = (228, 229, 227)
VERDICTS: dict[str, RGB] = {"success": (31, 138, 76), "wrong": (196, 51, 43), "time out": (176, 110, 20)}
ROLES: dict[str, RGB] = {
    "vision": (37, 112, 190),
    "arm": (217, 108, 20),
    "grasp": (34, 140, 90),
    "language": (140, 70, 170),
}
OTHER_ROLES: tuple[RGB, ...] = ((190, 60, 110), (20, 140, 150), (130, 120, 30), (100, 100, 110))

SIDE = 448  # height of the large camera picture, in pixels
NAME_HEIGHT = 13  # rows of lamps closer than this, in pixels, are not named one by one
HOLD_S = 1.0  # the last frame stands still, so that the verdict can be read


@dataclass(frozen=True)
class Shot:
    """One control step of a film: the observation, and the routing of the latest inference (None without a gate)."""

    observation: Observation
    routing: Routing | None
    step: int


def film(actor: Actor, job: Job, folder: Path) -> Episode:
    """Play a job and leave ``<task>_<seed>.mp4`` and ``.png`` (the strip) in ``folder``. Returns the episode."""
    shots: list[Shot] = []
    episode = actor.run(job, lambda observation, routing, step: shots.append(Shot(observation, routing, step)))
    fps = actor.policy.features.fps
    write_video(folder / f"{job.name}.mp4", frames(shots, episode, fps), fps)
    picture = strip(shots, episode, fps)
    path = folder / f"{job.name}.png"
    with writing(path):
        if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
            raise OSError(f"cv2 could not write {path}")
    return episode


def role_color(role: str, roles: Sequence[str]) -> RGB:
    """The colour of a role: fixed for ours, in order of appearance for a stranger's."""
    strange = [name for name in dict.fromkeys(roles) if name not in ROLES]
    return ROLES[role] if role in ROLES else OTHER_ROLES[strange.index(role) % len(OTHER_ROLES)]


def awake_LE(routing: Routing) -> np.ndarray:
    """How bright each expert's lamp is in each layer, (L, E): its share of the layer's routes over the largest."""
    counts_LE = routing.counts_LME.sum(axis=1).astype(float)
    return counts_LE / np.maximum(counts_LE.max(axis=1, keepdims=True), 1.0)


def lamps(routing: Routing, width: int, height: int, *, labels: bool = True) -> np.ndarray:
    """The lamp panel, uint8 (height, width, 3) RGB: experts in rows coloured by role, layers in columns."""
    picture = np.full((height, width, 3), PAPER, dtype=np.uint8)
    bright_LE = awake_LE(routing)
    n_layers, n_experts = bright_LE.shape
    left, top = (88, 26) if labels else (0, 0)
    groups = sum(a != b for a, b in zip(routing.roles, routing.roles[1:], strict=False))
    pitch_y = (height - top) / (n_experts + 0.4 * groups)
    pitch_x = (width - left) / n_layers
    each_named = pitch_y >= NAME_HEIGHT
    radius = min(15.0, max(2.0, 0.40 * min(pitch_x, pitch_y)))
    y = top + pitch_y / 2
    for e, (name, role) in enumerate(zip(routing.experts, routing.roles, strict=True)):
        if e and role != routing.roles[e - 1]:
            y += 0.4 * pitch_y
        color = role_color(role, routing.roles)
        if labels and each_named:
            _text(picture, name, (0, int(y + 4)), 0.42, color if bright_LE[:, e].any() else FAINT)
        elif labels and (e == 0 or role != routing.roles[e - 1]):  # names would overlap: the role names its experts
            _text(picture, role, (0, int(y + 4)), 0.42, color)
        for layer in range(n_layers):
            x = left + (layer + 0.5) * pitch_x
            _dot(picture, (x, y), radius, ASLEEP)
            if bright_LE[layer, e] > 0:
                mix = bright_LE[layer, e] ** 0.5  # the eye reads area and lightness, so small shares need lifting
                _dot(picture, (x, y), radius * (0.35 + 0.65 * mix), _blend(ASLEEP, color, 0.25 + 0.75 * mix))
        y += pitch_y
    if labels:
        _text(picture, "layer", (0, 14), 0.4, FAINT)
        for layer in range(n_layers):
            _text(picture, str(layer + 1), (int(left + (layer + 0.5) * pitch_x - 4), 14), 0.4, FAINT)
    return picture


def frames(shots: Sequence[Shot], episode: Episode, fps: int) -> Iterator[np.ndarray]:
    """The pictures of a video, uint8 (H, W, 3) RGB with even sides; the last one stands for a second."""
    picture = None
    for i, shot in enumerate(shots):
        picture = _frame(shot, episode, fps, over=i == len(shots) - 1)
        yield picture
    if picture is not None:
        for _ in range(round(HOLD_S * fps)):
            yield picture


def _frame(shot: Shot, episode: Episode, fps: int, *, over: bool) -> np.ndarray:
    images = list(shot.observation.images.items())
    gap, header, side = 16, 64, SIDE // 2
    columns = [_scaled(images[0][1], SIDE)] if images else []
    panel = np.full((SIDE, side, 3), PAPER, dtype=np.uint8)
    y = 0
    for _, image in images[1:3]:
        small = _scaled(image, side)[:, :side]
        panel[y : y + side, : small.shape[1]] = small[: SIDE - y]
        y += side
    if len(images) < 3:
        _status(panel[y:], shot, episode, fps, over=over)
    columns.append(panel)
    if shot.routing is not None:
        width = 100 + max(120, min(240, 34 * shot.routing.counts_LME.shape[0]))
        columns.append(lamps(shot.routing, width, SIDE))
    width = sum(column.shape[1] for column in columns) + gap * (len(columns) + 1)
    picture = np.full((header + SIDE + gap, width + width % 2, 3), PAPER, dtype=np.uint8)
    _fitted(picture, f'"{episode.sentence}"', (gap, 40), picture.shape[1] - 2 * gap, 0.8, INK)
    x = gap
    for column in columns:
        picture[header : header + SIDE, x : x + column.shape[1]] = column
        x += column.shape[1] + gap
    if over:
        color = VERDICTS.get(episode.verdict, FAINT)
        cv2.rectangle(picture, (gap - 4, header - 4), (gap + columns[0].shape[1] + 3, header + SIDE + 3), color, 4)
    return picture


def _status(panel: np.ndarray, shot: Shot, episode: Episode, fps: int, *, over: bool) -> None:
    job, width = episode.job, panel.shape[1]
    _fitted(panel, job.task, (0, 38), width, 0.62, INK)
    y = 64
    if job.named_task is not None:
        _fitted(panel, f"told: {job.named_task}", (0, y), width, 0.5, FAINT)
        y += 24
    if off := without(job):
        _fitted(panel, off, (0, y), width, 0.5, FAINT)
        y += 24
    _text(panel, f"{shot.step / fps:4.1f} s   step {shot.step}", (0, y), 0.5, FAINT)
    _text(panel, f"seed {job.seed}", (0, y + 24), 0.5, FAINT)
    if over:
        word = episode.verdict
        cv2.rectangle(panel, (0, y + 44), (width - 1, y + 88), VERDICTS.get(word, FAINT), -1)
        _text(panel, word, (14, y + 73), 0.75, PAPER, 2)


def strip(shots: Sequence[Shot], episode: Episode, fps: int, *, n: int = 6, side: int = 208) -> np.ndarray:
    """``n`` moments of an episode side by side with the experts that woke below each, uint8 (H, W, 3) RGB."""
    gap, header = 12, 44
    first = shots[0].routing
    label, lamp_height = (0, 0) if first is None else (92, max(150, min(320, 18 * len(first.experts))))
    width = gap + label + n * (side + gap)
    picture = np.full((header + side + 30 + lamp_height + gap, width, 3), PAPER, dtype=np.uint8)
    _fitted(picture, f'"{episode.sentence}"', (gap + label, 30), width - 2 * gap - label, 0.7, INK)
    for k, i in enumerate(np.linspace(0, len(shots) - 1, n).round().astype(int)):
        shot, x = shots[i], gap + label + k * (side + gap)
        image = cv2.resize(next(iter(shot.observation.images.values())), (side, side), interpolation=cv2.INTER_CUBIC)
        picture[header : header + side, x : x + side] = image
        _text(picture, f"{shot.step / fps:.1f} s", (x, header + side + 19), 0.45, FAINT)
        if i == len(shots) - 1:
            word = episode.verdict
            _text(picture, word, (x + 60, header + side + 19), 0.5, VERDICTS.get(word, FAINT))
        if shot.routing is not None:
            y = header + side + 30
            picture[y : y + lamp_height, x : x + side] = lamps(shot.routing, side, lamp_height, labels=False)
    if first is not None:
        named = lamps(first, label + 90, lamp_height + 26)[26:, :label]
        y = header + side + 30
        picture[y : y + lamp_height, gap : gap + label] = named
    return picture


def write_video(path: Path, pictures: Iterator[np.ndarray], fps: int) -> None:
    """Encode uint8 (H, W, 3) RGB pictures with even sides as H.264 in yuv420p, which every browser plays."""
    import av

    part = path.with_name(path.name + ".part")
    with writing(path):
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1
            for i, picture in enumerate(pictures):
                if i == 0:
                    stream.height, stream.width = picture.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        part.replace(path)


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    """The picture at this height, its shape kept; smooth, because 96 px blocks hide what happens."""
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _blend(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _dot(picture: np.ndarray, centre: tuple[float, float], radius: float, color: RGB) -> None:
    shift = 4  # cv2 takes fixed-point coordinates: sixteenths of a pixel
    x, y = (round(c * 2**shift) for c in centre)
    cv2.circle(picture, (x, y), round(radius * 2**shift), color, -1, cv2.LINE_AA, shift)


def _text(picture: np.ndarray, text: str, at: tuple[int, int], scale: float, color: RGB, weight: int = 1) -> None:
    plain = text.encode("ascii", "replace").decode()  # cv2's fonts hold no other letters
    cv2.putText(picture, plain, at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, weight, cv2.LINE_AA)


def _fitted(picture: np.ndarray, text: str, at: tuple[int, int], width: int, scale: float, color: RGB) -> None:
    """Text made small enough for ``width`` pixels."""
    (size, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    _text(picture, text, at, scale * min(1.0, width / max(size, 1)), color)
