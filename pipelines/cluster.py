"""The processes of a run that is spread over several: `TF_CONFIG`, read without TensorFlow."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

from pipelines.errors import UsageError

Role = Literal["chief", "worker", "ps"]
# Set for processes that a supervisor on this machine has started.
SUPERVISED = "TRANSDUCE_SUPERVISED"
_PORTS = range(20_000, 32_000)  # below those that systems give to whoever calls
_PROGRAM = "import sys; sys.path[:] = {!r}; from pipelines.cli import main; main()"
HIGHEST_PORT = 65535
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclass(frozen=True)
class Cluster:
    """Where the processes of a run are, and which of them this one is.

    Attributes:
        addresses: HOST:PORT of each process by its role.
        role: Of this process.
        index: Its number among those of its role.
        supervised: Whether a supervisor on this machine started it.
    """

    addresses: Mapping[Role, list[str]]
    role: Role
    index: int
    supervised: bool = False

    @classmethod
    def of_environment(cls) -> Cluster | None:
        """Returns what TF_CONFIG says, or None where it is not set.

        Raises:
            UsageError: If it is malformed; says where.
        """
        if not os.environ.get("TF_CONFIG"):
            return None
        try:
            config = _Config.model_validate_json(os.environ["TF_CONFIG"])
        except ValidationError as error:
            wrong = "; ".join(_in_words(each) for each in error.errors())
            raise UsageError(f"TF_CONFIG must be like {_EXAMPLE}. Received: {wrong}") from None
        addresses = {role: list(each) for role, each in config.cluster.items()}
        role, index = config.task.type, config.task.index
        every = [address for each in addresses.values() for address in each]
        if index >= len(addresses.get(role, [])):
            raise UsageError(
                "TF_CONFIG's task must be one of its cluster. Received: "
                f"{role} {index}, and a cluster of {_counted(addresses)}"
            )
        if len(set(every)) < len(every):
            raise UsageError(f"TF_CONFIG must name each HOST:PORT once. Received: {every}")
        if len(addresses.get("chief", [])) > 1:
            raise UsageError(f"TF_CONFIG may name one chief. Received: {_counted(addresses)}")
        return cls(addresses, role, index, SUPERVISED in os.environ)

    def require(self, servers: bool) -> None:
        """Raises UsageError unless there are parameter servers, and who goes with them, or none."""
        if not servers and self.has_servers:
            raise UsageError(
                "TF_CONFIG must name workers, and may name a chief, for the strategy "
                f"'multi_worker'. Received: {_counted(self.addresses)}"
            )
        if servers and set(self.addresses) != {"chief", "worker", "ps"}:
            raise UsageError(
                "TF_CONFIG must name a chief, workers and parameter servers, there called ps, for "
                f"the strategy 'parameter_server'. Received: {_counted(self.addresses)}"
            )

    @property
    def name(self) -> str:
        """This process, as `worker 1`."""
        return f"{self.role} {self.index}"

    @property
    def address(self) -> str:
        """HOST:PORT of this process."""
        return self.addresses[self.role][self.index]

    @property
    def chief(self) -> str:
        """The process that writes files."""
        return "chief 0" if "chief" in self.addresses else "worker 0"

    @property
    def is_chief(self) -> bool:
        return self.name == self.chief

    @property
    def others(self) -> dict[str, str]:
        """HOST:PORT of every other process by its name."""
        return {
            f"{role} {index}": address
            for role, addresses in self.addresses.items()
            for index, address in enumerate(addresses)
            if (role, index) != (self.role, self.index)
        }

    @property
    def workers(self) -> int:
        """How many processes train: all, the chief too, unless there are parameter servers."""
        if self.has_servers:
            return len(self.addresses.get("worker", []))
        return sum(map(len, self.addresses.values()))

    @property
    def trains(self) -> bool:
        """Whether this process does."""
        return self.role == "worker" or not self.has_servers

    @property
    def has_servers(self) -> bool:
        """Whether there are parameter servers."""
        return "ps" in self.addresses


def command(arguments: Sequence[str]) -> list[str]:
    """Returns what runs `transduce` with the modules of this process, wherever that is."""
    return [sys.executable, "-c", _PROGRAM.format(sys.path), *arguments]


def tf_config(addresses: Mapping[Role, list[str]], role: Role, index: int) -> str:
    """Returns TF_CONFIG for a process."""
    return json.dumps({"cluster": addresses, "task": {"type": role, "index": index}})


class _Task(BaseModel):
    type: Role
    index: NonNegativeInt


def is_host_and_port(address: str) -> bool:
    """Returns whether this is HOST:PORT."""
    found = re.fullmatch(r".+:([1-9][0-9]*)", address)
    return found is not None and int(found[1]) <= HIGHEST_PORT


def _checked(address: str) -> str:
    if not is_host_and_port(address):
        raise ValueError(f"must be HOST:PORT, the port in 1 … {HIGHEST_PORT}")
    return address


_Addresses = Annotated[list[Annotated[str, AfterValidator(_checked)]], Field(min_length=1)]


class _Config(BaseModel):
    cluster: dict[Role, _Addresses]
    task: _Task


def _in_words(error) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"at {place}: {error['msg']}, not {error['input']!r}" if place else error["msg"]


def _counted(addresses: Mapping[Role, list[str]]) -> str:
    return ", ".join(f"{len(each)} {role}" for role, each in addresses.items())


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody on this machine listens at, whatever seed there is."""
    some = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return list(itertools.islice(filter(_is_free, some), count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
        return True
    except OSError:
        return False
