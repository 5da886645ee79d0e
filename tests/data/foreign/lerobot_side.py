"""Runs in an environment that has lerobot: writes its data sets, reads ours, dumps what it sees. Never imported here.

Usage: python lerobot_side.py JOBS, a JSON list of {"write": folder, "kind": "image" | "h264" | "libsvtav1"} and
{"read": folder, "to": file.npz}. With "die" a recorder is killed after its last but one episode was saved.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

JOINTS = [f"{name}.pos" for name in ("pan", "lift", "elbow", "flex", "roll", "gripper")]
CAMERAS = {"laptop": (60, 80), "phone": (48, 64)}
LENGTHS = (12, 7, 19, 4, 9)
SENTENCES = ("put the tape into the cup", "give the cup")
FPS = 15


def picture(episode, frame, height, width):
    """Four colours of its own, blurred into each other, so that a codec changes it little."""
    corners = np.random.default_rng([episode, frame]).uniform(30, 220, (2, 2, 3))
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = (corners[i][:1] * (1 - across) + corners[i][1:] * across for i in (0, 1))
    return np.round(top * (1 - down) + bottom * down).astype(np.uint8)


def write(folder, kind, die):
    dtype = "image" if kind == "image" else "video"
    features = {
        f"observation.images.{camera}": {"dtype": dtype, "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for camera, size in CAMERAS.items()
    }
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": (6,), "names": JOINTS}
    features["observation.effort"] = {"dtype": "float32", "shape": (1,), "names": ["effort"]}
    codec = {} if kind == "image" else {"vcodec": kind}
    dataset = LeRobotDataset.create(
        "local/foreign", FPS, features, root=folder, robot_type="so101", use_videos=dtype == "video", **codec
    )
    rng = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        for frame in range(length):
            pictures = {f"observation.images.{c}": picture(episode, frame, *size) for c, size in CAMERAS.items()}
            state = rng.normal(size=6).astype(np.float32)
            vectors = {"observation.state": state, "action": -state + np.float32(episode % 2)}  # it can be learned
            effort = {"observation.effort": rng.normal(size=1).astype(np.float32)}
            dataset.add_frame({**pictures, **vectors, **effort, "task": SENTENCES[episode % 2]})
        if die and episode == len(LENGTHS) - 1:
            os._exit(0)  # as a kill does: what was not flushed is lost
        dataset.save_episode()
    dataset.finalize()


def read(folder, to):
    fps = json.loads((Path(folder) / "meta/info.json").read_text())["fps"]
    ahead = {"action": [step / fps for step in range(4)]}
    dataset = LeRobotDataset("local/read", root=folder, delta_timestamps=ahead, video_backend="pyav")
    items = [dataset[i] for i in range(len(dataset))]
    seen = {}
    for key in items[0]:
        if key == "task":
            seen[key] = np.array([item[key] for item in items])
        elif key in dataset.meta.camera_keys:
            frames = np.stack([item[key].numpy() for item in items])
            seen[key] = np.round(255 * frames.transpose(0, 2, 3, 1)).astype(np.uint8)
        else:
            seen[key] = np.stack([item[key].numpy() for item in items])
    for key, statistics in dataset.meta.stats.items():
        seen |= {f"stats/{key}/{name}": np.asarray(value) for name, value in statistics.items()}
    seen["episodes"] = np.array(dataset.meta.total_episodes)
    np.savez(to, **seen)


for job in json.loads(sys.argv[1]):
    if "write" in job:
        write(Path(job["write"]), job["kind"], job.get("die"))
    else:
        read(Path(job["read"]), job["to"])
