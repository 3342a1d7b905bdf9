# Copyright 2026 The hfgen team. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

import hfgen.tokenization
from hfgen.tokenization import build_bpe_tokenizer, build_character_tokenizer, encode_corpus


ODD_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b\0",
    "line\r\nline\rline\n\r\n",
    "\t  two  spaces , and a space before . marks ' s n't",
    "e\u0301 e\u0301\u0323 \u0301",
    "👩‍👩‍👧‍👦 🇫🇷 \U0010ffff",
    "▁▁low ▁ line",
    "<0x41><0x4 <0xC3><0xA9>",
    "<|endoftext|> <|endoftext|><|endoftext",
    "\ufeffbom \ufffd \u2028 \x85 \x7f",
    "日本語 العربية עברית",
]
ODD_CORPUS = "".join(ODD_TEXTS[:-1])


def ids_of_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """What looks like a special token in the text is text too."""
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def every_kind_of_character(step: int = 7) -> str:
    return "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, step), *range(0xE000, 0x110000, step)]))


@settings(deadline=None, max_examples=100)
@given(corpus=st.text(min_size=1), text=st.text())
def test_any_text_round_trips_whatever_the_corpus(corpus: str, text: str) -> None:
    tokenizer = build_character_tokenizer(corpus)
    for string in (corpus, text, corpus + text):
        assert tokenizer.decode(tokenizer(string)["input_ids"]) == string
        assert tokenizer.decode(ids_of_text(tokenizer, string), skip_special_tokens=True) == string


