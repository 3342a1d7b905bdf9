"""What people train with: PEFT's LoRA, and transformers' Trainer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, Trainer, TrainingArguments

from tests.ecosystem.small_gpts import TOKENIZER, both_layouts, random_tokens, small_gpt


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def logits_of(model: torch.nn.Module, input_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=input_ids).logits


@both_layouts
def test_lora_trains_saves_loads_and_merges(layout: str, tmp_path: Path) -> None:
    ids = random_tokens(4, 16)
    base = small_gpt(layout)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = get_peft_model(base, LoraConfig(**LORA)).train()
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.03)

    losses = []
    for _ in range(20):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    trained = logits_of(adapted, ids)
    adapted.save_pretrained(tmp_path)

    assert losses[-1] < losses[0] - 0.1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".safetensors"]
    with adapted.disable_adapter():
        torch.testing.assert_close(logits_of(adapted, ids), logits_of(small_gpt(layout), ids))
    loaded = PeftModel.from_pretrained(small_gpt(layout), tmp_path)
    torch.testing.assert_close(logits_of(loaded, ids), trained)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(small_gpt(layout)) and merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(logits_of(merged, ids), trained, rtol=1e-4, atol=1e-4)
    assert (trained - logits_of(small_gpt(layout), ids)).abs().max() > 0.1


def trained_by_trainer(model: PreTrainedModel, home: Path, batch_size: int, accumulation: int) -> Trainer:
    """Ten epochs of SGD over four texts of unlike lengths, which the collator pads.

    On the right, as the first token of a text that is padded on the left would be predicted from the padding.
    """
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.padding_side = "right"
    texts = ["to be or not to be\n", "to be\n", "or not\n", "to be or be not, not to be\n"]
    rows = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in texts]
    trainer = Trainer(
        model,
        TrainingArguments(
            str(home), num_train_epochs=10, per_device_train_batch_size=batch_size, optim="sgd", learning_rate=0.2,
            gradient_accumulation_steps=accumulation, use_cpu=True, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, max_grad_norm=0,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip
    trainer.train()
    return trainer


@both_layouts
def test_trainer_lowers_the_loss_and_saves_what_loads(layout: str, tmp_path: Path) -> None:
    model = small_gpt(layout, initializer_range=0.02)
    trainer = trained_by_trainer(model, tmp_path / "run", batch_size=4, accumulation=1)

    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.3
    trainer.save_model(str(tmp_path / "saved"))
    loaded = type(model).from_pretrained(tmp_path / "saved")
    ids = random_tokens(2, 10)
    torch.testing.assert_close(logits_of(loaded, ids), logits_of(model, ids))


@pytest.mark.parametrize("layout", ["hfgen", "native"])
def test_trainer_averages_the_loss_over_all_tokens_of_a_step(layout: str, tmp_path: Path) -> None:
    """With batches of texts of unlike lengths, an average of averages would give other weights."""
    whole, parts = small_gpt(layout), small_gpt(layout)

    trained_by_trainer(whole, tmp_path / "whole", batch_size=4, accumulation=1)
    trained_by_trainer(parts, tmp_path / "parts", batch_size=1, accumulation=4)

    start = small_gpt(layout).state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole.state_dict()["model.norm.weight"], start["model.norm.weight"])
