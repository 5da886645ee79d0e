"""Runs in the environment of openpi's public client: asks the server at argv[1] as openpi's examples do."""

import json
import sys

import numpy as np
from openpi_client import image_tools
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy(sys.argv[1])
picture = image_tools.resize_with_pad(np.full((6, 8, 3), 10, np.uint8), 8, 6)
observation = {
    "observation/image": image_tools.convert_to_uint8(picture),
    "observation/state": np.array([1.0, 2.0, 3.0]),
    "prompt": "go on",
}
answer = policy.infer(observation)
broker = ActionChunkBroker(policy, action_horizon=3)
steps = [broker.infer(observation)["actions"].tolist() for _ in range(4)]
try:
    policy.infer({"observation/image": observation["observation/image"]})
    said = "nothing"
except RuntimeError as error:
    said = str(error)
print(
    json.dumps(
        {
            "numpy": np.__version__,
            "fps": policy.get_server_metadata()["features"]["fps"],
            "actions": answer["actions"].tolist(),
            "dtype": answer["actions"].dtype.str,
            "timing": sorted(answer["server_timing"]),
            "light": float(picture.mean()),
            "steps": steps,
            "said": said,
        }
    )
)
