"""Facts about mujoco and the Panda's model that the code relies on without saying so."""

import xml.etree.ElementTree as ET

import mujoco
import numpy as np
import pytest

from moe_envs.pitstop import panda
from moe_envs.pitstop.control import SERVO_LEAD
from moe_envs.pitstop.env import PitStopEnv
from moe_envs.pitstop.panda import JOINTS, panda_file
from moe_envs.pitstop.scene import build_model


@pytest.fixture(scope="module", params=["fast", "full"])
def model(request):
    return build_model("all", request.param)


def test_joint_ranges_are_the_datasheets_in_radians(model):
    ranges = np.array([model.joint(name).range for name in JOINTS])
    datasheet = [2.8973, 1.7628, 2.8973, None, 2.8973, None, 2.8973]
    for (low, high), limit in zip(ranges, datasheet, strict=True):
        if limit:
            assert (low, high) == pytest.approx((-limit, limit))
    assert tuple(ranges[3]) == pytest.approx((-3.0718, -0.0698))


def test_a_robot_with_wrong_joint_ranges_is_refused(model):
    kept = model.jnt_range.copy()
    model.jnt_range[:] = np.radians(kept)
    with pytest.raises(RuntimeError, match="not in radians"):
        panda.check_joint_ranges(model)
    model.jnt_range[:] = kept


def test_every_mesh_file_that_the_model_names_is_in_the_package():
    file = panda_file()
    meshes = ET.parse(file).getroot().findall("./asset/mesh")
    assert len(meshes) > 60
    assert all((file.parent / "assets" / mesh.get("file")).is_file() for mesh in meshes)
    assert (file.parent / "LICENSE").is_file()


def test_the_fast_model_leaves_the_detailed_meshes_out():
    assert build_model("demo", "fast").nmeshface < 5_000 < 50_000 < build_model("demo", "full").nmeshface


def test_joints_turn_about_their_bodys_origin(model):
    assert all(np.all(model.joint(name).pos == 0) for name in JOINTS)


def test_our_chain_is_mujocos_arm():
    env = PitStopEnv(cameras=())
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    jacobian_p, jacobian_r = np.zeros((3, env.model.nv)), np.zeros((3, env.model.nv))
    for _ in range(10):
        q = rng.uniform(env.chain.limits[:, 0], env.chain.limits[:, 1])
        env.data.qpos[:7] = q
        env._refresh()
        position, rotation = env.chain.forward(q)
        hand = env.data.body("hand")
        np.testing.assert_allclose(rotation, hand.xmat.reshape(3, 3), atol=1e-9)
        np.testing.assert_allclose(position, env.state().tool, atol=1e-9)
        mujoco.mj_jac(env.model, env.data, jacobian_p, jacobian_r, position, hand.id)
        np.testing.assert_allclose(env.chain.jacobian(q), np.vstack([jacobian_p, jacobian_r])[:, :7], atol=1e-9)


def test_the_tool_point_lies_between_the_pads():
    env = PitStopEnv(cameras=())
    env.reset(seed=0)
    pads = [env.data.geom_xpos[g] for g in range(env.model.ngeom) if env.model.geom_priority[g] == 2]
    assert len(pads) == 2
    np.testing.assert_allclose(np.mean(pads, axis=0)[:2], env.state().tool[:2], atol=1e-6)
    assert np.mean(pads, axis=0)[2] == pytest.approx(env.state().tool[2], abs=0.006)
    assert np.linalg.norm(pads[0] - pads[1]) == pytest.approx(0.08 + 2 * 0.008, abs=1e-6)


def test_the_servos_time_constant_is_the_lead_of_the_reference(model):
    for name in panda.ARM_ACTUATORS:
        actuator = model.actuator(name)
        assert actuator.biasprm[2] / actuator.biasprm[1] == pytest.approx(SERVO_LEAD)


def test_nothing_draws_a_marker_into_the_pictures(model):
    assert model.nsite == 0


def test_mj_step_leaves_poses_one_substep_behind_and_refresh_brings_them_up():
    env = PitStopEnv(cameras=())
    env.reset(seed=0)
    env.step(np.array([0, 0.5, 0, 0, 1], dtype=np.float32))
    up_to_date = env.state().tool
    np.testing.assert_allclose(up_to_date, env.chain.forward(env.joint_positions())[0], atol=1e-9)
    mujoco.mj_step(env.model, env.data)
    assert np.linalg.norm(env.state().tool - env.chain.forward(env.joint_positions())[0]) > 1e-5
