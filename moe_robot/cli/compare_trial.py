"""What all runs of ``moe-robot compare`` share, from the demonstrations or, where there are none, a checkpoint."""

from __future__ import annotations

from moe_robot.cli.compare_options import Options
from moe_robot.cli.compare_plan import Trial, read_json
from moe_robot.cli.eval import listed
from moe_robot.types import UserError


def make_trial(options: Options) -> Trial:
    """The trial that the options ask for.

    Raises:
        UserError: nothing says in which environment to evaluate, or it has no such tasks.
    """
    from moe_robot.data.mixture import Mixture, open_data
    from moe_robot.evaluation.checks import check_instructions
    from moe_robot.evaluation.episode import SHUFFLED
    from moe_robot.registry import checkpoint_directory, environment_id, make_environment, select_tasks

    mixed: tuple[str, ...] = ()
    if options.data is not None:
        dataset, where = open_data(options.data, 1, "all"), options.data
        origin = (dataset.parts[0] if isinstance(dataset, Mixture) else dataset).provenance
        mixed = tuple(dict.fromkeys(dataset.episodes.task)) if isinstance(dataset, Mixture) else ()
        options_made_with, data_sha256 = origin.get("options"), dataset.content_hash
    else:
        where = checkpoint_directory(options.load[0].partition("=")[2]) / "train.json"
        origin = read_json(where) if where.is_file() else {}
        options_made_with, data_sha256 = origin.get("environment_options"), None
    if not origin.get("environment"):
        raise UserError(
            f"{where} does not tell its environment: expected one that `moe-robot collect` or `train` wrote"
        )
    made_with = options_made_with or {}
    env = make_environment(origin["environment"], **made_with)
    try:
        tasks = select_tasks(env, options.tasks or ",".join(mixed or origin.get("tasks") or ("all",)))
        if options.shuffled:
            check_instructions(env, origin["environment"], SHUFFLED, tasks)
    finally:
        env.close()
    most = options.episodes
    return Trial(
        out=options.out,
        data=options.data,
        data_sha256=data_sha256,
        is_mixture=bool(mixed),
        selection={"episodes": options.train_episodes, "cameras": options.cameras, "rename": options.rename},
        environment=environment_id(origin["environment"]),
        environment_options=made_with,
        tasks=tasks,
        steps=options.steps,
        minutes=options.minutes,
        episodes=options.episodes,
        eval_seed=options.eval_seed,
        sensors_off=tuple(listed(options.sensors_off)),
        knockouts=tuple(listed(options.knockout)),
        shuffled=options.shuffled,
        ablation_episodes=most if options.ablation_episodes is None else min(options.ablation_episodes, most),
        threads=options.threads,
        workers=options.workers,
        device=options.device,
    )
