"""What people generate with: streamers, pipelines, an assistant model, batches that change as texts end.

`tests/models/test_modeling_gpt.py` has caches, beam search and padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, TextStreamer, pipeline

import hfgen
from tests.ecosystem.small_gpts import GREEDY, GREEDY_CHARACTERS, TOKENIZER, both_layouts, random_tokens, small_gpt


class Collected(TextStreamer):
    """A streamer that keeps what it would print."""

    def __init__(self, **options: Any) -> None:
        super().__init__(TOKENIZER, **options)
        self.parts: list[str] = []
        self.has_ended = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        self.has_ended = stream_end


@both_layouts
def test_streamed_parts_join_to_the_text(layout: str) -> None:
    model = small_gpt(layout)
    prompt = TOKENIZER("to be", return_tensors="pt")["input_ids"]
    streamer = Collected(skip_prompt=True)

    output = model.generate(prompt, **GREEDY_CHARACTERS, streamer=streamer)

    assert "".join(streamer.parts) == TOKENIZER.decode(output[0, prompt.shape[1] :])
    assert streamer.has_ended and len(streamer.parts) > 1


@both_layouts
def test_pipeline_streams_what_it_returns(layout: str) -> None:
    generator = pipeline("text-generation", model=small_gpt(layout), tokenizer=TOKENIZER)
    streamer = Collected(skip_prompt=True, skip_special_tokens=True)

    (answer,) = generator("to be", return_full_text=False, streamer=streamer, **GREEDY_CHARACTERS)

    assert answer["generated_text"] == "".join(streamer.parts) != ""


@both_layouts
def test_an_assistant_changes_no_token_of_greedy_generation(layout: str) -> None:
    """Another layout is no obstacle: the assistant is the native model of another seed, with a layer less."""
    model, assistant = small_gpt(layout), small_gpt("native", seed=1, num_hidden_layers=1)
    prompt = random_tokens(1, 9)
    called = []
    assistant.register_forward_hook(lambda *_: called.append(1))

    assert torch.equal(model.generate(prompt, **GREEDY, assistant_model=assistant), model.generate(prompt, **GREEDY))
    assert called


@both_layouts
def test_continuous_batching_writes_what_each_text_would_alone(layout: str) -> None:
    """What `transformers serve` runs: texts of unlike lengths in one row, keys and values in pages."""
    model, prompts = small_gpt(layout), [random_tokens(1, length, seed=length) for length in (3, 11, 1, 7)]
    # Three at once, so that the fourth is taken in when others are under way.
    batches = ContinuousBatchingConfig(page_size=4, num_blocks=48, max_batch_tokens=16, max_requests_per_batch=3)

    answers = model.generate_batch(
        [prompt[0].tolist() for prompt in prompts], GenerationConfig(**GREEDY), batches, warmup=False
    )

    assert [answer.error for answer in answers.values()] == [None] * 4
    for prompt, answer in zip(prompts, answers.values(), strict=True):
        assert answer.prompt_ids == prompt[0].tolist()
        assert answer.generated_tokens == model.generate(prompt, **GREEDY)[0, prompt.shape[1] :].tolist()


@both_layouts
def test_beams_and_groups_of_samples_repeat_by_seed(layout: str) -> None:
    model, prompt = small_gpt(layout), random_tokens(2, 5)
    ours = small_gpt("hfgen")
    settings = GREEDY | {"num_beams": 4, "num_return_sequences": 2}
    drawn = GREEDY | {"do_sample": True, "top_k": 7, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 3}

    assert torch.equal(model.generate(prompt, **settings), ours.generate(prompt, **settings))
    torch.manual_seed(3)
    first = model.generate(prompt, **drawn)
    torch.manual_seed(3)
    assert torch.equal(ours.generate(prompt, **drawn), first)


@pytest.mark.parametrize("layout", ["hfgen", "native"])
def test_device_map_places_the_model_and_changes_nothing(layout: str, tmp_path: Path) -> None:
    assert hfgen.GPTForCausalLM is not None  # registered, so that no custom code is needed
    model = small_gpt(layout)
    model.save_pretrained(tmp_path / "gpt")
    ids = random_tokens(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
    names = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    spread = {**dict.fromkeys(names, "cpu"), "model.layers.1": "disk"}

    for device_map, options in (("auto", {}), (spread, {"offload_folder": str(tmp_path / "offload")})):
        placed = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt", device_map=device_map, **options)

        # transformers keeps no map of a model that is on one device.
        assert getattr(placed, "hf_device_map", None) in ([None, {"": "cpu"}] if device_map == "auto" else [spread])
        with torch.no_grad():
            torch.testing.assert_close(placed(ids).logits, expected)
        assert torch.equal(placed.generate(ids, **GREEDY), model.generate(ids, **GREEDY))
