"""Trains a GPT on text.

accelerate launch training/train_gpt.py --output_dir gpt-python-docs
accelerate launch training/train_gpt.py training/recipes/gpt-tiny-shakespeare.yaml
"""

import gc
import runpy
import sys
from pathlib import Path


if __name__ == "__main__" and not __package__:  # started as a file: run it again as a module of its package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_module(f"training.{Path(__file__).stem}", run_name="__main__", alter_sys=True)
    sys.exit()

from .config.parser import parse
from .config.scripts import SCRIPTS, GPTArguments


if __name__ == "__main__":
    parse(SCRIPTS["gpt"])  # reports wrong flags before the imports below, which take seconds
    gc.disable()  # until run_script: they leave no garbage, and looking for it would take a fifth of their time

import math
import tempfile
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hfgen import GPTConfig, GPTForCausalLM
from hfgen.convert.folders import rewrite_as_native
from hfgen.convert.native import NATIVE_TYPES, find_layout, from_native
from hfgen.hub import fetch_model
from hfgen.model_folder import read_json

from .build_model import build_config, load_model
from .config.flags import Arguments
from .data.feeds.batches import Batch
from .data.text import TextData, load_text
from .loop import train
from .objective import Metrics, Phase, Sample
from .randomness import BatchRNG
from .run_script import run_script


# Tokens of the evaluation split that are looked through for one that can start a text.
SEARCHED_FOR_A_START = 1 << 16


