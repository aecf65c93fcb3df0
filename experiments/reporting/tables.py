"""The table of a study: a row for each group, as text and as Markdown."""

import pandas as pd

from experiments.reporting.study import Study, format_value

TITLES = {
    "fid": "FID",
    "inception_score": "Inception Score",
    "class_accuracy": "class accuracy",
    "gflop_per_image": "GFLOP/image",
    "images_per_second": "images/s",
    "parameters": "parameters",
}
INTERVAL = "FID difference (95 % interval)"


def table_of(study: Study, differences: pd.DataFrame | None = None) -> pd.DataFrame:
    """Writes the groups as a table of texts: mean ± standard deviation over seeds for scores, means for costs.

    Args:
        study: the groups.
        differences: of FID, as `compare_groups` gives them.
    """
    groups = study.groups
    table = pd.DataFrame({name.replace("_", " "): groups[name].map(format_value) for name in [*study.varied, "seeds"]})
    others = [name for name in groups if name.startswith("fid (")]  # by further protocols
    for name in ["fid", *others, *list(TITLES)[1:]]:
        if study.has(name) and name not in study.varied:
            title = TITLES.get(name, name.replace("fid", "FID"))
            table[title] = [_cell(name, *values) for values in zip(groups[name], groups[f"{name}_std"], strict=True)]
    if differences is not None and differences["low"].notna().any():
        cells = [f"{d:+.3f} ({low:.3f} to {high:.3f})" for d, low, high in differences.dropna().to_numpy()]
        table[INTERVAL] = pd.Series(cells, index=differences.dropna().index).reindex(table.index, fill_value="")
    if groups["errors"].any():
        table["errors"] = groups["errors"]
    return table


def _cell(name: str, mean: float, deviation: float) -> str:
    """Writes one number of a group; nothing where there is none."""
    if pd.isna(mean):
        return ""
    if name == "parameters":
        return f"{mean / 1e6:,.2f} M"
    if name in ("gflop_per_image", "images_per_second"):
        return f"{mean:,.0f}" if mean >= 1000 else f"{mean:.3g}"
    return f"{mean:.3f}" + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")


def markdown_table(table: pd.DataFrame, bold: int | None = None) -> str:
    """Writes a table of texts as Markdown, with the FID of one row in bold."""
    table = table.copy()
    if bold is not None:
        table.loc[bold, "FID"] = f"**{table.loc[bold, 'FID']}**"
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
