"""Exits with 0 if a value of LiteLLM's database is encrypted with a salt, and with 3 if it is not.

litellm-units runs this in the container of a gateway that is to be imported; both come as JSON on stdin. LiteLLM itself
is not imported, since that takes as much memory as a second gateway.
"""

import base64
import hashlib
import json
import re
import sys

# Before values that are encrypted with AES-256-GCM (general_settings.encryption_algorithm).
GCM = "v2:gcm:"

given = json.load(sys.stdin)
key = hashlib.sha256(given["salt"].encode()).digest()
is_gcm = given["value"].startswith(GCM)
if not is_gcm and re.match("v[0-9]+:gcm:", given["value"]):
    sys.exit("a form that is not known here")
if is_gcm:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
else:
    from nacl.secret import SecretBox
try:
    # Old releases wrote plain Base64.
    value = base64.b64decode(given["value"].removeprefix(GCM).replace("-", "+").replace("_", "/"))
    AESGCM(key).decrypt(value[:12], value[12:], None) if is_gcm else SecretBox(key).decrypt(value)
except Exception:
    sys.exit(3)
