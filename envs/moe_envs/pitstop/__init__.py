"""PitStop: a Franka Panda at a table where only the sentence says which of many things to do."""

from moe_envs.rendering import prepare_gl_backend

prepare_gl_backend()
