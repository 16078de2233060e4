"""Says of each configuration whether LiteLLM reads it as at its start: `NAME yes` or `NAME no: REASON`.

Each is read in a process of its own, forked from one that has imported LiteLLM, and waits for no server.
"""

import asyncio
import os
import sys

import litellm.proxy.proxy_server as proxy

LIMIT = 60  # seconds

answers = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(1, 2)
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            load = proxy.ProxyConfig().load_config(router=None, config_file_path=path)
            asyncio.run(asyncio.wait_for(load, LIMIT))
            answer = "yes"
        except BaseException as error:
            answer = f"no: {type(error).__name__}"
        os.write(answers, f"{os.path.basename(path)} {answer}\n".encode())
        os._exit(0)
    os.waitpid(child, 0)
