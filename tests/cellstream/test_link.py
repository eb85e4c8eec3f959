"""The driver for threads: who is woken by what."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import cellstream


def test_only_those_are_woken_who_wait_in_vain_no_longer(client: cellstream.Client) -> None:
    """A change wakes the thread whose condition holds now; the other goes on sleeping until its own does."""
    with client.multiplex("sum") as m, ThreadPoolExecutor(2) as pool:
        link, done, looks = m._link, {"a": False, "b": False}, {"a": set[int](), "b": set[int]()}

        def wait(name: str) -> bool:
            def ready() -> bool:
                looks[name].add(threading.get_ident())
                asleep.release()  # with `changed` held: whoever takes it next finds this one waiting
                return done[name]

            return link.wait(ready, 10)

        asleep = threading.Semaphore(0)
        waiting = {name: pool.submit(wait, name) for name in done}
        for _ in done:
            asleep.acquire()
        with link.changed:
            for seen in looks.values():
                seen.clear()
            done["a"] = True
            link.notify()
        assert waiting["a"].result(10)
        assert not waiting["b"].done()
        assert looks["b"] == {threading.get_ident()}  # it didn't look for itself
        with link.changed:
            done["b"] = True
            link.notify()
        assert waiting["b"].result(10)
        assert not link._waiting
