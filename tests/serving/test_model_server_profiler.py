import threading
import time

import grpc
import pytest
import tensorflow as tf

from serving.model_server import protos
from serving.model_server.server import Server


@pytest.fixture(scope="module")
def call(server):
    """Calls a method of the profiler."""
    with grpc.insecure_channel(server.address) as channel:

        def send(method, request):
            path = f"/tensorflow.ProfilerService/{method}"
            ask = channel.unary_unary(path, lambda message: message.SerializeToString())
            return protos.ProfileResponse.FromString(ask(request, timeout=20))

        yield send


def test_tensorflows_own_client_gets_a_profile(server, tmp_path):
    tf.profiler.experimental.client.trace(f"grpc://{server.address}", str(tmp_path), 100)
    (file,) = tmp_path.rglob("*.xplane.pb")
    assert file.stat().st_size > 0


def test_a_profile_can_come_with_the_answer(call):
    response = call("Profile", protos.ProfileRequest(duration_ms=50, emit_xspace=True))
    assert response.xspace
    assert not response.empty_trace


@pytest.mark.parametrize(
    ("session", "written"), [("../../s", "s/host_1.xplane.pb"), ("..", "host_1.xplane.pb")]
)
def test_the_file_stays_in_the_folder_asked_for(call, tmp_path, session, written):
    root = tmp_path / "root"
    request = protos.ProfileRequest(
        duration_ms=1, repository_root=str(root), session_id=session, host_name="../host:1"
    )
    call("Profile", request)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [root / written]


def test_a_profile_can_be_ended_early(call):
    request = protos.ProfileRequest(duration_ms=15_000, session_id="long", emit_xspace=True)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(call("Profile", request)))
    start = time.monotonic()
    asking.start()
    while not answers:
        call("Terminate", protos.TerminateRequest(session_id="long"))
        time.sleep(0.05)
    asking.join()
    assert time.monotonic() - start < 10


def test_monitoring_is_unimplemented(call):
    with pytest.raises(grpc.RpcError) as raised:
        call("Monitor", protos.TerminateRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_profiler_can_be_turned_off(model_root, options):
    chosen = options(model_base_path=str(model_root / "half_plus"), enable_profiler=False)
    address = f"localhost:{chosen.port}"
    with (
        Server(chosen),
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as raised,
    ):
        channel.unary_unary("/tensorflow.ProfilerService/Profile")(b"", timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
