"""Checks that the release in this image has what litellm-units uses of it, as listed in src/litellm/contract.rs.

Run in a container of the image without network and data. Nothing of LiteLLM is imported, since that takes seconds.
Prints one JSON object.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys

sys.modules["litellm"] = None
packages = {}


def directory(package):
    if package not in packages:
        if sys.modules.get(package, "") is None:
            del sys.modules[package]
        found = importlib.util.find_spec(package)
        packages[package] = os.path.dirname(found.origin) if found and found.origin else None
        if package == "litellm":
            sys.modules["litellm"] = None
    return packages[package]


def text(path):
    package, _, rest = path.partition("/")
    try:
        with open(os.path.join(directory(package) or "/nonexistent", rest), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def holds(path, words):
    found = text(path)
    return f"{path} is missing" if found is None else next((f"{path} lacks {each}" for each in words if each not in found), None)


def takes(module, name, parameters):
    try:
        found = importlib.import_module(module)
    except Exception as error:
        return f"{module} can't be imported: {error}"
    for part in name.split("."):
        if not hasattr(found, part):
            return f"{module}.{name} is missing"
        found = getattr(found, part)
    known = inspect.signature(found).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return None
    return next((f"{module}.{name} takes no {each}" for each in parameters if each not in known), None)


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def newest_migration():
    try:
        names = os.listdir(os.path.join(directory("litellm_proxy_extras") or "/nonexistent", "migrations"))
    except OSError:
        return None
    return max((name for name in names if re.match("[0-9]{14}_", name)), default=None)


checks = {"holds": holds, "takes": takes}
print(
    json.dumps(
        {
            "version": version("litellm"),
            "migration": newest_migration(),
            "missing": [checks[kind](*rest) for kind, *rest in json.loads(sys.argv[1])],
            "weak_keys": re.findall('"([0-9a-f]{64})"', text("litellm/proxy/auth/master_key_boot_check.py") or ""),
            "reads_aes_gcm": "v2:gcm:" in (text("litellm/proxy/common_utils/encrypt_decrypt_utils.py") or ""),
        }
    )
)
