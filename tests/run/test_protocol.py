"""Messages arrive whole and typed, or the other side is gone."""

import socket
import threading

import pytest

from frugalbench.run import protocol
from run.helpers import make_arm


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_large_message_arrives_whole_and_equal(pair):
    message = protocol.Job(
        arm=make_arm("arm", blob="x" * 3_000_000), seed=2**62, threads=2, device="cpu",
        cache_dir="c", scratch_dir="s", start_s=0.5
    )  # fmt: skip
    sender = threading.Thread(target=protocol.send, args=(pair[0], message))
    sender.start()
    assert protocol.receive(pair[1], protocol.Job) == message
    sender.join()


def test_each_request_and_reply_keeps_its_type(pair):
    requests = [protocol.Reference(), protocol.Load(), protocol.Calibrate("case", 0.5), protocol.Finish()]
    for request in requests:
        protocol.send(pair[0], request)
    assert [protocol.receive(pair[1], protocol.Request) for _ in requests] == requests
    protocol.send(pair[0], protocol.Problem("why"))
    assert protocol.receive(pair[1], protocol.Reply) == protocol.Problem("why")


@pytest.mark.parametrize("sent", [0, 3, 20])
def test_a_message_that_breaks_off_is_the_end(pair, sent):
    ours, theirs = pair
    ours.sendall(protocol._LENGTH.pack(100)[:sent] + b"x" * max(0, sent - 8))
    ours.close()
    with pytest.raises(EOFError):
        protocol.receive(theirs, protocol.Reply)
