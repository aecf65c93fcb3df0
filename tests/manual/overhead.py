"""Measures what the Trainer, callbacks, loggers and guards cost: `python tests/manual/overhead.py`, in two minutes.

It trains on digits with the default configuration except for validation. After each step it does the same step again in
a bare loop of forward, backward, optimiser and average, so that other load on the machine slows both down alike.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import DataLoader, default_convert

import experiments.runtime.command_line  # noqa: F401  # registers the resolvers
from callbacks.ema import EMA
from data.stream import StreamPositions, TokenStream
from enat.randomness import rng_for, seed_default_generator
from experiments.runtime.training import build_trainer

STEPS = 500
WARM_UP = 20


def bare_loop(config: DictConfig) -> Iterator[None]:
    """Does a training step each time that `next` is called."""
    module = instantiate(config.module)
    data = instantiate(config.data)
    average = EMA(config.callbacks.ema.decay)
    average.setup(None, module, "fit")  # type: ignore[arg-type]
    parameters = list(average.net.parameters()), list(module.net.parameters())
    stream = TokenStream(data.packs("train"), data.num_classes, data.class_dropout, data.seed)
    positions = StreamPositions(data.batch_size, 0, 1, 0)
    loader = DataLoader(stream, batch_sampler=positions, collate_fn=default_convert)  # type: ignore[arg-type]
    setup = module.configure_optimizers()
    optimizer = setup["optimizer"]
    scheduler = setup["lr_scheduler"]["scheduler"]
    module.train()
    for step, batch in enumerate(loader):
        rng = rng_for("training", module.seed, 0, step, 0)
        seed_default_generator(module.device, int(rng.integers(2**63)))
        optimizer.zero_grad()
        module.group_loss(module.net, batch, rng)["loss"].backward()
        optimizer.step()
        scheduler.step()
        average.average(*parameters, step)
        yield


class InTurns(L.Callback):
    """Does a step of the bare loop after each step of the Trainer, and records the seconds that both took."""

    def __init__(self, loop: Iterator[None]):
        self.loop = loop
        self.bare_step_ended = 0.0
        self.seconds: list[tuple[float, float]] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Runs when all callbacks and loggers have finished the step before."""
        trainer_step_ended = time.perf_counter()
        next(self.loop)
        trainer_seconds = trainer_step_ended - self.bare_step_ended
        self.bare_step_ended = time.perf_counter()
        self.seconds.append((trainer_seconds, self.bare_step_ended - trainer_step_ended))


def step_times(*more: str) -> tuple[float, float]:
    """Returns the mean seconds of a step under the Trainer and in the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"trainer.max_steps={STEPS}", "trainer.val_check_interval=100000", f"output={folder}"]
        with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
            config = compose("config", [*options, "callbacks.generation_metrics=null", *more])
        turns = InTurns(bare_loop(config))
        callbacks = {"turns": turns, **instantiate(config.callbacks)}
        trainer = build_trainer(instantiate(config.trainer), callbacks, instantiate(config.logger))
        trainer.fit(instantiate(config.module), datamodule=instantiate(config.data))
    counted = turns.seconds[WARM_UP:]
    trained, bare = (sum(column) / len(counted) for column in zip(*counted, strict=True))
    return trained, bare


def main() -> None:
    """Prints how much longer a step takes under the Trainer alone, and with everything that is configured."""
    ours = ("checkpoint", "leave_on_signal", "guard", "throughput", "progress", "sample_grid")
    nothing = [*(f"callbacks.{name}=null" for name in ours), "logger.csv=null", "++trainer.enable_progress_bar=false"]
    alone, bare = step_times(*nothing)
    print(f"bare loop {1e3 * bare:.1f} ms a step, under the Trainer {1e3 * alone:.1f} ms: {alone / bare - 1:+.1%}")
    everything, again = step_times("callbacks.checkpoint.monitor=null")
    print(
        f"bare loop {1e3 * again:.1f} ms a step, with everything {1e3 * everything:.1f} ms: "
        f"{everything / again - 1:+.1%}"
    )
    print(f"callbacks, loggers and guards: {everything / again / (alone / bare) - 1:+.1%}")


if __name__ == "__main__":
    main()
