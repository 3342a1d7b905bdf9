"""Pushes to the Hub while a run goes on.

A push takes a snapshot of the output folder, in milliseconds with hard links, and a thread uploads it as one commit.
The training neither waits for the Hub nor fails with it. A push that falls due while another one is under way is
skipped, as in transformers: the next one, or the last one, holds everything that is then in the folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from hfgen.hub import CheckpointUpload, HubError, push_command, push_files, push_folder, select_files
from hfgen.model_folder import LoadError, check_folder


logger = logging.getLogger(__name__)

Strategy: TypeAlias = Literal["end", "every_save", "checkpoint", "all_checkpoints"]
SNAPSHOT = ".push"
CHECKPOINTS: dict[str, CheckpointUpload] = {"checkpoint": "last", "all_checkpoints": "all"}


class HubPusher:
    """The pushes of one run, on its main process.

    Args:
        folder: the run's output folder.
        repo_id: owner/name; without an owner, the user's; the folder's name if None.
        private: make the repository private.
        strategy: what to push when, as in transformers: "end", the finished model; "every_save", the model with every
            checkpoint; "checkpoint", also the newest checkpoint, as last-checkpoint/; "all_checkpoints", also all
            checkpoints that are in the folder at that time.

    Raises:
        ValueError: the name of the repository is invalid.
    """

    def __init__(self, folder: Path, repo_id: str | None = None, private: bool = False, strategy: Strategy = "end"):
        self.folder, self.repo_id, self.private = folder, repo_id or folder.resolve().name, private
        self.pushes_while_training = strategy != "end"
        self._checkpoints: CheckpointUpload = CHECKPOINTS.get(strategy, "none")
        self._snapshot = folder / SNAPSHOT
        self._ending = threading.Event()
        # A daemon, so that a run that was asked to stop does not wait for the Hub.
        self._thread: threading.Thread | None = None
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"--hub_model_id {self.repo_id} is not a valid repository name: {error}") from None

    def push(self, step: int) -> None:
        """Pushes what the folder holds now, in the background; does nothing with the strategy "end".

        The folder must hold a whole model: config.json, weights, card. A push that fails is reported, not raised.
        """
        if not self.pushes_while_training:
            return
        if self._thread is not None and self._thread.is_alive():
            logger.info("Step %d is not pushed on its own: the push of an earlier step is still under way.", step)
            return
        try:
            files = self._take_snapshot()
        except (OSError, LoadError) as error:
            logger.warning("Step %d is not pushed: %s", step, error)
            return
        disable_progress_bars()  # they would be drawn over that of the training
        self._thread = threading.Thread(target=self._upload, args=(step, files), name="push to the Hub", daemon=True)
        self._thread.start()

    def push_at_end(self) -> bool:
        """Publishes the finished folder and waits for it.

        Returns:
            True if it is published. Otherwise the reason, and the command that completes the push, were printed.
        """
        self._ending.set()
        command = push_command(self.folder, self.repo_id, self.private, checkpoints=self._checkpoints)
        done = f"\nThe training is done and whole in {self.folder}"
        try:
            if self._thread is not None:
                self._thread.join()
            pushed = push_folder(
                self.folder,
                self.repo_id,
                private=self.private,
                message="End of training",
                checkpoints=self._checkpoints,
            )
        except (HubError, LoadError) as error:
            print(f"{done}, but not published. {error}", file=sys.stderr)
            return False
        except KeyboardInterrupt:
            print(f"{done}; publishing it was interrupted. To complete it:\n\n    {command}\n", file=sys.stderr)
            return False
        print(f"Published{'' if pushed.is_new else ' already'}: {pushed.url} (commit {pushed.commit})")
        return True

    def cancel(self) -> None:
        """Ends the pushes of a run that stopped early. A commit is atomic, so none is left half done."""
        self._ending.set()
        shutil.rmtree(self._snapshot, ignore_errors=True)

    def _take_snapshot(self) -> dict[str, Path]:
        """Links or copies what is to be pushed; returns path in the repository -> file."""
        shutil.rmtree(self._snapshot, ignore_errors=True)  # of a run that was killed
        files = {}
        for name, file in select_files(self.folder, self._checkpoints)[0].items():
            files[name] = self._snapshot / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(file, files[name])
        check_folder(self._snapshot)
        return files

    def _upload(self, step: int, files: dict[str, Path]) -> None:
        command = push_command(self.folder, self.repo_id, self.private, checkpoints=self._checkpoints)
        message = f"Training in progress, step {step}"
        try:
            pushed = push_files(
                files, self.repo_id, private=self.private, message=message, command=command, wait=self._pause
            )
            logger.info("Step %d is published: %s", step, pushed.url)
        except Exception as error:
            if not self._ending.is_set():
                logger.warning("Step %d is not published, the training continues. %s", step, error)
        finally:
            shutil.rmtree(self._snapshot, ignore_errors=True)

    def _pause(self, seconds: float) -> None:
        """Waits before another attempt, but not beyond the end of the training, whose push holds everything."""
        if self._ending.wait(seconds):
            raise HubError("The training has ended.")


def _link_or_copy(source: Path, target: Path) -> None:
    """Links weights, which are replaced by renaming and never written into; copies everything else, which is small."""
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(source, target)
