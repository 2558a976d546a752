"""The command `transduce`. What it is asked is checked before TensorFlow is imported."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from pydantic import NonNegativeInt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import jobfile, running
from pipelines.cluster import HIGHEST_PORT
from pipelines.errors import (
    FAILURE,
    INTERRUPTED,
    LOST,
    TERMINATED,
    USAGE,
    Interrupted,
    LostWorker,
    Terminated,
    Termination,
    UsageError,
)
from pipelines.folder import RunFolder
from pipelines.job import MODEL_NAME, STRATEGIES, Job, PositiveFloat
from pipelines.jobfile import JobFile
from pipelines.summary import print_numbers

_LINES_AT_ONCE = 64
_LONGEST_NAME = 40  # characters of a text in the name of its picture
_ABOUT = """Sequence models in TensorFlow, from raw data to a served model.

$ transduce jobs              the jobs there are
$ transduce run JOB           train, evaluate, export, serve and verify a job
$ transduce run JOB --help    what can be set about it
$ transduce prepare JOB       its data alone

Exit codes: 0 success, 1 failure, 2 bad usage, 75 another worker was lost, 130 interrupted, 143
terminated by SIGTERM; after the last three the same command goes on where it was."""

Positional = tyro.conf.Positional


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)  # so that what was started is ended, too
    sys.exit(_guarded(lambda: _dispatch(arguments)))


def _terminate(number, frame) -> None:
    raise Termination


def _dispatch(arguments: list[str]) -> int | None:
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    if arguments[:1] == ["prepare"]:
        return _prepare(arguments[1:])
    return tyro.extras.subcommand_cli_from_dict(
        {
            "run": _run_help,
            "prepare": _prepare_help,
            "jobs": jobs,
            "evaluate": evaluate,
            "explain": explain,
            "export": export,
            "serve": serve,
            "serve_data": serve_data,
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
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        return _say(f"{error}; the same command goes on from there", code)
    except LostWorker as error:
        return _say(error.told, LOST)
    except Termination:
        return _say("terminated", TERMINATED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        if os.environ.get("TRANSDUCE_TRACEBACK"):
            raise
        return _say(_explained(error), FAILURE)


def _say(message: object, code: int) -> int:
    print(f"transduce: {message}", file=sys.stderr)
    return code


def _explained(error: Exception) -> str:
    """Returns the message of an error of ours; of others also the kind, and how to see more."""
    if type(error).__module__.partition(".")[0] in ("pipelines", "keras_models", "serving"):
        return str(error)
    return f"{type(error).__name__}: {error}\nTRANSDUCE_TRACEBACK=1 shows where it came from."


def _in_words(error: pydantic.ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or error.title}: {each['msg']}. "
        f"Received: {each['input']!r}"
        for each in error.errors()
    )


def _run_help(job: Positional[str]) -> None:
    """Train, evaluate, export, serve and verify a job."""


def _prepare_help(job: Positional[str]) -> None:
    """Do the first stage of a job alone: its data, for `run` to go on from; by Beam if asked."""


def _run(arguments: list[str]) -> int:
    if _asks_for_help("run", arguments):
        return 0
    file = jobfile.load(arguments[0])
    again = "Run again, it goes on where it stopped."
    asked, job = _asked("run", arguments, file, _run_options(), again)
    names = [field.name for field in dataclasses.fields(running.Options)]
    options = running.Options(**{name: getattr(asked, name) for name in names})
    return running.run_job(file, job, options, ["run", *arguments])


def _prepare(arguments: list[str]) -> int:
    if _asks_for_help("prepare", arguments):
        return 0
    file = jobfile.load(arguments[0])
    about = "Prepares the data alone. `transduce run` with the same settings goes on from there."
    asked, job = _asked("prepare", arguments, file, _prepare_options(), about)
    running.prepare_job(file, job, asked.folder, asked.runner, asked.runner_options)
    return 0


def _asks_for_help(command: str, arguments: list[str]) -> bool:
    """Prints how a command is used, if that is all that was asked; checks that a job comes first.

    Raises:
        UsageError: If none does.
    """
    usage = (
        f"usage: transduce {command} JOB [--quick] [--folder DIR] [--train.steps N …]\n"
        f"JOB comes first: one of {', '.join(jobfile.names())}, or a job file. "
        f"What can be set is told by: transduce {command} JOB --help"
    )
    if arguments in (["-h"], ["--help"]):
        print(usage)
        return True
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(usage)
    return False


def _asked(
    command: str, arguments: list[str], file: JobFile, options: list[tuple], about: str
) -> tuple[Any, Job]:
    """Returns the options of a command about a job, and the job as it is to be."""
    asked = tyro.cli(
        _arguments(file.job("--quick" in arguments), options),
        args=arguments[1:],
        prog=f"transduce {command} {arguments[0]}",
        description=f"{file.about()['title']}\n\n{about}",
        config=(tyro.conf.AvoidSubcommands,),  # a part is of the type that it has in the job
        use_underscores=True,
    )
    job = Job(**{part.name: getattr(asked, part.name) for part in dataclasses.fields(Job)})
    folder = asked.folder or Path("runs") / (file.name + "-quick" * asked.quick)
    return dataclasses.replace(asked, folder=folder), job


def _arguments(job: Job, options: list[tuple]) -> type:
    """Returns a dataclass of a job's parts and of the options that are no part of it."""
    folder = tyro.conf.arg(help="Where the run is recorded; None: runs/JOB.")
    quick = tyro.conf.arg(help="Take the job's quick setting: smaller, sooner, worse.")
    everywhere = [
        ("folder", Annotated[Path | None, folder], dataclasses.field(default=None)),
        ("quick", Annotated[bool, quick], dataclasses.field(default=False)),
    ]
    parts = [
        (
            part.name,
            type(getattr(job, part.name)),
            dataclasses.field(default=getattr(job, part.name)),
        )
        for part in dataclasses.fields(job)
    ]
    return dataclasses.make_dataclass("Asked", everywhere + options + parts, frozen=True)


