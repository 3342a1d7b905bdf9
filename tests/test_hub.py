"""To the Hub and back, with the real client against the test Hub. Pushes and faults are in hub_checks.py.

`huggingface_hub` reads its address when it is imported, so clients are processes; what can share one does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from .hub.fixture import HubProcess, running_hub
from .hub_checks import CHECKS
from .runs import FAMILIES, ROOT, copy_run, trained_runs


# Loads models and saves their outputs for fixed inputs; "blocked" means that hfgen cannot be imported.
ANSWER = """
import json, sys
if "blocked" in sys.argv:
    sys.modules["hfgen"] = None
else:
    import hfgen
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

answers, trusted = {}, "blocked" in sys.argv
for family, (source, revision) in json.loads(sys.argv[1]).items():
    auto = AutoModelForCausalLM if family == "gpt" else AutoModel
    model = auto.from_pretrained(source, revision=revision, trust_remote_code=trusted)
    inputs = torch.linspace(0, 1, 4 * 64).reshape(4, 1, 8, 8)
    with torch.no_grad():
        if family == "autoencoder":
            answer = model(inputs).reconstruction
        elif family == "codec":
            answer = model.decode_symbols(model.encode_symbols(inputs))
        elif "vae" in family:
            answer = torch.cat([model.decode(model.encode(inputs).latent_dist.mode()).sample, model.sample(
                4, generator=torch.Generator().manual_seed(0))])
        elif family == "gan":
            answer = torch.cat([model.sample(4, generator=torch.Generator().manual_seed(0)).flatten(),
                                model.discriminate(inputs)])
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trusted)
            answer = model(**tokenizer("The quick brown", return_tensors="pt")).logits
    answers[family] = answer.contiguous()
save_file(answers, sys.argv[2])
"""

# Pushes folders, pushes them again, and then something newer, which a pinned revision does not see.
PUSH_TWICE = """
import sys
from huggingface_hub import HfApi
from hfgen.cli import main
for _ in range(2):
    for folder in sys.argv[1:]:
        assert main(["push", folder, "alice/" + folder]) == 0
for folder in sys.argv[1:]:
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="alice/" + folder)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with running_hub(tmp_path_factory.mktemp("hub")) as process:
        process.env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        yield process


@pytest.fixture(scope="module")
def outcomes(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    command = [sys.executable, "-m", "tests.hub_checks", hub.root, hub.url, trained_runs(),
               tmp_path_factory.mktemp("checks")]  # fmt: skip
    result = hub.run([str(word) for word in command], check=False, timeout=400)
    for token in hub.tokens.values():
        assert token not in result.stdout + result.stderr
    lines = [json.loads(line.removeprefix("check: ")) for line in result.stdout.splitlines() if line[:7] == "check: "]
    assert lines, result.stderr
    return {line["name"]: line["error"] for line in lines}


@pytest.mark.parametrize("name", CHECKS)
def test_client(outcomes: dict[str, str | None], name: str) -> None:
    assert name in outcomes, f"the process of the checks ended before {name}"
    assert outcomes[name] is None, outcomes[name]


def test_pushes_end_with_their_process(outcomes: dict[str, str | None]) -> None:
    assert "threads_end" not in outcomes


def answers(
    hub: HubProcess, sources: dict[str, tuple[str, str | None]], target: Path, *flags: str, **options
) -> bytes:
    hub.run([sys.executable, "-c", ANSWER, json.dumps(sources), str(target), *flags], cwd=target.parent, **options)
    return target.read_bytes()


def local_answers(sources: dict[str, tuple[str, str | None]], target: Path) -> bytes:
    """By hfgen's own classes, in this process, which has imported everything."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes: sums depend on it
    with mock.patch.object(sys, "argv", ["", json.dumps(sources), str(target)]):
        exec(ANSWER, {})
    torch.set_num_threads(threads)
    return target.read_bytes()


@pytest.mark.slow
def test_round_trip_of_every_family(hub: HubProcess, tmp_path: Path) -> None:
    """Push, delete, load without hfgen from the Hub, at a revision, and again without a network: equal answers."""
    folders = {family: copy_run(family, tmp_path / f"round-{family}") for family in FAMILIES}
    expected = local_answers({family: (str(folder), None) for family, folder in folders.items()}, tmp_path / "local")
    said = hub.run([sys.executable, "-c", PUSH_TWICE, *(f.name for f in folders.values())], cwd=tmp_path).stdout
    revisions = {
        family: said.split(f"alice/{folder.name} already held everything, at commit ")[1][:40]
        for family, folder in folders.items()
    }
    for folder in folders.values():
        shutil.rmtree(folder)

    pinned = {family: (f"alice/{folder.name}", revisions[family]) for family, folder in folders.items()}
    fresh = hub.client_env(OMP_NUM_THREADS="1")
    assert answers(hub, pinned, tmp_path / "remote", "blocked", env=fresh) == expected
    hub.clear_requests()
    offline = fresh | {"HF_HUB_OFFLINE": "1"}
    assert answers(hub, pinned, tmp_path / "offline", "blocked", env=offline) == expected
    assert not hub.requests()


def test_two_runs_push_to_one_repository_at_once(hub: HubProcess, tmp_path: Path) -> None:
    """Both end in order, the history shows both, and no commit mixes them."""
    one, other = copy_run("vae", tmp_path / "one"), copy_run("gan", tmp_path / "other")
    # Both have read the same head before one of them commits.
    hub.inject("slow", path="alice/shared/commit/", method="POST", seconds=1.0, times=2)
    command = [sys.executable, "-m", "hfgen", "push"]
    pushes = [
        subprocess.Popen([*command, str(folder), "alice/shared"], env=hub.env, stderr=subprocess.PIPE, text=True)
        for folder in (one, other)
    ]
    for process in pushes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    code = """if True:
        import json
        from huggingface_hub import HfApi, hf_hub_download
        for commit in HfApi().list_repo_commits("alice/shared")[:-1]:
            read = lambda name: json.load(open(hf_hub_download("alice/shared", name, revision=commit.commit_id)))
            files = HfApi().list_repo_files("alice/shared", revision=commit.commit_id)
            print(read("config.json")["model_type"], read("results.json")["model_type"], "model.safetensors" in files)
    """
    history = hub.run_python(code).stdout.split("\n")[:-1]
    hub.clear_faults()
    assert sorted(history) == ["hfgen_gan hfgen_gan True", "hfgen_vae hfgen_vae True"]


def test_no_token_was_written_anywhere(hub: HubProcess, outcomes: dict[str, str | None]) -> None:
    secrets = [token.encode() for token in hub.tokens.values()]
    found = [
        path
        for home in [hub.root, *hub.root.parent.glob("client-*")]
        for path in home.rglob("*")
        if path.is_file() and path.name != "accounts.json" and any(secret in path.read_bytes() for secret in secrets)
    ]
    assert not found
