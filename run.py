"""Composes the configuration and hands it to the chosen task: `python run.py experiment=digits task=train`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.runtime.command_line import explain_errors
from experiments.runtime.options import help_on, prepare


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> float | tuple[float, ...] | None:
    """Runs the task that the configuration names, and returns what a sweeper minimises or maximises."""
    with explain_errors(sys.argv, inside=True):  # otherwise Hydra adds its own words
        from experiments.runtime.task import run_task  # here, since it imports torch: a misspelt option is told first

        return run_task(config)


if __name__ == "__main__":
    with explain_errors(sys.argv):
        help_text = help_on(sys.argv)
        if help_text is None:
            sys.argv[1:] = prepare(sys.argv[1:])
            main()
        else:
            print(help_text)
