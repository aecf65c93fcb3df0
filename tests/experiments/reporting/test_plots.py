"""Plots show the numbers of the table."""

import pytest

from experiments.reporting.figures import save
from experiments.reporting.plots import (
    MOST_NAMES,
    MOST_POINTS,
    plot_fid_over,
    plot_losses,
    plot_over_options,
    read_losses,
)
from experiments.reporting.study import read_study


def legend_of(figure, folder):
    save(figure, folder / "picture.png")
    assert all(axes.get_legend() is None for axes in figure.axes)  # it is not on the data
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_numbers_are_drawn_as_numbers(study_folder):
    axes = plot_over_options(read_study(study_folder)).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0.5, 3.0], [10.0, 1.25]]  # the group that failed has no point
    (container,) = axes.containers
    (bars,) = container.lines[2]
    ends = [sorted(path.vertices[:, 1]) for path in bars.get_paths()]
    assert ends == [
        pytest.approx([3 - 2**0.5, 3 + 2**0.5]), pytest.approx([1.25 - 0.125**0.5, 1.25 + 0.125**0.5]),
    ]  # fmt: skip
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.5", "10"]


def test_words_are_rows_with_a_point_for_each_seed(tmp_path, make_job):
    for number, (variant, fid) in enumerate([("nat", 1.0), ("nat", 3.0), ("enat", 5.0), ("none", None)]):
        make_job(tmp_path, number, [f"seed={number}", f"variant={variant}"], fid)
    figure = plot_over_options(read_study(tmp_path))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["nat", "enat", "none"]
    seeds = [tuple(point) for points in axes.collections for point in points.get_offsets()]
    assert {(1.0, 0.0), (3.0, 0.0), (5.0, 1.0)} <= set(seeds)
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("no result", 2)]
    assert legend_of(figure, tmp_path) == ["one seed", "mean and standard deviation"]


def test_many_names_are_rows_too(tmp_path, make_job):
    """Below an axis, they would cover each other, and leave the plot no room."""
    names = [f"variant={number:02}_{'long' * 12}" for number in range(2 * MOST_NAMES + 1)]
    for number, name in enumerate(names):
        make_job(tmp_path, number, ["seed=0", name], 1.0 + number)
    axes = plot_over_options(read_study(tmp_path)).axes[0]
    assert len(axes.get_yticklabels()) == len(names)


def test_a_line_for_each_setting_of_all_sampler_options_but_one(tmp_path, make_job):
    number = 0
    for scale in (2, 0):  # lines go from the least on
        for temperature in (0.7, 1):
            for seed in range(2):
                overrides = [f"seed={seed}", f"sampler.guidance_scale={scale}", f"sampler.temperature={temperature}"]
                fid = scale + temperature + seed
                make_job(tmp_path, number, overrides, fid, inception_score=9 + scale, protocol="digits")
                number += 1
    figure = plot_fid_over(read_study(tmp_path), "inception_score", "guidance_scale")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_xydata().tolist() for line in lines] == [
        [[9, pytest.approx(1.2)], [11, pytest.approx(3.2)]], [[9, 1.5], [11, 3.5]],
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["0", "2"] * 2
    assert legend_of(figure, tmp_path) == ["temperature 0.7", "temperature 1"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Inception Score (digits)", "FID (digits)")
    assert axes.get_yscale() == "log"  # 3.5 is more than 2.5 times 1.2


def test_of_many_lines_each_has_a_look_of_its_own(tmp_path, make_job):
    """Values at the points would cover one another, so that the title has them."""
    for number in range(24):
        preset, steps = divmod(number, 2)
        make_job(tmp_path, number, [f"preset=p{preset}", f"steps={4 + 4 * steps}"], 2 + number / 100)
    figure = plot_fid_over(read_study(tmp_path), "gflop_per_image", "steps")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12
    assert not axes.texts
    assert axes.get_title() == "Along each line: steps 4, 8"
    assert axes.get_yscale() == "linear"


def test_of_many_groups_the_best_have_names(tmp_path, make_job):
    """In the picture over operations: those that no other beats, here the first, the fourth and the last."""
    fids = [5.0, 6.0, 7.0, 2.0, *[3.0 + n / 10 for n in range(10)], 1.0]
    for number, fid in enumerate(fids):
        make_job(tmp_path, number + 2, [f"a={number}", f"b={number**2}", f"c={number % 3}"], fid=fid)
    figure = plot_fid_over(read_study(tmp_path), "gflop_per_image", None)
    assert legend_of(figure, tmp_path) == ["other settings", "a 0, b 0, c 0", "a 3, b 9, c 0", "a 14, b 196, c 2"]


def test_the_best_of_two_scores(tmp_path, make_job):
    """A high Inception Score is better: 9 has no match, 8 has the lower FID, 7 is worse than 8 in both."""
    for number, (fid, score) in enumerate([(3.0, 9.0), (2.0, 8.0), (2.5, 7.0), *[(4.0 + n, 6.0) for n in range(10)]]):
        make_job(tmp_path, number, [f"a={number}"], fid=fid, inception_score=score)
    figure = plot_fid_over(read_study(tmp_path), "inception_score", None)
    assert legend_of(figure, tmp_path) == ["other settings", "a 1", "a 0"]


def test_curves_are_means_over_seeds_with_a_band(tmp_path, make_job):
    for seed, fid in enumerate((1.0, 3.0)):
        make_job(tmp_path, seed, [f"seed={seed}"], fid=fid, steps=3)
    axes = plot_losses(read_study(tmp_path)).axes[2]
    assert axes.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 2.0], [3, 2.0]]
    assert set(axes.collections[0].get_paths()[0].vertices[:, 1]) == {1.0, 3.0}


def test_the_title_of_losses_says_which_groups_it_leaves_out(tmp_path, make_job):
    """A group without curves, such as of an unfinished run, is none that was left out for its FID."""
    make_job(tmp_path / "few", 2, ["a=0"], fid=1.0, steps=3)
    make_job(tmp_path / "few", 3, ["a=1"], fid=2.0)
    assert plot_losses(read_study(tmp_path / "few")).get_suptitle() == ""
    for number in range(30):
        make_job(tmp_path / "many", number, [f"a={number}"], fid=1.0 + number, steps=3)
    title = plot_losses(read_study(tmp_path / "many")).get_suptitle()
    assert title == f"the {MOST_NAMES} groups of 30 with the lowest FID"


def test_training_losses_are_means_over_a_tenth_of_the_steps(tmp_path, make_job):
    make_job(tmp_path, 2, ["seed=0"], fid=1.0, steps=2000)
    curve = read_losses(read_study(tmp_path))["train/loss"].set_index("step")["value"]
    assert MOST_POINTS / 2 < len(curve) <= MOST_POINTS
    step = curve.index[-1]
    assert curve[step] == pytest.approx(2 - (step - 99.5) / 10)  # of steps step - 199 to step
