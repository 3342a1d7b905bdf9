"""Flags and recipes: what overrides what, what --help explains, and that all problems are reported at once."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfgen import AutoencoderConfig, GANConfig, GPTConfig, VAEConfig
from training.config.flags import MEASURED, Arguments, as_recipe, flag
from training.config.parser import command_to_resume, parse
from training.config.scripts import Script


CONFIGS = [AutoencoderConfig, VAEConfig, GANConfig, GPTConfig]


@dataclass
class ExtraArguments:
    nll_samples: int = flag(100, "Number of samples.", on_resume="free", ge=0)


def family_of(config: type) -> str:
    return config.__name__.removesuffix("Config").lower()


def run(*argv: str, config: type = VAEConfig, extra: type | None = None) -> Arguments:
    return parse(Script(family_of(config), "Trains.", {}, extra), [*argv, "--output_dir", "out"], config)


def refusal(*argv: str, extra: type | None = None) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(Script("vae", "Trains.", {}, extra), list(argv), VAEConfig)
    assert isinstance(caught.value.code, str)  # printed, with exit status 1
    return caught.value.code


def documented(config: type) -> dict[str, str]:
    """Name -> first line of the explanation, for each field in a config's docstring that a flag can express."""
    arguments = re.split(r"\n(?=\S)", (inspect.getdoc(config) or "").partition("Args:\n")[2])[0]
    found = dict(re.findall(r"^ {4}(\w+)(?: \(.*?\))?: (.*)", arguments, flags=re.MULTILINE))
    found.pop("rope_parameters", None)  # a dict
    return {name: text for name, text in found.items() if name not in MEASURED}


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_flag_overrides_recipe_and_recipe_overrides_script(recipe: Any) -> None:
    path = recipe("learning_rate: 2.0\nseed: 2\noutput_dir: from-recipe\n")
    defaults = {"learning_rate": 1.0, "seed": 1, "ema_decay": 0.5}
    arguments = parse(Script("vae", "Trains.", defaults), [path, "--learning_rate", "3"])
    assert (arguments.run.learning_rate, arguments.run.seed, arguments.run.ema_decay) == (3.0, 2, 0.5)
    assert arguments.run.output_dir == "from-recipe"


