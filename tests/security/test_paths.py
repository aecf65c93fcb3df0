"""Files that are shared do not name folders of this machine where they need not."""

import json

import torch


def strings(node):
    """All texts of nested plain values."""
    if isinstance(node, dict):
        return [text for item in node.items() for part in item for text in strings(part)]
    if isinstance(node, (list, tuple)):
        return [text for part in node for text in strings(part)]
    return [node] if isinstance(node, str) else []


def test_paths_below_the_working_directory_are_relative(command, tmp_path, monkeypatch):
    """In the checkpoint, the configuration and the results of a run that was given absolute paths."""
    monkeypatch.chdir(tmp_path)
    run = ["experiment=debug", "metrics=none", "callbacks.sample_grid=null", f"output={tmp_path}/runs/a"]
    assert command(*run).status == 0
    sampled = ["task=sample", f"weights={tmp_path}/runs/a/checkpoints/last.ckpt", "classes=1", "images_per_class=1"]
    assert command(*sampled, f"output={tmp_path}/drawn").status == 0
    content = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)
    texts = strings({name: value for name, value in content.items() if name != "state_dict"})
    assert "runs/a" in texts
    for path in ("runs/a/results.json", "drawn/results.json"):
        texts += strings(json.loads((tmp_path / path).read_text()))
    texts += [(tmp_path / "runs/a/config.yaml").read_text()]
    assert not [text for text in texts if str(tmp_path) in text]
