"""Cards: what they say is what was measured, and the code in them works as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from huggingface_hub import ModelCard

from hfgen.cards import headline, name_repository, render_card, write_card
from hfgen.hub import select_files
from hfgen.notebook import name_notebook, render_notebook

from .hub.card_metadata import check_card
from .runs import FAMILIES, conditional_color_models, copy_run, trained_runs


PIPELINE_TAGS = {
    "autoencoder": "image-feature-extraction",
    "vae": "unconditional-image-generation",
    "ladder_vae": "unconditional-image-generation",
    "codec": "image-to-image",
    "gan": "unconditional-image-generation",
    "gpt": "text-generation",
}
CODE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# Executes each file as it is, where hfgen cannot be imported.
EXECUTE = """
import sys
sys.modules["hfgen"] = None
for path in sys.argv[1:]:
    exec(compile(open(path).read(), path, "exec"), {"__name__": "__main__"})
    print("worked:", path)
"""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def code_of_notebook(text: str) -> str:
    """The code of its cells; the one that installs what is there already is left out."""
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].startswith("%pip install") and "\n%" not in "\n".join(cells)
    return "\n".join(cells[1:])


def card_of(family: str, **options) -> str:
    return render_card(trained_runs() / family, **options)


def test_the_metadata_are_valid(family):
    report = check_card(card_of(family))
    assert not report.errors and not report.warnings
    data = ModelCard(card_of(family)).data
    assert data.pipeline_tag == PIPELINE_TAGS[family]
    assert (data.library_name, data.license) == ("transformers", "apache-2.0")
    assert {"hfgen", "digits" if family != "gpt" else "python-docs"} <= set(data.tags)


def test_every_metric_is_in_the_metadata_and_in_the_table(family):
    results = json.loads((trained_runs() / family / "results.json").read_text())
    card = card_of(family)
    eval_results = ModelCard(card).data.eval_results
    measured = {name: value for name, value in results["metrics"].items() if value is not None}
    # So short a training leaves no quality of a codec that takes half a bit per pixel.
    assert set(results["metrics"]) - set(measured) <= {"psnr_at_half_bpp"}
    assert {result.metric_type: result.metric_value for result in eval_results} == pytest.approx(measured, abs=1e-6)
    assert {result.dataset_split for result in eval_results} == {results["split"]}
    table = card.partition("## Results")[2].partition("## Training")[0]
    assert table.count("\n| ") == len(measured) + 1


@pytest.mark.parametrize(
    ("arguments", "unit"),
    [({}, "character"), ({"train_bpe": None}, "character"), ({"train_bpe": 512}, "token"),
     ({"tokenizer_name": "gpt2"}, "token")],
)  # fmt: skip
def test_only_a_loss_per_character_is_called_so(arguments, unit):
    results = {"model_type": "hfgen_gpt", "metrics": {"loss": 2.0}, "arguments": arguments}
    assert headline(results) == [("loss", f"validation loss, nats per {unit}", "2.000")]


def test_a_number_that_was_not_measured_is_not_in_the_card(tmp_path):
    run = copy_run("vae", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    del results["metrics"]["kl_loss"], results["seconds_trained"], results["num_parameters"]
    results["metrics"]["nll"] = None
    (run / "results.json").write_text(json.dumps(results))
    card = render_card(run)
    assert "kl_loss" not in card and "Negative log-likelihood" not in card
    assert "| Time |" not in card and "parameters" not in card.partition("## Use")[0]
    (run / "results.json").write_text("{}")
    assert not re.search(r"\d", render_card(run).partition("## Results")[2].partition("## Intended")[0])


def test_the_likelihood_has_its_standard_error_and_how_it_was_estimated(tmp_path):
    run = copy_run("vae", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["metrics"]["nll"] = 85.3127
    results["metrics_details"] = {
        "nll_standard_error": 0.0312, "nll_samples": 1000, "nll_images": 700, "nll_other_images": 9300,
        "nll_other_samples": 10, "nll_seconds": 28.6,
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    card = " ".join(render_card(run).split())
    assert "| Negative log-likelihood | 85.31 ± 0.03 |" in card
    assert "IW-1000 on all 10,000 images, estimated: IW-10 on all of them" in card
    assert "of which 700 have 1000 samples each" in card and "The estimate took 29 s." in card
    results["metrics_details"] |= {"nll_standard_error": 0.0042, "nll_images": 10_000, "nll_other_images": 0}
    (run / "results.json").write_text(json.dumps(results))
    card = " ".join(render_card(run).split())
    assert "| 85.313 ± 0.004 |" in card and "IW-1000 on all 10,000 images, each with 1000 samples." in card
    results["metrics"]["nll"] = None
    (run / "results.json").write_text(json.dumps(results))
    assert "IW-1000" not in render_card(run).partition("## Results")[2].partition("## Training")[0]


def test_an_anomaly_detector_says_what_is_normal_and_where_its_threshold_comes_from(tmp_path):
    run = copy_run("autoencoder", tmp_path / "run")
    assert "## Anomaly detection" not in render_card(run) and "is_anomaly" not in render_card(run)
    results, config = (json.loads((run / name).read_text()) for name in ("results.json", "config.json"))
    classes = [
        {"name": "3", "images": 1010, "is_normal": False, "alarms": 0.875, "auroc": 0.98765},
        {"name": "8|B", "images": 974, "is_normal": True, "alarms": 0.0123},
    ]
    details = {"normal_labels": ["8|B"], "held_out_images": 585, "false_alarm_rate_wanted": 0.01, "classes": classes,
               "anomaly_threshold": 0.01234567, "anomaly_map_threshold": 0.5, "worst_class": "3"}  # fmt: skip
    results |= {"metrics": results["metrics"] | {"auroc": 0.98765}, "metrics_details": details}
    (run / "results.json").write_text(json.dumps(results))
    (run / "config.json").write_text(json.dumps(config | {"anomaly_threshold": 0.01234567}))
    (run / "samples" / "step-000002-anomalies.png").write_bytes(b"")
    card = render_card(run)
    assert not check_card(card).errors
    assert "| `3` | 1,010 | 87.5% | 0.9877 |\n| `8\\|B` (normal) | 974 | 1.2% |  |\n" in card
    assert (
        "whether the score is above the threshold, 0.01235" in card and "(samples/step-000002-anomalies.png)" in card
    )
    text = " ".join(card.split())
    assert "if its score is above 0.01235" in text and "the scores of 585 normal images that were held out" in text
    assert "too few to show so small a share" not in text
    results["metrics_details"] |= {"held_out_images": 49, "normal_labels": ["all"], "classes": []}
    text = " ".join(render_card(run, results=results).split())
    assert "Every training image counts as normal." in text and "up to 0.02 of other normal images" in text
    assert "| Class |" not in text


def test_what_could_not_be_measured_is_said_with_its_reason(tmp_path):
    run = copy_run("gan", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    reasons = {"recall": "too few images", "coverage": "too few images", "auroc": "there are no anomalies"}
    results["metrics"] |= dict.fromkeys(reasons)
    (run / "results.json").write_text(json.dumps({**results, "metrics_missing": reasons}))
    card = render_card(run)
    assert "Not measured: Recall, Coverage (too few images).\n\nNot measured: AUROC (there are no anomalies)." in card
    assert not {"recall", "auroc"} & {result.metric_type for result in ModelCard(card).data.eval_results}
    (run / "results.json").write_text(json.dumps({"metrics": {"recall": None}, "metrics_missing": reasons}))
    assert "Nothing was measured.\n\nNot measured: Recall" in render_card(run)


def test_the_training_command_is_the_one_that_ran(family):
    results = json.loads((trained_runs() / family / "results.json").read_text())
    assert f"```bash\n{results['command']}\n```" in card_of(family)


def test_pictures_are_in_the_repository(family):
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card_of(family)):
        assert (trained_runs() / family / name).is_file()
        assert name in select_files(trained_runs() / family)[0]
    shown = "```text" if family == "gpt" else "samples/step-000002.png"
    assert shown in card_of(family) and "plots/loss.png" in card_of(family)


def test_card_of_a_vae_shows_the_newest_pictures_that_are_there(tmp_path):
    run = copy_run("vae", tmp_path / "run")
    names = ["reconstructions", "interpolation", "traversal"]
    for name in names:
        assert re.search(rf"^!\[.+\]\(samples/step-000002-{name}\.png\)\n\n\*.+\*$", render_card(run), re.M | re.S)
    (run / "samples" / "step-000002-traversal.png").unlink()
    card = render_card(run)
    assert "reconstructions.png" in card and "interpolation.png" in card and "traversal" not in card
    (run / "samples" / "step-000003.png").write_bytes(b"")  # as runs left it that drew nothing else
    card = render_card(run)
    assert "step-000003.png" in card and "step-000002" not in card and "What the latents hold" not in card


def test_the_code_works_where_hfgen_is_not_installed(tmp_path):
    """All cards and notebooks in one interpreter; what they load from is the folder, in the place of a repository."""
    scripts = []
    for run in [*(trained_runs() / name for name in FAMILIES), *conditional_color_models(tmp_path)]:
        script = tmp_path / f"{run.name}.py"
        script.write_text("".join(CODE.findall(render_card(run, repo_id=str(run)))))
        assert "from_pretrained(repo" in script.read_text()
        notebook = tmp_path / f"{run.name}_notebook.py"
        notebook.write_text(code_of_notebook(render_notebook(run, str(run))))
        assert "from_pretrained(repo" in notebook.read_text()
        scripts += [script, notebook]
    result = subprocess.run(
        [sys.executable, "-c", EXECUTE, *map(str, scripts)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("worked:") == len(scripts)


def test_a_local_dataset_is_not_claimed_to_be_on_the_hub(tmp_path):
    run = copy_run("vae", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    for name, expected in {"../data/mnist": None, "ylecun/mnist": "ylecun/mnist"}.items():
        (run / "results.json").write_text(json.dumps({**results, "dataset": name, "dataset_revision": "abc"}))
        data = ModelCard(render_card(run)).data
        assert data.datasets == ([expected] if expected else None)
        assert {result.dataset_type for result in data.eval_results} == {expected or "mnist"}
        assert {result.dataset_revision for result in data.eval_results} == {"abc"}
        assert "../data" not in render_card(run)


def test_a_dataset_at_a_url_is_named_linked_and_pinned(tmp_path):
    run = copy_run("gpt", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    for url, name in {
        "https://example.org/data/tinyshakespeare/input.txt": "tinyshakespeare",
        "https://example.org/books.parquet?download=1": "books.parquet",
        "https://example.org/input.txt": "input.txt",
    }.items():
        pinned = {"dataset": url, "dataset_revision": f"sha256:{'a' * 64}"}
        (run / "results.json").write_text(json.dumps({**results, **pinned}))
        card = render_card(run)
        assert f"[{name}]({url})" in card and f"of `{name}`, revision `sha256:{'a' * 64}`" in " ".join(card.split())
        data = ModelCard(card).data
        assert data.datasets is None and {result.dataset_name for result in data.eval_results} == {name}


def test_a_quoted_text_cannot_break_out_of_its_block(tmp_path):
    run = copy_run("gpt", tmp_path / "run")
    (run / "samples" / "step-000009.txt").write_text(
        "\x1b[31mA\n```\n## Not a heading {{ config }}\n---\n" + "b" * 5000
    )
    card = render_card(run)
    assert "````text\n[31mA\n```\n## Not a heading {{ config }}\n---\n" in card
    assert card.count("b" * 100) < 7 and "\x1b" not in card


def test_the_card_names_its_repository(tmp_path):
    run = copy_run("vae", tmp_path / "vae-mine")
    assert 'repo = "vae-mine"' in write_card(run).read_text()
    card = write_card(run, "alice/digits").read_text()
    assert 'repo = "alice/digits"' in card and "# digits" in card
    assert name_repository(card + "\nMy own words.\n", "bob/x") == (
        card.replace('repo = "alice/digits"', 'repo = "bob/x"') + "\nMy own words.\n"
    )


def test_an_unfinished_run_says_so(tmp_path):
    run = copy_run("gan", tmp_path / "run")
    results = json.loads((run / "results.json").read_text()) | {"finished": False, "steps": 500}
    assert "Training is still in progress" in render_card(run, results=results)
    assert "Training is still in progress" not in render_card(run)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [("results.json", None, "missing"), ("config.json", None, "missing"), ("results.json", "{", "damaged"),
     ("config.json", "[]", "JSON object"), ("config.json", '{"model_type": "bert"}', "'bert'")],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, name: str, content: str | None, text: str):
    run = copy_run("vae", tmp_path / "run")
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(ValueError, match=text):
        write_card(run)
    assert not (run / ".README.md").exists()


COLAB = "https://colab.research.google.com/#fileId=https://huggingface.co/{}/blob/main/notebook.ipynb"


def test_the_button_appears_once_the_repository_is_known():
    unknown = card_of("vae")
    assert "colab.research" not in unknown and "# vae\n\n<!-- " in unknown
    known = card_of("vae", repo_id="me/vae")
    assert f"]({COLAB.format('me/vae')})\n" in known and "<!-- " not in known
    for card in (unknown, known):
        pushed = name_repository(card, "you/vae", has_notebook=True)
        assert pushed.count("colab.research.google.com/#") == 1 and COLAB.format("you/vae") in pushed
        assert pushed.count("![Open in Colab]") == 1 and "<!-- " not in pushed
    assert "colab" not in name_repository(unknown, "you/vae")


def test_the_notebook_is_written_with_the_card_and_follows_its_repository(tmp_path):
    run = copy_run("gan", tmp_path / "run")
    (run / "notebook.ipynb").unlink(missing_ok=True)
    write_card(run, "me/gan")
    text = (run / "notebook.ipynb").read_text()
    assert "notebook.ipynb" in select_files(run)[0] and not (run / ".notebook.ipynb").exists()
    assert 'repo = "me/gan"' in code_of_notebook(text) and "[card](https://huggingface.co/me/gan)" in text
    moved = name_notebook(text, "you/other")
    assert 'repo = "you/other"' in code_of_notebook(moved) and "me/gan" not in moved.replace("# gan", "")
    assert name_notebook(text, "me/gan") == text
    assert name_notebook("no notebook", "me/gan") == "no notebook"


def test_the_notebook_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"must be one of .*hfgen_vae.*got 'bert'"):
        render_notebook(tmp_path, "me/bert")
