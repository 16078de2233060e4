"""Serves LiteLLM on the sockets that systemd holds, and closes them at a stop without cutting off a request.

litellm-units mounts this file, behind arguments.py, into the gateway's container, where it is run with LiteLLM's own
arguments. LiteLLM's command line ends with uvicorn.run(), which is replaced here. src/litellm/contract.rs lists what
else of LiteLLM and uvicorn is used; it is checked before a release is started for the first time.
"""

import asyncio
import ctypes
import fcntl
import gc
import importlib.util
import inspect
import logging
import re
import signal
import socket
import struct
import threading
import time
import traceback

# Process 1 of a container ignores a signal without a handler, and uvicorn sets its handler only when it serves. Before,
# the imports take seconds, and there is no request that an end could cut off. At the end, uvicorn raises the signal
# again: then the handlers of atexit are still to run.
has_served = False
signal.signal(signal.SIGTERM, lambda *_: None if has_served else os._exit(0))

# Imported objects stay, so collecting garbage among them only takes time.
gc.disable()


# The files in which the processes count. The unit mounts a tmpfs without a limit there: prometheus_client writes by mmap, so
# a full disk would end the gateway.
METRICS = "/run/litellm-metrics"
# Seconds without a byte after which a scrape is cut off.
SCRAPE_TIMEOUT = 5
# Seconds until the process that answers scrapes is started again.
SCRAPE_PAUSE = 15


def serve_metrics(port):
    """Answers scrapes in a process of its own, with what all processes of this gateway have counted.

    LiteLLM's own metrics server (PROMETHEUS_METRICS_PORT) imports LiteLLM again, and ends the start of the gateway if that
    takes 30 s. This one is forked before anything large is imported. Another process starts it again if it ends.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = METRICS
    if os.fork():
        return
    # The gateway alone has its addresses.
    os.closerange(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))
    while os.fork():
        os.wait()
        print(f"the server of LiteLLM's metrics has ended; next start in {SCRAPE_PAUSE} s", file=sys.stderr, flush=True)
        time.sleep(SCRAPE_PAUSE)
    try:
        answer_scrapes(port)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def answer_scrapes(port):
    """Serves one connection at a time, so that many of them take no threads and no memory of the gateway."""
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.multiprocess import MultiProcessCollector

    class Handler(WSGIRequestHandler):
        timeout = SCRAPE_TIMEOUT

        def log_message(self, *_):
            """Not a line for each scrape."""

    class Scrapes(WSGIServer):
        def handle_error(self, *_):
            """Not a trace for each client that is slow or leaves."""

    gc.enable()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, METRICS)
    make_server("", port, make_wsgi_app(registry), Scrapes, Handler).serve_forever()


# A worker of uvicorn runs this file under another name.
if __name__ == "__main__" and os.environ.get("LITELLM_UNITS_METRICS"):
    serve_metrics(int(os.environ["LITELLM_UNITS_METRICS"]))

import redis
import uvicorn
from redis.asyncio.connection import AbstractConnection
from uvicorn.supervisors import Multiprocess, multiprocess

# Timeout at a stop, in seconds, for idle connections.
IDLE_TIMEOUT = 10
# The same for requests, while another gateway serves.
DRAIN_TIMEOUT = int(os.environ.get("LITELLM_DRAIN_TIMEOUT") or 60)
# The same while none does: new requests wait.
ALONE_TIMEOUT = min(60, DRAIN_TIMEOUT)
# The same for what was told to end.
CUT_TIMEOUT = 2
# The same for the handlers of atexit (traces and logs that are sent in batches), and for threads that do not end.
EXIT_TIMEOUT = 5

# For so many seconds the event loop may be blocked before its process is replaced.
LIVENESS_TIMEOUT = int(os.environ.get("LITELLM_LIVENESS_TIMEOUT") or 300)
# After so many, the journal says where it is.
SLOW = min(30, LIVENESS_TIMEOUT // 2)
# Where the migration writes down the schema of the database. All gateways have it.
SCHEMA = "/run/litellm-units/schema"
# Written by `litellm-units debug`: until when, by CLOCK_BOOTTIME, LiteLLM logs at the level DEBUG. Nobody sets that
# clock, and the file does not outlive it.
DEBUG = "/run/litellm-units/debug/until"
# So many seconds ahead at most: a damaged file does not leave it on.
DEBUG_LIMIT = 86400
# Written by `litellm-units upgrade --postgres`: while it exists, a gateway that starts waits behind its imports, before it
# connects to a database.
HOLD = "/run/litellm-units/debug/hold"
# Read by the health check: until when, by CLOCK_MONOTONIC, the gateway counts as alive. In memory, since a slow disk
# must not block the event loop.
ALIVE = "/dev/shm/litellm-units.alive"
# So much longer than LIVENESS_TIMEOUT, for a process that can't end itself.
GRACE = 30
# A worker of uvicorn that does not get to answer for so long, with a thread of its own, is replaced. uvicorn's 5 seconds
# are too few for a busy host.
WORKER_TIMEOUT = 30

# Of <asm/socket.h>; Python has no name for it.
SO_ATTACH_REUSEPORT_CBPF = 51


def passed_sockets():
    """The listening sockets from systemd: sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        sys.exit("there is no socket from systemd to serve: is litellm.socket active?")
    sockets = [socket.socket(fileno=3 + index) for index in range(int(os.environ["LISTEN_FDS"]))]
    for each in sockets:
        each.set_inheritable(False)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return sockets