@pytest.mark.parametrize("corpus", ["abc", ODD_CORPUS], ids=["plain", "odd"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_round_trips(corpus: str, text: str) -> None:
    tokenizer = build_character_tokenizer(corpus)
    ids = ids_of_text(tokenizer, text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not {*ids} & {*tokenizer.all_special_ids}
    np.testing.assert_array_equal(encode_corpus(tokenizer, text), ids)


def test_all_of_unicode_round_trips_and_uses_every_token() -> None:
    corpus = "héllo ▁ 日"
    tokenizer = build_character_tokenizer(corpus)
    text = corpus + every_kind_of_character()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    np.testing.assert_array_equal(encode_corpus(tokenizer, text), ids)


def test_vocabulary_is_the_corpus_then_ascii_then_utf8_bytes_then_the_special_tokens() -> None:
    tokenizer = build_character_tokenizer(["banana", "é\n"])
    assert tokenizer("\nabné")["input_ids"] == [0, 1, 2, 3, 4]
    assert len(tokenizer) == 1 + 128 + 115 + 2  # é; ASCII; bytes of other characters; <|endoftext|>, <|pad|>
    assert tokenizer("è")["input_ids"] == tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA8>"])
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == len(tokenizer) - 2
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer.padding_side == "left"


def test_bytes_that_are_no_character_decode_to_the_replacement_character() -> None:
    tokenizer = build_character_tokenizer("ab")
    broken = [*tokenizer("a")["input_ids"], *tokenizer("é")["input_ids"][:1], *tokenizer("b")["input_ids"]]
    assert tokenizer.decode(broken) == "a\ufffdb"


def test_autotokenizer_gives_the_same_ids_without_hfgen_beside_a_custom_model(tmp_path) -> None:
    tokenizer = build_character_tokenizer(ODD_CORPUS, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "hfgen_gpt", "auto_map": {"AutoConfig": "modeling_gpt.GPTConfig"}})
    )
    (tmp_path / "texts.json").write_text(json.dumps(ODD_TEXTS))
    script = """
import json, sys
sys.modules["hfgen"] = None
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=False)
texts = json.load(open("texts.json"))
ids = [tokenizer(text, split_special_tokens=True).input_ids for text in texts]
assert tokenizer.batch_decode(ids) == texts
special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
json.dump([ids, special, tokenizer.model_max_length, tokenizer.padding_side], open("out.json", "w"))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ids, special, max_length, padding_side = json.loads((tmp_path / "out.json").read_text())
    assert ids == [ids_of_text(tokenizer, text) for text in ODD_TEXTS]
    assert special == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert (max_length, padding_side) == (77, "left")


def test_padding_is_ignored_in_the_loss_and_the_end_of_a_text_is_not() -> None:
    """A model whose padding was also its end of text would never learn to stop."""
    tokenizer = build_character_tokenizer("abc")
    end, collator = tokenizer.eos_token_id, DataCollatorForLanguageModeling(tokenizer, mlm=False)
    texts = [{"input_ids": [*tokenizer(text)["input_ids"], end]} for text in ("abc", "a")]

    labels = collator(texts)["labels"].tolist()

    assert labels == [[0, 1, 2, end], [-100, -100, 0, end]]


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_chat_template_puts_special_tokens_in_the_ids(tmp_path) -> None:
    built = build_character_tokenizer("hello you\n")
    built.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    built.chat_template = CHAT_TEMPLATE
    built.save_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]

    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path)):
        user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
        hello, you = tokenizer("hello")["input_ids"], tokenizer("you")["input_ids"]
        end = tokenizer.eos_token_id
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
        assert ids == [user, *hello, end, assistant, *you, end, assistant]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "helloyou"


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_parsed_but_special_ones_never_in_a_corpus(special: bool) -> None:
    tokenizer = build_character_tokenizer("hi you<|>")
    tokenizer.add_tokens(["<|user|>"], special_tokens=special)
    user = tokenizer.convert_tokens_to_ids("<|user|>")

    assert tokenizer("<|user|>hi")["input_ids"] == [user, *tokenizer("hi")["input_ids"]]
    expected = ids_of_text(tokenizer, "<|user|>hi")
    assert (user in expected) != special
    for _ in range(2):  # the tokenizer keeps the setting of its last call
        np.testing.assert_array_equal(encode_corpus(tokenizer, "<|user|>hi"), expected)
        np.testing.assert_array_equal(encode_corpus(tokenizer, ["<|user|>hi"])[:-1], expected)
        tokenizer("<|user|>")


def test_tokenizer_of_an_older_model_still_loads(tmp_path) -> None:
    """Its padding was its end of text, and it spelled out special tokens unless told otherwise."""
    build_character_tokenizer("ab").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    older = {"pad_token": "<|endoftext|>", "split_special_tokens": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | older))

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    assert len(tokenizer) == 128 + 115 + 1
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    for text in ODD_TEXTS:
        np.testing.assert_array_equal(encode_corpus(tokenizer, text), tokenizer(text)["input_ids"])


def test_reloaded_tokenizer_saves_and_loads_again(tmp_path) -> None:
    build_character_tokenizer(ODD_CORPUS).save_pretrained(tmp_path / "one")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    again = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert [again.decode(again(text)["input_ids"]) for text in ODD_TEXTS] == ODD_TEXTS


def test_text_generation_pipeline_needs_no_custom_code() -> None:
    tokenizer = build_character_tokenizer("hello world")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    generate = pipeline("text-generation", model=LlamaForCausalLM(config), tokenizer=tokenizer)
    prompts = ["", "hell", "o wörld <|endoftext|>"]
    outputs = generate(prompts[1:], batch_size=2, max_new_tokens=3, do_sample=False)
    outputs = [generate(prompts[0], max_new_tokens=3, do_sample=False), *outputs]
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output[0]["generated_text"].startswith(prompt)


@settings(deadline=None, max_examples=100)
@given(corpus=st.text(min_size=1), texts=st.lists(st.text()))
def test_encode_corpus_gives_the_ids_of_the_tokenizer(corpus: str, texts: list[str]) -> None:
    tokenizer = build_character_tokenizer(corpus)
    text = corpus.join(texts)
    np.testing.assert_array_equal(encode_corpus(tokenizer, text), ids_of_text(tokenizer, text))
    closed = [id for text in texts for id in [*ids_of_text(tokenizer, text), tokenizer.eos_token_id]]
    np.testing.assert_array_equal(encode_corpus(tokenizer, texts), closed)


def test_encode_corpus_joins_its_chunks(monkeypatch) -> None:
    monkeypatch.setattr(hfgen.tokenization, "_CHUNK_CHARACTERS", 3)
    tokenizer = build_character_tokenizer("ab")
    np.testing.assert_array_equal(encode_corpus(tokenizer, "abé👩abab"), tokenizer("abé👩abab")["input_ids"])


def test_encode_corpus_ignores_padding_and_truncation_of_earlier_calls() -> None:
    tokenizer = build_character_tokenizer("abc", model_max_length=2)
    tokenizer(["a", "abc"], padding="max_length", truncation=True, max_length=2)
    np.testing.assert_array_equal(encode_corpus(tokenizer, "abcabc"), [0, 1, 2, 0, 1, 2])


def test_encode_corpus_takes_any_tokenizer() -> None:
    backend = Tokenizer(models.WordLevel({"to": 0, "be": 1, "?": 2, "<|endoftext|>": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", model_max_length=1)
    np.testing.assert_array_equal(encode_corpus(tokenizer, "to be or"), [0, 1, 2])
    np.testing.assert_array_equal(encode_corpus(tokenizer, ["to be", "be"]), [0, 1, 3, 1, 3])


def test_encode_corpus_is_as_narrow_as_the_vocabulary_allows() -> None:
    assert encode_corpus(build_character_tokenizer("a"), "aa").dtype == np.uint16
    large = build_character_tokenizer(map(chr, range(0x10000, 0x20000)))
    ids = encode_corpus(large, chr(0x1FFFF) + "a")
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, large(chr(0x1FFFF) + "a")["input_ids"])


def test_empty_corpus_has_no_ids() -> None:
    tokenizer = build_character_tokenizer("a")
    assert encode_corpus(tokenizer, "").shape == encode_corpus(tokenizer, []).shape == (0,)
    np.testing.assert_array_equal(encode_corpus(tokenizer, [""]), [tokenizer.eos_token_id])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold characters, got none"),
        ([], "must hold characters, got none"),
        (["a", None], "got NoneType at position 1"),
        ([b"a"], "got bytes at position 0"),
        ("ab\udcff", r"lone surrogate U\+DCFF"),
    ],
)
def test_bad_corpus_is_refused_with_the_reason(text, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_character_tokenizer(text)
    if text:
        with pytest.raises(ValueError, match=message):
            encode_corpus(build_character_tokenizer("a"), text)


def test_documents_need_an_end_of_text_token() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ValueError, match="eos_token"):
        encode_corpus(PreTrainedTokenizerFast(tokenizer_object=backend), ["a"])


# ------------------------------------------------------------------------------------------------- byte-level BPE


@settings(deadline=None, max_examples=50)
@given(corpus=st.text(min_size=1), text=st.text())
def test_any_text_round_trips_through_bpe_whatever_the_corpus(corpus: str, text: str) -> None:
    tokenizer = build_bpe_tokenizer(corpus, 300)
    for string in (corpus, text):
        ids = ids_of_text(tokenizer, string)
        assert tokenizer.decode(ids) == string
        np.testing.assert_array_equal(encode_corpus(tokenizer, string), ids)


def test_bpe_merges_the_most_frequent_pairs_first() -> None:
    """The pairs "lo" and then "low" occur seven times, with a space before them six times, and "er" twice."""
    tokenizer = build_bpe_tokenizer("low " * 5 + "lower " * 2, 256 + 3 + 2)
    tokens = tokenizer.convert_ids_to_tokens(range(256, len(tokenizer)))

    assert tokens[:-2] == ["lo", "low", "Ġlow"]
    assert tokens[-2:] == ["<|endoftext|>", "<|pad|>"]
    assert tokenizer("low lower")["input_ids"] == tokenizer.convert_tokens_to_ids(["low", "Ġlow", "e", "r"])
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.padding_side) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "left",
    )


def test_bpe_is_the_same_each_time_and_of_parts_that_come_one_by_one(tmp_path) -> None:
    parts = [f" word{number % 97} and other{number % 31}" for number in range(2000)]
    tokenizer = build_bpe_tokenizer("".join(parts), 300, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)

    for text in ("".join(parts), iter(parts), ["", *parts]):
        again = build_bpe_tokenizer(text, 300)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("".join(parts))["input_ids"] == tokenizer("".join(parts))["input_ids"]
    assert loaded.model_max_length == 77


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("abc", 257, "vocab_size must be at least 258, for the bytes and the special tokens, got 257"),
        ("", 300, "text must hold characters, got none"),
        (["", ""], 300, "text must hold characters, got none"),
        (["a", 7], 300, "text must be a str or an iterable of str, got int"),
        ("a\ud800", 300, r"got the lone surrogate U\+D800"),
    ],
)
def test_bpe_refuses(text: object, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_bpe_tokenizer(text, size)


def test_a_text_too_small_for_the_vocabulary_gives_fewer_tokens() -> None:
    assert len(build_bpe_tokenizer("abcdefg", 1000)) == 258  # no pair occurs twice
