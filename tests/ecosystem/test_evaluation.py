"""lm-evaluation-harness on a file of one's own: its bits per byte are those of the model's own probabilities."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from tests.ecosystem.small_gpts import TOKENIZER, both_layouts, small_gpt


CONTEXT = 64
TEXT = "to be or not to be\n" * 9


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@both_layouts
def test_lm_eval_measures_the_bits_per_byte_of_a_local_file(layout: str, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    model = small_gpt(layout)
    model.save_pretrained(tmp_path / "gpt")
    TOKENIZER.save_pretrained(tmp_path / "gpt")
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": TEXT}) + "\n")
    task = {
        "task": "texts", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip

    arguments = {"pretrained": str(tmp_path / "gpt"), "trust_remote_code": True}
    found = simple_evaluate("hf", arguments, tasks=[task], device="cpu", batch_size=1, bootstrap_iters=0)

    # Windows of the whole context: the first begins after the token that ends texts, each later one with the last
    # token of the window before, and the last one looks back as far as it can.
    ids = [TOKENIZER.eos_token_id, *TOKENIZER(TEXT)["input_ids"]]
    nats = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        end = min(start + CONTEXT, len(ids) - 1)
        begin = max(0, end - CONTEXT)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[begin:end]])).logits[0].log_softmax(-1)
        nats -= sum(log_probs[place - 1 - begin, ids[place]].item() for place in range(start + 1, end + 1))
    assert found["results"]["texts"]["bits_per_byte,none"] == pytest.approx(
        nats / math.log(2) / len(TEXT.encode()), rel=1e-5
    )