def test_recipe_overrides_launcher_and_launcher_overrides_script(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")

    def found(*argv: str) -> tuple[str, int]:
        defaults = {"gradient_accumulation_steps": 2, "mixed_precision": "fp16"}
        arguments = parse(Script("vae", "Trains.", defaults), [*argv, "--output_dir", "out"]).run
        return arguments.mixed_precision, arguments.gradient_accumulation_steps

    path = recipe("gradient_accumulation_steps: 3\nmixed_precision: no\n")
    assert found() == ("bf16", 4)
    assert found(path) == ("no", 3)
    assert found(path, "--gradient_accumulation_steps", "1", "--mixed_precision", "auto") == ("auto", 1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate says if nobody has asked for anything
    assert found() == ("fp16", 4)


def test_impossible_setting_of_the_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    text = refusal("--output_dir", "out")
    assert "--gradient_accumulation_steps: invalid int value: 'auto'" in text
    assert "--mixed_precision: invalid choice: 'fp8'" in text


def test_command_repeats_the_settings_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training/train_vae.py"])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    expected = "accelerate launch --gradient_accumulation_steps 4 training/train_vae.py --output_dir out"
    assert run().command == expected


def test_yaml_values_become_what_their_flags_hold(recipe: Any) -> None:
    arguments = run(recipe(
        "learning_rate: 1e-3\nnum_train_epochs: 3\nhidden_channels: 8\nimage_size: 16\nreport_to: none\nbeta: 1\n"
        "mixed_precision: no\nmax_train_samples: null\nstreaming: true\nchannels_last: false\nhub_model_id: -x\n"
    ))  # fmt: skip
    assert arguments.run.learning_rate == 0.001
    assert arguments.run.num_train_epochs == 3.0 and isinstance(arguments.run.num_train_epochs, float)
    assert arguments.model == {"hidden_channels": [8], "image_size": [16, 16], "beta": 1.0}
    assert arguments.run.report_to == ["none"] and arguments.run.mixed_precision == "no"
    assert arguments.data.streaming is True and arguments.data.max_train_samples is None
    assert arguments.run.channels_last is False and arguments.run.hub_model_id == "-x"


def test_config_fields_are_flags_of_their_type() -> None:
    vae = run("--hidden_channels", "8", "16", "--beta", "2", "--latent_type", "spatial", "--num_labels", "10").model
    assert vae == {"hidden_channels": [8, 16], "beta": 2.0, "latent_type": "spatial", "num_labels": 10}
    gpt = run("--use_bias", "--qk_norm", "false", "--hidden_dropout", "0.1", config=GPTConfig).model
    assert gpt == {"use_bias": True, "qk_norm": False, "hidden_dropout": 0.1}
    assert run("--generator-channels", "8", config=GANConfig).model == {"generator_channels": [8]}
    assert run("--noise_std=0.5", config=AutoencoderConfig).model == {"noise_std": 0.5}
    assert [run(*flags).data.in_memory for flags in ([], ["--in_memory"], ["--in_memory=no"])] == [None, True, False]
    assert run("--channels_last", "false").run.channels_last is False


@pytest.mark.parametrize("config", CONFIGS)
def test_every_documented_config_field_is_a_flag(config: type) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Script(family_of(config), "Trains."), [f"--{name}_" for name in documented(config)])
    for name in documented(config):  # the nearest name of an unknown one is the flag itself
        assert f"--{name}_; did you mean {name}?" in str(caught.value.code)


@pytest.mark.parametrize("config", CONFIGS)
def test_help_explains_every_flag(config: type, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # an explanation is not broken
    monkeypatch.setenv("HFGEN_COMMAND", "hfgen train it")
    with pytest.raises(SystemExit) as caught:
        parse(Script(family_of(config), "Trains it.", {"learning_rate": 0.125}, ExtraArguments), ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    flags = dict(re.findall(r"^  (-\S+).*?\s{2,}(\S.*)$", shown, flags=re.MULTILINE))
    assert set(flags) == set(re.findall(r"^  (-[^\s,]+)", shown, flags=re.MULTILINE)) - {"-h"} | {"-h,"}
    assert len(flags) > 60
    for name, explanation in flags.items():
        assert not explanation.startswith("-") and len(explanation.split()) >= 2, name
    for name, text in documented(config).items():
        assert " ".join(text.split()) in flags[f"--{name}"]
    assert shown.startswith("usage: hfgen train it [recipe.yaml] [--flag value ...]\n")
    assert "Peak learning rate. (default: 0.125)" in shown
    assert "default: None" not in shown and "(default: )" not in shown


@pytest.mark.parametrize(
    "name", [["--dataset_name", "digits"], ["--dataset_name=digits"], ["--dataset-name", "digits"]]
)
def test_a_flag_that_names_another_dataset_drops_what_the_recipe_says_of_its_own(recipe: Any, name: list[str]) -> None:
    path = recipe(
        "dataset_name: a\ndataset_path: b\ndataset_revision: c\ndataset_config_name: d\n"
        f"dataset_sha256: {'e' * 64}\ntrain_split: f\n"
    )
    data = run(path, "--dataset_mirror", "http://m").data
    assert (data.dataset_name, data.dataset_path, data.dataset_revision, data.dataset_config_name) == tuple("abcd")
    data = run(path, *name, "--dataset_revision", "g").data
    assert (data.dataset_name, data.dataset_path, data.dataset_config_name) == ("digits", None, None)
    assert (data.dataset_sha256, data.dataset_revision, data.train_split) == (None, "g", "f")


@pytest.mark.parametrize(("rank", "count"), [("0", 1), ("1", 0)])
def test_help_is_shown_by_one_process(
    rank: str, count: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0 and capsys.readouterr().out.count("usage: ") == count


def test_all_problems_are_reported_at_once_before_any_work(recipe: Any) -> None:
    path = recipe("learning_rat: 1\nseed: soon\nlogging_steps: 0\n")
    text = refusal(
        path, "--latent_dimm", "3", "--max_train_steps", "many", "--optimizer", "sgd", "--latent_type", "round",
        "--beta", "-1", "--weight_decay", "nan", "--max_train_samples", "0", "--nll_samples", "-5", "--eval_steps",
        "--streaming=maybe", "--learning_rate", "0", "--ema_decay", "1", "--in_memory", "--streaming",
        "--dataset_sha256", "123", "--overwrite_output_dir", "--resume_from_checkpoint", "latest",
        extra=ExtraArguments,
    )  # fmt: skip
    for expected in (
        f"unknown key 'learning_rat' in {path}; did you mean learning_rate?",
        f"{path}: --seed: invalid int value: 'soon'",
        "--logging_steps must be at least 1, got 0",
        "unknown argument --latent_dimm; did you mean latent_dim?",
        "--max_train_steps: invalid int value: 'many'",
        "--optimizer: invalid choice: 'sgd'",
        "latent_type must be one of vector, spatial, got 'round'",
        "beta must be a finite number of at least 0, got -1.0",
        "--weight_decay must be at least 0, got nan",
        "--max_train_samples must be at least 1, got 0",
        "--nll_samples must be at least 0, got -5",
        "--eval_steps: expected one argument",
        "--streaming: Truthy value expected",
        "--learning_rate must be greater than 0, got 0.0",
        "--ema_decay must be at least 0 and less than 1, got 1.0",
        "--in_memory must be false with --streaming",
        "--dataset_sha256 must be 64 hexadecimal digits, got '123'",
        "--resume_from_checkpoint must not be given with --overwrite_output_dir",
        "--output_dir is required",
    ):
        assert expected in text
    assert not Path("out").exists()


def test_misplaced_recipe_is_pointed_out() -> None:
    text = refusal("--output_dir", "out", "vae.yaml")
    assert "unexpected 'vae.yaml' after --output_dir, a recipe comes before all flags" in text
    assert "is required" not in text


def test_unreadable_recipe_is_named(tmp_path: Path, recipe: Any) -> None:
    assert f"there is no recipe {tmp_path / 'absent.yaml'}. Give" in refusal(str(tmp_path / "absent.yaml"))
    assert "must be a mapping of flag names to values, got list" in refusal(recipe("- seed\n"))
    assert "is not valid YAML" in refusal(recipe("seed: [1\n"))
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9\n")
    assert "is not valid YAML" in refusal(str(tmp_path / "latin.yaml"))


def test_recipe_of_hfgen_is_found_by_its_bare_name() -> None:
    for name in ("vae-binarized-mnist", "vae-binarized-mnist.yaml"):
        assert run(name).data.dataset_name is not None
    text = refusal("nope")
    assert "there is no recipe nope. Give a YAML file, or one that comes with hfgen: autoencoder-mnist, " in text


@pytest.mark.parametrize(
    "line", ["seed: 1.5", "seed: true", "learning_rate: [1]", "learning_rate: fast", "streaming: 3",
             "hub_model_id: {a: 1}", "train_split: no", "mixed_precision: fp8", "hidden_channels: [a]"],
)  # fmt: skip
def test_recipe_value_of_another_type_is_refused(recipe: Any, line: str) -> None:
    assert f"{recipe(line)}: --{line.split(':')[0]}: " in refusal(recipe(line), "--output_dir", "out")


def test_image_size_that_follows_from_the_data_is_not_refused_early() -> None:
    assert run("--hidden_channels", "8", "8", "8", "8").model == {"hidden_channels": [8, 8, 8, 8]}
    text = refusal("--output_dir", "out", "--hidden_channels", "8", "8", "--image_size", "30", "20")
    assert "image_size [30, 20] must be divisible by 4" in text


def test_length_is_a_minute_unless_one_is_given() -> None:
    assert run().run.max_train_seconds == 60.0
    assert run("--max_train_steps", "5").run.max_train_seconds is None
    assert run("--num_train_epochs", "0.5").run.max_train_seconds is None


def test_command_repeats_the_run_through_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("sys.argv", ["/somewhere/hfgen/training/train_vae.py"])
    arguments = run("--hub_model_id", "it's", "--dataset_name", "my images; rm -rf $HOME")
    words = shlex.split(arguments.command)
    assert words[:3] == ["accelerate", "launch", "training/train_vae.py"]
    again = parse(Script("vae", "Trains."), words[3:])
    assert again.data.dataset_name == "my images; rm -rf $HOME" and again.run.hub_model_id == "it's"
    monkeypatch.setattr("training.config.parser.__package__", "hfgen.training.config")  # as installed
    assert run().command == "accelerate launch -m hfgen.training.train_vae --output_dir out"


def test_command_has_the_processes_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training/train_vae.py"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    launch = "accelerate launch --multi_gpu --num_processes 2 training/train_vae.py --output_dir out"
    assert run().command == launch
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run().command == f"env ACCELERATE_USE_CPU=true {launch}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")  # several machines, each with a command of its own
    assert run().command == "accelerate launch training/train_vae.py --output_dir out"
    monkeypatch.setenv("HFGEN_COMMAND", "hfgen train vae --num_processes 2")
    assert run("--seed", "1").command == "hfgen train vae --num_processes 2 --seed 1 --output_dir out"


def test_command_to_resume_neither_starts_over_nor_goes_back() -> None:
    assert command_to_resume(run()) == run().command
    overwritten, earlier = (
        run("--overwrite_output_dir"),
        run("--resume_from_checkpoint", "out/checkpoints/step-000001"),
    )
    expected = " --overwrite_output_dir false --resume_from_checkpoint latest"
    assert command_to_resume(overwritten) == overwritten.command + expected
    assert command_to_resume(earlier) == earlier.command + " --resume_from_checkpoint latest"


def test_run_written_as_a_recipe_repeats_it(recipe: Any) -> None:
    first = run("--hidden_channels", "8", "16", "--num_labels", "3", "--dataset_name", "digits", extra=ExtraArguments)
    again = parse(Script("vae", "Trains.", {}, ExtraArguments), [recipe(yaml.safe_dump(as_recipe(first)))])
    assert as_recipe(again) == as_recipe(first)
    assert again.model == {"hidden_channels": [8, 16], "num_labels": 3}
