"""Composes the configuration and hands it to the chosen task: `python run.py experiment=digits task=train`."""

import sys

import hydra
from omegaconf import DictConfig

from experiments.runtime.command_line import explain_errors
from experiments.runtime.composition import primary_config
from experiments.runtime.hydra_loader import check_before_hydra_builds
from experiments.runtime.option_help import help_on
from experiments.runtime.options import CONF, options_first, prepare


def run(config: DictConfig) -> float | tuple[float, ...] | None:
    """Runs the task that the configuration names, and returns what a sweeper minimises or maximises."""
    with explain_errors(sys.argv, inside=True):  # otherwise Hydra adds its own words
        from experiments.runtime.task import run_task  # here, since it imports torch: a misspelt option is told first

        return run_task(config)


def main() -> None:
    """Composes the configuration of this command line, and runs it."""
    sys.argv[1:] = options_first(prepare(sys.argv[1:]))
    config_name = primary_config(sys.argv[1:])
    check_before_hydra_builds()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()


if __name__ == "__main__":
    with explain_errors(sys.argv):
        help_text = help_on(sys.argv)
        if help_text is None:
            main()
        else:
            print(help_text)
