"""`kdcli make-data`: write a small data set that is composed, not downloaded."""

from __future__ import annotations

from pathlib import Path

from kdcli.errors import KdError, RunError, UsageError


def make_data(
    folder: Path, *, seed: int, root: Path | None, num_train: int, num_test: int, force: bool
) -> None:
    """Compose scenes of garments from Fashion-MNIST into a folder, and tell what to do with them.

    Raises UsageError where the folder holds scenes already (unless force) or can't be written, RunError
    KD506 where Fashion-MNIST is missing.
    """
    from kdcli.data.detection.fashion_scenes import make_scenes
    from kdcli.report.console import write

    if not force and any((folder / f"{side}.json").exists() for side in ("train", "test")):
        raise UsageError.of(
            f"{folder} holds scenes already", "choose another folder, or overwrite them with `--force`"
        )
    try:
        written = make_scenes(
            folder, seed, root=None if root is None else str(root), num_train=num_train, num_test=num_test
        )
    except OSError as error:
        raise UsageError.of(f"cannot write into {folder}: {error.strerror or error}") from error
    except KdError as error:
        missing = error.diagnostics[0]
        if missing.code != "KD506":
            raise
        raise RunError.of(
            "KD506",
            missing.message,
            "install Debian's dataset-fashion-mnist, or name its folder: `--root DIR`",
        ) from error
    counts = {"train": num_train, "test": num_test}
    lines = [f"{path}  {counts[side]:,} scenes in {folder / side}\n" for side, path in written.items()]
    write("".join(lines))
