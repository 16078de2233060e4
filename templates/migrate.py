# Migrates the database to the schema of this image, and exits with 0 only if that succeeded:
# litellm/proxy/prisma_migration.py does whether it did or not. A database that a later release has
# migrated already is left alone: LiteLLM would drop the columns that it does not know, and a release
# serves with a schema that has more than it needs.
import asyncio
import pathlib
import re
import sys

import litellm_proxy_extras
from litellm_proxy_extras.utils import ProxyExtrasDBManager


async def recorded():
    from prisma import Prisma

    async with Prisma() as database:
        table = await database.query_raw("SELECT to_regclass('_prisma_migrations')::text AS name")
        if not table[0]["name"]:
            return []
        rows = await database.query_raw(
            'SELECT migration_name AS name FROM "_prisma_migrations" WHERE finished_at IS NOT NULL'
        )
        return [row["name"] for row in rows]


def dated(names):
    return [name for name in names if re.match(r"\d{14}_", name)]


directory = pathlib.Path(litellm_proxy_extras.__file__).parent / "migrations"
newest = max(dated(entry.name for entry in directory.iterdir()))
later = sorted(name for name in dated(asyncio.run(recorded())) if name > newest)
if later:
    print(f"the schema is that of a later release, as of {later[-1]}: nothing to migrate", flush=True)
    sys.exit(0)
sys.exit(not ProxyExtrasDBManager.setup_database(use_migrate=True))
