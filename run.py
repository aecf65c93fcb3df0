"""Composes the configuration and hands it to the chosen task: `python run.py experiment=digits task=train`."""

import sys

import hydra
from omegaconf import DictConfig

from experiments.command_line import explain_errors, run_task


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    run_task(config)


if __name__ == "__main__":
    with explain_errors(sys.argv):
        main()
