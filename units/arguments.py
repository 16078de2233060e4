"""Keeps the database's URL out of the arguments of the programs that LiteLLM starts: every user of the host can read
them, and the URL holds the password.

litellm-units puts this before the programs of the gateway and of the migration. It replaces subprocess.Popen, since all
of Python's ways to start a program and read its output call it. Prisma gets the URL in its environment instead, where
its schema looks for it. Any other program with the URL among its arguments is not started.
"""

import os
import subprocess
import sys

URLS = ("DATABASE_URL", "DIRECT_URL", "DATABASE_URL_READ_REPLICA")

# Prisma's command line is a program of Node.js. It first asks its engine whether there is a database, with the URL among
# the engine's arguments. Here, that question is always answered with yes. The next question goes through a pipe, and
# fails with the same error if there is no database.
PRISMA_WITHOUT_URL = """
const programs = require('child_process');
for (const name of ['spawn', 'spawnSync']) {
  const start = programs[name];
  programs[name] = (program, words, ...rest) => Array.isArray(words) && words.includes('--datasource')
    ? start.call(programs, process.execPath, ['-e', ''], ...rest)
    : start.call(programs, program, words, ...rest);
}
"""


def prisma(words):
    """The arguments of a call of Prisma's command line; None if it is another program."""
    if not isinstance(words, (list, tuple)) or not words:
        return None
    words = [os.fspath(word) for word in words]
    if os.path.basename(words[0]) == "prisma":
        return words[1:]
    return words[3:] if words[1:3] == ["-m", "prisma"] else None


def by_environment(words, environment, schema):
    """A call of Prisma and its environment, with the URL in the latter."""
    words = [os.fspath(word) for word in words]
    environment = dict(os.environ if environment is None else environment)
    for option, instead in (
        ("--from-url", "--from-schema-datasource"),
        ("--to-url", "--to-schema-datasource"),
        ("--url", "--schema"),
    ):
        joined = [word for word in words if word.startswith(option + "=")]
        for word in joined:
            at = words.index(word)
            words[at : at + 1] = word.split("=", 1)
        if option in words[:-1]:
            at = words.index(option)
            environment["DATABASE_URL"] = words[at + 1]
            words[at : at + 2] = [instead, schema]
    return words, environment


def without_url(begin, schema, ends_at_once):
    """subprocess.Popen.__init__ that shows no URL. A call of Prisma for whose arguments `ends_at_once` is true is not
    run: it ends with success and no output."""
    preload = None

    def begin_without_url(self, args, *rest, **options):
        nonlocal preload
        behind = prisma(args)
        if behind is not None:
            if ends_at_once(behind):
                return begin(self, ["true"], *rest, **{**options, "executable": None})
            args, environment = by_environment(args, options.get("env"), schema)
            if preload is None:
                import tempfile

                preload = tempfile.NamedTemporaryFile("w", suffix=".cjs")
                preload.write(PRISMA_WITHOUT_URL)
                preload.flush()
            node = environment.get("NODE_OPTIONS", "")
            environment["NODE_OPTIONS"] = f"{node} --require={preload.name}".strip()
            options["env"] = environment
        words = [args] if isinstance(args, (str, bytes, os.PathLike)) else args
        words = [os.fsdecode(word) for word in words]
        for name in URLS:
            url = os.environ.get(name)
            if url and any(url in word for word in words):
                raise PermissionError(f"{words[0].split()[0]} is not started: {name} would be among its arguments")
        return begin(self, args, *rest, **options)

    return begin_without_url
