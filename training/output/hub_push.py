"""Publishing a run on the Hub while it is training.

A push uploads a snapshot of the output folder, taken in milliseconds with hard links, as one commit in a background
thread. The training neither waits for the Hub nor fails with it. While a push is under way, others are skipped, as in
transformers: the next push, or the one at the end, holds everything. Unlike in transformers, that includes checkpoints
that --checkpoints_total_limit has deleted in the meantime.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from hfgen.hub import CheckpointUpload, HubError, Pushed, push_command, push_files, select_files
from hfgen.model_folder import LoadError, check_folder


logger = logging.getLogger(__name__)
Strategy: TypeAlias = Literal["end", "every_save", "checkpoint", "all_checkpoints"]
SNAPSHOTS = ".push"
UPLOADED_CHECKPOINTS: dict[str, CheckpointUpload] = {"checkpoint": "last", "all_checkpoints": "all"}


class HubPusher:
    """The pushes of one run. Only the main process may push.

    Args:
        folder: the run's output folder.
        repo_id: OWNER/NAME or NAME; the folder's name if None.
        private: make the repository private.
        strategy: what to push when: "end", the finished model; "every_save", the model with every checkpoint, too;
            "checkpoint", also the newest checkpoint, as last-checkpoint/; "all_checkpoints", also every checkpoint.

    Raises:
        ValueError: the Hub does not allow such a name.
    """

    def __init__(self, folder: Path, repo_id: str | None = None, private: bool = False, strategy: Strategy = "end"):
        self.folder, self.private = folder, private
        self.repo_id = repo_id or folder.resolve().name
        self.pushes_while_training = strategy != "end"
        self._checkpoints: CheckpointUpload = UPLOADED_CHECKPOINTS.get(strategy, "none")
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"--hub_model_id must be a valid repository name, got {self.repo_id}. {error}") from None
        self._command = push_command(folder, self.repo_id, private, checkpoints=self._checkpoints)
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._uploading: Path | None = None
        self._snapshots = 0

    def push(self, step: int) -> None:
        """Pushes the folder in the background, unless the strategy is "end" or a push is under way.

        The folder must hold a whole model: config.json, weights, card. A push that fails is logged, not raised.
        """
        if not self.pushes_while_training:
            return
        try:
            snapshot = self._take_snapshot()
        except (OSError, LoadError) as error:
            logger.warning("Step %d is not pushed: %s", step, error)
            return
        if self._is_pushing():
            logger.info("Step %d is not pushed, because a push is under way. The next one holds it.", step)
            return
        disable_progress_bars()  # they would be drawn over that of the training
        self._uploading = snapshot
        # A daemon, because a run that was stopped does not wait for the Hub.
        self._thread = threading.Thread(
            target=self._push_step, name="push to the Hub", args=(step, snapshot), daemon=True
        )
        self._thread.start()

    def push_at_end(self) -> bool:
        """Pushes the finished folder and waits until it is published.

        Returns:
            False if it failed: the reason and the command that completes the push were printed.
        """
        try:
            self._is_ending.set()
            if self._thread is not None:
                self._thread.join()
            pushed = self._upload(self._take_snapshot(), "End of training")
        except (HubError, LoadError, OSError) as error:
            print(
                f"\nThe training is finished and saved in {self.folder}, but not published. {error}", file=sys.stderr
            )
            return False
        except KeyboardInterrupt:
            print(
                f"\nThe training is finished and saved in {self.folder}; publishing it was interrupted. To complete "
                f"it:\n\n    {self._command}\n",
                file=sys.stderr,
            )
            return False
        finally:
            shutil.rmtree(self.folder / SNAPSHOTS, ignore_errors=True)
        print(f"Published{'' if pushed.is_new else ' already'}: {pushed.url} (commit {pushed.commit})")
        return True

    def cancel(self) -> None:
        """Abandons the push of a run that was stopped. A commit is atomic: either it lands or nothing changes."""
        self._is_ending.set()
        shutil.rmtree(self.folder / SNAPSHOTS, ignore_errors=True)

    def _is_pushing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _take_snapshot(self) -> Path:
        """Returns a folder with the files that the repository is to hold, laid out as there.

        Earlier snapshots that were not published are dissolved. Checkpoints that only they hold move to the new one.
        """
        home = self.folder / SNAPSHOTS
        if not self._snapshots:  # left by a run that was killed
            shutil.rmtree(home, ignore_errors=True)
        self._snapshots += 1
        snapshot, uploading = home / f"{self._snapshots}", self._uploading if self._is_pushing() else None
        for name, file in select_files(self.folder, self._checkpoints)[0].items():
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(file, snapshot / name)
        check_folder(snapshot)
        for earlier in [path for path in home.iterdir() if path not in (snapshot, uploading)]:
            for checkpoint in earlier.glob("checkpoints/step-*"):
                target = snapshot / "checkpoints" / checkpoint.name
                if not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    checkpoint.rename(target)
            shutil.rmtree(earlier, ignore_errors=True)
        return snapshot

    def _push_step(self, step: int, snapshot: Path) -> None:
        try:
            pushed = self._upload(snapshot, f"Training in progress, step {step}", self._wait_while_training)
            logger.info("Step %d is published: %s", step, pushed.url)
        except Exception as error:
            logger.warning("Step %d is not published; the next push holds it. %s", step, error)
        else:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _wait_while_training(self, seconds: float) -> None:
        """Waits for the next attempt of a push, and gives it up when the training ends."""
        if self._is_ending.wait(seconds):
            raise HubError("The training has ended.")

    def _upload(self, snapshot: Path, message: str, wait: Callable[[float], None] = time.sleep) -> Pushed:
        files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
        command = self._command
        return push_files(files, self.repo_id, private=self.private, message=message, command=command, wait=wait)


def _link_or_copy(source: Path, target: Path) -> None:
    """Weights are replaced by renaming and never written into, so a link keeps them; everything else is small."""
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(source, target)