def _prepare_options() -> list[tuple]:
    runner = tyro.conf.arg(help="Prepare data sets of TFDS by Beam: DirectRunner, say.")
    options = tyro.conf.arg(help="Options of the runner: project=mine region=here, say.")
    return [
        ("runner", Annotated[str, runner], dataclasses.field(default="")),
        ("runner_options", Annotated[tuple[str, ...], options], dataclasses.field(default=())),
    ]


def _run_options() -> list[tuple]:
    strategy = tyro.conf.arg(help="Where replicas of the model run; auto: every GPU, else the CPU.")
    workers = tyro.conf.arg(
        help="With multi_worker or parameter_server: processes to start on this machine."
    )
    servers = tyro.conf.arg(
        help="With parameter_server: processes to start that hold the weights; 0: one."
    )
    timeout = tyro.conf.arg(help="Seconds to wait until all workers are there.")
    profile = tyro.conf.arg(help="Steps to write a profile of, for TensorBoard.")
    service = tyro.conf.arg(
        name="data.service",
        help="Make batches by a tf.data service: so many processes started for it, or "
        "grpc://HOST:PORT to join one. The batches are the same.",
    )
    return [
        ("strategy", Annotated[STRATEGIES, strategy], dataclasses.field(default="auto")),
        ("workers", Annotated[NonNegativeInt, workers], dataclasses.field(default=0)),
        ("servers", Annotated[NonNegativeInt, servers], dataclasses.field(default=0)),
        ("worker_timeout", Annotated[PositiveFloat, timeout], dataclasses.field(default=600.0)),
        ("profile", Annotated[NonNegativeInt, profile], dataclasses.field(default=0)),
        ("service", Annotated[str, service], dataclasses.field(default="")),
    ]


def _open_trained(path: Path, **fields: object):
    """Returns the run recorded in a folder, which has best weights.

    Args:
        path: The folder.
        **fields: Other values for fields of the model's configuration; None leaves one as it is.
    """
    _, job = RunFolder(path).job()
    model = _changed(job.model, {name: x for name, x in fields.items() if x is not None})
    if not (path / "best").exists():
        raise UsageError(f"{path} holds a run that has not trained to a first evaluation. Run it.")
    return running.open_run(path, model=model)


def _changed(config: Any, fields: dict[str, object]) -> Any:
    missing = fields.keys() - {field.name for field in dataclasses.fields(config)}
    if missing:
        raise UsageError(
            f"The run's model, a {type(config).__name__}, must have what is to be changed. "
            f"Received: {', '.join(f'--{name}' for name in sorted(missing))}"
        )
    return dataclasses.replace(config, **fields)


