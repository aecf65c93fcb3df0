"""task=dashboard: makes a view of a W&B project with the panels of `task=report`."""

from typing import Any

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

from enat.errors import InputError
from experiments.reporting.figures import PANELS


def layout(entity: str, project: str, name: str) -> workspaces.Workspace:
    """Lays out the panels of `task=report`, and the grids of samples, as a view of a project."""
    sections: list[Any] = [
        workspaces.Section(
            name=section,
            panels=[panels.LinePlot(title=title, x="step", y=[*series]) for title, series in content.items()],
            is_open=True,
        )
        for section, content in PANELS.items()
    ]
    pictures = panels.MediaBrowser(title="Samples", media_keys=["samples"], num_columns=2)
    sections.insert(1, workspaces.Section(name="Samples", panels=[pictures], is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)


def dashboard(entity: str | None, project: str, view: str) -> dict[str, Any]:
    """Makes or replaces a view of a W&B project; needs an account (`wandb login`).

    Args:
        entity: the user or team on W&B.
        project: of the runs.
        view: the name of the view.

    Raises:
        InputError: without an entity, or where W&B refuses.
    """
    if entity is None:
        raise InputError("entity=null: expected entity=NAME, your user or team on W&B; without one, task=report draws.")
    try:
        saved = layout(entity, project, view).save()
    except wandb.errors.Error as error:
        raise InputError(f"entity={entity}, project={project}: W&B refuses: {error}") from error
    return {"url": saved.url}
