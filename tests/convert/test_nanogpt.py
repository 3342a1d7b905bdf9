"""hfgen.convert.nanogpt: a nanoGPT of the same weights is the reference."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from hfgen.convert import from_nanogpt, tokenizer_from_nanogpt
from tests.convert.random_weights import randomized


class NanoBlock(nn.Module):
    """The block of karpathy/nanoGPT's model.py, with its names."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        fused, output = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        up, down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.attn = nn.ModuleDict({"c_attn": fused, "c_proj": output})
        self.mlp = nn.ModuleDict({"c_fc": up, "c_proj": down})

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn["c_proj"](attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        blocks = nn.ModuleList([NanoBlock(32, 4, bias) for _ in range(2)])
        tokens, positions = nn.Embedding(61, 32), nn.Embedding(16, 32)
        norm = nn.LayerNorm(32, bias=bias)
        self.transformer = nn.ModuleDict({"wte": tokens, "wpe": positions, "h": blocks, "ln_f": norm})
        self.lm_head = nn.Linear(32, 61, bias=False)
        self.lm_head.weight = tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](input_ids) + parts["wpe"](torch.arange(input_ids.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_those_of_nanogpt(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    nano = randomized(NanoGPT(bias))
    input_ids = torch.randint(61, (3, 16))
    state_dict = nano.state_dict()
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state_dict.items()}
    without_the_tied_name = {name: tensor for name, tensor in state_dict.items() if name != "lm_head.weight"}
    save_file(without_the_tied_name, tmp_path / "nanogpt.safetensors")

    for source in (state_dict, compiled, tmp_path / "nanogpt.safetensors"):
        model = from_nanogpt(source, num_attention_heads=4)
        torch.testing.assert_close(model(input_ids).logits, nano(input_ids), rtol=1e-5, atol=1e-5)
    assert model.config.tie_word_embeddings


def nanogpt_checkpoint(nano: NanoGPT) -> dict[str, Any]:
    """What nanoGPT's train.py saves."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 61}
    optimizer = torch.optim.AdamW(nano.parameters())
    return {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in nano.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": {**sizes, "bias": nano.transformer["ln_f"].bias is not None, "dropout": 0.25},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "compile": True, "learning_rate": 1e-3},
    }


def test_checkpoint_of_nanogpt_needs_no_further_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nano = randomized(NanoGPT(bias=True))
    checkpoint = nanogpt_checkpoint(nano)
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    input_ids = torch.randint(61, (3, 16))

    for source in (tmp_path / "ckpt.pt", str(tmp_path / "ckpt.pt"), checkpoint):
        model = from_nanogpt(source)
        torch.testing.assert_close(model(input_ids).logits, nano(input_ids), rtol=1e-5, atol=1e-5)
        config = model.config
        assert (config.num_attention_heads, config.max_position_embeddings, config.use_bias) == (4, 16, True)
        assert config.hidden_dropout == config.attention_dropout == config.embedding_dropout == 0.25
        assert model.generate(input_ids[:, :3]).shape == (3, 16)
    torch.save(checkpoint["model"], tmp_path / "weights.pt")
    torch.testing.assert_close(from_nanogpt(tmp_path / "weights.pt", 4)(input_ids).logits, nano(input_ids))


def test_number_of_heads_is_asked_for_only_where_it_is_not_known() -> None:
    nano = NanoGPT(bias=False)

    with pytest.raises(ValueError, match=r"num_attention_heads must be the model's n_head, got None.*Look it up"):
        from_nanogpt(nano.state_dict())
    with pytest.raises(
        ValueError, match=r"num_attention_heads must be 4, the checkpoint's n_head, got 8\. Leave it out"
    ):
        from_nanogpt(nanogpt_checkpoint(nano), num_attention_heads=8)


class RunsCode:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    checkpoint = nanogpt_checkpoint(NanoGPT(bias=True))
    torch.save(checkpoint | {"config": RunsCode(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    (tmp_path / "text.pt").write_text("no checkpoint " * 10)

    for name in ("ckpt.pt", "text.pt"):
        with pytest.raises(ValueError, match=rf"state_dict_or_path must be .*{name}.*Save the state dict alone"):
            from_nanogpt(tmp_path / name)
    assert not (tmp_path / "ran").exists()


TEXT = "To be, or not to be\n“¿that?” – 日本 👩\n"


def nanogpt_meta() -> dict[str, Any]:
    """What nanoGPT's data/shakespeare_char/prepare.py writes to meta.pkl."""
    characters = sorted(set(TEXT))
    stoi = {character: i for i, character in enumerate(characters)}
    return {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_vocabulary_of_nanogpt_is_read_from_its_meta_file(protocol: int, tmp_path: Path) -> None:
    meta = nanogpt_meta()
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))

    tokenizer_from_nanogpt(tmp_path / "meta.pkl").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    assert len(tokenizer) == meta["vocab_size"]
    assert tokenizer(TEXT)["input_ids"] == [meta["stoi"][character] for character in TEXT]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert tokenizer("{not}")["input_ids"] == tokenizer("not")["input_ids"]


def test_large_vocabulary_of_nanogpt_is_read_too(tmp_path: Path) -> None:
    """Numbers above 255 and 65535, and items in several batches, have operations of their own in a pickle."""
    characters = [chr(code) for code in [*range(0x20, 0xD800), *range(0xE000, 0x12000)]]
    meta = {"itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))

    assert tokenizer_from_nanogpt(tmp_path / "meta.pkl").get_vocab() == meta["stoi"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", b"\x80\x04}", b"\x80\x04u.",
        *map(pickle.dumps, ([1, 2], {"itos": {1: "a"}}, {"itos": {0: 7}}, {"itos": {}}, {"vocab_size": 1}, "itos")),
    ],
)  # fmt: skip
def test_other_files_than_nanogpts_meta_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "meta.pkl").write_bytes(content)

    with pytest.raises(ValueError, match=r"meta\.pkl must .* Name the meta\.pkl"):
        tokenizer_from_nanogpt(tmp_path / "meta.pkl")


def test_code_in_a_meta_file_is_not_run(tmp_path: Path) -> None:
    meta = nanogpt_meta() | {"more": RunsCode(tmp_path / "ran")}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))

    with pytest.raises(ValueError, match=r"must be a pickle of numbers, text and dictionaries alone"):
        tokenizer_from_nanogpt(tmp_path / "meta.pkl")
    assert not (tmp_path / "ran").exists()


def test_from_nanogpt_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"transformer\.wpe\.weight"):
        from_nanogpt({"transformer.wte.weight": torch.zeros(3, 3)}, num_attention_heads=1)
