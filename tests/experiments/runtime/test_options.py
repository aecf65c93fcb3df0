"""Misspelt options, groups and choices are told at once, with a suggestion; values are quoted where that is needed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data.scored_images import ClassFolderImages, FolderImages
from enat.errors import InputError
from experiments.runtime.option_errors import explain_option
from experiments.runtime.option_help import help_on
from experiments.runtime.options import CONF, choices_of, options_first, prepare
from experiments.runtime.unused_options import refuse_unused_options

ROOT = Path(__file__).parents[3]


def test_nothing_heavy_is_imported_before_options_are_composed():
    """A misspelt option, and a completion of the shell, would wait for seconds."""
    heavy = "{'torch', 'lightning', 'pandas', 'matplotlib', 'wandb', 'scipy'}"
    code = f"import sys, run; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task=trian"], "task=trian: there is no such choice; did you mean train? There are benchmark, "),
        (["experiment=digit"], "experiment=digit: there is no such choice; did you mean digits? There are debug, "),
        (["+sweep=table_6"], "sweep=table_6: there is no such choice; did you mean table_6e? There are "),
        (["taks=sample"], "taks: there is no such option; did you mean task?"),
        (["modul.net.width=3"], "modul.net.width: there is no such option; did you mean module.net.width"),
        (["width=3"], "width: there is no such option; did you mean module.net.width?"),
        (["task=sample", "num_images=3"], "images_per_class? task=similarity has it."),
        (["classes=[3]"], "task=sample and task=tokenize have it."),
        (["logger.wandb.offline=true"], "logger.wandb.offline: there is no such option; logger=wandb has it."),
        (["~seed"], "~seed: other options need it; expected seed=VALUE in its place."),
        (["~logger"], "~logger: other options need it; expected logger=VALUE in its place."),
        (["~callbacks.foo"], "callbacks.foo: there is no such option; did you mean callbacks"),
        (["name=[a"], "name=[a: this is no option with a value; expected NAME=VALUE"),
        (
            ["callbacks=null"],
            "callbacks=null: expected one of default, tokenizer; callbacks.NAME=null leaves out one of them.",
        ),
        (["output=[a]"], "output=[a]: expected one folder."),
        (["output="], "output=: expected one folder."),
        (["metrics=null"], "metrics=null: expected one of digits, inception, lite0, none"),
        (["schedule@sampler.mask_schedule=null"], "expected one of arccos, constant, cosine, "),
        (["+sweep=NULL"], "sweep=NULL: expected one of ablation_study, cache, "),
        (["order=3"], "order=3: expected one of confidence, entropy, "),
        (["-m", "order@sampler.order=halton,true"], "order@sampler.order=true: expected one of confidence, "),
        (["score=[fid,sfdi]"], "score=sfdi: there is no such choice; did you mean sfid? There are density_coverage, "),
        (["protocol=[foo]"], "protocol=foo: there is no such choice; there are adm, clean, enat."),
        (["--seed=1"], "--seed=1: options have no dashes; expected seed=1."),
        (
            ["output=a${y}b"],
            "output=a${y}b: Interpolation key 'y' not found; ${NAME} stands for the value of the option",
        ),
        (
            ["metrics=reconstruction"],
            "metrics.evaluation.reference.images: takes its value from data.images, which these choices lack; expected "
            "another data=CHOICE, or metrics.evaluation.reference.images=VALUE.",
        ),
        (["output=a${y b"], "no path can have ${ in it: rename such a file or folder."),
        (["name=${oc.env:NOT_SET_HERE}"], "${oc.env:NOT_SET_HERE}: a configuration may not read the environment"),
        (["hydra/launcher=submitit_slurm"], "`pip install -e '.[slurm]'` installs it."),
    ],
)
def test_misspelt_options(command, arguments, sentence):
    outcome = command(*arguments)
    assert outcome.status in (1, 2)
    assert outcome.err.startswith("Error: ")
    assert len(outcome.err.splitlines()) == 1
    assert sentence in outcome.err


def composition_error(*arguments: str) -> str:
    """Returns the sentence about a command line that can't be composed; nothing for one that can."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose("config", list(arguments))
    except HydraException as error:
        return explain_option(error, arguments)
    return ""


