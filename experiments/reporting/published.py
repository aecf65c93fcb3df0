"""What the paper reports: scores on ImageNet, to stand beside our own results. The paper gives no error bars."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from enat.errors import InputError
from enat.files import part_of
from experiments.runtime.options import CONF


class Published(NamedTuple):
    """A row of one of the paper's tables."""

    fid: float
    gop_per_image: float | None  # 10^9 operations as the paper counts them; in Tables 3 and 4 with the VQGAN's decoder
    inception_score: float | None = None


# Fig. 2 and Tables 1, 2 and 6: 256 px, 8 steps. By the choices of conf/ablation, in the order of the tables.
ABLATIONS = {
    "nat": Published(6.54, 39.6),
    "nat_without_visible_to_masked": Published(201.88, None),
    "nat_without_masked_to_visible": Published(6.76, None),
    "nat_without_visible_to_visible": Published(7.40, None),
    "nat_without_masked_to_masked": Published(7.05, None),
    "disentangled_half": Published(5.50, 40.2),
    "disentangled_quarter": Published(4.98, 38.2),
    "disentangled_one": Published(4.78, 39.8),
    "enat": Published(4.97, 22.6),
    "separate": Published(5.85, 25.0),
    "without_projection": Published(5.96, 20.8),
    "all_tokens": Published(4.95, 37.5),
    "layer_to_layer": Published(5.77, 36.1),
}
# Tables 3 (256 px) and 4 (512 px): by experiment and number of steps.
SYSTEMS = {
    ("enat_b_256", 4): Published(5.86, 100),
    ("enat_b_256", 8): Published(3.53, 200, 302.4),
    ("enat_l_256", 4): Published(4.13, 200),
    ("enat_l_256", 8): Published(2.79, 300, 326.7),
    ("enat_l_512", 8): Published(4.00, 1300, 285.7),
}
# The methods that Table 3 compares ENAT with: title, number of steps, and the row.
OTHERS = [
    ("MaskGIT", 12, Published(4.92, 1220)),
    ("Token-Critic", 36, Published(4.69, 1900, 174.5)),
    ("MAGE", 20, Published(6.93, 1000)),
    ("MaskGIT-FSQ", 12, Published(4.53, 800)),
    ("AdaNAT", 8, Published(2.86, 900, 265.4)),
    ("U-ViT-H", 8, Published(3.37, 2400, 235.9)),
    ("DiT-XL", 8, Published(5.18, 2200, 213.0)),
    ("MDT-XL", 8, Published(4.00, 2200)),
    ("LDM", 8, Published(4.56, 2000, 262.9)),
    ("StyleGAN-XL", 1, Published(2.30, 1500, 265.1)),
]
# The recipe of all ablations. A report names the settings in which a run differs from it.
SETTINGS = {
    "module.net.num_tokens": 256,
    "module.net.codebook_size": 1024,
    "module.net.num_classes": 1000,
    "data.batch_size": 2048,
    "module.optimizer.lr": 4e-4,
    "trainer.max_steps": 300000,
    "metrics.evaluation.num_images": 50000,
    "sampler.num_steps": 8,
}


def published_row(study: str | None, options: Mapping[str, Any], config: Mapping[str, Any]) -> Published | None:
    """Finds the row of the paper that a job repeats.

    Args:
        study: that the job is of. Jobs outside of the paper's studies repeat none.
        options: of the job, by full name.
        config: all settings of the job.
    """
    if study == "ablations":
        return ABLATIONS.get(options.get("ablation", "enat"))
    if study in ("table_3", "table_4"):
        return SYSTEMS.get((config.get("name", ""), config.get("sampler", {}).get("num_steps")))
    return None


def other_settings(config: Mapping[str, Any]) -> str:
    """Names the settings of an ablation that differ from the paper's; returns nothing where all are equal."""
    composed = OmegaConf.create(dict(config))
    ours = {name: OmegaConf.select(composed, name) for name in SETTINGS}
    return ", ".join(f"{name}={value} ({SETTINGS[name]:g})" for name, value in ours.items() if value != SETTINGS[name])


def rows_of(table: str) -> list[str]:
    """Returns the choices of conf/ablation that a table of the paper compares.

    Raises:
        InputError: for a name that is none of the tables.
    """
    path = CONF / "sweep" / f"{table}.yaml"
    sweep = yaml.safe_load(path.read_text()) if path.is_file() else {}
    params = part_of(sweep, "hydra.sweeper.params") or {}
    if "ablation" not in params:
        tables = sorted(file.stem for file in path.parent.glob("*.yaml") if " ablation: " in file.read_text())
        raise InputError(f"table={table}: expected a table of the paper: {', '.join(tables)}.")
    return str(params["ablation"]).split(",")