def jobs() -> None:
    """List the jobs: what they do, on which data, what they reach and in what time."""
    table = Table("job", "task", "data", "result", "time")
    for name in jobfile.names():
        about = jobfile.load(name).about()
        cells = (about["title"], *(about.get(key, "") for key in ("Data", "Result", "Time")))
        table.add_row(name, *(Text(cell) for cell in cells))
    Console(highlight=False).print(table)


def evaluate(
    run: Positional[Path],
    split: Literal["train", "validation", "test"] = "test",
    beam: int | None = None,
    search: str | None = None,
    length_normalization: float | None = None,
) -> None:
    """Measure a run's best weights on a split.

    Args:
        run: The run's folder.
        split: What to measure on.
        beam: Hypotheses that the model's search keeps; the run's own --model.beam, if None.
        search: How a beam is searched; the run's own --model.search, if None.
        length_normalization: What a beam ranks by at its end, from 0 to 1; the run's own
            --model.length_normalization, if None.
    """
    trained = _open_trained(
        run, beam=beam, search=search, length_normalization=length_normalization
    )
    print_numbers(Console(highlight=False), split, trained.evaluation(split).numbers)


def explain(
    run: Positional[Path], text: Positional[str], answer: str | None = None, to: Path | None = None
) -> None:
    """Show how an answer of a run's best weights goes back to its input: in words and a picture.

    Args:
        run: The run's folder.
        text: What to answer.
        answer: The answer to explain; the model's own, if None.
        to: Where to save the picture; RUN/plots/explain-TEXT.png, if None.
    """
    if to is None:
        to = run / "plots" / ("explain-" + re.sub(r"\W+", "-", text)[:_LONGEST_NAME] + ".png")
    elif to.suffix != ".png" or not to.absolute().parent.is_dir():
        raise UsageError(f"`to` must be a .png file in a folder that exists. Received: {to}")
    found, explanation = _open_trained(run).explain(text, answer)
    from pipelines.drawing import describe, draw

    to.parent.mkdir(exist_ok=True)
    draw(explanation, to)
    print(found, *describe(explanation), to, sep="\n")


def export(
    run: Positional[Path],
    to: Path,
    name: str = "",
    version: int | None = None,
    beam: int | None = None,
    search: str | None = None,
    length_normalization: float | None = None,
    n_best: int | None = None,
) -> None:
    """Export a run's best weights as a SavedModel that takes raw input and gives answers.

    Args:
        run: The run's folder.
        to: The folder of models; the model goes to TO/NAME/VERSION.
        name: What the served model is called; the job's export name, if empty.
        version: A positive number that is not taken; one more than the highest, if None.
        beam: Hypotheses that the model's search keeps; the run's own --model.beam, if None.
        search: How a beam is searched; the run's own --model.search, if None.
        length_normalization: What a beam ranks by at its end, from 0 to 1; the run's own
            --model.length_normalization, if None.
        n_best: Hypotheses that the signature n_best gives; the run's own --model.n_best, if None.
    """
    if version is not None and version < 1:
        raise UsageError(f"`version` must be positive. Received: {version}")
    if name and not re.fullmatch(MODEL_NAME, name):
        raise UsageError(
            "`name` must be of letters, digits, '_', '.' and '-', and begin with none of the last "
            f"two. Received: {name!r}"
        )
    trained = _open_trained(
        run, beam=beam, search=search, length_normalization=length_normalization, n_best=n_best
    )
    print(trained.export_to(to, name, version))


def serve(models: Positional[Path], port: int = 8500, rest_api_port: int = 8501) -> int:
    """Serve every model under a folder over gRPC and REST, as TF Serving does.

    Args:
        models: Folder of MODEL/VERSION.
        port: For gRPC.
        rest_api_port: For REST; 0 for none.
    """
    _require_ports(port=port, rest_api_port=rest_api_port)
    from serving.model_server import main as serve_models

    flags = [f"--model_root={models}", f"--port={port}", f"--rest_api_port={rest_api_port}"]
    return FAILURE if serve_models(flags) else 0


def _require_ports(**ports: int) -> None:
    for name, value in ports.items():
        if not 0 <= value <= HIGHEST_PORT:
            raise UsageError(f"`{name}` must be in 0 … {HIGHEST_PORT}. Received: {value}")