@pytest.mark.parametrize("group", sorted({str(file.parent.relative_to(CONF)) for file in CONF.glob("*/**/*.yaml")}))
def test_the_name_of_a_group_alone(group):
    """It chooses, or the sentence says which options do: each of them can be composed."""
    choice = choices_of(CONF / group)[-1]
    sentence = composition_error(f"{group}={choice}")
    if not sentence:
        return
    assert sentence.startswith(f"{group}={choice}: ")
    advised = re.split(": this group is chosen by |expected ", sentence, maxsplit=1)[1].rstrip(".").split(", ")
    for part in advised:
        options, _, beside = part.removeprefix("or ").partition(" beside ")
        for option in re.findall(rf"\S+={choice}|\S+/{choice}", options):
            for host in beside.split(" or "):
                assert composition_error(*filter(None, (option, host))) == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["order=halton"], "order=halton: this group is chosen by order@sampler.order=halton."),
        (["preset=halton"], "preset=halton: expected +preset=halton, which adds a choice of this group."),
        (["quantizer=vq"], "expected quantizer@tokenizer.quantizer=vq beside tokenizer=conv."),
        (["quantizer=vq", "tokenizer=conv"], "quantizer=vq: this group is chosen by quantizer@tokenizer.quantizer=vq."),
        (["perceptual=lite0"], "expected +perceptual@module.loss.terms.perceptual=lite0."),
        (["net/digits=nat"], "expected net@module.net=digits/nat."),
        (["net=digits/nat"], "net=digits/nat: this group is chosen by net@module.net=digits/nat."),
        (["hydra/launcher=basicc"], "hydra/launcher=basicc: there is no such choice; `python run.py --hydra-help`"),
        (["task=latency", "net=enat_b"], "net@module.net=enat_b or net@networks.enat_b=enat_b or net@networks.enat_l="),
        (["order=haltonn"], "order=haltonn: there is no such choice; did you mean halton? There are confidence, "),
        (["order=haltonn"], "; expected order@sampler.order=CHOICE."),
        (["order@sampler.order=haltonn"], "order@sampler.order=haltonn: there is no such choice; did you mean halton?"),
        (
            ["net@module.net=digits/nats"],
            "net@module.net=digits/nats: there is no such choice; did you mean digits/nat?",
        ),
        (["net@module.net=digit/nat"], "net@module.net=digit/nat: there is no such choice; did you mean digits/nat?"),
        (["+sweep=table_6a", "ablation=enat", "foo=3"], "foo: there is no such option"),
    ],
)
def test_where_a_group_is_chosen(arguments, sentence):
    assert sentence in composition_error(*arguments)


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1))
def test_any_path_is_read_as_it_is(name):
    """Whatever is in a path: letters of any script, spaces, `=`, parentheses, quotes."""
    (argument,) = prepare([f"weights=/x/{name}.ckpt"])
    value = OverridesParser.create().parse_override(argument).value()
    assert str(value) == f"/x/{name}.ckpt" or "," in name or "$" in name or "\\" in name or name != name.strip()


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert prepare(["output=~/runs", "a=~", "b=x~"]) == ["output=/home/somebody/runs", "a=/home/somebody", "b='x~'"]


def test_paths_below_the_working_directory(tmp_path, monkeypatch):
    """Also with several slashes, of which none may be left in front."""
    monkeypatch.chdir(tmp_path)
    given = [f"output={tmp_path}/x", f"output={tmp_path}//x", f"output={tmp_path}//"]
    assert prepare(given) == ["output=x", "output=x", f"output={tmp_path}//"]


@pytest.mark.parametrize("name", ["callbacks.sample_grid.class_ids", "classes", "weights", "+more.network"])
def test_a_list_that_is_longer_than_a_path_may_be(name):
    argument = f"{name}=[{','.join(['0'] * 5000)}]"
    assert prepare([argument]) == [argument]


def test_a_path_with_a_comma(tmp_path):
    (tmp_path / "a,b.ckpt").touch()
    assert prepare([f"weights={tmp_path}/a,b.ckpt"]) == [f"weights='{tmp_path}/a,b.ckpt'"]
    assert prepare(["weights=a.ckpt,b.ckpt", "seed=1,2"]) == ["weights=a.ckpt,b.ckpt", "seed=1,2"]


@pytest.mark.parametrize("name", ["image", "other", "region.mask", "images", "labels", "study"])
def test_options_that_are_paths_are_read_as_they_are(tmp_path, name):
    assert prepare([f"{name}=2024_01"]) == [f"{name}='2024_01'"]
    (tmp_path / "a,b.png").touch()
    assert prepare([f"{name}={tmp_path}/a,b.png"]) == [f"{name}='{tmp_path}/a,b.png'"]


