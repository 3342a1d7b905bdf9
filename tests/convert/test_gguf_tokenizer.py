"""hfgen.convert.gguf_tokenizer: the tokens in a file spell a text as the tokenizer itself does."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfgen.convert.gguf_file import write_gguf
from hfgen.tokenization import build_bpe_tokenizer, build_character_tokenizer
from tests.convert.saved_gpt import TEXT, save_gpt


NORMAL, CONTROL, UNUSED, BYTE = (int(gguf.TokenType[name]) for name in ("NORMAL", "CONTROL", "UNUSED", "BYTE"))


def written(tokenizer: PreTrainedTokenizerFast, home: Path) -> dict[str, Any]:
    """The settings of the tokenizer in a GGUF file."""
    save_gpt(home / "gpt", tokenizer)
    write_gguf(home / "gpt", home / "gpt.gguf")
    fields = gguf.GGUFReader(home / "gpt.gguf").fields
    return {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.ggml.")
    }


def test_characters_are_tokens_and_others_are_bytes(tmp_path: Path) -> None:
    tokenizer = build_character_tokenizer(TEXT)
    found = written(tokenizer, tmp_path)
    numbers = {token: number for number, token in enumerate(found["tokens"])}

    def ids(text: str) -> list[int]:
        """SentencePiece without merges: a space is ▁, and an unknown character its bytes."""
        characters = [
            [c] if c in numbers else [f"<0x{byte:02X}>" for byte in c.encode()] for c in text.replace(" ", "▁")
        ]
        return [numbers[token] for tokens in characters for token in tokens]

    assert found["model"] == "llama" and not found["add_space_prefix"] and not found["add_bos_token"]
    assert ids(TEXT + "\t 1597 é 👩") == tokenizer(TEXT + "\t 1597 é 👩")["input_ids"]
    kinds = found["token_type"]
    assert len(numbers) == len(kinds) == len(found["scores"]) == -(-len(tokenizer) // 64) * 64
    assert kinds[numbers["T"]] == NORMAL and kinds[numbers["<0xC3>"]] == BYTE
    assert found["tokens"][tokenizer.convert_tokens_to_ids("\0")] == "<0x00>"  # a string of C ends at such a character
    assert [kinds[number] for number in (tokenizer.eos_token_id, tokenizer.pad_token_id)] == [CONTROL, CONTROL]
    assert kinds[len(tokenizer) :] == [UNUSED] * (len(kinds) - len(tokenizer))
    assert (found["eos_token_id"], found["padding_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_byte_level_bpe_has_its_merges(tmp_path: Path) -> None:
    tokenizer = build_bpe_tokenizer(TEXT * 3, 290)
    found = written(tokenizer, tmp_path)
    vocabulary = {token: number for number, token in enumerate(found["tokens"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in found["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's rule
    backend.decoder = decoders.ByteLevel()

    assert (found["model"], found["pre"], found["add_bos_token"]) == ("gpt2", "gpt-2", False)
    assert backend.encode(TEXT + "\t 1597 é 👩").ids == tokenizer(TEXT + "\t 1597 é 👩")["input_ids"]
    assert found["eos_token_id"] == tokenizer.eos_token_id
    assert found["token_type"][tokenizer.eos_token_id] == CONTROL


def test_a_token_for_the_sign_of_a_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The tokenizer must have no token '▁'"):
        written(build_character_tokenizer("a ▁ b"), tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    digits = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    digits.pre_tokenizer = pre_tokenizers.Digits()

    for number, (backend, kind) in enumerate(((words, "WordLevel"), (digits, "BPE"))):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        with pytest.raises(ValueError, match=f"The tokenizer must be one of characters or .*got a {kind}"):
            written(tokenizer, tmp_path / str(number))
