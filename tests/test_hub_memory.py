"""Two gigabytes up and down, in shards of one: what that takes in memory. Needs Linux, 8 GB of disk, some minutes.

HFGEN_SLOW=1 python -m pytest tests/test_hub_memory.py -s
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import hfgen
from hfgen.model_folder import code_files

from .hub.fixture import running_hub
from .runs import ROOT


MEGABYTE = 2**20
SHARD = 10**9
# Peak memory of the process, above what it has after all imports and one small push. (The peak that `resource` reports
# can be that of the parent.)
CLIENT = """
import json, re, sys
from hfgen.hub import push_folder, pull
from hfgen.model_folder import check_folder
def memory(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
action, small, big, repo = sys.argv[1:]
if action == "push":
    push_folder(small, repo + "-small")
    before = memory("VmRSS")
    push_folder(big, repo)
else:
    pull(repo + "-small", small)
    before = memory("VmRSS")
    pull(repo, big)
print(json.dumps(memory("VmHWM") - before))
"""


@pytest.mark.skipif("HFGEN_SLOW" not in os.environ, reason="takes minutes and 8 GB of disk: HFGEN_SLOW=1")
def test_two_gigabytes_take_little_memory(tmp_path: Path) -> None:
    small, big = tmp_path / "small", tmp_path / "big"
    write_model(hfgen.GPTConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=1), small)
    size = write_model(
        hfgen.GPTConfig(vocab_size=64, hidden_size=2048, intermediate_size=8192, num_hidden_layers=10,
                        num_attention_heads=16), big)  # fmt: skip
    assert size > 2e9 and len(list(big.glob("*.safetensors"))) == 3
    with running_hub(tmp_path / "hub") as hub:
        env = hub.env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CLIENT]
        up = hub.run([*command, "push", small, big, "alice/big"], env=env, timeout=900).stdout
        pulled = tmp_path / "pulled"
        down = hub.run([*command, "pull", tmp_path / "s", pulled, "alice/big"], env=env, timeout=900).stdout
        extra = {"up": int(up), "down": int(down)}
        print(f"\n{size / 1e9:.2f} GB: {extra['up'] / 1e6:.0f} MB more to push, {extra['down'] / 1e6:.0f} MB to pull")
        for path in big.glob("*.safetensors"):
            assert (pulled / path.name).stat().st_size == path.stat().st_size
        assert max(extra.values()) < 300e6


def write_model(config: hfgen.GPTConfig, folder: Path) -> int:
    """Writes a model that is never in memory: shards with a header and random bytes. Returns bytes of weights."""
    folder.mkdir()
    with torch.device("meta"):
        model = hfgen.GPTForCausalLM(config)
    config.architectures = ["GPTForCausalLM"]
    config.save_pretrained(folder)
    for path in code_files(ROOT / "hfgen" / "models" / "modeling_gpt.py"):
        shutil.copyfile(path, folder / path.name)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        if sum(map(_bytes, shards[-1].values())) + _bytes(tensor) > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    placed = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        placed |= dict.fromkeys(tensors, name)
        _write_shard(folder / name, tensors)
    total = sum(_bytes(tensor) for tensors in shards for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * 4


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, position = {}, 0
    for name, tensor in tensors.items():
        end = position + _bytes(tensor)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position > 0:
            file.write(os.urandom(min(MEGABYTE, position)))
            position -= MEGABYTE
