"""Gives the tests of files from others a run to start from."""

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory, separate_command):
    """A run of two steps; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = separate_command("experiment=debug", "metrics=none", "trainer.max_steps=2", f"output={folder / 'run'}")
    assert outcome.status == 0, outcome.err
    return folder / "run"
