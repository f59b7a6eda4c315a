"""Every config composes, and names what exists."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from norton.cli.help import choices_of, fits, help_text, no_setting
from norton.cli.program import CONFIGS
from norton.decomposition import DECOMPOSITIONS
from norton.models import NETWORKS
from norton.pruning import CRITERIA

pytestmark = pytest.mark.quick

CHOICES = [
    (path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "experiment"
]
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides, name="pipeline"):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, [*overrides, "out=x"])


@pytest.mark.parametrize("group, choice", CHOICES)
def test_choice(group, choice):
    detection = {"detector": "detector", "detection_data": "detection_data@data"}
    detection["detection_training"] = "detection_training@training"
    program = "detection_train" if group in detection else "ablation" if group == "rank_ratio" else "pipeline"
    cfg = composed(f"{detection.get(group, group)}={choice}", name=program)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment(experiment):
    (program,) = (name for name in ("pipeline", "ablation", "detection_train") if fits(name, experiment))
    OmegaConf.to_container(composed(f"experiment={experiment}", name=program), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base"))
def test_program(name):
    assert "checkpoint" in composed(name=name)


def test_help_lists_what_fits_the_command():
    lines = choices_of(CONFIGS, "ablation").replace("\n    ", " ").splitlines()  # long ones are wrapped
    groups = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    assert groups["experiment"] == ", ".join(name for name in EXPERIMENTS if name.startswith("sweep_"))
    assert groups["rank_ratio"].startswith("3N, 4S, 6M, 8H, ") and "detector" not in groups
    assert "experiment" not in choices_of(CONFIGS, "decompose") and choices_of(CONFIGS, "report") == ""


def test_every_method_has_its_config():
    named = {(group, choice) for group, choice in CHOICES}
    assert {("model", name) for name in NETWORKS} <= named
    assert {("decomposition", name) for name in DECOMPOSITIONS} <= named
    assert {("pruning", name) for name in CRITERIA} <= named


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_pruning_configs_name_their_criterion(criterion):
    assert composed(f"pruning={criterion}").pruning.criterion == criterion


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base"))
def test_help_says_what_each_setting_means(name):
    """Beside the setting, or beside the group of settings that it is in; loggers have Lightning's own."""
    explained = {0: True}
    for line in help_text(CONFIGS, name).split("(setting=value):")[1].split("Any setting")[0].splitlines():
        setting, _, meaning = line.partition("#")
        depth = len(line) - len(line.lstrip())
        if setting.strip():
            explained[depth + 2] = bool(meaning) or (depth > 0 and explained[depth])
            is_group = setting.rstrip().endswith((":", "{}"))
            assert is_group or explained[depth + 2] or setting.strip().startswith(("_target_", "save_dir", "name")), (
                line
            )


def test_help_shows_what_is_typed_beside_it():
    text = help_text(CONFIGS, "decompose", ["decomposition=tucker", "rank=3"])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "rank: 3 # one number, or a number (or null: leave dense) per pattern of layer names." in lines
    assert "method: tucker # the name it is registered under" in lines
    assert any(line.startswith("iterations:") and "higher-order orthogonal iteration" in line for line in lines)


@pytest.mark.parametrize("typed, meant", [
    ("rnak", "did you mean rank?"),
    ("objective", "did you mean decomposition.objective?"),
    ("model.arhc", "did you mean model.arch?"),
    ("trainer.limit_train_batches", "a + adds it: +trainer.limit_train_batches=VALUE"),
])  # fmt: skip
def test_a_mistyped_setting(typed, meant):
    assert meant in no_setting(CONFIGS, "pipeline", typed)


def test_a_setting_that_resembles_none():
    assert no_setting(CONFIGS, "pipeline", "xyz") == "there is no setting 'xyz'; --help lists all settings"
