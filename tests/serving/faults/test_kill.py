"""kill -9, and up again."""

import threading

import numpy as np
import pytest

X = np.arange(5, dtype=np.float32)


@pytest.mark.slow
def test_a_killed_server_comes_up_again_with_the_same_answers(model_root, process, full):
    server = process(f"--model_root={model_root}")
    for _ in range(max(full(5), 1)):
        with server.client() as client:
            before = client.predict("half_plus", {"x": X})["y"].tolist()
            asking = threading.Thread(target=_ask_until_it_ends, args=[server])
            asking.start()
            assert server.kill() == -9
            asking.join(60)
            assert not asking.is_alive()
        server.start()
        with server.client() as client:
            assert client.predict("half_plus", {"x": X})["y"].tolist() == before
            assert {each["state"] for each in client.status("words")} == {"AVAILABLE"}


def _ask_until_it_ends(server):
    with server.client() as client:
        try:
            while True:
                client.predict("half_plus", {"x": X})
        except Exception:
            return
