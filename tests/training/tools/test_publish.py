"""The collection of the recipes' models, published on the test Hub."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.fixture import HubProcess, running_hub
from tests.runs import FAMILIES, ROOT, copy_run, trained_runs
from training.tools.collect import collect
from training.tools.publish import find_finished, find_problems


PUBLISH = (
    "import json, sys; from training.tools.publish import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with running_hub(tmp_path_factory.mktemp("hub")) as process:
        process.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        yield process


def publish(hub: HubProcess, *commands: list[str], cwd: Path, check: bool = True):
    return hub.run([sys.executable, "-c", PUBLISH, json.dumps(commands)], cwd=cwd, check=check)


def commits(hub: HubProcess, *repo_ids: str) -> list[list[str]]:
    """Titles of the commits of each repository, the newest first."""
    code = "import json, sys; from huggingface_hub import HfApi; print(json.dumps([[c.title for c in "
    code += "HfApi().list_repo_commits(name)] for name in sys.argv[1:]]))"
    return json.loads(hub.run_python(code, *repo_ids).stdout)


@pytest.mark.slow
def test_the_collection_is_published_once(hub: HubProcess, tmp_path: Path) -> None:
    shutil.copytree(trained_runs(), tmp_path / "runs")
    (tmp_path / "runs" / "unfinished").mkdir()
    said = publish(hub, ["--namespace", "acme"], ["--namespace", "acme"], cwd=tmp_path).stdout
    assert said.count("is published") == said.count("has not changed") == len(FAMILIES)
    assert f"Published {len(FAMILIES)} of {len(FAMILIES)}." in said
    assert commits(hub, *(f"acme/{family}" for family in FAMILIES)) == [["Upload with hfgen", "initial commit"]] * len(
        FAMILIES
    )
    code = (
        "import sys; from huggingface_hub import hf_hub_download; print(open(hf_hub_download('acme/vae', 'README.md'"
    )
    card = hub.run_python(code + ")).read())").stdout
    assert 'repo = "acme/vae"' in card and "name: vae\n" in card


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(hub: HubProcess, tmp_path: Path) -> None:
    runs = [copy_run("vae", tmp_path / "one"), copy_run("vae", tmp_path / "two")]
    hub.inject("status", path="/acme/one/commit/", status=403, times=None)
    result = publish(hub, ["--namespace", "acme", *map(str, runs)], cwd=tmp_path, check=False)
    hub.clear_faults()
    assert result.returncode == 1
    assert "Published 1 of 2. Failed: acme/one." in result.stdout and f"hfgen push {runs[0]} acme/one" in result.stderr
    assert commits(hub, "acme/one", "acme/two") == [["initial commit"], ["Upload with hfgen", "initial commit"]]


def test_nothing_is_published_if_one_folder_has_a_problem(tmp_path: Path) -> None:
    good, bad, unmeasured = (copy_run("vae", tmp_path / name) for name in ("good", "bad", "unmeasured"))
    same = copy_run("vae", tmp_path / "other" / "good")
    (bad / "model.safetensors").write_bytes(b"")
    (unmeasured / "results.json").unlink()
    damaged, missing, double = find_problems([good, bad, unmeasured, same])
    assert "damaged" in damaged and "results.json is missing" in missing and "two named good" in double
    assert find_finished(tmp_path) == [bad, good]


def test_cards_are_collected_with_their_pictures(tmp_path: Path) -> None:
    for family in FAMILIES:
        card = collect(trained_runs() / family, tmp_path / "cards") / "README.md"
        pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.read_text())
        assert pictures and all((card.parent / picture).is_file() for picture in pictures)
