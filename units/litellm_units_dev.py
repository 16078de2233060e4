"""Serves LiteLLM for its development: it is served again after an edit of a file, and `breakpoint()` opens a session.

litellm-units mounts this file, behind arguments.py, into the container of `up --dev`, where it is run with LiteLLM's own
arguments. With the argument `attach`, it is the terminal of a session. Of the internals in src/litellm/contract.rs, it
uses run_server and uvicorn's Config and Server, and uvicorn's StatReload beside them.
"""

import importlib.util
import importlib._bootstrap_external as loaders
import pathlib
import pdb
import select
import signal
import socket
import threading
import time

SOURCE = pathlib.Path("/run/litellm-units/source")
CONFIG = pathlib.Path("/app/config")
# Compiled files of the checkout, which is read-only. Without them, each edit would compile all of LiteLLM again.
CACHE = "/run/litellm-units/pycache"
# Only the processes of this container reach it.
BREAKPOINT = "/dev/shm/litellm-units.breakpoint"
ATTACH = f"podman exec -it litellm-dev python3 {__file__} attach"
# Timeout, in seconds, for somebody to attach.
ATTACH_TIMEOUT = 600
# The same for the database and the cache to listen.
SERVERS_TIMEOUT = 120


def keep_compiled(name, *arguments, **options):
    """Where Python has the compiled file of a source: for one of the checkout, in `CACHE`."""
    place = in_source(name, *arguments, **options)
    return f"{CACHE}{place.removeprefix(str(SOURCE))}" if place.startswith(f"{SOURCE}/") else place


# In each process, since each runs this file first.
in_source = loaders.cache_from_source
loaders.cache_from_source = keep_compiled


class Session(pdb.Pdb):
    """pdb on a connection, which ends when the program goes on."""

    def __init__(self, connection):
        self.connection = connection
        # Two, since one for both forgets at each write what it has read ahead.
        super().__init__(stdin=connection.makefile("r"), stdout=connection.makefile("w"), nosigint=True)

    def set_continue(self):
        super().set_continue()
        if not self.breaks:
            self.connection.shutdown(socket.SHUT_RDWR)

    # Whoever leaves lets the request go on.
    do_EOF = do_q = do_quit = do_exit = pdb.Pdb.do_continue


def set_trace():
    """What `breakpoint()` calls: it waits for a terminal, and so does every other request."""
    frame = sys._getframe(1)
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    pathlib.Path(BREAKPOINT).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(BREAKPOINT)
        listener.listen(1)
        listener.settimeout(ATTACH_TIMEOUT)
        print(f"breakpoint at {place} waits for {ATTACH_TIMEOUT} s: {ATTACH}", file=sys.stderr, flush=True)
        if threading.current_thread() is threading.main_thread():
            # Else an edit would wait for the end of the session.
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            print(f"nobody attached to the breakpoint at {place}: it is passed", file=sys.stderr, flush=True)
            return
    connection.settimeout(None)
    Session(connection).set_trace(frame)


def attach():
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(BREAKPOINT)
        except OSError:
            sys.exit("no breakpoint waits")
        sources = [connection, sys.stdin]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if connection in ready:
                answer = connection.recv(65536)
                if not answer:
                    return
                os.write(1, answer)
            if sys.stdin in ready:
                words = os.read(0, 65536)
                connection.sendall(words)
                if not words:
                    connection.shutdown(socket.SHUT_WR)
                    sources.remove(sys.stdin)


def await_server(address):
    end = time.monotonic() + SERVERS_TIMEOUT
    while True:
        try:
            return socket.create_connection(address, 5).close()
        except OSError as error:
            if time.monotonic() > end:
                sys.exit(f"{address[0]} does not listen after {SERVERS_TIMEOUT} s: {error}")
            time.sleep(0.1)


def run(app, **arguments):
    import uvicorn
    from uvicorn.supervisors.statreload import StatReload

    class Reload(StatReload):
        # uvicorn's own resolves each path, which takes a third of a processor for a checkout.
        def iter_py_files(self):
            for top in (SOURCE, CONFIG):
                for place, directories, names in os.walk(top):
                    directories[:] = [name for name in directories if name[0] != "." and name != "node_modules"]
                    yield from (pathlib.Path(place, name) for name in names if name.endswith((".py", ".yaml")))

    config = uvicorn.Config(app, **{**arguments, "reload": True, "reload_delay": 0.5, "workers": 1})
    Reload(config, target=uvicorn.Server(config).run, sockets=[config.bind_socket()]).run()


if __name__ == "__main__":
    if sys.argv[1:] == ["attach"]:
        sys.exit(attach())
    # Process 1 of a container ignores a signal without a handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # A new database listens when it is complete.
    for server in (("postgres", 5432), ("redis", 6379)):
        await_server(server)
    extras = pathlib.Path(importlib.util.find_spec("litellm_proxy_extras").origin).parent
    subprocess.Popen.__init__ = without_url(
        subprocess.Popen.__init__, str(extras / "schema.prisma"), lambda words: False
    )
    import uvicorn

    uvicorn.run = run
    from litellm.proxy.proxy_cli import run_server

    run_server()
