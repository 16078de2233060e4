# Migrates the database to the schema of this image, and exits with 0 only if that succeeded:
# litellm/proxy/prisma_migration.py does whether it did or not. A database that a later release has
# migrated already is left alone: LiteLLM would drop the columns that it does not know, and a release
# serves with a schema that has more than it needs. So is one that is as these migrations have left it,
# as a comment on their table tells: Prisma would take seconds of each start to find that out.
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

from litellm_proxy_extras import utils

directory = pathlib.Path(utils.__file__).parent
schema = directory / "schema.prisma"
scripts = sorted(directory.glob("migrations/*/migration.sql"))
newest = max(script.parent.name for script in scripts if re.match("[0-9]{14}_", script.parent.name))
release = hashlib.sha256()
for file in [schema, *scripts]:
    release.update(f"{file.relative_to(directory)} {file.stat().st_size}\n".encode() + file.read_bytes())
run = subprocess.run


# LiteLLM has the database's URL, password and all, among the arguments of a comparison, which every user of the host
# can read. The schema names the variable that has the same URL.
def run_without_url(words, *arguments, **options):
    for side in "from", "to":
        if isinstance(words, list) and f"--{side}-url" in words:
            at = words.index(f"--{side}-url")
            words = [*words[:at], f"--{side}-schema-datasource", schema, *words[at + 2:]]
    return run(words, *arguments, **options)


subprocess.run = run_without_url
# The program, which an image without network has elsewhere.
prisma = getattr(utils, "_get_prisma_command", lambda: "prisma")()


def execute(block):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(f"DO $$ {block} $$")
        file.flush()
        words = [prisma, "db", "execute", "--schema", schema, "--file", file.name]
        return subprocess.run(words, capture_output=True, text=True)


# What the comment has to say: which migrations, and which columns and indexes they left.
comment = f"""(SELECT 'migrated by litellm-units: {release.hexdigest()} ' || md5(concat(
(SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default), ','
ORDER BY table_name, column_name) FROM information_schema.columns
JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'),
(SELECT string_agg(indexdef, ',' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = current_schema()))))"""
# It shows no rows, but it does show errors.
answer = execute(f"""DECLARE later text; BEGIN
IF to_regclass('_prisma_migrations') IS NOT NULL THEN
SELECT max(migration_name) INTO later FROM _prisma_migrations
WHERE finished_at IS NOT NULL AND migration_name ~ '^[0-9]{{14}}_' AND migration_name > '{newest}';
IF later IS NOT NULL THEN RAISE EXCEPTION 'later migration: %', later; END IF;
IF obj_description(to_regclass('_prisma_migrations'), 'pg_class') = {comment}
THEN RAISE EXCEPTION 'same migrations'; END IF;
END IF; END""")
later = re.search("later migration: (\\S+)", answer.stderr)
if later:
    print(f"the database has the schema of a later release, with {later[1]}: nothing to migrate")
elif "same migrations" in answer.stderr:
    print(f"the database has the schema of this release, with {newest}: nothing to migrate")
elif answer.returncode:
    sys.exit(answer.stderr)
elif utils.ProxyExtrasDBManager.setup_database(use_migrate=True):
    answer = execute(f"""BEGIN IF to_regclass('_prisma_migrations') IS NOT NULL THEN
EXECUTE format('COMMENT ON TABLE _prisma_migrations IS %L', {comment}); END IF; END""")
    # If that failed, the next start does all of this again.
    print(answer.stderr, end="", file=sys.stderr)
else:
    sys.exit(1)
