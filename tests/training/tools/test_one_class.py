"""The one-class table: what is trained on, what the baselines compute, and how it reads. Trainings are played."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfgen import AutoencoderConfig, AutoencoderModel
from hfgen.models.anomaly import GaussianDistance, edge_maps
from training.tools import one_class
from training.tools.measured_runs import AVX2
from training.tools.one_class import BASELINES, OURS, edges, isolation_forest, neighbors, pca_residual, table


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The trainings that were started; an untrained model with a detector of its class is saved instead."""
    found: list[SimpleNamespace] = []

    def run_training(
        family: str, recipe: list[str], output_dir: Path, flags: list[str], environment: dict[str, str]
    ) -> dict[str, Any]:
        named = dict(zip(flags[::2], flags[1::2], strict=True))
        found.append(SimpleNamespace(family=family, flags=named, environment=environment))
        torch.manual_seed(0)
        sizes = {"image_size": 8, "hidden_channels": [4], "hidden_size": 16, "latent_dim": 4, "anomaly_dim": 32}
        model = AutoencoderModel(AutoencoderConfig(**sizes)).eval()
        images = one_class.load(named["--dataset_name"])
        model.fit_anomaly([images.normal(images.classes.index(named["--normal_label"]))])
        model.save_pretrained(output_dir)
        return {"steps": 7, "seconds_trained": 1.0}

    monkeypatch.setattr(one_class, "run_training", run_training)
    return found


def run_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> dict[str, Any]:
    """Runs the command on the digits; returns what it wrote."""
    path = tmp_path / "one_class.json"
    monkeypatch.setattr(one_class, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["one_class.py", "--dataset", "digits", "--figures", str(path), *words])
    one_class.main()
    return json.loads(path.read_text())


def test_a_model_sees_its_own_class_and_all_methods_judge_all_test_images(
    trainings: list[SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run_tool(monkeypatch, tmp_path, "--classes", "3", "--seconds", "5", "--learning_rate", "1e-3", "--avx2")

    (one,) = trainings
    assert one.family == "autoencoder"
    assert one.flags["--dataset_name"] == "digits" and one.flags["--normal_label"] == "3"
    assert one.flags["--max_train_seconds"] == "5" and one.flags["--learning_rate"] == "1e-3"
    assert one.environment == AVX2
    figures = found["digits"]["AVX2 alone"]["3"]
    assert set(figures["auroc"]) == {OURS, *BASELINES} == set(figures["seconds"])
    assert all(90 < value <= 100 for value in figures["auroc"].values()), "a 3 is easy to tell from other digits"
    assert figures["training"]["steps"] == 7 and found["machine"]["cores"] >= 1
    assert "| edges, Mahalanobis | **" in capsys.readouterr().out


def test_classes_are_added_to_those_that_were_measured(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = run_tool(monkeypatch, tmp_path, "--classes", "0")
    after = run_tool(monkeypatch, tmp_path, "--classes", "1")

    assert sorted(after["digits"]["all instructions"]) == ["0", "1"]
    assert after["digits"]["all instructions"]["0"] == before["digits"]["all instructions"]["0"]


def test_a_training_that_fails_is_named_and_the_others_are_measured(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play = one_class.run_training
    outcomes = iter([ValueError("hfgen train must succeed"), None])

    def run_training(*how: Any) -> dict[str, Any]:
        if error := next(outcomes):
            raise error
        return play(*how)

    monkeypatch.setattr(one_class, "run_training", run_training)
    with pytest.raises(SystemExit, match=r"^0: hfgen train must succeed$"):
        run_tool(monkeypatch, tmp_path, "--classes", "0", "1")

    assert list(json.loads((tmp_path / "one_class.json").read_text())["digits"]["all instructions"]) == ["1"]


def test_unknown_classes_are_refused_before_anything_is_trained(
    trainings: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"--classes must be from 0 to 9, got 10, -1\."):
        run_tool(monkeypatch, tmp_path, "--classes", "3", "10", "-1")
    assert trainings == []


# --------------------------------------------------------------------------------------------------------- baselines


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_neighbors_are_five_and_at_the_distance_between_images() -> None:
    steps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 9.0])
    normal = steps.view(6, 1, 1, 1).expand(6, 1, 2, 2)

    found = neighbors(normal, torch.zeros(1, 1, 2, 2))

    assert found == pytest.approx([2 * (0.0 + 0.1 + 0.2 + 0.3 + 0.4) / 5])


def test_what_32_components_hold_has_no_residual() -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    weights = torch.rand(100, 32, generator=torch.Generator().manual_seed(1))
    normal = (weights @ basis[:32]).view(100, 1, 8, 8)
    beside = normal[:1] + 0.5 * basis[40].view(1, 1, 8, 8)

    found = pca_residual(normal, torch.cat([normal[:1], beside]))

    assert found == pytest.approx([0, 0.25], abs=1e-5)


def test_edges_are_judged_as_the_detector_judges_them() -> None:
    """The baseline is the detector without reconstructions: distances are the same, up to a factor."""
    normal, test = images(40, 0), images(5, 1)
    distance = GaussianDistance(8 * 4 * 4, rank=8 * 4 * 4)
    features = edge_maps(normal, 1).flatten(1).double()
    distance.fit(features.mean(dim=0), features.T.cov())
    expected = distance(edge_maps(test, 1).flatten(1)).square().sum(dim=1).numpy()

    found = edges(normal, test)

    np.testing.assert_allclose(found, expected * found[0] / expected[0], rtol=1e-3)


def test_an_image_far_from_all_is_isolated_early_and_repeatably() -> None:
    normal, strange = images(100, 0), torch.full((1, 1, 8, 8), 5.0)

    found = isolation_forest(normal, torch.cat([normal[:5], strange]))

    assert found.argmax() == 5 and np.array_equal(found, isolation_forest(normal, torch.cat([normal[:5], strange])))


# ------------------------------------------------------------------------------------------------------------- table


def test_table_has_the_mean_and_the_worst_class() -> None:
    def figures(name: str, ours: float) -> dict[str, Any]:
        return {"name": name, "auroc": {OURS: ours, **dict.fromkeys(BASELINES, 90.0)}}

    lines = table({"10": figures("ten", 97.5), "2": figures("two", 99.0)}).splitlines()

    assert lines[0] == "| AUROC, % | mean | worst | two | ten |"
    assert lines[2] == f"| {OURS} | **98.25** | 97.50 | 99.0 | 97.5 |"
    assert len(lines) == 3 + len(BASELINES)
