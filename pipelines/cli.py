"""The command `transduce`. What it is asked is checked before TensorFlow is imported."""

from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import jobfile
from pipelines.display import Display, label, show
from pipelines.errors import Interrupted, UsageError
from pipelines.folder import RunFolder
from pipelines.job import Job
from pipelines.jobfile import JobFile
from serving.model_server.quiet import import_tensorflow

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
_HIGHEST_PORT = 65535
_ABOUT = """Sequence models in TensorFlow, from raw data to a served model.

$ transduce jobs              the jobs there are
$ transduce run JOB           train, evaluate, export, serve and verify a job
$ transduce run JOB --help    what can be set about it

Exit codes: 0 success, 1 failure, 2 bad usage, 130 interrupted (run again to go on)."""

Positional = tyro.conf.Positional


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_guarded(lambda: _dispatch(arguments)))


def _dispatch(arguments: list[str]) -> int | None:
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    return tyro.extras.subcommand_cli_from_dict(
        {
            "run": _run_help,
            "jobs": jobs,
            "evaluate": evaluate,
            "export": export,
            "serve": serve,
            "query": query,
        },
        args=arguments or ["--help"],
        prog="transduce",
        description=_ABOUT,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )


def _guarded(command: Callable[[], int | None]) -> int:
    """Returns the exit code of a command; what went wrong is said in words."""
    try:
        return command() or 0
    except UsageError as error:
        return _say(error, USAGE)
    except pydantic.ValidationError as error:
        return _say(_in_words(error), USAGE)
    except Interrupted as error:
        return _say(f"{error}; the same command goes on from there", INTERRUPTED)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        if os.environ.get("TRANSDUCE_TRACEBACK"):
            raise
        return _say(error, FAILURE)


def _say(message: object, code: int) -> int:
    print(f"transduce: {message}", file=sys.stderr)
    return code


def _in_words(error: pydantic.ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or error.title}: {each['msg']}. "
        f"Received: {each['input']!r}"
        for each in error.errors()
    )


@dataclass(frozen=True)
class RunOptions:
    """What belongs to a run but not to its job."""

    folder: Path | None = None
    """Where the run is recorded; None: runs/JOB."""
    quick: bool = False
    """The job's quick setting: smaller, sooner, worse."""


def _run_help(job: Positional[str]) -> None:
    """Train, evaluate, export, serve and verify a job."""


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(
            "usage: transduce run JOB [--quick] [--folder DIR] [--train.steps N …]\n"
            f"JOB comes first: one of {', '.join(jobfile.names())}, or a job file. "
            "What can be set is told by: transduce run JOB --help"
        )
    file = jobfile.load(arguments[0])
    options, rest = tyro.cli(
        RunOptions, args=arguments[1:], return_unknown_args=True, add_help=False
    )
    job = tyro.cli(
        Job,
        args=rest,
        default=file.job(options.quick),
        prog=f"transduce run {arguments[0]}",
        description=_about_run(file),
        use_underscores=True,
    )
    path = options.folder or Path("runs") / (file.name + "-quick" * options.quick)
    folder = RunFolder(path)
    folder.start(file, job)
    run = _open(path)
    run.run()
    _summarise(run)


def _about_run(file: JobFile) -> str:
    return (
        f"{file.about()['title']}\n\n"
        "--folder DIR   where the run is recorded (default: runs/JOB)\n"
        "--quick        the job's quick setting: smaller, sooner, worse\n\n"
        "Run again, it goes on where it stopped."
    )


def _open(path: Path):
    """Returns the run recorded in a folder."""
    folder = RunFolder(path)
    folder.job()  # bad usage is told before the seconds that TensorFlow takes
    import_tensorflow()
    from pipelines.run import Run

    return Run(folder, Display())


def _open_trained(path: Path):
    """Returns the run recorded in a folder, which has best weights."""
    RunFolder(path).job()
    if not (path / "best").exists():
        raise UsageError(f"{path} holds a run that has not trained to a first evaluation. Run it.")
    return _open(path)


