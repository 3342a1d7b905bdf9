"""Publishing a run on the Hub while it goes on.

Every push is a snapshot of the output folder, taken in milliseconds with hard links, that a thread uploads as one
commit. The training neither waits for the Hub nor fails with it: what cannot be pushed is reported, and the next push
holds it as well. If pushes take longer than training needs from one to the next, only the newest waits.
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

from hfgen.hub import CheckpointUpload, HubError, Pushed, push_command, push_files, push_folder, select_files
from hfgen.model_folder import LoadError, check_folder


logger = logging.getLogger(__name__)
Strategy: TypeAlias = Literal["end", "every_save", "checkpoint", "all_checkpoints"]
SNAPSHOTS = ".push"
CHECKPOINTS: dict[str, CheckpointUpload] = {"checkpoint": "last", "all_checkpoints": "all"}


class HubPusher:
    """Pushes of one run; to be used by the main process alone.

    Args:
        folder: the run's output folder.
        repo_id: owner/name; without an owner, the user's; the folder's name if None.
        private: make the repository private.
        strategy: when to push what, as in transformers: "end", the finished model; "every_save", the model with every
            checkpoint; "checkpoint", the newest training state too, as last-checkpoint/; "all_checkpoints", all.

    Raises:
        ValueError: the name of the repository will not do.
    """

    def __init__(self, folder: Path, repo_id: str | None = None, private: bool = False, strategy: Strategy = "end"):
        self.folder = folder
        self.repo_id = repo_id or folder.resolve().name
        self.private = private
        self.pushes_while_training = strategy != "end"
        self._checkpoints: CheckpointUpload = CHECKPOINTS.get(strategy, "none")
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"--hub_model_id {self.repo_id} will not do: {error}") from None
        self._changed = threading.Condition()
        self._waiting: tuple[int, Path] | None = None
        self._ending = False
        self._count = 0
        self._worker: threading.Thread | None = None

    @property
    def command(self) -> str:
        """What the user can run to publish the folder."""
        return push_command(self.folder, self.repo_id, self.private, checkpoints=self._checkpoints)

    def push(self, step: int) -> None:
        """Has what the folder holds now published in the background; does nothing for the strategy "end".

        The folder must hold a whole model: config.json, weights, card. A push that fails is reported, not raised.
        """
        if not self.pushes_while_training:
            return
        try:
            snapshot = self._take_snapshot()
        except (OSError, LoadError) as error:
            logger.warning("Step %d is not pushed: %s", step, error)
            return
        with self._changed:
            if self._waiting is not None:
                self._supersede(self._waiting[1], snapshot)
            self._waiting = (step, snapshot)
            self._changed.notify()
        if self._worker is None:
            # The bars would be drawn over that of the training.
            disable_progress_bars()
            self._worker = threading.Thread(target=self._work, name="push to the Hub", daemon=True)
            self._worker.start()

    def finish(self) -> bool:
        """Publishes the finished folder, and waits for it; to be called when all files are in place.

        Returns:
            Whether it is published. If not, the reason and the command that finishes it were printed.
        """
        try:
            self._end_worker()
            pushed = push_folder(
                self.folder, self.repo_id, private=self.private, message="End of training",
                checkpoints=self._checkpoints,
            )  # fmt: skip
        except (HubError, LoadError) as error:
            print(f"\nThe training is done and whole in {self.folder}, but not published. {error}", file=sys.stderr)
            return False
        except KeyboardInterrupt:
            print(
                f"\nThe training is done and whole in {self.folder}; publishing it was interrupted. To finish it:\n\n"
                f"    {self.command}\n",
                file=sys.stderr,
            )
            return False
        print(_report(pushed))
        return True

    def cancel(self) -> None:
        """Ends the pushes of a run that stopped early. No half of a commit can be left behind."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        shutil.rmtree(self.folder / SNAPSHOTS, ignore_errors=True)

    def _take_snapshot(self) -> Path:
        home = self.folder / SNAPSHOTS
        if self._count == 0:  # left by a run that was killed
            shutil.rmtree(home, ignore_errors=True)
        self._count += 1
        snapshot = home / f"{self._count}"
        for name, file in select_files(self.folder, self._checkpoints)[0].items():
            target = snapshot / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(file, target)
        check_folder(snapshot)
        return snapshot

    def _supersede(self, old: Path, new: Path) -> None:
        """Drops a snapshot that is not yet being pushed; a checkpoint that only it holds goes on to the next."""
        for checkpoint in sorted(old.glob("checkpoints/step-*")):
            target = new / "checkpoints" / checkpoint.name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                os.rename(checkpoint, target)
        shutil.rmtree(old, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None and not self._ending:
                    self._changed.wait()
                if self._waiting is None or self._ending:
                    return
                (step, snapshot), self._waiting = self._waiting, None
            try:
                files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
                message = f"Training in progress, step {step}"
                pushed = push_files(
                    files, self.repo_id, private=self.private, message=message, command=self.command, wait=self._wait
                )
                logger.info("Step %d is published: %s", step, pushed.url)
            except _Superseded:
                return
            except Exception as error:
                logger.warning("Step %d is not published, the training goes on. %s", step, error)
            finally:
                shutil.rmtree(snapshot, ignore_errors=True)

    def _wait(self, seconds: float) -> None:
        """Waits before another attempt; the end of the training ends the wait, as the last push holds everything."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending, timeout=seconds)
            if self._ending:
                raise _Superseded

    def _end_worker(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join()
        shutil.rmtree(self.folder / SNAPSHOTS, ignore_errors=True)


class _Superseded(Exception):
    """Another push does what this one was to do."""


def _report(pushed: Pushed) -> str:
    if pushed.is_new:
        return f"Published: {pushed.url} (commit {pushed.commit})"
    return f"Published already: {pushed.url} (commit {pushed.commit})"


def _link_or_copy(source: Path, target: Path) -> None:
    """Weights are replaced by renaming and never written into, so that a link keeps them; all else is small."""
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(source, target)
