"""hfgen.convert.folders: a folder in another layout loads, computes and reads text as before."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hfgen.cards import write_card
from hfgen.convert.folders import convert_folder, load_gpt, rewrite_as_native
from hfgen.model_folder import check_folder
from hfgen.models.modeling_gpt import GPTForCausalLM, GPTModel
from hfgen.tokenization import build_bpe_tokenizer
from tests.convert.saved_gpt import GENERATION, TEXT, save_gpt


GATED = {"mlp_type": "gated", "hidden_act": "silu"}
GPT2 = {"position_embedding": "learned", "norm_type": "layernorm", "qk_norm": False, "use_bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "apertus": {}, "arcee": {"qk_norm": False}, "qwen3": GATED, "llama": {**GATED, "qk_norm": False}, "gpt2": GPT2,
}  # fmt: skip


def bpe() -> PreTrainedTokenizerFast:
    return build_bpe_tokenizer(TEXT * 3, 270, model_max_length=32)


@pytest.mark.parametrize("model_type", SHAPES)
@pytest.mark.parametrize("make_tokenizer", [None, bpe], ids=["characters", "bpe"])
def test_native_folder_needs_transformers_alone(model_type: str, make_tokenizer: Any, tmp_path: Path) -> None:
    """The Auto class of tokenizers could take another class for the native type of model."""
    tokenizer = None if make_tokenizer is None else make_tokenizer()
    model = save_gpt(tmp_path / "ours", tokenizer, **SHAPES[model_type])
    written = AutoTokenizer.from_pretrained(tmp_path / "ours", trust_remote_code=False)

    convert_folder(tmp_path / "ours", tmp_path / "native")

    check_folder(tmp_path / "native", model_type)
    assert not list((tmp_path / "native").glob("*.py"))
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "native", trust_remote_code=False)
    read = AutoTokenizer.from_pretrained(tmp_path / "native", trust_remote_code=False)
    ids = read(TEXT + " é\t👩", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [written(TEXT + " é\t👩")["input_ids"]]
    assert read.decode(ids[0]) == TEXT + " é\t👩"
    assert (read.eos_token, read.pad_token, read.padding_side, read.model_max_length) == (
        "<|endoftext|>", "<|pad|>", "left", 32
    )  # fmt: skip
    assert {name: getattr(native.generation_config, name) for name in GENERATION} == GENERATION
    with torch.no_grad():
        torch.testing.assert_close(native(ids[:, :32]).logits, model(ids[:, :32]).logits, rtol=1e-5, atol=1e-5)


def test_everything_goes_along_and_comes_back(tmp_path: Path) -> None:
    model = save_gpt(tmp_path / "ours")
    write_card(tmp_path / "ours", "me/gpt")

    convert_folder(tmp_path / "ours", tmp_path / "native", repo_id="me/native")
    convert_folder(tmp_path / "native", tmp_path / "again", "hfgen")

    beside = {"README.md", "notebook.ipynb", "results.json", "samples", "tokenizer.json", "tokenizer_config.json"}
    model_files = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in (tmp_path / "native").iterdir()} == beside | model_files
    assert {path.name for path in (tmp_path / "again").iterdir()} == beside | model_files | {
        path.name for path in (tmp_path / "ours").glob("*.py")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "native", "again"}
    again = GPTForCausalLM.from_pretrained(tmp_path / "again")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_card_of_a_native_folder_asks_for_no_trust(tmp_path: Path) -> None:
    save_gpt(tmp_path / "ours")

    convert_folder(tmp_path / "ours", tmp_path / "native", repo_id="me/native")

    ours = write_card(tmp_path / "ours", "me/gpt").read_text()
    native = (tmp_path / "native" / "README.md").read_text()
    assert "2 layers of width 32" in " ".join(native.split())
    assert "trust_remote_code=True" in ours and "trust_remote_code" not in native
    assert 'repo = "me/native"' in native and "`ApertusForCausalLM`" in native
    assert "A sample." in native and "{%" not in native


def test_code_in_the_card_of_a_native_folder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_gpt(tmp_path / "ours")
    convert_folder(tmp_path / "ours", tmp_path / "native")
    blocks = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "native" / "README.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}

    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, names)

    assert len(blocks) == 2 and names["repo"] == "native"
    assert capsys.readouterr().out.count("The ") == 2


def test_gpt2_layout_is_chosen_by_name(tmp_path: Path) -> None:
    save_gpt(tmp_path / "ours", **GPT2)

    convert_folder(tmp_path / "ours", tmp_path / "gpt2", "gpt2")

    check_folder(tmp_path / "gpt2", "gpt2")
    assert "width 32 with 4 attention heads" in " ".join((tmp_path / "gpt2" / "README.md").read_text().split())


def test_layout_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    save_gpt(tmp_path / "ours", use_bias=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()

    with pytest.raises(ValueError, match="use_bias must be False, got True"):
        convert_folder(tmp_path / "ours", tmp_path / "native")
    with pytest.raises(ValueError, match="must have another layout than hfgen, got one of type 'hfgen_gpt'"):
        convert_folder(tmp_path / "ours", tmp_path / "native", "hfgen")
    with pytest.raises(ValueError, match="position_embedding must be 'learned'"):
        convert_folder(tmp_path / "ours", tmp_path / "native", "gpt2")
    with pytest.raises(ValueError, match="OUT must be a new or empty folder"):
        convert_folder(tmp_path / "ours", tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "full"}


def test_a_folder_rewritten_in_place_keeps_all_else(tmp_path: Path) -> None:
    model = save_gpt(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}

    rewrite_as_native(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {name for name in before if not name.endswith(".py")}
    ids = torch.arange(20)[None]
    native = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    with torch.no_grad():
        torch.testing.assert_close(native(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_other_models_are_refused(tmp_path: Path) -> None:
    save_gpt(tmp_path / "ours")
    GPTModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "body")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))

    for folder, found in ((tmp_path / "body", "GPTModel of type 'hfgen_gpt'"), (tmp_path, "BertModel of type 'bert'")):
        with pytest.raises(ValueError, match=f"must hold a causal language model of a type among .*got {found}"):
            load_gpt(folder)
