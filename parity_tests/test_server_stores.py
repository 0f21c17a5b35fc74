"""What only stores on servers do: URLs, errors without passwords, limits, and the search that soft queries are made of."""

import contextlib
import types

import numpy as np
import pytest
import servers

from jax_brcd.retrieval import PackedCodes
from jax_brcd.retrieval.scores import whole_logits
from jax_brcd.runtime.errors import InputError
from jax_brcd.search import open_store
from jax_brcd.search.stores import milvus, postgres
from jax_brcd.search.stores.base import Item, matches
from jax_brcd.search.stores.servers import Found, soft_hits, token, without_password

ENCODER = types.SimpleNamespace(bits=16, space="teacher-1")


@pytest.mark.parametrize(("url", "message"), [
    ("postgresql://me:secret@127.0.0.1:1/photos", "PostgreSQL: .*refused"),
    ("postgresql://me:secret@127.0.0.1/photos?index=a-b", "named by letters, digits and _, 63 at most, not 'a-b'"),
    ("milvus://me:secret@127.0.0.1:19530/a-b", "a collection is named by letters, digits and _, not 'a-b'"),
    ("postgresql://me:secret@[::1/db", "no URL of a server .*Invalid IPv6 URL"),
    ("milvus://me:secret@host:abc/photos", "Port could not be cast .*; give milvus://HOST:PORT/NAME"),
    ("postgresql://me:secret@127.0.0.1:1,127.0.0.1:2/photos", "PostgreSQL: .*refused"),
    ("milvus:photos", r"a file that ends in .db; give milvus:PATH.db"),
    ("milvus://me:secret@/photos", "no host; give milvus://HOST:PORT/NAME"),
])
def test_a_url_that_leads_nowhere_is_answered_in_one_line_without_its_password(url, message):
    with pytest.raises(InputError, match=message) as error:
        open_store(url, create_for=ENCODER)
    assert error.value.field == "url" and "secret" not in str(error.value) and "\n" not in str(error.value)


def test_only_the_password_of_a_url_is_hidden():
    assert without_password("milvus://me:a:b@host:19530/x") == "milvus://me:***@host:19530/x"
    assert without_password("milvus://me:a@b@host/x") == "milvus://me:***@host/x"
    assert without_password("postgresql://me@h/x?password=a&index=y") == "postgresql://me@h/x?password=***&index=y"
    for url in ("milvus://host:19530/x", "postgresql://me@host/x", "postgresql:///x?host=/tmp", "postgresql://me:@/x"):
        assert without_password(url) == url


def test_two_attributes_share_a_token_where_they_match():
    values = [1, 1.0, True, None, "1", "", 0, False, 1.5, 2**53, float(2**53), -1]
    for one in values:
        for other in values:
            assert (token("n", one) == token("n", other)) == matches({"n": one}, {"n": other}), (one, other)
    assert token("n", 1) != token("m", 1)


def test_a_connection_that_postgresql_ended_is_made_anew_by_the_next_use():
    code = np.array([[True] * 16])
    with contextlib.closing(open_store(servers.postgres_url(vector=False), create_for=ENCODER)) as store:
        import psycopg

        store.add(["a"], code)
        for use in (lambda: len(store), lambda: store.search(code, 1), lambda: store.add(["b"], code),
                    lambda: store.delete(["a"])):
            with psycopg.connect(store._url, autocommit=True) as other:  # ends it as a restart of the server does
                process = store._connection.info.backend_pid
                assert other.execute("SELECT pg_terminate_backend(%s, 10000)", [process]).fetchone() == (True,)
            with pytest.raises(InputError, match="PostgreSQL: .*terminating connection") as error:
                use()
            assert "\n" not in str(error.value)
            assert [item.id for item in store.items()] == ["a"], "what failed was not done, and is not done again"
            assert [item.id for item in store.get(["a"])] == ["a"]
        store.add(["b"], code)
        assert [hit.id for hit in store.search(code, 2)[0]] == ["a", "b"]


