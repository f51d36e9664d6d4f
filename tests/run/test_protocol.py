"""Messages arrive whole and typed, or the other side is gone."""

import contextlib
import socket
import threading
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


REPLY = protocol.Problem("why")


def framed(reply=REPLY):
    body = protocol.msgspec.msgpack.encode(reply)
    return protocol._LENGTH.pack(len(body)) + body


@given(st.lists(st.integers(1, 12), max_size=30))
def test_a_reply_is_put_together_from_any_pieces(sizes):
    data, inbox, replies = framed(), protocol.Inbox(), []
    for size in [*sizes, len(data)]:
        part, data = data[:size], data[size:]
        if part:
            replies.append(inbox.feed(part))
    assert [reply for reply in replies if reply is not None] == [REPLY]
    assert replies[-1] == REPLY


@given(st.binary(max_size=200))
def test_garbage_is_garbled_or_the_beginning_of_something_never_an_accident(data):
    with contextlib.suppress(protocol.Garbled):
        assert protocol.Inbox().feed(data) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"progress: 10%\n", r"no message begins with b'progress"),
        (protocol._LENGTH.pack(protocol.MOST_MESSAGE_BYTES + 1), "no message begins with"),
        (protocol._LENGTH.pack(2) + b"\xc1\xc1", "malformed"),
        (framed() + b"x", "1 bytes after the end of the message"),
        (protocol._LENGTH.pack(1) + b"\x01", "Expected `object`"),
        (framed(protocol.Turn("c", 1, 0.0, 0.0, None)), "Invalid value 'Turn'"),
    ],
)
def test_what_is_no_reply_is_garbled_and_says_how(pair, data, why):
    with pytest.raises(protocol.Garbled, match=why):
        protocol.Inbox().feed(data)
    if not data.endswith(b"x"):
        pair[0].sendall(data)
        with pytest.raises(protocol.Garbled, match=why):
            protocol.receive(pair[1], protocol.Reply)


def test_every_request_has_its_answer():
    assert protocol.ANSWERS.keys() == set(get_args(protocol.Request))
    assert set(protocol.ANSWERS.values()) | {protocol.Problem} == set(get_args(protocol.Reply))
