"""Encrypts what LiteLLM's database holds with another salt.

litellm-units runs this in a container of the gateway's image. The first line of stdin is JSON: the database's URL, the
salt that encrypts now, and the next one. The first line of stdout is the number of values that the present salt encrypts.
After a second line of stdin, when the gateway is stopped, all of them are encrypted with the next salt, in one transaction
that is committed only if none is left; the second line of stdout is their number.

Exits with 3 if LiteLLM has no such functions: its releases have them from 1.104.0 on.
"""

import asyncio
import datetime
import json
import os
import sys

given = json.loads(sys.stdin.readline())
os.environ["DATABASE_URL"] = given["database"]
# For LiteLLM, an empty argument means this one.
os.environ["LITELLM_SALT_KEY"] = given["to"]
# stdout is for the two numbers alone.
numbers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
try:
    from litellm.proxy.common_utils.callback_utils import CALLBACK_VAR_ENCRYPTED_PREFIX as MARKER
    from litellm.proxy.common_utils.encrypt_decrypt_utils import (
        _encrypt_aes_gcm,
        decrypt_if_encrypted_with,
        encrypt_value_helper,
    )
except ImportError:
    sys.exit(3)
from prisma import Prisma

# Every column, since each release has more of them; logs of requests and sums hold no credentials, and can be large.
COLUMNS = """SELECT format('%I.%I', table_schema, table_name) AS "table", format('%I', column_name) AS "column", data_type AS type
FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND table_name LIKE 'LiteLLM\\_%'
AND table_name !~ 'SpendLog|ErrorLog|Daily' AND data_type IN ('text', 'character varying', 'json', 'jsonb')"""
# What can hold an encrypted value: the shortest has 56 characters.
LIKELY = "~ 'v[0-9]+:gcm:|[A-Za-z0-9_+/-]{54}'"


class Walk:
    """Over a stored value, whose strings may be JSON again."""

    def __init__(self, write):
        self.write = write
        self.found = 0

    def __call__(self, value):
        if isinstance(value, dict):
            return {key: self(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self(each) for each in value]
        return self.string(value) if isinstance(value, str) else value

    def string(self, value):
        marker = MARKER if value.startswith(MARKER) else ""
        stored = value.removeprefix(marker)
        plain = decrypt_if_encrypted_with(stored, given["from"])
        if plain is not None:
            self.found += 1
            return marker + encrypted(stored, plain) if self.write else value
        if value[:1] in ("{", "["):
            try:
                inside = json.loads(value)
            except ValueError:
                return value
            before = self.found
            walked = self(inside)
            return json.dumps(walked) if self.write and self.found > before else value
        return value


def encrypted(stored, plain):
    if stored.startswith("v2:gcm:"):
        return _encrypt_aes_gcm(value=plain, signing_key=given["to"])
    if ":gcm:" in stored:
        raise SystemExit(f"values are encrypted in a form that is not known here ({stored[:7]}); nothing was changed")
    return encrypt_value_helper(plain, given["to"])


async def walk(database, write=False):
    total = 0
    for each in await database.query_raw(COLUMNS):
        table, column, is_json = each["table"], each["column"], each["type"].startswith("json")
        rows = await database.query_raw(
            f"SELECT ctid::text AS place, {column}::text AS value FROM {table} WHERE {column}::text {LIKELY}"
        )
        for row in rows:
            over = Walk(write)
            value = over(json.loads(row["value"]) if is_json else row["value"])
            total += over.found
            if write and over.found:
                text = json.dumps(value) if is_json else value
                await database.execute_raw(
                    f"UPDATE {table} SET {column} = $1::text::{each['type']} WHERE ctid = $2::text::tid", text, row["place"]
                )
    return total


async def main():
    # By default, a statement may take 30 s.
    async with Prisma(http={"timeout": None}) as database:
        print(await walk(database), file=numbers, flush=True)
        if not sys.stdin.readline():
            return
        limit = datetime.timedelta(hours=1)
        async with database.tx(max_wait=limit, timeout=limit) as transaction:
            written = await walk(transaction, write=True)
            left = await walk(transaction)
            if left:
                raise SystemExit(f"{left} values are still encrypted with the present salt; nothing was changed")
        print(written, file=numbers, flush=True)


asyncio.run(main())