def test_a_postgresql_that_cannot_be_reached_is_waited_for_once_in_a_while_and_not_by_each(monkeypatch):
    with contextlib.closing(open_store(servers.postgres_url(vector=False), create_for=ENCODER)) as store:
        import psycopg

        store.add(["a"], np.array([[True] * 16]))
        clock, tried, connect = [1000.0], [], postgres._connect

        def gone(url):
            tried.append(clock[0])
            clock[0] += 30.0
            raise psycopg.OperationalError("timeout expired")

        monkeypatch.setattr(postgres, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
        monkeypatch.setattr(postgres, "_connect", gone)
        store._connection.close()
        for _ in range(3):
            with pytest.raises(InputError, match="PostgreSQL: timeout expired"):
                len(store)
        assert tried == [1000.0]
        clock[0] += postgres.PAUSE
        with pytest.raises(InputError, match="PostgreSQL: timeout expired"):
            len(store)
        assert tried == [1000.0, 1030.0 + postgres.PAUSE]
        clock[0] += postgres.PAUSE
        monkeypatch.setattr(postgres, "_connect", connect)
        assert [item.id for item in store.get(["a"])] == ["a"]


@pytest.mark.parametrize(("asked", "expected"), [("", ["30", "30", "10", "60000"]),
                                                 ("&tcp_user_timeout=5000&connect_timeout=7", ["7", "30", "10", "5000"])])
def test_a_postgresql_that_vanished_is_waited_for_a_minute_or_as_the_url_says(asked, expected):
    with contextlib.closing(open_store(servers.postgres_url(vector=False) + asked, create_for=ENCODER)) as store:
        used = store._connection.info.get_parameters()
    names = ("connect_timeout", "keepalives_idle", "keepalives_interval", "tcp_user_timeout")
    assert [used[name] for name in names] == expected


def test_what_milvus_cannot_keep_is_refused_whole():
    store = open_store(servers.milvus_lite_url(), create_for=ENCODER)
    code = np.array([[True] * 16] * 2)
    for more, message in (({"attributes": [{}, {"x": "y" * 66_000}]}, "the attributes of item 'b' take"),
                          ({"thumbnails": [None, bytes(60_000)]}, "the thumbnail of item 'b' takes 80,001 bytes"),
                          ({"attributes": [{}, {str(n): n for n in range(1001)}]}, "1001 attributes; Milvus keeps 1000")):
        with pytest.raises(InputError, match=message.replace("take", "takes?")):
            store.add(["a", "b"], code, **more)
    assert len(store) == 0
    store.close()


def test_milvus_keeps_notes_of_any_length(monkeypatch):
    monkeypatch.setattr(milvus, "LONGEST", 1000)
    store = open_store(servers.milvus_lite_url(), create_for=ENCODER)
    notes = ["short", '"\\é' * 900, "x" * 5000, "", "y" * 998, "y" * 999]
    for note in notes:
        store.note("a", note)
        assert store.noted("a") == note
    assert store._client.query(f"{store._name}_notes", filter="", output_fields=["count(*)"], **milvus.STRONG)[0]["count(*)"] == 3
    store.close()


@pytest.mark.parametrize("sure", [0.0, 0.5, 1.0])
def test_soft_search_looks_at_no_more_than_it_needs(sure):
    """However sure the logits are, the k nearest are found; where they are, by two searches that find few."""
    draw = np.random.default_rng(0)
    codes = PackedCodes.of(draw.random((3000, 16)) < 0.5)
    items = [Item(f"{row:04d}", codes.packed[row], {}) for row in range(len(codes))]
    logits = whole_logits((draw.choice([-1.0, 1.0], (4, 16)) * (sure + (1 - sure) * draw.random((4, 16)))).astype(np.float32))
    seen = []

    def found(code, limit):
        distances = np.bitwise_count(codes.packed ^ code.packed).sum(axis=1)
        return [Found(items[row], int(distances[row])) for row in np.argsort(distances, kind="stable") if limit(distances[row])]

    def nearest(code, k):
        return found(code, lambda distance: True)[:k]

    def within(code, radius):
        seen.append(len(near := found(code, lambda distance: distance <= radius)))
        return near

    hits = soft_hits(logits, 5, 16, nearest, within)
    for row, own in enumerate(logits.distances_to(codes)):
        assert [hit.id for hit in hits[row]] == [items[place].id for place in np.argsort(own, kind="stable")[:5]]
    assert max(seen) < len(codes) and (sure < 1 or max(seen) < 500)