def _summarise(run) -> None:
    """Prints what the run came to, and how to use it."""
    console, folder = Console(highlight=False, soft_wrap=True), run.folder
    evaluation = json.loads((folder.path / "evaluation.json").read_text(encoding="utf-8"))
    _print_numbers(console, "test", evaluation["numbers"])
    console.print(_examples(evaluation, run.job.train.seed))
    command, models, name = _this_command(), folder.path / "models", run.model_name
    console.print(f"model     {folder.path / folder.done('export')['path']}")
    console.print(f"pictures  {folder.path / 'plots'}")
    console.print(f"report    {folder.path / 'report.md'}")
    console.print(f"serve     {command} serve {models}")
    text = evaluation["inputs"][len(evaluation["inputs"]) // 2]
    console.print(f"query     {command} query {name} {shlex.quote(text)}")


def _print_numbers(console: Console, split: str, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        console.print(f"{split} {label(name)} {show(name, value)}")


def _examples(evaluation: dict, seed: int) -> Table:
    rows = list(zip(*(evaluation[k] for k in ("inputs", "answers", "references")), strict=True))
    table = Table("input", "answer", "references", "")
    for text, answer, references in random.Random(seed).sample(rows, min(10, len(rows))):
        right = "right" if answer in references else "wrong"
        table.add_row(Text(text), Text(answer), Text("; ".join(references)), right)
    return table


def _this_command() -> str:
    """Returns how this command can be called again from here."""
    called = Path(sys.argv[0])
    if shutil.which("transduce") == str(called) or called.name != "transduce":
        return "transduce"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)


def jobs() -> None:
    """List the jobs: what they do, on which data, what they reach and in what time."""
    table = Table("job", "task", "data", "result", "time")
    for name in jobfile.names():
        about = jobfile.load(name).about()
        cells = (about["title"], *(about.get(key, "") for key in ("Data", "Result", "Time")))
        table.add_row(name, *(Text(cell) for cell in cells))
    Console(highlight=False).print(table)


def evaluate(run: Positional[Path], split: Literal["train", "validation", "test"] = "test") -> None:
    """Measure a run's best weights on a split.

    Args:
        run: The run's folder.
        split: What to measure on.
    """
    _print_numbers(Console(highlight=False), split, _open_trained(run).evaluation(split).numbers)


def export(
    run: Positional[Path],
    to: Path,
    name: str = "",
    version: int | None = None,
) -> None:
    """Export a run's best weights as a SavedModel that takes raw input and gives answers.

    Args:
        run: The run's folder.
        to: The folder of models; the model goes to TO/NAME/VERSION.
        name: What the served model is called; the job's export name, if empty.
        version: A positive number that is not taken; one more than the highest, if None.
    """
    if version is not None and version < 1:
        raise UsageError(f"`version` must be positive. Received: {version}")
    print(_open_trained(run).export_to(to, name, version))


def serve(models: Positional[Path], port: int = 8500, rest_api_port: int = 8501) -> int:
    """Serve every model under a folder over gRPC and REST, as TF Serving does.

    Args:
        models: Folder of MODEL/VERSION.
        port: For gRPC.
        rest_api_port: For REST; 0 for none.
    """
    for name, value in {"port": port, "rest_api_port": rest_api_port}.items():
        if not 0 <= value <= _HIGHEST_PORT:
            raise UsageError(f"`{name}` must be in 0 … {_HIGHEST_PORT}. Received: {value}")
    from serving.model_server import main as serve_models

    flags = [f"--model_root={models}", f"--port={port}", f"--rest_api_port={rest_api_port}"]
    return FAILURE if serve_models(flags) else 0


def query(
    model: Positional[str],
    texts: Positional[tuple[str, ...]] = (),
    address: str = "localhost:8500",
    signature: str = "serving_default",
    json: bool = False,
    timeout: float = 30.0,
) -> None:
    """Ask a served model; one answer a line.

    Args:
        model: The model's name.
        texts: What to ask; lines of standard input, if none.
        address: HOST:PORT or unix:PATH of the server.
        signature: Which of the model's functions to call.
        json: Print all outputs as a JSON object a line, not the answer alone.
        timeout: Seconds to wait for an answer.
    """
    from serving.client import Client

    with Client(address) as client:
        for batch in _batches(texts or (line.rstrip("\n") for line in sys.stdin)):
            outputs = client.predict(model, batch, signature=signature, timeout=timeout)
            for line in _lines(outputs, len(batch), json):
                print(line, flush=True)


def _batches(texts: Iterable[str], size: int = 64) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(itertools.islice(texts, size)):
        yield batch


def _lines(outputs: dict, count: int, as_json: bool) -> Iterator[str]:
    """Yields a line an example: all outputs, or the first text among them, else the first."""
    answer = next((n for n, value in outputs.items() if value.dtype == object), next(iter(outputs)))
    columns = {name: value.tolist() for name, value in outputs.items()}
    for i in range(count):
        example = {name: column[i] for name, column in columns.items()}
        yield json.dumps(example, ensure_ascii=False) if as_json else str(example[answer])


if __name__ == "__main__":
    main()
