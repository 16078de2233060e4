# Migrates the database to the schema of this image by LiteLLM's own migration job, and exits with 0
# only if that succeeded. The job does not run on the schema of a later release, even if its migration
# was interrupted: LiteLLM's legacy resolver would drop the columns that it does not know, the other one
# fails, and a release serves with additional columns.
# Nor does it run if a comment on the migrations' table says that the schema is the one that these
# migrations left: Prisma would take seconds of each start to find that out.
#
# units/arguments.py is put before this file. src/litellm/contract.rs lists the functions of LiteLLM
# that are used.
import hashlib
import inspect
import pathlib
import re
import shutil
import tempfile

# Keeps its log from importing all of LiteLLM, which takes seconds of each start, for one setting.
sys.modules["litellm"] = None
from litellm_proxy_extras import utils

del sys.modules["litellm"]
# Which schema the database has: its newest migration and, since two releases can share that one, their number.
# serve.py compares it with the one that its release needs.
record = pathlib.Path("/run/litellm-units/schema/newest")
directory = pathlib.Path(utils.__file__).parent
schema = directory / "schema.prisma"
scripts = sorted(directory.glob("migrations/*/migration.sql"))
names = [script.parent.name for script in scripts if re.match("[0-9]{14}_", script.parent.name)]
newest = max(names)
release = hashlib.sha256()
for file in [schema, *scripts]:
    release.update(f"{file.relative_to(directory)} {file.stat().st_size}\n".encode() + file.read_bytes())
# The job applies it, too.
release.update(os.environ.get("LITELLM_SET_REPLICA_IDENTITY_FULL", "").encode())
subprocess.Popen.__init__ = without_url(subprocess.Popen.__init__, str(schema), lambda words: False)
try:
    from litellm_proxy_extras.migration_lock import migration_environment
except ImportError:
    migration_environment = dict
# Prisma's program. An image without network has it at another path.
command = getattr(utils, "_get_prisma_command", lambda: "prisma")()
prisma_words = [command] if shutil.which(command) else [sys.executable, "-m", "prisma"]


def execute(block):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(f"DO $$ {block} $$")
        file.flush()
        words = [*prisma_words, "db", "execute", "--schema", str(schema), "--file", file.name]
        return subprocess.run(words, capture_output=True, text=True, env=dict(migration_environment(os.environ)))


def migrate():
    manager = utils.ProxyExtrasDBManager
    # Builds the indexes of the request logs, too; releases before it have none to build.
    job = getattr(manager, "run_migration_job", manager.setup_database)
    arguments = {"use_migrate": True}
    if "use_v2_resolver" in inspect.signature(job).parameters:
        default = str(hasattr(manager, "run_migration_job"))
        chosen = os.environ.get("USE_V2_MIGRATION_RESOLVER", default)
        arguments["use_v2_resolver"] = utils.str_to_bool(chosen)
    return job(**arguments)


def remedy(reason):
    name = re.search("[0-9]{14}_\\w+", reason)
    if not name:
        return ""
    row = f"migration_name = '{name[0]}' AND finished_at IS NULL AND rolled_back_at IS NULL"
    return f"""
What to do: look whether the changes of {name[0]} (its migration.sql in the image) are in the database.
If none of them is there, have it run again:
  UPDATE _prisma_migrations SET rolled_back_at = now() WHERE {row};
If all of them are there, have it count as done:
  UPDATE _prisma_migrations SET finished_at = now() WHERE {row};
For SQL in the local database: litellm-units exec postgres sh -c 'psql -U "$POSTGRES_USER" -d "$POSTGRES_DB"'
Then: litellm-units up"""


def lacking():
    """SQL that adds the tables and columns which this release has and the database lacks."""
    words = [*prisma_words, "migrate", "diff", "--script"]
    words += ["--from-schema-datasource", str(schema), "--to-schema-datamodel", str(schema)]
    answer = subprocess.run(words, capture_output=True, text=True, env=dict(migration_environment(os.environ)))
    statements = re.findall("^(?:CREATE|ALTER) TABLE .*?;$", answer.stdout, re.M | re.S)
    return [one for one in statements if one.startswith("CREATE") or " ADD COLUMN " in one]


def status(words):
    # A refused login stays refused: litellm-migrate.service is not started again after 78. Nor, with an external server,
    # after 2: a URL, a database, a right or a migration that an operator has to change. Everything else may pass by itself.
    if "P1000" in words:
        return 78
    return 2 if re.search("P10(03|10|12|13)|P3[0-9]{3}|permission (denied|error)", words) else 1


def finish(content):
    if not record.parent.is_dir():
        return
    new = record.with_name("new")
    new.write_text(f"{content}\n")
    new.replace(record)


# The comment: a hash of the migrations, and one of the columns and indexes that they left.
comment = f"""(SELECT 'migrated by litellm-units: {release.hexdigest()} ' || md5(concat(
(SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default), ','
ORDER BY table_name, column_name) FROM information_schema.columns
JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'),
(SELECT string_agg(indexdef, ',' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = current_schema()))))"""
# Prisma prints no rows, but it prints errors: so each answer is an exception.
answer = execute(f"""DECLARE later text; BEGIN
IF to_regclass('_prisma_migrations') IS NOT NULL THEN
SELECT max(migration_name) INTO later FROM _prisma_migrations
WHERE rolled_back_at IS NULL AND migration_name ~ '^[0-9]{{14}}_' AND migration_name > '{newest}';
IF later IS NOT NULL THEN RAISE EXCEPTION 'later migration: %', later; END IF;
IF obj_description(to_regclass('_prisma_migrations'), 'pg_class') = {comment}
THEN RAISE EXCEPTION 'same migrations'; END IF;
END IF; END""")
later = re.search("later migration: (\\S+)", answer.stderr)
if later:
    print(f"the database has the schema of a later release, with {later[1]}: nothing to migrate")
    finish(later[1])
elif "same migrations" in answer.stderr:
    print(f"the database has the schema of this release, with {newest}: nothing to migrate")
    finish(f"{newest} {len(names):05}")
elif answer.returncode:
    print(answer.stderr, file=sys.stderr)
    sys.exit(status(answer.stderr))
else:
    try:
        done = migrate()
    except RuntimeError as reason:
        # As in LiteLLM's own command line.
        print(f"the database can't be migrated: {reason}{remedy(str(reason))}", file=sys.stderr)
        sys.exit(status(str(reason)))
    if not done:
        sys.exit("the database was not migrated, for the reason above")
    finish(f"{newest} {len(names):05}")
    missing = lacking()
    if missing:
        # The comment is not written, so that the next start reports this again.
        print(
            "the database lacks what this release needs, and LiteLLM's migration does not add it. To add it:",
            *missing,
            sep="\n",
            file=sys.stderr,
        )
    else:
        answer = execute(f"""BEGIN IF to_regclass('_prisma_migrations') IS NOT NULL THEN
EXECUTE format('COMMENT ON TABLE _prisma_migrations IS %L', {comment}); END IF; END""")
        # If that failed, the next start does all of this again.
        print(answer.stderr, end="", file=sys.stderr)
