"""A wheel of the repository, installed elsewhere, runs a job: nothing needs the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
    --model.embedding_units 5 --model.encoder_units 6 --model.predictor_units 7
    --model.joint_units 8 --train.steps 4 --train.evaluate_every 4 --data.buckets 2
""".split()


def call(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_runs_a_job_away_from_the_checkout(tmp_path):
    call(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", wheel, cwd=tmp_path)
    # What the wheel requires is lent by this environment, behind the wheel itself.
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(call(python, "-c", where, cwd=tmp_path).strip())
    (packages / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + os.linesep)
    found = call(python, "-c", "import pipelines; print(pipelines.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(packages)
    (tmp_path / "my.tsv").write_text("".join(f"w{n}\tW {n}\n" for n in range(300)))
    transduce = python.with_name("transduce")
    printed = call(
        transduce, "run", "g2p_transducer", "--data.train", "my.tsv", *SMALL, cwd=tmp_path
    )
    assert "serve" in printed
    assert (tmp_path / "runs/g2p_transducer/models/g2p_transducer/1/saved_model.pb").exists()
