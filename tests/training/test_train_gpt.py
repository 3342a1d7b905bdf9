"""What the GPT's own entry point decides: where a text begins, and how long the published model writes by default."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfgen import GPTConfig, GPTForCausalLM
from hfgen.convert import to_native
from training.config.parser import parse
from training.config.scripts import SCRIPTS
from training.output.run_folder import write_model_folder
from training.train_gpt import GPTObjective, start_at_zero


TINY = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --max_position_embeddings 8 --sample_length 50"


def objective_for(texts: list[str], home: Path, *flags: str) -> GPTObjective:
    """For a text, or for the documents of a dataset."""
    if len(texts) == 1:
        (home / "book.txt").write_text(texts[0])
        name = home / "book.txt"
    else:
        name = home / "dataset"
        name.mkdir()
        (name / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    argv = [*TINY.split(), "--dataset_name", str(name), "--output_dir", str(home / "run"), *flags]
    return GPTObjective(parse(SCRIPTS["gpt"], argv, GPTConfig))


def test_a_single_text_starts_after_a_newline_and_documents_after_another(tmp_path: Path) -> None:
    line = "now is better than never\n"
    (tmp_path / "one").mkdir()
    book = objective_for([line * 50], tmp_path / "one")
    documents = objective_for([line] * 50, tmp_path)

    newline = book.data.tokenizer.convert_tokens_to_ids("\n")
    assert book.model.generation_config.bos_token_id == newline
    assert documents.model.generation_config.bos_token_id == documents.data.tokenizer.eos_token_id


def test_a_text_without_any_newline_starts_after_a_token_of_its_own(tmp_path: Path) -> None:
    """Neither a newline nor an end of text occurs in training: their embeddings would be random."""
    objective = objective_for(["abcde" * 50], tmp_path)

    assert objective.model.generation_config.bos_token_id in objective.data.tokenizer("abcde")["input_ids"]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_published_model_generates_within_its_context_unless_asked_for_more(positions: str, tmp_path: Path) -> None:
    objective = objective_for(["now is better than never\n" * 50], tmp_path, "--position_embedding", positions)
    objective.model.save_pretrained(tmp_path / "published")
    model = GPTForCausalLM.from_pretrained(tmp_path / "published")
    model.generation_config.eos_token_id = None
    prompt = objective.data.tokenizer("now", return_tensors="pt")["input_ids"]

    assert model.generate(prompt).shape == (1, 8)
    assert model.generate().shape == (1, 8)  # from an empty page
    assert model.generate(prompt, max_length=5).shape == (1, 5)
    assert model.generate(prompt, max_new_tokens=2).shape == (1, 5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_samples_go_on_past_the_context_and_repeat(positions: str, tmp_path: Path) -> None:
    objective = objective_for(["now is better than never\n" * 50], tmp_path, "--position_embedding", positions)

    first, again = (objective.draw_samples(objective.model.eval())["samples"] for _ in range(2))

    assert isinstance(first, str) and len(first) > 3 * 8  # 50 tokens, of which an untrained model makes special ones
    assert again == first


def test_temperature_of_zero_publishes_a_model_that_takes_the_likeliest_tokens(tmp_path: Path) -> None:
    objective = objective_for(["now is better than never\n" * 50], tmp_path, "--sample_temperature", "0")
    model, tokenizer = objective.model.eval(), objective.data.tokenizer
    model.save_pretrained(tmp_path / "published")
    published = GPTForCausalLM.from_pretrained(tmp_path / "published")

    text = objective.draw_samples(model)["samples"]
    prompt = tokenizer("now", return_tensors="pt")["input_ids"]

    assert text == model.sample(tokenizer, "", 50, 50, temperature=0)
    assert published.generate(prompt).tolist() == model.generate(prompt, do_sample=False).tolist()


def test_native_layout_publishes_a_folder_without_code(tmp_path: Path) -> None:
    objective = objective_for(["now is better than never\n" * 50], tmp_path, "--layout", "native")
    published = tmp_path / "published"
    published.mkdir()
    (published / "mine.py").touch()
    write_model_folder(objective.model.eval(), published, objective.data.tokenizer.save_pretrained)
    assert (published / "modeling_gpt.py").is_file()  # of a run that had the other layout

    write_model_folder(objective.model.eval(), published, objective.save_extras)

    assert {path.name for path in published.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "mine.py",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(published, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(published, trust_remote_code=False)
    assert model.config.model_type == "apertus"
    ids = tokenizer("now is", return_tensors="pt")["input_ids"]
    trained = objective.model.generation_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "max_length"):
        assert getattr(model.generation_config, name) == getattr(trained, name), name
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, objective.model(ids).logits)


def test_native_layout_is_refused_before_any_work_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'--layout must be "hfgen" for this model.*use_bias must be False, got True'):
        objective_for(["now is better\n" * 50], tmp_path, "--layout", "native", "--use_bias", "true")


def test_training_goes_on_from_a_native_model(tmp_path: Path) -> None:
    first = objective_for(["now is better than never\n" * 50], tmp_path)
    to_native(first.model).save_pretrained(tmp_path / "native")
    first.save_extras(tmp_path / "native")
    argv = ["--model_name_or_path", str(tmp_path / "native"), "--dataset_name", str(tmp_path / "book.txt")]

    again = GPTObjective(parse(SCRIPTS["gpt"], [*argv, "--output_dir", str(tmp_path / "run")], GPTConfig))

    assert again.data.context == 8 and type(again.model) is GPTForCausalLM
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_bpe_is_trained_and_measured_in_bits_of_both_kinds(tmp_path: Path) -> None:
    objective = objective_for(["nåw ïs béttér thân nevér\n" * 60], tmp_path, "--train_bpe", "290")
    text = "nåw ïs béttér thân nevér\n" * 6  # the last tenth

    metrics = objective.derive({"loss": 3.0})

    tokens = len(objective.data.eval_tokens)
    assert tokens == len(objective.data.tokenizer(text)["input_ids"]) < len(text) / 2
    assert metrics["bits_per_char"] == pytest.approx(3 / math.log(2) * tokens / len(text))
    assert metrics["bits_per_byte"] == pytest.approx(3 / math.log(2) * tokens / len(text.encode()))
    assert objective.model.config.vocab_size == 320
    assert objective.model.generation_config.bos_token_id == objective.data.tokenizer("\n")["input_ids"][0]


def test_only_one_flag_may_name_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--train_bpe must be left out beside --tokenizer_name, .* got 300"):
        objective_for(["abc\n" * 50], tmp_path, "--train_bpe", "300", "--tokenizer_name", "some/model")


def test_zero_init_starts_as_a_uniform_distribution_that_can_learn(tmp_path: Path) -> None:
    model = objective_for(["abc\n" * 50], tmp_path, "--zero_init").model
    ids = torch.randint(4, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        losses.append(model(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(math.log(model.config.vocab_size), rel=1e-6)
    assert losses[-1] < losses[0]
    # Not in the first step, in which all logits are the same; but then all of them learn.
    assert all(parameter.abs().max() > 0 for parameter in model.parameters())


def test_zero_init_keeps_the_embedding_of_a_tied_model() -> None:
    model = GPTForCausalLM(GPTConfig(hidden_size=16, num_hidden_layers=2, tie_word_embeddings=True))
    start_at_zero(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.abs().max() > 0
    assert not any(layer.mlp.down_proj.weight.any() for layer in model.model.layers)


def test_zero_init_is_refused_for_a_model_that_is_there(tmp_path: Path) -> None:
    objective = objective_for(["abc\n" * 50], tmp_path)
    objective.model.save_pretrained(tmp_path / "model")
    objective.save_extras(tmp_path / "model")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="--zero_init must be left out beside --model_name_or_path"):
        objective_for(
            ["abc\n" * 50], tmp_path / "other", "--zero_init", "--model_name_or_path", str(tmp_path / "model")
        )
