# Migrates the database to the schema of this image, and exits with 0 only if that succeeded:
# litellm/proxy/prisma_migration.py does whether it did or not. A database that a later release has
# migrated already is left alone: LiteLLM would drop the columns that it does not know, and a release
# serves with a schema that has more than it needs.
import pathlib
import re
import subprocess
import sys
import tempfile

from litellm_proxy_extras import utils

directory = pathlib.Path(utils.__file__).parent
migrations = (entry.name for entry in (directory / "migrations").iterdir())
newest = max(name for name in migrations if re.match("[0-9]{14}_", name))
# The program, which an image without network has elsewhere.
prisma = getattr(utils, "_get_prisma_command", lambda: "prisma")()
# It shows no rows, but it does show errors.
question = f"""DO $$ DECLARE later text; BEGIN
IF to_regclass('_prisma_migrations') IS NOT NULL THEN
SELECT max(migration_name) INTO later FROM _prisma_migrations
WHERE finished_at IS NOT NULL AND migration_name ~ '^[0-9]{{14}}_' AND migration_name > '{newest}';
IF later IS NOT NULL THEN RAISE EXCEPTION 'later migration: %', later; END IF;
END IF; END $$"""
with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
    file.write(question)
    file.flush()
    answer = subprocess.run(
        [prisma, "db", "execute", "--schema", directory / "schema.prisma", "--file", file.name],
        capture_output=True,
        text=True,
    )
later = re.search("later migration: (\\S+)", answer.stderr)
if later:
    print(f"the database has the schema of a later release, with {later[1]}: nothing to migrate")
elif answer.returncode:
    sys.exit(answer.stderr)
else:
    sys.exit(not utils.ProxyExtrasDBManager.setup_database(use_migrate=True))
