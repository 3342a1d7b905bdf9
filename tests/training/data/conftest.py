from __future__ import annotations

import datasets
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", str(tmp_path_factory.mktemp("downloads")))
    datasets.disable_progress_bars()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer's own environment says."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
