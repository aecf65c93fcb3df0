"""task=report: how runs went, as a picture of panels; what a study shows, as a table, intervals and plots."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from lightning.pytorch.loggers import Logger

from callbacks.loggers import log_table
from enat.errors import InputError, printable
from enat.files import write_atomically
from experiments.reporting.figures import plot_panels
from experiments.reporting.plots import plot_study
from experiments.reporting.published import rows_of
from experiments.reporting.runs import SCORES, UNFINISHED, ablation_of, common_folder, find_runs, read_scalars
from experiments.reporting.study import Study, format_value, read_study
from experiments.reporting.tables import compare_groups, describe_differences, markdown_table, table_of

VALIDATION = (
    "The scores in panels.png are of validations during training. They may use fewer images than the scores above, and "
    "FID is higher with fewer images."
)


def report(
    runs: str | list[str] | None,
    table: str | None,
    baseline: Annotated[int, Ge(1)],
    logger: Mapping[str, Logger | None],
    output: str,
) -> dict[str, Any]:
    """Draws the panels of all runs below folders, and makes a table with a row for each, and plots of what varies.

    Args:
        runs: a run's folder, or one that holds several, such as a multirun's; or a list of such folders.
        table: of the paper, such as `table_6a`: only the ablations that it compares are shown; None for all runs.
        baseline: the row of the table, from 1, that the others are compared with.
        logger: by name; Weights & Biases gets the table and the plots.
        output: folder of `panels.png`, `report.md`, `report.csv` (a row for each run), `groups.csv` (a row for each
            row of the table) and plots.
    """
    if not runs:
        raise InputError("runs: expected runs=DIR, the folder of a run or of several, or runs=[DIR,DIR].")
    folders = [Path(runs)] if isinstance(runs, str) else [Path(folder) for folder in runs]
    run_folders = find_runs(*folders)
    for folder in folders:
        if not run_folders or (len(folders) > 1 and not find_runs(folder)):
            raise InputError(
                f"runs={folder}: there is no run in it; expected the folder of a run, or one that holds some."
            )
    if table is not None:
        rows = rows_of(table)
        run_folders = [run for run in run_folders if ablation_of(run) in rows]
        if not run_folders:
            raise InputError(f"table={table}: none of the runs is one of its ablations: {', '.join(rows)}.")
    results: dict[str, Any] = {"runs": [str(run) for run in run_folders]}
    root = common_folder(run_folders)
    scalars = {str(run.relative_to(root)): read_scalars(run) for run in run_folders}
    scalars = {name: table for name, table in scalars.items() if len(table)}
    notes = []
    if scalars:
        results["panels"] = str(Path(output) / "panels.png")
        plot_panels(scalars, Path(output) / "panels.png")
        if any("val/fid" in table for table in scalars.values()):
            notes.append(VALIDATION)
    return results | write_study(read_study(*run_folders), table, baseline, Path(output), logger, notes)


def notes_on_table(study: Study) -> list[str]:
    """Writes sentences on what the table of a study has, and on what it lacks."""
    errors = study.jobs["error"].dropna()
    unfinished = int((errors == UNFINISHED).sum())
    notes = []
    if len(errors):
        notes.append(f"{len(study.jobs)} jobs: {len(errors) - unfinished} failed, {unfinished} not finished.")
    if study.groups["seeds"].max() > 1:
        notes.append("± is the sample standard deviation over seeds.")
    if study.repeated:
        notes.append(f"Left out, for others have the same settings and the same seed: {', '.join(study.repeated)}.")
    notes += notes_on_comparison(study)
    has_no_score = study.jobs["error"].isna()
    if "fid" in study.jobs:
        has_no_score &= study.jobs["fid"].isna()
    if has_no_score.any():
        names = ", ".join(study.jobs.loc[has_no_score, "job"])
        notes.append(f"No scores were computed (metrics=none) in {names}.")
    if study.has("published_fid"):
        notes.append("Numbers of the paper are of ImageNet, with one training each: it gives no error bars.")
        if study.other_settings is None:
            notes.append("Its operations in Tables 3 and 4 include the VQGAN's decoder, which ours leave out.")
    if study.other_settings:
        notes.append(f"Settings that differ from the paper's, which are in parentheses: {study.other_settings}.")
    return notes


def notes_on_comparison(study: Study) -> list[str]:
    """Writes sentences on scores that stand in one column, though they can't be compared."""
    notes = []
    if len(study.protocols) > 1:
        notes.append(f"The scores are of several protocols ({', '.join(study.protocols)}): they can't be compared.")
    if {"num_images", "fid"} <= set(study.jobs):
        count = study.jobs.dropna(subset="fid")["num_images"].dropna()
        if count.nunique() > 1:
            numbers = f"{count.min():,.0f} to {count.max():,.0f}"
            notes.append(f"The scores are of different numbers of images ({numbers}): FID is higher with fewer images.")
    return notes


def write_study(
    study: Study,
    name: str | None,
    baseline: int,
    folder: Path,
    logger: Mapping[str, Logger | None],
    further_notes: Sequence[str],
) -> dict[str, Any]:
    """Writes the table, CSV files and pictures of a study into a folder; prints the table.

    Args:
        study: with at least one run.
        name: of the study, for the title; None for that of its folder.
        baseline: the row of the table, from 1, that the others are compared with.
        folder: gets the files.
        logger: by name; Weights & Biases gets the table and the plots.
        further_notes: sentences that follow those on the table.

    Returns:
        Their paths, the groups, and the number of jobs that failed.
    """
    if baseline > len(study.groups):
        raise InputError(f"baseline={baseline}: expected the number of a row of the table, 1 to {len(study.groups)}.")
    differences = {score: compare_groups(study, score, baseline - 1) for score in SCORES if study.has(score)}
    table = table_of(study, differences.get("fid"))
    notes = [*notes_on_table(study), *describe_differences(study, baseline - 1, differences), *further_notes]
    print(printable("\n".join([table.to_string(index=False), *notes])))

    pictures = plot_study(study, folder)
    best = int(study.groups["fid"].idxmin()) if study.has("fid") else None
    title = name or study.folder.resolve().name  # the folder may be `.`
    written = [f"# {title}", markdown_table(table, bold=best), *notes]
    parts = [html.escape(printable(part), quote=False) for part in written]  # a job's file may come from anybody
    parts += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    files = {"report": folder / "report.md", "csv": folder / "report.csv", "groups_csv": folder / "groups.csv"}
    write_atomically(files["report"], "\n\n".join(parts).encode() + b"\n")
    study.jobs.drop(columns="group").to_csv(files["csv"], index=False)
    groups = study.groups.drop(columns="label")
    groups = groups.join([difference.add_prefix(f"{score}_") for score, difference in differences.items()])
    groups.to_csv(files["groups_csv"], index=False)
    groups = groups.astype(object).where(groups.notna(), None)
    words = [name for name in study.varied if name not in study.numeric_options()]  # W&B refuses mixed columns
    rows = groups.assign(**groups[words].map(format_value)).to_dict("records")
    log_table(logger, title, rows, pictures)
    paths = {name: str(path) for name, path in files.items()}
    drawn = [str(picture) for picture in pictures]
    failed = int(study.jobs["error"].notna().sum())
    return {**paths, "pictures": drawn, "groups": groups.to_dict("records"), "failed": failed}
