"""transformers against the test Hub; run by test_server.py in processes of its own.

    python -m tests.hub.transformers_checks push     pushes a model in several shards, loads it again
    python -m tests.hub.transformers_checks offline  loads it from the same cache, with HF_HUB_OFFLINE=1

Each writes one JSON object; `outputs` must be the same wherever the model came from.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer


REPO = "alice/tiny-bert"


def outputs(model: Any) -> list[float]:
    with torch.no_grad():
        return model(torch.arange(8)[None]).last_hidden_state[0, 0].tolist()


def push() -> dict[str, Any]:
    api = HfApi()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.push_to_hub(REPO)
    model = BertModel(config).eval()
    first = model.push_to_hub(REPO, max_shard_size="30KB").oid
    BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "hello": 5}).push_to_hub(REPO)
    pushed = api.model_info(REPO).sha
    model.push_to_hub(REPO, max_shard_size="30KB")
    again = api.model_info(REPO).sha
    before = outputs(model)
    model.embeddings.word_embeddings.weight.data.zero_()
    model.push_to_hub(REPO, max_shard_size="30KB", revision="zeros", commit_message="Zeros")
    return {
        "model_type": AutoConfig.from_pretrained(REPO).model_type,
        "architectures": (api.model_info(REPO).config or {}).get("architectures"),
        "files": sorted(api.list_repo_files(REPO)),
        "changed_by_second_push": pushed != again,
        "before": before,
        "outputs": outputs(AutoModel.from_pretrained(REPO)),
        "outputs_pinned": outputs(AutoModel.from_pretrained(REPO, revision=first)),
        "outputs_of_zeros": outputs(AutoModel.from_pretrained(REPO, revision="zeros")),
        "tokens": AutoTokenizer.from_pretrained(REPO)("hello")["input_ids"],
    }


def offline() -> dict[str, Any]:
    return {
        "outputs": outputs(AutoModel.from_pretrained(REPO)),
        "tokens": AutoTokenizer.from_pretrained(REPO)("hello")["input_ids"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"push": push, "offline": offline}[sys.argv[1]]()))