@pytest.mark.parametrize("name", ["runs", "image"])
def test_paths_in_a_list_are_read_as_one_alone_is(tmp_path, monkeypatch, name):
    """No shell expands a ~ behind a bracket."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    given = f"{name}=[~/a,2024_01, {tmp_path}/b c,d=e,'x, y']"
    assert prepare([given]) == [f"{name}=[/home/somebody/a,'2024_01',b c,'d=e','x, y']"]
    assert prepare(["-m", f"{name}=[~/a],[b, c]"])[1] == f"{name}=[/home/somebody/a],[b, c]"
    assert prepare([f"{name}=[]"]) == [f"{name}=[]"]


def test_a_class_that_is_named_like_a_value():
    assert prepare(["classes=true", "x=true"]) == ["classes='true'", "x=true"]
    assert prepare(["classes=1e3"]) == ["classes='1e3'"]
    assert prepare(["classes=3", "classes=null", "classes=[3,7]"]) == ["classes=3", "classes=null", "classes=[3,7]"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[Käse,cat]", ["Käse", "cat"]),
        ("[sp a,b=c/x/p q.png]", ["sp a", "b=c/x/p q.png"]),
        ("['Käse',cat, 3,true,null]", ["Käse", "cat", 3, True, None]),
        ('[it\'s é,[é,"x, y"],{k:b=c,l:[ö,2]}]', ["it's é", ["é", "x, y"], {"k": "b=c", "l": ["ö", 2]}]),
        ("{k:é,l:1}", {"k": "é", "l": 1}),
        ("[photo(1,2) é.png,b]", ["photo(1,2) é.png", "b"]),
        ("(é", "(é"),
    ],
)
def test_items_of_lists_are_quoted_as_single_values_are(given, expected):
    (argument,) = prepare([f"x={given}"])
    assert OverridesParser.create().parse_override(argument).value() == expected


@pytest.mark.parametrize("given", ["[Käse", "[a[1,é]", "['x y' é,b]", "[Käse,]", "{ä:1}"])
def test_lists_that_can_not_be_told_are_refused(given):
    assert prepare([f"x={given}"]) == [f"x={given}"]
    sentence = composition_error(f"x={given}")
    assert sentence.startswith(f"x={given}: this is no option with a value; expected NAME=VALUE, or ")
    assert ("\"NAME=['VALUE','VALUE']\" to quote the items of a list." in sentence) == given.startswith("[")


@pytest.mark.parametrize(
    "text", ["3", "1e3", "true", "null", "a b", "a\\,b", "'a, b'", "[1,[a,'b']]", "{a:[1]}", "${a}"]
)
@pytest.mark.parametrize("form", ["{}", "[{}]", "[{},c]", "{{k:{}}}", "{},{}"])
def test_what_hydra_reads_stays_as_it_is(form, text):
    argument = f"x={form.format(text, text)}"
    assert prepare(["-m", argument]) == ["-m", argument]


def test_the_values_of_a_multirun_are_prepared_each(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("a", "b c"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    last = "checkpoints/last.ckpt"
    assert prepare(["-m", f"weights={tmp_path}/a,{tmp_path}/b c,x"])[1] == (
        f"weights={tmp_path}/a/{last},{tmp_path}/b c/{last},x"
    )
    assert prepare(["-m", f"weights='{tmp_path}/b c','{tmp_path}/a'"])[1] == (
        f"weights='{tmp_path}/b c/{last}','{tmp_path}/a/{last}'"
    )
    assert prepare([f"weights='{tmp_path}/a'"]) == [f"weights='{tmp_path}/a/{last}'"]
    for study in ("+sweep=steps", "hydra.mode=MULTIRUN"):  # a multirun without -m
        assert prepare([study, f"weights={tmp_path}/a,{tmp_path}/b c"])[1] == (
            f"weights={tmp_path}/a/{last},{tmp_path}/b c/{last}"
        )
    assert prepare(["-m", "classes=[Käse],[cat]"])[1] == "classes=['Käse'],[cat]"
    assert prepare(["-m", "classes=Käse,cat"])[1] == "classes='Käse',cat"
    assert prepare(["-m", "path=2024_01,~/b=c"])[1] == "path='2024_01','/home/somebody/b=c'"


def test_a_launcher_without_its_cluster(monkeypatch):
    monkeypatch.setattr("experiments.runtime.options.find_spec", lambda name: name == "submitit")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="there is no SLURM here, for srun is not found; expected submitit_local"):
        prepare(["hydra/launcher=submitit_slurm"])


def test_the_folder_of_a_run_is_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert prepare([f"weights={tmp_path}"]) == [f"weights={tmp_path}/checkpoints/last.ckpt"]


def test_help_on_a_task():
    ran = subprocess.run(
        [sys.executable, "run.py", "task=sample", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "images_per_class=8" in ran.stdout
    assert "class ids or names" in ran.stdout
    assert "output=..." in ran.stdout  # and no interpolation of Hydra
    assert "module" not in ran.stdout.replace("those of network", "")


def test_lists_and_numbers_stay_what_they_are():
    given = ["classes=[3,7]", "seed=1,2", "x.y={a:1}", "+sweep=steps", "weights=", "a='b c'", "-m"]
    assert prepare(given) == given


def test_a_multirun_shows_the_settings_of_a_job():
    """Hydra itself refuses both together."""
    assert prepare(["-m", "+sweep=steps", "--cfg", "job"]) == ["+sweep=steps", "--cfg", "job"]
    assert prepare(["--multirun", "-c", "job"]) == ["-c", "job"]
    assert prepare(["-m", "-cn", "other"]) == ["-m", "-cn", "other"]  # the name of a configuration


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a=1", "-m", "b=1,2"], ["a=1", "b=1,2", "-m"]),
        (["a=1", "--cfg", "job", "b=2", "~c"], ["a=1", "b=2", "~c", "--cfg", "job"]),
        (["-cn", "other", "a=1", "--config-dir", "d=e", "b=2"], ["a=1", "b=2", "-cn", "other", "--config-dir", "d=e"]),
        (["--info", "a=1", "-i", "config", "b=2"], ["a=1", "b=2", "--info", "-i", "config"]),
    ],
)
def test_flags_may_stand_between_options(given, expected):
    assert options_first(given) == expected


def test_options_on_both_sides_of_a_flag(command):
    """The parser of Hydra alone would not take the last one."""
    for flag in (["--cfg", "job"], ["--cfg=job"]):
        shown = command("seed=7", *flag, "name=other")
        assert shown.status == 0, shown.err
        assert {"seed: 7", "name: other"} <= set(shown.out.splitlines())


def test_ablations_of_an_experiment_without_their_networks(command):
    refused = command("+sweep=table_6a", "experiment=photos")
    assert (
        "Error: experiment=photos: the ablations have no networks for it; expected digits, emoji_s or enat_s_256."
        in refused.err
    )


def test_dashes_are_refused():
    with pytest.raises(InputError, match="--lr=3: options have no dashes; expected lr=3"):
        prepare(["--lr=3"])


def test_commands_of_the_help_have_quotes():
    """A shell reads [3,7] as a pattern of file names."""
    for file in CONF.rglob("*.yaml"):
        for line in re.findall(r"^#.*python run\.py.*", file.read_text(), re.MULTILINE):
            assert not re.search(r"(?<![\"'\w.])[\w.@/]+=\[", line), f"{file}: {line}"


def test_folders_of_images_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^path=none: there is no such folder; expected one of images\.$"):
        FolderImages("none", None, 0)
    with pytest.raises(InputError, match=r"expected a folder of images, by scored\.path=DIR or, as a ref"):
        FolderImages(None, None, 0)
    with pytest.raises(InputError, match=r"expected a folder of images, by metrics\.images=DIR\.$"):
        ClassFolderImages(None, "train", 0.1, 0, None, 0)
    archive = tmp_path / "images.npz"
    archive.touch()
    with pytest.raises(InputError, match=r"images\.npz: this is a file; expected a folder of images, or scored=npz \("):
        FolderImages(str(archive), None, 0)
    with pytest.raises(InputError, match=r"images\.npz: this is a file; expected a folder of images\.$"):
        ClassFolderImages(str(archive), "train", 0.1, 0, None, 0)


OWN = "these compare with images of their own; expected "
NO_PROTOCOLS = "the feature network has no protocols to choose from; expected "
UNUSED = "this changes nothing, since this task does not use it; expected the command without it."


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reference=images"], f"with metrics=digits, this changes nothing, since {OWN}metrics=inception beside it"),
        (["metrics=lite0", "reference.path=x"], f"{OWN}metrics.images=DIR for other images, or metrics=inception"),
        (["metrics=lite0", "task=evaluate", "protocol=[enat,adm]"], f"{NO_PROTOCOLS}metrics=inception beside it"),
        (["metrics=lite0", "task=neighbours", "protocol=[enat]"], NO_PROTOCOLS),
        (["metrics=lite0", "task=score", "reference=npz"], OWN),
        (
            ["metrics=inception", "features@metrics.evaluation.features=lite0", "protocol=[adm]"],
            f"{NO_PROTOCOLS}features@metrics.evaluation.features=inception beside it",
        ),
        (
            ["experiment=tokenizer", "metrics=reconstruction", "reference.path=x"],
            f"{OWN}data.images=DIR for other images",
        ),
        (["metrics=none", "reference=npz"], "with metrics=none, this changes nothing, since there are no scores; "),
        (["metrics=none", "score=[memorization]"], "since there are no scores; expected metrics=inception beside it"),
        (["metrics=none", "scores.fid.view=spatial"], "since there are no scores; "),
        (["task=statistics", "features=lite0", "protocol=[adm]"], "expected features=inception or the command without"),
        (["task=statistics", "reference=images"], f"with task=statistics, {UNUSED}"),
        (["task=sample", "reference.path=x"], f"with task=sample, {UNUSED}"),
        (["-m", "seed=1", "reference.path=x"], OWN),
        (["task=evaluate", "trainer.max_steps=5"], f"with task=evaluate, {UNUSED}"),
        (["task=evaluate", "logger=tensorboard"], UNUSED),
        (["task=evaluate", "callbacks.sample_grid.images_per_class=2"], UNUSED),
        (
            ["task=evaluate", "trainer.precision=bf16-mixed"],
            "task does not use it; expected fabric.precision=bf16-mixed",
        ),
        (["task=score", "scored.path=x", "metrics.evaluation.num_images=50"], "it scores all images that there are"),
        (
            ["task=edit", "image=x", "weight=0.2"],
            "since other=null, so that no tokens are mixed in; expected other=FILE",
        ),
        (["task=tokenize", "images=x.npy", "views=plain"], "since a token cache has its views"),
        (["task=tokenize", "images=x", "num_classes=2"], "since it is for a train.npy, and images have the classes of"),
        (
            ["experiment=from_images", "images=x", "trainer.max_steps=5"],
            "an option of one of them, such as '+more.tokenizer=\"trainer.max_steps=5\"'.",
        ),
    ],
)
def test_options_that_change_nothing_are_refused(command, tmp_path, arguments, expected):
    outcome = command(*arguments, f"output={tmp_path}/out")
    assert outcome.status == 1
    assert f"{arguments[-1]}: with " in outcome.err
    assert expected in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("metrics", "is_refused"), [("digits,inception", False), ("digits", True)])
def test_options_for_some_jobs_of_a_multirun_are_not_refused(command, tmp_path, metrics, is_refused):
    """The jobs that have no use for them have the same command line."""
    jobs = ["-m", "task=score", f"metrics={metrics}", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    outcome = command(*jobs, "scored.path=none", "reference.path=x", "protocol=[adm]")
    assert outcome.status == 1
    assert ("this changes nothing" in outcome.err) == is_refused
    assert ("path=none: there is no such folder" in outcome.err) != is_refused


def test_options_that_differ_between_jobs_are_refused_where_they_change_nothing(compose_config):
    """Otherwise two jobs would do the same."""
    config = compose_config("reference=images")
    choices = {"task": "train", "metrics": "digits"}
    refuse_unused_options(config, ["metrics=digits", "reference=images"], choices, {"metrics"})
    with pytest.raises(InputError, match=r"^reference=images: with metrics=digits, this changes nothing"):
        refuse_unused_options(config, ["metrics=digits", "reference=images"], choices, {"metrics", "reference"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["metrics=inception", "reference=images", "reference.path=x", "protocol=[enat,adm]", "score=[fid]"],
        ["task=evaluate", "experiment=enat_l_256", "protocol=[enat,adm]", "reference.path=x"],
        ["task=score", "metrics=inception", "reference=shards", "reference.images.path=x", "protocol=[adm]"],
        ["task=statistics", "protocol=[enat,adm,clean]"],
        ["experiment=tokenizer", "metrics=reconstruction", "score=[fid]"],
        ["task=score", "metrics=lite0", "score=[fid]"],
        ["metrics=none", "~reference"],
        ["task=sample", "seed=1"],
    ],
)
def test_options_that_count_are_not_refused(compose_config, arguments):
    config = compose_config(*arguments)
    choices = {one.partition("=")[0]: one.partition("=")[2] for one in arguments}
    refuse_unused_options(config, arguments, {"task": "train", **choices})


def test_many_seeds_are_no_file():
    """More text than a file's name can have."""
    seeds = f"seed={','.join(map(str, range(200)))}"
    assert prepare(["-m", seeds]) == ["-m", seeds]


