"""``moe-robot train``: train a policy on demonstrations, with a progress bar; Ctrl-C keeps the state for --resume."""

from __future__ import annotations

from moe_robot.training.config import TrainConfig

Options = TrainConfig


def run(options: TrainConfig) -> int:
    """Train and print where the checkpoint is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from moe_robot.training.train import Progress as Now
    from moe_robot.training.train import train

    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} samples/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, refresh_per_second=2)
    task = bar.add_task("training", total=1.0, step=0, loss=float("nan"), rate=0.0)

    def show(now: Now) -> None:
        bar.start()  # not before there is something to show
        bar.update(task, completed=now.fraction, step=now.step, loss=now.loss, rate=now.samples_per_second)

    try:
        record = train(options, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the state is kept in {options.out}, --resume goes on from there") from None
    finally:
        bar.stop()
    print(
        f"{record['preset']}: {record['parameters']:,} parameters, {record['steps']} steps, "
        f"{record['samples']:,} samples in {record['minutes']:.1f} min -> {options.out / 'checkpoint'}"
    )
    return 0