class NextTokenLoss(nn.Module):
    """Cross-entropy of every next token, in nats per token."""

    def __init__(self, model: GPTForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: BatchRNG, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        # The labels are already those of the next token: shift_labels keeps the model from shifting them again.
        output = self.model(batch["input_ids"], labels=batch["labels"], shift_labels=batch["labels"], use_cache=False)
        return output.loss, {"loss": output.loss}


class GPTObjective:
    """Prediction of the next token; see [`training.objective.Objective`]."""

    primary_metric = "loss"
    greater_is_better: bool | None = False
    ema_prefixes: tuple[str, ...] = ("",)
    watch = None

    def __init__(self, arguments: Arguments):
        self.extra: GPTArguments = arguments.extra
        check_tokenizer_flags(arguments)
        model = load_gpt(arguments)
        tokenizer = load_tokenizer(self.extra.tokenizer_name or arguments.run.model_name_or_path)
        default = 64 if model is None else model.config.max_position_embeddings
        context = arguments.model.get("max_position_embeddings") or default
        self.data = load_text(arguments.data, arguments.run.seed, context, tokenizer, self.extra.train_bpe)
        if model is None:
            model = new_model(arguments.model, self.data.tokenizer, context)
            if self.extra.zero_init:
                start_at_zero(model)
        elif self.extra.zero_init:
            raise ValueError(
                "--zero_init must be left out beside --model_name_or_path, whose weights the training starts from, "
                "got true. Leave out one of them."
            )
        elif len(self.data.tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"--tokenizer_name must have at most the model's {model.config.vocab_size} tokens, got "
                f"{len(self.data.tokenizer)}. Leave the flag out to use the model's own tokenizer."
            )
        if self.extra.layout == "native":
            check_native_layout(model.config)
        temperature = self.extra.sample_temperature
        model.generation_config = GenerationConfig(
            bos_token_id=start_of_text(self.data),
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id,
            do_sample=temperature > 0,
            temperature=temperature or None,
            # Not max_new_tokens, which would beat a max_length that is passed to generate().
            max_length=model.config.max_position_embeddings,
        )
        self.model = model
        self.phases = [Phase("model", NextTokenLoss(model))]

    def evaluate(self, model: GPTForCausalLM, batch: Batch, rng: BatchRNG) -> dict[str, Tensor]:
        """Returns the cross-entropy of every token of the batch, in nats."""
        logits, labels = model(batch["input_ids"], use_cache=False).logits.float(), batch["labels"].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none", ignore_index=-100)
        return {"loss": losses[labels != -100]}

    def estimator(self, *_: object) -> None:
        return None

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        bits = means["loss"] / math.log(2)
        return {
            **means,
            "perplexity": _perplexity(means["loss"]),
            "bits_per_char": bits / self.data.characters_per_token,
            "bits_per_byte": bits / self.data.bytes_per_token,
        }

    def measure_samples(self, model: GPTForCausalLM) -> Metrics:
        return Metrics()

    def measure_config(self, model: GPTForCausalLM) -> dict[str, float]:
        return {}

    def draw_samples(self, model: GPTForCausalLM) -> dict[str, Sample]:
        torch.manual_seed(0)
        length, temperature = self.extra.sample_length, self.extra.sample_temperature
        text = model.sample(self.data.tokenizer, "", length, min_new_tokens=length, temperature=temperature)
        return {"samples": text}

    def draw_finished(self, model: GPTForCausalLM) -> dict[str, Sample]:
        return {}

    def save_extras(self, folder: Path) -> None:
        self.data.tokenizer.save_pretrained(folder)
        if self.extra.layout == "native":
            rewrite_as_native(folder)


def check_tokenizer_flags(arguments: Arguments) -> None:
    """Raises ValueError if more than one flag says which tokenizer it is."""
    extra: GPTArguments = arguments.extra
    given = {"--tokenizer_name": extra.tokenizer_name, "--model_name_or_path": arguments.run.model_name_or_path}
    if extra.train_bpe is not None and (others := [flag for flag, value in given.items() if value is not None]):
        raise ValueError(
            f"--train_bpe must be left out beside {' and '.join(others)}, as that has a tokenizer, got "
            f"{extra.train_bpe}. Give only one of them."
        )


def check_native_layout(config: GPTConfig) -> None:
    """Raises ValueError, naming every field in the way, if no class of transformers computes what the model does."""
    try:
        find_layout(config)
    except ValueError as error:
        raise ValueError(
            f'--layout must be "hfgen" for this model, got "native". {error} Leave the flag out, or change the fields.'
        ) from None


def find_native(name: str) -> Path | None:
    """The folder of a model in a native layout; None if the model has another one or cannot be found."""
    try:
        folder = fetch_model(name)
        return folder if read_json(folder / "config.json").get("model_type") in NATIVE_TYPES else None
    except (OSError, ValueError):  # load_model says what is wrong
        return None


def load_gpt(arguments: Arguments) -> GPTForCausalLM | None:
    """Returns the model of --model_name_or_path, in hfgen's or a native layout; None without that flag.

    Raises:
        ValueError: as [`training.build_model.load_model`].
    """
    name = arguments.run.model_name_or_path
    folder = None if name is None else find_native(name)
    if folder is None:
        return load_model(GPTForCausalLM, arguments)
    with tempfile.TemporaryDirectory() as ours:
        try:
            from_native(folder).save_pretrained(ours)
        except ValueError as error:
            raise ValueError(f"--model_name_or_path {name} cannot be used: {error}") from None
        return load_model(GPTForCausalLM, replace(arguments, run=replace(arguments.run, model_name_or_path=ours)))


def new_model(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase, context: int) -> GPTForCausalLM:
    """Builds a model for a tokenizer.

    Args:
        given: config fields from the command line.
        tokenizer: decides the vocabulary and the special tokens.
        context: tokens in a window.

    Raises:
        ValueError: the config is invalid, or --vocab_size is smaller than the tokenizer's vocabulary.
    """
    # A multiple of 64 rows makes the last matrix product faster; the rows beyond the vocabulary are never used.
    vocab_size = -(-len(tokenizer) // 64) * 64
    if given.get("vocab_size", vocab_size) < len(tokenizer):
        raise ValueError(
            f"--vocab_size must be at least the tokenizer's {len(tokenizer)}, got {given['vocab_size']}. Leave it out."
        )
    derived = {
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = GPTForCausalLM(build_config(GPTConfig, given, **derived))
    if not torch.cuda.is_available():
        # The backward pass of sdpa's kernel for CPUs is slow in bf16, at these lengths about a third of a step.
        model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def start_at_zero(model: GPTForCausalLM) -> None:
    """Fills with zeros what ends in the residual stream or in logits: the model starts as a uniform distribution.

    An output layer that is tied to the embedding stays as it is, for the model would see no tokens at all.
    """
    layers = [linear for layer in model.model.layers for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    if not model.config.tie_word_embeddings:
        layers.append(model.lm_head)
    for linear in layers:
        linear.weight.zero_()


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase | None:
    """Loads the tokenizer of a model or folder; returns None without a name.

    Raises:
        ValueError: there is none.
    """
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no tokenizer in {name}: {error}") from error


def start_of_text(data: TextData) -> int:
    """The token after which a text begins, which an empty page starts with: one that the model sees in training.

    That is the token that closes documents, if there is more than one; else a newline; else the first of the text.
    """
    tokenizer, tokens = data.tokenizer, data.eval_tokens
    seen = {*tokens[:SEARCHED_FOR_A_START].tolist(), *tokens[-1:].tolist()}
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    starts = [token for token in (tokenizer.eos_token_id, *newline[-1:]) if token in seen]
    return starts[0] if starts else int(tokens[:1])


def main() -> None:
    train(GPTObjective, parse(SCRIPTS["gpt"], config_class=GPTConfig))


if __name__ == "__main__":
    run_script(main)
