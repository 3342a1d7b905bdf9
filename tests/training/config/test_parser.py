"""Flags and recipes: what overrides what, what --help tells, and that all problems come at once."""

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
from training.config.flags import Arguments, as_recipe, flag
from training.config.parser import _argument_helps, parse


CONFIGS = [AutoencoderConfig, VAEConfig, GANConfig, GPTConfig]


@dataclass
class ExtraArguments:
    nll_samples: int = flag(100, "Samples for the estimate.", on_resume="free")

    def problems(self) -> list[str]:
        return [] if self.nll_samples >= 0 else [f"--nll_samples must be at least 0, got {self.nll_samples}"]


def run(*argv: str, config: type = VAEConfig, extra: type | None = None, **defaults: Any) -> Arguments:
    return parse(config, "Trains.", defaults, extra, ["--output_dir", "out", *argv])


def refusal(*argv: str, config: type = VAEConfig, extra: type | None = None) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(config, "Trains.", {}, extra, list(argv))
    assert isinstance(caught.value.code, str)  # printed, with exit status 1
    return caught.value.code


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_flag_overrides_recipe_and_recipe_overrides_script(recipe: Any) -> None:
    path = recipe("learning_rate: 2.0\nseed: 2\noutput_dir: from-recipe\n")
    arguments = parse(VAEConfig, "Trains.", {"learning_rate": 1.0, "seed": 1, "ema_decay": 0.5}, None,
                      [path, "--learning_rate", "3"])  # fmt: skip
    assert (arguments.run.learning_rate, arguments.run.seed, arguments.run.ema_decay) == (3.0, 2, 0.5)
    assert arguments.run.output_dir == "from-recipe"


def test_yaml_values_become_what_their_flags_hold(recipe: Any) -> None:
    path = recipe(
        "learning_rate: 1e-3\nnum_train_epochs: 3\nhidden_channels: 8\nimage_size: 16\nreport_to: none\nbeta: 1\n"
        "mixed_precision: no\nmax_train_samples: null\nstreaming: true\n"
    )
    arguments = parse(VAEConfig, "Trains.", {}, None, [path, "--output_dir", "out"])
    assert arguments.run.learning_rate == 0.001
    assert arguments.run.num_train_epochs == 3.0 and isinstance(arguments.run.num_train_epochs, float)
    assert arguments.model == {"hidden_channels": [8], "image_size": [16, 16], "beta": 1.0}
    assert arguments.run.report_to == ["none"]
    assert arguments.run.mixed_precision == "no"
    assert arguments.data.streaming is True and arguments.data.max_train_samples is None


def test_config_fields_are_flags_of_their_type() -> None:
    vae = run("--hidden_channels", "8", "16", "--beta", "2", "--latent_type", "spatial", "--num_labels", "10").model
    assert vae == {"hidden_channels": [8, 16], "beta": 2.0, "latent_type": "spatial", "num_labels": 10}
    gpt = run("--use_bias", "--qk_norm", "false", "--hidden_dropout", "0.1", config=GPTConfig).model
    assert gpt == {"use_bias": True, "qk_norm": False, "hidden_dropout": 0.1}
    assert run("--generator-channels", "8", config=GANConfig).model == {"generator_channels": [8]}
    assert run("--noise_std=0.5", config=AutoencoderConfig).model == {"noise_std": 0.5}
    assert run("--in_memory").data.in_memory is True
    assert run("--in_memory", "false").data.in_memory is False
    assert run("--no_channels_last").run.channels_last is False


@pytest.mark.parametrize("config", CONFIGS)
def test_every_documented_config_field_that_a_flag_can_express_is_one(config: type) -> None:
    documented = set(_argument_helps(inspect.getdoc(config) or "")) - {"rope_parameters"}  # a dict
    with pytest.raises(SystemExit) as caught:
        parse(config, "Trains.", {}, None, [f"--{name}_" for name in documented])
    for name in documented:  # the nearest name of an unknown one is the flag itself
        assert f"--{name}_; did you mean {name}?" in str(caught.value.code)


