"""Who chooses precision, kernels and threads: a flag, then the launcher, then the measurement; a resume keeps all."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hfgen import GPTConfig, GPTForCausalLM, VAEConfig, VAEModel
from training.config.flags import RunArguments
from training.hardware import choices
from training.hardware.choices import choose
from training.hardware.probe import Attention


PRODUCTS = {"product fp32": 4.0, "product bf16": 2.0, "batched fp32": 4.0, "batched bf16": 2.0}
CONVOLUTIONS = {"convolution fp32 contiguous": 4.0, "convolution fp32 channels_last": 3.0,
                "convolution bf16 contiguous": 2.0, "convolution bf16 channels_last": 3.0}  # fmt: skip
ATTENTIONS = {"attention fp32 sdpa": 1.0, "attention fp32 eager": 2.0,
              "attention bf16 sdpa": 5.0, "attention bf16 eager": 1.0}  # fmt: skip
FAST_BF16 = {**PRODUCTS, **CONVOLUTIONS, **ATTENTIONS}
# As where bf16 is emulated.
SLOW_BF16 = {name: 10 * value if "bf16" in name else value for name, value in FAST_BF16.items()}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def measured(monkeypatch: pytest.MonkeyPatch, values: dict[str, float]) -> list[Attention | None]:
    """Makes the machine one with these speeds; returns the list of questions that it is asked."""
    asked: list[Attention | None] = []

    def speeds(attention: Attention | None) -> dict[str, float]:
        asked.append(attention)
        return values

    monkeypatch.setattr(choices, "speeds", speeds)
    return asked


def gpt() -> PreTrainedModel:
    return GPTForCausalLM(
        GPTConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    )


def vae() -> PreTrainedModel:
    return VAEModel(VAEConfig(image_size=8, hidden_channels=[4, 8], hidden_size=8, latent_dim=2))


def test_a_processor_that_is_fast_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, FAST_BF16)
    text, images = choose(RunArguments(), gpt()), choose(RunArguments(), vae())
    assert text.mixed_precision == images.mixed_precision == text.muon_precision == "bf16"
    assert text.attn_implementation == "eager" and images.attn_implementation is None
    assert images.channels_last is False
    assert asked == [Attention(2, 32, 8), None]
    # Attention is measured with 4 x 32 tokens, half as many as a product: (1.5 2 + 1) / (1.5 4 + 1).
    assert text.reasons["mixed_precision"] == "measured: bf16 takes 0.57 times as long as fp32"


@pytest.mark.parametrize(("attention", "products"), [((4, 64, 64), 3), ((4, 256, 64), 12), ((16, 64, 64), 3 * 2**2)])
def test_products_weigh_as_much_as_in_a_layer_with_this_attention(
    attention: tuple[int, int, int], products: float
) -> None:
    """A long context has more tokens in its products, too. With four sequences of 256 tokens beside products of 256,
    a processor whose products are three times as fast in bf16 was given fp32, as its attention is slower in bf16."""
    assert Attention(*attention).products_beside_it == products


def test_a_processor_that_is_slow_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, SLOW_BF16)
    text, images = choose(RunArguments(), gpt()), choose(RunArguments(), vae())
    assert text.mixed_precision == images.mixed_precision == "no" and text.muon_precision == "fp32"
    assert text.muon_dtype == torch.float32
    assert text.attn_implementation == "sdpa" and images.channels_last is True


def test_usual_kernel_is_kept_unless_the_other_one_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    nearly = {**SLOW_BF16, "convolution fp32 channels_last": 3.2, "convolution fp32 contiguous": 3.0,
              "attention fp32 sdpa": 1.0, "attention fp32 eager": 0.95}  # fmt: skip
    measured(monkeypatch, nearly)
    assert choose(RunArguments(), vae()).channels_last is True
    assert choose(RunArguments(), gpt()).attn_implementation == "sdpa"


def test_flag_comes_before_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, FAST_BF16)
    by_flag = choose(RunArguments(mixed_precision="no"), gpt())
    assert by_flag.mixed_precision == "no" and by_flag.reasons["mixed_precision"] == "--mixed_precision"
    assert by_flag.muon_precision == "fp32" and by_flag.attn_implementation == "sdpa"


def test_nothing_is_measured_if_flags_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, FAST_BF16)
    run = RunArguments(mixed_precision="no", attn_implementation="sdpa", channels_last=False, cpu_threads=3)
    chosen = choose(run, gpt())
    assert not asked and chosen.cpu_threads == 3
    assert chosen.reasons["cpu_threads"] == "--cpu_threads"


def test_resumed_run_keeps_its_choices_except_for_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, FAST_BF16)
    before = choose(RunArguments(cpu_threads=2), gpt()).to_json()
    asked = measured(monkeypatch, SLOW_BF16)
    assert choose(RunArguments(), gpt(), before).to_json() == before and not asked
    changed = choose(RunArguments(mixed_precision="no"), gpt(), before)
    assert changed.mixed_precision == "no" and changed.reasons["mixed_precision"] == "--mixed_precision"
    assert changed.attn_implementation == "eager"


def test_fp16_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, FAST_BF16)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        choose(RunArguments(mixed_precision="fp16"), gpt())


def test_omp_num_threads_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, FAST_BF16)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    chosen = choose(RunArguments(), vae())
    assert chosen.cpu_threads == torch.get_num_threads() and chosen.reasons["cpu_threads"] == "OMP_NUM_THREADS"