def serve_data(join: str = "", host: str = "localhost", port: int = 0) -> None:
    """Take part in a tf.data service, whose batches runs get with --data.service.

    The first one, without `join`, shares out the work. Those that join it do it: they must see the
    folders of the runs by the same names.

    Args:
        join: grpc://HOST:PORT of the first one.
        host: What others reach this machine by.
        port: Where to listen; 0 for any that is free. Nobody else should reach it.
    """
    _require_ports(port=port)
    if join and not running.is_dispatcher(join):
        raise UsageError(f"`join` must be grpc://HOST:PORT. Received: {join!r}")
    running.serve_data(join, host, port)


def query(
    model: Positional[str],
    texts: Positional[tuple[str, ...]] = (),
    files: tuple[Path, ...] = (),
    given: dict[str, str] = {},  # noqa: B006 (a default to show, never changed)
    address: str = "localhost:8500",
    signature: str = "",
    n_best: int | None = None,
    timestamps: bool = False,
    stream: bool = False,
    json: bool = False,
    timeout: float = 30.0,
) -> None:
    """Ask a served model; one answer a line.

    Args:
        model: The model's name.
        texts: What to ask; lines of standard input, if none. What takes numbers is asked in JSON.
        files: Files to ask in place of texts, such as images.
        given: Further inputs of the signature for all that is asked, as in `temperature 0.7`.
        address: HOST:PORT or unix:PATH of the server.
        signature: Which of the model's functions to call; if empty, the one of what is asked for.
        n_best: Print so many answers to each text, the best first: text, log-probability, answer.
        timestamps: Print where in the text each token of an answer was emitted: TOKEN@SYMBOL.
        stream: Take the texts, or lines, for pieces of one text; print its answer after each piece
            and at the end.
        json: Print all outputs as a JSON object a line, not the answer alone.
        timeout: Seconds to wait for an answer.
    """
    if signature and (n_best is not None or timestamps):
        raise UsageError("`signature` goes without `n_best` and `timestamps`, which choose one.")
    if stream and (signature or n_best is not None or timestamps):
        raise UsageError("`stream` goes without `signature`, `n_best` and `timestamps`.")
    if n_best is not None and n_best < 1:
        raise UsageError(f"`n_best` must be at least 1. Received: {n_best}")
    if files and (texts or stream):
        raise UsageError("`files` goes without texts and `stream`.")
    unread = [str(file) for file in files if not file.is_file()]
    if unread:
        raise UsageError(f"`files` must be files. Received: {', '.join(unread)}")
    from pipelines import answers, questions
    from serving.client import Client

    chosen = signature or answers.signature(n_best, timestamps)
    with Client(address) as client:
        if stream:
            pieces = ([text] for batch in _batches(texts) for text in batch)
            for streamed in client.stream(model, pieces, timeout=timeout):
                for line in answers.lines([""], streamed.outputs, None, False, json):
                    print(line, flush=True)
            return
        known = client.metadata(model, timeout=timeout)["signatures"].get(chosen, {})
        for names, asked in (
            _files(files) if files else ((batch, batch) for batch in _batches(texts))
        ):
            inputs = questions.inputs(asked, given, known["inputs"]) if known else asked
            outputs = client.predict(model, inputs, signature=chosen, timeout=timeout)
            for line in answers.lines(names, outputs, n_best, timestamps, json):
                print(line, flush=True)


def _files(files: Sequence[Path]) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yields names and contents of the files that are asked together."""
    for first in range(0, len(files), _LINES_AT_ONCE):
        some = files[first : first + _LINES_AT_ONCE]
        yield [str(file) for file in some], [file.read_bytes() for file in some]


def _batches(texts: tuple[str, ...]) -> Iterator[list[str]]:
    """Yields what to ask together: a file's lines in numbers, a pipe's as they come."""
    if texts:
        yield list(texts)
        return
    if sys.stdin.isatty():
        print("reading lines from standard input", file=sys.stderr)
    size = _LINES_AT_ONCE if sys.stdin.seekable() else 1
    lines = (line.rstrip("\n") for line in sys.stdin)
    while batch := list(itertools.islice(lines, size)):
        yield batch


if __name__ == "__main__":
    main()
