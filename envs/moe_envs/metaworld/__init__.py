"""Meta-World v3, the public yardstick: 50 tasks by others, as one Gymnasium environment (extra ``metaworld``)."""

from moe_envs.rendering import prepare_gl_backend

prepare_gl_backend()
