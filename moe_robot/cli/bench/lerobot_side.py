"""Runs in an environment that has lerobot, as the peer of ``moe-robot bench data``; imports nothing of this project.

One JSON request per line on standard input, one JSON answer per line on standard output.
"""

import importlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path


def cpu():
    """Processor seconds of this process, its finished children and, as far as they are, those that still run."""
    finished = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    running = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            running += int(fields[11]) + int(fields[12])
    return finished + running / os.sysconf("SC_CLK_TCK")


def write(request, pictures, dataset_class):
    """Record episodes of one camera; frames per second and CPU of all, encoding included."""
    shutil.rmtree(request["to"], ignore_errors=True)
    size, kind = request["size"], "video" if request["video"] else "image"
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    camera = {"dtype": kind, "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    features = {"observation.images.front": camera, "observation.state": vector, "action": vector}
    begun, spent = time.perf_counter(), cpu()
    data = dataset_class.create("local/bench", 20, features, root=request["to"], use_videos=request["video"])
    for _ in range(request["episodes"]):
        for picture in pictures:
            values = picture[0, :4, 0].astype("float32")
            frame = {"observation.images.front": picture, "observation.state": values, "action": values}
            data.add_frame({**frame, "task": "bench"})
        data.save_episode()
    data.finalize()
    return {"frames": request["episodes"] * len(pictures), "wall": time.perf_counter() - begun, "cpu": cpu() - spent}


def read(request, dataset_class, loader_class):
    """Shuffled batches through a data loader; from the first batch on."""
    ahead = {"action": [step / 20 for step in range(request["chunk"])]}
    data = dataset_class("local/bench", root=request["from"], delta_timestamps=ahead, video_backend="pyav")
    loader = loader_class(data, batch_size=request["batch"], shuffle=True, num_workers=request["workers"])
    frames, begun, spent = 0, 0.0, 0.0
    for number, _ in enumerate(loader):
        if number == 0:  # workers have started
            begun, spent = time.perf_counter(), cpu()
            continue
        frames += request["batch"]
        if number == request["batches"]:
            break
    answer = {"frames": frames, "wall": time.perf_counter() - begun, "cpu": cpu() - spent}
    del loader
    return answer


def main():
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # lerobot prints progress
    numpy = importlib.import_module("numpy")
    dataset_class = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    loader_class = importlib.import_module("torch.utils.data").DataLoader
    print(json.dumps({"lerobot": importlib.import_module("lerobot").__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "write":
            answer = write(request, numpy.load(request["pictures"]), dataset_class)
        else:
            answer = read(request, dataset_class, loader_class)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