def test_a_job_of_a_multirun_that_is_shown_has_one_value_of_each_option():
    assert prepare(["-m", "+sweep=steps", "seed=1", "--cfg", "job"]) == ["+sweep=steps", "seed=1", "--cfg", "job"]
    with pytest.raises(InputError, match=r"seed=1,2: --cfg shows one job; expected one value of seed\."):
        prepare(["-m", "+sweep=steps", "seed=1,2", "--cfg", "job"])
    with pytest.raises(InputError, match=r"seed=1,2: --cfg shows one job; expected one value of seed\."):
        prepare(["+sweep=steps", "seed=1,2", "--cfg", "job"])


def test_help_lists_the_tasks():
    listed = help_on(["run.py", "--help"]).splitlines()
    tasks = [line.split()[0] for line in listed if line.startswith("  ")]
    assert tasks == sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))


WITH_ALL_OPTIONS = [
    *([f"task={file.stem}"] for file in sorted((CONF / "task").glob("*.yaml"))),
    ["experiment=tokenizer", "logger=wandb"],
    ["experiment=tokenizer", "quantizer@tokenizer.quantizer=lfq"],
    ["tokenizer=diffusers", "metrics=lite0", "data=shards", "order@sampler.order=fixed"],
    ["metrics=inception", "reference=images", "order@sampler.order=halton"],
]
NO_OPTION = ("settings.tokenizer.quantizer.levels", "trainer.gradient_clip_val")  # in a file, and with a + alone