@pytest.mark.parametrize("config", CONFIGS)
def test_help_explains_every_flag(config: type, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # an explanation is not broken
    with pytest.raises(SystemExit) as caught:
        parse(config, "Trains it.", {"learning_rate": 0.125}, ExtraArguments, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    flags = dict(re.findall(r"^  (-\S+).*?\s{2,}(\S.*)$", shown, flags=re.MULTILINE))
    assert set(flags) == set(re.findall(r"^  (-[^\s,]+)", shown, flags=re.MULTILINE)) - {"-h"} | {"-h,"}
    assert len(flags) > 60
    for name, explanation in flags.items():
        assert not explanation.startswith("-") and len(explanation.split()) >= 2, name
    for name, text in _argument_helps(inspect.getdoc(config) or "").items():
        if name != "rope_parameters":
            assert text.replace("%%", "%") in flags[f"--{name}"]
    assert "Peak learning rate. (default: 0.125)" in shown
    assert "default: None" not in shown


def test_all_problems_are_told_at_once_before_any_work(recipe: Any) -> None:
    path = recipe("learning_rat: 1\nseed: soon\nlogging_steps: 0\n")
    text = refusal(
        path, "--latent_dimm", "3", "--max_train_steps", "many", "--optimizer", "sgd", "--latent_type", "round",
        "--beta", "-1", "--weight_decay", "nan", "--max_train_samples", "0", "--nll_samples", "-5", "--eval_steps",
        "--streaming=maybe", extra=ExtraArguments,
    )  # fmt: skip
    for expected in (
        f"unknown key 'learning_rat' in {path}; did you mean learning_rate?",
        f"seed in {path} must be int, got 'soon'",
        "--logging_steps must be above 0, got 0",
        "unknown argument --latent_dimm; did you mean latent_dim?",
        "--max_train_steps: invalid int value: 'many'",
        "--optimizer: invalid choice: 'sgd'",
        "latent_type must be one of vector, spatial, got 'round'",
        "beta must be a finite number of at least 0, got -1.0",
        "--weight_decay must be at least 0, got nan",
        "--max_train_samples must be above 0, got 0",
        "--nll_samples must be at least 0, got -5",
        "--eval_steps: expected one argument",
        "--streaming: Truthy value expected",
        "--output_dir must be given",
    ):
        assert expected in text
    assert not Path("out").exists()


def test_a_recipe_anywhere_but_first_is_pointed_out() -> None:
    text = refusal("--output_dir", "out", "vae.yaml")
    assert "unexpected 'vae.yaml' after --output_dir, a recipe comes before all flags" in text
    assert "is required" not in text


def test_recipe_that_cannot_be_read_is_named(tmp_path: Path, recipe: Any) -> None:
    assert f"there is no recipe {tmp_path / 'absent.yaml'}" in refusal(str(tmp_path / "absent.yaml"))
    assert "must be a mapping of flag names to values, got list" in refusal(recipe("- seed\n"))
    assert "is not valid YAML" in refusal(recipe("seed: [1\n"))
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"output_dir: caf\xe9\n")
    assert "is not valid YAML" in refusal(str(path))


@pytest.mark.parametrize(
    "line", ["seed: 1.5", "seed: true", "seed: null", "learning_rate: [1]", "learning_rate: fast", "streaming: 1",
             "hub_model_id: 3", "report_to: [1]", "mixed_precision: fp8", "seed: {a: 1}"],
)  # fmt: skip
def test_recipe_value_of_another_type_is_refused(recipe: Any, line: str) -> None:
    assert f"{line.split(':')[0]} in {recipe(line)} must be " in refusal(recipe(line), "--output_dir", "out")


def test_image_size_that_is_known_with_the_data_is_not_refused_before() -> None:
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
    arguments = run("--dataset_name", "my images; rm -rf $HOME", "--hub_model_id", "it's")
    words = shlex.split(arguments.command)
    assert words[:3] == ["accelerate", "launch", "training/train_vae.py"]
    assert parse(VAEConfig, "Trains.", {}, None, words[3:]).data.dataset_name == "my images; rm -rf $HOME"
    assert words[-1] == "it's"


def test_command_has_the_processes_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training/train_vae.py"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    assert run().command.startswith(
        "accelerate launch --multi_gpu --num_processes 2 training/train_vae.py --output_dir"
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert run().command.startswith("env ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ")


def test_a_run_written_as_a_recipe_repeats_it(recipe: Any) -> None:
    first = run("--hidden_channels", "8", "16", "--num_labels", "3", "--dataset_name", "digits", extra=ExtraArguments)
    again = parse(VAEConfig, "Trains.", {}, ExtraArguments, [recipe(yaml.safe_dump(as_recipe(first)))])
    assert as_recipe(again) == as_recipe(first)
    assert again.model == {"hidden_channels": [8, 16], "num_labels": 3}