class Config(uvicorn.Config):
    leaving = False

    def load(self):
        super().load()
        gateway = self.loaded_app

        async def app(scope, receive, send):
            # A Unix socket has no addresses. Whoever may connect to it is a program of this host, such as a reverse
            # proxy, whose headers count as those from the loopback address do (believe_this_host).
            if scope["type"] in ("http", "websocket") and not scope["client"]:
                scope = {**scope, "client": ("127.0.0.1", 0)}

            async def send_last(message):
                if self.leaving and message["type"] == "http.response.start":
                    headers = [*message.get("headers", ()), (b"connection", b"close")]
                    message = {**message, "headers": headers}
                await send(message)

            await gateway(scope, receive, send_last)

        self.loaded_app = app


def believe_this_host():
    """Has uvicorn believe the headers of reverse proxies on this host, beside those that FORWARDED_ALLOW_IPS names: it
    would replace uvicorn's default.
    """
    named = os.environ.get("FORWARDED_ALLOW_IPS")
    if named != "*":
        os.environ["FORWARDED_ALLOW_IPS"] = ",".join(filter(None, (named, "127.0.0.1", "::1")))


class DebugLogs:
    """Has LiteLLM's loggers log at the level DEBUG for a limited time, and gives them their own levels back."""

    def __init__(self):
        self.until = None
        self.levels = []

    def look(self):
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            with open(DEBUG) as file:
                until = float(file.read())
        except (OSError, ValueError):
            until = 0
        if not now < until <= now + DEBUG_LIMIT:
            until = None
        if until == self.until:
            return
        for each, level in self.levels:
            each.setLevel(level)
        self.levels = []
        self.until = until
        if until is not None:
            loggers = [logging.getLogger(name) for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")]
            handlers = [handler for logger in loggers for handler in logger.handlers]
            self.levels = [(each, each.level) for each in (*loggers, *handlers)]
            for each, _ in self.levels:
                each.setLevel(logging.DEBUG)
        state = "off" if until is None else f"on for {until - now:.0f} s"
        print(f"debug logs of process {os.getpid()} are {state}", file=sys.stderr, flush=True)


class Heartbeat:
    """Tells a blocked event loop from a busy one. A busy one takes its turns, however late its answers are, and ending
    it would cut off every stream; so no request tells whether a gateway is alive.

    A thread counts the seconds between two turns of the loop. They are its own: those of a suspended machine or a
    frozen container do not count. After LIVENESS_TIMEOUT, it writes where the loop is, and ends the process. One that
    is stopped as a whole is found out by the health check.
    """

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.blocked = 0
        self.debug_logs = DebugLogs()
        self.file = os.open(ALIVE, os.O_WRONLY | os.O_CREAT, 0o644)
        self.turn()
        threading.Thread(target=self.watch, args=(threading.get_ident(),), name="heartbeat", daemon=True).start()

    def turn(self):
        os.pwrite(self.file, b"%020d\n" % int(time.monotonic() + LIVENESS_TIMEOUT + GRACE), 0)
        if self.blocked >= SLOW:
            print(f"the event loop of process {os.getpid()} is no longer blocked", file=sys.stderr, flush=True)
        self.blocked = 0
        self.debug_logs.look()
        self.loop.call_later(1, self.turn)

    def watch(self, thread):
        while True:
            time.sleep(1)
            self.blocked += 1
            if self.blocked in (SLOW, LIVENESS_TIMEOUT):
                end = self.blocked == LIVENESS_TIMEOUT
                effect = "it ends and is replaced" if end else "its requests wait"
                place = "".join(traceback.format_stack(sys._current_frames()[thread], 6))
                print(
                    f"the event loop of process {os.getpid()} has been blocked for {self.blocked} s, so {effect} "
                    f"(LITELLM_LIVENESS_TIMEOUT={LIVENESS_TIMEOUT}); it is at:\n{place}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                if end:
                    os._exit(1)


def take_connections(sockets):
    """Has the kernel give new connections to one of two sockets at the same address: ReusePort= in litellm.socket.

    There are two of them only while the addresses of litellm.socket change: systemd opens one that stays again, and the
    standby has the first one. The standby gets all connections until the gateway serves on the second one, and none
    after that, so none is in the queue of the first one when that is closed.
    """
    index = 0 if os.environ.get("LITELLM_UNITS_STANDBY") else 1
    # One instruction of classic BPF: return the index. Where there is no such socket, the kernel takes the only one.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, index))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    for each in sockets:
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            try:
                each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
            except OSError as error:
                logging.getLogger("uvicorn.error").warning("can't choose who gets new connections: %s", error)


class Presence:
    """Shows other gateways that this one serves, and this one whether another does.

    Each process that serves has a shared lock on one directory. The kernel releases it, however the process ends.
    """

    def __init__(self):
        try:
            self.directory = os.open(SCHEMA, os.O_RDONLY)
        except FileNotFoundError:
            # Under units of an earlier version.
            self.directory = None
            return
        try:
            fcntl.flock(self.directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another one asks at this moment, or another user has the lock: nobody waits for that.
            pass

    def end(self):
        if self.directory is not None:
            fcntl.flock(self.directory, fcntl.LOCK_UN)

    def is_another(self):
        """Only after `end`."""
        if self.directory is None:
            return False
        try:
            fcntl.flock(self.directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.directory, fcntl.LOCK_UN)
        return False


class Server(uvicorn.Server):
    hurried = False

    async def startup(self, sockets=None):
        global has_served
        await super().startup(sockets)
        # A start that failed returns in the uvicorn of LiteLLM 1.80.11.
        if not self.started:
            return
        has_served = True
        take_connections(sockets or ())
        gc.freeze()
        gc.enable()
        self.heartbeat = Heartbeat()
        self.presence = Presence()

    def handle_exit(self, sig, frame):
        # systemd sends a second signal when its own limit is reached. After LITELLM_DRAIN_TIMEOUT was lowered, that is
        # earlier than the limit with which this container was created.
        self.hurried = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets=None):
        """Accepts no new connection, but still answers on the existing ones.

        uvicorn would close idle connections at once, and lose a request that is on its way. Here, the next answer on a
        connection closes it (`Connection: close`), and an idle one is closed after its usual time. What takes longer than
        the limit is cut off, so that LiteLLM's own shutdown, which writes the spend, always runs before the container is
        killed.
        """
        self.config.leaving = True
        self.presence.end()
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        clock = asyncio.get_running_loop().time
        begin = clock()
        idle_timeout = min(self.config.timeout_keep_alive + 1, IDLE_TIMEOUT)
        state = self.server_state
        while (state.connections or state.tasks) and not self.hurried:
            waited = clock() - begin
            if waited >= DRAIN_TIMEOUT or (waited >= ALONE_TIMEOUT and not self.presence.is_another()):
                break
            if waited >= idle_timeout:
                idle_timeout = float("inf")
                for connection in list(state.connections):
                    # A WebSocket is in use as long as it is open.
                    if hasattr(connection, "cycle"):
                        connection.shutdown()
            await asyncio.sleep(0.05)
        if state.tasks:
            logging.getLogger("uvicorn.error").warning(
                "%d s after the stop, requests are cut off: %d (LITELLM_DRAIN_TIMEOUT=%d)",
                clock() - begin,
                len(state.tasks),
                DRAIN_TIMEOUT,
            )
            for task in list(state.tasks):
                task.cancel()
        # LiteLLM gives uvicorn 30 seconds, and waits as long again itself.
        self.config.timeout_graceful_shutdown = CUT_TIMEOUT
        os.environ["GRACEFUL_SHUTDOWN_TIMEOUT"] = str(CUT_TIMEOUT)
        await super().shutdown(sockets)
        end = threading.Timer(EXIT_TIMEOUT, os._exit, (0,))
        end.daemon = True
        end.start()


def own_socket(port):
    """For what asks this gateway and no other: on the loopback of its container, which no other container reaches.

    It is not uvicorn's, whose address is LiteLLM's --host. Other containers would reach that past every reverse proxy.
    """
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("127.0.0.1", port))
    logging.getLogger("uvicorn.error").info("Uvicorn running on litellm.socket and, in the container, 127.0.0.1:%d", port)
    return own


def check_schema():
    """Ends the start if the database has the schema of an earlier release: LiteLLM would answer every key with 401.

    The migration records the schema that it left. Without this record, as under units of an earlier version, the
    schema is not checked.
    """
    try:
        with open(os.path.join(SCHEMA, "newest")) as file:
            found = file.read().split()
    except OSError:
        return
    package = os.path.dirname(importlib.util.find_spec("litellm_proxy_extras").origin)
    names = [name for name in os.listdir(os.path.join(package, "migrations")) if re.match("[0-9]{14}_", name)]
    needed = [max(names), f"{len(names):05}"]
    # The record of a later release's schema has no number.
    if found < needed[: len(found)]:
        print(
            f"the database has the schema of an earlier release (newest migration: {found[0]}); this release needs "
            f"{len(names)} migrations up to {needed[0]}. To migrate it and to start this release: "
            "litellm-units up. If a drop-in of litellm.service names this image, name it in .env instead.",
            file=sys.stderr,
        )
        # litellm.service is not restarted after this status.
        sys.exit(78)


# From uvicorn 0.51 on, each worker makes its own server; it is then of this class, since workers run this file, too.
multiprocess.Server = Server

# litellm-migrate.service migrates the schema. LiteLLM's own comparison would take seconds of each start.
subprocess.Popen.__init__ = without_url(
    subprocess.Popen.__init__, "/app/schema.prisma", lambda words: words[:2] in ([], ["migrate", "diff"])
)


def report_lost_connections(connection, error_class):
    """Has redis-py report that a server has vanished. The kernel then ends the connection with ETIMEDOUT, which Python
    counts as a TimeoutError. redis-py takes that for the end of its own wait and returns None. LiteLLM asks again at
    once, and so blocks the event loop for ever.
    """
    read = connection.read_response

    async def read_response(self, *arguments, **named):
        response = await read(self, *arguments, **named)
        error = self._reader.exception() if response is None and self._reader else None
        if error:
            raise error_class(f"connection lost: {error}") from error
        return response

    connection.read_response = read_response


report_lost_connections(AbstractConnection, redis.ConnectionError)


def run(app, **arguments):
    while os.path.exists(HOLD):
        time.sleep(0.05)
    if "timeout_worker_healthcheck" in inspect.signature(uvicorn.Config).parameters:
        arguments.setdefault("timeout_worker_healthcheck", WORKER_TIMEOUT)
    config = Config(app, **arguments)
    server = Server(config)
    sockets = [*passed, own_socket(config.port)]
    if config.workers > 1:
        gc.enable()
        target = {"target": server.run} if "target" in inspect.signature(Multiprocess).parameters else {}
        supervisor = Multiprocess(config, sockets=sockets, **target)
        supervisor.run()
        # A newer uvicorn ends, with success, when a worker can't start.
        if any(each.process.exitcode == 3 for each in supervisor.processes):
            sys.exit(3)
    else:
        server.run(sockets)
        if not server.started:
            sys.exit(3)


if __name__ == "__main__":
    check_schema()
    passed = passed_sockets()
    believe_this_host()
    # What the image's own entry point does.
    if os.environ.get("USE_DDTRACE") == "true":
        os.environ["DD_TRACE_OPENAI_ENABLED"] = "False"
        import ddtrace.auto  # noqa: F401
    uvicorn.run = run
    from litellm.proxy.proxy_cli import run_server

    run_server()