def sentences(file: Path) -> Iterator[str]:
    """Gives the texts of a module with a space in them, but for docstrings; what is put into them is {}."""
    tree = ast.parse(file.read_text())
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    others = {id(part) for node in joined for part in node.values}
    others |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values) for node in joined]
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in others]
    texts += [node.value for node in plain if isinstance(node.value, str)]
    yield from (text for text in texts if " " in text)


def test_options_that_sentences_name_can_be_typed(compose_config):
    """As `quantizer=fsq` could not: `quantizer@tokenizer.quantizer=fsq` can."""
    options: set[str] = set()
    for arguments in WITH_ALL_OPTIONS:
        options |= set(all_names(OmegaConf.to_container(compose_config(*arguments))))
    files = [CONF / "config.yaml", *(CONF / "task").glob("*.yaml")]
    lists = [yaml.safe_load(file.read_text()).get("defaults", []) for file in files]
    groups = {name.lstrip("/") for entries in lists for entry in entries if isinstance(entry, dict) for name in entry}
    named = set()
    for part in ("enat", "data", "callbacks", "experiments"):
        for file in (ROOT / part).rglob("*.py"):
            for text in sentences(file):
                named |= set(re.findall(r"(?<![\w{}./@\[+-])([a-z_]+)(@[\w.]+)?((?:\.[a-z_]+)*)=([a-z_0-9]*)", text))
    assert ("quantizer", "@tokenizer.quantizer", "", "fsq") in named
    for group, package, rest, choice in sorted(named):
        option = f"{group}{package}{rest}"
        is_group = (CONF / group).is_dir() and not rest
        if is_group and choice not in ("", "null"):
            assert (CONF / group / f"{choice}.yaml").exists(), f"{option}={choice}"
            assert package[1:] in options if package else group in groups, f"{option}={choice}"
        elif rest and group != "hydra" and option not in NO_OPTION:
            assert option in options, option


def all_names(node: Any, prefix: str = "") -> Iterator[str]:
    """Gives the names of all options in a configuration, and of the parts that hold them."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from all_names(value, f"{prefix}{name}.")
