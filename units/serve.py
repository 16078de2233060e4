"""Serves LiteLLM on the sockets that systemd holds, and closes them at a stop without cutting off a request.

litellm-units mounts this file, behind arguments.py, into the gateway's container, where it is run with LiteLLM's own
arguments. LiteLLM's command line ends with uvicorn.run(), which is replaced here. src/litellm/contract.rs lists what
else of LiteLLM and uvicorn is used; it is checked before a release is started for the first time.
"""

import asyncio
import gc
import importlib.util
import inspect
import logging
import re
import signal
import socket

# Process 1 of a container ignores a signal without a handler, and uvicorn sets its handler only when it serves. Before,
# the imports take seconds, and there is no request that an end could cut off.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

# Imported objects stay, so collecting garbage among them only takes time.
gc.disable()

import uvicorn
from uvicorn.supervisors import Multiprocess, multiprocess

# Timeout at a stop, in seconds, for idle connections.
IDLE_TIMEOUT = 10


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
            async def send_last(message):
                if self.leaving and message["type"] == "http.response.start":
                    headers = [*message.get("headers", ()), (b"connection", b"close")]
                    message = {**message, "headers": headers}
                await send(message)

            await gateway(scope, receive, send_last)

        self.loaded_app = app


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        gc.freeze()
        gc.enable()

    async def shutdown(self, sockets=None):
        """Accepts no new connection, but still answers on the existing ones.

        uvicorn would close idle connections at once, and lose a request that is on its way. Here, the next answer on a
        connection closes it (`Connection: close`), and an idle one is closed after its usual time.
        """
        self.config.leaving = True
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        clock = asyncio.get_running_loop().time
        end = clock() + min(self.config.timeout_keep_alive + 1, IDLE_TIMEOUT)
        while self.server_state.connections and clock() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


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
        with open("/run/litellm-units/schema/newest") as file:
            found = file.read().strip()
    except OSError:
        return
    package = os.path.dirname(importlib.util.find_spec("litellm_proxy_extras").origin)
    names = os.listdir(os.path.join(package, "migrations"))
    needed = max(name for name in names if re.match("[0-9]{14}_", name))
    if found < needed:
        print(
            f"the database has the schema of an earlier release (newest migration: {found}); this release needs "
            f"{needed}. To migrate it and to start this release: litellm-units up. If a drop-in of litellm.service "
            "names this image, name it in .env instead.",
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


def run(app, **arguments):
    config = Config(app, **arguments)
    server = Server(config)
    sockets = [*passed, own_socket(config.port)]
    if config.workers > 1:
        gc.enable()
        target = {"target": server.run} if "target" in inspect.signature(Multiprocess).parameters else {}
        Multiprocess(config, sockets=sockets, **target).run()
    else:
        server.run(sockets)
        if not server.started:
            sys.exit(3)


if __name__ == "__main__":
    check_schema()
    passed = passed_sockets()
    # What the image's own entry point does.
    if os.environ.get("USE_DDTRACE") == "true":
        os.environ["DD_TRACE_OPENAI_ENABLED"] = "False"
        import ddtrace.auto  # noqa: F401
    uvicorn.run = run
    from litellm.proxy.proxy_cli import run_server

    run_server()
