"""An explorer as a Space, on the Hub of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from hfgen.demo.space import render_card
from tests.hub.fixture import running_hub


PUSH = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download
from hfgen.demo.space import push_space

pushed = push_space(sys.argv[1], "alice/explorer")
again = push_space(sys.argv[1], "alice/explorer")
space = HfApi().space_info("alice/explorer")
second = push_space(sys.argv[2], "alice/explorer")
page = hf_hub_download("alice/explorer", "index.html", repo_type="space")
print(json.dumps({
    "url": pushed.url, "new": [pushed.is_new, again.is_new, second.is_new], "sdk": space.sdk,
    "first": [entry.rfilename for entry in space.siblings],
    "second": [entry.rfilename for entry in HfApi().space_info("alice/explorer").siblings],
    "commits": len(HfApi().list_repo_commits("alice/explorer", repo_type="space")), "page": open(page).read(),
}))
"""


def test_a_space_is_pushed_as_one_commit(tmp_path: Path) -> None:
    about = {"title": "vae", "view": "latents"}
    for name, files in (("first", ["onnx/decoder_model.onnx", "old.js"]), ("second", ["onnx/generator_model.onnx"])):
        for file in ("index.html", *files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{file} of {name}")
        (tmp_path / name / "README.md").write_text(render_card(about, "me/vae"))

    with running_hub(tmp_path / "hub") as hub:
        done = hub.run_python(PUSH, str(tmp_path / "first"), str(tmp_path / "second"))
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["url"].endswith("/spaces/alice/explorer") and found["new"] == [True, False, True]
    assert {"index.html", "onnx/decoder_model.onnx", "old.js", "README.md"} <= set(found["first"])
    assert set(found["first"]) - set(found["second"]) == {"onnx/decoder_model.onnx", "old.js"}
    assert found["page"] == "index.html of second" and found["commits"] == 3  # with that of the repository itself


def test_the_card_says_how_to_serve_the_space() -> None:
    card = render_card({"title": "me/vae", "view": "latents"}, "me/vae")
    data = yaml.safe_load(card.split("---")[1])

    assert (data["sdk"], data["app_file"], data["models"]) == ("static", "index.html", ["me/vae"])
    assert data["title"] == "vae explorer"
    assert "models" not in yaml.safe_load(render_card({"title": "vae", "view": "text"}, "runs/x/vae").split("---")[1])
