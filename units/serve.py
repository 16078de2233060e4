"""Serves LiteLLM on the sockets that systemd holds, and lets go of them without cutting anyone off.

litellm-units mounts this file into the gateway's container, where it is run with LiteLLM's own arguments. LiteLLM's
command line ends with uvicorn.run(); that is what is replaced here.
"""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys

# Process 1 of a container ignores a signal that it has no handler for, and this one gets its own as late as it serves.
# It imports for seconds before, and has nothing to lose.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

# What is imported stays, so looking for garbage among it only takes time.
gc.disable()

import uvicorn
from uvicorn.supervisors import Multiprocess

# Nobody is waited for longer than this who sends nothing.
PATIENCE = 10


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
        """Accepts nothing more, but still answers on the connections that there are.

        uvicorn would close those that are idle at once, and with them a request that is on its way. Here each is told
        with its next answer that it was the last one; those that stay idle end after their usual time.
        """
        self.config.leaving = True
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        clock = asyncio.get_running_loop().time
        end = clock() + min(self.config.timeout_keep_alive + 1, PATIENCE)
        while self.server_state.connections and clock() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


run_program = subprocess.run


def run_less(*arguments, **options):
    """subprocess.run, without LiteLLM's comparison of database and schema.

    The schema is litellm-migrate.service's. The comparison would take seconds of each start, and it has the database's
    URL, password and all, among its arguments, which every user of the host can read.
    """
    words = arguments[0] if arguments else options.get("args")
    if words == ["prisma"] or (isinstance(words, list) and words[:3] == ["prisma", "migrate", "diff"]):
        return subprocess.CompletedProcess(words, 0, "", "")
    return run_program(*arguments, **options)


def run(app, **arguments):
    config = Config(app, **arguments)
    server = Server(config)
    # The second one is the container's own, for the health checks.
    sockets = [*passed, config.bind_socket()]
    if config.workers > 1:
        gc.enable()
        Multiprocess(config, target=server.run, sockets=sockets).run()
    else:
        server.run(sockets)
        if not server.started:
            sys.exit(3)


if __name__ == "__main__":
    passed = passed_sockets()
    # What the image's own entry point does.
    if os.environ.get("USE_DDTRACE") == "true":
        os.environ["DD_TRACE_OPENAI_ENABLED"] = "False"
        import ddtrace.auto  # noqa: F401
    subprocess.run = run_less
    uvicorn.run = run
    from litellm.proxy.proxy_cli import run_server

    run_server()
