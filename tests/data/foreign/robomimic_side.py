"""Runs in an environment that has robomimic: reads files with its own reader, and dumps what it sees to file.npz.

Usage: python robomimic_side.py JOBS, a JSON list of {"read": file.hdf5, "to": file.npz, "mask": name}. Without a mask,
robomimic first splits the file into one of its own. Never imported here.
"""

import json
import sys

import h5py
import numpy as np
from robomimic.scripts.split_train_val import split_train_val_from_hdf5
from robomimic.utils import file_utils, obs_utils
from robomimic.utils.dataset import SequenceDataset


def read(path, to, mask):
    with h5py.File(path) as file:
        keys = sorted(file["data/demo_0/obs"])
    pictures = [key for key in keys if key.endswith("_image")]
    low_dim = [key for key in keys if key not in pictures]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": low_dim, "rgb": pictures}})
    shapes = file_utils.get_shape_metadata_from_dataset(path, all_obs_keys=keys, verbose=False)
    seen = {"env_args": json.dumps(file_utils.get_env_metadata_from_dataset(path)), "action_size": shapes["ac_dim"]}
    data = SequenceDataset(path, keys, ("actions", "rewards", "dones"), load_next_obs=False, filter_by_attribute=mask)
    seen["demos"] = np.array(data.demos)
    items = [data[i] for i in range(len(data))]
    for key in ("actions", "rewards", "dones"):
        seen[key] = np.concatenate([item[key] for item in items])
    for key in keys:
        seen[f"obs/{key}"] = np.concatenate([item["obs"][key] for item in items])
    np.savez(to, **seen)


for job in json.loads(sys.argv[1]):
    if "mask" not in job:
        split_train_val_from_hdf5(job["read"], val_ratio=0.5)
    read(job["read"], job["to"], job.get("mask", "train"))
